/* SPDX-License-Identifier: MIT */
/* A worker made of libcq and synthetic activations. */
#ifndef TESTS_WORK_H
#define TESTS_WORK_H

#include "cq.h"
#include "tests/system/sys.h"

#define WORK_CHUNK	64	/* tokens per append */
#define WORK_MAX_ROW	(64 * 256)

/**
 * struct work - one context, one model, one batch
 * @k, @v, @q, @o: rows of the current chunk
 */
struct work {
	struct synth m;
	struct cq_ctx *ctx;
	struct cq_model *model;
	struct cq_batch *batch;
	uint16_t *k, *v, *q;
	float *o;
};

#define WORK_OK(call) do {							\
	int _r = (call);							\
	if (_r)									\
		FAIL("%s = %d (%s): %s", #call, _r, strerror(-_r), cq_last_error()); \
} while (0)

static inline void work_buffers(struct work *w, const struct synth *m)
{
	size_t rows = (size_t)WORK_CHUNK * m->heads * m->dim;

	w->m = *m;
	w->k = calloc(rows, sizeof(*w->k));
	w->v = calloc(rows, sizeof(*w->v));
	w->q = calloc(rows, sizeof(*w->q));
	w->o = calloc(rows, sizeof(*w->o));
	ASSERT(w->k && w->v && w->q && w->o);
}

/* Connect, open model "tiny" with an arena of @blocks x 64 tokens (0: default). */
static inline void work_open(struct work *w, const struct sys *s, const struct synth *m,
			     uint32_t flags, uint32_t blocks)
{
	struct cq_open_opts oo = { .sz = sizeof(oo), .socket = s->sock, .name = "test",
				   .flags = flags };
	uint64_t block = cq_f16_block_bytes(m->layers, m->kv_heads, m->dim, CQ_PAGE_TOKENS);
	struct cq_model_opts mo = { .sz = sizeof(mo), .device = CQ_DEVICE_HOST,
				    .arena_bytes = blocks * block };

	memset(w, 0, sizeof(*w));
	work_buffers(w, m);
	WORK_OK(cq_open(&oo, &w->ctx));
	WORK_OK(cq_model_open(w->ctx, "tiny", &mo, &w->model));
	WORK_OK(cq_batch_new(w->model, 4, WORK_CHUNK, 0, &w->batch));
}

static inline void work_close(struct work *w)
{
	cq_batch_free(w->batch);
	cq_close(w->ctx);
	free(w->k);
	free(w->v);
	free(w->q);
	free(w->o);
}

/* A sequence on @n tokens of @text, matched as far as they are published. */
static inline struct cq_seq *work_seq(struct work *w, uint32_t text, size_t n)
{
	struct cq_seq_opts so = { .sz = sizeof(so) };
	uint32_t *ids = calloc(n + 1, sizeof(*ids));
	struct cq_seq *seq = NULL;

	ASSERT(ids);
	synth_ids(ids, n, text);
	WORK_OK(cq_seq_open(w->model, ids, n, &so, &seq));
	free(ids);
	return seq;
}

/* Append the next @n tokens of @text to layer @layer. */
static inline int work_append(struct work *w, struct cq_seq *seq, uint32_t text,
			      uint32_t layer, size_t n)
{
	struct cq_append_opts ao = { .sz = sizeof(ao), .device = CQ_DEVICE_HOST };
	struct cq_view k = synth_view(&w->m, w->k, w->m.kv_heads);
	struct cq_view v = synth_view(&w->m, w->v, w->m.kv_heads);
	size_t at = cq_seq_length(seq);

	synth_rows(w->k, &w->m, text, 0, layer, at, n);
	synth_rows(w->v, &w->m, text, 1, layer, at, n);
	return cq_append(seq, layer, &k, &v, n, &ao);
}

/* One chunk of at most 64 tokens, all layers, committed. 0 or the first error. */
static inline int work_chunk(struct work *w, struct cq_seq *seq, uint32_t text, size_t n)
{
	size_t at = cq_seq_length(seq);
	uint32_t ids[WORK_CHUNK], l;
	uint32_t *all = malloc((at + n) * sizeof(*all));
	int ret = 0;

	ASSERT(all);
	synth_ids(all, at + n, text);
	memcpy(ids, all + at, n * sizeof(*ids));
	free(all);
	for (l = 0; !ret && l < w->m.layers; l++)
		ret = work_append(w, seq, text, l, n);
	return ret ? ret : cq_commit(seq, ids, n);
}

/* Wait until something was sealed or arena memory came free. */
static inline void work_wait(struct work *w, int ms)
{
	struct pollfd p = { .fd = cq_event_fd(w->ctx), .events = POLLIN };
	uint64_t n;

	if (poll(&p, 1, ms) == 1 && read(p.fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		FAIL("eventfd: %s", strerror(errno));
}

/* Grow @seq to @total tokens of @text; a full arena is waited for. */
static inline void work_feed(struct work *w, struct cq_seq *seq, uint32_t text,
			     size_t total)
{
	long long end = test_now_ms() + 2 * SYS_DEADLINE;
	int ret;

	while (cq_seq_length(seq) < total) {
		ret = work_chunk(w, seq, text, MIN(total - cq_seq_length(seq), WORK_CHUNK));
		if (ret == -ENOBUFS && test_now_ms() < end)
			work_wait(w, 20);
		else
			WORK_OK(ret);
	}
}

/*
 * Attention of one row behind the committed tokens, last layer; @o gets
 * [heads][dim]. Nothing is committed. 0, -ESTALE or another error.
 */
static inline int work_attend(struct work *w, struct cq_seq *seq, uint32_t text, float *o)
{
	struct cq_attn_opts to = { .sz = sizeof(to), .device = CQ_DEVICE_HOST };
	struct cq_view q = synth_view(&w->m, w->q, w->m.heads);
	struct cq_view out = { .data = o, .dtype = CQ_F32,
			       .stride_token = (int64_t)w->m.heads * w->m.dim,
			       .stride_head = w->m.dim };
	uint32_t rows = 1, l = w->m.layers - 1;
	int ret = cq_step(w->batch, &seq, &rows, 1);

	if (!ret)
		ret = work_append(w, seq, text, l, 1);
	synth_rows(w->q, &w->m, text, 2, l, cq_seq_length(seq), 1);
	if (!ret)
		ret = cq_attention(w->batch, l, &q, &out, &to);
	/* rows that are not committed are dropped, else the next come behind them */
	if (cq_truncate(seq, cq_seq_length(seq)) && !ret)
		FAIL("%s", cq_last_error());
	return ret;
}

static inline size_t work_row(const struct work *w)
{
	return (size_t)w->m.heads * w->m.dim * sizeof(float);
}

/* Tokens of @text that a new sequence finds published; nothing else is kept. */
static inline size_t work_matched(struct work *w, uint32_t text, size_t n)
{
	struct cq_seq_info info = { .sz = sizeof(info) };
	struct cq_seq *seq = work_seq(w, text, n);

	WORK_OK(cq_seq_get_info(seq, &info));
	cq_seq_close(seq);
	return info.matched;
}

/* Write @text's first @n tokens, wait until every full page is published. */
static inline void work_publish(struct work *w, uint32_t text, size_t n)
{
	struct cq_seq *seq = work_seq(w, text, n);

	work_feed(w, seq, text, n);
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	cq_seq_close(seq);
}

#endif /* TESTS_WORK_H */
