/* SPDX-License-Identifier: MIT */
/*
 * What tests/system/sys.h needs of the test harness, for a bench: one process,
 * the first failure ends it, figures go to stdout and words to stderr.
 */
#ifndef BENCH_RIG_H
#define BENCH_RIG_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "tests/assert.h"

static char bench_dir[256];

static inline int bench_unlink(const char *path, const struct stat *st, int type,
			       struct FTW *ftw)
{
	return remove(path);
}

static inline void bench_clean(void)
{
	if (bench_dir[0])
		nftw(bench_dir, bench_unlink, 16, FTW_DEPTH | FTW_PHYS);
	bench_dir[0] = 0;
}

#define FAIL(fmt, ...) do {							\
	fprintf(stderr, "%s:%d: " fmt "\n", __FILE__, __LINE__, ##__VA_ARGS__);	\
	bench_clean();								\
	exit(1);								\
} while (0)

static inline const char *test_dir(void)
{
	const char *tmp = getenv("TMPDIR");

	if (!bench_dir[0]) {
		snprintf(bench_dir, sizeof(bench_dir), "%s/cq-bench-XXXXXX",
			 tmp ? tmp : "/tmp");
		ASSERT(mkdtemp(bench_dir));
	}
	return bench_dir;
}

static inline uint64_t bench_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static inline long long test_now_ms(void)
{
	return (long long)(bench_now_ns() / 1000000);
}

static inline int bench_compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Quantile @q of @n samples, which are sorted by it. */
static inline double bench_quantile(double *x, size_t n, double q)
{
	qsort(x, n, sizeof(*x), bench_compare);
	return x[(size_t)(q * (double)(n - 1) + 0.5)];
}

#endif /* BENCH_RIG_H */
