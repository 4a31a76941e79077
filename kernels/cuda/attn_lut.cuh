/* SPDX-License-Identifier: MIT */
/*
 * Scores from a table of products of query and centroid, values by fragments of tensor
 * cores, for attn_lut.cu. A warp has 32 tokens, half a page, and one or two query vectors;
 * lane = 4 n + l.
 *
 * Keys: a word of the table has products of one code, less those of code 0, as two halves:
 * of both vectors, or of the only one with group g and with group g + half of them. A lane
 * looks up words for the tokens of column n: 4 n + i at step i. A tensor core adds up what
 * the lanes l of a column have found; its other operand is ones where a half counts, zeros
 * else. It says so in every row, so that all lanes n have the sums of tokens 8 l to 8 l + 7.
 *
 * Values: lane n has its share of the channels of the tokens of l. In a product k = 2 l + e
 * are the two channels of a register, and column 2 l + e has the probability of l's token
 * at that k alone: a lane adds up its own channels, each for itself. So lanes may take
 * their groups of channels in any order, and take that in which no two meet in a bank; no
 * register is put in order, and nothing is multiplied twice.
 */
#ifndef CQK_CUDA_ATTN_LUT_CUH
#define CQK_CUDA_ATTN_LUT_CUH

#include "kernels/cuda/attn_frag.cuh"
#include "kernels/cuda/attn_result.cuh"

#define LUTS CQKD_LUT_VECS
#define TILE CQKD_LUT_TOKENS
#define MOST 32768.0f		/* probabilities are not larger */
#define ONE 0x3c00u

/* Where a lane finds what it looks up, and what that is multiplied with. */
struct finding {
	uint32_t codes;		/* of its tokens, in the first group: in a stage */
	uint32_t at;		/* bytes in a row of the table, of that group */
	uint32_t row;		/* bytes of a row */
	uint32_t ones[4];	/* groups of the lower half, then of the upper one */
};

/* Groups, and blocks of four of them in either half. */
template <int d, int c>
struct lookups {
	static const int groups = d / c;
	static const int blocks = groups / 8;
};

/* Words of a row of the table that are not the same again. */
template <int d, int c, bool two>
struct row {
	static const uint32_t words = two ? d / c : d / c / 2;
};

template <int d, int c, bool two>
CQ_DEVICE void finding_init(uint32_t words, struct finding &f)
{
	constexpr uint32_t own = row<d, c, two>::words, blocks = own / 4;
	uint32_t lane = threadIdx.x % 32, n = lane / 4, l = lane % 4;
	uint32_t same = max(min(words, 32u) / own, 1u);

	/* lanes n begin with other blocks of groups, or have copies of their own */
	f.codes = n % blocks * 128 + n / 4 * 64 + l * 16 + n % 4 * 4;
	f.at = (n % blocks * 4 + l + n / blocks % same * own) * 4;
	f.row = words * 4;
	f.ones[0] = ONE;
	f.ones[1] = two ? ONE << 16 : ONE;
	f.ones[2] = two ? ONE : ONE << 16;
	f.ones[3] = ONE << 16;
}

/* Products of a tile's keys: [step][vector * 2 + e] of token 8 l + 4 e + step. */
struct products {
	float at[4][4];
};

template <int d, int c, bool two>
CQ_DEVICE void products_of_codes(const struct finding &f, const uint8_t *codes,
				 const uint8_t *table, struct products &x)
{
	constexpr int blocks = lookups<d, c>::blocks;
	/* registers are too few to have the places of many groups at hand */
	uint32_t first = blocks > 2 ? cq_keep(f.codes) : f.codes;
	uint32_t at0 = blocks > 1 ? cq_keep(f.at) : f.at;
	int i, j, k;

#pragma unroll
	for (j = 0; j < blocks; j++) {
		const uint8_t *at[2];
		uint32_t four[2];

		/* a group of the lower half, and one of the upper */
#pragma unroll
		for (k = 0; k < 2; k++) {
			int group = j + k * blocks;

			four[k] = *(const uint32_t *)(codes + (first ^ group * 128));
			at[k] = table + (at0 ^ (two ? group : j) * 16);
		}
#pragma unroll
		for (i = 0; i < 4; i++) {
			uint32_t b[2];

#pragma unroll
			for (k = 0; k < 2; k++) {
				uint32_t code = __byte_perm(four[k], 0, 0x4440 | i);

				b[k] = *(const uint32_t *)(at[k] + code * f.row);
			}
			cq_mma_16816_f32(x.at[i], f.ones, b);
		}
	}
}

/* The same of rows of an fp16 block, and of queries @q as halves; @live: by token. */
template <int d>
CQ_DEVICE void products_of_rows(const __half *rows, uint32_t live, const __half (*q)[d],
				struct products &x)
{
	uint32_t lane = threadIdx.x % 32, n = lane / 4, l = lane % 4;
	int i, j;

#pragma unroll
	for (i = 0; i < 4; i++) {
		uint32_t token = 4 * n + i;

#pragma unroll 1
		for (j = 0; j < d / 32; j++) {
			uint32_t ch = 32 * j + 8 * l;
			uint4 k = make_uint4(0, 0, 0, 0);
			uint4 q0 = *(const uint4 *)&q[0][ch], q1 = *(const uint4 *)&q[1][ch];
			uint32_t a[2][4] = { { q0.x, q1.x, q0.y, q1.y },
					     { q0.z, q1.z, q0.w, q1.w } };

			if (live >> token & 1)
				k = *(const uint4 *)&rows[(size_t)token * d + ch];
			{
				uint32_t b[2][2] = { { k.x, k.y }, { k.z, k.w } };

				cq_mma_16816_f32(x.at[i], a[0], b[0]);
				cq_mma_16816_f32(x.at[i], a[1], b[1]);
			}
		}
	}
}

/* s -> cap * tanh(s / cap), to base 2. */
CQ_DEVICE void scores_cap(float soft_cap, float x[4][2])
{
	float cap = soft_cap * LOG2E;
	int i;

	/* they change places, so that none is asked for by a number */
#pragma unroll 1
	for (i = 0; i < 8; i++) {
		float y = cap * tanhf(x[0][0] / cap);

		x[0][0] = x[0][1];
		x[0][1] = x[1][0];
		x[1][0] = x[1][1];
		x[1][1] = x[2][0];
		x[2][0] = x[2][1];
		x[2][1] = x[3][0];
		x[3][0] = x[3][1];
		x[3][1] = y;
	}
}

/* A number of as many bits as a half has. */
CQ_DEVICE float bits_of_half(float x)
{
	return __int_as_float((int)(__float_as_uint(x) & 0xffffe000u));
}

/*
 * Sums of vector @v times @line.x and @line.y added are scores, to base 2 and yet without
 * the soft cap. These become probabilities, times 2^P_LIFT unless that would
 * be lost: those of both e as two halves. @see: which of the lane's tokens it sees, unless
 * that is the @whole page.
 */
template <int d>
CQ_DEVICE void softmax(const struct cqkd_attn &p, const struct products &s, int v, float2 line,
		       bool whole, uint32_t see, struct result<d> &r, uint32_t out[4])
{
	float x[4][2];
	int i, e;

	/* a rounded number each, in no later sum: the largest is what others are relative to */
#pragma unroll
	for (i = 0; i < 4; i++)
#pragma unroll
		for (e = 0; e < 2; e++)
			x[i][e] = __fmaf_rn(s.at[i][2 * v + e], line.x, line.y);
	if (p.soft_cap > 0)
		scores_cap(p.soft_cap, x);
	if (!whole) {
#pragma unroll
		for (i = 0; i < 4; i++)
#pragma unroll
			for (e = 0; e < 2; e++)
				x[i][e] = see >> (4 * e + i) & 1 ? x[i][e] : -CQKD_INF;
	}
	for (;;) {
		float sum = 0, top = -CQKD_INF;

#pragma unroll
		for (i = 0; i < 4; i++) {
			/* what is added up is what values are multiplied with */
			float lo = bits_of_half(cq_exp2(x[i][0] - r.low));
			float hi = bits_of_half(cq_exp2(x[i][1] - r.low));

			out[i] = h2_bits(__floats2half2_rn(lo, hi));
			sum += lo + hi;
		}
		if (!__any_sync(0xffffffffu, sum > MOST)) {
			r.l += sum;
			break;
		}
#pragma unroll
		for (i = 0; i < 4; i++)
			top = fmaxf(top, fmaxf(x[i][0], x[i][1]));
		result_fade<1, 4>(top, r);	/* those of its tokens */
	}
}

/* Where a lane finds its values: units of channels, of one group each. */
template <int d, int c>
struct units {
	static const int words = c / 2;		/* registers */
	static const int n = d / 8 / c;		/* of a lane */
	static const int wide = 64 / c;		/* that are in different banks */
};

/*
 * Unit @s of a lane. Of lanes that read at once, which have four l and wide / 4 of n, no two
 * are in one bank.
 */
template <int d, int c>
CQ_DEVICE uint32_t unit_of_lane(uint32_t lane, uint32_t s)
{
	constexpr uint32_t near = units<d, c>::wide / 4;
	uint32_t n = lane / 4, l = lane % 4, z = n / near + 8 / near * s;

	return z / 4 * units<d, c>::wide + (l ^ z % 4) * near + n % near;
}

/* Two tokens' registers of all units of a lane. */
template <int d>
struct pair {
	uint32_t x[2][d / 16];
};

/* How a probability of two becomes an operand: by lane twice, once, or as zeros. */
struct column {
	uint32_t lo, hi;	/* selectors of bytes */
};

CQ_DEVICE struct column column_of_lane()
{
	uint32_t lane = threadIdx.x % 32, n = lane / 4, l = lane % 4;

	if (n / 2 != l)
		return { 0x4444, 0x4444 };
	return n % 2 ? column{ 0x1044, 0x3244 } : column{ 0x4410, 0x4432 };
}

/* Probabilities of two tokens times their values. */
template <int d, int c>
CQ_DEVICE void pair_add(const struct pair<d> &v, uint32_t prob, struct column col,
			struct result<d> &r)
{
	uint32_t b[2] = { __byte_perm(prob, 0, col.lo), __byte_perm(prob, 0, col.hi) };
	int x;

#pragma unroll
	for (x = 0; x < d / 32; x++) {
		uint32_t a[4] = { v.x[0][2 * x], v.x[0][2 * x + 1], v.x[1][2 * x],
				  v.x[1][2 * x + 1] };

		if (c < 8) {
			cq_mma_16816_f32(r.o[x], a, b);
			continue;
		}
		/* four registers that were loaded at once are those of two products */
		cq_mma_1688_f32(r.o[x], a, b);
		cq_mma_1688_f32(r.o[x], a + 2, b + 1);
	}
}

/* Values of a tile, of tokens 8 l + i and 8 l + 4 + i at step @i. */
template <int d, int c>
CQ_DEVICE void values_of_codes(const uint8_t *book, const uint8_t *codes, uint32_t lane, int i,
			       struct pair<d> &v)
{
	constexpr int words = units<d, c>::words;
	uint32_t l = lane % 4, s;

#pragma unroll
	for (s = 0; s < units<d, c>::n; s++) {
		uint32_t unit = unit_of_lane<d, c>(lane, s);
		uint2 eight = *(const uint2 *)(codes + unit / 4 * 128 + l / 2 * 64 + unit % 4 * 16 +
					       l % 2 * 8);
		uint32_t at = unit * c * 2;

		unit_load<words>(&v.x[0][s * words], book + row_at<d>(eight.x, i, at));
		unit_load<words>(&v.x[1][s * words], book + row_at<d>(eight.y, i, at));
	}
}

/* The same of rows of an fp16 block; tokens that nobody sees are zero. */
template <int d, int c>
CQ_DEVICE void values_of_rows(const __half *rows, uint32_t live, int i, struct pair<d> &v)
{
	constexpr int words = units<d, c>::words;
	uint32_t lane = threadIdx.x % 32, e, s, w;

#pragma unroll
	for (e = 0; e < 2; e++) {
		uint32_t token = lane % 4 * 8 + 4 * e + i;

#pragma unroll
		for (s = 0; s < units<d, c>::n; s++) {
			uint32_t *x = &v.x[e][s * words];

			if (live >> token & 1)
				unit_load<words>(x, rows + (size_t)token * d +
						    unit_of_lane<d, c>(lane, s) * c);
			else
				for (w = 0; w < words; w++)
					x[w] = 0;
		}
	}
}

/* A warp's results of a vector: its lanes' sums, of the tokens of each l in turn. */
template <int d, int c>
CQ_DEVICE void result_put(const struct result<d> &r, float *o)
{
	constexpr int words = units<d, c>::words;
	uint32_t lane = threadIdx.x % 32, l;
	int w, e;

#pragma unroll 1
	for (l = 0; l < 4; l++) {
#pragma unroll
		for (w = 0; w < d / 16; w++) {
			uint32_t ch = unit_of_lane<d, c>(lane, w / words) * c + w % words * 2;

#pragma unroll
			for (e = 0; e < 2 && lane % 4 == l; e++)
				o[ch + e] = (l ? o[ch + e] : 0) + r.o[w / 2][w % 2 * 2 + e];
		}
		__syncwarp();
	}
}

#endif /* CQK_CUDA_ATTN_LUT_CUH */
