/* SPDX-License-Identifier: MIT */
/*
 * A tail: what a sequence is beyond the shared pages of its prefix, handed
 * from one process of a namespace to another (Documentation/formats.md).
 *
 *	head, 192 B
 *	[n_entries] struct cqp_tail_entry
 *	[tokens] token ids, u32
 *	[extra_len] extra key bytes
 *	for each entry in turn, as its parts say: fp16 block, codes, sinks
 *
 * One behind the other without padding. The publisher writes it, cqd copies it
 * unread, and whoever attaches believes nothing that he has not checked.
 */
#ifndef CQP_TAIL_H
#define CQP_TAIL_H

#include <stddef.h>
#include <stdint.h>
#include "cq/page.h"

#define CQP_TAIL_MAGIC		0x4c544351u	/* "QCTL" */
#define CQP_TAIL_VERSION	1
#define CQP_MAX_EXTENTS		2048		/* of one Publish */
#define CQP_MAX_ENTRIES		1024		/* of one tail */

/* A piece of an arena. */
struct cqp_extent {
	uint64_t offset;
	uint64_t bytes;
};

/**
 * struct cqp_tail_head - what the tail belongs to
 * @magic:      CQP_TAIL_MAGIC
 * @version:    CQP_TAIL_VERSION
 * @n_entries:  entries that follow, in ascending order
 * @incompat:   feature bits a reader must know, or refuse the tail
 * @compat:     feature bits a reader may ignore
 * @model_hash: of the model file
 * @root:       key(-1) of namespace, model and shard
 * @tokens:     committed tokens
 * @bytes:      of the whole tail
 * @f16_block:  bytes of an fp16 block
 * @payload:    bytes of a page of codes
 * @sink_bytes: bytes of the sinks
 * @position:   of token 0
 * @extra_len:  bytes of extra key material
 * @pad:        0
 */
struct cqp_tail_head {
	uint32_t magic;
	uint16_t version;
	uint16_t n_entries;
	uint32_t incompat;
	uint32_t compat;
	uint8_t model_hash[32];
	uint8_t root[CQ_KEY_BYTES];
	uint64_t tokens;
	uint64_t bytes;
	uint64_t f16_block;
	uint64_t payload;
	uint64_t sink_bytes;
	uint32_t position;
	uint32_t extra_len;
	uint8_t pad[64];
};

#define CQP_TAIL_F16	1u	/* an fp16 block: rows of @f16_mask, the others 0 */
#define CQP_TAIL_CODES	2u	/* codes that are read instead of the shared page's */
#define CQP_TAIL_SINKS	4u	/* sinks, likewise; with CQP_TAIL_CODES, entry 0 */

/**
 * struct cqp_tail_entry - 64 tokens that have something of their own
 * @index:    tokens 64 * @index and on
 * @parts:    CQP_TAIL_*
 * @f16_mask: tokens in the fp16 block
 * @n_coded:  the first tokens that have codes; 64 for a full page
 * @pad:      0
 */
struct cqp_tail_entry {
	uint32_t index;
	uint32_t parts;
	uint64_t f16_mask;
	uint32_t n_coded;
	uint32_t pad;
};

_Static_assert(sizeof(struct cqp_extent) == 16, "frozen");
_Static_assert(sizeof(struct cqp_tail_head) == 192, "frozen");
_Static_assert(offsetof(struct cqp_tail_head, model_hash) == 16, "frozen");
_Static_assert(offsetof(struct cqp_tail_head, root) == 48, "frozen");
_Static_assert(offsetof(struct cqp_tail_head, tokens) == 80, "frozen");
_Static_assert(offsetof(struct cqp_tail_head, position) == 120, "frozen");
_Static_assert(offsetof(struct cqp_tail_head, pad) == 128, "frozen");
_Static_assert(sizeof(struct cqp_tail_entry) == 24, "frozen");
_Static_assert(offsetof(struct cqp_tail_entry, f16_mask) == 8, "frozen");

#endif /* CQP_TAIL_H */
