// SPDX-License-Identifier: MIT
/*
 * The language model's forward pass: Llama architecture as Hugging Face has
 * it (RMSNorm, SwiGLU, grouped queries, tied embeddings), fp16 weights widened
 * to f32, matrices by OpenBLAS. Attention and RoPE are the cache's business:
 * it gets queries and keys before rotation.
 *
 * Sources: Touvron et al., "LLaMA", arXiv 2302.13971, section 2.2; Zhang,
 * Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019; Shazeer,
 * "GLU variants improve transformer", arXiv 2002.05202.
 */
#include <cblas.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"

struct layer {
	float *norm_attn, *norm_mlp;
	float *qkv;		/* [q, k, v rows][hidden] */
	float *out;		/* [hidden][n_heads * head_dim] */
	float *gate_up;		/* [gate rows, up rows][hidden] */
	float *down;		/* [hidden][ff] */
};

/**
 * struct wk_lm - weights, and room for one chunk of rows
 * @x:   [chunk][hidden] residual stream
 * @h:   [chunk][hidden] normed
 * @qkv: [chunk][q, k, v]
 * @att: [chunk][n_heads * head_dim]
 * @gu:  [chunk][gate, up]
 */
struct wk_lm {
	struct wk_config cfg;
	struct layer *layers;
	float *embed;		/* [vocab][hidden] */
	float *norm;
	size_t chunk;
	float *x, *h, *qkv, *att, *gu;
};

static size_t qkv_rows(const struct wk_config *c)
{
	return (size_t)(c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
}

/* --- loading --- */

static int config_int(const json_t *j, const char *path, const char *name,
		      uint32_t max, uint32_t *out)
{
	const json_t *v = json_object_get(j, name);

	if (!json_is_integer(v) || json_integer_value(v) < 1 ||
	    json_integer_value(v) > max)
		return wk_error(-EINVAL, "%s: %s is missing or not in 1..%u",
				path, name, max);
	*out = (uint32_t)json_integer_value(v);
	return 0;
}

static int config_check(const json_t *j, struct wk_config *c, const char *path)
{
	const char *arch = json_string_value(json_object_get(j, "model_type"));

	c->eps = json_number_value(json_object_get(j, "rms_norm_eps"));
	c->rope_theta = json_number_value(json_object_get(j, "rope_theta"));
	if (json_object_get(j, "rope_scaling") &&
	    !json_is_null(json_object_get(j, "rope_scaling")))
		return wk_error(-EOPNOTSUPP, "%s: this language model has no rope_scaling",
				path);
	if (!arch || strcmp(arch, "llama") ||
	    !json_is_true(json_object_get(j, "tie_word_embeddings")))
		return wk_error(-EINVAL, "%s: only model_type llama with tied embeddings",
				path);
	if (!(c->eps > 0) || !(c->rope_theta > 1) || c->n_heads % c->n_kv_heads ||
	    c->head_dim % 2)
		return wk_error(-EINVAL, "%s: rms_norm_eps, rope_theta or heads make no sense",
				path);
	return 0;
}

static int config_load(struct wk_config *c, const char *path)
{
	json_t *j = wk_json_read(path);
	int ret;

	if (!j)
		return -EINVAL;
	ret = config_int(j, path, "num_hidden_layers", 256, &c->n_layers);
	if (!ret)
		ret = config_int(j, path, "num_attention_heads", 256, &c->n_heads);
	if (!ret)
		ret = config_int(j, path, "num_key_value_heads", 128, &c->n_kv_heads);
	if (!ret)
		ret = config_int(j, path, "head_dim", 256, &c->head_dim);
	if (!ret)
		ret = config_int(j, path, "hidden_size", 16384, &c->hidden);
	if (!ret)
		ret = config_int(j, path, "intermediate_size", 65536, &c->ff);
	if (!ret)
		ret = config_int(j, path, "vocab_size", 65536, &c->vocab);
	if (!ret)
		ret = config_int(j, path, "max_position_embeddings", 1u << 20,
				 &c->max_position);
	if (!ret)
		ret = config_check(j, c, path);
	json_decref(j);
	return ret;
}

/* Widen tensor @name into @out, [rows][cols]. */
static int widen(const struct wk_st *st, const char *name, size_t rows,
		 size_t cols, float *out)
{
	size_t n = rows * (cols ? cols : 1), i;
	const char *data;
	const void *p;
	uint16_t h;
	int ret;

	ret = wk_st_tensor(st, name, "F16", rows, cols, &p);
	if (ret)
		return ret;
	data = p;
	for (i = 0; i < n; i++) {
		memcpy(&h, data + 2 * i, 2);
		out[i] = wk_f16_to_f32(h);
		if (!isfinite(out[i]))
			return wk_error(-EINVAL, "%s: %s[%zu] is no finite number",
					st->path, name, i);
	}
	return 0;
}

static int layer_widen(const struct wk_st *st, uint32_t l, const char *what,
		       size_t rows, size_t cols, float *out)
{
	char name[96];

	snprintf(name, sizeof(name), "model.layers.%u.%s.weight", l, what);
	return widen(st, name, rows, cols, out);
}

static int layer_load(const struct wk_st *st, const struct wk_config *c,
		      uint32_t l, struct layer *y)
{
	size_t q = (size_t)c->n_heads * c->head_dim;
	size_t kv = (size_t)c->n_kv_heads * c->head_dim, d = c->hidden;
	const struct {
		const char *name;
		size_t rows, cols;
		float *out;
	} w[] = {
		{ "input_layernorm", d, 0, y->norm_attn },
		{ "post_attention_layernorm", d, 0, y->norm_mlp },
		{ "self_attn.q_proj", q, d, y->qkv },
		{ "self_attn.k_proj", kv, d, y->qkv + q * d },
		{ "self_attn.v_proj", kv, d, y->qkv + (q + kv) * d },
		{ "self_attn.o_proj", d, q, y->out },
		{ "mlp.gate_proj", c->ff, d, y->gate_up },
		{ "mlp.up_proj", c->ff, d, y->gate_up + c->ff * d },
		{ "mlp.down_proj", d, c->ff, y->down },
	};
	size_t i;
	int ret = 0;

	for (i = 0; i < sizeof(w) / sizeof(w[0]) && !ret; i++)
		ret = layer_widen(st, l, w[i].name, w[i].rows, w[i].cols, w[i].out);
	return ret;
}

/* Everything in one piece of memory; @at walks through it. */
static float *take(float **at, size_t n)
{
	float *p = *at;

	*at += n;
	return p;
}

static int lm_alloc(struct wk_lm *lm)
{
	const struct wk_config *c = &lm->cfg;
	size_t d = c->hidden, q = (size_t)c->n_heads * c->head_dim;
	size_t layer = 2 * d + qkv_rows(c) * d + d * q + 3 * (size_t)c->ff * d;
	size_t row = 2 * d + qkv_rows(c) + q + 2 * (size_t)c->ff;
	size_t total = c->n_layers * layer + (c->vocab + 1) * d + lm->chunk * row;
	float *at = malloc((total + 1) * sizeof(float));
	uint32_t l;

	lm->embed = at;
	lm->layers = calloc(c->n_layers + 1, sizeof(*lm->layers));
	if (!at || !lm->layers)
		return wk_error(-ENOMEM, "no memory for %zu MB of weights",
				total * sizeof(float) >> 20);
	take(&at, c->vocab * d);
	lm->norm = take(&at, d);
	for (l = 0; l < c->n_layers; l++) {
		lm->layers[l].norm_attn = take(&at, d);
		lm->layers[l].norm_mlp = take(&at, d);
		lm->layers[l].qkv = take(&at, qkv_rows(c) * d);
		lm->layers[l].out = take(&at, d * q);
		lm->layers[l].gate_up = take(&at, 2 * (size_t)c->ff * d);
		lm->layers[l].down = take(&at, c->ff * d);
	}
	lm->x = take(&at, lm->chunk * d);
	lm->h = take(&at, lm->chunk * d);
	lm->qkv = take(&at, lm->chunk * qkv_rows(c));
	lm->att = take(&at, lm->chunk * q);
	lm->gu = take(&at, lm->chunk * 2 * c->ff);
	return 0;
}

static int lm_weights(struct wk_lm *lm, const char *path)
{
	const struct wk_config *c = &lm->cfg;
	struct wk_st st;
	uint32_t l;
	int ret;

	ret = wk_st_open(&st, path);
	if (ret)
		return ret;
	ret = lm_alloc(lm);
	if (!ret)
		ret = widen(&st, "model.embed_tokens.weight", c->vocab, c->hidden,
			    lm->embed);
	if (!ret)
		ret = widen(&st, "model.norm.weight", c->hidden, 0, lm->norm);
	for (l = 0; l < c->n_layers && !ret; l++)
		ret = layer_load(&st, c, l, &lm->layers[l]);
	wk_st_close(&st);
	return ret;
}

int wk_lm_load(const char *dir, size_t chunk, struct wk_lm **out)
{
	char path[WK_PATH];
	struct wk_lm *lm = calloc(1, sizeof(*lm));
	int ret;

	if (!lm)
		return wk_error(-ENOMEM, "out of memory");
	lm->chunk = chunk;
	ret = wk_path(path, dir, "config.json");
	if (!ret)
		ret = config_load(&lm->cfg, path);
	if (!ret)
		ret = wk_path(path, dir, "model.safetensors");
	if (!ret)
		ret = lm_weights(lm, path);
	if (ret) {
		wk_lm_free(lm);
		return ret;
	}
	*out = lm;
	return 0;
}

void wk_lm_free(struct wk_lm *lm)
{
	if (!lm)
		return;
	free(lm->embed);
	free(lm->layers);
	free(lm);
}

const struct wk_config *wk_lm_config(const struct wk_lm *lm)
{
	return &lm->cfg;
}

/* --- computing --- */

/* y[n][out] = x[n][in] w[out][in]^T + beta y */
static void matmul(float *y, const float *x, const float *w, size_t n,
		   size_t in, size_t out, float beta)
{
	if (n == 1)
		cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)out, (int)in, 1, w,
			    (int)in, x, 1, beta, y, 1);
	else
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n,
			    (int)out, (int)in, 1, x, (int)in, w, (int)in, beta,
			    y, (int)out);
}

static void rms_norm(float *y, const float *x, const float *w, size_t n, size_t d,
		     double eps)
{
	size_t r, i;
	float scale;
	double sum;

	for (r = 0; r < n; r++, x += d, y += d) {
		for (i = 0, sum = 0; i < d; i++)
			sum += (double)x[i] * (double)x[i];
		scale = (float)(1 / sqrt(sum / (double)d + eps));
		for (i = 0; i < d; i++)
			y[i] = x[i] * scale * w[i];
	}
}

/* gate <- silu(gate) * up, made contiguous: [n][ff] at the start of @gu. */
static void swiglu(float *gu, size_t n, size_t ff)
{
	size_t r, i;
	float g;

	for (r = 0; r < n; r++) {
		for (i = 0; i < ff; i++) {
			g = gu[r * 2 * ff + i];
			gu[r * ff + i] = g / (1 + expf(-g)) * gu[(2 * r + 1) * ff + i];
		}
	}
}

static int layer_forward(struct wk_lm *lm, struct wk_cache *cache, uint32_t l,
			 size_t n)
{
	const struct wk_config *c = &lm->cfg;
	const struct layer *y = &lm->layers[l];
	size_t d = c->hidden, q = (size_t)c->n_heads * c->head_dim;
	size_t kv = (size_t)c->n_kv_heads * c->head_dim;
	struct wk_rows rows = {
		.n = n, .stride = qkv_rows(c), .q = lm->qkv,
		.k = lm->qkv + q, .v = lm->qkv + q + kv, .o = lm->att,
	};
	int ret;

	rms_norm(lm->h, lm->x, y->norm_attn, n, d, c->eps);
	matmul(lm->qkv, lm->h, y->qkv, n, d, qkv_rows(c), 0);
	ret = cache->ops->attend(cache, l, &rows);
	if (ret)
		return ret;
	matmul(lm->x, lm->att, y->out, n, q, d, 1);
	rms_norm(lm->h, lm->x, y->norm_mlp, n, d, c->eps);
	matmul(lm->gu, lm->h, y->gate_up, n, d, 2 * (size_t)c->ff, 0);
	swiglu(lm->gu, n, c->ff);
	matmul(lm->x, lm->gu, y->down, n, c->ff, d, 1);
	return 0;
}

/* @n tokens, at most a chunk; logits of the last @wanted. */
static int chunk_forward(struct wk_lm *lm, struct wk_cache *cache,
			 const uint32_t *ids, size_t n, size_t wanted,
			 float *logits)
{
	size_t d = lm->cfg.hidden, i;
	uint32_t l;
	int ret;

	ret = cache->ops->begin(cache, n);
	if (ret)
		return ret;
	for (i = 0; i < n; i++)
		memcpy(lm->x + i * d, lm->embed + ids[i] * d, d * sizeof(float));
	for (l = 0; l < lm->cfg.n_layers; l++) {
		ret = layer_forward(lm, cache, l, n);
		if (ret)
			return ret;
	}
	ret = cache->ops->commit(cache, ids, n);
	if (ret || !wanted)
		return ret;
	rms_norm(lm->h, lm->x + (n - wanted) * d, lm->norm, wanted, d, lm->cfg.eps);
	matmul(logits, lm->h, lm->embed, wanted, d, lm->cfg.vocab, 0);
	return 0;
}

int wk_lm_forward(struct wk_lm *lm, struct wk_cache *cache, const uint32_t *ids,
		  size_t n, size_t wanted, float *logits)
{
	size_t have = cache->ops->length(cache), max = lm->cfg.max_position;
	size_t at, rows, skip = n - wanted, from;
	int ret;

	if (wanted > n)
		return wk_error(-EINVAL, "%zu logits wanted of %zu rows", wanted, n);
	if (have > max || n > max - have)
		return wk_error(-ERANGE, "%zu tokens and %zu more: the context is %zu",
				have, n, max);
	for (at = 0; at < n; at++)
		if (ids[at] >= lm->cfg.vocab)
			return wk_error(-EINVAL, "token %zu is %u, the vocabulary ends at %u",
					at, ids[at], lm->cfg.vocab);
	for (at = 0; at < n; at += rows) {
		rows = n - at < lm->chunk ? n - at : lm->chunk;
		from = skip > at ? skip - at : 0;
		if (from > rows)
			from = rows;
		ret = chunk_forward(lm, cache, ids + at, rows, rows - from, logits);
		if (ret)
			return ret;
		if (logits)
			logits += (rows - from) * lm->cfg.vocab;
	}
	return 0;
}
