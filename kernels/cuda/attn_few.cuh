/* SPDX-License-Identifier: MIT */
/*
 * Fragments of tensor cores from centroids in shared memory, for attn_few.cu, attn_bytes.cu
 * and attn_slices.cu. A warp has 16 tokens and sets of four query vectors; lane = 4 n + l.
 *
 * The table of a head has a row per code, in which the centroids of all groups lie beside
 * each other. A lane takes units of channels, of one group each: one load has a unit. Lanes
 * that would meet in a bank take their units in another order: unit s ^ o at step s, with an
 * order o of their own. Nothing puts the registers in order afterwards. Instead
 *
 * - keys: o is that of a token, a row of Q.K. Each step is multiplied with the queries'
 *   units of all orders, and each row takes the sum that was made for its order. A vector
 *   has two columns; with 128 channels the second has the units that the highest bit of o
 *   exchanges, so that two orders are one product. Where a lane has one unit of each side,
 *   it is the sides that o exchanges.
 * - values: o is that of a lane's tokens, a part of the sum of V.P. Each step is multiplied
 *   once for each order, with the probabilities of other lanes' tokens replaced by zero.
 *   A register has two channels of a token, which count as two terms of the sum: columns
 *   2 v and 2 v + 1 have the probabilities of vector v for the first and for the second.
 *   So they become its even and odd channels, and no register has to be taken apart.
 */
#ifndef CQK_CUDA_ATTN_FEW_CUH
#define CQK_CUDA_ATTN_FEW_CUH

#include "kernels/cuda/attn_frag.cuh"
#include "kernels/cuda/attn_result.cuh"

#define SET 4			/* vectors of a product: two columns each */
#define SETS (VECS / SET)
#define SLACK 4.0f		/* how far scores may exceed what they are relative to */

/*
 * What a lane has of a token: of a key the units l + 4 s of each half, of a value units
 * that follow each other. @c: channels of a group; attn_few.cu counts 8 of 64 channels as 4.
 */
template <int d, int c>
struct key {
	static const int u = d == 128 || c == 8 ? c : c < 4 ? c : 4;	/* channels of a unit */
	static const int words = u / 2;				/* registers */
	static const int sets = d / 8 / u;			/* units of one side */
	static const bool flip = sets == 1;	/* of odd tokens the upper side is first */
	static const int orders = flip ? 2 : sets;
};

/* The order of the keys that a lane has. */
template <int d, int c>
CQ_DEVICE uint32_t key_order()
{
	return threadIdx.x % 32 / 4 % key<d, c>::orders;
}

template <int d, int c>
struct value {
	static const int u = c < 4 ? c : 4;
	static const int words = u / 2;
	static const int sets = d / 8 / u;
};

/*
 * Where a lane finds what it reads of each page: the even and the odd pieces of its queries,
 * in halves; the codes of its tokens in the first group, of K or of V.
 */
struct places {
	uint32_t q[2];
	uint32_t k, v;
};

/* Where the codes of unit @x are from those of the first: a group is a unit, or two. */
template <int d, int c, int u>
CQ_DEVICE uint32_t group_at(const struct cqkd_book &b, uint32_t x)
{
	bool two = d == 128 || c == 8 ? c > u : b.channels > u;

	return (x >> two) * CQKD_FEW_STRIDE;
}

/* cos and sin, times TURNED_SIZE, of what a lane has of the keys 2 n and 2 n + 1. */
template <int d, int c>
struct frame {
	__half2 co[2][d / 16], si[2][d / 16];
};

/* @first: pair that is the first here, of a head of @head channels. */
template <int d, int c, int head = d>
CQ_DEVICE void frame_load(const struct cqkd_rope &rope, uint32_t first, uint32_t tile,
			  struct frame<d, c> &f)
{
	constexpr int words = key<d, c>::words;
	uint32_t lane = threadIdx.x % 32, order = key<d, c>::flip ? 0 : key_order<d, c>();
	const float *table = cqkd_ptr<const float>(rope.in_page) + first;
	/* a turn backwards, where sides are exchanged */
	float unit = key<d, c>::flip && key_order<d, c>() ? -TURNED_SIZE : TURNED_SIZE;
	int h, w;

#pragma unroll
	for (h = 0; h < 2; h++)
#pragma unroll
		for (w = 0; w < d / 16; w++) {
			uint32_t token = tile * 16 + lane / 4 * 2 + h;
			uint32_t x = lane % 4 + 4 * (w / words ^ order);
			const float *at = table + (size_t)token * head +
					  (x * words + w % words) * 2;

			f.co[h][w] = __floats2half2_rn(at[0] * TURNED_SIZE, at[1] * TURNED_SIZE);
			f.si[h][w] = __floats2half2_rn(at[head / 2] * unit,
						      at[head / 2 + 1] * unit);
		}
}

/* The keys of a lane's two tokens, [token][side]: registers of the units in their order. */
template <int d>
struct keys {
	uint32_t x[2][2][d / 16];
};

/*
 * Where units of centroids come from: a table of a head that has them as halves, @rows by
 * code. A unit is that of byte @i of some codes; where it is in a row, @at, is in bytes. What a
 * lane keeps for that, nothing here, is by @word, the register of a token that is the first
 * to be loaded; of keys those of its second side follow those of the first.
 */
template <int d>
struct half_book {
	struct lane {};

	/* Of keys; the unit is in the row's half that @side says. */
	template <int words>
	CQ_DEVICE void key(const struct lane &, const uint8_t *rows, uint32_t *x, uint32_t codes,
			   int i, uint32_t at, uint32_t side, int word)
	{
		unit_load<words>(x, rows + row_at<d>(codes, i, at) + side * d);
	}

	template <int words>
	CQ_DEVICE void value(const struct lane &, const uint8_t *rows, uint32_t *x, uint32_t codes,
			     int i, uint32_t at, int word)
	{
		unit_load<words>(x, rows + row_at<d>(codes, i, at));
	}
};

/* Keys of a tile from @rows of a book B; @codes: of the lane's tokens in the first group. */
template <int d, int c, typename B>
CQ_DEVICE void keys_of_codes(const struct cqkd_book &b, const typename B::lane &lanes,
			     const void *rows, const uint8_t *codes, struct keys<d> &k)
{
	constexpr int u = key<d, c>::u, words = u / 2;
	uint32_t lane = threadIdx.x % 32, far = group_at<d, c, u>(b, d / 2 / u);
	uint32_t first = lane % 4 | lane / 4 % key<d, c>::sets * 4;
	uint32_t flip = key<d, c>::flip ? key_order<d, c>() : 0;
	int s, h, i;

#pragma unroll
	for (s = 0; s < key<d, c>::sets; s++) {
		const uint8_t *group = codes + group_at<d, c, u>(b, first ^ 4 * s);
		uint32_t ch = first * 2 * u ^ 8 * s * u;	/* in bytes */

#pragma unroll
		for (i = 0; i < 2; i++) {
			uint32_t side = i ^ flip;
			uint32_t two = *(const uint16_t *)(group + side * far);

#pragma unroll
			for (h = 0; h < 2; h++)
				B::template key<words>(lanes, (const uint8_t *)rows,
						       &k.x[h][i][s * words], two, h, ch, side,
						       i * (d / 16) + s * words);
		}
	}
}

/* Rows of an fp16 block, from the first channel here on; tokens that nobody sees are zero. */
template <int d, int c, int head = d>
CQ_DEVICE void keys_of_rows(const __half *rows, uint64_t live, uint32_t tile, struct keys<d> &k)
{
	constexpr int u = key<d, c>::u, words = u / 2;
	uint32_t lane = cq_keep(threadIdx.x % 32), order = lane / 4 % key<d, c>::sets, side;
	uint32_t flip = key<d, c>::flip ? key_order<d, c>() : 0;
	int h, s, w;

#pragma unroll
	for (h = 0; h < 2; h++) {
		uint32_t token = tile * 16 + lane / 4 * 2 + h;

#pragma unroll
		for (s = 0; s < 2 * key<d, c>::sets; s++) {
			uint32_t *x = &k.x[h][s % 2][s / 2 * words];

			side = s % 2 ^ flip;
			if (live >> token & 1)
				unit_load<words>(x, rows + (size_t)token * head +
						    side * (head / 2) +
						    (lane % 4 + 4 * (s / 2 ^ order)) * u);
			else
				for (w = 0; w < words; w++)
					x[w] = 0;
		}
	}
}

/* Orders of a lane's keys that a sum each is made for. */
template <int d, int c>
struct orders {
	/* a bit of them is the column's, if units of one side fill two pieces */
	static const bool columns = key<d, c>::flip || key<d, c>::sets * key<d, c>::u > 8;
	static const int sums = key<d, c>::orders / (columns ? 2 : 1);
};

/*
 * Place of a query's channel: pieces of 16 bytes, those with the same number of all vectors
 * and lanes together. The two columns of a vector read the pieces of a pair at once, which
 * are in different banks because those with odd numbers have neighbouring vectors exchanged.
 */
#define PIECE_PITCH (VECS * 4 * 8)

template <int d, int c>
CQ_DEVICE uint32_t query_at(uint32_t vec, uint32_t ch)
{
	constexpr int u = key<d, c>::u;
	uint32_t x = ch % (d / 2), l = x / u % 4;
	uint32_t at = ch / (d / 2) * (d / 8) + x / u / 4 * u + x % u;

	if (orders<d, c>::columns)
		vec ^= at / 8 % 2;
	return at / 8 * PIECE_PITCH + (vec * 4 + l) * 8 + at % 8;
}

/* Of a lane's vector the product with a token, by the order of this. */
template <int sums>
CQ_DEVICE float product_of(const float (*acc)[4], int i, uint32_t order)
{
	float x[sums];
	int n, bit;

#pragma unroll
	for (n = 0; n < sums; n++)
		x[n] = acc[n][i];
#pragma unroll
	for (bit = 1; bit < sums; bit *= 2)
#pragma unroll
		for (n = 0; n < sums; n += 2 * bit)
			x[n] = order & bit ? x[n + bit] : x[n];
	return x[0];
}

template <int d, int c>
CQ_DEVICE void places_init(uint32_t thread, struct places &at)
{
	uint32_t lane = thread % 32, n = lane / 4, column = orders<d, c>::columns ? n % 2 : 0;
	uint32_t even = (n / 2 * 4 + lane % 4) * 8;
	uint32_t odd = PIECE_PITCH + (orders<d, c>::columns ? even ^ 32 : even);

	at.q[0] = column ? odd : even;
	at.q[1] = column ? even : odd;
	/* 16 to a warp of four: those of rows n and n + 8, of columns 4 l to 4 l + 3 */
	at.k = thread / 2 & 62;
	at.v = (thread / 2 & 48) + lane % 4 * 4;
}

/*
 * A piece of the keys' lower halves and one of the upper ones, four registers of each
 * token from @w on, as fragments of two products each: turned by their place in the page, or
 * as they are. Not in place: registers of a fragment are not those of a load.
 */
template <int d, int c, bool turned>
CQ_DEVICE void piece_turn(const struct frame<d, c> &f, const struct keys<d> &k, int w,
			  uint32_t lo[2][4], uint32_t hi[2][4])
{
	int h, i;

#pragma unroll
	for (i = 0; i < 4; i++, w++)
#pragma unroll
		for (h = 0; h < 2; h++) {
			uint32_t *x = &lo[i / 2][i % 2 * 2 + h], *y = &hi[i / 2][i % 2 * 2 + h];
			__half2 a = h2_of(k.x[h][0][w]), b = h2_of(k.x[h][1][w]);
			__half2 co = f.co[h][w], si = f.si[h][w];

			*x = h2_bits(turned ? __hsub2(__hmul2(a, co), __hmul2(b, si)) : a);
			*y = h2_bits(turned ? __hadd2(__hmul2(a, si), __hmul2(b, co)) : b);
		}
}

/* Products of a piece of keys with the piece of queries at @q, for each order. */
template <int sums, int words>
CQ_DEVICE void piece_add(const uint32_t a[2][4], const __half *q, float (*acc)[4])
{
	uint4 piece = *(const uint4 *)q;
	uint32_t b[4] = { piece.x, piece.y, piece.z, piece.w };
	int r, w;

#pragma unroll
	for (r = 0; r < sums; r++)
#pragma unroll
		for (w = 0; w < 2; w++) {
			uint32_t b2[2] = { b[2 * w ^ r * words], b[(2 * w + 1) ^ r * words] };

			cq_mma_16816_f32(acc[r], a[w], b2);
		}
}

/* Products of a tile's keys with the queries @q, of the lane's vector of each of @sets. */
template <int d, int c, bool turned, int sets>
CQ_DEVICE void products(const struct frame<d, c> &f, const struct keys<d> &k, const __half *q,
			const struct places &at, float out[SETS][2])
{
	constexpr int sums = orders<d, c>::sums, words = key<d, c>::words, n = d / 64;
	uint32_t order = key_order<d, c>();
	bool second = orders<d, c>::columns && order & sums;
	float acc[sets][sums][4] = {};
	int i, h, set;

#pragma unroll
	for (i = 0; i < n; i++) {
		uint32_t lo[2][4], hi[2][4];

		piece_turn<d, c, turned>(f, k, 4 * i, lo, hi);
#pragma unroll
		for (set = 0; set < sets; set++) {
			const __half *mine = q + set * SET * 32;

			piece_add<sums, words>(lo, mine + at.q[i % 2] + i / 2 * 2 * PIECE_PITCH,
					       acc[set]);
			piece_add<sums, words>(hi, mine + at.q[(i + n) % 2] +
						   (i + n) / 2 * 2 * PIECE_PITCH, acc[set]);
		}
	}
#pragma unroll
	for (i = 0; i < 2 * sets; i++) {
		float first;

		set = i / 2;
		h = i % 2;
		first = product_of<sums>(acc[set], 2 * h, order);
		out[set][h] = second ? product_of<sums>(acc[set], 2 * h + 1, order) : first;
	}
}

/*
 * Scores, to base 2, become probabilities, times 2^P_LIFT unless that would be lost: the
 * fragment of the lane's four tokens, 0 and 2 in @out[0], 1 and 3 in @out[1].
 */
template <int d>
CQ_DEVICE void softmax(const float x[2], struct result<d> &r, uint32_t out[2])
{
	float top = fmaxf(x[0], x[1]);
	int i;

	if (__any_sync(0xffffffffu, top - r.low > P_LIFT + SLACK))
		result_fade<4, 32>(top, r);	/* those of vector l */
#pragma unroll
	for (i = 0; i < 2; i++) {
		float e = cq_exp2(x[i] - r.low);
		__half2 p = __floats2half2_rn(e, e);

		r.l += __low2float(p);
		out[i] = cq_movmatrix_trans(h2_bits(p));
	}
}

/* The values of a lane's four tokens: registers of the units in their order. */
template <int d>
struct values {
	uint32_t x[4][d / 16];
};

/* The order in which a lane has its values: by bank, see above. */
template <int d, int c>
CQ_DEVICE uint32_t value_order()
{
	uint32_t lane = threadIdx.x % 32;

	return (lane % 4 | lane / 16 * 4) & (value<d, c>::sets - 1);
}

/* Values of a tile from @rows of a book B; @codes: of the lane's tokens in the first group. */
template <int d, int c, typename B>
CQ_DEVICE void values_of_codes(const struct cqkd_book &b, const typename B::lane &lanes,
			       const void *rows, const uint8_t *codes, struct values<d> &v)
{
	constexpr int u = value<d, c>::u, words = u / 2;
	uint32_t first = threadIdx.x % 32 / 4 * value<d, c>::sets | value_order<d, c>();
	uint32_t four = 0;
	int s, i;

#pragma unroll
	for (s = 0; s < value<d, c>::sets; s++) {
		uint32_t ch = first * 2 * u ^ 2 * s * u;

		/* two units of a group follow each other */
		if (c == u || s % 2 == 0)
			four = *(const uint32_t *)(codes + group_at<d, c, u>(b, first ^ s));
#pragma unroll
		for (i = 0; i < 4; i++)
			B::template value<words>(lanes, (const uint8_t *)rows,
						 &v.x[i][s * words], four, i, ch, s * words);
	}
}

template <int d, int c, int head = d>
CQ_DEVICE void values_of_rows(const __half *rows, uint64_t live, uint32_t tile,
			      struct values<d> &v)
{
	constexpr int u = value<d, c>::u, words = u / 2, sets = value<d, c>::sets;
	uint32_t lane = cq_keep(threadIdx.x % 32), order = value_order<d, c>();
	int i, s, w;

#pragma unroll
	for (i = 0; i < 4; i++) {
		uint32_t token = tile * 16 + lane % 4 * 4 + i;

#pragma unroll
		for (s = 0; s < sets; s++) {
			uint32_t *x = &v.x[i][s * words];

			if (live >> token & 1)
				unit_load<words>(x, rows + (size_t)token * head +
						    (lane / 4 * sets + (s ^ order)) * u);
			else
				for (w = 0; w < words; w++)
					x[w] = 0;
		}
	}
}

/* Orders of a lane's values that a product each is made for. */
template <int d, int c>
struct shares {
	static const int n = value<d, c>::sets < 4 ? value<d, c>::sets : 4;
};

/*
 * By order, what probabilities of a lane's tokens are multiplied with: 1 if the values come
 * in that order, for the channels of the lane's column. @all: of eight lanes; others have the
 * same. In shared memory, since registers are few where keys are at hand.
 */
template <int d, int c>
CQ_DEVICE void shares_init(uint32_t (*all)[4])
{
	uint32_t lane = threadIdx.x, n = shares<d, c>::n, r;

	for (r = 0; r < 4 && lane < 8; r++)
		all[lane][r] = lane % n == r ? 0x3c00u << lane / 4 * 16 : 0;
}

/* Probabilities of a tile times its values. */
template <int d, int c>
CQ_DEVICE void values_add(const struct values<d> &v, const uint32_t prob[2], uint4 share,
			  struct result<d> &r)
{
	/* rows n and n + 8: the two words of a unit, or those of two units */
	constexpr int tiles = d / 32, next = c >= 4 ? 1 : tiles;
	uint32_t of[4] = { share.x, share.y, share.z, share.w };
	int pair, n, x;

#pragma unroll
	for (pair = 0; pair < 4; pair += 2)
#pragma unroll
		for (n = 0; n < shares<d, c>::n; n++) {
			uint32_t b[2];

#pragma unroll
			for (x = 0; x < 2; x++) {
				__half2 p = h2_of(prob[x]);

				p = pair ? __high2half2(p) : __low2half2(p);
				b[x] = h2_bits(__hmul2(p, h2_of(of[n])));
			}
#pragma unroll
			for (x = 0; x < tiles; x++) {
				const uint32_t *t0 = v.x[pair], *t1 = v.x[pair + 1];
				int at = c >= 4 ? 2 * x : x | (n & tiles);
				uint32_t a[4] = { t0[at], t0[at ^ next], t1[at], t1[at ^ next] };

				cq_mma_16816_f32(r.o[x ^ (n & (tiles - 1))], a, b);
			}
		}
}

/* A lane's results of a set, times @f, to those of its vector: channels at @o. */
template <int d, int c>
CQ_DEVICE void result_put(const struct result<d> &r, float f, bool add, float *o)
{
	constexpr int tiles = d / 32;
	uint32_t flip = value_order<d, c>() & ~3u;
	int x, i;

	o += threadIdx.x % 32 / 4 * (d / 8);
#pragma unroll
	for (x = 0; x < tiles; x++)
#pragma unroll
		for (i = 0; i < 4; i++) {
			uint32_t at = c >= 4 ? 4 * x + i :
					       ((x | i / 2 * tiles) ^ flip) * 2 + i % 2;

			o[at] = (add ? o[at] : 0) + f * r.o[x][i];
		}
}

#endif /* CQK_CUDA_ATTN_FEW_CUH */
