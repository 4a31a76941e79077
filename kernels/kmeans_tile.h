/* SPDX-License-Identifier: MIT */
/*
 * The inner loops of k-means, once per instruction set. The including file
 * defines vf and vi (vectors of LANES floats and int32), vm (a mask), LANES,
 * TOGETHER (tokens that share the loads of centroids), vf_less(a, b) (set
 * where a < b), and vf_pick(mask, a, b) and vi_pick() (a where the mask is
 * set). Sums run over sixteen tokens at a time whatever LANES is, so each has
 * one order.
 */
#define NV (16 / LANES)		/* vectors of a sum's sixteen tokens */
#define NT (TOGETHER / LANES)	/* vectors that look for their centroids together */

static inline __attribute__((always_inline)) vf vf_all(float x)
{
	return x - (vf){ 0 };
}

/* Vectors at an address that kmeans.h promises to be aligned. */
static inline __attribute__((always_inline)) vf *vf_at(const void *p)
{
	return __builtin_assume_aligned(p, LANES * 4);
}

static inline __attribute__((always_inline))
void assign_some(const float *x, size_t stride, uint32_t c, uint32_t n_cen,
		 const float *enc, const float *half_norm, int32_t *idx)
{
	vf best[NT], acc[NT], p;
	uint32_t j, k;
	vi at[NT];
	vm less;
	int i;

	for (i = 0; i < NT; i++) {
		best[i] = vf_all(__builtin_inff());
		at[i] = (vi){ 0 };
	}
	for (k = 0; k < n_cen; k++) {
		for (i = 0; i < NT; i++)
			acc[i] = vf_all(half_norm[k]);
		for (j = 0; j < c; j++) {
			p = vf_all(enc[k * c + j]);
			for (i = 0; i < NT; i++)
				acc[i] -= vf_at(x + j * stride)[i] * p;
		}
		for (i = 0; i < NT; i++) {
			less = vf_less(acc[i], best[i]);
			best[i] = vf_pick(less, acc[i], best[i]);
			at[i] = vi_pick(less, (int32_t)k - (vi){ 0 }, at[i]);
		}
	}
	for (i = 0; i < NT; i++)
		vf_at(idx)[i] = (vf)at[i];
}

static inline __attribute__((always_inline))
void assign_all(const float *x, size_t stride, uint32_t c, uint32_t n_cen,
		const float *enc, const float *half_norm, int32_t *idx)
{
	size_t t;

	for (t = 0; t < stride; t += TOGETHER)
		assign_some(x + t, stride, c, n_cen, enc, half_norm, idx + t);
}

/* A constant number of channels keeps a token's values in registers. */
static void tile_assign(const float *x, size_t stride, uint32_t c, uint32_t n_cen,
			const float *enc, const float *half_norm, int32_t *idx)
{
	switch (c) {
	case 1:
		assign_all(x, stride, 1, n_cen, enc, half_norm, idx);
		return;
	case 2:
		assign_all(x, stride, 2, n_cen, enc, half_norm, idx);
		return;
	case 4:
		assign_all(x, stride, 4, n_cen, enc, half_norm, idx);
		return;
	case 8:
		assign_all(x, stride, 8, n_cen, enc, half_norm, idx);
		return;
	case 16:
		assign_all(x, stride, 16, n_cen, enc, half_norm, idx);
		return;
	default:
		assign_all(x, stride, c, n_cen, enc, half_norm, idx);
	}
}

static inline __attribute__((always_inline))
float spread_64(const float *x, size_t stride, uint32_t c, const float *point,
		const float *metric, const float *w, float *d2)
{
	vf part[NV], d, diff, *near;
	float lanes[16], sum = 0;
	uint32_t j, t;
	int i;

	for (i = 0; i < NV; i++)
		part[i] = vf_all(0);
	for (t = 0; t < CQK_KMEANS_BLOCK; t += 16) {
		for (i = 0; i < NV; i++) {
			d = vf_all(0);
			for (j = 0; j < c; j++) {
				diff = vf_at(x + j * stride + t)[i] - vf_all(point[j]);
				d += diff * diff * vf_all(metric[j]);
			}
			near = vf_at(d2 + t) + i;
			*near = vf_pick(vf_less(d, *near), d, *near);
			part[i] += vf_at(w + t)[i] * *near;
		}
	}
	memcpy(lanes, part, sizeof(lanes));
	for (i = 0; i < 16; i++)
		sum += lanes[i];
	return sum;
}

static inline __attribute__((always_inline))
void spread_all(const float *x, size_t stride, uint32_t c, const float *point,
		const float *metric, const float *w, float *d2, float *block)
{
	size_t t;

	for (t = 0; t < stride; t += CQK_KMEANS_BLOCK)
		block[t / CQK_KMEANS_BLOCK] = spread_64(x + t, stride, c, point, metric,
							w + t, d2 + t);
}

static void tile_spread(const float *x, size_t stride, uint32_t c, const float *point,
			const float *metric, const float *w, float *d2, float *block)
{
	switch (c) {
	case 2:
		spread_all(x, stride, 2, point, metric, w, d2, block);
		return;
	case 4:
		spread_all(x, stride, 4, point, metric, w, d2, block);
		return;
	case 8:
		spread_all(x, stride, 8, point, metric, w, d2, block);
		return;
	default:
		spread_all(x, stride, c, point, metric, w, d2, block);
	}
}
