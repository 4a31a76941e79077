// SPDX-License-Identifier: MIT
/*
 * Writing model files: the counterpart of model.c, for calibration and for
 * tests that need a model.
 */
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/meta.h"
#include "kernels/model.h"
#include "kernels/safetensors.h"

#define MAX_META 26
#define NAME_BYTES 40

/* Everything st_header() points to while it works. */
struct writer {
	const struct cqk_model_desc *d;
	struct st_tensor *tensors;
	char (*names)[NAME_BYTES];
	size_t n;
	char numbers[17][32];
	char *codes[2];
	char fingerprint[65];
	const char *meta[2 * MAX_META];
	size_t n_meta;
};

static void put_meta(struct writer *w, const char *key, const char *value)
{
	w->meta[2 * w->n_meta] = key;
	w->meta[2 * w->n_meta + 1] = value;
	w->n_meta++;
}

static void put_number(struct writer *w, int slot, const char *key, uint32_t x)
{
	snprintf(w->numbers[slot], sizeof(w->numbers[slot]), "%u", x);
	put_meta(w, key, w->numbers[slot]);
}

/* A decimal point whatever locale the program has set. */
static int put_real(struct writer *w, int slot, const char *key, double x)
{
	locale_t c_locale = newlocale(LC_ALL_MASK, "C", NULL), before;

	if (!c_locale)
		return -ENOMEM;
	before = uselocale(c_locale);
	snprintf(w->numbers[slot], sizeof(w->numbers[slot]), "%.17g", x);
	uselocale(before);
	freelocale(c_locale);
	put_meta(w, key, w->numbers[slot]);
	return 0;
}

static int put_rope(struct writer *w, int slot)
{
	const struct cqk_geom *g = &w->d->geom;
	struct cqk_rope_scaling s = g->rope_scaling;
	const struct cqk_rope_number *n;
	uint32_t i;

	put_meta(w, "rope", cqk_pairs_name(g));
	put_number(w, slot++, "rope_dim", g->rope_dim);
	if (put_real(w, slot++, "rope_theta", g->rope_theta))
		return -ENOMEM;
	if (s.type != CQK_SCALING_NONE)
		put_meta(w, "rope_scaling", cqk_scaling_name(s.type));
	for (i = 0; (n = cqk_rope_number(i)); i++)
		if (cqk_rope_has(&s, n) && put_real(w, slot++, n->key, *cqk_rope_value(&s, n)))
			return -ENOMEM;
	return 0;
}

/* One name for all layers, or one per layer. */
static char *codes_text(const struct cq_code *codes, uint32_t n)
{
	char *text = malloc(16ull * n), name[16];
	size_t at = 0;
	uint32_t l;

	if (!text)
		return NULL;
	for (l = 1; l < n && !memcmp(&codes[l], &codes[0], sizeof(*codes)); l++)
		;
	if (l >= n)
		n = 1;
	for (l = 0; l < n; l++)
		at += (size_t)snprintf(text + at, 16, "%s%s", l ? "," : "",
				       cqk_code_name(codes[l], name));
	return text;
}

static int put_all_meta(struct writer *w)
{
	const struct cqk_model_desc *d = w->d;
	const struct cqk_geom *g = &d->geom;

	put_meta(w, "format", CQK_MODEL_FORMAT);
	put_number(w, 0, "n_layers", g->n_layers);
	put_number(w, 1, "n_heads", g->n_heads);
	put_number(w, 2, "n_kv_heads", g->n_kv_heads);
	put_number(w, 3, "head_dim", g->head_dim);
	put_number(w, 4, "max_position", g->max_position);
	put_meta(w, "keys", cqk_keys_name(g->keys));
	if (put_rope(w, 7))
		return -ENOMEM;
	w->codes[0] = codes_text(d->k, g->n_layers);
	w->codes[1] = codes_text(d->v, g->n_layers);
	if (!w->codes[0] || !w->codes[1])
		return -ENOMEM;
	put_meta(w, "k", w->codes[0]);
	put_meta(w, "v", w->codes[1]);
	put_meta(w, "centroids", cqk_centroids_name(d->centroids));
	put_number(w, 5, "sinks", d->sinks);
	put_number(w, 6, "window", d->window);
	put_meta(w, "fingerprint", cqk_hex(d->fingerprint, w->fingerprint));
	if (d->provenance)
		put_meta(w, "provenance", d->provenance);
	return 0;
}

static struct st_tensor *put_tensor(struct writer *w, uint32_t i, const char *what,
				    uint32_t dtype, const void *data)
{
	struct st_tensor *t = &w->tensors[w->n];

	snprintf(w->names[w->n], NAME_BYTES, "layers.%u.%c.%s", i / 2,
		 i % 2 ? 'v' : 'k', what);
	t->name = w->names[w->n++];
	t->dtype = dtype;
	t->data = data;
	return t;
}

/* Scale or metric: [kv_head][d]. */
static void put_numbers(struct writer *w, uint32_t i, const char *what, const float *data)
{
	struct st_tensor *t = put_tensor(w, i, what, ST_F32, data);

	t->n_dims = 2;
	t->shape[0] = w->d->geom.n_kv_heads;
	t->shape[1] = w->d->geom.head_dim;
	t->bytes = t->shape[0] * t->shape[1] * 4;
}

/* Codebook, scale and metric of layer i / 2: K for even i, V for odd i. */
static int put_codebook(struct writer *w, uint32_t i)
{
	const struct cqk_model_desc *d = w->d;
	const struct cqk_geom *g = &d->geom;
	struct cq_code code = i % 2 ? d->v[i / 2] : d->k[i / 2];
	int i8 = d->centroids == CQK_CENTROIDS_I8;
	struct st_tensor *t;

	if (code.type == CQ_CODE_F16)
		return 0;
	if (!code.channels || !d->codebooks[i] || (i8 && !d->scales[i]))
		return -EINVAL;
	t = put_tensor(w, i, "codebook", i8 ? ST_I8 : ST_F16, d->codebooks[i]);
	t->n_dims = 4;
	t->shape[0] = g->n_kv_heads;
	t->shape[1] = g->head_dim / code.channels;
	t->shape[2] = cqk_code_centroids(code);
	t->shape[3] = code.channels;
	t->bytes = t->shape[0] * t->shape[1] * t->shape[2] * code.channels * (i8 ? 1 : 2);
	if (i8)
		put_numbers(w, i, "scale", d->scales[i]);
	if (d->metrics && d->metrics[i])
		put_numbers(w, i, "metric", d->metrics[i]);
	return 0;
}

static int assemble(struct writer *w, void **image, size_t *size)
{
	void *header = NULL;
	size_t total, at, i;
	uint8_t *buf;

	at = st_header(w->tensors, w->n, w->meta, w->n_meta, &header);
	if (!at)
		return -ENOMEM;
	for (total = at, i = 0; i < w->n; i++)
		total += w->tensors[i].bytes;
	buf = realloc(header, total);
	if (!buf) {
		free(header);
		return -ENOMEM;
	}
	for (i = 0; i < w->n; i++) {
		memcpy(buf + at, w->tensors[i].data, w->tensors[i].bytes);
		at += w->tensors[i].bytes;
	}
	*image = buf;
	*size = total;
	return 0;
}

int cqk_model_write(const struct cqk_model_desc *desc, void **image, size_t *size,
		    struct cq_err *err)
{
	uint32_t i, n = 2 * desc->geom.n_layers;
	struct writer *w = calloc(1, sizeof(*w));
	int ret = -ENOMEM;

	if (!w)
		goto out;
	w->d = desc;
	w->tensors = calloc(3ull * n, sizeof(*w->tensors));
	w->names = calloc(3ull * n, sizeof(*w->names));
	if (!w->tensors || !w->names)
		goto out;
	ret = put_all_meta(w);
	for (i = 0; !ret && i < n; i++)
		ret = put_codebook(w, i);
	if (!ret)
		ret = assemble(w, image, size);
out:
	if (ret == -ENOMEM)
		cq_err_set(err, ret, "no memory to write a model file");
	else if (ret)
		cq_err_set(err, ret, "a coded layer has no codebook or no scale");
	if (w) {
		free(w->codes[0]);
		free(w->codes[1]);
		free(w->names);
		free(w->tensors);
	}
	free(w);
	return ret;
}
