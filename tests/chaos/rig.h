/* SPDX-License-Identifier: MIT */
/*
 * What tests/system/sys.h needs of the test harness, for the chaos run: the
 * first failure ends the process it happens in, the evidence stays.
 */
#ifndef CHAOS_RIG_H
#define CHAOS_RIG_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
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

/* Ends a worker with a word for its parent, or the whole run. */
__attribute__((noreturn, format(printf, 3, 4)))
void chaos_die(const char *file, int line, const char *fmt, ...);

/* Folder of this run; kept after a failure. */
const char *test_dir(void);

#define FAIL(fmt, ...) chaos_die(__FILE__, __LINE__, fmt, ##__VA_ARGS__)

static inline uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static inline long long test_now_ms(void)
{
	return (long long)(now_us() / 1000);
}

#endif /* CHAOS_RIG_H */
