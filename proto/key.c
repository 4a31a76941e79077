/* SPDX-License-Identifier: MIT */
/*
 * Keys of pages: a chain of SHA-256 over length-prefixed fields.
 * Documentation/protocol.md has the definition and a worked example.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include "proto/key.h"

#define TAG_ROOT "cq-root-1"
#define TAG_PAGE "cq-page-1"

static void put_le32(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	p[2] = (uint8_t)(v >> 16);
	p[3] = (uint8_t)(v >> 24);
}

/* True on success, as libcrypto has it. */
static int hash_field(EVP_MD_CTX *ctx, const void *data, size_t len)
{
	uint8_t prefix[4];

	put_le32(prefix, (uint32_t)len);
	return EVP_DigestUpdate(ctx, prefix, sizeof(prefix)) &&
	       (!len || EVP_DigestUpdate(ctx, data, len));
}

static EVP_MD_CTX *hash_begin(const char *tag)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();

	if (!ctx)
		return NULL;
	if (!EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) ||
	    !hash_field(ctx, tag, strlen(tag))) {
		EVP_MD_CTX_free(ctx);
		return NULL;
	}
	return ctx;
}

/* Ends @ctx; writes @out only if all went well (@ok and the digest). */
static int hash_end(EVP_MD_CTX *ctx, int ok, struct cqp_key *out)
{
	struct cqp_key key = { .b = { 0 } };

	ok = ok && EVP_DigestFinal_ex(ctx, key.b, NULL);
	EVP_MD_CTX_free(ctx);
	if (!ok)
		return -ENOMEM;
	*out = key;
	return 0;
}

/**
 * cqp_key_root() - key(-1): what every chain of a shard starts from
 * @out:         key, untouched on failure
 * @model_hash:  SHA-256 of the model's canonical header and codebooks
 * @fingerprint: SHA-256 of the language model's weights
 * @shard:       range, resolved: a whole model has its real ends, not 0
 * @lora:        id of the adapter, NULL if none
 * @lora_len:    bytes of @lora
 * @salt:        the namespace's salt, NULL if none
 * @salt_len:    bytes of @salt
 *
 * Return: 0; -ENOMEM. Thread-safe.
 */
int cqp_key_root(struct cqp_key *out, const uint8_t model_hash[32],
		 const uint8_t fingerprint[32], const struct cqp_shard *shard,
		 const void *lora, size_t lora_len, const void *salt, size_t salt_len)
{
	EVP_MD_CTX *ctx = hash_begin(TAG_ROOT);
	uint8_t range[16];
	int ok;

	if (!ctx)
		return -ENOMEM;
	put_le32(range, shard->layer_begin);
	put_le32(range + 4, shard->layer_end);
	put_le32(range + 8, shard->head_begin);
	put_le32(range + 12, shard->head_end);
	ok = hash_field(ctx, model_hash, 32) && hash_field(ctx, fingerprint, 32) &&
	     hash_field(ctx, lora, lora_len) && hash_field(ctx, range, sizeof(range)) &&
	     hash_field(ctx, salt, salt_len);
	return hash_end(ctx, ok, out);
}

/**
 * cqp_key_page() - key(i) from key(i-1) and what the page holds
 * @out:       key, untouched on failure; may be @parent
 * @parent:    key of the page before, or the root key
 * @tokens:    the page's token ids
 * @extra:     caller's bytes (image hashes and the like), NULL if none
 * @extra_len: bytes of @extra
 *
 * Return: 0; -ENOMEM. Thread-safe.
 */
int cqp_key_page(struct cqp_key *out, const struct cqp_key *parent,
		 const uint32_t tokens[CQ_PAGE_TOKENS], const void *extra,
		 size_t extra_len)
{
	EVP_MD_CTX *ctx = hash_begin(TAG_PAGE);
	uint8_t ids[CQ_PAGE_TOKENS * 4];
	unsigned int i;
	int ok;

	if (!ctx)
		return -ENOMEM;
	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		put_le32(ids + 4 * i, tokens[i]);
	ok = hash_field(ctx, parent->b, sizeof(parent->b)) &&
	     hash_field(ctx, ids, sizeof(ids)) &&
	     hash_field(ctx, extra, extra_len);
	return hash_end(ctx, ok, out);
}

/**
 * cqp_key_hex() - a key as text
 * @key: key
 * @buf: room for 64 hex digits and a NUL
 *
 * Return: @buf.
 */
const char *cqp_key_hex(const struct cqp_key *key, char buf[65])
{
	unsigned int i;

	for (i = 0; i < CQ_KEY_BYTES; i++)
		snprintf(buf + 2 * i, 3, "%02x", key->b[i]);
	return buf;
}
