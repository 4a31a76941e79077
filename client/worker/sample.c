// SPDX-License-Identifier: MIT
/* From logits to tokens, and how far two sets of logits are apart. */
#include <math.h>
#include "client/worker/worker.h"

size_t wk_argmax(const float *x, size_t n)
{
	size_t best = 0, i;

	for (i = 1; i < n; i++)
		if (x[i] > x[best])
			best = i;
	return best;
}

/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
 * generators", OOPSLA 2014. */
static uint64_t next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint32_t wk_sample(struct wk_sampler *s, const float *logits, size_t n)
{
	size_t best = wk_argmax(logits, n), i;
	double sum = 0, u;

	if (s->temperature <= 0)
		return (uint32_t)best;
	for (i = 0; i < n; i++)
		sum += exp(((double)logits[i] - (double)logits[best]) / s->temperature);
	u = (double)(next(&s->state) >> 11) * 0x1p-53 * sum;
	for (i = 0; i < n; i++) {
		u -= exp(((double)logits[i] - (double)logits[best]) / s->temperature);
		if (u < 0)
			return (uint32_t)i;
	}
	return (uint32_t)best;	/* rounding ate the last bit of u */
}

double wk_log_sum_exp(const float *x, size_t n)
{
	size_t best = wk_argmax(x, n), i;
	double sum = 1;		/* of the largest one itself */

	for (i = 0; i < n; i++)
		if (i != best)
			sum += exp((double)x[i] - (double)x[best]);
	return (double)x[best] + log(sum);
}

double wk_kl(const float *p, const float *q, size_t n)
{
	double lp = wk_log_sum_exp(p, n), lq = wk_log_sum_exp(q, n), kl = 0, a;
	size_t i;

	for (i = 0; i < n; i++) {
		a = (double)p[i] - lp;
		kl += exp(a) * (a - ((double)q[i] - lq));
	}
	return kl;
}
