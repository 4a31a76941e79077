// SPDX-License-Identifier: MIT
/*
 * The emulation of CUDA: kernels that are right give the right results in
 * every order of their threads, also where each access is watched.
 */
#include "tests/harness.h"

#include "kernels/f16.h"
#include "tests/emu/cuemu_rig.h"

#define EMU "libcuemu_demo.so"
#define RACE "libcuemu_demo_race.so"

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

static void rmsnorm(const char *lib)
{
	enum { ROWS = 5, N = 200 };
	static uint16_t x[ROWS * N], gain[N], y[ROWS * N];
	uint16_t *px = x, *pg = gain, *py = y;
	float eps = 1e-5f;
	int n = N, row, i;
	void *params[] = { &py, &px, &pg, &n, &eps };
	size_t way;

	emu_load(lib);
	fill(x, ROWS * N, 1);
	fill(gain, N, 2);
	for (way = 0; way < EMU_WAYS; way++) {
		memset(y, 0xff, sizeof(y));
		ASSERT_OK(emu_run("demo_rmsnorm", way, ROWS, 1, 128, 0, params));
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

static void gemm(const char *lib)
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

	emu_load(lib);
	fill(a, M * K, 3);
	fill(b, K * N, 4);
	for (way = 0; way < EMU_WAYS; way++) {
		memset(c, 0xff, sizeof(c));
		ASSERT_OK(emu_run("demo_gemm", way, N / 64, M / 64, 128, shared, params));
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

TEST(rmsnorm_emulated) { rmsnorm(EMU); }
TEST(rmsnorm_watched) { rmsnorm(RACE); }
TEST(gemm_emulated) { gemm(EMU); }
TEST(gemm_watched) { gemm(RACE); }

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

	emu_load(EMU);
	k = emu_find("demo_params");
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
	ASSERT_OK(emu_run("demo_params", 0, 1, 1, 32, 0, params));
	ASSERT_EQ(out[0], 3);
	ASSERT_EQ(out[1], 60000);
	ASSERT_NEAR(out[2], 0.5, 0);
	ASSERT_EQ(out[3], -7);
	ASSERT(!emu_find("demo_none"));
}

TEST(launches_that_no_device_takes)
{
	float out[64], *p = out;
	uint32_t one = 1;
	void *params[] = { &p, &one };

	emu_load(EMU);
	ASSERT_EQ(emu_run("wrong_divergent", 0, 1, 1, 65, 0, params), -EINVAL);
	ASSERT_STRHAS(emu_error(), "launch bounds");
	ASSERT_EQ(emu_run("wrong_divergent", 0, 0, 1, 64, 0, params), -EINVAL);
	ASSERT_EQ(emu_run("wrong_divergent", 0, 1, 1, 0, 0, params), -EINVAL);
	ASSERT_EQ(emu_run("wrong_divergent", 0, 1, 1, 64, CUEMU_MAX_SHARED + 1, params), -EINVAL);
	ASSERT_EQ(emu_run("wrong_divergent", 0, 1, 1, 64, 0, NULL), -EINVAL);
	ASSERT_STRHAS(emu_error(), "parameter 0");
}

static uint32_t bits(uint32_t (*op)(uint32_t, uint32_t), const uint32_t *v)
{
	uint32_t all = v[0], i;

	for (i = 1; i < 32; i++)
		all = op(all, v[i]);
	return all;
}

static uint32_t add(uint32_t a, uint32_t b) { return a + b; }
static uint32_t least(uint32_t a, uint32_t b) { return (int32_t)a < (int32_t)b ? a : b; }
static uint32_t most(uint32_t a, uint32_t b) { return a > b ? a : b; }
static uint32_t flip(uint32_t a, uint32_t b) { return a ^ b; }

static uint32_t ballot(const uint32_t *v, uint32_t mask, uint32_t value, uint32_t from,
		       uint32_t to)
{
	uint32_t r = 0, i;

	for (i = from; i < to; i++)
		r |= (uint32_t)((v[i] & mask) == value) << i;
	return r;
}

/* What right_lanes must give lane @i as result @op. */
static uint32_t lanes_want(const uint32_t *v, uint32_t op, uint32_t i)
{
	switch (op) {
	case 0: return v[(i + 3) % 32];
	case 1: return v[i ^ 5];
	case 2: return v[i + 3 < 32 ? i + 3 : i];
	case 3: return v[i >= 3 ? i - 3 : i];
	case 4: return v[i / 8 * 8 + 1];
	case 5: return v[i % 8 + 3 < 8 ? i + 3 : i];
	case 6: return v[i % 8 >= 3 ? i - 3 : i];
	case 7: return ballot(v, 1, 1, 0, 32);
	case 8: return 1;
	case 9: return ballot(v, 3, v[i] & 3, 0, 32);
	case 10: return ~0u + 1;
	case 11: return bits(add, v);
	case 12: return bits(least, v);
	case 13: return bits(most, v);
	case 14: return bits(flip, v);
	case 15: return i < 16 ? v[i ^ 1] : ballot(v, 1, 1, 16, 32);
	case 16: return v[i ^ 1];
	default: return v[i < 2 ? i ^ 1 : i];
	}
}

TEST(lanes)
{
	enum { OPS = 18 };
	uint32_t in[32], out[OPS * 32], *pi = in, *po = out, i, seed = 7;
	void *params[] = { &po, &pi };
	struct cuemu_launch_args args = { .grid = { 1, 1, 1 }, .block = { 32, 1, 1 } };

	emu_load(EMU);
	for (i = 0; i < 32; i++) {
		seed = seed * 1664525 + 1013904223;
		in[i] = seed ^ seed >> 15;
	}
	args.params = params;
	/* who comes first decides which groups of lanes wait side by side */
	for (args.seed = 0; args.seed < 40; args.seed++) {
		args.order = args.seed < 2 ? (uint32_t)args.seed : CUEMU_RANDOM;
		memset(out, 0xff, sizeof(out));
		ASSERT_OK(emu_launch(emu_find("right_lanes"), &args));
		for (i = 0; i < OPS * 32; i++)
			if (out[i] != lanes_want(in, i / 32, i % 32))
				FAIL("operation %u, lane %u: %#x, want %#x", i / 32, i % 32,
				     out[i], lanes_want(in, i / 32, i % 32));
	}
}

static void atomics(const char *lib)
{
	enum { BLOCKS = 9, N = BLOCKS * 128 };
	size_t way;

	emu_load(lib);
	for (way = 0; way < EMU_WAYS; way++) {
		uint32_t words[8] = { [2] = UINT32_MAX }, *pw = words;
		float sum = 0, *ps = &sum;
		unsigned long long wide = 0, *pl = &wide;
		void *params[] = { &pw, &ps, &pl };

		ASSERT_OK(emu_run("right_atomics", way, BLOCKS, 1, 128, 0, params));
		ASSERT_EQ(words[0], N * (N - 1) / 2);
		ASSERT_EQ(words[1], N - 1);
		ASSERT_EQ(words[2], 0);
		ASSERT_EQ(words[3], 0);
		ASSERT_EQ(words[4], 2047);
		ASSERT_EQ(words[5], N % 100);
		ASSERT_EQ(words[6], BLOCKS);
		ASSERT_EQ(words[7], 128);
		ASSERT_NEAR(sum, N / 2, 0);
		ASSERT_EQ(wide, (unsigned long long)N << 33);
	}
}

TEST(atomics_emulated) { atomics(EMU); }
TEST(atomics_watched) { atomics(RACE); }

/* Nearest value with @mant bits of fraction, exponents from @low on, ties to even. */
static double nearest(double x, int mant, int low)
{
	int e;

	if (!(fabs(x) < INFINITY) || x == 0)
		return x;
	frexp(x, &e);
	e = e - 1 < low ? low : e - 1;
	return ldexp(nearbyint(ldexp(x, mant - e)), e - mant);
}

static double nearest_half(double x)
{
	x = nearest(x, 10, -14);
	return fabs(x) > 65504 ? copysign(INFINITY, x) : x;
}

static double nearest_bf16(double x)
{
	x = nearest(x, 7, -126);
	return fabs(x) > 0x1.fep127 ? copysign(INFINITY, x) : x;
}

static void same(const char *what, int i, double got, double want)
{
	if (isnan(want) ? !isnan(got) : got != want || signbit(got) != signbit(want))
		FAIL("%s of %d: %a, want %a", what, i, got, want);
}

static double half_of(uint16_t h)
{
	return (double)cqk_f16_to_f32(h);
}

static double bf16_of(uint16_t h)
{
	return (double)cqk_bf16_to_f32(h);
}

/* Every half, each with partners that make ties, overflows and subnormals. */
TEST_LIMIT(halves, 60)
{
	enum { N = 65536 };
	uint16_t *in = malloc(3 * N * 2), *out = malloc(10 * N * 2);
	float *x = malloc(N * 4), *wide = malloc(2 * N * 4);
	uint32_t seed = 11;
	int n = N, i;
	void *params[] = { &out, &wide, &in, &x, &n };

	emu_load(EMU);
	for (i = 0; i < N; i++) {
		in[i] = (uint16_t)i;
		in[N + i] = (uint16_t)((seed = seed * 1664525 + 1013904223) >> 16);
		in[2 * N + i] = (uint16_t)((seed = seed * 1664525 + 1013904223) >> 16);
		/* half way between two halves or two bf16, or a bit beside that */
		x[i] = cqk_bits_f32(cqk_f32_bits(i & 1 ? cqk_bf16_to_f32((uint16_t)i) :
						 cqk_f16_to_f32((uint16_t)i)) +
				    (i & 1 ? 0x8000 : 0x1000) + (uint32_t)(i >> 3) % 3 - 1);
	}
	ASSERT_OK(emu_run("right_halves", 0, N / 64, 1, 64, 0, params));
	for (i = 0; i < N; i++) {
		double a = half_of(in[i]), b = half_of(in[N + i]), c = half_of(in[2 * N + i]);
		const uint16_t *o = out + 10 * i;

		same("value of half", i, wide[2 * i], a);
		same("value of bf16", i, wide[2 * i + 1], bf16_of(in[i]));
		same("half", i, half_of(o[0]), nearest_half(x[i]));
		same("hadd", i, half_of(o[1]), nearest_half(a + b));
		same("hmul", i, half_of(o[2]), nearest_half(a * b));
		same("hfma", i, half_of(o[3]), nearest_half(a * b + c));
		same("hfma2, low", i, half_of(o[4]), nearest_half(a * b + c));
		same("hfma2, high", i, half_of(o[5]), nearest_half(a * b + c));
		same("hmax", i, half_of(o[6]), fmax(a, b));
		same("bf16", i, bf16_of(o[7]), nearest_bf16(x[i]));
		same("bf16 sum", i, bf16_of(o[8]),
		     nearest_bf16(bf16_of(in[i]) + bf16_of(in[N + i])));
		same("half of float2", i, half_of(o[9]), half_of(o[4]));
		if (isnan(a + b))
			ASSERT_EQ(o[1], 0x7fff);	/* the only NaN a device makes */
	}
	free(in);
	free(out);
	free(x);
	free(wide);
}

/* The same bits as NVIDIA's headers, NaN included; nothing to do without those. */
TEST_LIMIT(halves_as_nvidia_has_them, 60)
{
	enum { N = 65536 };
	uint16_t *halves = malloc(N * 2), *bf16 = malloc(N * 2), *doubles = malloc(N * 2);
	float *values = malloc(N * 4), *x = malloc(N * 4), v;
	uint16_t (*half)(float x), (*nv_bf16)(float x);
	uint16_t (*of_double)(double x);
	float (*value)(uint16_t bits);
	int n = N, i, round;
	void *params[] = { &halves, &bf16, &doubles, &values, &x, &n };
	uint32_t seed = 31;

	emu_load(EMU);
	if (!dlsym(emu_lib, "nvidia_half"))
		return;
	*(void **)&half = emu_symbol("nvidia_half");
	*(void **)&nv_bf16 = emu_symbol("nvidia_bf16");
	*(void **)&of_double = emu_symbol("nvidia_half_of_double");
	*(void **)&value = emu_symbol("nvidia_half_value");
	for (round = 0; round < 8; round++) {
		/* each half but the last bits, which decide; then anything at all */
		for (i = 0; i < N; i++)
			x[i] = cqk_bits_f32(round > 5 ? seed = seed * 1664525 + 1013904223 :
					    cqk_f32_bits(cqk_f16_to_f32((uint16_t)i)) +
					    (uint32_t)(round - 2) + (round & 1 ? 0x1000 : 0));
		ASSERT_OK(emu_run("right_conversions", 0, N / 64, 1, 64, 0, params));
		for (i = 0; i < N; i++) {
			ASSERT_EQ(halves[i], half(x[i]));
			ASSERT_EQ(bf16[i], nv_bf16(x[i]));
			ASSERT_EQ(doubles[i], of_double((double)x[i] * (1 + 0x1p-40)));
			v = value((uint16_t)i);
			ASSERT_EQ(cqk_f32_bits(values[i]), cqk_f32_bits(v));
		}
	}
	free(halves);
	free(bf16);
	free(doubles);
	free(values);
	free(x);
}

static void mma_case(int k, int bf16)
{
	uint16_t a[16 * 16], b[16 * 8], *pa = a, *pb = b;
	double (*of)(uint16_t) = bf16 ? bf16_of : half_of;
	float d[16 * 8], want[16 * 8], *pd = d;
	void *params[] = { &pd, &pa, &pb, &k, &bf16 };
	int i, row, col;
	size_t way;

	fill(a, (size_t)(16 * k), 21);
	fill(b, (size_t)(k * 8), 22);
	for (i = 0; bf16 && i < 16 * k; i++)
		a[i] = cqk_f32_to_bf16(cqk_f16_to_f32(a[i]));
	for (i = 0; bf16 && i < k * 8; i++)
		b[i] = cqk_f32_to_bf16(cqk_f16_to_f32(b[i]));
	for (row = 0; row < 16; row++)
		for (col = 0; col < 8; col++) {
			double sum = row - col;

			for (i = 0; i < k; i++)
				sum += of(a[row * k + i]) * of(b[i * 8 + col]);
			want[row * 8 + col] = (float)sum;
		}
	for (way = 0; way < EMU_WAYS; way++) {
		for (i = 0; i < 16 * 8; i++)
			d[i] = (float)(i / 8 - i % 8);
		ASSERT_OK(emu_run("right_mma", way, 1, 1, 32, 0, params));
		for (i = 0; i < 16 * 8; i++)
			ASSERT_NEAR(d[i], want[i], 1e-5);
	}
}

TEST(mma)
{
	emu_load(EMU);
	mma_case(16, 0);
	mma_case(16, 1);
	mma_case(8, 0);
	emu_load(RACE);
	mma_case(16, 0);
}

TEST(movmatrix)
{
	uint16_t in[64], out[64], *pi = in, *po = out;
	void *params[] = { &po, &pi };
	size_t way;
	int i;

	emu_load(EMU);
	fill(in, 64, 23);
	for (way = 0; way < EMU_WAYS; way++) {
		ASSERT_OK(emu_run("right_movmatrix", way, 1, 1, 32, 0, params));
		for (i = 0; i < 64; i++)
			ASSERT_EQ(out[i], in[i % 8 * 8 + i / 8]);
	}
}

TEST(copies_and_barriers_of_a_warp)
{
	uint32_t in[64][4], out[192][4], i;
	void *pi = in, *po = out, *params[] = { &po, &pi };
	size_t way;

	for (i = 0; i < 64; i++)
		in[i][0] = in[i][1] = in[i][2] = in[i][3] = i + 1;
	for (way = 0; way < 2 * EMU_WAYS; way++) {
		emu_load(way % 2 ? RACE : EMU);
		memset(out, 0xff, sizeof(out));
		ASSERT_OK(emu_run("right_copies", way / 2, 1, 1, 64, 2048, params));
		for (i = 0; i < 64; i++) {
			ASSERT_EQ(out[i][3], 64 - i);
			ASSERT_EQ(out[64 + i][0], (63 - i) % 2 ? 0 : 64 - i);
		}
		ASSERT_OK(emu_run("right_syncwarp", way / 2, 1, 1, 64, 0, params));
		for (i = 0; i < 192; i++)
			ASSERT_EQ(out[i / 4][i % 4], (i % 64 ^ 7) + i / 64);
	}
}

static void named_barriers(const char *lib)
{
	uint32_t out[5 * 64], *po = out, i;
	void *params[] = { &po };
	size_t way;

	emu_load(lib);
	for (way = 0; way < EMU_WAYS; way++) {
		memset(out, 0xff, sizeof(out));
		ASSERT_OK(emu_run("right_named", way, 1, 1, 128, 0, params));
		for (i = 0; i < 5 * 64; i++)
			ASSERT_EQ(out[i], i / 64 * 100 + 63 - i % 64);
	}
}

TEST(named_barriers_emulated) { named_barriers(EMU); }
TEST(named_barriers_watched) { named_barriers(RACE); }

static void bulk_copies(const char *lib)
{
	enum { N = 7 };
	_Alignas(16) uint32_t in[N * 64][4];
	uint32_t out[96], *po = out, n = N, i, want, all = 0, seed = 3;
	void *pi = in, *params[] = { &po, &pi, &n };
	size_t way;

	for (i = 0; i < N * 64 * 4; i++)
		in[i / 4][i % 4] = seed = seed * 1664525 + 1013904223;
	for (want = i = 0; i < N * 64; i++)
		want += in[i][0] + in[i][3];
	emu_load(lib);
	for (way = 0; way < EMU_WAYS; way++) {
		memset(out, 0xff, sizeof(out));
		ASSERT_OK(emu_run("right_bulk", way, 3, 1, 128, 2080, params));
		for (all = i = 0; i < 96; i++)
			all += out[i];
		ASSERT_EQ(all, want);
	}
}

TEST(bulk_copies_emulated) { bulk_copies(EMU); }
TEST(bulk_copies_watched) { bulk_copies(RACE); }

/* Columns side by side in @b (@trans), or their terms. */
static void wgmma_case(uint32_t trans)
{
	static uint16_t a[64 * 64], b[64 * 64];
	static float d[64 * 64], first[64 * 64];
	uint16_t *pa = a, *pb = b;
	float *pd = d, *pf = first;
	void *params[] = { &pd, &pf, &pa, &pb, &trans };
	uint32_t row, col, i;
	size_t way;

	fill(a, 64 * 64, 31);
	fill(b, 64 * 64, 32 + trans);
	for (way = 0; way < EMU_WAYS; way++) {
		memset(d, 0xff, sizeof(d));
		memset(first, 0xff, sizeof(first));
		ASSERT_OK(emu_run("right_wgmma", way, 1, 1, 128, 8192, params));
		for (row = 0; row < 64; row++)
			for (col = 0; col < 64; col++) {
				double sum = 0, sixteen = 0;

				for (i = 0; i < 64; i++) {
					sum += half_of(a[row * 64 + i]) *
					       half_of(b[trans ? i * 64 + col : col * 64 + i]);
					if (i == 15)
						sixteen = sum;
				}
				ASSERT_NEAR(d[row * 64 + col], 1 + sum, 1e-4);
				ASSERT_NEAR(first[row * 64 + col], sixteen, 1e-4);
			}
	}
}

static void wgmma(const char *lib)
{
	emu_load(lib);
	wgmma_case(0);
	wgmma_case(1);
}

TEST(wgmma_emulated) { wgmma(EMU); }
TEST(wgmma_watched) { wgmma(RACE); }

/* After each round a thread has what its neighbour in the block before had. */
TEST(clusters)
{
	static float out[3 * 4][64][2];
	void *po = out, *params[] = { &po, &(uint32_t){ 0 } };
	uint32_t rounds, b, i;
	size_t way;

	for (way = 0; way < 2 * EMU_WAYS; way++) {
		rounds = 1 + way % 5;
		params[1] = &rounds;
		emu_load(way % 2 ? RACE : EMU);
		memset(out, 0xff, sizeof(out));
		ASSERT_OK(emu_run("right_cluster", way / 2, 4, 3, 64, 1024, params));
		for (b = 0; b < 4; b++)
			for (i = 0; i < 64; i++) {
				ASSERT_EQ(out[b][i][0], (b + 4 - rounds % 4) % 4);
				ASSERT_EQ(out[b][i][1], rounds % 2 ? i ^ 1 : i);
			}
	}
}

/* Launches from several threads of the process, and from a child of fork(). */
TEST(a_child_launches_too)
{
	int status;
	pid_t pid;

	atomics(EMU);
	pid = fork();
	if (!pid) {
		atomics(EMU);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

static void order(uint32_t out[4][64], uint32_t how, uint32_t threads, uint64_t seed)
{
	uint32_t *po = out[0];
	void *params[] = { &po };
	const struct cuemu_launch_args args = {
		.grid = { 4, 1, 1 },
		.block = { 64, 1, 1 },
		.threads = threads,
		.order = how,
		.seed = seed,
		.params = params,
	};

	ASSERT_OK(emu_launch(emu_find("right_order"), &args));
}

TEST(orders_of_threads)
{
	uint32_t a[4][64], b[4][64], i;

	emu_load(EMU);
	order(a, CUEMU_FORWARD, 1, 0);
	order(b, CUEMU_REVERSE, 1, 0);
	/* who came last to the barrier is the first behind it, then its warp, then the other */
	ASSERT_EQ(a[3][0], 63);
	ASSERT_EQ(b[3][0], 32);
	for (i = 1; i < 64; i++) {
		ASSERT_EQ(a[3][i], i < 32 ? 31 + i : i - 32);
		ASSERT_EQ(b[3][i], i < 32 ? 64 - i : 63 - i);
	}
	order(a, CUEMU_RANDOM, 1, 5);
	order(b, CUEMU_RANDOM, 3, 5);
	ASSERT_MEMEQ(a, b, sizeof(a));
	ASSERT(memcmp(a[0], a[1], sizeof(a[0])));
	order(b, CUEMU_RANDOM, 1, 6);
	ASSERT(memcmp(a, b, sizeof(a)));
}
