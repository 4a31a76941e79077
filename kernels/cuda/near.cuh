/* SPDX-License-Identifier: MIT */
/*
 * Codes of many tokens. Tensor cores compute how far a token is from each centroid, and an
 * error is known that they do not exceed (near.h says why): the centroids which are within
 * it of the least are looked at again, as encode.cuh does.
 *
 * A warp has 16 tokens, as rows of a product whose columns are 8 centroids. Of the latter
 * a lane has the same in 32 products, of two tokens; the four lanes of a quad have all 256.
 * Eight that follow each other are in one lane: it keeps the least of them, a block, and if
 * that is near enough, the quad looks at the whole block again.
 */
#ifndef CQK_CUDA_NEAR_CUH
#define CQK_CUDA_NEAR_CUH

#include "kernels/cuda/encode.cuh"

#define BLOCK 8			/* centroids */
#define BLOCKS (CQKD_CENTROIDS / BLOCK / 4)	/* of a lane */
#define TILE 16			/* tokens */

/* Registers that a lane has of a product's columns, two of every eight in each. */
#define PARTS(c) (CQKD_NEAR_COLUMNS(c) / 8)

/**
 * struct near - a group's centroids as columns of products
 * @b:     fragments, product by product
 * @at:    channels of x that are in this lane's two columns
 * @keep:  all of their bits, or none
 * @flip:  their signs, or what is there in place of channels
 */
template <int c>
struct near {
	uint32_t b[CQKD_CENTROIDS / 8][PARTS(c)];
	uint32_t at[PARTS(c)], keep[PARTS(c)], flip[PARTS(c)];
};

/* A register of each product; centroids are @stride words apart. */
template <int c, int stride>
CQ_DEVICE void columns_from(const uint32_t *from, uint32_t part, struct near<c> &n)
{
	uint32_t i, q;

	from += threadIdx.x % 32 / 4 * 4 * stride;
#pragma unroll
	for (q = 0; q < BLOCKS; q++, from += 32 * stride) {
#pragma unroll
		for (i = 0; i < 4; i++)
			n.b[4 * q + i][part] = __ldg(from + i * stride);
	}
}

/* Columns are channels, the squared length, the rest of channels, and then nothing. */
template <int c>
CQ_DEVICE void columns_load(const struct put &w, uint32_t group, uint32_t part, struct near<c> &n)
{
	uint32_t one = __ldg(&cqkd_ptr<const struct cqkd_bound>(w.near->bound)[group].one);
	uint32_t first = group * CQKD_CENTROIDS;
	const uint32_t *top = cqkd_ptr<const uint32_t>(w.near->top) + first * (c / 2);
	const uint32_t *rest = cqkd_ptr<const uint32_t>(w.near->rest) +
			       first * CQKD_NEAR_REST(c);
	const uint32_t *tail = cqkd_ptr<const uint32_t>(w.near->tail) + first;
	uint32_t pair = 4 * part + threadIdx.x % 4, more = pair - c / 2 - 1;
	bool is_top = pair < c / 2, is_rest = more < CQKD_NEAR_REST(c) && w.near->rest;

	n.at[part] = is_top ? 2 * pair : is_rest ? 2 * more : 0;
	n.keep[part] = is_top || is_rest ? ~0u : 0;
	n.flip[part] = is_top || is_rest ? 0x80008000u : pair == c / 2 ? one : 0;
	/* what x has nothing for is multiplied with zero */
	if (c == 2)
		columns_from<c, 1>(is_top ? top + pair : is_rest ? rest + more : tail, part, n);
	else if (is_top)
		columns_from<c, c / 2>(top + pair, part, n);
	else if (CQKD_NEAR_REST(c) > 1 && is_rest)
		columns_from<c, CQKD_NEAR_REST(c)>(rest + more, part, n);
	else
		columns_from<c, 1>(is_rest ? rest + more : tail, part, n);
}

template <int c>
CQ_DEVICE void near_product(float d[4], const uint32_t *a, const uint32_t *b, const float *more)
{
	if constexpr (PARTS(c) == 2)
		cq_mma_16816_sum(d, a, b, more);
	else
		cq_mma_1688_sum(d, a, b, more);
}

/* |x|; 16 where the product may take x for zero. */
CQ_DEVICE uint32_t magnitude(uint32_t x)
{
	__half2 h, least = __float2half2_rn(0x1p-14f);

	x &= 0x7fff7fffu;
	memcpy(&h, &x, sizeof(h));
	h = __hfma2(__hlt2(h, least), __float2half2_rn(16.0f), h);
	memcpy(&x, &h, sizeof(x));
	return x;
}

/* No number here is negative, so as integers they are in the same order. */
CQ_DEVICE int bits_least(int a, float b, float c)
{
	return cq_least(a, __float_as_int(b), __float_as_int(c));
}

/* What lanes have of two tokens, rows lane / 4 and lane / 4 + 8 of a tile. */
struct found {
	uint32_t left[2];	/* blocks of the quad that are to be looked at: bits */
	float least[2];
	uint32_t best[2];
};

/* Which blocks have a centroid that can be the nearest. */
template <int c>
CQ_DEVICE void candidates(const struct put &w, uint32_t group, const struct near<c> &n,
			  const __half *x, struct found &f)
{
	/* what is little is loaded for each tile: registers are few */
	const struct cqkd_bound *b = cqkd_ptr<const struct cqkd_bound>(w.near->bound) +
				     cq_keep(group);
	uint32_t lane = threadIdx.x % 32, a[2 * PARTS(c)], size[2];
	uint32_t shift_of = __ldg((const uint32_t *)b->shift + lane % 4);
	uint32_t slack_of = __ldg((const uint32_t *)b->slack + lane % 4);
	float none[4] = {}, shift[4], slack[4];
	int least[2][BLOCKS];
	int i, r, q;

#pragma unroll
	for (i = 0; i < 2 * PARTS(c); i++) {
		uint32_t at = (lane / 4 + i % 2 * 8) * w.pitch + n.at[i / 2];

		a[i] = (*(const uint32_t *)(x + at) & n.keep[i / 2]) ^ n.flip[i / 2];
	}
	size[0] = magnitude(a[0]);
	size[1] = magnitude(a[1]);
	cq_mma_1688_sum(shift, size, &shift_of, none);
	cq_mma_1688_sum(slack, size, &slack_of, none);
#pragma unroll
	for (q = 0; q < BLOCKS; q++) {
		float d[4][4];

#pragma unroll
		for (i = 0; i < 4; i++)
			near_product<c>(d[i], a, n.b[4 * q + i], shift);
#pragma unroll
		for (r = 0; r < 2; r++) {
			int m = __float_as_int(d[0][2 * r]);

			m = bits_least(m, d[0][2 * r + 1], d[1][2 * r]);
			m = bits_least(m, d[1][2 * r + 1], d[2][2 * r]);
			m = bits_least(m, d[2][2 * r + 1], d[3][2 * r]);
			least[r][q] = min(m, __float_as_int(d[3][2 * r + 1]));
		}
	}
#pragma unroll
	for (r = 0; r < 2; r++) {
		int m = least[r][0];
		float most;

#pragma unroll
		for (q = 1; q + 1 < BLOCKS; q += 2)
			m = cq_least(m, least[r][q], least[r][q + 1]);
		m = min(m, least[r][BLOCKS - 1]);
		m = min(m, __shfl_xor_sync(ALL_LANES, m, 1));
		m = min(m, __shfl_xor_sync(ALL_LANES, m, 2));
		most = __fmaf_rn(slack[2 * r], __ldg(&b->unit),
				 __int_as_float(m) + __ldg(&b->fixed));
		f.left[r] = 0;
		/* of what is no number, all */
#pragma unroll
		for (q = 0; q < BLOCKS; q++)
			if (!(__int_as_float(least[r][q]) > most))
				f.left[r] |= 1u << 4 * q;
		f.left[r] <<= lane % 4;
		f.left[r] |= __shfl_xor_sync(ALL_LANES, f.left[r], 1);
		f.left[r] |= __shfl_xor_sync(ALL_LANES, f.left[r], 2);
	}
}

/* A quad's next block of a token; of one that has no more, any may be looked at again. */
template <int c, bool plain>
CQ_DEVICE void block_look(const struct put &w, uint32_t group, const __half *x, uint32_t r,
			  struct found &f)
{
	uint32_t block = f.left[r] ? __ffs(f.left[r]) - 1 : 0;
	uint32_t k = block * BLOCK + threadIdx.x % 4 * 2, i;
	uint32_t first = group * CQKD_CENTROIDS + k;
	const float *norm = cqkd_ptr<const float>(w.book->norm) + first;
	[[maybe_unused]] constexpr int at_once = plain ? BLOCK / 4 : 1;	/* registers are few */
	float to[c], e[c];

	f.left[r] &= f.left[r] - 1;
	channels_load<c>(x, to);
#pragma unroll(at_once)
	for (i = 0; i < BLOCK / 4; i++) {
		float acc;

		centroid_load<c, plain>(*w.book, group, first + i, e);
		acc = distance<c>(__ldg(norm + i), to, e);
		if (acc < f.least[r]) {
			f.least[r] = acc;
			f.best[r] = k + i;
		}
	}
}

/* The lowest code with the least distance of the quad. */
CQ_DEVICE uint32_t quad_nearest(float least, uint32_t best)
{
	uint32_t key = ordered(least), top = key;

	top = min(top, __shfl_xor_sync(ALL_LANES, top, 1));
	top = min(top, __shfl_xor_sync(ALL_LANES, top, 2));
	best = key == top ? best : CQKD_CENTROIDS - 1u;
	best = min(best, __shfl_xor_sync(ALL_LANES, best, 1));
	return min(best, __shfl_xor_sync(ALL_LANES, best, 2));
}

/* Codes of up to 16 tokens: @x and @at are where those of the first are. */
template <int c>
CQ_DEVICE void tile_encode(const struct put &w, uint32_t group, const struct near<c> &n,
			   const __half *x, uint32_t tokens, uint32_t at)
{
	uint32_t lane = threadIdx.x % 32, row = lane / 4, code[2], r;
	struct found f;

	candidates<c>(w, group, n, x, f);
#pragma unroll
	for (r = 0; r < 2; r++) {
		f.least[r] = CQKD_INF;
		f.best[r] = (__ffs(f.left[r]) - 1) * BLOCK + lane % 4 * 2;
		if (row + 8 * r >= tokens)
			f.left[r] = 0;
	}
	while (__any_sync(ALL_LANES, f.left[0] | f.left[1])) {
#pragma unroll
		for (r = 0; r < 2; r++)
			if (w.plain)
				block_look<c, true>(w, group, x + (row + 8 * r) * w.pitch, r, f);
			else
				block_look<c, false>(w, group, x + (row + 8 * r) * w.pitch, r, f);
	}
#pragma unroll
	for (r = 0; r < 2; r++)
		code[r] = quad_nearest(f.least[r], f.best[r]);
	row += lane % 4 * 8;
	if (lane % 4 < 2 && row < tokens)
		code_store(w, at + row, lane % 4 ? code[1] : code[0]);
}

/* As group_encode(). */
template <int c>
CQ_DEVICE void group_encode_many(const struct put &w, uint32_t group, const __half *x,
				 uint32_t at)
{
	struct near<c> n;
	uint32_t t, part;

#pragma unroll
	for (part = 0; part < PARTS(c); part++)
		columns_load<c>(w, group, part, n);
	for (t = 0; t < w.to->count; t += TILE)
		tile_encode<c>(w, group, n, x + t * w.pitch, w.to->count - t, at + t);
}

#endif /* CQK_CUDA_NEAR_CUH */
