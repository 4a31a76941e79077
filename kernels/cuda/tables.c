// SPDX-License-Identifier: MIT
/* Codebooks and RoPE tables for the GPU: what is supported, layout, contents. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/cuda/near.h"
#include "kernels/cuda/tables.h"
#include "kernels/cuda/variant.h"
#include "kernels/f16.h"

#define TABLE_ALIGN 256

_Static_assert(CQKD_F32 == CQ_F32 && CQKD_F16 == CQ_F16 && CQKD_BF16 == CQ_BF16,
	       "element types of views");

static int check_coding(const struct cqk_codebook *cb, uint32_t layer, char what,
			struct cq_err *err)
{
	uint32_t c = cb->code.channels;
	char name[16];

	if (cb->code.type == CQ_CODE_F16)
		return 0;
	if ((cb->code.bits == 8 && (c == 2 || c == 4 || c == 8)) ||
	    (cb->code.bits == 10 && c == 8))
		return 0;
	return cq_err_set(err, -EOPNOTSUPP, "layer %u: %c is coded %s; GPU kernels have 2c8b, "
					    "4c8b, 8c8b, 8c10b and fp16",
			  layer, what, cqk_code_name(cb->code, name));
}

/* Channels of all centroids of all kv heads. */
static size_t book_values(const struct cqk_codebook *cb)
{
	return (size_t)cb->n_kv_heads * cb->head_dim * cqk_code_centroids(cb->code);
}

/* Codes become halves on the GPU, whatever the centroids are stored as. */
static int check_centroids(const struct cqk_codebook *cb, uint32_t layer, char what,
			   struct cq_err *err)
{
	size_t n = book_values(cb), i;

	if (cb->code.type == CQ_CODE_F16 || cb->centroids == CQK_CENTROIDS_F16)
		return 0;
	for (i = 0; i < n; i++)
		if (!cqk_f16_finite(cqk_f32_to_f16(cb->f32[i])))
			return cq_err_set(err, -EOPNOTSUPP, "layer %u: a centroid of %c is beyond "
							    "fp16, which GPU kernels compute with",
					  layer, what);
	return 0;
}

static int check_layer(const struct cqk_layer *y, uint32_t layer, struct cq_err *err)
{
	int ret = check_coding(&y->k, layer, 'K', err);

	if (!ret)
		ret = check_coding(&y->v, layer, 'V', err);
	if (!ret)
		ret = check_centroids(&y->k, layer, 'K', err);
	if (!ret)
		ret = check_centroids(&y->v, layer, 'V', err);
	return ret;
}

static int check_model(const struct cqk_model *m, struct cq_err *err)
{
	uint32_t d = m->geom.head_dim, l;
	int ret = 0;

	if (d != 64 && d != 128 && d != 256)
		return cq_err_set(err, -EOPNOTSUPP, "head_dim %u; GPU kernels have 64, 128 and 256",
				  d);
	for (l = 0; l < m->geom.n_layers && !ret; l++)
		ret = check_layer(&m->layers[l], l, err);
	return ret;
}

/* @n bytes of the image. Addresses are relative to 1 at first: 0 means none. */
static uint64_t take(struct cqk_cuda_tables *t, uint64_t n)
{
	uint64_t at = t->base + t->bytes;

	t->bytes = ALIGN_UP(t->bytes + n, TABLE_ALIGN);
	return at;
}

static void lay_out_book(struct cqk_cuda_tables *t, const struct cqk_codebook *cb,
			 struct cqkd_book *b)
{
	uint64_t n = book_values(cb);
	uint64_t numbers = (uint64_t)cb->n_kv_heads * cb->head_dim * sizeof(float);

	memset(b, 0, sizeof(*b));
	if (cb->code.type == CQ_CODE_F16)
		return;
	b->channels = cb->code.channels;
	b->bits = cb->code.bits;
	b->groups = cb->n_groups;
	b->f16 = take(t, n * 2);
	b->rows = take(t, n * 2);
	b->norm = take(t, n / b->channels * sizeof(float));
	if (cb->metric)
		b->metric = take(t, numbers);
	if (cb->centroids == CQK_CENTROIDS_F16)
		return;
	b->i8 = take(t, n);
	b->scale = take(t, numbers);
}

static void lay_out_near(struct cqk_cuda_tables *t, const struct cqk_codebook *cb,
			 const struct cqkd_book *b, struct cqkd_near *near)
{
	uint64_t groups = (uint64_t)cb->n_kv_heads * cb->n_groups;
	uint64_t n = groups * CQKD_CENTROIDS;

	memset(near, 0, sizeof(*near));
	if (!b->channels)
		return;
	near->top = b->f16;
	if (!cqk_near_plain(cb)) {
		near->top = take(t, n * b->channels * 2);
		near->rest = take(t, n * CQKD_NEAR_REST(b->channels) * 4);
	}
	near->tail = take(t, n * 4);
	near->bound = take(t, groups * sizeof(struct cqkd_bound));
}

static void lay_out(struct cqk_cuda_tables *t)
{
	uint64_t row = (uint64_t)2 * t->rope->half * sizeof(float);
	uint32_t l;

	for (l = 0; l < t->model->geom.n_layers; l++) {
		const struct cqk_layer *y = &t->model->layers[l];
		struct cqkd_layer *to = &t->layers[l];

		lay_out_book(t, &y->k, &to->k);
		lay_out_book(t, &y->v, &to->v);
		if (cqk_near_can(to)) {
			lay_out_near(t, &y->k, &to->k, &t->near[2 * l]);
			lay_out_near(t, &y->v, &to->v, &t->near[2 * l + 1]);
		}
		to->offset = y->offset;
		to->k_bytes = y->k_bytes;
		to->v_bytes = y->v_bytes;
	}
	t->turn.half = t->rope->half;
	t->turn.n_base = t->rope->n_base;
	t->turn.factor = t->rope->half ? t->rope->factor : 1.0f;
	if (t->model->geom.rope_pairs == CQK_PAIRS_INTERLEAVED)
		t->turn.mixed = t->model->geom.rope_dim;
	if (!row)
		return;
	t->turn.base = take(t, row * t->rope->n_base);
	t->turn.in_page = take(t, row * CQ_PAGE_TOKENS);
}

int cqk_cuda_tables_new(const struct cqk_model *model, const struct cqk_rope *rope,
			struct cqk_cuda_tables **out, struct cq_err *err)
{
	struct cqk_cuda_tables *t;
	int ret = check_model(model, err);

	if (ret)
		return ret;
	t = calloc(1, sizeof(*t));
	if (!t)
		goto err_memory;
	t->layers = calloc(model->geom.n_layers, sizeof(*t->layers));
	t->near = calloc(model->geom.n_layers, 2 * sizeof(*t->near));
	if (!t->layers || !t->near)
		goto err_free;
	t->model = model;
	t->rope = rope;
	t->base = 1;
	lay_out(t);
	*out = t;
	return 0;

err_free:
	cqk_cuda_tables_free(t);
err_memory:
	return cq_err_set(err, -ENOMEM, "out of memory for the GPU tables of a model");
}

void cqk_cuda_tables_free(struct cqk_cuda_tables *t)
{
	if (!t)
		return;
	free(t->layers);
	free(t->near);
	free(t);
}

/* [kv_head][d][n] floats to [kv_head][group][n][c] halves, n centroids */
static void fill_halves(const struct cqk_codebook *cb, uint16_t *out)
{
	uint32_t c = cb->code.channels, groups = cb->n_kv_heads * cb->n_groups, g, k, j;
	uint32_t n = cqk_code_centroids(cb->code);

	for (g = 0; g < groups; g++)
		for (k = 0; k < n; k++)
			for (j = 0; j < c; j++)
				*out++ = cqk_f32_to_f16(cb->f32[((size_t)g * c + j) * n + k]);
}

/* The group of a head that is group @g of @n of a slice, see struct cqkd_book. */
static uint32_t group_of(const struct cqk_codebook *cb, bool keys, uint32_t slice, uint32_t g,
			 uint32_t n)
{
	if (!keys)
		return slice * n + g;
	return slice * (n / 2) + g % (n / 2) + (g < n / 2 ? 0 : cb->n_groups / 2);
}

/* [kv_head][group][centroid][c] to [kv_head][slice][centroid][group][c]; @w: of a slice */
static void fill_rows(const struct cqk_codebook *cb, bool keys, uint32_t w,
		      const uint16_t *from, uint16_t *out)
{
	uint32_t c = cb->code.channels, slices = cb->head_dim / w, h, s, k, g;
	uint32_t n = cqk_code_centroids(cb->code);

	for (h = 0; h < cb->n_kv_heads; h++)
		for (s = 0; s < slices; s++)
			for (k = 0; k < n; k++)
				for (g = 0; g < w / c; g++, out += c) {
					size_t at = (size_t)h * cb->n_groups +
						    group_of(cb, keys, s, g, w / c);

					memcpy(out, from + (at * n + k) * c, c * sizeof(*out));
				}
}

static void fill_book(const struct cqk_codebook *cb, const struct cqkd_book *b, bool keys,
		      uint32_t w, uint64_t base, uint8_t *image)
{
	size_t numbers = (size_t)cb->n_kv_heads * cb->head_dim * sizeof(float);
	size_t n = book_values(cb);

	if (!b->channels)
		return;
	if (!b->i8)
		memcpy(image + (b->f16 - base), cb->stored, n * 2);
	else
		fill_halves(cb, (uint16_t *)(void *)(image + (b->f16 - base)));
	if (b->rows)
		fill_rows(cb, keys, w, (const uint16_t *)(const void *)(image + (b->f16 - base)),
			  (uint16_t *)(void *)(image + (b->rows - base)));
	memcpy(image + (b->norm - base), cb->half_norm, n / b->channels * sizeof(float));
	if (b->metric)
		memcpy(image + (b->metric - base), cb->metric, numbers);
	if (!b->i8)
		return;
	memcpy(image + (b->i8 - base), cb->stored, n);
	memcpy(image + (b->scale - base), cb->scale, numbers);
}

static void *in_image(uint8_t *image, uint64_t base, uint64_t address)
{
	return address ? image + (address - base) : NULL;
}

static void fill_near(const struct cqk_codebook *cb, const struct cqkd_near *near,
		      uint64_t base, uint8_t *image)
{
	const struct cqk_near_tables out = {
		.top = in_image(image, base, near->top),
		.rest = in_image(image, base, near->rest),
		.tail = in_image(image, base, near->tail),
		.bound = in_image(image, base, near->bound),
	};

	if (near->tail)
		cqk_near_fill(cb, &out);
}

void cqk_cuda_tables_fill(const struct cqk_cuda_tables *t, void *image)
{
	size_t row = (size_t)2 * t->rope->half * sizeof(float);
	uint8_t *out = image;
	uint32_t l;

	memset(out, 0, t->bytes);
	for (l = 0; l < t->model->geom.n_layers; l++) {
		const struct cqk_layer *y = &t->model->layers[l];
		const struct cqkd_layer *to = &t->layers[l];
		uint32_t w = cqk_cuda_slice(t->model->geom.head_dim, MAX(to->k.bits, to->v.bits));

		fill_book(&y->k, &to->k, true, w, t->base, out);
		fill_book(&y->v, &to->v, false, w, t->base, out);
		fill_near(&t->model->layers[l].k, &t->near[2 * l], t->base, out);
		fill_near(&t->model->layers[l].v, &t->near[2 * l + 1], t->base, out);
	}
	if (!row)
		return;
	memcpy(out + (t->turn.base - t->base), t->rope->base, row * t->rope->n_base);
	memcpy(out + (t->turn.in_page - t->base), t->rope->in_page, row * CQ_PAGE_TOKENS);
}

static void move(uint64_t *address, uint64_t by)
{
	if (*address)
		*address += by;
}

static void move_book(struct cqkd_book *b, uint64_t by)
{
	move(&b->f16, by);
	move(&b->rows, by);
	move(&b->i8, by);
	move(&b->scale, by);
	move(&b->norm, by);
	move(&b->metric, by);
}

static void move_near(struct cqkd_near *near, uint64_t by)
{
	move(&near->top, by);
	move(&near->rest, by);
	move(&near->tail, by);
	move(&near->bound, by);
}

void cqk_cuda_tables_place(struct cqk_cuda_tables *t, uint64_t base)
{
	uint64_t by = base - t->base;
	uint32_t l;

	for (l = 0; l < t->model->geom.n_layers; l++) {
		move_book(&t->layers[l].k, by);
		move_book(&t->layers[l].v, by);
		move_near(&t->near[2 * l], by);
		move_near(&t->near[2 * l + 1], by);
	}
	move(&t->turn.base, by);
	move(&t->turn.in_page, by);
	t->base = base;
}
