/* SPDX-License-Identifier: MIT */
/*
 * A store with the memory of a device (remote_mem.h), a client there, leases, seals
 * from them and restarts.
 */
#ifndef TESTS_LEASE_RIG_H
#define TESTS_LEASE_RIG_H

#include "tests/store_check.h"
#include "tests/unit/remote_mem.h"
#include "tests/unit/store_rig.h"

#define CODES	12288u		/* slots of the rig's model */
#define SINKS	8192u

struct lease_wait {
	bool done;
	int ret;
	unsigned int n;
	struct cqp_page slot[CQD_MAX_LEASE];
	struct cq_err err;
};

static const struct cqd_pool_opts gpu = {
	.name = "g0", .uuid = REMOTE_UUID, .backend = "remote", .bytes = 1 << 20,
};

__attribute__((unused))
static void on_lease(void *arg, int ret, const struct cqp_page *slots, unsigned int n,
		     const struct cq_err *err)
{
	struct lease_wait *w = arg;

	ASSERT(!w->done);
	w->done = true;
	w->ret = ret;
	w->n = n;
	w->err = *err;
	if (!ret)
		memcpy(w->slot, slots, n * sizeof(*slots));
}

__attribute__((unused))
static void holds(struct rig *r)
{
	const char *bad = store_check(r->st);

	if (bad)
		FAIL("%s", bad);
}

__attribute__((unused))
static struct lease_wait lease_of(struct rig *r, struct cqd_client *cl, struct cqd_shard *sh,
				  unsigned int n, bool sinks)
{
	struct lease_wait w = { .n = 0 };

	ASSERT_EQ(cqd_lease(cl, sh, n, sinks, on_lease, &w, &r->err), 0);
	rig_run(r, &w.done);
	return w;
}

/* Without an arena; the rig's shard is the device's. */
__attribute__((unused))
static struct cqd_client *client_on(struct rig *r, pid_t pid)
{
	static const struct cqp_shard all;
	struct cqd_client *cl;

	ASSERT_EQ(cqd_client_new(r->st, r->ns, pid, 7, 0, "test", &cl, &r->err), 0);
	ASSERT_EQ(cqd_shard_get_on(cl, "m", &all, REMOTE_UUID, &r->sh, &r->info, &r->err), 0);
	return cl;
}

__attribute__((unused))
static void start(struct rig *r, uint64_t bytes)
{
	static struct cqd_pool_opts opts;

	opts = gpu;
	opts.bytes = bytes;
	ASSERT_EQ(cqd_mem_register(&remote_ops), 0);
	mgr_start();
	rig_defaults(r);
	r->o.push_fds = true;
	r->o.pools = &opts;
	r->o.n_pools = 1;
	r->o.segment_min = 64 << 10;
	r->o.segment_max = 256 << 10;
	rig_start(r);
	cqd_client_end(r->cl);
	r->cl = client_on(r, 100);
	ASSERT_EQ(r->info.kind, CQD_MEM_CUDA_VMM);
}

__attribute__((unused))
static void stop(struct rig *r)
{
	if (r->st)
		holds(r);
	rig_stop(r);
	mgr_stop();
}

/* Page of 64 times @token behind @parent, out of leased slots. */
__attribute__((unused))
static int seal_from(struct rig *r, struct cqd_client *cl, const struct cqp_key *parent,
		     uint32_t token, const struct cqp_page *slot, const struct cqp_page *sink,
		     struct rig_wait *w)
{
	struct cqd_seal_req q = { .slot = slot, .sink_slot = sink, .parent = *parent,
				  .check_lo = token, .check_hi = ~(uint64_t)token,
				  .sink_offset = UINT64_MAX };
	unsigned int i;

	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		q.tokens[i] = token;
	*w = (struct rig_wait){ 0 };
	return cqd_seal(cl, r->sh, &q, rig_on_seal, w, &r->err);
}

__attribute__((unused))
static struct rig_wait page_0(struct rig *r, uint32_t token)
{
	struct lease_wait c = lease_of(r, r->cl, r->sh, 1, false);
	struct lease_wait s = lease_of(r, r->cl, r->sh, 1, true);
	struct rig_wait w;

	ASSERT_EQ(c.ret, 0);
	ASSERT_EQ(s.ret, 0);
	ASSERT_EQ(seal_from(r, r->cl, &r->root, token, &c.slot[0], &s.slot[0], &w), 0);
	rig_run(r, &w.done);
	ASSERT_EQ(w.ret, 0);
	return w;
}

__attribute__((unused))
static unsigned int state_of(struct rig *r, const struct cqp_page *p)
{
	return CQP_WORD_STATE(*cqd_segment_word(cqd_segment_find(r->st, p->segment), p->slot));
}

__attribute__((unused))
static uint64_t gen_of(struct rig *r, const struct cqp_page *p)
{
	return CQP_WORD_GEN(*cqd_segment_word(cqd_segment_find(r->st, p->segment), p->slot));
}

/* The next daemon. */
__attribute__((unused))
static void again(struct rig *r)
{
	static const struct cqp_shard all;
	uint64_t session = cqd_client_session(r->cl);

	rig_close(r);
	mgr_sync();
	if (rig_open(r))
		FAIL("%s", r->err.text);
	rig_ns(r);
	holds(r);
	r->cl = cqd_client_resume(r->st, r->ns, session, 100, 7);
	if (r->cl)
		ASSERT_EQ(cqd_shard_get_on(r->cl, "m", &all, REMOTE_UUID, &r->sh, &r->info,
					   &r->err), 0);
}

#endif /* TESTS_LEASE_RIG_H */
