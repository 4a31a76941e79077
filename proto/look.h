/* SPDX-License-Identifier: MIT */
/*
 * Slots in the memory of a GPU, which cqd cannot read: it says in LookOk where they are,
 * and "cqctl verify" in Look what is there. Documentation/protocol.md, "Pages of a GPU".
 */
#ifndef CQP_LOOK_H
#define CQP_LOOK_H

#include <stddef.h>
#include <stdint.h>
#include "cq/page.h"

#define CQP_LOOK_PAGES		64	/* of one answer */
#define CQP_LOOK_SLOTS		(2 * CQP_LOOK_PAGES)	/* codes and sinks */
#define CQP_LOOK_SEGMENTS	2	/* one of codes, one of sinks */

/**
 * struct cqp_look - a slot to be looked at
 * @offset:  of its header in the segment
 * @payload: bytes behind the header that the checksum covers
 * @segment: which of LookOk.segments
 * @pad:     0
 */
struct cqp_look {
	uint64_t offset, payload;
	uint32_t segment, pad;
};

/**
 * struct cqp_seen - what is in it
 * @hdr: header, as it is there
 * @lo, @hi: checksum of the payload, as it is there
 */
struct cqp_seen {
	struct cq_page_hdr hdr;
	uint64_t lo, hi;
};

_Static_assert(sizeof(struct cqp_look) == 24, "frozen");
_Static_assert(offsetof(struct cqp_look, segment) == 16, "frozen");
_Static_assert(sizeof(struct cqp_seen) == 80, "frozen");
_Static_assert(offsetof(struct cqp_seen, lo) == 64, "frozen");

#endif /* CQP_LOOK_H */
