/* SPDX-License-Identifier: MIT */
/*
 * Metadata that model files and activation dumps have in common. Every value
 * is a string from a file that nobody vouches for.
 */
#ifndef CQK_META_H
#define CQK_META_H

#include "kernels/model.h"
#include "kernels/safetensors.h"

#define CQK_MODEL_FORMAT "cq-model-1"
#define CQK_DUMP_FORMAT "cq-activations-1"
#define CQK_MAX_POSITION (1u << 24)

/* A decimal number without sign, blanks or leading zeros, @min to @max. */
int cqk_meta_u32(const struct st_file *f, const char *key, uint32_t min, uint32_t max,
		 uint32_t *out, struct cq_err *err);
/* One of @names [n]; @out is its index. */
int cqk_meta_word(const struct st_file *f, const char *key, const char *const *names,
		  uint32_t n, uint32_t *out, struct cq_err *err);
/* 64 lower-case hex digits. */
int cqk_meta_hash(const struct st_file *f, const char *key, uint8_t out[32],
		  struct cq_err *err);
/* "format" is @want: 0, else -EPROTO. @what names the kind of file. */
int cqk_meta_format(const struct st_file *f, const char *want, const char *what,
		    struct cq_err *err);
/* Shape, checked with cqk_geom_check(). */
int cqk_meta_geom(const struct st_file *f, struct cqk_geom *out, struct cq_err *err);

/* 0, or -EINVAL: a shape outside the limits of cq/page.h or against itself. */
int cqk_geom_check(const struct cqk_geom *g, struct cq_err *err);

/* "pre-rope", "rotated", "none"; "f16", "i8". */
const char *cqk_keys_name(uint32_t keys);
const char *cqk_centroids_name(uint32_t centroids);

/* Copy of at most 47 bytes of @s fit for a message. Returns @buf. */
const char *cqk_printable(const char *s, char buf[48]);
/* 65 bytes of lower-case hex. Returns @buf. */
const char *cqk_hex(const uint8_t hash[32], char buf[65]);

#endif /* CQK_META_H */
