// SPDX-License-Identifier: MIT
/* The rule by which a kernel is chosen. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/param.h>
#include "cq/util.h"
#include "kernels/cuda/params.h"
#include "kernels/cuda/variant.h"

static const char *const names[CQK_CUDA_VARIANTS] = {
	[CQK_CUDA_AUTO] = "auto",
	[CQK_CUDA_BLOCK] = "block",
	[CQK_CUDA_FEW] = "few",
	[CQK_CUDA_F16] = "f16",
	[CQK_CUDA_LUT] = "lut",
	[CQK_CUDA_BOOKS] = "books",
	[CQK_CUDA_SLICES] = "slices",
	[CQK_CUDA_WGMMA] = "wgmma",
	[CQK_CUDA_BYTES] = "bytes",
};

/*
 * The first line that fits and can is taken; 0 fits all. Computed, not measured: to be
 * replaced by what make gpu-bench finds.
 */
static const struct {
	uint32_t arch;		/* from this compute capability on */
	uint32_t head_dim;
	uint32_t channels;	/* of a group of keys */
	uint32_t gqa;		/* up to so many query heads of a kv head */
	enum cqk_cuda_variant take;
} table[] = {
	{ 80, 0, 8, 2, CQK_CUDA_LUT },
	{ 80, 0, 4, 2, CQK_CUDA_LUT },
	{ 80, 0, 2, 1, CQK_CUDA_LUT },
	{ 80, 0, 0, 0, CQK_CUDA_FEW },
	{ 80, 0, 0, 0, CQK_CUDA_F16 },
	{ 80, 0, 0, 0, CQK_CUDA_BYTES },
	{ 80, 0, 0, 0, CQK_CUDA_LUT },
	{ 90, 0, 0, 0, CQK_CUDA_SLICES },
};

static const char *const encode_names[CQK_ENCODE_WAYS] = {
	[CQK_ENCODE_AUTO] = "auto",
	[CQK_ENCODE_ALL] = "all",
	[CQK_ENCODE_NEAR] = "near",
};

/* Computed likewise, by instructions of both ways: see Documentation/gpu.md. */
static const struct {
	uint32_t channels, from;
} encode_table[] = {
	{ 8, 4 }, { 4, 6 }, { 2, 8 },
};

/*
 * Vectors up to which pages are read again for each eight of them. Computed by
 * scripts/gpu-model.py, not measured: likewise to be replaced.
 */
static const struct {
	enum cqk_cuda_variant variant;
	uint32_t head_dim;
	uint32_t channels;	/* of a group */
	uint32_t vecs;
} eights[] = {
	{ CQK_CUDA_FEW, 64, 2, 60 }, { CQK_CUDA_FEW, 64, 4, 32 }, { CQK_CUDA_FEW, 64, 8, 24 },
	{ CQK_CUDA_FEW, 128, 2, 60 }, { CQK_CUDA_FEW, 128, 4, 40 }, { CQK_CUDA_FEW, 128, 8, 56 },
	{ CQK_CUDA_BYTES, 128, 2, 56 }, { CQK_CUDA_BYTES, 128, 4, 16 },
};

/*
 * More vectors than these are computed sooner from books in shared memory than eight by
 * eight, if a block of threads has so many pages, times vectors beyond eight, that it is
 * worth the start of a kernel. Computed by scripts/gpu-model.py, too.
 */
static const struct books {
	uint32_t channels, vecs, work;
} books[] = {
	{ 2, 8, 80 }, { 4, 8, 120 }, { 8, 8, 160 },
};

const char *cqk_cuda_variant_name(enum cqk_cuda_variant v)
{
	return v < CQK_CUDA_VARIANTS ? names[v] : "?";
}

const char *cqk_cuda_encode_name(enum cqk_cuda_encode e)
{
	return e < CQK_ENCODE_WAYS ? encode_names[e] : "?";
}

/* Which of @n names; the first for none, -1 if there is no such. */
static int index_of(const char *name, const char *const *list, int n)
{
	int i;

	if (!name || !*name)
		return 0;
	for (i = 0; i < n; i++)
		if (!strcmp(name, list[i]))
			return i;
	return -1;
}

int cqk_cuda_variant_of(const char *name, enum cqk_cuda_variant *v, struct cq_err *err)
{
	int i = index_of(name, names, CQK_CUDA_VARIANTS);

	if (i < 0)
		return cq_err_set(err, -EINVAL,
				  "%s=%s is no variant of kernels; there are auto, block, few, "
				  "f16, lut, books, slices, wgmma and bytes",
				  CQK_CUDA_VARIANT_ENV, name);
	*v = (enum cqk_cuda_variant)i;
	return 0;
}

int cqk_cuda_encode_of(const char *name, enum cqk_cuda_encode *e, struct cq_err *err)
{
	int i = index_of(name, encode_names, CQK_ENCODE_WAYS);

	if (i < 0)
		return cq_err_set(err, -EINVAL, "%s=%s is no way to codes; there are auto, all and "
						"near", CQK_CUDA_ENCODE_ENV, name);
	*e = (enum cqk_cuda_encode)i;
	return 0;
}

bool cqk_cuda_encode_near(enum cqk_cuda_encode forced, uint32_t channels, uint32_t tokens)
{
	uint32_t i;

	if (forced != CQK_ENCODE_AUTO)
		return forced == CQK_ENCODE_NEAR;
	for (i = 0; i < ARRAY_SIZE(encode_table); i++)
		if (encode_table[i].channels == channels)
			return tokens >= encode_table[i].from;
	return false;
}

/* Both sides are coded, and keys turn in pairs of the two halves. */
static bool coded(const struct cqk_cuda_shape *s)
{
	return s->k_channels && s->v_channels && (!s->turned || s->turned == s->head_dim);
}

uint32_t cqk_cuda_slice(uint32_t head_dim, uint32_t bits)
{
	return bits > 8 || head_dim > CQKD_FEW_DIM ? CQKD_SLICE(head_dim, bits) : head_dim;
}

/*
 * What one block of threads has no room for: 1,024 centroids of 128 channels are 256 KiB of
 * halves, of keys or values alone, as are 256 of 256 channels for both. Where codes of 10
 * bits and of 8 are mixed there are kernels for 128 channels only.
 */
static uint32_t slices_shared(const struct cqk_cuda_shape *s)
{
	uint32_t d = s->head_dim, bits = MAX(s->k_bits, s->v_bits);

	if (s->arch < 90 || (bits <= 8 && d <= CQKD_FEW_DIM) ||
	    (s->k_bits != s->v_bits && d != 128))
		return 0;
	return CQKD_SLICES_SHARED(d, bits, s->k_channels, s->k_bits, s->v_channels, s->v_bits);
}

bool cqk_cuda_variant_lut(const struct cqk_cuda_shape *s, struct cqk_cuda_lut *l)
{
	static const uint32_t least = 4, enough = 8;	/* warps of a block of threads */
	uint32_t d = s->head_dim, best = 0, keys, tiles, words, most = CQKD_LUT_WARPS;

	if (!coded(s) || s->turned || MAX(s->k_bits, s->v_bits) > 8 || d > CQKD_FEW_DIM)
		return false;
	/* their code is made for so many */
	if (d > 64 && s->arch != 80 && (s->arch < 90 || s->arch >= 120))
		most = CQKD_LUT_WARPS_99K;
	keys = d / s->k_channels;
	tiles = CQKD_LUT_SHARED(d, 0, 1, keys + d / s->v_channels) - CQKD_LUT_SHARED(d, 0, 0, 0);
	/* with rows more than once all lanes read at once; but warps come first */
	for (words = 32; words >= keys / 2 && best < enough; words /= 2) {
		uint32_t fixed = CQKD_LUT_SHARED(d, words, 0, 0), warps;

		if (fixed > s->shared)
			continue;
		warps = MIN((s->shared - fixed) / tiles, most) & ~1u;
		if (warps < least || warps <= best)
			continue;
		best = warps;
		*l = (struct cqk_cuda_lut){ words, warps, words < keys ? 1 : CQKD_LUT_VECS };
	}
	return best;
}

static uint32_t lut_shared(const struct cqk_cuda_shape *s)
{
	struct cqk_cuda_lut l;

	if (!cqk_cuda_variant_lut(s, &l))
		return 0;
	return CQKD_LUT_SHARED(s->head_dim, l.words, l.warps,
			       s->head_dim / s->k_channels + s->head_dim / s->v_channels);
}

uint32_t cqk_cuda_variant_shared(enum cqk_cuda_variant v, const struct cqk_cuda_shape *s)
{
	uint32_t d = s->head_dim, bits = MAX(s->k_bits, s->v_bits), groups, two;

	if (d != 64 && d != 128 && d != 256)
		return 0;
	if (v == CQK_CUDA_LUT)
		return lut_shared(s);
	if (v == CQK_CUDA_F16)
		return bits || s->turned || d > CQKD_FEW_DIM ? 0 : CQKD_F16_SHARED(d);
	if (!coded(s))
		return 0;
	if (v == CQK_CUDA_SLICES)
		return slices_shared(s);
	if (bits > 8 || d > CQKD_FEW_DIM)
		return 0;
	groups = d / s->k_channels + d / s->v_channels;
	if (v == CQK_CUDA_FEW)
		return CQKD_FEW_SHARED(d, groups);
	if (v == CQK_CUDA_BYTES)
		return s->bytes && d == 128 ? CQKD_BYTES_SHARED(d, groups) : 0;
	if (v == CQK_CUDA_WGMMA)
		return d < 128 ? 0 : CQKD_WGMMA_SHARED(groups);
	two = CQKD_BOOKS_SHARED(groups, 2);
	return d < 128 ? 0 : two <= s->shared ? two : CQKD_BOOKS_SHARED(groups, 1);
}

bool cqk_cuda_variant_can(enum cqk_cuda_variant v, const struct cqk_cuda_shape *s)
{
	uint32_t shared;

	if (v < CQK_CUDA_FEW || v >= CQK_CUDA_VARIANTS)
		return v == CQK_CUDA_BLOCK;
	if (v == CQK_CUDA_WGMMA && s->arch != 90)	/* and of none after it */
		return false;
	shared = cqk_cuda_variant_shared(v, s);
	return shared && shared <= s->shared;
}

enum cqk_cuda_variant cqk_cuda_variant_choose(enum cqk_cuda_variant forced,
					      const struct cqk_cuda_shape *s)
{
	uint32_t i;

	if (forced != CQK_CUDA_AUTO && forced != CQK_CUDA_BOOKS && forced != CQK_CUDA_WGMMA)
		return cqk_cuda_variant_can(forced, s) ? forced : CQK_CUDA_BLOCK;
	for (i = 0; i < ARRAY_SIZE(table); i++) {
		if (s->arch < table[i].arch ||
		    (table[i].head_dim && table[i].head_dim != s->head_dim) ||
		    (table[i].channels && table[i].channels != s->k_channels) ||
		    (table[i].gqa && table[i].gqa < s->gqa))
			continue;
		if (cqk_cuda_variant_can(table[i].take, s))
			return table[i].take;
	}
	return CQK_CUDA_BLOCK;
}

static uint32_t eights_of(enum cqk_cuda_variant v, uint32_t head_dim, uint32_t channels)
{
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(eights); i++)
		if (eights[i].variant == v && eights[i].head_dim == head_dim &&
		    eights[i].channels == channels)
			return eights[i].vecs;
	return 0;
}

uint32_t cqk_cuda_variant_vecs(enum cqk_cuda_variant forced, const struct cqk_cuda_shape *s)
{
	enum cqk_cuda_variant v = cqk_cuda_variant_choose(forced, s);

	/* beside attn_lut.cu, for items of more vectors */
	if (v == CQK_CUDA_LUT && forced != CQK_CUDA_LUT)
		v = cqk_cuda_variant_can(CQK_CUDA_FEW, s) ? CQK_CUDA_FEW :
		    cqk_cuda_variant_can(CQK_CUDA_BYTES, s) ? CQK_CUDA_BYTES : v;
	if (v != CQK_CUDA_FEW && v != CQK_CUDA_BYTES)
		return 0;
	if (forced == v)	/* all that are not wide */
		return CQKD_VECS(s->head_dim);
	return MIN(eights_of(v, s->head_dim, s->k_channels),
		   eights_of(v, s->head_dim, s->v_channels));
}

static const struct books *books_of(uint32_t channels)
{
	uint32_t i;

	for (i = 0; i + 1 < ARRAY_SIZE(books); i++)
		if (books[i].channels == channels)
			break;
	return &books[i];
}

uint32_t cqk_cuda_variant_books(enum cqk_cuda_variant forced, const struct cqk_cuda_shape *s,
				uint32_t *work)
{
	const struct books *k, *v;

	*work = 0;
	/* of what is older nothing was computed, nor is there a GPU */
	if (!cqk_cuda_variant_can(CQK_CUDA_BOOKS, s) || s->arch < 80)
		return 0;
	if (forced == CQK_CUDA_BOOKS || forced == CQK_CUDA_WGMMA)
		return CQKD_FEW_VECS;
	if (forced != CQK_CUDA_AUTO)
		return 0;
	k = books_of(s->k_channels);
	v = books_of(s->v_channels);
	*work = MAX(k->work, v->work);
	return MAX(k->vecs, v->vecs);
}

bool cqk_cuda_variant_wgmma(enum cqk_cuda_variant forced, const struct cqk_cuda_shape *s)
{
	return (forced == CQK_CUDA_AUTO || forced == CQK_CUDA_WGMMA) &&
	       cqk_cuda_variant_can(CQK_CUDA_WGMMA, s);
}
