// SPDX-License-Identifier: MIT
/*
 * Model files: check an image, find out what a page of the model looks like,
 * and prepare codebooks for the kernels.
 *
 * The daemon stops after the check (cqk_model_head): it never decodes.
 * Workers prepare planes: channel-major values, the encoder's constants and,
 * for 8-bit centroids, byte tables that fit vector registers.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/f16.h"
#include "kernels/meta.h"
#include "kernels/model.h"
#include "kernels/safetensors.h"

#define PLANE_ALIGN 64
#define MAX_SCALE 516.0f	/* 127 * 516 is still about the largest half */

/* "12" -> 12; no sign, no leading zero, at most two digits. */
static const char *parse_small(const char *s, uint32_t *out)
{
	uint32_t x = 0;
	int i;

	if (*s == '0')
		return NULL;
	for (i = 0; isdigit((unsigned char)*s); i++, s++) {
		if (i == 2)
			return NULL;
		x = x * 10 + (uint32_t)(*s - '0');
	}
	*out = x;
	return i ? s : NULL;
}

/* All widths that the page format, the encoders and attention have. */
static bool has_width(uint32_t c, uint32_t b)
{
	return b == 8 || (b == 10 && c == 8);
}

/**
 * cqk_code_parse() - name of a coding to its parameters
 * @text:     "fp16" or "<c>c<b>b"
 * @head_dim: channels per head, which c must divide
 * @out:      set on success
 * @err:      text of the failure, may be NULL
 *
 * Return: 0; -EINVAL no such coding for this head_dim; -EOPNOTSUPP a number of
 * bits this build does not have.
 */
int cqk_code_parse(const char *text, uint32_t head_dim, struct cq_code *out,
		   struct cq_err *err)
{
	uint32_t c = 0, b = 0;
	const char *s = text;
	char buf[48];

	if (!strcmp(text, "fp16")) {
		*out = (struct cq_code){ .type = CQ_CODE_F16 };
		return 0;
	}
	s = parse_small(s, &c);
	s = s && *s == 'c' ? parse_small(s + 1, &b) : NULL;
	if (!s || strcmp(s, "b"))
		return cq_err_set(err, -EINVAL, "coding \"%s\" is neither fp16 nor like "
				  "4c8b (4 channels share a code of 8 bits)",
				  cqk_printable(text, buf));
	if (!has_width(c, b))
		return cq_err_set(err, -EOPNOTSUPP, "coding %uc%ub: codes of %u bits are "
				  "not supported for %u channels, those of 8 bits and 8c10b are",
				  c, b, b, c);
	if (c > 16 || head_dim % c)
		return cq_err_set(err, -EINVAL, "coding %uc%ub: %u channels per group do "
				  "not go with head_dim %u: a divisor of it up to 16 is "
				  "wanted", c, b, c, head_dim);
	*out = (struct cq_code){ .type = CQ_CODE_CQ, .channels = (uint8_t)c,
				 .bits = (uint8_t)b };
	return 0;
}

/**
 * cqk_code_name() - parameters of a coding to its name
 * @code: coding
 * @buf:  at least 16 bytes
 *
 * Return: @buf.
 */
const char *cqk_code_name(struct cq_code code, char *buf)
{
	if (code.type == CQ_CODE_F16)
		snprintf(buf, 16, "fp16");
	else
		snprintf(buf, 16, "%uc%ub", code.channels, code.bits);
	return buf;
}

static struct cqk_codebook *codebook_of(struct cqk_layer *layer, int is_v)
{
	return is_v ? &layer->v : &layer->k;
}

static void init_codebook(struct cqk_codebook *cb, struct cq_code code,
			  const struct cqk_geom *g, uint32_t centroids)
{
	cb->code = code;
	cb->centroids = centroids;
	cb->head_dim = g->head_dim;
	cb->n_kv_heads = g->n_kv_heads;
	cb->n_groups = code.channels ? g->head_dim / code.channels : 0;
}

static uint32_t count_names(const char *s)
{
	uint32_t n = 1;

	for (; *s; s++)
		n += *s == ',';
	return n;
}

/* "4c8b", or "4c8b,2c8b,..." with one name per layer. */
static int parse_codes(const struct st_file *f, struct cqk_model *m, int is_v,
		       uint32_t centroids, struct cq_err *err)
{
	const char *key = is_v ? "v" : "k", *s = st_meta(f, key);
	struct cq_code code;
	uint32_t l, names;
	char name[16];
	size_t len;
	int ret;

	if (!s)
		return cq_err_set(err, -EINVAL, "metadata %s is missing", key);
	names = count_names(s);
	if (names != 1 && names != m->geom.n_layers)
		return cq_err_set(err, -EINVAL, "metadata %s: %u codings for %u layers",
				  key, names, m->geom.n_layers);
	for (l = 0; l < m->geom.n_layers; l++) {
		len = strcspn(s, ",");
		snprintf(name, sizeof(name), "%.*s", (int)MIN(len, sizeof(name)), s);
		ret = cqk_code_parse(name, m->geom.head_dim, &code, err);
		if (ret)
			return ret;
		init_codebook(codebook_of(&m->layers[l], is_v), code, &m->geom,
			      centroids);
		if (names > 1)
			s += len + 1;
	}
	return 0;
}

/* A mistyped key must not silently mean its default. */
static int check_keys(const struct st_file *f, struct cq_err *err)
{
	static const char *const known[] = {
		"format", "n_layers", "n_heads", "n_kv_heads", "head_dim",
		"max_position", "keys", "k", "v", "centroids", "sinks", "window",
		"fingerprint", "provenance",
	};
	const char *key = NULL;
	char buf[48];
	size_t i;

	while ((key = st_meta_next(f, key))) {
		if (!strncmp(key, "rope", 4))	/* cqk_meta_rope() knows these */
			continue;
		for (i = 0; i < ARRAY_SIZE(known) && strcmp(key, known[i]); i++)
			;
		if (i == ARRAY_SIZE(known) && strncmp(key, "x-", 2))
			return cq_err_set(err, -EINVAL, "unknown metadata %s",
					  cqk_printable(key, buf));
	}
	return 0;
}

static int parse_meta(const struct st_file *f, struct cqk_model *m, struct cq_err *err)
{
	static const char *const names[] = {
		[CQK_CENTROIDS_F16] = "f16", [CQK_CENTROIDS_I8] = "i8",
	};
	uint32_t centroids;
	int ret;

	if ((ret = check_keys(f, err)) ||
	    (ret = cqk_meta_word(f, "centroids", names, 2, &centroids, err)) ||
	    (ret = cqk_meta_u32(f, "sinks", 0, CQ_MAX_SINKS, &m->sinks, err)) ||
	    (ret = cqk_meta_u32(f, "window", 0, CQ_MAX_WINDOW, &m->window, err)) ||
	    (ret = cqk_meta_hash(f, "fingerprint", m->fingerprint, err)))
		return ret;
	if (m->window % CQ_PAGE_TOKENS)
		return cq_err_set(err, -EINVAL, "metadata window: %u is not a multiple "
				  "of %d", m->window, CQ_PAGE_TOKENS);
	if ((ret = parse_codes(f, m, 0, centroids, err)) ||
	    (ret = parse_codes(f, m, 1, centroids, err)))
		return ret;
	return 0;
}

static int check_shape(const struct st_tensor *t, uint32_t dtype, const uint64_t *shape,
		       uint32_t n, struct cq_err *err)
{
	uint32_t i;

	if (t->dtype != dtype)
		return cq_err_set(err, -EINVAL, "tensor %s: not of the type that metadata "
				  "centroids asks for", t->name);
	for (i = 0; i < n && t->n_dims == n; i++)
		if (t->shape[i] != shape[i])
			break;
	if (t->n_dims != n || i < n)
		return cq_err_set(err, -EINVAL, "tensor %s: its shape does not go with "
				  "the metadata: dimension %u must be %llu", t->name,
				  i % n, (unsigned long long)shape[i % n]);
	return 0;
}

static int check_f16(const struct st_tensor *t, struct cq_err *err)
{
	const uint16_t *x = t->data;
	uint64_t i;

	for (i = 0; i < t->bytes / 2; i++)
		if (!cqk_f16_finite(x[i]))
			return cq_err_set(err, -EINVAL, "tensor %s: value %llu is NaN or "
					  "infinite", t->name, (unsigned long long)i);
	return 0;
}

/* -128 has no counterpart: kernels may negate a centroid. */
static int check_i8(const struct st_tensor *t, struct cq_err *err)
{
	const int8_t *x = t->data;
	uint64_t i;

	for (i = 0; i < t->bytes; i++)
		if (x[i] == -128)
			return cq_err_set(err, -EINVAL, "tensor %s: value %llu is -128, "
					  "only -127 to 127 are used", t->name,
					  (unsigned long long)i);
	return 0;
}

static int check_scale(const struct st_tensor *t, struct cq_err *err)
{
	const float *x = t->data;
	uint64_t i;

	for (i = 0; i < t->bytes / 4; i++)
		if (!(x[i] >= 0 && x[i] <= MAX_SCALE))
			return cq_err_set(err, -EINVAL, "tensor %s: value %llu is not "
					  "from 0 to %g", t->name, (unsigned long long)i,
					  (double)MAX_SCALE);
	return 0;
}

static int check_metric(const struct st_tensor *t, struct cq_err *err)
{
	const float *x = t->data;
	uint64_t i;

	for (i = 0; i < t->bytes / 4; i++)
		if (!(x[i] >= CQK_METRIC_MIN && x[i] <= CQK_METRIC_MAX))
			return cq_err_set(err, -EINVAL, "tensor %s: value %llu is not "
					  "from %g to %g", t->name, (unsigned long long)i,
					  (double)CQK_METRIC_MIN, (double)CQK_METRIC_MAX);
	return 0;
}

static const struct st_tensor *find_tensor(const struct st_file *f, uint32_t layer,
					   int is_v, const char *what,
					   struct cq_err *err)
{
	const struct st_tensor *t;
	char name[40];

	snprintf(name, sizeof(name), "layers.%u.%c.%s", layer, is_v ? 'v' : 'k', what);
	t = st_find(f, name);
	if (!t)
		cq_err_set(err, -EINVAL, "tensor %s is missing", name);
	return t;
}

/* A number per channel: scale or metric. */
static int take_numbers(const struct st_file *f, const struct cqk_codebook *cb,
			uint32_t layer, int is_v, const char *what,
			int (*check)(const struct st_tensor *t, struct cq_err *err),
			const float **out, struct cq_err *err)
{
	const uint64_t shape[] = { cb->n_kv_heads, cb->head_dim };
	const struct st_tensor *t = find_tensor(f, layer, is_v, what, err);
	int ret;

	if (!t)
		return -EINVAL;
	ret = check_shape(t, ST_F32, shape, 2, err);
	if (!ret)
		ret = check(t, err);
	if (!ret)
		*out = t->data;
	return ret;
}

/* Finds and checks one codebook; counts the tensors it has used. */
static int take_codebook(const struct st_file *f, struct cqk_codebook *cb,
			 uint32_t layer, int is_v, size_t *used, struct cq_err *err)
{
	const uint64_t shape[] = { cb->n_kv_heads, cb->n_groups,
				   cqk_code_centroids(cb->code), cb->code.channels };
	int i8 = cb->centroids == CQK_CENTROIDS_I8, ret;
	const struct st_tensor *t;

	if (cb->code.type == CQ_CODE_F16)
		return 0;
	t = find_tensor(f, layer, is_v, "codebook", err);
	if (!t)
		return -EINVAL;
	ret = check_shape(t, i8 ? ST_I8 : ST_F16, shape, 4, err);
	if (!ret)
		ret = i8 ? check_i8(t, err) : check_f16(t, err);
	if (ret)
		return ret;
	cb->stored = t->data;
	(*used)++;
	if (i8) {
		ret = take_numbers(f, cb, layer, is_v, "scale", check_scale, &cb->scale, err);
		(*used)++;
	}
	if (!ret && find_tensor(f, layer, is_v, "metric", NULL)) {
		ret = take_numbers(f, cb, layer, is_v, "metric", check_metric, &cb->metric,
				   err);
		(*used)++;
	}
	return ret;
}

static int take_tensors(const struct st_file *f, struct cqk_model *m,
			struct cq_err *err)
{
	size_t used = 0;
	uint32_t l;
	int ret;

	for (l = 0; l < m->geom.n_layers; l++) {
		ret = take_codebook(f, &m->layers[l].k, l, 0, &used, err);
		if (!ret)
			ret = take_codebook(f, &m->layers[l].v, l, 1, &used, err);
		if (ret)
			return ret;
	}
	if (used != st_count(f))
		return cq_err_set(err, -EINVAL, "%zu tensors that are no codebook, "
				  "scale or metric of this model", st_count(f) - used);
	return 0;
}

static void lay_out(struct cqk_model *m)
{
	const struct cqk_geom *g = &m->geom;
	struct cqk_layer *layer;
	uint32_t l;

	for (l = 0; l < g->n_layers; l++) {
		layer = &m->layers[l];
		layer->k_bytes = cq_code_block_bytes(layer->k.code, g->head_dim);
		layer->v_bytes = cq_code_block_bytes(layer->v.code, g->head_dim);
		layer->offset = m->payload;
		m->payload += g->n_kv_heads * (layer->k_bytes + layer->v_bytes);
	}
	m->slot_bytes = cq_slot_bytes(m->payload);
	m->f16_block = cq_f16_block_bytes(g->n_layers, g->n_kv_heads, g->head_dim,
					  CQ_PAGE_TOKENS);
	if (m->sinks) {
		m->sink_payload = cq_f16_block_bytes(g->n_layers, g->n_kv_heads,
						     g->head_dim, m->sinks);
		m->sink_slot_bytes = cq_slot_bytes(m->sink_payload);
	}
}

/* A growing text that is part of the identity. */
__attribute__((format(printf, 2, 3)))
static int hash_text(EVP_MD_CTX *md, const char *fmt, ...)
{
	char buf[128];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	return EVP_DigestUpdate(md, buf, (size_t)n);
}

static int hash_real(EVP_MD_CTX *md, const char *key, double x)
{
	uint64_t bits;

	memcpy(&bits, &x, 8);
	return hash_text(md, "\n%s=%016" PRIx64, key, bits);
}

/* Only what is not the default has a line: formats.md, "Identity". */
static int hash_rope(EVP_MD_CTX *md, const struct cqk_geom *g)
{
	struct cqk_rope_scaling s = g->rope_scaling;
	const struct cqk_rope_number *n;
	int ok = hash_real(md, "rope_theta", g->rope_theta);
	uint32_t i;

	if (ok && g->rope_pairs != CQK_PAIRS_HALF)
		ok = hash_text(md, "\nrope=%s", cqk_pairs_name(g));
	if (ok && s.type != CQK_SCALING_NONE)
		ok = hash_text(md, "\nrope_scaling=%s", cqk_scaling_name(s.type));
	for (i = 0; ok && (n = cqk_rope_number(i)); i++)
		if (cqk_rope_has(&s, n))
			ok = hash_real(md, n->key, *cqk_rope_value(&s, n));
	return ok;
}

static int hash_header(EVP_MD_CTX *md, const struct cqk_model *m)
{
	const struct cqk_geom *g = &m->geom;
	char buf[65];
	uint32_t l;
	int is_v, ok;

	ok = hash_text(md, CQK_MODEL_FORMAT) &&
	     hash_text(md, "\nn_layers=%u\nn_heads=%u", g->n_layers, g->n_heads) &&
	     hash_text(md, "\nn_kv_heads=%u\nhead_dim=%u", g->n_kv_heads, g->head_dim) &&
	     hash_text(md, "\nmax_position=%u", g->max_position) &&
	     hash_text(md, "\nkeys=%s", cqk_keys_name(g->keys)) &&
	     hash_text(md, "\nrope_dim=%u", g->rope_dim) &&
	     hash_rope(md, g) &&
	     hash_text(md, "\ncentroids=%s",
		       cqk_centroids_name(m->layers[0].k.centroids)) &&
	     hash_text(md, "\nsinks=%u\nwindow=%u", m->sinks, m->window);
	for (is_v = 0; is_v < 2; is_v++)
		for (l = 0; ok && l < g->n_layers; l++)
			ok = hash_text(md, "%s%s", l ? "," : is_v ? "\nv=" : "\nk=",
				       cqk_code_name(codebook_of(&m->layers[l],
								 is_v)->code, buf));
	return ok && hash_text(md, "\nfingerprint=%s\n", cqk_hex(m->fingerprint, buf));
}

static int hash_data(EVP_MD_CTX *md, const void *data, uint64_t bytes)
{
	return EVP_DigestUpdate(md, &bytes, 8) && EVP_DigestUpdate(md, data, bytes);
}

static uint64_t stored_bytes(const struct cqk_codebook *cb)
{
	return (uint64_t)cb->n_kv_heads * cb->head_dim * cqk_code_centroids(cb->code) *
	       (cb->centroids == CQK_CENTROIDS_I8 ? 1 : 2);
}

static int hash_codebook(EVP_MD_CTX *md, const struct cqk_codebook *cb)
{
	uint64_t numbers = 4ull * cb->n_kv_heads * cb->head_dim;

	if (cb->code.type == CQ_CODE_F16)
		return 1;
	return hash_data(md, cb->stored, stored_bytes(cb)) &&
	       (!cb->scale || hash_data(md, cb->scale, numbers)) &&
	       (!cb->metric || hash_data(md, cb->metric, numbers));
}

/* The model's identity, as Documentation/formats.md has it. */
static int hash_model(struct cqk_model *m, struct cq_err *err)
{
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	uint32_t l;
	int ok;

	ok = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL) && hash_header(md, m);
	for (l = 0; ok && l < m->geom.n_layers; l++)
		ok = hash_codebook(md, &m->layers[l].k) &&
		     hash_codebook(md, &m->layers[l].v);
	ok = ok && EVP_DigestFinal_ex(md, m->hash, NULL);
	EVP_MD_CTX_free(md);
	return ok ? 0 : cq_err_set(err, -ENOMEM, "no memory for the model's hash");
}

static int fill_model(const struct st_file *f, struct cqk_model *m, struct cq_err *err)
{
	int ret = cqk_meta_format(f, CQK_MODEL_FORMAT, "a cq model", err);

	if (!ret)
		ret = cqk_meta_geom(f, &m->geom, err);
	if (ret)
		return ret;
	m->layers = calloc(m->geom.n_layers, sizeof(*m->layers));
	if (!m->layers)
		return cq_err_set(err, -ENOMEM, "no memory for a model's layers");
	ret = parse_meta(f, m, err);
	if (!ret)
		ret = take_tensors(f, m, err);
	if (ret)
		return ret;
	lay_out(m);
	return hash_model(m, err);
}

int cqk_model_head(const void *image, size_t size, struct cqk_model **out,
		   struct cq_err *err)
{
	struct cqk_model *m;
	struct st_file *f;
	int ret;

	ret = st_open(image, size, &f, err);
	if (ret)
		return ret;
	m = calloc(1, sizeof(*m));
	ret = m ? fill_model(f, m, err) :
	      cq_err_set(err, -ENOMEM, "no memory for a model");
	st_close(f);
	if (ret) {
		cqk_model_free(m);
		return ret;
	}
	*out = m;
	return 0;
}

static float stored_value(const struct cqk_codebook *cb, uint64_t i, uint32_t scale_at)
{
	if (cb->centroids == CQK_CENTROIDS_I8)
		return (float)((const int8_t *)cb->stored)[i] * cb->scale[scale_at];
	return cqk_f16_to_f32(((const uint16_t *)cb->stored)[i]);
}

/* Planes of one group of one head. */
static void prepare_group(struct cqk_codebook *cb, uint32_t head, uint32_t group)
{
	uint32_t c = cb->code.channels, n = cqk_code_centroids(cb->code), k, j, ch;
	uint64_t at = ((uint64_t)head * cb->n_groups + group) * n * c;
	float *half = cb->half_norm + ((uint64_t)head * cb->n_groups + group) * n;
	float sum, x, e;

	for (k = 0; k < n; k++) {
		sum = 0;
		for (j = 0; j < c; j++, at++) {
			ch = head * cb->head_dim + group * c + j;
			x = stored_value(cb, at, ch);
			e = cb->metric ? cb->metric[ch] * x : x;
			cb->f32[(uint64_t)ch * n + k] = x;
			cb->enc[(uint64_t)ch * n + k] = e;
			if (cb->i8)
				cb->i8[(uint64_t)ch * n + k] =
					((const int8_t *)cb->stored)[at];
			sum += x * e;
		}
		half[k] = sum * 0.5f;
	}
}

static int prepare_codebook(struct cqk_codebook *cb)
{
	uint64_t planes = (uint64_t)cb->n_kv_heads * cb->head_dim << cb->code.bits;
	uint64_t norms = (uint64_t)cb->n_kv_heads * cb->n_groups << cb->code.bits;
	int i8 = cb->centroids == CQK_CENTROIDS_I8, own = cb->metric != NULL;
	uint32_t h, g;

	if (cb->code.type == CQ_CODE_F16)
		return 0;
	/* One piece of memory; every part is a multiple of 256 bytes. */
	cb->f32 = aligned_alloc(PLANE_ALIGN, ((own ? 2 : 1) * planes + norms) * 4 +
				(i8 ? planes : 0));
	if (!cb->f32)
		return -ENOMEM;
	cb->enc = cb->f32 + (own ? planes : 0);
	cb->half_norm = cb->enc + planes;
	if (i8)
		cb->i8 = (int8_t *)(cb->half_norm + norms);
	for (h = 0; h < cb->n_kv_heads; h++)
		for (g = 0; g < cb->n_groups; g++)
			prepare_group(cb, h, g);
	return 0;
}

int cqk_model_parse(const void *image, size_t size, struct cqk_model **out,
		    struct cq_err *err)
{
	struct cqk_model *m;
	uint32_t l;
	int ret;

	ret = cqk_model_head(image, size, &m, err);
	if (ret)
		return ret;
	for (l = 0; !ret && l < m->geom.n_layers; l++) {
		ret = prepare_codebook(&m->layers[l].k);
		if (!ret)
			ret = prepare_codebook(&m->layers[l].v);
	}
	if (ret) {
		cqk_model_free(m);
		return cq_err_set(err, ret, "no memory for prepared codebooks");
	}
	*out = m;
	return 0;
}

void cqk_model_free(struct cqk_model *model)
{
	uint32_t l;

	if (!model)
		return;
	for (l = 0; model->layers && l < model->geom.n_layers; l++) {
		free(model->layers[l].k.f32);
		free(model->layers[l].v.f32);
	}
	free(model->layers);
	free(model);
}
