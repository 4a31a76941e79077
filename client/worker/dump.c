// SPDX-License-Identifier: MIT
/*
 * cq-worker dump: keys and values of the language model over some text, for
 * cqctl calibrate. Documentation/formats.md, "Activation dump".
 */
#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"

/**
 * struct dump - what the tap fills
 * @at:    tokens before the current sequence
 * @total: tokens of the dump
 * @data:  [layer][K, V][kv_head][total][head_dim] IEEE half
 */
struct dump {
	const struct wk_config *cfg;
	const struct wk_cache *cache;
	size_t at, total;
	uint16_t *data;
};

static void tap(void *arg, uint32_t layer, const struct wk_rows *rows)
{
	struct dump *dump = arg;
	const struct wk_config *c = dump->cfg;
	size_t at = dump->at + dump->cache->ops->length(dump->cache);
	size_t d = c->head_dim, r, i;
	const float *x;
	uint16_t *to;
	uint32_t h, kv;

	for (kv = 0; kv < 2; kv++) {
		for (h = 0; h < c->n_kv_heads; h++) {
			to = dump->data + d * (at + dump->total *
			     (((size_t)layer * 2 + kv) * c->n_kv_heads + h));
			x = (kv ? rows->v : rows->k) + h * d;
			for (r = 0; r < rows->n; r++, x += rows->stride)
				for (i = 0; i < d; i++)
					*to++ = wk_f32_to_f16(x[i]);
		}
	}
}

/* SHA-256 of the weight file, as hex digits. */
static int fingerprint(const char *dir, char hex[65])
{
	unsigned char md[EVP_MAX_MD_SIZE];
	unsigned int len = 0, i;
	char path[WK_PATH], *data = NULL;
	size_t size = 0;
	int ok, ret;

	ret = wk_path(path, dir, "model.safetensors");
	if (!ret)
		ret = wk_file_read(path, 1u << 30, &data, &size);
	if (ret)
		return ret;
	ok = EVP_Digest(data, size, md, &len, EVP_sha256(), NULL);
	free(data);
	if (!ok || len != 32)
		return wk_error(-EIO, "%s: SHA-256 failed", path);
	for (i = 0; i < 32; i++)
		snprintf(hex + 2 * i, 3, "%02x", md[i]);
	return 0;
}

static json_t *metadata(const struct dump *dump, const struct wk_opts *o,
			const char *hex)
{
	const struct wk_config *c = dump->cfg;
	const struct {
		const char *name;
		uint64_t value;
	} n[] = {
		{ "n_layers", c->n_layers }, { "n_heads", c->n_heads },
		{ "n_kv_heads", c->n_kv_heads }, { "head_dim", c->head_dim },
		{ "max_position", c->max_position }, { "rope_dim", c->head_dim },
		{ "sequence_tokens", o->length },
	};
	json_t *meta = json_object();
	char text[64];
	size_t i;

	for (i = 0; i < sizeof(n) / sizeof(n[0]); i++) {
		snprintf(text, sizeof(text), "%" PRIu64, n[i].value);
		json_object_set_new(meta, n[i].name, json_string(text));
	}
	snprintf(text, sizeof(text), "%.17g", c->rope_theta);
	json_object_set_new(meta, "rope_theta", json_string(text));
	json_object_set_new(meta, "format", json_string("cq-activations-1"));
	json_object_set_new(meta, "keys", json_string("pre-rope"));
	json_object_set_new(meta, "rope", json_string("half"));
	json_object_set_new(meta, "fingerprint", json_string(hex));
	json_object_set_new(meta, "source", json_sprintf("%s over %s", o->lm, o->ids));
	return meta;
}

/* The header: 8 bytes of length and JSON, padded to 64 bytes. malloc()ed. */
static char *header(const struct dump *dump, json_t *meta, size_t *size)
{
	const struct wk_config *c = dump->cfg;
	size_t bytes = c->n_kv_heads * dump->total * c->head_dim * 2, len, i;
	json_t *h = json_pack("{s:O}", "__metadata__", meta);
	char name[32], *json, *out;

	for (i = 0; h && i < 2 * (size_t)c->n_layers; i++) {
		snprintf(name, sizeof(name), "layers.%zu.%c", i / 2, "kv"[i % 2]);
		json_object_set_new(h, name, json_pack("{s:s,s:[I,I,I],s:[I,I]}",
			"dtype", "F16", "shape", (json_int_t)c->n_kv_heads,
			(json_int_t)dump->total, (json_int_t)c->head_dim,
			"data_offsets", (json_int_t)(i * bytes),
			(json_int_t)((i + 1) * bytes)));
	}
	json = h ? json_dumps(h, JSON_COMPACT) : NULL;
	json_decref(h);
	if (!json)
		return NULL;
	len = strlen(json);
	*size = (8 + len + 63) & ~(size_t)63;
	out = malloc(*size);
	if (out) {
		memset(out, ' ', *size);
		memcpy(out + 8, json, len);
		for (i = 0; i < 8; i++)
			out[i] = (char)((uint64_t)(*size - 8) >> (8 * i));
	}
	free(json);
	return out;
}

static int dump_write(const struct dump *dump, const struct wk_opts *o)
{
	const struct wk_config *c = dump->cfg;
	size_t bytes = 4 * (size_t)c->n_layers * c->n_kv_heads * dump->total *
		       c->head_dim, size = 0;
	char hex[65], *head;
	json_t *meta;
	FILE *f;
	int ret;

	ret = fingerprint(o->lm, hex);
	if (ret)
		return ret;
	meta = metadata(dump, o, hex);
	head = header(dump, meta, &size);
	json_decref(meta);
	if (!head)
		return wk_error(-ENOMEM, "out of memory");
	f = fopen(o->out, "we");
	if (!f) {
		ret = wk_error(-errno, "%s: %s", o->out, strerror(errno));
		free(head);
		return ret;
	}
	if (fwrite(head, 1, size, f) != size ||
	    fwrite(dump->data, 1, bytes, f) != bytes || fflush(f))
		ret = wk_error(-errno, "%s: %s", o->out, strerror(errno));
	free(head);
	fclose(f);
	return ret;
}

static int dump_sequences(struct dump *dump, struct wk_lm *lm,
			  struct wk_local *local, const uint32_t *ids, size_t length)
{
	double start = wk_now_ms();
	size_t n;
	int ret;

	for (dump->at = 0; dump->at < dump->total; dump->at += n) {
		n = dump->total - dump->at;
		n = n < length ? n : length;
		wk_local_reset(local);
		ret = wk_lm_forward(lm, wk_local_cache(local), ids + dump->at, n, 0,
				    NULL);
		if (ret)
			return ret;
		fprintf(stderr, "cq-worker: %zu of %zu tokens, %.1f s\n",
			dump->at + n, dump->total, (wk_now_ms() - start) / 1e3);
	}
	return 0;
}

/* The first @o->sequences times @o->length tokens of the file. */
static int dump_text(const struct wk_opts *o, struct wk_lm *lm,
		     struct wk_local *local, const uint32_t *ids, size_t n)
{
	const struct wk_config *cfg = wk_lm_config(lm);
	struct dump dump = { .cfg = cfg, .cache = wk_local_cache(local) };
	int ret;

	dump.total = o->sequences * o->length;
	if (o->length > cfg->max_position || dump.total > n || !dump.total)
		return wk_error(-EINVAL,
				"%s: %zu tokens, context %u: not %" PRIu64 " sequences of %" PRIu64,
				o->ids, n, cfg->max_position, o->sequences, o->length);
	dump.data = malloc(4 * (size_t)cfg->n_layers * cfg->n_kv_heads *
			   dump.total * cfg->head_dim);
	if (!dump.data)
		return wk_error(-ENOMEM, "out of memory");
	wk_local_tap(local, tap, &dump);
	ret = dump_sequences(&dump, lm, local, ids, o->length);
	if (!ret)
		ret = dump_write(&dump, o);
	free(dump.data);
	return ret;
}

int wk_cmd_dump(const struct wk_opts *o)
{
	struct wk_local *local = NULL;
	struct wk_lm *lm = NULL;
	uint32_t *ids = NULL;
	size_t n = 0;
	int ret;

	ret = wk_lm_load(o->lm, o->chunk, &lm);
	if (!ret)
		ret = wk_ids_read(o->ids, wk_lm_config(lm)->vocab, &ids, &n);
	if (!ret)
		ret = wk_local_new(wk_lm_config(lm), o->chunk, &local);
	if (!ret)
		ret = dump_text(o, lm, local, ids, n);
	wk_local_free(local);
	wk_lm_free(lm);
	free(ids);
	return ret;
}
