/* SPDX-License-Identifier: MIT */
/* The safetensors container, in memory: checked parse and simple writer. */
#ifndef CQK_SAFETENSORS_H
#define CQK_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include "cq/err.h"

#define ST_MAX_DIMS 4
/* Ten times what 256 layers need; parsed, a byte may take 40 of memory. */
#define ST_MAX_HEADER (1u << 20)

enum st_dtype { ST_F16, ST_BF16, ST_F32, ST_I8, ST_U8, ST_I32, ST_U16, ST_I64 };

/**
 * struct st_tensor - one tensor of a file image
 * @name:   owned by the st_file
 * @dtype:  enum st_dtype
 * @n_dims: up to ST_MAX_DIMS
 * @shape:  row-major
 * @data:   into the image
 * @bytes:  checked against shape and dtype
 */
struct st_tensor {
	const char *name;
	uint32_t dtype;
	uint32_t n_dims;
	uint64_t shape[ST_MAX_DIMS];
	const void *data;
	uint64_t bytes;
};

struct st_file;

/* Parse @image (kept by reference). 0, -EINVAL, -ENOMEM. */
int st_open(const void *image, size_t size, struct st_file **out, struct cq_err *err);
void st_close(struct st_file *f);	/* accepts NULL */
const struct st_tensor *st_find(const struct st_file *f, const char *name);
/* Metadata string, or NULL. */
const char *st_meta(const struct st_file *f, const char *key);
/* Walks the metadata: key after @key (NULL: the first), NULL at the end. */
const char *st_meta_next(const struct st_file *f, const char *key);
size_t st_count(const struct st_file *f);
const struct st_tensor *st_nth(const struct st_file *f, size_t i);
uint32_t st_dtype_bytes(uint32_t dtype);

/**
 * st_header() - header of a file about to be written
 * @tensors: name, dtype, n_dims, shape and bytes set; data unused. Offsets
 *           follow the order given, without gaps
 * @n:       tensors
 * @meta:    2 * @n_meta strings: key, value, key, value
 * @n_meta:  pairs
 * @out:     malloc()ed: the 8-byte length and the JSON, padded with spaces so
 *           that the data starts 64-byte aligned
 *
 * Return: bytes of @out, or 0 when out of memory.
 */
size_t st_header(const struct st_tensor *tensors, size_t n, const char *const *meta,
		 size_t n_meta, void **out);

#endif /* CQK_SAFETENSORS_H */
