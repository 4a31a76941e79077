// SPDX-License-Identifier: MIT
/* Checksums on the (emulated) GPU, against libxxhash. */
#include <xxhash.h>
#include "tests/harness.h"
#include "tests/kernels/toy.h"
#include "tests/kernels/gpu.h"

#define MAX_JOBS 40

/* Hashes payloads of those sizes, each at its own address, and compares. */
static void check_sizes(struct gpu *g, const uint32_t *sizes, uint32_t n)
{
	struct cqkd_check jobs[MAX_JOBS];
	uint8_t *data[MAX_JOBS];
	uint32_t i, c, most = 0;
	cqcu_ptr at;

	ASSERT(n <= MAX_JOBS);
	for (i = 0; i < n; i++) {
		data[i] = toy_alloc(sizes[i]);
		for (c = 0; c < sizes[i]; c++)
			data[i][c] = (uint8_t)(toy_u32() >> 9);
		jobs[i] = (struct cqkd_check){
			.data = gpu_put(g, data[i], sizes[i]), .bytes = sizes[i],
			.out = gpu_alloc(g, sizes[i] / 4096 * 8 + 16, 0xa5),
		};
		most = MAX(most, sizes[i]);
	}
	at = gpu_put(g, jobs, n * sizeof(jobs[0]));
	if (cqk_cuda_check(g->k, at, gpu_put(g, &n, 4), n + 1, most, g->stream, &g->err))
		FAIL("%s", g->err.text);
	for (i = 0; i < n; i++) {
		uint32_t chunks = (sizes[i] + 4095) / 4096;
		uint64_t *got = toy_alloc((chunks + 1) * 8);

		gpu_get(g, got, jobs[i].out, (chunks + 1) * 8);
		for (c = 0; c < chunks; c++) {
			uint32_t left = MIN(sizes[i] - c * 4096, 4096u);

			if (got[c] != XXH3_64bits(data[i] + c * 4096, left))
				FAIL("%u bytes, chunk %u", sizes[i], c);
		}
		ASSERT_EQ(got[chunks], 0xa5a5a5a5a5a5a5a5ull);
		free(got);
		free(data[i]);
	}
	gpu_reset(g);
}

TEST(every_short_length)
{
	uint32_t sizes[MAX_JOBS], at, i;
	struct gpu g;

	gpu_open(&g);
	for (at = 1; at < 321; at += MAX_JOBS) {
		for (i = 0; i < MAX_JOBS; i++)
			sizes[i] = at + i;
		check_sizes(&g, sizes, MAX_JOBS);
	}
	gpu_close(&g);
}

TEST(lengths_around_stripes_and_blocks)
{
	static const uint32_t sizes[] = {
		0, 511, 512, 513, 1023, 1024, 1025, 1087, 1088, 1089, 2047, 2048, 2049, 3071, 3072,
		3073, 4032, 4033, 4095, 4096,
	};
	struct gpu g;

	gpu_open(&g);
	check_sizes(&g, sizes, ARRAY_SIZE(sizes));
	gpu_close(&g);
}

TEST(payloads_of_many_chunks)
{
	static const uint32_t sizes[] = { 16 * 4096, 17 * 4096 + 64, 40000, 4096 + 192, 100 };
	struct gpu g;

	gpu_open(&g);
	check_sizes(&g, sizes, ARRAY_SIZE(sizes));
	gpu_close(&g);
}

TEST(bad_arguments)
{
	uint32_t zero = 0;
	cqcu_ptr jobs, n;
	struct gpu g;

	gpu_open(&g);
	jobs = gpu_alloc(&g, 64, 0);
	n = gpu_put(&g, &zero, 4);
	ASSERT_EQ(cqk_cuda_check(g.k, jobs + 4, n, 1, 64, g.stream, &g.err), -EINVAL);
	ASSERT_EQ(cqk_cuda_check(g.k, jobs, (uintptr_t)&zero, 1, 64, g.stream, &g.err), -EINVAL);
	ASSERT_EQ(cqk_cuda_check(g.k, jobs, n, 100000, 64, g.stream, &g.err), -EINVAL);
	ASSERT_EQ(cqk_cuda_check(g.k, jobs, n, 1, UINT64_MAX, g.stream, &g.err), -EINVAL);
	ASSERT_EQ(cqk_cuda_check(g.k, jobs, n, 0, 64, g.stream, &g.err), 0);
	ASSERT_EQ(cqk_cuda_check(g.k, jobs, n, 1, 64, g.stream, &g.err), 0);
	gpu_close(&g);
}

/* Headers from anywhere, in the order that was asked for, and nothing behind them. */
TEST(headers_gathered)
{
	static const uint32_t counts[] = { 1, 3, 31, 32, 33, 300 };
	uint8_t *slots = toy_alloc(300 * 192), *got = toy_alloc(301 * CQKD_HEADER);
	uint64_t from[300];
	uint32_t i, c;
	struct gpu g;

	gpu_open(&g);
	for (i = 0; i < 300 * 192; i++)
		slots[i] = (uint8_t)(toy_u32() >> 9);
	for (c = 0; c < ARRAY_SIZE(counts); c++) {
		cqcu_ptr at = gpu_put(&g, slots, 300 * 192), list, to;

		for (i = 0; i < counts[c]; i++)
			from[i] = at + i * 7 % 300 * 192;
		list = gpu_put(&g, from, sizeof(from));
		to = gpu_alloc(&g, 301 * CQKD_HEADER, 0xa5);
		if (cqk_cuda_gather(g.k, list, to, counts[c], g.stream, &g.err))
			FAIL("%s", g.err.text);
		gpu_get(&g, got, to, 301 * CQKD_HEADER);
		for (i = 0; i < counts[c]; i++)
			ASSERT_MEMEQ(got + i * CQKD_HEADER, slots + i * 7 % 300 * 192, CQKD_HEADER);
		for (i = 0; i < CQKD_HEADER; i++)
			ASSERT_EQ(got[counts[c] * CQKD_HEADER + i], 0xa5);
		ASSERT_EQ(cqk_cuda_gather(g.k, list, to, 0, g.stream, &g.err), 0);
		ASSERT_EQ(cqk_cuda_gather(g.k, list + 4, to, 1, g.stream, &g.err), -EINVAL);
		ASSERT_EQ(cqk_cuda_gather(g.k, list, to + 8, 1, g.stream, &g.err), -EINVAL);
		ASSERT_EQ(cqk_cuda_gather(g.k, (uintptr_t)from, to, 1, g.stream, &g.err), -EINVAL);
		gpu_reset(&g);
	}
	gpu_close(&g);
	free(slots);
	free(got);
}
