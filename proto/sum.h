/* SPDX-License-Identifier: MIT */
/* The checksum of a slot's payload: XXH3-128 over the XXH3-64 of each 4 KiB. */
#ifndef CQP_SUM_H
#define CQP_SUM_H

#include <stdint.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

/*
 * A sum on its way; not to be copied. The state within it is aligned by sum.c: AddressSanitizer
 * of gcc 12 puts variables that ask for 64 bytes at multiples of 32.
 */
struct cqp_sum {
	uint8_t room[sizeof(XXH3_state_t) + _Alignof(XXH3_state_t)];
};

void cqp_sum_begin(struct cqp_sum *s);
/* All pieces but the last one are a multiple of CQ_CHECK_CHUNK bytes. */
void cqp_sum_add(struct cqp_sum *s, const void *piece, uint64_t bytes);
void cqp_sum_end(struct cqp_sum *s, uint64_t *lo, uint64_t *hi);

#endif /* CQP_SUM_H */
