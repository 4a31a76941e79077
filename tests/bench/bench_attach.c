/* SPDX-License-Identifier: MIT */
/*
 * How long a worker that is connected takes to open a sequence of 2,049 tokens
 * of which 2,048 are published: until it is open (p50_us), and until a first
 * attention has read every page of one layer (p50_ready_us). Each sample is a
 * text of its own, so that nothing of it was mapped before; for the tail
 * (p99_us) they are opened over and over.
 */
#define TESTS_BENCH
#include "tests/system/work.h"

#define TOKENS	2048
#define SAMPLES	25
#define ROUNDS	20
#define FIRST	100	/* number of the first text */

static struct sys s;
/* The shape of the small language model in client/worker/lm. */
static const struct synth model = { .layers = 6, .heads = 6, .kv_heads = 2, .dim = 64,
				    .sinks = 4, .window = 128, .max_position = 4096,
				    .code = "4c8b", .seed = 9 };

static void publish_all(int fd, void *arg)
{
	struct work w;
	uint32_t i;

	work_open(&w, &s, &model, 0, 0);
	for (i = 0; i < SAMPLES + 1; i++)
		work_publish(&w, FIRST + i, TOKENS);
	work_close(&w);
}

/* Microseconds of the attach; @ready those until the first attention is done. */
static double attach(struct work *w, const uint32_t *ids, uint32_t text, double *ready)
{
	struct cq_attn_opts to = { .sz = sizeof(to), .device = CQ_DEVICE_HOST };
	struct cq_append_opts ao = { .sz = sizeof(ao), .device = CQ_DEVICE_HOST };
	struct cq_seq_opts so = { .sz = sizeof(so) };
	struct cq_view k = synth_view(&model, w->k, model.kv_heads);
	struct cq_view v = synth_view(&model, w->v, model.kv_heads);
	struct cq_view q = synth_view(&model, w->q, model.heads);
	struct cq_view o = { .data = w->o, .dtype = CQ_F32,
			     .stride_token = (int64_t)model.heads * model.dim,
			     .stride_head = model.dim };
	uint64_t start, opened, done;
	struct cq_seq *seq = NULL;
	uint32_t rows = 1;

	synth_rows(w->k, &model, text, 0, 0, TOKENS, 1);
	synth_rows(w->v, &model, text, 1, 0, TOKENS, 1);
	synth_rows(w->q, &model, text, 2, 0, TOKENS, 1);
	start = bench_now_ns();
	WORK_OK(cq_seq_open(w->model, ids, TOKENS + 1, &so, &seq));
	opened = bench_now_ns();
	ASSERT_EQ(cq_seq_length(seq), TOKENS);
	WORK_OK(cq_step(w->batch, &seq, &rows, 1));
	WORK_OK(cq_append(seq, 0, &k, &v, 1, &ao));
	WORK_OK(cq_attention(w->batch, 0, &q, &o, &to));
	done = bench_now_ns();
	cq_seq_close(seq);
	*ready = (double)(done - start) / 1000;
	return (double)(opened - start) / 1000;
}

static double reopen(struct work *w, const uint32_t *ids)
{
	struct cq_seq_opts so = { .sz = sizeof(so) };
	uint64_t start = bench_now_ns(), opened;
	struct cq_seq *seq = NULL;

	WORK_OK(cq_seq_open(w->model, ids, TOKENS + 1, &so, &seq));
	opened = bench_now_ns();
	cq_seq_close(seq);
	return (double)(opened - start) / 1000;
}

int main(void)
{
	static double again_us[SAMPLES * ROUNDS];
	static const struct sys_opts opts = { .model = &model,
					      .daemon = "pool_bytes = 256M\n" };
	double open_us[SAMPLES], ready_us[SAMPLES], unused;
	uint32_t ids[TOKENS + 1], i;
	struct sys_peer p;
	struct work w;

	sys_start(&s, &opts);
	sys_spawn(&p, SYS_UID_A, publish_all, NULL);
	sys_join(&p);
	work_open(&w, &s, &model, 0, 0);
	/* the first one also fetches segments' descriptors */
	synth_ids(ids, TOKENS + 1, FIRST + SAMPLES);
	attach(&w, ids, FIRST + SAMPLES, &unused);
	for (i = 0; i < SAMPLES; i++) {
		synth_ids(ids, TOKENS + 1, FIRST + i);
		open_us[i] = attach(&w, ids, FIRST + i, &ready_us[i]);
	}
	for (i = 0; i < ARRAY_SIZE(again_us); i++) {
		synth_ids(ids, TOKENS + 1, FIRST + i % SAMPLES);
		again_us[i] = reopen(&w, ids);
	}
	printf("{\"bench\": \"attach\", \"tokens\": %d, \"p50_us\": %.1f, "
	       "\"p50_ready_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f}\n", TOKENS,
	       bench_quantile(open_us, SAMPLES, 0.5),
	       bench_quantile(ready_us, SAMPLES, 0.5),
	       bench_quantile(open_us, SAMPLES, 0.9),
	       bench_quantile(again_us, ARRAY_SIZE(again_us), 0.99));
	work_close(&w);
	sys_stop(&s);
	bench_clean();
	return 0;
}
