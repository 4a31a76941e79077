// SPDX-License-Identifier: MIT
/*
 * Checksums of sealed pages: all of them when the administrator asks, those
 * taken over from the daemon before at a bounded rate in the background.
 *
 * One page at a time and pass, on a worker thread; the page is held, so that
 * its slot is not written meanwhile. A mismatch drops the page and its
 * descendants. Pages in memory that cqd cannot read are passed over: look.c.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cq/log.h"
#include "daemon/msgid.h"
#include "daemon/store_priv.h"

#define SAID_BAD 8		/* pages of a pass named in the log */

struct pass {
	struct cqd_job job;
	struct list_head node;
	struct cqd_store *st;
	uint32_t next, page;
	uint64_t owed_us;	/* pauses that were too short to be made */
	bool background, running;
	uint64_t checked, failed, bytes;
	uint64_t job_bytes;
	bool bad;
	struct cqd_place at[CQD_N_KINDS];
	struct cqp_rec_page rec;
	cqd_verify_cb done;
	void *arg;
};

static void advance(struct pass *ps);

/**
 * cqd_slot_right() - is what lies in a slot what was sealed there?
 * @sh:   shard
 * @rec:  the page's record
 * @kind: of the slot
 * @h:    header found there
 * @lo:   checksum of the payload found there
 * @hi:   high half
 *
 * Return: true: it is.
 */
bool cqd_slot_right(const struct cqd_shard *sh, const struct cqp_rec_page *rec,
		    unsigned int kind, const struct cq_page_hdr *h, uint64_t lo, uint64_t hi)
{
	if (h->magic != CQ_PAGE_MAGIC || h->version != CQ_PAGE_VERSION || h->incompat ||
	    h->kind != (kind == CQD_SINKS ? CQ_PAGE_SINK : CQ_PAGE_CODES) ||
	    h->payload != sh->kind[kind].payload || memcmp(h->key, rec->key, sizeof(h->key)))
		return false;
	/* The index has the truth about codes; of sinks only the header knows. */
	if (kind == CQD_CODES && (h->check_lo != rec->check_lo || h->check_hi != rec->check_hi))
		return false;
	return lo == h->check_lo && hi == h->check_hi;
}

/* Header and payload of a slot against its checksum. */
static bool slot_good(const struct pass *ps, unsigned int kind)
{
	struct cqd_segment *seg = ps->at[kind].seg;
	const struct cqd_mem_ops *mem = cqd_pool_of(seg)->mem;
	uint64_t off = ps->at[kind].slot * seg->slot_bytes, lo, hi;
	struct cq_page_hdr h;

	return !mem->read(&seg->mem, off, &h, sizeof(h)) &&
	       !mem->check(&seg->mem, off + sizeof(h), seg->shard->kind[kind].payload, &lo, &hi) &&
	       cqd_slot_right(seg->shard, &ps->rec, kind, &h, lo, hi);
}

static void check_run(struct cqd_job *job)
{
	struct pass *ps = container_of(job, struct pass, job);
	unsigned int k;

	ps->bad = false;
	for (k = 0; k < CQD_N_KINDS; k++)
		if (ps->at[k].seg && !slot_good(ps, k))
			ps->bad = true;
}

static void end(struct pass *ps)
{
	list_del(&ps->node);
	if (ps->done)
		ps->done(ps->arg, ps->checked, ps->failed, ps->bytes);
	free(ps);
}

/* The first ones by name, the rest as a number: a bad module hits many. */
static void say_bad(const struct cqd_store *st, uint32_t p, uint64_t nth)
{
	const struct cqd_shard *sh = st->pages[p].shard;
	char hex[65];

	if (nth > SAID_BAD)
		return;
	cqp_key_hex((const void *)st->ix.pages[p].key, hex);
	cq_log_field("MESSAGE_ID", "%s", CQD_MSG_CHECKSUM);
	cq_log_field("CQ_NAMESPACE", "%s", sh->ns->name);
	cq_log_field("CQ_MODEL", "%s", sh->model->name);
	cq_log_field("CQ_KEY", "%s", hex);
	cq_log_field("CQ_PAGES", "%llu", (unsigned long long)nth);
	cq_err("page %s (namespace %s, model %s): wrong checksum; dropped with its "
	       "descendants%s; check the memory of %s", hex, sh->ns->name, sh->model->name,
	       nth == SAID_BAD ? "; more are only counted" : "",
	       sh->pool->mem->remote ? sh->pool->name : "the machine");
}

void cqd_page_bad(struct cqd_store *st, uint32_t p, uint64_t nth)
{
	cqd_checksum_failed(st, p);
	say_bad(st, p, nth);
	cqd_page_drop(st, p);
}

static void checked(struct pass *ps)
{
	struct cqd_store *st = ps->st;
	uint32_t p = ps->page;

	cqd_page_verified(st, p);
	ps->checked++;
	ps->bytes += ps->job_bytes;
	if (ps->bad)
		cqd_page_bad(st, p, ++ps->failed);
	cqd_page_unhold(st, p);
}

static void check_done(struct cqd_job *job)
{
	struct pass *ps = container_of(job, struct pass, job);
	struct cqd_store *st = ps->st;
	uint64_t ms;

	ps->running = false;
	checked(ps);
	if (!ps->background || st->closing || !st->o.verify_rate) {
		advance(ps);
		return;
	}
	/* The pause that makes bytes over time the rate; small pages share one. */
	ps->owed_us += ps->job_bytes * 1000000 / st->o.verify_rate;
	ms = ps->owed_us / 1000;
	ps->owed_us %= 1000;
	if (!ms) {
		advance(ps);
		return;
	}
	uv_timer_start(&st->verify_timer, cqd_verify_timer, ms, 0);
}

static bool due(const struct pass *ps, uint32_t p)
{
	const struct cqd_page *pg = &ps->st->pages[p];

	return pg->shard && pg->state == CQP_SEALED && !pg->shard->pool->mem->remote &&
	       (!ps->background || (pg->flags & CQD_PG_UNVERIFIED));
}

/* Next page of the pass, or its end. */
static void advance(struct pass *ps)
{
	struct cqd_store *st = ps->st;
	unsigned int k;

	while (ps->next < st->ix.t_pages.high && !due(ps, ps->next))
		ps->next++;
	if (ps->next == st->ix.t_pages.high || st->closing) {
		end(ps);
		return;
	}
	ps->page = ps->next++;
	ps->rec = st->ix.pages[ps->page];
	ps->job_bytes = 0;
	for (k = 0; k < CQD_N_KINDS; k++) {
		ps->at[k] = cqd_page_place(st, ps->page, k);
		if (ps->at[k].seg)
			ps->job_bytes += ps->at[k].seg->slot_bytes;
	}
	cqd_page_hold(st, ps->page);
	ps->running = true;
	ps->job.run = check_run;
	ps->job.done = check_done;
	cqd_job_queue(st, &ps->job, false);
}

static struct pass *pass_new(struct cqd_store *st, bool background)
{
	struct pass *ps = calloc(1, sizeof(*ps));

	if (!ps)
		return NULL;
	ps->st = st;
	ps->background = background;
	list_add_tail(&ps->node, &st->verify_passes);
	return ps;
}

/**
 * cqd_verify() - checksum of every sealed page now
 * @st:   store
 * @done: called on the loop when all were checked, possibly before return;
 *        with what was checked so far when the store closes
 * @arg:  passed to @done
 *
 * Return: 0; -ENOMEM (then @done is not called).
 */
int cqd_verify(struct cqd_store *st, cqd_verify_cb done, void *arg)
{
	struct pass *ps = pass_new(st, false);

	if (!ps)
		return -ENOMEM;
	ps->done = done;
	ps->arg = arg;
	advance(ps);
	return 0;
}

/**
 * cqd_verify_background() - begin to check what was taken over
 * @st: store
 */
void cqd_verify_background(struct cqd_store *st)
{
	struct pass *ps;

	if (!st->verify_pending)
		return;
	ps = pass_new(st, true);
	if (ps)
		uv_timer_start(&st->verify_timer, cqd_verify_timer, 0, 0);
}

/**
 * cqd_verify_timer() - the pause of the background pass is over
 * @timer: of the store
 */
void cqd_verify_timer(uv_timer_t *timer)
{
	struct cqd_store *st = timer->data;
	struct list_head *pos;

	list_for_each(pos, &st->verify_passes) {
		struct pass *ps = list_entry(pos, struct pass, node);

		if (ps->background && !ps->running) {
			advance(ps);
			return;
		}
	}
}

/**
 * cqd_verify_stop() - no more pages; jobs under way end by themselves
 * @st: store that closes
 */
void cqd_verify_stop(struct cqd_store *st)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &st->verify_passes) {
		struct pass *ps = list_entry(pos, struct pass, node);

		if (!ps->running)
			end(ps);
	}
}
