/* SPDX-License-Identifier: MIT */
/*
 * What cqd and cq-holder say to each other: fixed structures over SOCK_SEQPACKET, one
 * datagram each, no descriptors. Both ends are processes of one machine and of one uid.
 * Documentation/protocol.md, "The holder of a GPU's memory".
 */
#ifndef CQP_HOLDER_H
#define CQP_HOLDER_H

#include <stddef.h>
#include <stdint.h>

#define CQP_HOLDER_MAGIC	0x646c6863u	/* "chld" */
#define CQP_HOLDER_VERSION	1
#define CQP_HOLDER_DIR		"/run/cq-holder"
#define CQP_HOLDER_BLOCKS	4096		/* at a time; cqd has no more segments */
#define CQP_HOLDER_LIST		512		/* of one answer */
#define CQP_HOLDER_HANDLE	64
#define CQP_HOLDER_GRAIN	(2u << 20)	/* blocks are multiples of it */

enum cqp_holder_op {
	CQP_HOLDER_HELLO = 1,	/* first of a connection; ends the one before it */
	CQP_HOLDER_ALLOC = 2,
	CQP_HOLDER_FREE = 3,	/* has no answer */
	CQP_HOLDER_LIST_FROM = 4,
};

/**
 * struct cqp_holder_req - cqd asks
 * @op:    enum cqp_holder_op
 * @seq:   of the answer, too
 * @block: ALLOC, FREE: its number, cqd's choice, not 0; LIST_FROM: the least that is
 *         listed; else 0
 * @bytes: ALLOC: a multiple of CQP_HOLDER_GRAIN; else 0
 */
struct cqp_holder_req {
	uint32_t magic;
	uint16_t version, op;
	uint64_t seq;
	uint64_t block;
	uint64_t bytes;
};

/**
 * struct cqp_holder_block - memory that the holder has
 * @handle: for cuIpcOpenMemHandle()
 */
struct cqp_holder_block {
	uint64_t block, bytes;
	uint8_t handle[CQP_HOLDER_HANDLE];
};

/**
 * struct cqp_holder_ans - the holder answers; @n blocks follow
 * @op:    of the request
 * @boot:  random, of this holder process: with another one all blocks are gone
 * @bytes: of the device's memory
 * @error: 0 or negative errno, with @text
 * @n:     LIST_FROM: in ascending order, fewer than CQP_HOLDER_LIST: there are no
 *         more; ALLOC: 1; else 0
 * @uuid:  of the device
 */
struct cqp_holder_ans {
	uint32_t magic;
	uint16_t version, op;
	uint64_t seq;
	uint64_t boot;
	uint64_t bytes;
	int32_t error;
	uint32_t n;
	char uuid[48];
	char text[160];
};

_Static_assert(sizeof(struct cqp_holder_req) == 32, "frozen");
_Static_assert(offsetof(struct cqp_holder_req, block) == 16, "frozen");
_Static_assert(sizeof(struct cqp_holder_block) == 80, "frozen");
_Static_assert(sizeof(struct cqp_holder_ans) == 248, "frozen");
_Static_assert(offsetof(struct cqp_holder_ans, error) == 32, "frozen");
_Static_assert(offsetof(struct cqp_holder_ans, text) == 88, "frozen");

#endif /* CQP_HOLDER_H */
