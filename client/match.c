// SPDX-License-Identifier: MIT
/*
 * Opening a sequence on what is published of its tokens: keys are asked for, and
 * what cqd answers is looked at, many pages at once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/backend.h"

/*
 * struct match - an answer to Lookup
 * @pages: [@n] found, of @asked
 * @known: of these, how many have their segment here, and were good so far
 * @sinks: the first one's are wanted; they come behind the @known pages in
 * @seg, @at, @hdr: where pages are, and what their headers say
 */
struct match {
	struct cqp_page pages[CQP_MAX_KEYS];
	uint32_t n, asked, split;
	struct cqp_page sink;
	bool has_sink, has_unchecked;
	uint32_t epoch;
	uint8_t unchecked[CQP_MAX_KEYS / 8];
	uint32_t known;
	bool sinks;
	struct cqc_seg *seg[CQC_HEADERS];
	const uint8_t *at[CQC_HEADERS];
	struct cq_page_hdr hdr[CQC_HEADERS];
};

static int lookup_take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	const Cqp__LookupOk *ok = msg->lookup_ok;
	struct match *m = call->arg;

	if (ok->matched > m->asked || ok->pages.len != ok->matched * sizeof(*m->pages) ||
	    (ok->has_sink && ok->sink.len != sizeof(m->sink)) ||
	    (ok->has_split && (!ok->split || ok->split >= ok->matched)) ||
	    (ok->has_unchecked && ok->unchecked.len != (ok->matched + 7) / 8))
		return cq_err_set(&call->err, -EPROTO, "cqd gave a malformed answer to Lookup");
	m->n = ok->matched;
	m->split = ok->has_split ? ok->split : 0;
	if (ok->matched)
		memcpy(m->pages, ok->pages.data, ok->pages.len);
	m->has_sink = ok->has_sink;
	if (ok->has_sink)
		memcpy(&m->sink, ok->sink.data, sizeof(m->sink));
	m->has_unchecked = ok->has_unchecked;
	if (ok->has_unchecked)
		memcpy(m->unchecked, ok->unchecked.data, ok->unchecked.len);
	return 0;
}

/* Keys [@first, @first + @m->asked). Lock held. */
static int lookup(struct cq_model *model, const struct cqp_key *keys, struct match *m)
{
	struct cqc_call call = {
		.req.want = CQP__MSG__BODY_LOOKUP_OK,
		.take = lookup_take,
		.arg = m,
	};
	Cqp__Lookup body = CQP__LOOKUP__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cq_ctx *ctx = model->ctx;
	int ret;

	ret = cqc_await_ready(model);
	if (ret)
		return ret;
	body.shard = model->shard;
	body.keys.data = (uint8_t *)(uintptr_t)keys;
	body.keys.len = m->asked * sizeof(*keys);
	msg.body_case = CQP__MSG__BODY_LOOKUP;
	msg.lookup = &body;
	m->epoch = ctx->pin_epoch;
	ret = cqc_call(ctx, &call, &msg, NULL, 0, ctx->conn_no);
	if (ret == -ETIMEDOUT)
		ctx->stalled = true;
	return ret;
}

static void pin_add(struct cqc_pin *pin, const struct cqp_page *page, uint32_t epoch)
{
	pin->at[pin->n].page = *page;
	pin->at[pin->n++].epoch = epoch;
}

/* None replaces an earlier one: pages of another round may hang elsewhere. */
static void pins_take(struct cq_seq *seq, const struct match *m)
{
	if (m->split)
		pin_add(seq->pin, &m->pages[m->split - 1], m->epoch);
	pin_add(seq->pin, &m->pages[m->n - 1], m->epoch);
}

/* For as many answers as there may be to the keys of @pages pages. */
static struct cqc_pin *pin_new(uint32_t pages)
{
	size_t n = 2 * ((size_t)pages / CQP_MAX_KEYS + 1);
	struct cqc_pin *pin = calloc(1, sizeof(*pin) + n * sizeof(pin->at[0]));

	if (pin)
		pin->refs = 1;
	return pin;
}

static int slot_find(struct cq_model *model, struct match *m, const struct cqp_page *page,
		     uint32_t kind)
{
	uint32_t i = m->known;
	int ret = cqc_seg_get(model, page->segment, &m->seg[i]);

	if (ret)
		return ret;
	m->at[i] = cqc_slot_at(model, m->seg[i], page, kind);
	return m->at[i] ? 0 : -EPROTO;
}

/* Headers of the first @n pages, or of fewer. Lock held. */
static int headers_read(struct cq_model *model, struct match *m, uint32_t n)
{
	int ret = 0;

	m->known = 0;
	while (m->known < n && !slot_find(model, m, &m->pages[m->known], CQ_PAGE_CODES))
		m->known++;
	if (m->known && m->sinks)
		ret = m->has_sink ? slot_find(model, m, &m->sink, CQ_PAGE_SINK) : -EPROTO;
	if (!ret && m->known)
		ret = model->be->headers(model, m->at, m->known + m->sinks, m->hdr);
	return ret;
}

/* Page @k of the answer becomes entry @i. */
static int ent_match(struct cq_seq *seq, uint32_t i, uint32_t k, const struct match *m,
		     const struct cqp_key *key, const uint32_t *ids)
{
	struct cq_model *model = seq->model;
	struct cqc_slot slot, sink = { 0 };
	struct cq_pg *pg;
	int ret;

	ret = cqc_slot_is(model, m->seg[k], &m->pages[k], CQ_PAGE_CODES, key, &m->hdr[k], &slot);
	if (!ret && !k && m->sinks)
		ret = cqc_slot_is(model, m->seg[m->known], &m->sink, CQ_PAGE_SINK, key,
				  &m->hdr[m->known], &sink);
	pg = ret ? NULL : cqc_pg_new(model);
	if (!pg)
		return ret ? ret : -ENOMEM;
	pg->n_coded = CQ_PAGE_TOKENS;
	pg->codes = slot.data;
	pg->slot = slot;
	pg->sink = sink;
	pg->key = *key;
	pg->eng = CQC_ENG_SEALED;
	memcpy(pg->tokens, ids, sizeof(pg->tokens));
	if (i)
		pg->parent = cqc_pg_get(seq->ents[i - 1].pg);
	seq->ents[i].pg = pg;
	seq->ents[i].f16 = CQC_NONE;
	seq->ents[i].f16_mask = 0;
	seq->n_ents = i + 1;
	return 0;
}

/* Pages of @m that may be used, from the first on; -errno. Lock held. */
static int usable(struct cq_model *model, const struct match *m, bool first)
{
	struct cqc_unchecked f = {
		.pages = m->pages, .n = m->n, .bits = m->unchecked,
		.sink = first && m->has_sink ? &m->sink : NULL,
	};

	return m->has_unchecked ? model->be->verify(model, &f) : (int)m->n;
}

/* Lock held. Fewer pages than there are is no error: the rest is computed. */
static void match_rounds(struct cq_seq *seq, const uint32_t *ids, const struct cqp_key *keys,
			 uint32_t n, struct match *m)
{
	struct cq_model *model = seq->model;
	uint32_t done = 0, i;
	int good;

	while (done < n) {
		m->asked = MIN(n - done, (uint32_t)CQP_MAX_KEYS);
		if (lookup(model, keys + done, m) || !m->n)
			return;
		pins_take(seq, m);
		m->sinks = !done && model->m.sinks;
		good = usable(model, m, !done);
		if (good <= 0 || headers_read(model, m, (uint32_t)good))
			return;
		for (i = 0; i < m->known; i++)
			if (ent_match(seq, done + i, i, m, &keys[done + i],
				      ids + (size_t)(done + i) * CQ_PAGE_TOKENS))
				return;
		done += m->known;
		if (m->known < m->asked)
			return;
	}
}

static int keys_make(const struct cq_seq *seq, const uint32_t *ids, uint32_t n,
		     struct cqp_key *keys)
{
	const struct cqp_key *parent = &seq->model->root;
	const struct cqc_extra *x = seq->extra;
	uint32_t i;
	int ret;

	for (i = 0; i < n; i++) {
		ret = cqp_key_page(&keys[i], parent, ids + (size_t)i * CQ_PAGE_TOKENS,
				   x ? x->bytes : NULL, x ? x->len : 0);
		if (ret)
			return ret;
		parent = &keys[i];
	}
	return 0;
}

/**
 * cqc_seq_match() - attach to pages as far as they are published
 * @seq:   without entries and pins
 * @ids:   [@pages * 64]
 * @pages: at most seq->max_ents
 *
 * Return: 0, seq->n_ents says how many; -ENOMEM.
 */
int cqc_seq_match(struct cq_seq *seq, const uint32_t *ids, uint32_t pages)
{
	struct cq_ctx *ctx = seq->model->ctx;
	struct match *found;
	struct cqp_key *keys;
	int ret = -ENOMEM;

	keys = malloc(pages * sizeof(*keys));
	found = malloc(sizeof(*found));
	seq->pin = pin_new(pages);
	if (keys && found && seq->pin)
		ret = keys_make(seq, ids, pages, keys);
	if (!ret) {
		pthread_mutex_lock(&ctx->lock);
		match_rounds(seq, ids, keys, pages, found);
		pthread_mutex_unlock(&ctx->lock);
	}
	free(keys);
	free(found);
	if (seq->pin && !seq->pin->n) {
		free(seq->pin);
		seq->pin = NULL;
	}
	if (ret)
		return cqc_fail(ret, "out of memory for the keys of %u pages", pages);
	seq->len = (size_t)seq->n_ents * CQ_PAGE_TOKENS;
	seq->matched = seq->len;
	seq->f16_lo = seq->n_ents;
	return 0;
}
