// SPDX-License-Identifier: MIT
/*
 * Sequences handed from worker to worker under names, and pins. What is said of
 * a name lies in memory that outlives who says it: a name that cqd has
 * acknowledged and that nobody took, replaced or took away, and whose time is
 * not over, is attached to and reads as its text does, whoever was killed since.
 *
 * One worker at a time is at a name. One that is killed there, or that cqd does
 * not answer, leaves a name that may be as before or as it was to become, and
 * nothing else; once that is settled its place goes on under another name, since
 * cqd may still get to what was asked of the old one.
 */
#include <unistd.h>
#include "proto/proto.h"
#include "tests/chaos/worker.h"

/* What is under way; more than one bit after an attempt to settle it. */
#define OP_MAKE	1u		/* the other record comes in place of this */
#define OP_TAKE	2u		/* the name goes */

static uint64_t state_get(const struct chaos_name *nm)
{
	return atomic_load(&nm->state);
}

static void state_set(struct chaos_name *nm, uint64_t gen, unsigned int op, unsigned int cur)
{
	atomic_store(&nm->state, gen << 3 | op << 1 | cur);
}

static uint64_t gen_of(const struct chaos_name *nm)
{
	return state_get(nm) >> 3;
}

static unsigned int op_of(const struct chaos_name *nm)
{
	return state_get(nm) >> 1 & 3;
}

static struct chaos_record *rec(struct chaos_name *nm, bool other)
{
	return &nm->rec[(state_get(nm) & 1) ^ other];
}

static void op_begin(struct chaos_name *nm, unsigned int op)
{
	atomic_fetch_or(&nm->state, (uint64_t)op << 1);
}

static void op_undo(struct chaos_name *nm)
{
	atomic_fetch_and(&nm->state, ~(uint64_t)6);
}

/* The other record is the name's now. */
static void op_done(struct chaos_name *nm)
{
	state_set(nm, gen_of(nm), 0, (state_get(nm) & 1) ^ 1);
}

/* It is there no more: the other record, which says so, is in force. */
static void gone(struct chaos_name *nm, uint64_t gen)
{
	struct chaos_record *r = rec(nm, true);

	*r = (struct chaos_record){ .live = false };
	state_set(nm, gen, 0, (state_get(nm) & 1) ^ 1);
}

static const char *name_of(const struct chaos_name *nm, uint64_t gen, char buf[CQP_MAX_NAME])
{
	snprintf(buf, CQP_MAX_NAME, "chaos-%td.%llu", nm - chaos->name[chaos_me->ns],
		 (unsigned long long)gen);
	return buf;
}

/* May cqd have dropped it because its time was over? */
static bool over(const struct chaos_record *r)
{
	return r->ttl_s && now_us() >= r->made_us + r->ttl_s * 1000000ull;
}

/* Was it there longer than it may be, when it was asked for at @asked? */
static bool overdue(const struct chaos_record *r, uint64_t asked)
{
	return r->ttl_s && r->said_us && asked > r->said_us + r->ttl_s * 1000000ull;
}

static bool reads_as(struct cq_seq *seq, const struct chaos_record *r)
{
	static uint32_t got[TEXT_TOKENS], want[TEXT_TOKENS];

	if (!r->live || r->pin || cq_seq_length(seq) != r->tokens)
		return false;
	MAY("cq_tokens", cq_tokens(seq, 0, r->tokens, got), false);
	text_ids(want, r->text, 0, r->tokens);
	return !memcmp(got, want, r->tokens * sizeof(*got));
}

/* What was attached to is held from now on, and its next attention compared. */
static void took(struct cq_seq *seq, const struct chaos_record *r)
{
	chaos_count(&chaos->passed, 1);
	if (me.n == HOLDS)
		worker_drop(chaos_below(&me.rng, me.n));
	me.hold[me.n++] = (struct hold){ seq, r->text };
	worker_attend_last();
}

__attribute__((noreturn))
static void wrong_name(const char *name, const char *what)
{
	chaos_count(&chaos->wrong, 1);
	FAIL("wrong: name %s %s", name, what);
}

__attribute__((noreturn))
static void lost_name(const char *name, const struct chaos_record *r, int ret)
{
	chaos_count(&chaos->lost, 1);
	FAIL("lost: name %s of %u tokens of text %u, made %llu ms ago for %u s%s: %s (%s)", name,
	     r->tokens, r->text, (unsigned long long)(now_us() - r->made_us) / 1000, r->ttl_s,
	     r->once ? ", once" : "", strerror(-ret), cq_last_error());
}

/* --- a name that may be either --- */

/* Is it one of the two that it may be? */
static void settle_found(struct chaos_name *nm, struct cq_seq *seq, const char *name)
{
	struct chaos_record *old = rec(nm, false), *new = rec(nm, true);

	if (reads_as(seq, old))
		took(seq, old);
	else if (op_of(nm) & OP_MAKE && reads_as(seq, new))
		took(seq, new);
	else
		wrong_name(name, "reads as neither of what it may");
}

static void settle(struct chaos_name *nm)
{
	struct chaos_record *old = rec(nm, false), *new = rec(nm, true);
	bool may_go = op_of(nm) & OP_TAKE || !old->live || over(old);
	uint64_t gen = gen_of(nm);
	struct cq_seq *seq = NULL;
	char name[CQP_MAX_NAME];
	int ret;

	name_of(nm, gen, name);
	DOING("settling name %s", name);
	if ((old->live && old->once) || new->once)
		op_begin(nm, OP_TAKE);	/* if this is the attempt that takes it */
	ret = cq_attach(me.model, name, NULL, &seq);
	MAY("cq_attach", ret, unreachable(ret) || no_room(ret) || ret == -ENOBUFS ||
	    ret == -ENODATA || ret == -ENOENT);
	if (ret == -ENOENT && !may_go && !over(old) && !over(new))
		lost_name(name, old, ret);
	if (!ret)
		settle_found(nm, seq, name);
	if (ret && ret != -ENOENT && ret != -ENODATA)
		return;
	ret = cq_unpublish(me.ctx, name);
	MAY("cq_unpublish", ret, unreachable(ret) || ret == -ENOENT);
	if (unreachable(ret)) {
		op_begin(nm, OP_TAKE);
		return;
	}
	chaos_count(&chaos->unsure, 1);
	gone(nm, gen + 1);
}

/* --- making one --- */

static int publish(const struct hold *h, const char *name, const struct chaos_record *r,
		   bool replace)
{
	struct cq_publish_opts po = { .sz = sizeof(po), .ttl_s = r->ttl_s };

	po.flags = (replace ? CQ_PUBLISH_REPLACE : 0) | (r->once ? CQ_PUBLISH_ONCE : 0) |
		   (r->pin ? CQ_PUBLISH_PIN : 0);
	return cq_publish(h->seq, name, &po);
}

static void record_pick(struct chaos_record *r, const struct hold *h)
{
	uint32_t kind = chaos_below(&me.rng, 8);

	*r = (struct chaos_record){
		.text = h->text, .tokens = (uint32_t)cq_seq_length(h->seq), .live = true,
		.once = kind < 3, .ttl_s = chaos_below(&me.rng, 4) ?
				  1 + chaos_below(&me.rng, NAME_TTL_S) : 0,
	};
	r->pin = kind == 3 && r->tokens >= 64;
	r->made_us = now_us();
}

static void make(struct chaos_name *nm)
{
	const struct hold *h = &me.hold[me.n ? chaos_below(&me.rng, me.n) : 0];
	struct chaos_record *r = rec(nm, true);
	bool replace = rec(nm, false)->live;
	char name[CQP_MAX_NAME];
	int ret;

	if (!me.n || !cq_seq_length(h->seq))
		return;
	record_pick(r, h);
	name_of(nm, gen_of(nm), name);
	DOING("publishing text %u as %s", h->text, name);
	op_begin(nm, OP_MAKE);
	ret = publish(h, name, r, replace);
	if (ret == -ENOENT)
		worker_lost("cq_publish()", h->text);
	MAY("cq_publish", ret, unreachable(ret) || no_room(ret) || ret == -ENOBUFS);
	if (!ret) {
		r->said_us = now_us();
		op_done(nm);
		chaos_count(replace ? &chaos->replaced : &chaos->published, 1);
	} else if (!unreachable(ret)) {
		op_undo(nm);
	}
}

/* --- using one --- */

/* cqd may go between the answer and the look at the pages: -ENODATA, once. */
static int attach_patiently(struct chaos_name *nm, const char *name, struct cq_seq **seq)
{
	long long end = test_now_ms() + PATIENCE_MS;
	int ret;

	for (;;) {
		ret = cq_attach(me.model, name, NULL, seq);
		if (ret != -ENODATA || rec(nm, false)->once || rec(nm, false)->pin || stopped())
			return ret;
		if (over(rec(nm, false)) || test_now_ms() > end)
			return ret;
		usleep(2000);
	}
}

/* It has pages and no sequence: all of them are found by their tokens. */
static void use_pin(struct chaos_name *nm, const char *name)
{
	struct chaos_record *r = rec(nm, false);
	long long end = test_now_ms() + PATIENCE_MS;
	uint32_t full = r->tokens / 64 * 64;
	struct cq_seq *seq;
	size_t n;

	do {
		seq = worker_open_text(r->text, full + 1);
		n = cq_seq_length(seq);
		cq_seq_close(seq);
		if (n == full || over(r))
			return;
		usleep(2000);
	} while (!n && test_now_ms() < end && !stopped());
	if (!stopped())
		lost_name(name, r, -ENODATA);
}

static void use_failed(struct chaos_name *nm, const char *name, int ret)
{
	struct chaos_record *r = rec(nm, false);

	MAY("cq_attach", ret, unreachable(ret) || no_room(ret) || ret == -ENOBUFS ||
	    ret == -ENOENT || ret == -ENODATA);
	if (ret == -ENOENT && over(r)) {
		chaos_count(&chaos->expired, 1);
		gone(nm, gen_of(nm));
	} else if (ret == -ENOENT) {
		lost_name(name, r, ret);
	} else if (ret == -ENODATA && !r->once && !over(r) && !stopped()) {
		lost_name(name, r, ret);
	} else if (ret == -ENOBUFS) {
		worker_make_room(NULL);
	}
	/* what is taken once may have been, by an answer that did not come */
}

static void use(struct chaos_name *nm)
{
	struct chaos_record *r = rec(nm, false);
	struct cq_seq *seq = NULL;
	char name[CQP_MAX_NAME];
	uint64_t asked = now_us();
	int ret;

	name_of(nm, gen_of(nm), name);
	DOING("attaching to %s, text %u", name, r->text);
	if (r->pin) {
		use_pin(nm, name);
		ret = cq_attach(me.model, name, NULL, &seq);
		if (ret != -ENODATA)
			use_failed(nm, name, ret ? ret : -EPROTO);
		return;
	}
	if (r->once)
		op_begin(nm, OP_TAKE);
	ret = attach_patiently(nm, name, &seq);
	if (ret) {
		use_failed(nm, name, ret);
		return;
	}
	if (!reads_as(seq, r))
		wrong_name(name, "has not the tokens that were published");
	if (overdue(r, asked))
		wrong_name(name, "was there after its time");
	/* the record stays as it is, if not in force, while this worker is at it */
	if (r->once)
		gone(nm, gen_of(nm));
	took(seq, r);
}

static void take_away(struct chaos_name *nm)
{
	struct chaos_record *r = rec(nm, false);
	char name[CQP_MAX_NAME];
	int ret;

	name_of(nm, gen_of(nm), name);
	DOING("taking %s away", name);
	op_begin(nm, OP_TAKE);
	ret = cq_unpublish(me.ctx, name);
	MAY("cq_unpublish", ret, unreachable(ret) || ret == -ENOENT);
	if (ret == -ENOENT && !over(r))
		lost_name(name, r, ret);
	if (!unreachable(ret))
		gone(nm, gen_of(nm));
}

/**
 * handover_step() - publish, attach to, replace or take away a name
 */
void handover_step(void)
{
	struct chaos_name *nm = &chaos->name[chaos_me->ns][chaos_below(&me.rng, NAMES)];
	uint32_t what = chaos_below(&me.rng, 100);
	pid_t none = 0;

	if (!atomic_compare_exchange_strong(&nm->owner, &none, getpid()))
		return;
	if (op_of(nm))
		settle(nm);
	else if (!rec(nm, false)->live || what < 15)
		make(nm);
	else if (what < 95)
		use(nm);
	else
		take_away(nm);
	atomic_store(&nm->owner, 0);
}

/**
 * handover_audit() - attach to every name that is there, and take it away
 */
void handover_audit(void)
{
	struct chaos_name *nm;
	char name[CQP_MAX_NAME];
	uint64_t gen;
	unsigned int i;

	for (i = 0; i < NAMES; i++) {
		nm = &chaos->name[chaos_me->ns][i];
		if (op_of(nm))
			settle(nm);
		else if (rec(nm, false)->live)
			use(nm);
		while (me.n)
			worker_drop(0);
		/* also what was asked for by one who died, and came late */
		for (gen = 0; gen <= gen_of(nm); gen++)
			cq_unpublish(me.ctx, name_of(nm, gen, name));
	}
}
