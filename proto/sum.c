// SPDX-License-Identifier: MIT
/* The checksum of a slot's payload. */
#include <endian.h>
#include "cq/page.h"
#include "cq/util.h"
#include "proto/sum.h"

static XXH3_state_t *state(struct cqp_sum *s)
{
	const size_t unit = _Alignof(XXH3_state_t);

	return (XXH3_state_t *)(void *)(s->room + (unit - (uintptr_t)s->room % unit) % unit);
}

/**
 * cqp_sum_begin() - of nothing yet
 * @s: set
 */
void cqp_sum_begin(struct cqp_sum *s)
{
	XXH3_INITSTATE(state(s));
	XXH3_128bits_reset(state(s));
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
		XXH3_128bits_update(state(s), &sum, sizeof(sum));
	}
}

/**
 * cqp_sum_end() - as a slot's header and the index have it
 * @s:  sum
 * @lo: low half
 * @hi: high half
 */
void cqp_sum_end(struct cqp_sum *s, uint64_t *lo, uint64_t *hi)
{
	XXH128_hash_t h = XXH3_128bits_digest(state(s));

	*lo = h.low64;
	*hi = h.high64;
}
