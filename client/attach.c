// SPDX-License-Identifier: MIT
/*
 * Attaching to a published sequence. The tail was written by another process of
 * the namespace: cqd vouches for nothing but that it cannot change any more.
 * Everything in it is checked before it is used; keys are derived anew from the
 * token ids, so pages are those of these tokens or there are none.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>
#include "client/gpu.h"
#include "client/tail.h"

/*
 * struct tail - as it came
 * @base:  mapping that nobody can change
 * @entry: [@h.n_entries], @ids: [@h.tokens], @extra, @data: into it; entries and
 *         ids may be unaligned
 * @pin:   page pinned for us, in @epoch, until the sequence has pins of its own
 */
struct tail {
	int fd;
	uint64_t tokens, bytes, check_lo, check_hi;
	bool has_pin;
	struct cqp_page pin;
	uint32_t epoch;
	const uint8_t *base;
	struct cqp_tail_head h;
	const uint8_t *entry, *ids, *extra, *data;
};

static int attach_take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	const Cqp__AttachOk *ok = msg->attach_ok;
	struct tail *t = call->arg;

	if (f->n_fds != 1 || (ok->has_page && ok->page.len != sizeof(t->pin)))
		return cq_err_set(&call->err, -EPROTO, "cqd gave a malformed answer to Attach");
	t->tokens = ok->tokens;
	t->bytes = ok->bytes;
	t->check_lo = ok->check_lo;
	t->check_hi = ok->check_hi;
	t->has_pin = ok->has_page;
	if (ok->has_page)
		memcpy(&t->pin, ok->page.data, sizeof(t->pin));
	t->fd = cqp_frame_take(f, 0);
	return 0;
}

static int ask(struct cq_model *model, const char *name, struct tail *t)
{
	struct cqc_call call = {
		.req.want = CQP__MSG__BODY_ATTACH_OK,
		.take = attach_take,
		.arg = t,
	};
	Cqp__Attach body = CQP__ATTACH__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	struct cq_ctx *ctx = model->ctx;
	uint64_t spare = 2 * model->arena.unit;
	int ret;

	msg.body_case = CQP__MSG__BODY_ATTACH;
	msg.attach = &body;
	body.name = (char *)(uintptr_t)name;
	/* A tail that does not fit is not taken. The part-filled page needs memory
	 * for its codes too. */
	body.has_room = 1;
	body.room = model->arena.free_bytes > spare ? model->arena.free_bytes - spare : 0;
	pthread_mutex_lock(&ctx->lock);
	ret = cqc_await_ready(model);
	if (ret) {
		cqc_fail(ret, "cqd at %s is away", ctx->path);
	} else {
		body.shard = model->shard;
		t->epoch = ctx->pin_epoch;
		ret = cqc_call(ctx, &call, &msg, NULL, 0, ctx->conn_no);
	}
	pthread_mutex_unlock(&ctx->lock);
	return ret;
}

/* --- what came --- */

static int wrong(const char *what)
{
	return cqc_fail(-EPROTO, "the published sequence cannot be right: %s", what);
}

static int tail_map(struct tail *t)
{
	int seals = fcntl(t->fd, F_GET_SEALS);
	XXH128_hash_t h;
	void *p;
	int ret;

	if (t->bytes < sizeof(t->h))
		return wrong("too short");
	ret = cqc_memfd_check(t->fd, t->bytes, "tail", cqc_err());
	if (ret)
		return ret;
	if (!(seals & F_SEAL_WRITE))
		return wrong("its memfd is not sealed against writing");
	p = mmap(NULL, t->bytes, PROT_READ, MAP_SHARED, t->fd, 0);
	if (p == MAP_FAILED)
		return cqc_fail(-ENOMEM, "cannot map a tail of %llu bytes: %s",
				(unsigned long long)t->bytes, strerror(errno));
	t->base = p;
	h = XXH3_128bits(p, t->bytes);
	if (h.low64 != t->check_lo || h.high64 != t->check_hi)
		return wrong("wrong checksum");
	return 0;
}

static bool all_zero(const uint8_t *p, size_t n)
{
	while (n && !*p) {
		p++;
		n--;
	}
	return !n;
}

static int head_check(const struct cq_model *model, struct tail *t)
{
	const struct cqk_model *m = &model->m;
	struct cqp_tail_head *h = &t->h;

	memcpy(h, t->base, sizeof(*h));
	if (h->magic != CQP_TAIL_MAGIC || h->version != CQP_TAIL_VERSION || h->incompat)
		return wrong("unknown version or feature");
	if (!all_zero(h->pad, sizeof(h->pad)) || h->bytes != t->bytes || h->tokens != t->tokens)
		return wrong("head");
	if (memcmp(h->model_hash, m->hash, sizeof(h->model_hash)) ||
	    h->f16_block != m->f16_block || h->payload != m->payload ||
	    h->sink_bytes != m->sink_payload)
		return wrong("another model or shard");
	if (memcmp(h->root, model->root.b, sizeof(h->root)))
		return cqc_fail(-ENODATA, "the sequence was published with another salt of the "
					  "namespace");
	if (h->position >= m->geom.max_position ||
	    (h->position && m->geom.keys == CQK_KEYS_ROTATED) || !h->tokens ||
	    h->tokens > m->geom.max_position - h->position)
		return wrong("position or length");
	if (h->extra_len > CQP_MAX_EXTRA || h->n_entries > CQP_MAX_ENTRIES)
		return wrong("extra bytes or entries");
	return 0;
}

static struct cqp_tail_entry entry_at(const struct tail *t, uint32_t i)
{
	struct cqp_tail_entry e;

	memcpy(&e, t->entry + i * sizeof(e), sizeof(e));
	return e;
}

static uint64_t data_of(const struct tail *t, const struct cqp_tail_entry *e)
{
	return (e->parts & CQP_TAIL_F16 ? t->h.f16_block : 0) +
	       (e->parts & CQP_TAIL_CODES ? t->h.payload : 0) +
	       (e->parts & CQP_TAIL_SINKS ? t->h.sink_bytes : 0);
}

/* Does every token of the entry come from somewhere, and only from there? */
static bool entry_good(const struct cqk_model *m, const struct tail *t,
		       const struct cqp_tail_entry *e)
{
	uint64_t left = t->h.tokens - (uint64_t)e->index * CQ_PAGE_TOKENS;
	uint32_t rows = (uint32_t)MIN(left, (uint64_t)CQ_PAGE_TOKENS);
	bool full = rows == CQ_PAGE_TOKENS, codes = e->parts & CQP_TAIL_CODES;
	bool first = !e->index && m->sinks, sinks = full && codes && first;

	if (e->parts & ~(CQP_TAIL_F16 | CQP_TAIL_CODES | CQP_TAIL_SINKS) || e->pad ||
	    !(e->parts & CQP_TAIL_F16) != !e->f16_mask || e->f16_mask & ~cqc_low(rows) ||
	    !(e->parts & CQP_TAIL_SINKS) != !sinks)
		return false;
	/* Sinks are made of a block's rows, whoever has written there before. */
	if (first && (!full || e->f16_mask) && cqc_low(MIN(rows, m->sinks)) & ~e->f16_mask)
		return false;
	if (full)
		return e->n_coded == CQ_PAGE_TOKENS;
	return e->n_coded <= rows && codes == (e->n_coded > 0) &&
	       !(cqc_low(rows) & ~(e->f16_mask | cqc_low(e->n_coded)));
}

/* Ascending, each good; together with all else they are the whole tail. */
static int entries_check(const struct cqk_model *m, struct tail *t)
{
	uint64_t pages = (t->h.tokens + CQ_PAGE_TOKENS - 1) / CQ_PAGE_TOKENS;
	uint64_t at = sizeof(t->h) + t->h.n_entries * sizeof(struct cqp_tail_entry);
	uint64_t next = 0;
	uint32_t i;

	/* Tokens are at most max_position, so nothing wraps. */
	t->entry = t->base + sizeof(t->h);
	t->ids = t->base + at;
	at += t->h.tokens * sizeof(uint32_t);
	t->extra = t->base + at;
	at += t->h.extra_len;
	t->data = t->base + at;
	if (at > t->bytes)
		return wrong("too short");
	for (i = 0; i < t->h.n_entries; i++) {
		struct cqp_tail_entry e = entry_at(t, i);

		if (e.index < next || e.index >= pages || !entry_good(m, t, &e))
			return wrong("entry");
		next = e.index + 1ull;
		at += data_of(t, &e);
		if (at > t->bytes)
			return wrong("too short");
	}
	if (at != t->bytes || (t->h.tokens % CQ_PAGE_TOKENS && next != pages))
		return wrong("too long, or no part-filled page");
	return 0;
}

/* --- the sequence of it --- */

/* A page object of our own that reads as the publisher's private one did. */
static int page_take(struct cq_seq *seq, const struct tail *t, const struct cqp_tail_entry *e)
{
	struct cq_model *model = seq->model;
	struct cqc_ent *ent = &seq->ents[e->index];
	bool full = ent->pg, first = !e->index && model->m.sinks;
	uint64_t rows = t->h.tokens - (uint64_t)e->index * CQ_PAGE_TOKENS;
	struct cq_pg *pg = cqc_pg_private(model, first);

	if (!pg)
		return cqc_fail(-ENOBUFS, model->gpu ? "no slot is leased yet for a page of the "
				"published sequence; wait on cq_event_fd()" : "the arena is full");
	pg->n_coded = e->n_coded;
	cqc_extra_get(pg, seq->extra);
	memcpy(pg->tokens, t->ids + (size_t)e->index * sizeof(pg->tokens),
	       4 * MIN(rows, (uint64_t)CQ_PAGE_TOKENS));
	if (full) {
		/* Its key is published: those that follow need not wait for it. */
		pg->key = ent->pg->key;
		pg->eng = CQC_ENG_SEALED;
		if (e->index)
			pg->parent = cqc_pg_get(seq->ents[e->index - 1].pg);
		cqc_pg_put(ent->pg);
	} else {
		seq->n_ents = e->index + 1;
		ent->f16 = CQC_NONE;
	}
	ent->pg = pg;
	return 0;
}

/* NaN and Inf never come out of cq_append(). */
static int piece_finite(const struct cqk_model *m, const struct cqc_piece *p)
{
	if (p->f16 && !cqc_rows_finite(m, p->f16, p->e->f16_mask))
		return wrong("NaN or Inf in its window");
	if (p->codes && !cqc_codes_finite(m, p->e->n_coded, p->codes))
		return wrong("NaN or Inf in a page");
	if (p->sinks && !cqc_halves_finite(p->sinks, m->sink_payload / 2))
		return wrong("NaN or Inf among its sinks");
	return 0;
}

static int f16_take(struct cq_seq *seq, const struct cqc_piece *p)
{
	struct cqc_arena *a = &seq->model->arena;
	struct cqc_ent *ent = &seq->ents[p->e->index];

	if (!p->part && !p->f16)
		return 0;
	ent->f16 = cqc_block_new(a);
	if (ent->f16 == CQC_NONE)
		return cqc_fail(-ENOBUFS, "the arena is full");
	/* Tokens to come are appended there. */
	ent->f16_mask = p->e->f16_mask | (p->part ? ~cqc_low(p->rows) : 0);
	seq->f16_lo = MIN(seq->f16_lo, p->e->index);
	return 0;
}

static int entry_take(struct cq_seq *seq, const struct tail *t, const struct cqp_tail_entry *e,
		      const uint8_t *at)
{
	struct cqc_piece p = {
		.e = e, .part = e->index == t->h.tokens / CQ_PAGE_TOKENS,
		.rows = (uint32_t)(t->h.tokens % CQ_PAGE_TOKENS),
	};
	int ret;

	if (e->parts & CQP_TAIL_F16) {
		p.f16 = at;
		at += t->h.f16_block;
	}
	if (e->parts & CQP_TAIL_CODES)
		p.codes = at;
	if (e->parts & CQP_TAIL_SINKS)
		p.sinks = at + t->h.payload;
	ret = piece_finite(&seq->model->m, &p);
	if (!ret && (p.part || p.codes))
		ret = page_take(seq, t, e);
	if (!ret)
		ret = f16_take(seq, &p);
	return ret ? ret : seq->model->be->tail_take(seq, &p);
}

static int entries_take(struct cq_seq *seq, const struct tail *t)
{
	const uint8_t *at = t->data;
	uint32_t i;
	int ret = 0;

	for (i = 0; i < t->h.n_entries && !ret; i++) {
		struct cqp_tail_entry e = entry_at(t, i);

		ret = entry_take(seq, t, &e, at);
		at += data_of(t, &e);
	}
	return ret;
}

/* The pages, of which the name holds the last one for us. */
static int pages_take(struct cq_seq *seq, const struct tail *t, const uint32_t *ids)
{
	uint32_t full = (uint32_t)(t->h.tokens / CQ_PAGE_TOKENS);
	int ret;

	if (t->has_pin != (full > 0))
		return wrong("pages");
	if (!full)
		return 0;
	ret = cqc_seq_match(seq, ids, full);
	if (ret)
		return ret;
	if (seq->n_ents < full)
		return cqc_fail(-ENODATA, "page %u of %u of the published sequence is gone",
				seq->n_ents, full);
	/* What its publisher had named is the last page of these ids, or he lies. */
	if (memcmp(&seq->pin->at[seq->pin->n - 1].page, &t->pin, sizeof(t->pin)))
		return wrong("its name holds another page");
	return 0;
}

static int seq_fill(struct cq_seq *seq, const struct tail *t)
{
	uint32_t *ids = malloc(t->h.tokens * sizeof(*ids));
	int ret;

	if (!ids)
		return cqc_fail(-ENOMEM, "out of memory for %llu token ids",
				(unsigned long long)t->h.tokens);
	memcpy(ids, t->ids, t->h.tokens * sizeof(*ids));
	ret = cqc_extra_new(t->extra, t->h.extra_len, &seq->extra);
	if (!ret)
		ret = pages_take(seq, t, ids);
	free(ids);
	if (!ret)
		ret = entries_take(seq, t);
	if (ret)
		return ret;
	seq->len = t->h.tokens;
	seq->matched = seq->len;
	return 0;
}

static int seq_make(struct cq_model *model, const struct tail *t, const struct cq_seq_opts *o,
		    struct cq_seq **out)
{
	struct cq_seq *seq = cqc_seq_alloc(model, t->h.position, o->flags);
	int ret;

	if (!seq)
		return -ENOMEM;
	seq->priority = o->priority;
	seq->ttl_s = o->ttl_s;
	ret = seq_fill(seq, t);
	if (ret) {
		cqc_seq_free(seq);
		return ret;
	}
	*out = seq;
	return 0;
}

/* The sequence has found the pages by their keys and pins them itself. */
static void tail_end(struct cq_model *model, struct tail *t)
{
	struct cq_ctx *ctx = model->ctx;

	if (t->base)
		munmap((void *)(uintptr_t)t->base, t->bytes);
	if (t->fd >= 0)
		close(t->fd);
	if (t->has_pin) {
		pthread_mutex_lock(&ctx->lock);
		cqc_release_add(ctx, &t->pin, t->epoch);
		pthread_mutex_unlock(&ctx->lock);
	}
	cqc_wake(ctx);
}

static int attach_check(struct cq_model *model, const char *name,
			const struct cq_seq_opts *opts, struct cq_seq_opts *o)
{
	int ret = cqc_model_check(model);

	if (!ret)
		ret = cqc_opts_in(o, sizeof(*o), opts, "cq_seq_opts");
	if (!ret)
		ret = cqc_priority_check(o);
	if (ret)
		return ret;
	if (!name || !*name || strlen(name) >= CQP_MAX_NAME)
		return cqc_fail(-EINVAL, "cq_attach: a name has 1 to %d characters",
				CQP_MAX_NAME - 1);
	if (o->flags & ~CQ_SEQ_PRIVATE || o->position || o->extra || o->extra_len)
		return cqc_fail(-EINVAL, "cq_attach: flags 0x%x, position or extra bytes: they "
					 "are the sequence's own", o->flags);
	return 0;
}

CQ_API int cq_attach(struct cq_model *model, const char *name, const struct cq_seq_opts *opts,
		     struct cq_seq **out)
{
	struct tail t = { .fd = -1 };
	struct cq_seq_opts o;
	int ret;

	if (!out)
		return cqc_fail(-EINVAL, "cq_attach: no place for the result");
	ret = attach_check(model, name, opts, &o);
	if (ret)
		return ret;
	cqc_results_apply(model);
	ret = model->gpu ? cqc_gpu_can_take(model) : 0;
	if (!ret)
		ret = ask(model, name, &t);
	if (ret)
		return ret;
	ret = tail_map(&t);
	if (!ret)
		ret = head_check(model, &t);
	if (!ret)
		ret = entries_check(&model->m, &t);
	if (!ret)
		ret = seq_make(model, &t, &o, out);
	tail_end(model, &t);
	return ret;
}

CQ_API int cq_tokens(struct cq_seq *seq, size_t from, size_t n, uint32_t *ids)
{
	size_t i;
	int ret = cqc_seq_check(seq);

	if (ret)
		return ret;
	if (from > seq->len || n > seq->len - from || (n && !ids))
		return cqc_fail(-EINVAL, "cq_tokens: %zu tokens from %zu; the sequence has %zu",
				n, from, seq->len);
	for (i = from; i < from + n; i++)
		ids[i - from] = seq->ents[i / CQ_PAGE_TOKENS].pg->tokens[i % CQ_PAGE_TOKENS];
	return 0;
}
