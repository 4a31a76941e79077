/* SPDX-License-Identifier: MIT */
/*
 * Codebooks for tensor cores, which find the centroids that can be the nearest.
 *
 * A code is argmin_k v_k, where v_k is n_k - x.e_k in fp32 as struct cqk_ops has it:
 * each step rounded. Tensor cores sum in another order and round in a way of their own, so
 * they give D_k, which differs by at most r from v_k plus a number that is the same for all
 * k. If v_k is the least of all, then for every i
 *
 *	D_k <= v_k + r <= v_i + r <= D_i + 2 r
 *
 * but for that number, ties too: whatever is the code, is among the k with D_k <= min D + 2 r.
 * These are looked at once more as struct cqk_ops says; usually there is one. So r decides how
 * much is computed twice, and nothing else, provided that it is large enough. It has four
 * parts; u is 2^-24, E_j the largest |e_kj|, N the largest n_k, c the channels, K the columns:
 *
 * - v_k: c products and c differences, each of them rounded: (c + 1) u (N + sum |x_j| E_j),
 *   and c 2^-149 where products underflow.
 * - What is not in the columns: e_kj is a half, of some channels two; of n_k there are two
 *   halves. What they lack is known: its maximum over k, of each channel, times |x_j|.
 * - The sum of K products and what it begins with. Products of halves are exact; for the rest
 *   PTX promises "at least single precision", in no particular order, however rounded:
 *   each of K steps errs at most 2^-23 of the sum of the magnitudes, and so does, for
 *   each addend, a unit that cuts them at the place of the largest. (K + 4) 2^-22 is
 *   more than either, by enough for the two steps that add 2 r to the least of all.
 * - PTX leaves open whether a subnormal half counts as zero. There is none among centroids
 *   but of fp16 ones without a metric, which count as if they were lacking; of x, one
 *   counts as 16, of which 2^-18 is no less than what it is worth.
 *
 * All but the first are of numbers times a power of two, chosen for each group. D_k begins
 * with sum |x_j| E_j and a little, so that none is negative and they compare as integers;
 * where E_j is 0 it has nothing of x_j, which may be large beside all that differs.
 * That, too, is summed by tensor cores, and 2 r beside it: struct cqkd_bound has what
 * |x| is multiplied with. An x that is no number makes 2 r one that nothing is above.
 */
#ifndef CQK_CUDA_NEAR_H
#define CQK_CUDA_NEAR_H

#include "cq/util.h"
#include "kernels/cuda/params.h"
#include "kernels/model.h"

/**
 * cqk_near_can() - can tensor cores find a layer's codes?
 * @at: layer
 *
 * Keys and values are of one launch: if those of one have 10 bits, neither has tables here.
 *
 * Return: true if no code has more than 8 bits.
 */
static inline bool cqk_near_can(const struct cqkd_layer *at)
{
	return MAX(at->k.bits, at->v.bits) <= 8;
}

/**
 * cqk_near_plain() - are centroids, as stored, what x is multiplied with?
 * @cb: codebook that is coded
 *
 * Return: true if they are halves and there is no metric.
 */
static inline bool cqk_near_plain(const struct cqk_codebook *cb)
{
	return cb->centroids == CQK_CENTROIDS_F16 && !cb->metric;
}

/**
 * struct cqk_near_tables - a codebook's tables on the host, as struct cqkd_near has them
 * @top:   filled in unless cqk_near_plain(), of which it has no use
 * @rest:  the same
 * @tail:  filled in
 * @bound: filled in
 */
struct cqk_near_tables {
	uint16_t *top, *rest, *tail;
	struct cqkd_bound *bound;
};

/**
 * cqk_near_fill() - tables of a codebook
 * @cb:  coded in 2, 4 or 8 channels and 8 bits
 * @out: where to
 */
void cqk_near_fill(const struct cqk_codebook *cb, const struct cqk_near_tables *out);

#endif /* CQK_CUDA_NEAR_H */
