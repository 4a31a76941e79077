/* SPDX-License-Identifier: MIT */
/*
 * Weighted k-means over the tokens of one channel group.
 *
 * Distances are those of the encoder (struct cqk_ops, encode): what is learnt
 * is what will be coded. The two steps that take the time come in one
 * implementation per instruction set; all give the same bits.
 */
#ifndef CQK_KMEANS_H
#define CQK_KMEANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CQK_KMEANS_BLOCK 64u	/* tokens are padded to a multiple of this */

/**
 * struct cqk_kmeans_ops - inner loops
 * @name:   "portable", "avx2", "avx512"
 * @usable: can this CPU run it?
 * @assign: idx[t] = argmin_k(half_norm[k] - sum_j x[j][t] * enc[k][j]), f32,
 *          j ascending, each product and difference rounded, ties: lowest k
 * @spread: d2[t] = min(d2[t], sum_j (x[j][t] - point[j])^2 * metric[j]), and
 *          block[i] = sum of w[t] * d2[t] over the i-th 64 tokens, in sixteen
 *          partial sums t mod 16 that are then added in order
 *
 * x is [c][stride], channel by channel; enc is [k][c]; stride is a multiple of 64 and x, w,
 * d2 and idx are 64-byte aligned. All callbacks are mandatory and
 * thread-safe.
 */
struct cqk_kmeans_ops {
	const char *name;
	bool (*usable)(void);
	void (*assign)(const float *x, size_t stride, uint32_t c, uint32_t k,
		       const float *enc, const float *half_norm, int32_t *idx);
	void (*spread)(const float *x, size_t stride, uint32_t c, const float *point,
		       const float *metric, const float *w, float *d2, float *block);
};

/* Implementations compiled in, best first, usable or not; NULL past the end. */
const struct cqk_kmeans_ops *cqk_kmeans_nth(unsigned int i);

/**
 * struct cqk_kmeans - memory of one learner, used for one group after another
 * @ops:    implementation
 * @c:      channels of the group, set by the caller
 * @k:      centroids, set by the caller
 * @n:      tokens, set by the caller, at most what init was given
 * @stride: @n rounded up to a block, set by the caller
 * @x:      [c][stride], filled by the caller; tokens n..stride-1 zero
 * @g:      [c][stride], the caller's: squared gradients
 * @w:      [stride], filled by the caller; not negative; padding zero
 * @metric: [c] weights of the channels in distances, 1 after init; set by the caller
 * @cen:    [k][c], the result
 * @kept:   [k][c], the best of several starts
 * @enc:    [k][c], the centroids times the metric
 * @half_norm: [k], the encoder's constant terms
 * @d2:     [stride] squared distances; also free for the caller between runs
 * @block:  sums of them
 * @idx:    [stride] nearest centroid
 * @sum:    [k][c] weighted sums of the clusters
 * @weight: [k] their weights
 * @loss:   weighted squared error of the last assignment
 */
struct cqk_kmeans {
	const struct cqk_kmeans_ops *ops;
	uint32_t c;
	uint32_t k;
	uint32_t n;
	size_t stride;
	float *x, *g, *w;
	float *metric;
	float *cen;
	float *kept;
	float *enc;
	float *half_norm;
	float *d2;
	float *block;
	int32_t *idx;
	double *sum;
	double *weight;
	double loss;
};

/* Memory for groups of up to @n tokens, @c channels, @k centroids. 0 or -ENOMEM. */
int cqk_kmeans_init(struct cqk_kmeans *km, uint32_t n, uint32_t c, uint32_t k);
void cqk_kmeans_free(struct cqk_kmeans *km);

/**
 * cqk_kmeans_run() - learn @km->cen from @km->x and @km->w
 * @km:         with @ops, @c, @k, @n, @stride, @x, @w and @metric set
 * @iterations: at most; stops at a relative change of the loss < 1e-4
 * @seed:       of the k-means++ start
 *
 * Return: iterations made.
 */
uint32_t cqk_kmeans_run(struct cqk_kmeans *km, uint32_t iterations, uint64_t seed);

/**
 * cqk_kmeans_best() - the best of several starts, by the weighted squared error
 * @km:         as for cqk_kmeans_run()
 * @iterations: at most, of each
 * @starts:     at least 1; the first is that of cqk_kmeans_run()
 * @seed:       of the first; the others follow from it
 */
void cqk_kmeans_best(struct cqk_kmeans *km, uint32_t iterations, uint32_t starts,
		     uint64_t seed);

/* The same as cqk_kmeans_run() from the centroids that @km->cen has. */
uint32_t cqk_kmeans_refine(struct cqk_kmeans *km, uint32_t iterations);

/**
 * cqk_kmeans_error() - squared error of coding @km->x with @km->cen as it is
 * @km:   after cqk_kmeans_run(); @cen may have been rounded since
 * @norm: sum of squares of @km->x
 *
 * Return: the sum of squared distances, without weights and metric.
 */
double cqk_kmeans_error(struct cqk_kmeans *km, double *norm);

/* The @quantile (0 to 1) of @w [n], which are not negative: a value that is there. */
float cqk_kmeans_quantile(const float *w, uint32_t n, double quantile);

/* Next number of a splitmix64 sequence (Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t cqk_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

#endif /* CQK_KMEANS_H */
