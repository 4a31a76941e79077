// SPDX-License-Identifier: MIT
/*
 * Attention of 1 to 512 query rows over coded pages; one JSON object per line.
 *
 * 4,096 tokens, two kv heads, other shapes and codings than bench_attention's as
 * well. Up to 64 rows are a batch that sees all pages; 512 rows are a prompt whose
 * own tokens are the last 512 (causal). "vs_one_row" is the cost of one row alone
 * over the cost per row. Where libopenblas is installed its sgemm computes the
 * same products in one thread, of 256 vectors and 512 tokens at a time (scores
 * stay in L2): floats decoded before, no softmax, no mask.
 *
 * CQ_BENCH_ONLY= is a shell pattern for the cases to run, whose names are like
 * "k8c8b-v8c8b pre-rope d128 gqa4 rows16".
 */
#include <dlfcn.h>
#include <fnmatch.h>
#include <stdio.h>
#include "tests/bench/times.h"
#include "tests/kernels/toy.h"

#define N_KV 2
#define N_LAYERS 8
#define CONTEXT 4096
#define PAGES (CONTEXT / 64)
#define MAX_ROWS 512
#define SGEMM_VECTORS 256
#define SGEMM_TOKENS 512

struct shape {
	uint32_t d, gqa;
};

struct job {
	const struct cqk_ops *ops;
	struct toy toy;
	struct cqk_attn a;
	struct cqk_block blocks[PAGES];
	struct cqk_span spans[PAGES];
	uint32_t row_pos[MAX_ROWS];
	uint8_t *pages;
	float *q, *o;
	uint32_t d, gqa, calls;
	char name[96];
	double one_row;
};

typedef void (*sgemm_fn)(int order, int trans_a, int trans_b, int m, int n, int k,
			 float alpha, const float *a, int lda, const float *b, int ldb,
			 float beta, float *c, int ldc);

static sgemm_fn find_sgemm(void)
{
	void *lib = dlopen("libopenblas.so.0", RTLD_NOW);
	void (*threads)(int n);
	sgemm_fn fn;

	if (!lib)
		return NULL;
	*(void **)&threads = dlsym(lib, "openblas_set_num_threads");
	*(void **)&fn = dlsym(lib, "cblas_sgemm");
	if (threads)
		threads(1);
	return threads ? fn : NULL;
}

/* Multiply-adds per nanosecond of both products of a head; 0 without sgemm. */
static double sgemm_rate(const struct shape *sh, uint32_t rows)
{
	int m = (int)(rows * sh->gqa), d = (int)sh->d, i, v, t, n;
	sgemm_fn fn = find_sgemm();
	float *q, *k, *s, *o;
	struct times times;
	double start;

	if (!fn)
		return 0;
	q = toy_alloc((size_t)m * sh->d * 4);
	o = toy_alloc((size_t)m * sh->d * 4);
	k = toy_alloc((size_t)CONTEXT * sh->d * 4);
	s = toy_alloc((size_t)SGEMM_VECTORS * SGEMM_TOKENS * 4);
	for (i = 0; i < m * d; i++)
		q[i] = toy_normal();
	for (i = 0; i < CONTEXT * d; i++)
		k[i] = toy_normal();
	for (i = 0; i < TIMES_N; i++) {
		start = times_now();
		for (v = 0; v < m; v += n) {
			n = MIN(SGEMM_VECTORS, m - v);
			for (t = 0; t < CONTEXT; t += SGEMM_TOKENS) {
				fn(101, 111, 112, n, SGEMM_TOKENS, d, 1, q + v * d, d,
				   k + t * d, d, 0, s, SGEMM_TOKENS);
				fn(101, 111, 111, n, d, SGEMM_TOKENS, 1, s, SGEMM_TOKENS,
				   k + t * d, d, 1, o + v * d, d);
			}
		}
		times.ns[i] = times_now() - start;
	}
	free(s);
	free(k);
	free(o);
	free(q);
	return 2.0 * m * CONTEXT * d / times_median(&times);
}

static void job_init(struct job *j, const struct cqk_ops *ops, const struct shape *sh,
		     uint32_t c, uint32_t keys)
{
	struct toy_opts o = {
		.n_layers = N_LAYERS, .n_heads = N_KV * sh->gqa, .n_kv_heads = N_KV,
		.d = sh->d, .keys = keys, .rope_dim = sh->d, .ck = c, .cv = c,
		.i8 = true, .theta = 5e5,
	};
	size_t n = (size_t)MAX_ROWS * o.n_heads * sh->d, i;

	memset(j, 0, sizeof(*j));
	j->ops = ops;
	j->d = sh->d;
	j->gqa = sh->gqa;
	toy_init(&j->toy, &o, CONTEXT + MAX_ROWS);
	j->pages = toy_alloc(PAGES * j->toy.m.payload);
	for (i = 0; i < PAGES; i++)
		toy_payload(&j->toy, j->pages + i * j->toy.m.payload);
	j->q = toy_alloc(n * 4);
	j->o = toy_alloc(n * 4);
	for (i = 0; i < n; i++)
		j->q[i] = toy_normal();
}

static void job_exit(struct job *j)
{
	free(j->o);
	free(j->q);
	free(j->pages);
	toy_free(&j->toy);
}

static void job_rows(struct job *j, uint32_t rows)
{
	const struct cqk_model *m = &j->toy.m;
	uint32_t i, first = rows == MAX_ROWS ? CONTEXT - rows : CONTEXT;
	int64_t stride = (int64_t)m->geom.n_heads * j->d;

	for (i = 0; i < PAGES; i++) {
		j->blocks[i] = (struct cqk_block){
			.base = j->pages + i * m->payload, .kind = CQK_BLOCK_CODES,
			.tokens = 64, .span_first = i, .n_spans = 1 };
		j->spans[i] = (struct cqk_span){ .mask = ~0ull, .n_rows = rows,
						 .pos = i * 64 };
	}
	for (i = 0; i < rows; i++)
		j->row_pos[i] = first + i;
	j->calls = rows < 16 ? 8 : rows < 64 ? 2 : 1;
	j->a = (struct cqk_attn){
		.model = m, .rope = &j->toy.rope, .head_end = N_KV,
		.blocks = j->blocks, .n_blocks = PAGES, .spans = j->spans,
		.row_pos = j->row_pos, .n_rows = rows,
		.q = { j->q, CQ_F32, 0, stride, j->d },
		.o = { j->o, CQ_F32, 0, stride, j->d },
		.scale = 1.0f / sqrtf((float)j->d),
		.scratch = toy_alloc(j->ops->scratch_bytes(m, rows)),
	};
}

/* Nanoseconds per token and kv head. */
static double sample(struct job *j)
{
	double start = times_now();
	uint32_t i;

	for (i = 0; i < j->calls; i++) {
		j->a.layer = (j->a.layer + 1) % N_LAYERS;
		j->ops->attention(&j->a);
	}
	return (times_now() - start) / j->calls / CONTEXT / N_KV;
}

/* Relative error of the last row and head, in double over the same codes. */
static double error_of(struct job *j)
{
	uint32_t row = j->a.n_rows - 1, head = N_KV * j->gqa - 1, ch;
	double ref[256], err = 0, norm = 0;

	toy_reference(&j->a, row, head, ref);
	for (ch = 0; ch < j->d; ch++) {
		double e = toy_load(&j->a.o, row, head, ch) - ref[ch];

		err += e * e;
		norm += ref[ch] * ref[ch];
	}
	return sqrt(err / norm);
}

/* Multiply-adds of a head over the context. */
static double products(const struct job *j)
{
	double pairs = 0;
	uint32_t i;

	for (i = 0; i < j->a.n_rows; i++)
		pairs += MIN(j->row_pos[i] + 1, (uint32_t)CONTEXT);
	return pairs * 2 * j->gqa * j->d;
}

static void print(struct job *j, struct times *t, double sgemm)
{
	double ns = times_median(t), row = ns / j->a.n_rows;
	double rate = products(j) / (ns * CONTEXT);

	if (j->a.n_rows == 1)
		j->one_row = ns;
	printf("{\"bench\": \"rows\", \"case\": \"%s\", \"impl\": \"%s\", "
	       "\"head_dim\": %u, \"gqa\": %u, \"rows\": %u, \"context\": %d, "
	       "\"causal\": %s, \"ns_per_token_head\": %.2f, \"ns_per_row\": %.3f, ",
	       j->name, j->ops->name, j->d, j->gqa, j->a.n_rows, CONTEXT,
	       j->a.n_rows == MAX_ROWS ? "true" : "false", ns, row);
	if (j->one_row > 0)
		printf("\"vs_one_row\": %.2f, ", j->one_row / row);
	printf("\"gmadd_per_s\": %.1f, ", rate);
	if (sgemm > 0)
		printf("\"sgemm_gmadd_per_s\": %.1f, \"of_sgemm\": %.2f, ", sgemm,
		       rate / sgemm);
	printf("\"rel_err\": %.2e, \"p10\": %.2f, \"p90\": %.2f}\n", error_of(j),
	       times_quantile(t, 0.1), times_quantile(t, 0.9));
	fflush(stdout);
}

static void run_rows(struct job *j, const struct shape *sh, uint32_t c,
		     uint32_t keys, uint32_t rows)
{
	const char *only = getenv("CQ_BENCH_ONLY");
	struct times t;
	int i;

	snprintf(j->name, sizeof(j->name), "k%uc8b-v%uc8b %s d%u gqa%u rows%u", c, c,
		 keys == CQK_KEYS_NONE ? "none" : "pre-rope", sh->d, sh->gqa, rows);
	if (only && fnmatch(only, j->name, 0))
		return;
	job_rows(j, rows);
	for (i = 0; i < TIMES_N; i++)
		t.ns[i] = sample(j);
	print(j, &t, rows >= 16 ? sgemm_rate(sh, rows) : 0);
	free(j->a.scratch);
}

static void run(const struct cqk_ops *ops, const struct shape *sh, uint32_t c,
		uint32_t keys)
{
	static const uint32_t rows[] = { 1, 2, 4, 16, 64, MAX_ROWS };
	static struct job j;
	size_t i;

	job_init(&j, ops, sh, c, keys);
	for (i = 0; i < ARRAY_SIZE(rows); i++)
		run_rows(&j, sh, c, keys, rows[i]);
	job_exit(&j);
}

int main(void)
{
	static const struct shape shapes[] = {
		{ 128, 4 }, { 128, 1 }, { 128, 8 }, { 64, 4 }, { 256, 4 },
	};
	static const uint32_t codings[] = { 8, 4, 2 };
	const struct cqk_ops *ops = cqk_select(getenv("CQ_KERNELS"));
	size_t i, k;

	if (!ops) {
		fprintf(stderr, "CQ_KERNELS=%s: no such implementation here\n",
			getenv("CQ_KERNELS"));
		return 1;
	}
	for (i = 0; i < ARRAY_SIZE(shapes); i++)
		for (k = 0; k < ARRAY_SIZE(codings); k++) {
			if (i && codings[k] != 4)
				continue;
			run(ops, &shapes[i], codings[k], CQK_KEYS_NONE);
			run(ops, &shapes[i], codings[k], CQK_KEYS_PRE_ROPE);
		}
	return 0;
}
