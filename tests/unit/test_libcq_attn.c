// SPDX-License-Identifier: MIT
/* Attention through libcq against double precision; steps and their tables. */
#include <pthread.h>
#include "tests/unit/test_libcq.h"
#include "client/internal.h"

static struct rig r;
static const struct shape small = SHAPE_SMALL;
static uint32_t ids[8000];

/* --- attention --- */

/* @n_parts: attention is shared by threads, one for each part and kv head; 0: it is not */
struct attn {
	struct cq_attn_opts o;
	uint32_t n_parts;
	float *q, *out, *lse;
	uint32_t rows, n;
	uint32_t lens[8], each[8];
	struct cq_seq *seqs[8];
	const uint32_t *ids[8];
	uint32_t pos0;
};

/* Keys or values of a sequence and its rows to come, as attention sees them. */
static float *seen(const struct worker *w, struct attn *t, uint32_t i, uint32_t l, uint32_t what)
{
	size_t width = (size_t)w->m.kv_heads * w->m.dim, len = cq_seq_length(t->seqs[i]);
	float *x = worker_read(w, t->seqs[i], l, len, what);
	float *rows = rig_rows(w, t->ids[i], len, t->each[i], what, l);

	x = realloc(x, (len + t->each[i]) * width * sizeof(*x));
	ASSERT(x);
	memcpy(x + len * width, rows, t->each[i] * width * sizeof(*x));
	free(rows);
	return x;
}

static void attn_compare(const struct worker *w, struct attn *t, uint32_t l)
{
	struct ref ref = { .scale = t->o.scale ? t->o.scale : 1 / sqrt(w->m.dim),
			   .cap = t->o.soft_cap, .window = t->o.sliding_window,
			   .pos0 = t->pos0 };
	uint32_t i, j, h, c, row = 0, gqa = w->m.heads / w->m.kv_heads, d = w->m.dim;
	double want[256], lse;

	for (i = 0; i < t->n; i++) {
		float *k = seen(w, t, i, l, 0), *v = seen(w, t, i, l, 1);
		size_t len = cq_seq_length(t->seqs[i]);

		for (j = 0; j < t->each[i]; j++, row++)
			for (h = 0; h < w->m.heads; h++) {
				size_t at = ((size_t)row * w->m.heads + h) * d;

				lse = ref_row(w, &ref, t->q + at, k, v, len + j + 1, h / gqa, want);
				for (c = 0; c < d; c++)
					ASSERT_NEAR(t->out[at + c], want[c], 2e-3);
				ASSERT_NEAR(t->lse[row * w->m.heads + h], lse, 2e-3);
			}
		free(k);
		free(v);
	}
}

#define MAX_PARTS 5

/* One thread's part of a layer, and its kv head when parts are merged. */
struct share {
	struct cq_batch *batch;
	uint32_t layer;
	const struct cq_view *q, *o;
	struct cq_attn_opts opt;
	const struct cq_part *parts;
	int ret;
	pthread_t thread;
};

static void *share_attend(void *arg)
{
	struct share *s = arg;

	s->ret = cq_attention(s->batch, s->layer, s->q, s->o, &s->opt);
	return NULL;
}

static void *share_merge(void *arg)
{
	struct share *s = arg;

	s->ret = cq_merge(s->batch, s->parts, s->opt.n_parts, s->o, &s->opt);
	return NULL;
}

static void shares_run(struct share *s, uint32_t n, void *(*fn)(void *))
{
	uint32_t i;

	for (i = 0; i < n; i++)
		ASSERT_EQ(pthread_create(&s[i].thread, NULL, fn, &s[i]), 0);
	for (i = 0; i < n; i++) {
		ASSERT_EQ(pthread_join(s[i].thread, NULL), 0);
		CQ_OK(s[i].ret);
	}
}

/* A layer by threads: kv heads times parts of the pages, then the kv heads merge. */
static void attend_shared(const struct worker *w, struct cq_batch *b, struct attn *t, uint32_t l,
			  const struct cq_view *q, const struct cq_view *o)
{
	size_t n = (size_t)t->rows * w->m.heads;
	uint32_t i, h, heads = w->m.kv_heads;
	struct share s[MAX_PARTS * 4];
	struct cq_part parts[MAX_PARTS];
	float *mem = malloc(t->n_parts * n * (w->m.dim + 1) * sizeof(*mem));

	ASSERT(mem && t->n_parts <= MAX_PARTS && heads <= 4);
	for (i = 0; i < t->n_parts; i++) {
		float *lse = mem + (t->n_parts * w->m.dim + i) * n;

		parts[i] = (struct cq_part){ .o = *o, .lse = lse };
		parts[i].o.data = mem + i * n * w->m.dim;
		for (h = 0; h < heads; h++) {
			struct share *at = &s[i * heads + h];

			*at = (struct share){ .batch = b, .layer = l, .q = q, .opt = t->o,
					      .o = &parts[i].o, .parts = parts };
			at->opt.part = i;
			at->opt.n_parts = t->n_parts;
			at->opt.head_begin = h;
			at->opt.head_end = h + 1;
			at->opt.lse = lse;
		}
	}
	shares_run(s, t->n_parts * heads, share_attend);
	for (h = 0; h < heads; h++) {
		s[h].o = o;
		s[h].opt.lse = t->lse;
	}
	shares_run(s, heads, share_merge);
	free(mem);
}

/* One step over @t->seqs with @t->each rows, every layer against the reference. */
static void attn_step(const struct worker *w, struct cq_batch *b, struct attn *t)
{
	struct cq_view q, o;
	uint32_t l, i;
	size_t n, x;

	for (t->rows = 0, i = 0; i < t->n; i++)
		t->rows += t->each[i];
	n = (size_t)t->rows * w->m.heads * w->m.dim;
	t->q = malloc(n * 4);
	t->out = malloc(n * 4);
	t->lse = malloc(t->rows * w->m.heads * 4ull);
	t->o.sz = sizeof(t->o);
	t->o.device = CQ_DEVICE_HOST;
	t->o.lse = t->lse;
	q = rig_view(w, t->q, w->m.heads);
	o = rig_view(w, t->out, w->m.heads);
	CQ_OK(cq_step(b, t->seqs, t->each, t->n));
	for (l = 0; l < w->m.layers; l++) {
		for (i = 0; i < t->n; i++)
			CQ_OK(worker_append_layer(w, t->seqs[i], t->ids[i], t->each[i], l));
		for (x = 0; x < n; x++)
			t->q[x] = rig_value(x ^ (uint64_t)l << 50);
		if (t->n_parts)
			attend_shared(w, b, t, l, &q, &o);
		else
			CQ_OK(cq_attention(b, l, &q, &o, &t->o));
		attn_compare(w, t, l);
	}
	for (i = 0; i < t->n; i++)
		CQ_OK(cq_commit(t->seqs[i], t->ids[i] + cq_seq_length(t->seqs[i]), t->each[i]));
	CQ_FAILS(cq_attention(b, 0, &q, &o, &t->o), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "step");
	free(t->q);
	free(t->out);
	free(t->lse);
}

/* Three sequences: an owner with a window, an attached one, a short one. */
static void attention_in(const struct shape *shape, struct cq_attn_opts o, uint32_t n_parts)
{
	static uint32_t other[300];
	struct attn t = { .o = o, .n = 3, .n_parts = n_parts };
	struct cq_batch *batch;
	struct worker w;

	rig_ids(ids, 700, 1);
	rig_ids(other, 300, 2);
	rig_start(&r, shape, NULL);
	rig_publish(&r, ids, 400);
	worker_open(&w, shape, r.sock, 0, 0);
	CQ_OK(cq_batch_new(w.model, 4, 64, 1024, &batch));
	CQ_OK(cq_batch_split(batch, MAX(n_parts, 1u)));
	t.ids[0] = ids;
	t.ids[1] = ids;
	t.ids[2] = other;
	t.seqs[0] = worker_seq(&w, ids, 340);
	ASSERT_EQ(cq_seq_length(t.seqs[0]), 320);
	t.seqs[1] = worker_seq(&w, ids, 300);
	t.seqs[2] = worker_seq(&w, other, 300);
	worker_grow(&w, t.seqs[1], ids, 330);
	worker_grow(&w, t.seqs[2], other, 201);
	t.each[0] = 20;
	t.each[1] = 1;
	t.each[2] = 9;
	attn_step(&w, batch, &t);
	CQ_OK(cq_seal(t.seqs[2], 5000));
	t.each[0] = 1;
	t.each[2] = 1;
	attn_step(&w, batch, &t);
	cq_close(w.ctx);
	rig_stop(&r);
}

static void attention_of(const struct shape *shape, struct cq_attn_opts o)
{
	attention_in(shape, o, 0);
}

TEST(attention)
{
	attention_of(&small, (struct cq_attn_opts){ 0 });
}

TEST(attention_with_cap_and_sliding_window)
{
	attention_of(&small, (struct cq_attn_opts){ .soft_cap = 5, .sliding_window = 100,
						    .scale = 0.3f });
}

TEST(attention_over_fp16_pages)
{
	struct shape s = small;

	s.k = s.v = "fp16";
	s.sinks = 0;
	s.window = 0;
	attention_of(&s, (struct cq_attn_opts){ 0 });
}

TEST(attention_over_mixed_codings)
{
	struct shape s = small;

	s.k = "2c8b";
	s.v = "8c8b";
	s.sinks = 64;
	s.window = 64;
	s.heads = 6;
	attention_of(&s, (struct cq_attn_opts){ 0 });
}

TEST(attention_without_rope)
{
	struct shape s = small;

	s.keys = CQK_KEYS_NONE;
	attention_of(&s, (struct cq_attn_opts){ 0 });
}

TEST(attention_over_rotated_keys)
{
	struct shape s = small;

	s.keys = CQK_KEYS_ROTATED;
	attention_of(&s, (struct cq_attn_opts){ 0 });
}

TEST(attention_with_scaling_and_interleaved_pairs)
{
	struct shape s = small;
	uint32_t type;

	for (type = 0; type <= CQK_SCALING_YARN; type++) {
		s.scaling = ref_scaling(type, 100);
		s.pairs = type ? type % 2 : CQK_PAIRS_INTERLEAVED;
		s.keys = type / 2 ? CQK_KEYS_PRE_ROPE : CQK_KEYS_ROTATED;
		s.rope_dim = type == CQK_SCALING_LLAMA3 ? 16 : 0;
		attention_of(&s, (struct cq_attn_opts){ 0 });
	}
	s.keys = CQK_KEYS_ROTATED;
	s.rope_dim = 24;
	attention_of(&s, (struct cq_attn_opts){ 0 });
}

TEST(attention_by_threads)
{
	struct shape s = small;
	uint32_t n;

	for (n = 1; n <= MAX_PARTS; n++) {
		attention_in(&s, (struct cq_attn_opts){ .soft_cap = n % 2 ? 5 : 0,
							.sliding_window = n / 2 * 50 }, n);
		s.heads = n % 2 ? 4 : 6;
		s.kv_heads = n % 2 ? 1 : 2;
		s.keys = n % 3;
	}
}

/* Parts that there are not, and parts that have no result. */
TEST(parts_that_cannot_be)
{
	float buf[4][4 * 32] = { { 0 } };
	struct cq_part p[2] = { { .lse = buf[3] }, { .lse = buf[3] } };
	struct cq_attn_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST, .n_parts = 3 };
	struct cq_view q, out;
	struct cq_batch *b;
	struct cq_seq *x;
	struct worker w;
	uint32_t one = 1;

	rig_ids(ids, 100, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	x = worker_seq(&w, NULL, 0);
	worker_grow(&w, x, ids, 70);
	q = rig_view(&w, buf[0], 4);
	out = rig_view(&w, buf[1], 4);
	p[0].o = p[1].o = rig_view(&w, buf[2], 4);
	CQ_FAILS(cq_merge(b, p, 2, &out, NULL), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "step");
	CQ_OK(cq_step(b, &x, &one, 1));
	CQ_OK(worker_append_layer(&w, x, ids, 1, 0));
	CQ_FAILS(cq_attention(b, 0, &q, &out, &o), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "cq_batch_split");
	o.sz = offsetof(struct cq_attn_opts, part);	/* who knows of no parts has none */
	CQ_OK(cq_attention(b, 0, &q, &out, &o));
	CQ_OK(cq_merge(b, p, 2, &out, &o));
	o.sz = sizeof(o);
	CQ_FAILS(cq_batch_split(b, 0), -EINVAL);
	CQ_FAILS(cq_batch_split(b, CQ_MAX_PARTS + 1), -EINVAL);
	CQ_FAILS(cq_batch_split(NULL, 2), -EINVAL);
	CQ_OK(cq_batch_split(b, 3));	/* the step goes on */
	for (; o.part < 3; o.part++)	/* more than there are blocks */
		CQ_OK(cq_attention(b, 0, &q, &out, &o));
	CQ_FAILS(cq_attention(b, 0, &q, &out, &o), -EINVAL);
	CQ_OK(cq_merge(b, p, 2, &out, NULL));
	CQ_FAILS(cq_merge(b, p, 0, &out, NULL), -EINVAL);
	CQ_FAILS(cq_merge(b, NULL, 2, &out, NULL), -EINVAL);
	CQ_FAILS(cq_merge(b, p, 2, NULL, NULL), -EINVAL);
	p[1].lse_stride = 3;
	CQ_FAILS(cq_merge(b, p, 2, &out, NULL), -EINVAL);
	p[1].lse_stride = 0;
	p[1].lse = NULL;
	CQ_FAILS(cq_merge(b, p, 2, &out, NULL), -EINVAL);
	p[1].lse = buf[3];
	p[1].o.data = NULL;
	CQ_FAILS(cq_merge(b, p, 2, &out, NULL), -EINVAL);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Each kv head of each part: threads may run them at once. */
TEST(parts_have_scratch_of_their_own)
{
	struct cq_attn_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST, .n_parts = 3 };
	float buf[2][4 * 32] = { { 0 } };
	struct cq_view q, out;
	struct cq_batch *b;
	struct cq_seq *x;
	struct worker w;
	uint32_t one = 1, i;
	size_t at;

	rig_ids(ids, 300, 1);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	CQ_OK(cq_batch_split(b, 3));
	x = worker_seq(&w, NULL, 0);
	worker_grow(&w, x, ids, 300);
	q = rig_view(&w, buf[0], 4);
	out = rig_view(&w, buf[1], 4);
	CQ_OK(cq_step(b, &x, &one, 1));
	CQ_OK(worker_append_layer(&w, x, ids, 1, 0));
	for (i = 0; i < 6; i++) {
		o.part = i / 2;
		o.head_begin = i % 2;
		o.head_end = o.head_begin + 1;
		memset(b->scratch, 0xee, 6 * b->scratch_head);
		CQ_OK(cq_attention(b, 0, &q, &out, &o));
		ASSERT(b->scratch[i * b->scratch_head] != 0xee);
		for (at = 0; at < 6 * b->scratch_head; at++)
			if (b->scratch[at] != 0xee)
				ASSERT_EQ(at / b->scratch_head, i);
	}
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Pages that two sequences read are one block with two spans. */
TEST(steps_share_pages)
{
	uint32_t rows[2] = { 1, 1 }, i;
	struct cq_batch *b;
	struct cq_seq *seqs[2];
	struct worker w;

	rig_ids(ids, 2000, 1);
	rig_start(&r, &small, NULL);
	rig_publish(&r, ids, 1300);
	worker_open(&w, &small, r.sock, 0, 0);
	CQ_OK(cq_batch_new(w.model, 2, 2, 2000, &b));
	seqs[0] = worker_seq(&w, ids, 1300);
	seqs[1] = worker_seq(&w, ids, 1290);
	CQ_OK(cq_step(b, seqs, rows, 2));
	/* 20 pages and the sinks once, a tail each */
	ASSERT_EQ(b->n_uses, 44);
	ASSERT_EQ(b->n_blocks, 23);
	ASSERT_EQ(b->n_checks, 21);
	for (i = 0; i < 23; i++)
		ASSERT_EQ(b->blocks[i].n_spans, i < 21 ? 2 : 1);
	for (i = 0; i <= b->table_mask; i++)
		ASSERT_EQ(b->table[i], 0);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* A page that is published during a step stays where the step reads it. */
TEST(steps_hold_what_they_read)
{
	struct attn t = { .n = 1, .each = { 1 } };
	struct shape s = small;
	struct cq_batch *b;
	struct cq_seq *y;
	struct cq_view q, o;
	struct worker w;
	int i;

	s.window = s.sinks = 0;
	rig_ids(ids, 8000, 1);
	t.ids[0] = ids;
	rig_start(&r, &s, NULL);
	worker_open(&w, &s, r.sock, CQ_OPEN_POLL, 8);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	t.seqs[0] = worker_seq(&w, NULL, 0);
	worker_grow(&w, t.seqs[0], ids, 256);
	CQ_OK(cq_step(b, t.seqs, t.each, 1));
	for (i = 0; i < 20; i++)
		ASSERT_GE(cq_poll(w.ctx, 20), 0);
	y = worker_seq(&w, NULL, 0);
	CQ_FAILS(worker_try_grow(&w, y, ids + 1000, 7000, 64), -ENOBUFS);
	t.q = calloc(4 * 32, 4);
	t.out = calloc(4 * 32, 4);
	t.lse = t.o.lse = calloc(4, 4);
	t.o.sz = sizeof(t.o);
	t.o.device = CQ_DEVICE_HOST;
	q = rig_view(&w, t.q, 4);
	o = rig_view(&w, t.out, 4);
	for (i = 0; i < 4 * 32; i++)
		t.q[i] = rig_value((uint64_t)i);
	CQ_OK(worker_append_layer(&w, t.seqs[0], ids, 1, 0));
	CQ_OK(cq_attention(b, 0, &q, &o, &t.o));
	attn_compare(&w, &t, 0);
	free(t.q);
	free(t.out);
	free(t.lse);
	cq_close(w.ctx);
	rig_stop(&r);
}
