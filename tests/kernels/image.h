/* SPDX-License-Identifier: MIT */
/* Safetensors images for tests: from any JSON, and whole models. */
#ifndef TEST_IMAGE_H
#define TEST_IMAGE_H

#include "kernels/f16.h"
#include "kernels/kmeans.h"
#include "kernels/model.h"
#include "kernels/safetensors.h"

struct image {
	uint8_t *buf;
	size_t size;
};

/* 8 bytes of length, @json padded to 8 bytes, @bytes of data. */
__attribute__((unused))
static struct image image_json(const char *json, size_t bytes)
{
	size_t len = strlen(json), padded = (len + 7) / 8 * 8;
	struct image im = { .size = 8 + padded + bytes };
	uint64_t n = padded;

	im.buf = calloc(1, im.size);
	ASSERT(im.buf);
	memcpy(im.buf, &n, 8);
	memcpy(im.buf + 8, json, len);
	memset(im.buf + 8 + len, ' ', padded - len);
	return im;
}

__attribute__((unused))
static double uniform(uint64_t *rng)
{
	return (double)(cqk_random(rng) >> 11) * 0x1p-53;
}

/* About normal, mean 0, deviation 1. */
__attribute__((unused))
static double gauss(uint64_t *rng)
{
	double sum = 0;
	int i;

	for (i = 0; i < 12; i++)
		sum += uniform(rng);
	return sum - 6;
}

__attribute__((unused))
static struct cqk_geom small_geom(uint32_t head_dim)
{
	return (struct cqk_geom){ .n_layers = 2, .n_heads = 4, .n_kv_heads = 2,
				  .head_dim = head_dim, .max_position = 2048,
				  .keys = CQK_KEYS_PRE_ROPE, .rope_dim = head_dim,
				  .rope_theta = 10000 };
}

__attribute__((unused))
static void image_scale(float *scale, size_t n, uint64_t *rng)
{
	size_t i;

	for (i = 0; i < n; i++)
		scale[i] = 0.01f + 0.02f * (float)uniform(rng);
}

/* A model file with random codebooks; every layer coded alike, @metric with a metric. */
__attribute__((unused))
static struct image image_metric(struct cqk_geom geom, const char *k, const char *v,
				 uint32_t centroids, bool metric)
{
	size_t channels = (size_t)geom.n_kv_heads * geom.head_dim, i;
	struct cq_code *codes = calloc(2ull * geom.n_layers, sizeof(*codes));
	const void **books = calloc(2ull * geom.n_layers, sizeof(*books));
	const float **scales = calloc(4ull * geom.n_layers, sizeof(*scales));
	uint16_t *halves = malloc(channels * 1024 * 2);
	int8_t *bytes = malloc(channels * 1024);
	float *scale = malloc(channels * 4);
	struct cqk_model_desc desc = { .geom = geom, .k = codes,
		.v = codes + geom.n_layers, .centroids = centroids, .sinks = 4,
		.window = 128, .provenance = "random", .codebooks = books,
		.scales = scales, .metrics = scales + 2ull * geom.n_layers };
	struct image im = { 0 };
	uint64_t rng = 7;
	uint32_t l;

	for (i = 0; i < channels * 1024; i++) {
		if (i == channels * 256)	/* what codes of 8 bits have */
			image_scale(scale, channels, &rng);
		halves[i] = cqk_f32_to_f16((float)gauss(&rng));
		bytes[i] = (int8_t)((int)(uniform(&rng) * 255) - 127);
	}
	for (l = 0; l < geom.n_layers; l++) {
		ASSERT_OK(cqk_code_parse(k, geom.head_dim, &codes[l], NULL));
		ASSERT_OK(cqk_code_parse(v, geom.head_dim, &codes[geom.n_layers + l],
					 NULL));
	}
	for (l = 0; l < 2 * geom.n_layers; l++) {
		books[l] = centroids == CQK_CENTROIDS_I8 ? (void *)bytes : (void *)halves;
		scales[l] = scale;
		scales[2 * geom.n_layers + l] = metric ? scale : NULL;
	}
	for (l = 0; l < 32; l++)
		desc.fingerprint[l] = (uint8_t)l;
	ASSERT_OK(cqk_model_write(&desc, (void **)&im.buf, &im.size, NULL));
	free(codes);
	free(books);
	free(scales);
	free(halves);
	free(bytes);
	free(scale);
	return im;
}

__attribute__((unused))
static struct image image_model(struct cqk_geom geom, const char *k, const char *v,
				uint32_t centroids)
{
	return image_metric(geom, k, v, centroids, false);
}

#endif /* TEST_IMAGE_H */
