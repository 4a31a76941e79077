// SPDX-License-Identifier: MIT
/*
 * What attn_few.cu does, for models whose centroids are of a byte a channel, on GPUs that have
 * no room for them as halves: they stay bytes in shared memory, and become halves in registers.
 *
 * A byte is a centroid's integer and 128. With 0x48 above it, it is a half, 8 and so many
 * parts of 128; less 9 that is the integer over 128, and exact; times 128 of a channel's scale
 * it is the centroid. A row of the table is 128 bytes, all banks once.
 */
#define WARPS CQKD_BYTES_WARPS
#include "kernels/cuda/attn_few_items.cuh"

#define EIGHTS	0x48484848u	/* above each byte: 8.0 and more */
#define NINES	0x48804880u	/* two halves, 9.0 */
#define SIGNS	0x80808080u	/* integers plus 128 */

/* 2 n bytes of a unit that n words of halves will be of, in x[0]; of eight also in x[2]. */
template <int words>
CQ_DEVICE void bytes_load(uint32_t *x, const uint8_t *from)
{
	if (words == 4) {
		uint2 two = *(const uint2 *)from;

		x[0] = two.x;
		x[words / 2] = two.y;
	} else if (words == 2) {
		x[0] = *(const uint32_t *)from;
	} else {
		x[0] = *(const uint16_t *)from;
	}
}

/* The same bytes as halves; @scale: of the channels. */
template <int words>
CQ_DEVICE void bytes_widen(uint32_t *x, const uint32_t *scale)
{
	int i;

#pragma unroll
	for (i = 0; i < words; i += 2) {
		uint32_t four = x[i];
		int n;

#pragma unroll
		for (n = 0; n < 2 && i + n < words; n++) {
			uint32_t two = __byte_perm(four, EIGHTS, n ? 0x4342 : 0x4140);

			x[i + n] = h2_bits(__hmul2(__hsub2(h2_of(two), h2_of(NINES)),
						   h2_of(scale[i + n])));
		}
	}
}

/* 128 of the scales of two channels; what is no half then, above 511, would make 0 a NaN. */
CQ_DEVICE uint32_t scales_of(const float *scale)
{
	return h2_bits(__floats2half2_rn(fminf(scale[0] * 128, 65504),
					 fminf(scale[1] * 128, 65504)));
}

template <int d, int kc, int vc>
struct few_bytes {
	typedef uint8_t channel;

	/* Scales, in the order of what they are of. */
	struct lane {
		uint32_t k[2 * (d / 16)], v[d / 16];
	};

	/* Rows are as long as those of halves with half as many channels. */
	template <int words>
	CQ_DEVICE void key(const struct lane &scale, const uint8_t *rows, uint32_t *x,
			   uint32_t codes, int i, uint32_t at, uint32_t side, int word)
	{
		bytes_load<words>(x, rows + row_at<d / 2>(codes, i, at / 2) + side * (d / 2));
		bytes_widen<words>(x, scale.k + word);
	}

	template <int words>
	CQ_DEVICE void value(const struct lane &scale, const uint8_t *rows, uint32_t *x,
			     uint32_t codes, int i, uint32_t at, int word)
	{
		bytes_load<words>(x, rows + row_at<d / 2>(codes, i, at / 2));
		bytes_widen<words>(x, scale.v + word);
	}

	/*
	 * 16 bytes of a group at a time, which are whole centroids: threads that follow each
	 * other have groups that do, and so store to one row, or two.
	 */
	template <int c>
	CQ_DEVICE void side_load(const struct cqkd_book &b, uint32_t head, uint8_t *to)
	{
		constexpr int groups = d / c, n = 16 / c;
		const uint8_t *from = cqkd_ptr<const uint8_t>(b.i8) +
				      (size_t)head * CQKD_CENTROIDS * d;
		int i, x;

		for (i = cq_keep(threadIdx.x); i < CQKD_CENTROIDS * d / 16; i += THREADS) {
			int g = i % groups, piece = i / groups;
			uint4 four = *(const uint4 *)(from + (size_t)g * CQKD_CENTROIDS * c +
						      piece * 16);
			uint32_t word[4] = { four.x ^ SIGNS, four.y ^ SIGNS, four.z ^ SIGNS,
					     four.w ^ SIGNS };

#pragma unroll
			for (x = 0; x < n; x++) {
				uint8_t *at = to + (piece * n + x) * d + g * c;

				if (c == 2)
					*(uint16_t *)at = (uint16_t)(word[x / 2] >> x % 2 * 16);
				else
					unit_store<c == 2 ? 1 : c / 4>(at, word + x * c / 4);
			}
		}
	}

	CQ_DEVICE void load(const struct cqkd_layer &at, uint32_t head,
			    uint8_t (*to)[CQKD_CENTROIDS][d])
	{
		side_load<kc>(at.k, head, to[0][0]);
		side_load<vc>(at.v, head, to[1][0]);
	}

	CQ_DEVICE void init(const struct cqkd_layer &at, uint32_t head, struct lane &to)
	{
		constexpr int words = ::key<d, kc>::words, pairs = ::value<d, vc>::words;
		uint32_t lane = threadIdx.x % 32, order = key_order<d, kc>();
		uint32_t first = lane / 4 * ::value<d, vc>::sets | value_order<d, vc>();
		const float *k = cqkd_ptr<const float>(at.k.scale) + (size_t)head * d;
		const float *v = cqkd_ptr<const float>(at.v.scale) + (size_t)head * d;
		int w;

		static_assert(!::key<d, kc>::flip, "no token has its sides exchanged");
#pragma unroll
		for (w = 0; w < 2 * (d / 16); w++) {
			uint32_t side = w / (d / 16), i = w % (d / 16);
			uint32_t x = lane % 4 + 4 * (i / words ^ order);

			to.k[w] = scales_of(k + side * (d / 2) + (x * words + i % words) * 2);
		}
#pragma unroll
		for (w = 0; w < d / 16; w++)
			to.v[w] = scales_of(v + ((first ^ w / pairs) * pairs + w % pairs) * 2);
	}
};

/* Grid: as attn_few.cu. */
#define ATTN_BYTES(d, kc, vc) \
CQ_KERNEL_BLOCKS(THREADS, 1, cqk_attn_bytes_k##kc##v##vc, (struct cqkd_attn p)) \
{ \
	typedef struct few<d, struct few_bytes<d, kc, vc>> memory; \
\
	static_assert(sizeof(memory) <= CQKD_BYTES_SHARED(d, 1), "params.h"); \
	CQ_DYN_SHARED(memory, sh); \
\
	attention<d, kc, vc>(p, sh); \
}
ATTN_BYTES(128, 2, 2)
ATTN_BYTES(128, 2, 4)
ATTN_BYTES(128, 2, 8)
ATTN_BYTES(128, 4, 2)
ATTN_BYTES(128, 4, 4)
ATTN_BYTES(128, 4, 8)
ATTN_BYTES(128, 8, 2)
ATTN_BYTES(128, 8, 4)
ATTN_BYTES(128, 8, 8)
