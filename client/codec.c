// SPDX-License-Identifier: MIT
/* Coding with a model file alone: no context, no daemon, no state between calls. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "client/internal.h"

#define CODEC_MAGIC 0x63717863u
#define CODEC_MAX_BYTES (1ll << 32)

/**
 * struct cq_codec - a parsed model file; read-only once it is open
 * @magic: CODEC_MAGIC
 * @m:     parsed
 * @ops:   kernels
 * @image: the file
 * @bytes: of it
 */
struct cq_codec {
	uint32_t magic;
	struct cqk_model *m;
	const struct cqk_ops *ops;
	void *image;
	size_t bytes;
};

/* Keys or values of one layer and head, as the calls name them. */
struct part {
	const struct cqk_geom *g;
	const struct cqk_codebook *cb;
	uint64_t block_bytes;
	uint32_t head;
	bool key;
};

static int read_all(int fd, const char *path, uint8_t *to, size_t n)
{
	ssize_t got;

	while (n) {
		got = read(fd, to, n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return cqc_fail(-errno, "cannot read %s: %s", path, strerror(errno));
		if (!got)
			return cqc_fail(-EINVAL, "%s became shorter while it was read", path);
		to += got;
		n -= (size_t)got;
	}
	return 0;
}

static int read_open_file(struct cq_codec *codec, int fd, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return cqc_fail(-errno, "cannot look at %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size <= 0)
		return cqc_fail(-EINVAL, "%s is not a regular file, or empty", path);
	if (st.st_size > CODEC_MAX_BYTES)
		return cqc_fail(-EFBIG, "%s has %lld bytes; a model file has at most %lld", path,
				(long long)st.st_size, CODEC_MAX_BYTES);
	codec->bytes = (size_t)st.st_size;
	codec->image = malloc(codec->bytes);
	if (!codec->image)
		return cqc_fail(-ENOMEM, "out of memory for %s", path);
	return read_all(fd, path, codec->image, codec->bytes);
}

static int codec_read(struct cq_codec *codec, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), ret;

	if (fd < 0)
		return cqc_fail(-errno, "cannot open %s: %s", path, strerror(errno));
	ret = read_open_file(codec, fd, path);
	close(fd);
	return ret;
}

CQ_API int cq_codec_open(const char *path, struct cq_codec **out)
{
	struct cq_codec *codec;
	struct cq_err err;
	int ret;

	if (!path || !*path || !out)
		return cqc_fail(-EINVAL, "cq_codec_open: no path or no place for the result");
	codec = calloc(1, sizeof(*codec));
	if (!codec)
		return cqc_fail(-ENOMEM, "out of memory");
	codec->magic = CODEC_MAGIC;
	ret = cqc_kernels(&codec->ops);
	if (!ret)
		ret = codec_read(codec, path);
	if (!ret) {
		ret = cqk_model_parse(codec->image, codec->bytes, &codec->m, &err);
		if (ret)
			cqc_fail(ret, "%s: %s", path, err.text);
	}
	if (ret) {
		cq_codec_close(codec);
		return ret;
	}
	*out = codec;
	return 0;
}

CQ_API void cq_codec_close(struct cq_codec *codec)
{
	if (!codec || codec->magic != CODEC_MAGIC)
		return;
	codec->magic = 0;
	cqk_model_free(codec->m);
	free(codec->image);
	free(codec);
}

static int codec_check(const struct cq_codec *codec)
{
	if (codec && codec->magic == CODEC_MAGIC)
		return 0;
	cqc_fail(-EINVAL, "not an open codec");
	return -EINVAL;
}

CQ_API int cq_codec_get_info(const struct cq_codec *codec, struct cq_codec_info *info)
{
	const struct cqk_model *m;
	struct cq_codec_info i;
	int ret = codec_check(codec);

	if (ret)
		return ret;
	m = codec->m;
	memset(&i, 0, sizeof(i));
	i.n_layers = m->geom.n_layers;
	i.n_heads = m->geom.n_heads;
	i.n_kv_heads = m->geom.n_kv_heads;
	i.head_dim = m->geom.head_dim;
	i.max_position = m->geom.max_position;
	i.sinks = m->sinks;
	i.window = m->window;
	i.rotated = m->geom.keys == CQK_KEYS_ROTATED;
	i.file_bytes = codec->bytes;
	i.page_bytes = m->payload;
	memcpy(i.hash, m->hash, sizeof(i.hash));
	memcpy(i.fingerprint, m->fingerprint, sizeof(i.fingerprint));
	snprintf(i.kernels, sizeof(i.kernels), "%s", codec->ops->name);
	return cqc_opts_out(info, &i, sizeof(i), "cq_codec_info");
}

static int part_of(const struct cq_codec *codec, uint32_t layer, uint32_t kv, uint32_t head,
		   struct part *p)
{
	const struct cqk_layer *l;
	int ret = codec_check(codec);

	if (ret)
		return ret;
	p->g = &codec->m->geom;
	if (layer >= p->g->n_layers || kv > CQ_V || head >= p->g->n_kv_heads) {
		cqc_fail(-EINVAL, "layer %u, kv %u, head %u: the model has %u layers, keys (0) and "
				  "values (1), and %u kv heads",
			 layer, kv, head, p->g->n_layers, p->g->n_kv_heads);
		return -EINVAL;
	}
	l = &codec->m->layers[layer];
	p->cb = kv == CQ_V ? &l->v : &l->k;
	p->block_bytes = kv == CQ_V ? l->v_bytes : l->k_bytes;
	p->head = head;
	p->key = kv == CQ_K;
	return 0;
}

CQ_API int cq_codec_get_part(const struct cq_codec *codec, uint32_t layer, uint32_t kv,
			     struct cq_codec_part *part)
{
	struct cq_codec_part out;
	struct part p;
	int ret = part_of(codec, layer, kv, 0, &p);

	if (ret)
		return ret;
	memset(&out, 0, sizeof(out));
	out.channels = p.cb->code.channels;
	out.bits = p.cb->code.bits;
	out.block_bytes = p.block_bytes;
	cqk_code_name(p.cb->code, out.name);
	return cqc_opts_out(part, &out, sizeof(out), "cq_codec_part");
}

/* One row, in stored order. The channel that no half can hold, or -1. */
static int load_row(const struct part *p, const struct cq_view *x, size_t row, uint16_t *out)
{
	if (p->key)
		return cqc_key_to_f16(p->g, x, row, 0, out);
	return cqc_row_to_f16(x, row, 0, p->g->head_dim, out);
}

static void *page_rows(const struct part *p, size_t element)
{
	return aligned_alloc(64, CQ_PAGE_TOKENS * p->g->head_dim * element);
}

static int encode_block(const struct cq_codec *codec, const struct part *p,
			const struct cq_view *x, size_t first, uint32_t n, uint16_t *rows,
			uint8_t *codes)
{
	uint32_t d = p->g->head_dim, t;
	int bad;

	for (t = 0; t < n; t++) {
		bad = load_row(p, x, first + t, rows + t * d);
		if (bad >= 0)
			return cqc_fail(-EINVAL, "token %zu, channel %d is NaN, Inf or beyond "
						 "fp16", first + t, bad);
	}
	if (n < CQ_PAGE_TOKENS)
		memset(codes, 0, p->block_bytes);
	if (p->cb->code.type == CQ_CODE_F16)
		memcpy(codes, rows, (size_t)n * d * sizeof(*rows));
	else
		codec->ops->encode(p->cb, p->head, rows, 0, n, codes);
	return 0;
}

/* What both directions are asked for. */
static int call_check(const struct part *p, const struct cq_view *view, size_t n,
		      const void *codes)
{
	if (n > CQC_MAX_POSITIONS)
		return cqc_fail(-EINVAL, "%zu tokens at once; at most %u", n, CQC_MAX_POSITIONS);
	if (!codes)
		return cqc_fail(-EINVAL, "no place for the codes");
	return cqc_view_check(view, n, 1, p->g->head_dim, "rows");
}

CQ_API int cq_codec_encode(const struct cq_codec *codec, uint32_t layer, uint32_t kv,
			   uint32_t head, const struct cq_view *x, size_t n, void *codes)
{
	uint8_t *to = codes;
	uint16_t *rows;
	struct part p;
	size_t at;
	int ret = part_of(codec, layer, kv, head, &p);

	if (!ret)
		ret = call_check(&p, x, n, codes);
	if (ret)
		return ret;
	rows = page_rows(&p, sizeof(*rows));
	if (!rows)
		return cqc_fail(-ENOMEM, "out of memory");
	for (at = 0; at < n && !ret; at += CQ_PAGE_TOKENS, to += p.block_bytes)
		ret = encode_block(codec, &p, x, at, (uint32_t)MIN(n - at, CQ_PAGE_TOKENS), rows,
				   to);
	free(rows);
	return ret;
}

static void decode_block(const struct cq_codec *codec, const struct part *p,
			 const uint8_t *codes, uint32_t n, float *rows)
{
	if (p->cb->code.type == CQ_CODE_F16)
		cqk_halves_to_f32(codes, (size_t)n * p->g->head_dim, rows);
	else
		codec->ops->decode(p->cb, p->head, codes, 0, n, rows);
}

static void store_row(const struct part *p, const float *stored, size_t row,
		      const struct cq_view *out)
{
	if (p->key)
		cqc_key_from_f32(p->g, out, row, 0, stored);
	else
		cqk_row_from_f32(out, row, 0, p->g->head_dim, stored);
}

CQ_API int cq_codec_decode(const struct cq_codec *codec, uint32_t layer, uint32_t kv,
			   uint32_t head, const void *codes, size_t n,
			   const struct cq_view *out)
{
	const uint8_t *from = codes;
	struct part p;
	uint32_t m, t;
	float *rows;
	size_t at;
	int ret = part_of(codec, layer, kv, head, &p);

	if (!ret)
		ret = call_check(&p, out, n, codes);
	if (ret)
		return ret;
	rows = page_rows(&p, sizeof(*rows));
	if (!rows)
		return cqc_fail(-ENOMEM, "out of memory");
	for (at = 0; at < n; at += CQ_PAGE_TOKENS, from += p.block_bytes) {
		m = (uint32_t)MIN(n - at, CQ_PAGE_TOKENS);
		decode_block(codec, &p, from, m, rows);
		for (t = 0; t < m; t++)
			store_row(&p, rows + (size_t)t * p.g->head_dim, at + t, out);
	}
	free(rows);
	return 0;
}
