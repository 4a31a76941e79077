// SPDX-License-Identifier: MIT
/* The pace at which a store looks at what it took over, by the pauses it asks for. */
#include "tests/unit/store_rig.h"

#define PAGES		5
#define VERIFIED	69632ull	/* bytes of their slots: 12 KiB, and 8 KiB of sinks */

static uv_timer_t *paused;
static uint64_t pauses_ms;

int __real_uv_timer_start(uv_timer_t *t, uv_timer_cb fn, uint64_t ms, uint64_t again);
int __wrap_uv_timer_start(uv_timer_t *t, uv_timer_cb fn, uint64_t ms, uint64_t again);
int __wrap_uv_timer_start(uv_timer_t *t, uv_timer_cb fn, uint64_t ms, uint64_t again)
{
	if (t == paused)
		pauses_ms += ms;
	return __real_uv_timer_start(t, fn, ms, again);
}

/* Milliseconds that the background pauses at @rate. */
static uint64_t verification_ms(uint64_t rate)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct rig r;

	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	rig_start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	rig_close(&r);
	mgr_sync();
	r.o.verify_rate = rate;
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	ASSERT_EQ(r.st->verify_pending, PAGES);
	paused = &r.st->verify_timer;
	pauses_ms = 0;
	while (r.st->verify_pending)
		uv_run(&r.loop, UV_RUN_ONCE);
	paused = NULL;
	ASSERT_EQ(r.st->pool[0].used, VERIFIED);
	rig_stop(&r);
	mgr_stop();
	return pauses_ms;
}

/* Bytes over pauses are the rate; less than a millisecond is owed. */
TEST(slow)
{
	ASSERT_EQ(verification_ms(400000), VERIFIED * 1000 / 400000);
}

/* Pauses of less than a millisecond add up. */
TEST(fast)
{
	ASSERT_EQ(verification_ms(15000000), VERIFIED * 1000 / 15000000);
}

TEST(faster_than_a_pause)
{
	ASSERT_EQ(verification_ms(1 << 30), 0);
}

TEST(no_limit)
{
	ASSERT_EQ(verification_ms(0), 0);
}

/* What a server still has of its store when a verification ends: nothing once that closes. */
struct ended {
	const struct cqd_store *store;
	bool done;
	uint64_t skipped;
};

static void on_ended(void *arg, uint64_t checked, uint64_t failed, uint64_t bytes)
{
	struct ended *e = arg;

	ASSERT(!e->store);
	e->skipped = cqd_store_unreadable(e->store);
	e->done = true;
}

TEST(it_ends_after_its_store_closes)
{
	struct ended e = { .skipped = 1 };
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct rig r;

	mgr_start();
	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	e.store = r.st;
	ASSERT_OK(cqd_verify(r.st, on_ended, &e));
	ASSERT(!e.done);
	e.store = NULL;
	rig_close(&r);
	ASSERT(e.done);
	ASSERT_EQ(e.skipped, 0);
	rig_stop(&r);
	mgr_stop();
}
