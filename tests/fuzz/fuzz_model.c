// SPDX-License-Identifier: MIT
/*
 * Fuzzer of the file parsers: models as the daemon checks them and as workers
 * prepare them, and activation dumps.
 *
 * Input: one byte of mode. Odd: the rest is a file. Even: two bytes say how
 * many data bytes to add, one byte fills them, the rest is the header's JSON;
 * its length is put in front, so that mutation works on the JSON alone.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/calibrate.h"
#include "kernels/kernels.h"

#define MUST(c) do { if (!(c)) { fprintf(stderr, "%s\n", #c); abort(); } } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Exactly as large as the file, so that ASan sees a read past its end. */
static uint8_t *build(const uint8_t *in, size_t n, size_t *size)
{
	size_t bytes, fill;
	uint64_t len;
	uint8_t *out;

	if (in[0] & 1 || n < 4) {
		*size = n - 1;
		out = malloc(*size ? *size : 1);
		if (out)
			memcpy(out, in + 1, *size);
		return out;
	}
	bytes = (size_t)in[1] | (size_t)in[2] << 8;
	fill = in[3];
	len = n - 4;
	*size = 8 + len + bytes;
	out = malloc(*size);
	if (!out)
		return NULL;
	memcpy(out, &len, 8);
	memcpy(out + 8, in + 4, len);
	memset(out + 8 + len, (int)fill, bytes);
	return out;
}

/* What a worker is going to rely on. */
static void check_model(const struct cqk_model *m)
{
	const struct cqk_geom *g = &m->geom;
	double freq[CQ_MAX_HEAD_DIM / 2];
	uint64_t at = 0;
	uint32_t l;

	MUST(g->n_layers && g->n_kv_heads && g->n_heads % g->n_kv_heads == 0);
	MUST(g->head_dim % 2 == 0 && g->rope_dim <= g->head_dim);
	for (l = 0; l < g->n_layers; l++) {
		MUST(m->layers[l].offset == at);
		at += g->n_kv_heads * (m->layers[l].k_bytes + m->layers[l].v_bytes);
	}
	MUST(at == m->payload && m->slot_bytes >= at + 64);
	MUST(!m->sinks == !m->sink_slot_bytes);
	cqk_rope_freq(g, freq);
	for (l = 0; l < g->rope_dim / 2; l++)
		MUST(isfinite(freq[l]) && freq[l] > 0);
}

static float sum_planes(const struct cqk_codebook *cb)
{
	size_t n = (size_t)cb->n_kv_heads * cb->head_dim * 256, i;
	float sum = 0;

	for (i = 0; cb->f32 && i < n; i++)
		sum += cb->f32[i];
	for (i = 0; cb->enc && i < n; i++)
		sum += cb->enc[i];
	for (i = 0; cb->i8 && i < n; i++)
		sum += cb->i8[i];
	n = (size_t)cb->n_kv_heads * cb->n_groups * 256;
	for (i = 0; cb->half_norm && i < n; i++)
		sum += cb->half_norm[i];
	return sum;
}

/* Written again, it is the same model. */
static void write_again(const struct cqk_model *m)
{
	static struct cq_code code[2][CQ_MAX_LAYERS];
	static const void *books[2 * CQ_MAX_LAYERS];
	static const float *scales[2 * CQ_MAX_LAYERS], *metrics[2 * CQ_MAX_LAYERS];
	struct cqk_model_desc desc = { .geom = m->geom, .k = code[0], .v = code[1],
		.centroids = m->layers[0].k.centroids, .sinks = m->sinks,
		.window = m->window, .codebooks = books, .scales = scales,
		.metrics = metrics };
	struct cqk_model *again;
	void *image;
	size_t size;
	uint32_t l;

	memcpy(desc.fingerprint, m->fingerprint, 32);
	for (l = 0; l < m->geom.n_layers; l++) {
		code[0][l] = m->layers[l].k.code;
		code[1][l] = m->layers[l].v.code;
		books[2 * l] = m->layers[l].k.stored;
		books[2 * l + 1] = m->layers[l].v.stored;
		scales[2 * l] = m->layers[l].k.scale;
		scales[2 * l + 1] = m->layers[l].v.scale;
		metrics[2 * l] = m->layers[l].k.metric;
		metrics[2 * l + 1] = m->layers[l].v.metric;
	}
	MUST(!cqk_model_write(&desc, &image, &size, NULL));
	MUST(!cqk_model_head(image, size, &again, NULL));
	MUST(!memcmp(again->hash, m->hash, 32));
	cqk_model_free(again);
	free(image);
}

static void try_model(const uint8_t *image, size_t size)
{
	struct cqk_model *head = NULL, *m = NULL;
	struct cq_err err = { "" };
	int ret = cqk_model_head(image, size, &head, &err);
	uint32_t l;
	float sum = 0;

	MUST(ret <= 0 && !ret == !!head);
	MUST(!ret || err.text[0]);
	MUST(cqk_model_parse(image, size, &m, NULL) == ret);
	if (!m)
		return;
	check_model(head);
	check_model(m);
	MUST(!memcmp(head->hash, m->hash, 32));
	for (l = 0; l < m->geom.n_layers; l++)
		sum += sum_planes(&m->layers[l].k) + sum_planes(&m->layers[l].v);
	MUST(sum == sum);	/* every centroid is finite */
	write_again(m);
	cqk_model_free(head);
	cqk_model_free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cqk_dump_info info;
	struct cq_err err = { "" };
	uint8_t *image;
	size_t n = 0;

	if (!size)
		return 0;
	image = build(data, size, &n);
	if (!image)
		return 0;
	try_model(image, n);
	MUST(!cqk_dump_info(image, n, &info, &err) || err.text[0]);
	free(image);
	return 0;
}
