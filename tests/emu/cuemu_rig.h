/* SPDX-License-Identifier: MIT */
/*
 * For tests of the emulation: its library of demonstration kernels, and how to
 * launch one of them. Included behind harness.h.
 */
#ifndef CUEMU_RIG_H
#define CUEMU_RIG_H

#include <dlfcn.h>

#include "tests/emu/cuemu_api.h"

static const struct cuemu_kernel *(*emu_find)(const char *name);
static int (*emu_launch)(const struct cuemu_kernel *kernel, const struct cuemu_launch_args *args);
static const char *(*emu_error)(void);

static void *emu_lib;

static void *emu_symbol(const char *name)
{
	void *p = dlsym(emu_lib, name);

	if (!p)
		FAIL("no %s in the library", name);
	return p;
}

/* A library that lies beside the test program. */
static void emu_load(const char *name)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 64);

	ASSERT_GT(n, 0);
	path[n] = '\0';
	snprintf(strrchr(path, '/') + 1, 64, "%s", name);
	emu_lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!emu_lib)
		FAIL("%s", dlerror());
	*(void **)&emu_find = emu_symbol("cuemu_find");
	*(void **)&emu_launch = emu_symbol("cuemu_launch");
	*(void **)&emu_error = emu_symbol("cuemu_error");
}

/* How each kernel is launched: all orders, several seeds, one thread and some. */
static const struct emu_way {
	uint32_t order, threads;
	uint64_t seed;
} emu_ways[] = {
	{ CUEMU_FORWARD, 1, 0 }, { CUEMU_REVERSE, 1, 0 }, { CUEMU_RANDOM, 1, 1 },
	{ CUEMU_RANDOM, 1, 2 },	 { CUEMU_RANDOM, 3, 3 },
};
#define EMU_WAYS (sizeof(emu_ways) / sizeof(emu_ways[0]))

static int emu_run(const char *name, size_t way, uint32_t gx, uint32_t gy, uint32_t threads,
		   uint32_t shared, void **params)
{
	const struct cuemu_launch_args args = {
		.grid = { gx, gy, 1 },
		.block = { threads, 1, 1 },
		.shared_bytes = shared,
		.threads = emu_ways[way].threads,
		.order = emu_ways[way].order,
		.seed = emu_ways[way].seed,
		.params = params,
	};
	const struct cuemu_kernel *k = emu_find(name);

	if (!k)
		FAIL("no kernel %s", name);
	return emu_launch(k, &args);
}

#endif /* CUEMU_RIG_H */
