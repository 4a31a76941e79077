/* SPDX-License-Identifier: MIT */
/*
 * Layout of a page: 64 consecutive tokens, all layers of a shard, K and V.
 *
 *	slot:    [header 64 B][payload] padded to 4 KiB
 *	payload: [layer][kv_head][K|V][block]
 *	block:   coded, b = 8:  [group][64 tokens], one byte per code
 *	         coded, b = 10: [group][64 tokens], the low 8 bits of each code, then
 *	                        [group][16 bytes], the upper 2 bits of 64 codes: of
 *	                        token t in byte t % 16, bits t / 16 * 2 and following;
 *	                        zeros up to a multiple of 64 bytes
 *	         pass-through:  [64 tokens][head_dim] IEEE half, token-major
 *
 * Group-major codes: the 64 codes of one group are one cache line, one vector
 * load, one coalesced warp load; so are the low bits of wider codes, and every
 * block is a multiple of 64 bytes. Keys are stored pre-RoPE (unless the model
 * says otherwise); a page does not know its position.
 *
 *	fp16 block:  [layer][kv_head][K|V][64][head_dim] IEEE half, no header
 *	             (window and tail, private to a worker's arena)
 *	sink object: slot of its own: [header 64 B], then
 *	             [layer][kv_head][K|V][sinks][head_dim] IEEE half
 *
 * This layout is frozen: change it only together with CQ_PAGE_VERSION or a
 * feature word. Documentation/formats.md repeats it in prose.
 */
#ifndef CQ_PAGE_H
#define CQ_PAGE_H

#include <stddef.h>
#include <stdint.h>
#include "cq/util.h"

#define CQ_PAGE_TOKENS		64
#define CQ_PAGE_MAGIC		0x50514351u	/* "QCQP" in memory: 51 43 51 50 */
#define CQ_PAGE_VERSION		1
#define CQ_SLOT_ALIGN		4096
#define CQ_CHECK_CHUNK		4096		/* XXH3-64 per chunk */

#define CQ_MAX_LAYERS		256
#define CQ_MAX_KV_HEADS		128
#define CQ_MAX_HEADS		256
#define CQ_MAX_HEAD_DIM		256
#define CQ_MAX_SINKS		64
#define CQ_MAX_WINDOW		4096
#define CQ_KEY_BYTES		32

/* How the 64 x head_dim values of one (layer, kv head, K or V) are stored. */
enum cq_code_type {
	CQ_CODE_F16 = 0,	/* pass-through */
	CQ_CODE_CQ = 1,		/* coupled quantisation */
};

/**
 * struct cq_code - coding of K or V in one layer
 * @type:     enum cq_code_type
 * @channels: channels coupled in one group (c); 0 for CQ_CODE_F16
 * @bits:     bits per code (b), 8 or 10; 0 for CQ_CODE_F16
 * @pad:      0
 */
struct cq_code {
	uint8_t type;
	uint8_t channels;
	uint8_t bits;
	uint8_t pad;
};

/**
 * struct cq_page_hdr - first 64 bytes of a slot
 * @magic:        CQ_PAGE_MAGIC
 * @version:      CQ_PAGE_VERSION
 * @kind:         enum cq_page_kind
 * @incompat:     feature bits a reader must know, or refuse the page
 * @compat:       feature bits a reader may ignore
 * @payload:      bytes after the header that the checksum covers
 * @check_lo:     XXH3-128 over the XXH3-64 of each 4 KiB of the payload, low half
 * @check_hi:     high half
 * @model_tag:    first 8 bytes of the model hash
 * @key:          first 16 bytes of the page's key
 */
struct cq_page_hdr {
	uint32_t magic;
	uint16_t version;
	uint16_t kind;
	uint32_t incompat;
	uint32_t compat;
	uint64_t payload;
	uint64_t check_lo;
	uint64_t check_hi;
	uint8_t model_tag[8];
	uint8_t key[16];
};

enum cq_page_kind {
	CQ_PAGE_CODES = 1,
	CQ_PAGE_SINK = 2,
};

_Static_assert(sizeof(struct cq_page_hdr) == 64, "frozen");
_Static_assert(offsetof(struct cq_page_hdr, kind) == 6, "frozen");
_Static_assert(offsetof(struct cq_page_hdr, payload) == 16, "frozen");
_Static_assert(offsetof(struct cq_page_hdr, check_lo) == 24, "frozen");
_Static_assert(offsetof(struct cq_page_hdr, model_tag) == 40, "frozen");
_Static_assert(offsetof(struct cq_page_hdr, key) == 48, "frozen");
_Static_assert(sizeof(struct cq_code) == 4, "frozen");

#define CQ_LINE			64	/* bytes of a cache line */
#define CQ_LOW_BITS		8	/* of a code, in its byte plane */
#define CQ_UPPER_BYTES		16	/* upper bits of a group's codes, b = 10 */

_Static_assert(CQ_UPPER_BYTES * 8 == CQ_PAGE_TOKENS * (10 - CQ_LOW_BITS), "frozen");

/* Bytes behind the byte planes of @groups groups: upper bits and padding. */
static inline uint64_t cq_code_upper_bytes(struct cq_code code, uint32_t groups)
{
	if (code.bits <= CQ_LOW_BITS)
		return 0;
	return ALIGN_UP((uint64_t)groups * CQ_UPPER_BYTES, CQ_LINE);
}

/**
 * cq_code_get() - one code of a coded block
 * @block:  block
 * @code:   coding
 * @groups: of the block
 * @g:      group
 * @t:      token
 *
 * Return: the code.
 */
static inline uint32_t cq_code_get(const uint8_t *block, struct cq_code code, uint32_t groups,
				   uint32_t g, uint32_t t)
{
	uint32_t low = block[(size_t)g * CQ_PAGE_TOKENS + t];
	const uint8_t *upper;

	if (code.bits <= CQ_LOW_BITS)
		return low;
	upper = block + (size_t)groups * CQ_PAGE_TOKENS + (size_t)g * CQ_UPPER_BYTES;
	return low | (upper[t % CQ_UPPER_BYTES] >> t / CQ_UPPER_BYTES * 2 & 3u) << CQ_LOW_BITS;
}

/**
 * cq_code_put() - set one code of a coded block, and no other
 * @block:  block
 * @code:   coding
 * @groups: of the block
 * @g:      group
 * @t:      token
 * @k:      the code
 */
static inline void cq_code_put(uint8_t *block, struct cq_code code, uint32_t groups,
			       uint32_t g, uint32_t t, uint32_t k)
{
	uint32_t shift = t / CQ_UPPER_BYTES * 2;
	uint8_t *upper;

	block[(size_t)g * CQ_PAGE_TOKENS + t] = (uint8_t)k;
	if (code.bits <= CQ_LOW_BITS)
		return;
	upper = block + (size_t)groups * CQ_PAGE_TOKENS + (size_t)g * CQ_UPPER_BYTES +
		t % CQ_UPPER_BYTES;
	*upper = (uint8_t)((*upper & ~(3u << shift)) | (k >> CQ_LOW_BITS) << shift);
}

/**
 * cq_code_block_bytes() - bytes of one block (64 tokens of one kv head, K or V)
 * @code:     coding, already validated
 * @head_dim: channels per head
 */
static inline uint64_t cq_code_block_bytes(struct cq_code code, uint32_t head_dim)
{
	if (code.type == CQ_CODE_F16)
		return (uint64_t)CQ_PAGE_TOKENS * head_dim * 2;
	return (uint64_t)CQ_PAGE_TOKENS * (head_dim / code.channels) +
	       cq_code_upper_bytes(code, head_dim / code.channels);
}

/**
 * cq_f16_block_bytes() - bytes of an fp16 block or sink payload
 * @n_layers:   layers of the shard
 * @n_kv_heads: kv heads of the shard
 * @head_dim:   channels per head
 * @tokens:     64, or the number of sinks
 */
static inline uint64_t cq_f16_block_bytes(uint32_t n_layers, uint32_t n_kv_heads,
					  uint32_t head_dim, uint32_t tokens)
{
	return (uint64_t)n_layers * n_kv_heads * 2 * tokens * head_dim * 2;
}

/* Slot that holds a header and @payload bytes. */
static inline uint64_t cq_slot_bytes(uint64_t payload)
{
	return ALIGN_UP(sizeof(struct cq_page_hdr) + payload, CQ_SLOT_ALIGN);
}

#endif /* CQ_PAGE_H */
