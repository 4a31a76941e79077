// SPDX-License-Identifier: MIT
/*
 * The emulation of CUDA: kernels of demo.cu that are right, in every order of
 * their threads, and some that are wrong and must be caught.
 */
#include "tests/harness.h"

#include <dlfcn.h>

#include "kernels/f16.h"
#include "tests/emu/cuemu_api.h"

static const struct cuemu_kernel *(*find)(const char *name);
static int (*launch)(const struct cuemu_kernel *kernel, const struct cuemu_launch_args *launch);
static const char *(*error)(void);

/* The library lies beside this program. */
static void load(void)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 32);
	void *lib;

	ASSERT_GT(n, 0);
	path[n] = '\0';
	snprintf(strrchr(path, '/') + 1, 32, "libcuemu_demo.so");
	lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!lib)
		FAIL("%s", dlerror());
	*(void **)&find = dlsym(lib, "cuemu_find");
	*(void **)&launch = dlsym(lib, "cuemu_launch");
	*(void **)&error = dlsym(lib, "cuemu_error");
	ASSERT(find && launch && error);
}

/* How each kernel is launched: all orders, several seeds, one thread and some. */
static const struct {
	uint32_t order, threads;
	uint64_t seed;
} ways[] = {
	{ CUEMU_FORWARD, 1, 0 }, { CUEMU_REVERSE, 1, 0 }, { CUEMU_RANDOM, 1, 1 },
	{ CUEMU_RANDOM, 1, 2 },	 { CUEMU_RANDOM, 3, 3 },
};
#define NUM_WAYS (sizeof(ways) / sizeof(ways[0]))

static int run(const char *name, size_t way, uint32_t gx, uint32_t gy, uint32_t threads,
	       uint32_t shared, void **params)
{
	const struct cuemu_launch_args l = {
		.grid = { gx, gy, 1 },
		.block = { threads, 1, 1 },
		.shared_bytes = shared,
		.threads = ways[way].threads,
		.order = ways[way].order,
		.seed = ways[way].seed,
		.params = params,
	};
	const struct cuemu_kernel *k = find(name);

	if (!k)
		FAIL("no kernel %s", name);
	return launch(k, &l);
}

static float noise(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return (float)(int32_t)*state / 2147483648.0f;
}

static void fill(uint16_t *to, size_t n, uint32_t seed)
{
	size_t i;

	for (i = 0; i < n; i++)
		to[i] = cqk_f32_to_f16(noise(&seed));
}

TEST(rmsnorm)
{
	enum { ROWS = 5, N = 200 };
	static uint16_t x[ROWS * N], gain[N], y[ROWS * N];
	uint16_t *px = x, *pg = gain, *py = y;
	float eps = 1e-5f;
	int n = N, row, i;
	void *params[] = { &py, &px, &pg, &n, &eps };
	size_t way;

	load();
	fill(x, ROWS * N, 1);
	fill(gain, N, 2);
	for (way = 0; way < NUM_WAYS; way++) {
		memset(y, 0xff, sizeof(y));
		ASSERT_OK(run("demo_rmsnorm", way, ROWS, 1, 128, 0, params));
		for (row = 0; row < ROWS; row++) {
			double sum = 0;

			for (i = 0; i < N; i++)
				sum += pow(cqk_f16_to_f32(x[row * N + i]), 2);
			for (i = 0; i < N; i++)
				ASSERT_NEAR(cqk_f16_to_f32(y[row * N + i]),
					    cqk_f16_to_f32(x[row * N + i]) *
					    cqk_f16_to_f32(gain[i]) / sqrt(sum / N + eps), 2e-3);
		}
	}
}

TEST(gemm)
{
	enum { M = 128, N = 64, K = 96 };
	static uint16_t a[M * K], b[K * N];
	static float c[M * N];
	uint16_t *pa = a, *pb = b;
	float *pc = c;
	int m = M, n = N, k = K, i, row, col;
	void *params[] = { &pc, &pa, &pb, &m, &n, &k };
	uint32_t shared = 2 * 2 * (64 * 40 + 32 * 72);
	size_t way;

	load();
	fill(a, M * K, 3);
	fill(b, K * N, 4);
	for (way = 0; way < NUM_WAYS; way++) {
		memset(c, 0xff, sizeof(c));
		ASSERT_OK(run("demo_gemm", way, N / 64, M / 64, 128, shared, params));
		for (row = 0; row < M; row++)
			for (col = 0; col < N; col++) {
				double sum = 0;

				for (i = 0; i < K; i++)
					sum += (double)cqk_f16_to_f32(a[row * K + i]) *
					       (double)cqk_f16_to_f32(b[i * N + col]);
				ASSERT_NEAR(c[row * N + col], sum, 1e-4);
			}
	}
}

TEST(params_and_their_sizes)
{
	struct {
		float *out;
		uint16_t a;
		double b;
	} args;
	float out[4] = { 0 };
	char first = 3;
	short third = -7;
	void *params[] = { &first, &args, &third };
	const struct cuemu_kernel *k;

	load();
	k = find("demo_params");
	ASSERT(k);
	ASSERT_EQ(k->max_threads, 32);
	ASSERT_EQ(k->num_params, 3);
	ASSERT_EQ(k->params[0].offset, 0);
	ASSERT_EQ(k->params[0].size, 1);
	ASSERT_EQ(k->params[1].offset, 8);
	ASSERT_EQ(k->params[1].size, 24);
	ASSERT_EQ(k->params[2].offset, 32);
	ASSERT_EQ(k->params[2].size, 2);
	ASSERT_EQ(k->param_bytes, 34);
	args.out = out;
	args.a = 60000;
	args.b = 0.5;
	ASSERT_OK(run("demo_params", 0, 1, 1, 32, 0, params));
	ASSERT_EQ(out[0], 3);
	ASSERT_EQ(out[1], 60000);
	ASSERT_NEAR(out[2], 0.5, 0);
	ASSERT_EQ(out[3], -7);
	ASSERT(!find("demo_none"));
}

TEST(divergent_barrier)
{
	float out[64];
	float *p = out;
	void *params[] = { &p };
	size_t way;

	load();
	for (way = 0; way < NUM_WAYS; way++) {
		ASSERT_EQ(run("demo_bad_divergent", way, 1, 1, 64, 0, params), -EFAULT);
		ASSERT_STRHAS(error(), "kernel demo_bad_divergent, block (0,0,0), thread (");
		ASSERT_STRHAS(error(), "another barrier");
	}
}

TEST(launches_that_no_device_takes)
{
	float out[64], *p = out;
	void *params[] = { &p };

	load();
	ASSERT_EQ(run("demo_bad_divergent", 0, 1, 1, 65, 0, params), -EINVAL);
	ASSERT_STRHAS(error(), "launch bounds");
	ASSERT_EQ(run("demo_bad_divergent", 0, 0, 1, 64, 0, params), -EINVAL);
	ASSERT_EQ(run("demo_bad_divergent", 0, 1, 1, 0, 0, params), -EINVAL);
	ASSERT_EQ(run("demo_bad_divergent", 0, 1, 1, 64, CUEMU_MAX_SHARED + 1, params), -EINVAL);
	ASSERT_EQ(run("demo_bad_divergent", 0, 1, 1, 64, 0, NULL), -EINVAL);
	ASSERT_STRHAS(error(), "parameter 0");
}
