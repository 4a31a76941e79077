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
/* A decimal number with a point if it has one, in any locale; never NaN. */
int cqk_meta_real(const struct st_file *f, const char *key, double *out, struct cq_err *err);
/* RoPE of @g, whose keys are known; not checked but for what goes together. */
int cqk_meta_rope(const struct st_file *f, struct cqk_geom *g, struct cq_err *err);
/* Shape, checked with cqk_geom_check(). */
int cqk_meta_geom(const struct st_file *f, struct cqk_geom *out, struct cq_err *err);

/* 0, or -EINVAL: a shape outside the limits of cq/page.h or against itself. */
int cqk_geom_check(const struct cqk_geom *g, struct cq_err *err);

/* The part of cqk_geom_check() that is about keys and RoPE. */
int cqk_rope_check(const struct cqk_geom *g, struct cq_err *err);

/**
 * struct cqk_rope_number - a number that some kinds of RoPE scaling have
 * @key:   in metadata, "rope_" and the name that models' configurations use
 * @at:    offset in struct cqk_rope_scaling, of a double
 * @types: bit per enum cqk_scaling
 * @whole: no fraction
 * @min:   least value
 * @max:   largest
 */
struct cqk_rope_number {
	const char *key;
	size_t at;
	uint32_t types;
	bool whole;
	double min, max;
};

/* In the order of files and of the hash; NULL past the end. */
const struct cqk_rope_number *cqk_rope_number(uint32_t i);
double *cqk_rope_value(struct cqk_rope_scaling *s, const struct cqk_rope_number *n);
bool cqk_rope_has(const struct cqk_rope_scaling *s, const struct cqk_rope_number *n);

/* "none", "linear", "llama3", "yarn". */
const char *cqk_scaling_name(uint32_t type);
/* The same backwards: 0 or -EINVAL. */
int cqk_scaling_parse(const char *name, uint32_t *type);
/* "half", "interleaved", "none". */
const char *cqk_pairs_name(const struct cqk_geom *g);
/* One line for people, cut at @size. Returns @buf. */
const char *cqk_rope_text(const struct cqk_geom *g, char *buf, size_t size);

/* "pre-rope", "rotated", "none"; "f16", "i8". */
const char *cqk_keys_name(uint32_t keys);
const char *cqk_centroids_name(uint32_t centroids);

/* Copy of at most 47 bytes of @s fit for a message. Returns @buf. */
const char *cqk_printable(const char *s, char buf[48]);
/* 65 bytes of lower-case hex. Returns @buf. */
const char *cqk_hex(const uint8_t hash[32], char buf[65]);

#endif /* CQK_META_H */
