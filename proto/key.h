/* SPDX-License-Identifier: MIT */
/*
 * Keys: content addresses of pages (Documentation/protocol.md, "Keys").
 *
 *	key(-1) = SHA-256("cq-root-1", model hash, weight fingerprint, LoRA id,
 *			  shard, salt)
 *	key(i)  = SHA-256("cq-page-1", key(i-1), 64 token ids, extra)
 *
 * Every field is preceded by its length as u32 little-endian; integers are
 * little-endian. Same input, same key, on every machine.
 */
#ifndef CQP_KEY_H
#define CQP_KEY_H

#include <stddef.h>
#include <stdint.h>
#include "cq/page.h"

struct cqp_key {
	uint8_t b[CQ_KEY_BYTES];
};

/* Layer and kv-head range; ends exclusive, already resolved (never 0). */
struct cqp_shard {
	uint32_t layer_begin, layer_end;
	uint32_t head_begin, head_end;
};

/* 0 or -ENOMEM. @lora and @salt may be NULL with length 0. */
int cqp_key_root(struct cqp_key *out, const uint8_t model_hash[32],
		 const uint8_t fingerprint[32], const struct cqp_shard *shard,
		 const void *lora, size_t lora_len, const void *salt, size_t salt_len);
int cqp_key_page(struct cqp_key *out, const struct cqp_key *parent,
		 const uint32_t tokens[CQ_PAGE_TOKENS], const void *extra,
		 size_t extra_len);
/* 64 hex digits and a NUL. Returns @buf. */
const char *cqp_key_hex(const struct cqp_key *key, char buf[65]);

#endif /* CQP_KEY_H */
