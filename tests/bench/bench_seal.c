/* SPDX-License-Identifier: MIT */
/*
 * Sealing: how long from the append of a page's 64 tokens until others can attach
 * to it (p50_us), and how many pages a second a worker publishes when it goes
 * as fast as it can. Both include append, encoding and commit.
 */
#define TESTS_BENCH
#include "tests/system/work.h"

#define SINGLE	200
#define MANY	1500

static struct sys s;
static const struct synth model = { .layers = 6, .heads = 6, .kv_heads = 2, .dim = 64,
				    .sinks = 4, .window = 128, .max_position = 1 << 20,
				    .code = "4c8b", .seed = 9 };

/* As work_chunk(), with rows that are there already. */
static int chunk(struct work *w, struct cq_seq *seq, uint32_t text)
{
	struct cq_append_opts ao = { .sz = sizeof(ao), .device = CQ_DEVICE_HOST };
	struct cq_view k = synth_view(&model, w->k, model.kv_heads);
	struct cq_view v = synth_view(&model, w->v, model.kv_heads);
	uint32_t ids[CQ_PAGE_TOKENS], l;
	int ret = 0;

	synth_ids(ids, CQ_PAGE_TOKENS, text + (uint32_t)cq_seq_length(seq));
	for (l = 0; !ret && l < model.layers; l++)
		ret = cq_append(seq, l, &k, &v, CQ_PAGE_TOKENS, &ao);
	return ret ? ret : cq_commit(seq, ids, CQ_PAGE_TOKENS);
}

static double single(struct work *w, struct cq_seq *seq)
{
	uint64_t start;

	start = bench_now_ns();
	WORK_OK(chunk(w, seq, 1));
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	return (double)(bench_now_ns() - start) / 1000;
}

static double many(struct work *w)
{
	struct cq_seq *seq = work_seq(w, 2, 0);
	uint64_t start = bench_now_ns();
	double took;
	int n = 0, ret;

	while (n < MANY) {
		ret = chunk(w, seq, 1 << 24);
		if (ret == -ENOBUFS)
			work_wait(w, 20);
		else
			WORK_OK(ret);
		n += !ret;
	}
	WORK_OK(cq_seal(seq, SYS_DEADLINE));
	took = (double)(bench_now_ns() - start) / 1e9;
	cq_seq_close(seq);
	return MANY / took;
}

int main(void)
{
	static const struct sys_opts opts = { .model = &model,
					      .daemon = "pool_bytes = 256M\n" };
	double us[SINGLE], rate;
	struct cq_seq *seq;
	struct work w;
	int i;

	sys_start(&s, &opts);
	work_open(&w, &s, &model, 0, 0);
	synth_rows(w.k, &model, 1, 0, 0, 0, CQ_PAGE_TOKENS);
	synth_rows(w.v, &model, 1, 1, 0, 0, CQ_PAGE_TOKENS);
	seq = work_seq(&w, 1, 0);
	for (i = 0; i < SINGLE; i++)
		us[i] = single(&w, seq);
	cq_seq_close(seq);
	rate = many(&w);
	printf("{\"bench\": \"seal\", \"page_bytes\": %d, \"pages_per_s\": %.0f, "
	       "\"p50_us\": %.1f, \"p99_us\": %.1f}\n",
	       CQ_PAGE_TOKENS * 6 * 2 * 64 * 4 / 8, rate, bench_quantile(us, SINGLE, 0.5),
	       bench_quantile(us, SINGLE, 0.99));
	work_close(&w);
	sys_stop(&s);
	bench_clean();
	return 0;
}
