/* SPDX-License-Identifier: MIT */
/*
 * A model file and activations out of thin air, the same in every process:
 * tests and benches need bytes that are right, not text that makes sense.
 */
#ifndef TESTS_SYNTH_H
#define TESTS_SYNTH_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cq.h"
#include "kernels/model.h"

#define SYNTH_MAX_LAYERS 32

/**
 * struct synth - shape of a synthetic model
 * @code: coding of K and V, "4c8b" or "fp16"
 * @seed: other seed, other codebooks, other model
 */
struct synth {
	uint32_t layers, heads, kv_heads, dim;
	uint32_t sinks, window, max_position;
	const char *code;
	uint64_t seed;
};

/* 8 KiB a page, so that pages are many and memory is little. */
#define SYNTH_SMALL { .layers = 2, .heads = 4, .kv_heads = 2, .dim = 64, \
		      .sinks = 4, .window = 64, .max_position = 32768, \
		      .code = "4c8b", .seed = 1 }

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014) */
static inline uint64_t synth_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* A half between 2^-5 and 4 with either sign: finite, no subnormals. */
static inline uint16_t synth_half(uint64_t x)
{
	uint64_t r = synth_mix(x);

	return (uint16_t)((r & 0x8000) | (10 + (r >> 16) % 7) << 10 | (r >> 32 & 0x3ff));
}

static inline uint16_t *synth_codebook(const struct synth *m, uint32_t which,
				       uint32_t channels)
{
	size_t n = (size_t)m->kv_heads * (m->dim / channels) * 256 * channels, i;
	uint16_t *book = malloc(n * sizeof(*book));

	for (i = 0; book && i < n; i++)
		book[i] = synth_half(m->seed << 40 ^ (uint64_t)which << 32 ^ i);
	return book;
}

static inline int synth_write_fd(int fd, const void *image, size_t size)
{
	const char *p = image;
	ssize_t n;

	for (; size; p += n, size -= (size_t)n) {
		n = write(fd, p, size);
		if (n < 0)
			return -errno;
	}
	return 0;
}

static inline int synth_save(const char *path, const void *image, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), ret;

	if (fd < 0)
		return -errno;
	ret = synth_write_fd(fd, image, size);
	close(fd);
	return ret;
}

/* Write the model file of @m to @path. 0 or -errno. */
static inline int synth_model(const struct synth *m, const char *path, struct cq_err *err)
{
	struct cq_code codes[SYNTH_MAX_LAYERS];
	const void *books[2 * SYNTH_MAX_LAYERS] = { NULL };
	struct cqk_model_desc d = {
		.geom = { .n_layers = m->layers, .n_heads = m->heads,
			  .n_kv_heads = m->kv_heads, .head_dim = m->dim,
			  .max_position = m->max_position, .keys = CQK_KEYS_PRE_ROPE,
			  .rope_dim = m->dim, .rope_theta = 10000 },
		.k = codes, .v = codes, .centroids = CQK_CENTROIDS_F16,
		.sinks = m->sinks, .window = m->window, .codebooks = books,
	};
	struct cq_code code = { 0 };
	void *image = NULL;
	size_t size = 0;
	uint32_t i;
	int ret;

	ret = cqk_code_parse(m->code, m->dim, &code, err);
	for (i = 0; !ret && i < m->layers; i++)
		codes[i] = code;
	for (i = 0; !ret && code.type == CQ_CODE_CQ && i < 2 * m->layers; i++) {
		books[i] = synth_codebook(m, i, code.channels);
		if (!books[i])
			ret = -ENOMEM;
	}
	if (!ret)
		ret = cqk_model_write(&d, &image, &size, err);
	if (!ret)
		ret = synth_save(path, image, size);
	free(image);
	for (i = 0; i < 2 * m->layers; i++) {
		void *p;

		memcpy(&p, &books[i], sizeof(p));
		free(p);
	}
	return ret;
}

/* Token ids of a text: the same @text, the same ids. */
static inline void synth_ids(uint32_t *ids, size_t n, uint32_t text)
{
	size_t i;

	for (i = 0; i < n; i++)
		ids[i] = (uint32_t)(synth_mix((uint64_t)text << 32 | i) % 32000);
}

/*
 * Keys (@what 0), values (1) or queries (2) of @n tokens from token @from of
 * @text: [n][heads][dim] halves.
 */
static inline void synth_rows(uint16_t *x, const struct synth *m, uint32_t text,
			      uint32_t what, uint32_t layer, size_t from, size_t n)
{
	size_t width = (size_t)(what == 2 ? m->heads : m->kv_heads) * m->dim, i, t;

	for (t = 0; t < n; t++)
		for (i = 0; i < width; i++)
			x[t * width + i] = synth_half((uint64_t)text << 48 ^
				(uint64_t)(what * SYNTH_MAX_LAYERS + layer) << 40 ^
				(uint64_t)(from + t) << 16 ^ i);
}

static inline struct cq_view synth_view(const struct synth *m, uint16_t *x, uint32_t heads)
{
	return (struct cq_view){ .data = x, .dtype = CQ_F16,
				 .stride_token = (int64_t)heads * m->dim,
				 .stride_head = m->dim };
}

#endif /* TESTS_SYNTH_H */
