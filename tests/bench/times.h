/* SPDX-License-Identifier: MIT */
/* Times of a benchmark's samples. */
#ifndef BENCH_TIMES_H
#define BENCH_TIMES_H

#include <stdlib.h>
#include <time.h>

#define TIMES_N 15

/**
 * struct times - one figure per sample
 * @ns: [TIMES_N], in any order
 */
struct times {
	double ns[TIMES_N];
};

/* This thread's time on a CPU: what others take in between does not count. */
static inline double times_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline int times_order(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* Sorts the samples. */
static inline double times_quantile(struct times *t, double q)
{
	qsort(t->ns, TIMES_N, sizeof(double), times_order);
	return t->ns[(int)(q * (TIMES_N - 1) + 0.5)];
}

static inline double times_median(struct times *t)
{
	return times_quantile(t, 0.5);
}

#endif /* BENCH_TIMES_H */
