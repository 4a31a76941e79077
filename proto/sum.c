// SPDX-License-Identifier: MIT
/* The checksum of a slot's payload. */
#include <endian.h>
#include "cq/page.h"
#include "cq/util.h"
#include "proto/sum.h"

/**
 * cqp_sum_begin() - of nothing yet
 * @s: set
 */
void cqp_sum_begin(struct cqp_sum *s)
{
	XXH3_INITSTATE(&s->state);
	XXH3_128bits_reset(&s->state);
}

/**
 * cqp_sum_add() - the next bytes of the payload
 * @s:     sum
 * @piece: [@bytes]
 * @bytes: a multiple of CQ_CHECK_CHUNK, unless nothing follows
 */
void cqp_sum_add(struct cqp_sum *s, const void *piece, uint64_t bytes)
{
	const uint8_t *p = piece;
	uint64_t sum, n;

	for (; bytes; bytes -= n, p += n) {
		n = MIN(bytes, (uint64_t)CQ_CHECK_CHUNK);
		sum = htole64(XXH3_64bits(p, n));
		XXH3_128bits_update(&s->state, &sum, sizeof(sum));
	}
}

/**
 * cqp_sum_end() - as a slot's header and the index have it
 * @s:  sum
 * @lo: low half
 * @hi: high half
 */
void cqp_sum_end(const struct cqp_sum *s, uint64_t *lo, uint64_t *hi)
{
	XXH128_hash_t h = XXH3_128bits_digest(&s->state);

	*lo = h.low64;
	*hi = h.high64;
}
