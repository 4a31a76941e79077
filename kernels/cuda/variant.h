/* SPDX-License-Identifier: MIT */
/*
 * Which kernel computes attention of few query vectors, and of many: one rule, from the shape
 * of the work and the device. Documentation/gpu.md has the arithmetic behind the tables.
 */
#ifndef CQK_CUDA_VARIANT_H
#define CQK_CUDA_VARIANT_H

#include <stdbool.h>
#include <stdint.h>
#include "cq/err.h"

/* In the environment: a variant by name instead of the rule, for tests and benches. */
#define CQK_CUDA_VARIANT_ENV "CQ_CUDA_VARIANT"

/**
 * enum cqk_cuda_variant - kernels for items of at most CQKD_FEW_VECS query vectors, but for one
 * @CQK_CUDA_AUTO:  what the rule says
 * @CQK_CUDA_BLOCK: attn.cu: blocks are decoded into shared memory
 * @CQK_CUDA_FEW:   attn_few.cu: centroids are in shared memory, decoded into fragments
 * @CQK_CUDA_F16:   attn_f16.cu: halves are read as fast as memory delivers
 * @CQK_CUDA_LUT:   attn_lut.cu: products of query and centroid are in shared memory
 * @CQK_CUDA_BOOKS: attn_books.cu, for items of more vectors: centroids are in shared
 *                  memory, decoded into tiles
 * @CQK_CUDA_SLICES: attn_slices.cu: the same as attn_few.cu by clusters of blocks, which have
 *                  slices of the centroids
 * @CQK_CUDA_WGMMA: attn_books_wgmma.cu, the same as attn_books.cu by the tensor cores of
 *                  sm_90a
 * @CQK_CUDA_BYTES: attn_bytes.cu: the same as attn_few.cu, of centroids that stay bytes there
 * @CQK_CUDA_VARIANTS: number of them
 */
enum cqk_cuda_variant {
	CQK_CUDA_AUTO, CQK_CUDA_BLOCK, CQK_CUDA_FEW, CQK_CUDA_F16, CQK_CUDA_LUT, CQK_CUDA_BOOKS,
	CQK_CUDA_SLICES, CQK_CUDA_WGMMA, CQK_CUDA_BYTES, CQK_CUDA_VARIANTS
};

/* In the environment, too: how codes are found. */
#define CQK_CUDA_ENCODE_ENV "CQ_CUDA_ENCODE"

/**
 * enum cqk_cuda_encode - ways to the same codes
 * @CQK_ENCODE_AUTO:  by the tokens of a destination
 * @CQK_ENCODE_ALL:   encode.cuh: the distance from all centroids
 * @CQK_ENCODE_NEAR:  near.cuh: from those that tensor cores found to be near
 * @CQK_ENCODE_WAYS:  number of them
 */
enum cqk_cuda_encode {
	CQK_ENCODE_AUTO, CQK_ENCODE_ALL, CQK_ENCODE_NEAR, CQK_ENCODE_WAYS
};

/**
 * struct cqk_cuda_shape - what a choice depends on
 * @head_dim:   channels of a head
 * @k_channels: channels of a group of keys, 0: not coded
 * @v_channels: of values
 * @k_bits:     of a code of keys, 0: not coded
 * @v_bits:     of values
 * @bytes:      centroids of both are of a byte a channel, times a scale
 * @turned:     channels of a key that attention rotates, 0: none
 * @gqa:        query heads of a kv head
 * @arch:       compute capability, 90 for 9.0
 * @shared:     bytes of shared memory that a block of threads can have
 */
struct cqk_cuda_shape {
	uint32_t head_dim;
	uint32_t k_channels, v_channels;
	uint32_t k_bits, v_bits;
	bool bytes;
	uint32_t turned;
	uint32_t gqa;
	uint32_t arch;
	uint32_t shared;
};

/**
 * cqk_cuda_variant_name() - a variant in words
 * @v: variant
 *
 * Return: its name, a constant.
 */
const char *cqk_cuda_variant_name(enum cqk_cuda_variant v);

/**
 * cqk_cuda_variant_of() - a variant by name
 * @name: text; NULL or empty: CQK_CUDA_AUTO
 * @v:    set on success
 * @err:  text of the failure, may be NULL
 *
 * Return: 0; -EINVAL unknown, the text lists those there are.
 */
int cqk_cuda_variant_of(const char *name, enum cqk_cuda_variant *v, struct cq_err *err);

/**
 * cqk_cuda_variant_shared() - shared memory of a kernel that may have too little
 * @v: any but CQK_CUDA_AUTO and CQK_CUDA_BLOCK
 * @s: shape
 *
 * Return: bytes, of CQK_CUDA_BOOKS with two tiles if they fit; 0 if that kernel does not
 * compute such a shape.
 */
uint32_t cqk_cuda_variant_shared(enum cqk_cuda_variant v, const struct cqk_cuda_shape *s);

/**
 * struct cqk_cuda_lut - how attn_lut.cu is launched
 * @words: of a row of its table
 * @warps: of a block of threads
 * @vecs:  query vectors that it computes at once
 */
struct cqk_cuda_lut {
	uint32_t words, warps, vecs;
};

/**
 * cqk_cuda_variant_lut() - what of attn_lut.cu fits into shared memory
 * @s: shape
 * @l: set on success
 *
 * Return: true; false if that kernel does not compute such a shape, or not there.
 */
bool cqk_cuda_variant_lut(const struct cqk_cuda_shape *s, struct cqk_cuda_lut *l);

/**
 * cqk_cuda_variant_can() - does a variant compute a shape on that device?
 * @v: variant
 * @s: shape
 *
 * Return: true if it does.
 */
bool cqk_cuda_variant_can(enum cqk_cuda_variant v, const struct cqk_cuda_shape *s);

/**
 * cqk_cuda_variant_choose() - the rule for items of at most CQKD_FEW_VECS query vectors
 * @forced: CQK_CUDA_AUTO, or a variant to take wherever it can; CQK_CUDA_BOOKS and
 *          CQK_CUDA_WGMMA leave these to the rule
 * @s:      shape
 *
 * Return: a variant that can.
 */
enum cqk_cuda_variant cqk_cuda_variant_choose(enum cqk_cuda_variant forced,
					      const struct cqk_cuda_shape *s);

/**
 * cqk_cuda_slice() - channels of keys, or of values, whose centroids a block of threads has
 * @head_dim: channels of a head
 * @bits:     of a code of keys or values, the most
 *
 * Return: channels; @head_dim if attn_few.cu, not attn_slices.cu, is for such a head.
 */
uint32_t cqk_cuda_slice(uint32_t head_dim, uint32_t bits);

/**
 * cqk_cuda_encode_name() - a way to codes in words
 * @e: way
 *
 * Return: its name, a constant.
 */
const char *cqk_cuda_encode_name(enum cqk_cuda_encode e);

/**
 * cqk_cuda_encode_of() - a way to codes by name
 * @name: text; NULL or empty: CQK_ENCODE_AUTO
 * @e:    set on success
 * @err:  text of the failure, may be NULL
 *
 * Return: 0; -EINVAL unknown, the text lists those there are.
 */
int cqk_cuda_encode_of(const char *name, enum cqk_cuda_encode *e, struct cq_err *err);

/**
 * cqk_cuda_encode_near() - the rule for codes
 * @forced:   CQK_ENCODE_AUTO, or a way to take
 * @channels: of a group, with codes of 8 bits: see cqk_near_can()
 * @tokens:   of a destination, about
 *
 * Return: true: near.cuh is to find them.
 */
bool cqk_cuda_encode_near(enum cqk_cuda_encode forced, uint32_t channels, uint32_t tokens);

/**
 * cqk_cuda_variant_vecs() - how many query vectors are computed eight by eight
 * @forced: as in cqk_cuda_variant_choose()
 * @s:      shape
 *
 * Pages that so many vectors see, and no more, are best read again for each eight of
 * them by attn_few.cu or attn_bytes.cu; for more they are decoded into shared memory once.
 *
 * Return: vectors; 0: no more than eight, or neither kernel is the one that is chosen.
 */
uint32_t cqk_cuda_variant_vecs(enum cqk_cuda_variant forced, const struct cqk_cuda_shape *s);

/**
 * cqk_cuda_variant_books() - from how many query vectors on attn_books.cu computes them
 * @forced: CQK_CUDA_AUTO: the rule; CQK_CUDA_BOOKS or CQK_CUDA_WGMMA: more than
 *          CQKD_FEW_VECS; else none
 * @s:      shape
 * @work:   set: pages, times vectors beyond eight, that a block of threads shall have
 *
 * It is for pages that all these vectors read at one position.
 *
 * Return: more vectors than these; 0: none.
 */
uint32_t cqk_cuda_variant_books(enum cqk_cuda_variant forced, const struct cqk_cuda_shape *s,
				uint32_t *work);

/**
 * cqk_cuda_variant_wgmma() - are they attn_books_wgmma.cu's instead?
 * @forced: CQK_CUDA_AUTO: wherever it can; CQK_CUDA_WGMMA: likewise; else no
 * @s:      shape
 *
 * Return: true if they are.
 */
bool cqk_cuda_variant_wgmma(enum cqk_cuda_variant forced, const struct cqk_cuda_shape *s);

#endif /* CQK_CUDA_VARIANT_H */
