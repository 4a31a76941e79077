/* SPDX-License-Identifier: MIT */
/*
 * What the tests of libcq share: a model file of any shape, a daemon of the
 * test's own, workers with made-up keys and values, and attention in double
 * precision to compare with.
 */
#ifndef TEST_LIBCQ_H
#define TEST_LIBCQ_H

#include "cq.h"
#include "kernels/f16.h"
#include "kernels/model.h"
#include "tests/harness.h"
#include "tests/rope_ref.h"

#define RIG_MAX_LAYERS 8
#define CQ_OK(call) do {							\
	int _r = (call);							\
	if (_r)									\
		FAIL("%s = %d (%s): %s", #call, _r, strerror(-_r), cq_last_error()); \
} while (0)
#define CQ_FAILS(call, code) do {						\
	int _r = (call);							\
	if (_r != (code))							\
		FAIL("%s = %d (%s), want %s", #call, _r, cq_last_error(), #code); \
} while (0)

/**
 * struct shape - a model
 * @k, @v: coding, "4c8b", "fp16"
 * @keys:  enum cqk_keys
 * @pairs: enum cqk_pairs
 * @rope_dim: channels that are rotated, 0: all
 * @scaling: of RoPE
 */
struct shape {
	uint32_t layers, heads, kv_heads, dim;
	uint32_t sinks, window, max_position, keys;
	const char *k, *v;
	uint32_t pairs, rope_dim;
	struct cqk_rope_scaling scaling;
};

#define SHAPE_SMALL { .layers = 2, .heads = 4, .kv_heads = 2, .dim = 32, .sinks = 4, \
		      .window = 128, .max_position = 8192, .keys = CQK_KEYS_PRE_ROPE, \
		      .k = "4c8b", .v = "4c8b" }

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014) */
static inline uint64_t rig_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* In [-2, 2), exact in fp16. */
static inline float rig_value(uint64_t x)
{
	return cqk_f16_to_f32(cqk_f32_to_f16((float)(rig_mix(x) >> 40) / (1 << 22) - 2.0f));
}

/* --- model --- */

static inline struct cqk_geom rig_geom(const struct shape *s)
{
	bool rope = s->keys != CQK_KEYS_NONE;

	return (struct cqk_geom){
		.n_layers = s->layers, .n_heads = s->heads, .n_kv_heads = s->kv_heads,
		.head_dim = s->dim, .max_position = s->max_position, .keys = s->keys,
		.rope_dim = !rope ? 0 : s->rope_dim ? s->rope_dim : s->dim,
		.rope_theta = rope ? 10000 : 0, .rope_pairs = s->pairs,
		.rope_scaling = s->scaling,
	};
}

static inline void *rig_book(const struct shape *s, uint32_t which, struct cq_code code)
{
	size_t n = (size_t)s->kv_heads * s->dim * cqk_code_centroids(code), i;
	uint16_t *book = malloc(n * 2);

	ASSERT(book && code.type == CQ_CODE_CQ);
	for (i = 0; i < n; i++)
		book[i] = cqk_f32_to_f16(rig_value((uint64_t)which << 40 | i | 1ull << 60));
	return book;
}

/* Image of a model of that shape. */
static inline void *rig_image(const struct shape *s, size_t *size)
{
	struct cq_code k[RIG_MAX_LAYERS], v[RIG_MAX_LAYERS];
	void *books[2 * RIG_MAX_LAYERS] = { NULL };
	struct cqk_model_desc d = {
		.geom = rig_geom(s), .k = k, .v = v, .centroids = CQK_CENTROIDS_F16,
		.sinks = s->sinks, .window = s->window,
		.codebooks = (const void *const *)books,
	};
	struct cq_err err = { "" };
	void *image;
	uint32_t l;

	ASSERT_LE(s->layers, RIG_MAX_LAYERS);
	for (l = 0; l < s->layers; l++) {
		ASSERT_OK(cqk_code_parse(s->k, s->dim, &k[l], NULL));
		ASSERT_OK(cqk_code_parse(s->v, s->dim, &v[l], NULL));
		if (k[l].type == CQ_CODE_CQ)
			books[2 * l] = rig_book(s, 2 * l, k[l]);
		if (v[l].type == CQ_CODE_CQ)
			books[2 * l + 1] = rig_book(s, 2 * l + 1, v[l]);
	}
	if (cqk_model_write(&d, &image, size, &err))
		FAIL("%s", err.text);
	for (l = 0; l < 2 * s->layers; l++)
		free(books[l]);
	return image;
}

/* --- daemon --- */

struct rig {
	struct shape shape;
	char sock[300], admin[300], conf[300], model[300], log[300];
	pid_t cqd;
};

static inline void rig_show_log(const struct rig *r)
{
	FILE *f = fopen(r->log, "re");
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		printf("# cqd: %s", line);
	if (f)
		fclose(f);
}

static inline void rig_exec(const struct rig *r)
{
	const char *o = getenv("O");
	char cqd[400];
	int fd = open(r->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);

	snprintf(cqd, sizeof(cqd), "%s/cqd", o ? o : "build");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (fd < 0 || dup2(fd, 2) < 0 || dup2(fd, 1) < 0)
		_exit(1);
	execl(cqd, "cqd", "--config", r->conf, NULL);
	_exit(127);
}

/* A cqd on the same sockets; waits until it takes connections with the model. */
static inline void rig_run(struct rig *r)
{
	struct cq_open_opts o = { .sz = sizeof(o), .socket = r->sock, .timeout_ms = 1000 };
	struct cq_model_opts m = { .sz = sizeof(m), .device = CQ_DEVICE_HOST,
				   .arena_bytes = 1 << 20 };
	struct cq_model *model;
	struct cq_ctx *ctx;
	int i, ret = -1;

	fflush(stdout);
	r->cqd = fork();
	ASSERT_SYS(r->cqd);
	if (!r->cqd)
		rig_exec(r);
	for (i = 0; i < 1500 && ret; i++) {
		ret = cq_open(&o, &ctx);
		if (!ret) {
			ret = cq_model_open(ctx, "toy", &m, &model);
			cq_close(ctx);
		}
		if (ret)
			usleep(10000);
	}
	if (ret) {
		rig_show_log(r);
		FAIL("cqd does not come up: %s", cq_last_error());
	}
}

static inline void rig_write(const char *path, const void *data, size_t n)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	ASSERT_SYS(fd);
	ASSERT_EQ(write(fd, data, n), n);
	close(fd);
}

static inline void rig_start(struct rig *r, const struct shape *shape, const char *daemon)
{
	const char *dir = test_dir();
	char conf[1600];
	void *image;
	size_t size;

	memset(r, 0, sizeof(*r));
	r->shape = *shape;
	snprintf(r->sock, sizeof(r->sock), "%s/cqd.sock", dir);
	snprintf(r->admin, sizeof(r->admin), "%s/admin.sock", dir);
	snprintf(r->conf, sizeof(r->conf), "%s/cqd.conf", dir);
	snprintf(r->model, sizeof(r->model), "%s/toy.cqm", dir);
	snprintf(r->log, sizeof(r->log), "%s/cqd.log", dir);
	image = rig_image(shape, &size);
	rig_write(r->model, image, size);
	free(image);
	snprintf(conf, sizeof(conf), "[daemon]\nsocket = %s\nadmin_socket = %s\n"
		 "segment_min = 1M\nsegment_max = 16M\n%s\n[model toy]\npath = %s\n",
		 r->sock, r->admin, daemon ? daemon : "pool_bytes = 64M", r->model);
	rig_write(r->conf, conf, strlen(conf));
	rig_run(r);
}

static inline void rig_kill(struct rig *r)
{
	ASSERT_SYS(kill(r->cqd, SIGKILL));
	ASSERT_EQ(waitpid(r->cqd, NULL, 0), r->cqd);
}

static inline void rig_stop(struct rig *r)
{
	int status;

	ASSERT_SYS(kill(r->cqd, SIGTERM));
	ASSERT_EQ(waitpid(r->cqd, &status, 0), r->cqd);
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		rig_show_log(r);
		FAIL("cqd ended with status 0x%x", (unsigned int)status);
	}
}

/* --- workers --- */

/**
 * struct worker - a context and a model
 * @whole: shape of the model; @m: of the shard opened
 * @layer0, @head0: where the shard begins
 */
struct worker {
	struct shape whole, m;
	uint32_t layer0, head0;
	struct cq_ctx *ctx;
	struct cq_model *model;
};

static inline uint64_t rig_block(const struct shape *m)
{
	return cq_f16_block_bytes(m->layers, m->kv_heads, m->dim, CQ_PAGE_TOKENS);
}

static inline void worker_connect(struct worker *w, const struct shape *shape,
				  const char *sock, uint32_t flags)
{
	struct cq_open_opts o = { .sz = sizeof(o), .socket = sock, .name = "test",
				  .flags = flags, .timeout_ms = 3000 };

	memset(w, 0, sizeof(*w));
	w->whole = *shape;
	w->m = *shape;
	CQ_OK(cq_open(&o, &w->ctx));
}

/* @blocks: fp16 blocks in the arena, 0: the default */
static inline void worker_open(struct worker *w, const struct shape *shape,
			       const char *sock, uint32_t flags, uint32_t blocks)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST,
				   .arena_bytes = blocks * rig_block(shape) };

	worker_connect(w, shape, sock, flags);
	CQ_OK(cq_model_open(w->ctx, "toy", &o, &w->model));
}

static inline void rig_ids(uint32_t *ids, size_t n, uint32_t text)
{
	size_t i;

	for (i = 0; i < n; i++)
		ids[i] = (uint32_t)(rig_mix((uint64_t)text << 32 | i) % 32000);
}

/* Key (@what 0) or value (1) of token @id at @t: what a model would compute. */
static inline float rig_kv(uint32_t id, size_t t, uint32_t what, uint32_t layer,
			   uint32_t head, uint32_t ch)
{
	return rig_value((uint64_t)id << 40 ^ (uint64_t)t << 20 ^ what << 18 ^
			 layer << 14 ^ head << 10 ^ ch);
}

/* Keys and values of tokens [from, from + n), [n][kv_heads][dim]. */
static inline float *rig_rows(const struct worker *w, const uint32_t *ids, size_t from,
			      size_t n, uint32_t what, uint32_t layer)
{
	uint32_t h, ch;
	float *x = malloc((n ? n : 1) * w->m.kv_heads * w->m.dim * sizeof(*x));
	size_t t;

	ASSERT(x);
	for (t = 0; t < n; t++)
		for (h = 0; h < w->m.kv_heads; h++)
			for (ch = 0; ch < w->m.dim; ch++)
				x[(t * w->m.kv_heads + h) * w->m.dim + ch] =
					rig_kv(ids[from + t], from + t, what, w->layer0 + layer,
					       w->head0 + h, ch);
	return x;
}

static inline struct cq_view rig_view(const struct worker *w, float *x, uint32_t heads)
{
	return (struct cq_view){ .data = x, .dtype = CQ_F32,
				 .stride_token = (int64_t)heads * w->m.dim,
				 .stride_head = w->m.dim };
}

static inline int worker_append_layer(const struct worker *w, struct cq_seq *seq,
				      const uint32_t *ids, size_t n, uint32_t layer)
{
	size_t from = cq_seq_length(seq);
	float *k = rig_rows(w, ids, from, n, 0, layer);
	float *v = rig_rows(w, ids, from, n, 1, layer);
	struct cq_view kv = rig_view(w, k, w->m.kv_heads), vv = rig_view(w, v, w->m.kv_heads);
	int ret = cq_append(seq, layer, &kv, &vv, n, NULL);

	free(k);
	free(v);
	return ret;
}

typedef int (*append_layer_fn)(const struct worker *w, struct cq_seq *seq,
			       const uint32_t *ids, size_t n, uint32_t layer);

/* Append and commit tokens of @ids (the whole text) until @seq has @to. */
static inline int rig_try_grow(const struct worker *w, struct cq_seq *seq, const uint32_t *ids,
			       size_t to, size_t step, append_layer_fn append_layer)
{
	size_t from, n;
	uint32_t l;
	int ret = 0;

	while (!ret && (from = cq_seq_length(seq)) < to) {
		n = MIN(to - from, step);
		for (l = 0; l < w->m.layers && !ret; l++)
			ret = append_layer(w, seq, ids, n, l);
		if (!ret)
			ret = cq_commit(seq, ids + from, n);
	}
	return ret;
}

static inline int worker_try_grow(const struct worker *w, struct cq_seq *seq,
				  const uint32_t *ids, size_t to, size_t step)
{
	return rig_try_grow(w, seq, ids, to, step, worker_append_layer);
}

static inline void worker_grow(const struct worker *w, struct cq_seq *seq,
			       const uint32_t *ids, size_t to)
{
	CQ_OK(worker_try_grow(w, seq, ids, to, 100));
}

static inline struct cq_seq *worker_seq(const struct worker *w, const uint32_t *ids, size_t n)
{
	struct cq_seq *seq;

	CQ_OK(cq_seq_open(w->model, ids, n, NULL, &seq));
	return seq;
}

static inline struct cq_seq_info worker_info(struct cq_seq *seq)
{
	struct cq_seq_info i = { .sz = sizeof(i) };

	CQ_OK(cq_seq_get_info(seq, &i));
	return i;
}

static inline struct cq_model_info worker_model(const struct worker *w)
{
	struct cq_model_info i = { .sz = sizeof(i) };

	CQ_OK(cq_model_get_info(w->model, &i));
	return i;
}

/* Text of @n tokens published by a worker of its own. */
static inline void rig_publish(const struct rig *r, const uint32_t *ids, size_t n)
{
	struct cq_seq *seq;
	struct worker w;

	worker_open(&w, &r->shape, r->sock, 0, 0);
	seq = worker_seq(&w, ids, n);
	worker_grow(&w, seq, ids, n);
	CQ_OK(cq_seal(seq, 5000));
	cq_close(w.ctx);
}

/* Keys or values as read back, [n][kv_heads][dim]. */
static inline float *worker_read(const struct worker *w, struct cq_seq *seq, uint32_t layer,
				 size_t n, uint32_t what)
{
	float *x = calloc((n ? n : 1) * w->m.kv_heads * w->m.dim, sizeof(*x));
	struct cq_view view;

	ASSERT(x);
	view = rig_view(w, x, w->m.kv_heads);
	CQ_OK(cq_read(seq, layer, 0, n, what ? NULL : &view, what ? &view : NULL));
	return x;
}

/* --- attention in double precision --- */

/**
 * struct ref - options of the reference
 * @pos0:  position of token 0
 * @scale, @cap, @window: as in cq_attn_opts, resolved
 */
struct ref {
	double scale, cap;
	uint32_t window, pos0;
};

/* What the model of that shape does to a query or key at @pos. */
static inline void ref_rotate(const struct shape *shape, const float *x, double *out,
			      uint32_t pos)
{
	struct cqk_geom g = rig_geom(shape);
	uint32_t i;

	for (i = 0; i < shape->dim; i++)
		out[i] = (double)x[i];
	ref_rope(out, &g, pos);
}

/*
 * One query row of one head over tokens 0..n-1, @k and @v [n][kv_heads][dim].
 * Returns the log-sum-exp.
 */
static inline double ref_row(const struct worker *w, const struct ref *r, const float *q,
			     const float *k, const float *v, size_t n, uint32_t kv_head,
			     double *o)
{
	uint32_t d = w->m.dim, i, pos = r->pos0 + (uint32_t)n - 1;
	double qr[256], kr[256], *s = malloc(n * sizeof(*s)), max = -INFINITY, sum = 0;
	size_t t, first = r->window && n > r->window ? n - r->window : 0;

	ASSERT(s);
	ref_rotate(&w->m, q, qr, pos);
	for (t = first; t < n; t++) {
		ref_rotate(&w->m, k + (t * w->m.kv_heads + kv_head) * d, kr,
			   r->pos0 + (uint32_t)t);
		for (s[t] = 0, i = 0; i < d; i++)
			s[t] += qr[i] * kr[i];
		s[t] *= r->scale;
		if (r->cap > 0)
			s[t] = r->cap * tanh(s[t] / r->cap);
		max = s[t] > max ? s[t] : max;
	}
	for (i = 0; i < d; i++)
		o[i] = 0;
	for (t = first; t < n; t++) {
		double p = exp(s[t] - max);

		sum += p;
		for (i = 0; i < d; i++)
			o[i] += p * v[(t * w->m.kv_heads + kv_head) * d + i];
	}
	for (i = 0; i < d; i++)
		o[i] /= sum;
	free(s);
	return max + log(sum);
}

typedef void same_fn(const struct worker *a, struct cq_seq *x, const struct worker *b,
		     struct cq_seq *y);

/* @x of @a, cut to @tokens, as @b attaches to it, @a to what @b did, and a fork of that. */
static inline void hand_over_cut(const struct worker *a, struct cq_seq *x, const struct worker *b,
				 size_t tokens, same_fn *same)
{
	struct cq_publish_opts p = { .sz = sizeof(p), .flags = CQ_PUBLISH_REPLACE };
	struct cq_seq *y, *f;

	CQ_OK(cq_truncate(x, tokens));
	CQ_OK(cq_publish(x, "cut", &p));
	CQ_OK(cq_attach(b->model, "cut", NULL, &y));
	same(a, x, b, y);
	CQ_OK(cq_publish(y, "again", &p));
	cq_seq_close(y);
	CQ_OK(cq_attach(a->model, "again", NULL, &y));
	same(a, x, a, y);
	CQ_OK(cq_fork(y, NULL, &f));
	cq_seq_close(y);
	same(a, x, a, f);
	cq_seq_close(f);
}

#endif /* TEST_LIBCQ_H */
