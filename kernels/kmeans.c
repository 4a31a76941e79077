// SPDX-License-Identifier: MIT
/*
 * Weighted k-means (Lloyd) with a k-means++ start (Arthur, Vassilvitskii, SODA
 * 2007), one channel group at a time.
 *
 * Deterministic: the random numbers come from the seed alone, sums of doubles
 * have one order, and the inner loops give the same bits everywhere.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/kmeans_ops.h"

#define STOP 1e-4
#define ALIGN 64

static const struct cqk_kmeans_ops *const table[] = {
#ifdef __x86_64__
	&cqk_kmeans_avx512,
	&cqk_kmeans_avx2,
#endif
	&cqk_kmeans_portable,
};

/**
 * cqk_kmeans_nth() - table of implementations
 * @i: 0 is the best
 *
 * Return: the implementation, usable here or not; NULL past the end.
 */
const struct cqk_kmeans_ops *cqk_kmeans_nth(unsigned int i)
{
	return i < ARRAY_SIZE(table) ? table[i] : NULL;
}

static const struct cqk_kmeans_ops *best_ops(void)
{
	size_t i;

	for (i = 0; i + 1 < ARRAY_SIZE(table); i++)
		if (table[i]->usable())
			break;
	return table[i];	/* the last one runs anywhere */
}

static void *floats(size_t n)
{
	return aligned_alloc(ALIGN, ALIGN_UP(n * sizeof(float), ALIGN));
}

int cqk_kmeans_init(struct cqk_kmeans *km, uint32_t n, uint32_t c, uint32_t k)
{
	size_t stride = ALIGN_UP((size_t)n, CQK_KMEANS_BLOCK);
	uint32_t j;

	*km = (struct cqk_kmeans){ .ops = best_ops() };
	km->x = floats(stride * c);
	km->g = floats(stride * c);
	km->w = floats(stride);
	km->d2 = floats(stride);
	km->idx = floats(stride);
	km->block = floats(stride / CQK_KMEANS_BLOCK);
	km->metric = floats(c);
	km->cen = floats((size_t)k * c);
	km->kept = floats((size_t)k * c);
	km->enc = floats((size_t)k * c);
	km->half_norm = floats(k);
	km->sum = calloc((size_t)k * c, sizeof(*km->sum));
	km->weight = calloc(k, sizeof(*km->weight));
	if (!km->x || !km->g || !km->w || !km->d2 || !km->idx || !km->block || !km->metric ||
	    !km->cen || !km->kept || !km->enc || !km->half_norm || !km->sum || !km->weight) {
		cqk_kmeans_free(km);
		return -ENOMEM;
	}
	for (j = 0; j < c; j++)
		km->metric[j] = 1;
	return 0;
}

void cqk_kmeans_free(struct cqk_kmeans *km)
{
	free(km->x);
	free(km->g);
	free(km->w);
	free(km->d2);
	free(km->idx);
	free(km->block);
	free(km->metric);
	free(km->cen);
	free(km->kept);
	free(km->enc);
	free(km->half_norm);
	free(km->sum);
	free(km->weight);
	*km = (struct cqk_kmeans){ 0 };
}

static void point_of(const struct cqk_kmeans *km, size_t t, float *out)
{
	uint32_t j;

	for (j = 0; j < km->c; j++)
		out[j] = km->x[j * km->stride + t];
}

/*
 * Draws a token with probability w * d2 / total, total being the sum of the
 * blocks; -1 if every token already lies on a centroid.
 */
static ssize_t draw(const struct cqk_kmeans *km, uint64_t *rng)
{
	size_t b, t, last = 0, n_blocks = km->stride / CQK_KMEANS_BLOCK;
	double total = 0, r;

	for (b = 0; b < n_blocks; b++)
		total += (double)km->block[b];
	if (!(total > 0))
		return -1;
	r = (double)(cqk_random(rng) >> 11) * 0x1p-53 * total;
	for (b = 0; b + 1 < n_blocks && r >= (double)km->block[b]; b++)
		r -= (double)km->block[b];
	/* Rounding may leave r behind the block's end: take its last candidate. */
	for (t = b * CQK_KMEANS_BLOCK; t < (b + 1) * CQK_KMEANS_BLOCK; t++) {
		if (!(km->w[t] * km->d2[t] > 0))
			continue;
		last = t + 1;
		r -= (double)(km->w[t] * km->d2[t]);
		if (r < 0)
			break;
	}
	if (last)
		return (ssize_t)(last - 1);
	for (t = 0; !(km->w[t] * km->d2[t] > 0); t++)
		;
	return (ssize_t)t;
}

/* k-means++; what is left when the points run out are copies, never chosen. */
static void seed_centroids(struct cqk_kmeans *km, uint64_t *rng)
{
	size_t t, b;
	uint32_t k;
	ssize_t at;

	memset(km->block, 0, km->stride / CQK_KMEANS_BLOCK * sizeof(float));
	for (t = 0; t < km->stride; t++) {
		b = t / CQK_KMEANS_BLOCK;
		km->d2[t] = 1;
		km->block[b] += km->w[t];
	}
	for (k = 0; k < km->k; k++) {
		at = draw(km, rng);
		if (at < 0 && k == 0)
			at = 0;
		if (at < 0) {
			memcpy(km->cen + (size_t)k * km->c, km->cen,
			       km->c * sizeof(float));
			continue;
		}
		point_of(km, (size_t)at, km->cen + (size_t)k * km->c);
		if (k == 0)
			for (t = 0; t < km->stride; t++)
				km->d2[t] = INFINITY;
		km->ops->spread(km->x, km->stride, km->c, km->cen + (size_t)k * km->c,
				km->metric, km->w, km->d2, km->block);
	}
}

/* The encoder's table and constant terms, in its order of operations. */
static void assign(struct cqk_kmeans *km)
{
	const float *c = km->cen;
	float sum, *e = km->enc;
	uint32_t k, j;

	for (k = 0; k < km->k; k++) {
		sum = 0;
		for (j = 0; j < km->c; j++, c++, e++) {
			*e = km->metric[j] * *c;
			sum += *c * *e;
		}
		km->half_norm[k] = sum * 0.5f;
	}
	km->ops->assign(km->x, km->stride, km->c, km->k, km->enc, km->half_norm,
			km->idx);
}

/* Sums per cluster; leaves each token's weighted error in d2. Returns the loss. */
static double gather(struct cqk_kmeans *km)
{
	uint32_t c = km->c, j, k;
	double loss = 0, w, d, err;
	const float *x, *cen;
	double *sum;
	size_t t;

	memset(km->sum, 0, (size_t)km->k * c * sizeof(*km->sum));
	memset(km->weight, 0, km->k * sizeof(*km->weight));
	for (t = 0; t < km->n; t++) {
		k = (uint32_t)km->idx[t];
		w = (double)km->w[t];
		x = km->x + t;
		cen = km->cen + (size_t)k * c;
		sum = km->sum + (size_t)k * c;
		for (err = 0, j = 0; j < c; j++) {
			d = (double)x[j * km->stride] - (double)cen[j];
			err += d * d * (double)km->metric[j];
			sum[j] += w * (double)x[j * km->stride];
		}
		km->weight[k] += w;
		km->d2[t] = (float)(w * err);
		loss += w * err;
	}
	return loss;
}

/* An empty cluster moves to the token that now costs most. */
static void reseed(struct cqk_kmeans *km, uint32_t k)
{
	size_t t, worst = 0;

	for (t = 1; t < km->n; t++)
		if (km->d2[t] > km->d2[worst])
			worst = t;
	if (km->d2[worst] > 0) {
		point_of(km, worst, km->cen + (size_t)k * km->c);
		km->d2[worst] = 0;
	}
}

static void update(struct cqk_kmeans *km)
{
	uint32_t k, j;

	for (k = 0; k < km->k; k++) {
		if (!(km->weight[k] > 0)) {
			reseed(km, k);
			continue;
		}
		for (j = 0; j < km->c; j++)
			km->cen[(size_t)k * km->c + j] =
				(float)(km->sum[(size_t)k * km->c + j] /
					km->weight[k]);
	}
}

uint32_t cqk_kmeans_refine(struct cqk_kmeans *km, uint32_t iterations)
{
	double before = INFINITY;
	uint32_t i;

	for (i = 0; i < iterations; i++) {
		assign(km);
		km->loss = gather(km);
		if (!(km->loss > 0) || before - km->loss < STOP * km->loss)
			break;
		before = km->loss;
		update(km);
	}
	return i;
}

uint32_t cqk_kmeans_run(struct cqk_kmeans *km, uint32_t iterations, uint64_t seed)
{
	seed_centroids(km, &seed);
	return cqk_kmeans_refine(km, iterations);
}

void cqk_kmeans_best(struct cqk_kmeans *km, uint32_t iterations, uint32_t starts,
		     uint64_t seed)
{
	size_t bytes = (size_t)km->k * km->c * sizeof(*km->cen);
	double least = INFINITY;
	uint32_t i;

	for (i = 0; i < starts; i++) {
		cqk_kmeans_run(km, iterations, seed);
		if (km->loss < least || !i) {
			least = km->loss;
			memcpy(km->kept, km->cen, bytes);
		}
		cqk_random(&seed);
	}
	memcpy(km->cen, km->kept, bytes);
	km->loss = least;
}

double cqk_kmeans_error(struct cqk_kmeans *km, double *norm)
{
	double err = 0, sq = 0, d, x;
	uint32_t j;
	size_t t;

	assign(km);
	for (t = 0; t < km->n; t++) {
		for (j = 0; j < km->c; j++) {
			x = (double)km->x[j * km->stride + t];
			d = x - (double)km->cen[(size_t)km->idx[t] * km->c + j];
			err += d * d;
			sq += x * x;
		}
	}
	*norm = sq;
	return err;
}

/* Values are not negative: they have the order of their bits. */
static uint32_t count_up_to(const float *w, uint32_t n, uint32_t bits)
{
	uint32_t i, u, count = 0;

	for (i = 0; i < n; i++) {
		memcpy(&u, &w[i], sizeof(u));
		count += u <= bits;
	}
	return count;
}

float cqk_kmeans_quantile(const float *w, uint32_t n, double quantile)
{
	uint32_t rank = (uint32_t)((double)(n - 1) * quantile), lo = 0, hi = 0x7f800000, mid;
	float limit;

	while (lo < hi) {	/* to the least value that more than @rank are up to */
		mid = lo + (hi - lo) / 2;
		if (count_up_to(w, n, mid) > rank)
			hi = mid;
		else
			lo = mid + 1;
	}
	memcpy(&limit, &lo, sizeof(limit));
	return limit;
}
