// SPDX-License-Identifier: MIT
/*
 * A cache in this process alone: f32, rotated keys, attention by plain matrix
 * products. It serves before there are codebooks (activations for calibration)
 * and as the reference that other caches are checked against.
 */
#include <cblas.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"

/**
 * struct wk_local - one sequence
 * @cfg:    shape
 * @length: committed tokens
 * @k:      [layer][kv_head][max_position][head_dim], rotated
 * @v:      the same shape
 * @cos:    [max_position][head_dim / 2]
 * @sin:    the same shape
 * @scores: [max_rows][max_position]
 * @q:      [max_rows][head_dim], rotated
 */
struct wk_local {
	struct wk_cache cache;
	struct wk_config cfg;
	size_t max_rows, length;
	float *k, *v, *cos, *sin, *scores, *q;
	wk_tap_fn *tap;
	void *tap_arg;
};

static struct wk_local *to_local(const struct wk_cache *cache)
{
	return (struct wk_local *)(uintptr_t)cache;	/* its first member */
}

/* Half-split pairs: Su et al., "RoFormer", arXiv 2104.09864, section 3.2.2. */
static void rotate(const struct wk_local *c, float *out, const float *x, size_t pos)
{
	size_t half = c->cfg.head_dim / 2, i;
	const float *co = c->cos + pos * half, *si = c->sin + pos * half;

	for (i = 0; i < half; i++) {
		out[i] = x[i] * co[i] - x[i + half] * si[i];
		out[i + half] = x[i + half] * co[i] + x[i] * si[i];
	}
}

static size_t head_at(const struct wk_local *c, uint32_t layer, uint32_t head)
{
	return ((size_t)layer * c->cfg.n_kv_heads + head) * c->cfg.max_position *
	       c->cfg.head_dim;
}

static void append(struct wk_local *c, uint32_t layer, const struct wk_rows *rows)
{
	size_t d = c->cfg.head_dim, r, to;
	uint32_t h;

	for (h = 0; h < c->cfg.n_kv_heads; h++) {
		for (r = 0; r < rows->n; r++) {
			to = head_at(c, layer, h) + (c->length + r) * d;
			rotate(c, c->k + to, rows->k + r * rows->stride + h * d,
			       c->length + r);
			memcpy(c->v + to, rows->v + r * rows->stride + h * d,
			       d * sizeof(float));
		}
	}
}

/* Softmax of row @r over its @seen tokens, zeros up to @n. */
static void softmax(float *s, size_t seen, size_t n)
{
	float max = s[0], sum = 0;
	size_t i;

	for (i = 1; i < seen; i++)
		max = s[i] > max ? s[i] : max;
	for (i = 0; i < seen; i++) {
		s[i] = expf(s[i] - max);
		sum += s[i];
	}
	for (i = 0; i < seen; i++)
		s[i] /= sum;
	for (; i < n; i++)
		s[i] = 0;
}

static void attend_head(struct wk_local *c, uint32_t layer, uint32_t head,
			const struct wk_rows *rows)
{
	size_t d = c->cfg.head_dim, total = c->length + rows->n, r;
	size_t kv = head_at(c, layer, head / (c->cfg.n_heads / c->cfg.n_kv_heads));
	size_t ld = c->cfg.max_position, width = c->cfg.n_heads * d;
	float scale = 1 / sqrtf((float)d);

	for (r = 0; r < rows->n; r++)
		rotate(c, c->q + r * d, rows->q + r * rows->stride + head * d,
		       c->length + r);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows->n,
		    (int)total, (int)d, scale, c->q, (int)d, c->k + kv, (int)d, 0,
		    c->scores, (int)ld);
	for (r = 0; r < rows->n; r++)
		softmax(c->scores + r * ld, c->length + r + 1, total);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows->n, (int)d,
		    (int)total, 1, c->scores, (int)ld, c->v + kv, (int)d, 0,
		    rows->o + head * d, (int)width);
}

static int local_begin(struct wk_cache *cache, size_t n)
{
	struct wk_local *c = to_local(cache);

	if (n > c->max_rows || n > c->cfg.max_position - c->length)
		return wk_error(-ENOSPC, "%zu rows do not fit", n);
	return 0;
}

static int local_attend(struct wk_cache *cache, uint32_t layer,
			const struct wk_rows *rows)
{
	struct wk_local *c = to_local(cache);
	uint32_t h;

	append(c, layer, rows);
	if (c->tap)
		c->tap(c->tap_arg, layer, rows);
	for (h = 0; h < c->cfg.n_heads; h++)
		attend_head(c, layer, h, rows);
	return 0;
}

static int local_commit(struct wk_cache *cache, const uint32_t *ids, size_t n)
{
	(void)ids;
	to_local(cache)->length += n;
	return 0;
}

static size_t local_length(const struct wk_cache *cache)
{
	return to_local(cache)->length;
}

static const struct wk_cache_ops local_ops = {
	.begin = local_begin,
	.attend = local_attend,
	.commit = local_commit,
	.length = local_length,
};

int wk_local_new(const struct wk_config *cfg, size_t max_rows,
		 struct wk_local **out)
{
	size_t half = cfg->head_dim / 2, p, i;
	size_t kv = (size_t)cfg->n_layers * cfg->n_kv_heads * cfg->max_position *
		    cfg->head_dim;
	struct wk_local *c = calloc(1, sizeof(*c));
	double a;

	if (!c)
		return wk_error(-ENOMEM, "out of memory");
	c->cache.ops = &local_ops;
	c->cfg = *cfg;
	c->max_rows = max_rows;
	c->k = malloc(kv * sizeof(float));
	c->v = malloc(kv * sizeof(float));
	c->cos = malloc(cfg->max_position * half * sizeof(float));
	c->sin = malloc(cfg->max_position * half * sizeof(float));
	c->scores = malloc(max_rows * cfg->max_position * sizeof(float));
	c->q = malloc(max_rows * cfg->head_dim * sizeof(float));
	if (!c->k || !c->v || !c->cos || !c->sin || !c->scores || !c->q) {
		wk_local_free(c);
		return wk_error(-ENOMEM, "out of memory");
	}
	for (p = 0; p < cfg->max_position; p++) {
		for (i = 0; i < half; i++) {
			a = (double)p * pow(cfg->rope_theta,
					    -(double)i / (double)half);
			c->cos[p * half + i] = (float)cos(a);
			c->sin[p * half + i] = (float)sin(a);
		}
	}
	*out = c;
	return 0;
}

void wk_local_free(struct wk_local *c)
{
	if (!c)
		return;
	free(c->k);
	free(c->v);
	free(c->cos);
	free(c->sin);
	free(c->scores);
	free(c->q);
	free(c);
}

struct wk_cache *wk_local_cache(struct wk_local *c)
{
	return &c->cache;
}

void wk_local_reset(struct wk_local *c)
{
	c->length = 0;
}

void wk_local_tap(struct wk_local *c, wk_tap_fn *fn, void *arg)
{
	c->tap = fn;
	c->tap_arg = arg;
}
