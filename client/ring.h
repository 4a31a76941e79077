/* SPDX-License-Identifier: MIT */
/*
 * A ring of orders between the caller's thread and the engine: one producer,
 * one consumer, no lock, no system call.
 *
 * Two of them per model: orders (caller to engine) and results (engine to
 * caller). "One" consumer or producer on the engine's side means whoever
 * holds the context's lock.
 */
#ifndef CQC_RING_H
#define CQC_RING_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include "cq/barrier.h"
#include "proto/proto.h"

struct cq_pg;

enum cqc_op {
	CQC_OP_SEAL = 1,	/* publish @pg */
	CQC_OP_RELEASE = 2,	/* drop the pin on @page */
	CQC_OP_DONE = 3,	/* result: the engine is through with @pg */
	CQC_OP_LEASE = 4,	/* a lease on a device, @epoch is its number */
};

/**
 * struct cqc_order - one entry
 * @op:    enum cqc_op
 * @epoch: pin epoch that @page was pinned in
 * @pg:    page object, for CQC_OP_SEAL and CQC_OP_DONE
 * @page:  for CQC_OP_RELEASE
 * @fence: of a device: not before work up to it is done; 0: at once
 */
struct cqc_order {
	uint32_t op;
	uint32_t epoch;
	struct cq_pg *pg;
	struct cqp_page page;
	uint64_t fence;
};

/**
 * struct cqc_ring - the ring
 * @slots: [@mask + 1]
 * @mask:  capacity minus one, capacity a power of two
 * @head:  next to be written, by the producer
 * @tail:  next to be read, by the consumer
 */
struct cqc_ring {
	struct cqc_order *slots;
	uint32_t mask;
	_Alignas(64) uint32_t head;
	_Alignas(64) uint32_t tail;
};

/**
 * cqc_ring_init() - allocate a ring
 * @r:    zeroed
 * @want: entries it must hold at least, up to 2^30
 *
 * Return: 0 or -ENOMEM.
 */
static inline int cqc_ring_init(struct cqc_ring *r, uint32_t want)
{
	uint32_t n = 2;

	while (n < want)
		n *= 2;
	r->slots = calloc(n, sizeof(*r->slots));
	if (!r->slots)
		return -ENOMEM;
	r->mask = n - 1;
	r->head = 0;
	r->tail = 0;
	return 0;
}

static inline void cqc_ring_free(struct cqc_ring *r)
{
	free(r->slots);
	r->slots = NULL;
}

/* False when full. Producer only. */
static inline bool cqc_ring_push(struct cqc_ring *r, const struct cqc_order *o)
{
	/* Pairs with the release in cqc_ring_pop(): the slot has been read. */
	if (r->head - smp_load_acquire(&r->tail) > r->mask)
		return false;
	r->slots[r->head & r->mask] = *o;
	/* Pairs with the acquire in cqc_ring_pop(): the slot is filled. */
	smp_store_release(&r->head, r->head + 1);
	return true;
}

/* False when empty. Consumer only. */
static inline bool cqc_ring_pop(struct cqc_ring *r, struct cqc_order *o)
{
	/* Pairs with the release in cqc_ring_push(). */
	if (smp_load_acquire(&r->head) == r->tail)
		return false;
	*o = r->slots[r->tail & r->mask];
	/* Pairs with the acquire in cqc_ring_push(). */
	smp_store_release(&r->tail, r->tail + 1);
	return true;
}

#endif /* CQC_RING_H */
