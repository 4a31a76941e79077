/* SPDX-License-Identifier: MIT */
/*
 * The worker's own memory: a memfd that cqd can read, cut into units of one
 * fp16 block; a unit may be cut again into chunks for coded payloads and sink
 * copies. Everything is O(1), reserved at open, and used by the caller's
 * thread only.
 */
#ifndef CQC_ARENA_H
#define CQC_ARENA_H

#include <stdint.h>
#include "cq/err.h"

#define CQC_NONE 0xffffffffu

/**
 * struct cqc_unit - one unit
 * @refs: holders of an fp16 block; chunks in use of a cut unit
 * @next: free list, or list of cut units with a free chunk
 * @prev: the same list of cut units
 * @free: bit per free chunk of a cut unit
 * @cut:  holds chunks
 */
struct cqc_unit {
	uint32_t refs;
	uint32_t next, prev;
	uint32_t cut;
	uint64_t free;
};

/**
 * struct cqc_arena - the arena
 * @fd:         memfd, sealed against shrinking and growing; -1 on a device
 * @base:       mapping
 * @bytes:      size
 * @unit:       bytes of a unit
 * @chunk:      bytes of a chunk
 * @per_unit:   chunks in a cut unit, at most 64
 * @n_units:    units
 * @units:      [@n_units]
 * @free_units: head of the list of free units
 * @partial:    head of the list of cut units with a free chunk
 * @free_bytes: bytes not handed out
 */
struct cqc_arena {
	int fd;
	uint8_t *base;
	uint64_t bytes;
	uint64_t unit, chunk;
	uint32_t per_unit;
	uint32_t n_units;
	struct cqc_unit *units;
	uint32_t free_units;
	uint32_t partial;
	uint64_t free_bytes;
};

/**
 * cqc_arena_plan() - the arena's tables, without memory
 * @a:     zeroed; @a->base is the caller's affair, no memfd is made
 * @bytes: as below
 * @block: as below
 * @chunk: as below
 * @err:   text of the failure
 *
 * Return: 0; -EINVAL too small; -ENOMEM.
 */
int cqc_arena_plan(struct cqc_arena *a, uint64_t bytes, uint64_t block,
		   uint64_t chunk, struct cq_err *err);

/**
 * cqc_arena_init() - create, reserve and map
 * @a:     zeroed
 * @bytes: wanted, rounded down to whole units; at least 4 units
 * @block: bytes of an fp16 block
 * @chunk: bytes of the largest chunk, at most @block
 * @err:   text of the failure
 *
 * Return: 0; -EINVAL too small; -ENOMEM; other -errno of the kernel.
 */
int cqc_arena_init(struct cqc_arena *a, uint64_t bytes, uint64_t block,
		   uint64_t chunk, struct cq_err *err);
void cqc_arena_fini(struct cqc_arena *a);	/* accepts a zeroed one */

/* fp16 blocks: CQC_NONE when full. A new block has one reference. */
uint32_t cqc_block_new(struct cqc_arena *a);
void cqc_block_get(struct cqc_arena *a, uint32_t block);
void cqc_block_put(struct cqc_arena *a, uint32_t block);

static inline uint16_t *cqc_block_ptr(const struct cqc_arena *a, uint32_t block)
{
	return (uint16_t *)(void *)(a->base + a->unit * block);
}

/* Chunks: CQC_NONE when full. */
uint32_t cqc_chunk_new(struct cqc_arena *a);
void cqc_chunk_free(struct cqc_arena *a, uint32_t chunk);

static inline uint64_t cqc_chunk_offset(const struct cqc_arena *a, uint32_t chunk)
{
	return a->unit * (chunk / a->per_unit) + a->chunk * (chunk % a->per_unit);
}

static inline uint8_t *cqc_chunk_ptr(const struct cqc_arena *a, uint32_t chunk)
{
	return a->base + cqc_chunk_offset(a, chunk);
}

/* Most chunks that can be in use at once. */
static inline uint32_t cqc_arena_chunks(const struct cqc_arena *a)
{
	return a->n_units * a->per_unit;
}

#endif /* CQC_ARENA_H */
