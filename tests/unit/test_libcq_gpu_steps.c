// SPDX-License-Identifier: MIT
/* Steps of several sequences on the emulated GPU, and CUDA graphs of them. */
#include "tests/unit/test_libcq_gpu.h"
#include "client/gpu.h"

static struct rig r;
static struct shape small = GPU_SHAPE;
static uint32_t ids[1000];

static void begin(void)
{
	gpu_env();
	rig_ids(ids, 1000, 1);
	rig_start(&r, &small, GPU_CONF);
}

#define SEQS 3

/* One row of each of @seqs, all layers, as the host and the device do it. */
struct both {
	struct worker w, h;
	struct cq_seq *a[SEQS], *b[SEQS];
	struct cq_batch *bw, *bh;
	uint32_t rows[SEQS], n_rows;
	float *k[2], *v[2], *q;
};

/* Sequences of text 1 that begin as each other do, and one of text 2. */
static void both_open(struct both *t, uint32_t each)
{
	static uint32_t other[400];
	uint32_t i;

	worker_gpu_open(&t->w, &small, r.sock, 0, 64);
	worker_open(&t->h, &small, r.sock, 0, 64);
	rig_ids(other, 400, 2);
	for (i = 0; i < SEQS; i++) {
		const uint32_t *text = i == 2 ? other : ids;
		size_t n = 150 + 60 * i;

		t->a[i] = worker_seq(&t->w, text, n);
		t->b[i] = worker_seq(&t->h, text, n);
		gpu_grow(&t->w, t->a[i], text, n);
		worker_grow(&t->h, t->b[i], text, n);
		CQ_OK(cq_seal(t->a[i], 5000));
		CQ_OK(cq_seal(t->b[i], 5000));
		t->rows[i] = each + i;
		t->n_rows += each + i;
	}
	CQ_OK(cq_batch_new(t->w.model, SEQS, t->n_rows, 0, &t->bw));
	CQ_OK(cq_batch_new(t->h.model, SEQS, t->n_rows, 0, &t->bh));
}

static float *noise(size_t n, uint64_t seed)
{
	float *x = malloc(n * 4);
	size_t i;

	ASSERT(x);
	for (i = 0; i < n; i++)
		x[i] = rig_value(i ^ seed << 32);
	return x;
}

#define LAYER_BYTES ((size_t)64 << 10)

/* Rows of round @round to both; the device's lie where the graph expects them. */
static void both_rows(struct both *t, uint32_t round)
{
	size_t kv = (size_t)t->n_rows * small.kv_heads * small.dim;
	uint32_t l;

	for (l = 0; l < 2; l++) {
		t->k[l] = noise(kv, 4 * round + 2 * l);
		t->v[l] = noise(kv, 4 * round + 2 * l + 1);
		gpu_put(gpu.k + l * LAYER_BYTES, t->k[l], kv);
		gpu_put(gpu.v + l * LAYER_BYTES, t->v[l], kv);
	}
	t->q = noise(2 * kv, 1000 + round);
	gpu_put(gpu.q, t->q, 2 * kv);
}

static void device_layers(struct both *t, struct cqcu_stream *stream)
{
	struct cq_append_opts ao = { .sz = sizeof(ao), .stream = stream };
	struct cq_attn_opts to = { .sz = sizeof(to), .stream = stream };
	struct cq_view q = gpu_view(&t->w, gpu.q, small.heads);
	struct cq_view o = gpu_view(&t->w, gpu.o, small.heads), k, v;
	uint32_t l;

	for (l = 0; l < 2; l++) {
		k = gpu_view(&t->w, gpu.k + l * LAYER_BYTES, small.kv_heads);
		v = gpu_view(&t->w, gpu.v + l * LAYER_BYTES, small.kv_heads);
		CQ_OK(cq_append_rows(t->bw, l, &k, &v, &ao));
		CQ_OK(cq_attention(t->bw, l, &q, &o, &to));
	}
}

/* The device splits calls as it likes. */
static void check_no_parts(struct both *t)
{
	struct cq_view o = gpu_view(&t->w, gpu.o, small.heads);
	struct cq_attn_opts to = { .sz = sizeof(to), .n_parts = 2 };
	struct cq_part part = { .o = o, .lse = o.data };

	CQ_FAILS(cq_batch_split(t->bw, 2), -EOPNOTSUPP);
	CQ_FAILS(cq_attention(t->bw, 0, &o, &o, &to), -EINVAL);
	CQ_FAILS(cq_merge(t->bw, &part, 1, &o, NULL), -EOPNOTSUPP);
}

/* The host's turn, and both committed. */
static void both_compare(struct both *t, uint32_t round)
{
	size_t n = (size_t)t->n_rows * small.heads * small.dim, i;
	float *want = calloc(n, 4), *got = calloc(n, 4);
	struct cq_view q = rig_view(&t->h, t->q, small.heads);
	struct cq_view o = rig_view(&t->h, want, small.heads), k, v;
	uint32_t l, some[64];

	CQ_OK(cq_step(t->bh, t->b, t->rows, SEQS));
	for (l = 0; l < 2; l++) {
		k = rig_view(&t->h, t->k[l], small.kv_heads);
		v = rig_view(&t->h, t->v[l], small.kv_heads);
		CQ_OK(cq_append_rows(t->bh, l, &k, &v, NULL));
		CQ_OK(cq_attention(t->bh, l, &q, &o, NULL));
		free(t->k[l]);
		free(t->v[l]);
	}
	gpu_get(got, gpu.o, n);
	for (i = 0; i < n; i++)
		ASSERT_NEAR(got[i], want[i], 2e-3);
	rig_ids(some, 64, 10 + round);
	for (l = 0; l < SEQS; l++) {
		CQ_OK(cq_commit(t->a[l], some, t->rows[l]));
		CQ_OK(cq_commit(t->b[l], some, t->rows[l]));
	}
	free(t->q);
	free(want);
	free(got);
}

static void both_close(struct both *t)
{
	uint32_t i;

	for (i = 0; i < SEQS; i++)
		CQ_OK(cq_seal(t->a[i], 5000));
	cq_close(t->w.ctx);
	cq_close(t->h.ctx);
}

TEST(batch_of_sequences)
{
	struct both t = { .n_rows = 0 };
	uint32_t round;

	begin();
	both_open(&t, 5);
	for (round = 0; round < 4; round++) {
		both_rows(&t, round);
		CQ_OK(cq_step(t.bw, t.a, t.rows, SEQS));
		check_no_parts(&t);
		device_layers(&t, NULL);
		both_compare(&t, round);
	}
	both_close(&t);
	rig_stop(&r);
}

/* Captured once, launched for each step: over the ends of pages too. */
static void graph_steps(void)
{
	struct both t = { .n_rows = 0 };
	struct cqcu_graph *g;
	struct cqcu_exec *x;
	uint32_t round;

	begin();
	both_open(&t, 1);
	CQ_OK(cq_step(t.bw, t.a, t.rows, SEQS));
	CU(cuStreamBeginCapture(gpu.stream, CQCU_STREAM_CAPTURE_MODE_GLOBAL));
	device_layers(&t, NULL);
	CU(cuStreamEndCapture(gpu.stream, &g));
	CU(cuGraphInstantiateWithFlags(&x, g, 0));
	for (round = 0; round < 40; round++) {
		both_rows(&t, round);
		CQ_OK(cq_step(t.bw, t.a, t.rows, SEQS));
		CU(cuGraphLaunch(x, gpu.stream));
		CQ_OK(cq_replayed(t.bw));
		CQ_FAILS(cq_replayed(t.bw), -EINVAL);
		both_compare(&t, round);
	}
	CU(cuStreamSynchronize(gpu.stream));
	CU(cuGraphExecDestroy(x));
	CU(cuGraphDestroy(g));
	both_close(&t);
	rig_stop(&r);
}

TEST_LIMIT(graph, 60)
{
	graph_steps();
}

TEST_LIMIT(graph_of_wide_codes, 60)
{
	small.k = "8c10b";
	graph_steps();
}
