/* SPDX-License-Identifier: MIT */
/* Activation dumps for tests of calibration, and what is learnt from them. */
#ifndef TEST_FAKE_DUMP_H
#define TEST_FAKE_DUMP_H

#include "kernels/calibrate.h"
#include "tests/kernels/image.h"

/**
 * struct fake - an activation dump in the making
 * @at: [2 * n_layers] first byte of K of layer 0, V of layer 0, ...
 */
struct fake {
	struct image im;
	struct cqk_geom geom;
	uint32_t tokens;
	bool f32, fisher;
	uint8_t *at[8], *fisher_at[8];
};

static const char hash_text[] =
	"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

__attribute__((unused))
static void put(struct fake *f, uint8_t *base, uint32_t head, uint32_t tok, uint32_t ch,
		double x)
{
	size_t i = ((size_t)head * f->tokens + tok) * f->geom.head_dim + ch;

	if (f->f32)
		((float *)(void *)base)[i] = (float)x;
	else
		((uint16_t *)(void *)base)[i] = cqk_f32_to_f16((float)x);
}

/* Lays the file out; every value is 0. */
__attribute__((unused))
static void fake_new(struct fake *f, uint32_t d, uint32_t tokens, uint32_t seq, bool f32,
		     bool fisher)
{
	struct st_tensor t[16] = { { 0 } };
	char names[16][32], dim[16], seq_text[16];
	const char *meta[] = {
		"format", "cq-activations-1", "n_layers", "2", "n_heads", "4",
		"n_kv_heads", "2", "head_dim", dim, "max_position", "2048",
		"keys", "pre-rope", "rope", "half", "rope_dim", dim,
		"rope_theta", "10000", "sequence_tokens", seq_text,
		"fingerprint", hash_text, "source", "noise",
	};
	uint32_t i, n = fisher ? 8 : 4;
	size_t at, bytes;
	void *header;

	*f = (struct fake){ .geom = small_geom(d), .tokens = tokens, .f32 = f32,
			    .fisher = fisher };
	snprintf(dim, sizeof(dim), "%u", d);
	snprintf(seq_text, sizeof(seq_text), "%u", seq);
	bytes = (size_t)2 * tokens * d * (f32 ? 4 : 2);
	for (i = 0; i < n; i++) {
		snprintf(names[i], sizeof(names[i]), "layers.%u.%c%s", i / 2 % 2,
			 i % 2 ? 'v' : 'k', i < 4 ? "" : ".fisher");
		t[i] = (struct st_tensor){ .name = names[i],
			.dtype = f32 ? ST_F32 : ST_F16, .n_dims = 3,
			.shape = { 2, tokens, d }, .bytes = bytes };
	}
	at = st_header(t, n, meta, ARRAY_SIZE(meta) / 2, &header);
	ASSERT(at);
	f->im.size = at + n * bytes;
	f->im.buf = realloc(header, f->im.size);
	ASSERT(f->im.buf);
	memset(f->im.buf + at, 0, n * bytes);
	for (i = 0; i < n; i++)
		*(i < 4 ? &f->at[i] : &f->fisher_at[i - 4]) = f->im.buf + at + i * bytes;
}

__attribute__((unused))
static void fake_noise(struct fake *f, uint64_t seed)
{
	uint32_t e, h, t, ch;

	for (e = 0; e < 4; e++)
		for (h = 0; h < 2; h++)
			for (t = 0; t < f->tokens; t++)
				for (ch = 0; ch < f->geom.head_dim; ch++)
					put(f, f->at[e], h, t, ch, gauss(&seed));
}

static struct cq_code codes[4][2];

__attribute__((unused))
static struct cqk_calib_opts options(const struct fake *f, const char *k, const char *v)
{
	struct cqk_calib_opts o = { .geom = f->geom, .k = codes[0], .v = codes[1],
		.clip = 0.999, .starts = 1,
		.centroids = CQK_CENTROIDS_F16, .window = 128, .iterations = 10,
		.threads = 1, .seed = 3, .fingerprint = { 1, 2, 3 } };
	int l;

	for (l = 0; l < 2; l++) {
		ASSERT_OK(cqk_code_parse(k, f->geom.head_dim, &codes[0][l], NULL));
		ASSERT_OK(cqk_code_parse(v, f->geom.head_dim, &codes[1][l], NULL));
	}
	return o;
}

__attribute__((unused))
static struct image calibrated(const struct fake *f, const struct cqk_calib_opts *o,
			       struct cqk_calib_error *errors)
{
	struct image im = { 0 };
	struct cq_err err;
	void *buf;

	if (cqk_calibrate(f->im.buf, f->im.size, o, errors, &buf, &im.size, &err))
		FAIL("%s", err.text);
	im.buf = buf;
	return im;
}

#endif /* TEST_FAKE_DUMP_H */
