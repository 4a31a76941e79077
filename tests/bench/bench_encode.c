// SPDX-License-Identifier: MIT
/*
 * Encoding of pages of 64 tokens, K and V, beside the processor's rate of
 * multiply-adds; one JSON object per line.
 *
 * "cold": every kv head of every layer in turn, as a page is sealed; codebooks
 * are 64 MiB and more, no call meets what the one before it left in a cache.
 * "warm": one head's codebooks again and again. The share is that of the fp32 FMA
 * peak, measured beside it; encoding is bound to a product and a difference, each
 * rounded (struct cqk_ops), which are two instructions where an FMA is one.
 */
#include <stdio.h>
#include "tests/bench/times.h"
#include "tests/kernels/toy.h"

#define N_KV 8
#define N_LAYERS 32
#define T 64
#define PEAK_STEPS 200000

struct job {
	const struct cqk_ops *ops;
	struct toy toy;
	uint32_t d, c;
	uint16_t *x;
	uint8_t *codes;
};

/* Twelve sums that depend on nothing but themselves: two FMAs of four cycles. */
#define PEAK_SUMS 12
#define FMA(reg, n) "vfmadd231ps %%" reg "12, %%" reg "12, %%" reg n "\n\t"
#define TWELVE(reg)								\
	FMA(reg, "0") FMA(reg, "1") FMA(reg, "2") FMA(reg, "3")			\
	FMA(reg, "4") FMA(reg, "5") FMA(reg, "6") FMA(reg, "7")			\
	FMA(reg, "8") FMA(reg, "9") FMA(reg, "10") FMA(reg, "11")
#define SUMS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",	\
	     "xmm9", "xmm10", "xmm11"

#ifdef __x86_64__
static double peak_avx512(void)
{
	double start = times_now();
	int i;

	for (i = 0; i < PEAK_STEPS; i++)
		__asm__ volatile(TWELVE("zmm") : : : SUMS);
	return PEAK_STEPS * PEAK_SUMS * 16.0 / (times_now() - start);
}

static double peak_avx2(void)
{
	double start = times_now();
	int i;

	for (i = 0; i < PEAK_STEPS; i++)
		__asm__ volatile(TWELVE("ymm") : : : SUMS);
	return PEAK_STEPS * PEAK_SUMS * 8.0 / (times_now() - start);
}
#endif

/* Multiply-adds per nanosecond at best; 0: not known here. */
static double peak(const struct cqk_ops *ops)
{
#ifdef __x86_64__
	if (!strncmp(ops->name, "avx512", 6))
		return peak_avx512();
	if (!strcmp(ops->name, "avx2"))
		return peak_avx2();
#endif
	return 0;
}

static void encode_head(struct job *j, uint32_t layer, uint32_t head)
{
	const struct cqk_layer *y = &j->toy.m.layers[layer];

	j->ops->encode(&y->k, head, j->x, 0, T, j->codes);
	j->ops->encode(&y->v, head, j->x + (size_t)T * j->d, 0, T, j->codes);
}

/* Nanoseconds per token, layer and kv head. */
static double sample_cold(struct job *j)
{
	double start = times_now();
	uint32_t layer, head;

	for (layer = 0; layer < N_LAYERS; layer++)
		for (head = 0; head < N_KV; head++)
			encode_head(j, layer, head);
	return (times_now() - start) / (N_LAYERS * N_KV) / T;
}

static double sample_warm(struct job *j)
{
	double start = times_now();
	uint32_t i;

	for (i = 0; i < N_KV; i++)
		encode_head(j, 0, 0);
	return (times_now() - start) / N_KV / T;
}

static void print(struct job *j, bool cold, struct times *t, double best)
{
	double median = times_median(t), rate = 2.0 * 256 * j->d / median;

	printf("{\"bench\": \"encode\", \"config\": \"k%uc8b-v%uc8b\", "
	       "\"impl\": \"%s\", \"head_dim\": %u, \"codebooks\": \"%s\", "
	       "\"ns_per_token_head\": %.0f, \"gmadd_per_s\": %.1f, ",
	       j->c, j->c, j->ops->name, j->d, cold ? "cold" : "warm", median, rate);
	if (best > 0)
		printf("\"fma_peak\": %.1f, \"of_peak\": %.2f, ", best, rate / best);
	printf("\"p10\": %.0f, \"p90\": %.0f}\n", times_quantile(t, 0.1),
	       times_quantile(t, 0.9));
	fflush(stdout);
}

static void run(const struct cqk_ops *ops, uint32_t d, uint32_t c)
{
	struct toy_opts o = { .n_layers = N_LAYERS, .n_heads = N_KV,
			      .n_kv_heads = N_KV, .d = d, .ck = c, .cv = c,
			      .i8 = true };
	struct job j = { .ops = ops, .d = d, .c = c };
	struct times cold, warm;
	double best = 0, now;
	int i;

	toy_init(&j.toy, &o, T);
	j.x = toy_alloc((size_t)2 * T * d * 2);
	toy_halves((uint8_t *)j.x, (size_t)2 * T * d, 1.0f);
	j.codes = toy_alloc((size_t)T * d);
	for (i = 0; i < TIMES_N; i++) {
		cold.ns[i] = sample_cold(&j);
		warm.ns[i] = sample_warm(&j);
		now = peak(ops);
		best = MAX(best, now);
	}
	print(&j, true, &cold, best);
	print(&j, false, &warm, best);
	free(j.codes);
	free(j.x);
	toy_free(&j.toy);
}

int main(void)
{
	static const uint32_t shapes[][2] = {
		{ 128, 8 }, { 128, 4 }, { 128, 2 }, { 64, 8 }, { 256, 4 },
	};
	const struct cqk_ops *ops = cqk_select(getenv("CQ_KERNELS"));
	size_t i;

	if (!ops) {
		fprintf(stderr, "CQ_KERNELS=%s: no such implementation here\n",
			getenv("CQ_KERNELS"));
		return 1;
	}
	for (i = 0; i < ARRAY_SIZE(shapes); i++)
		run(ops, shapes[i][0], shapes[i][1]);
	return 0;
}
