// SPDX-License-Identifier: MIT
/*
 * A compact checked reader of safetensors files: the weights, and the logits
 * that a port is checked against. Nothing in the file is trusted.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"

#define MAX_FILE (1u << 30)
#define MAX_HEADER (16u << 20)

int wk_st_open(struct wk_st *st, const char *path)
{
	unsigned char *p;
	json_error_t je;
	uint64_t len = 0;
	int i, ret;

	memset(st, 0, sizeof(*st));
	st->path = path;
	ret = wk_file_read(path, MAX_FILE, &st->image, &st->size);
	if (ret)
		return ret;
	p = (unsigned char *)st->image;
	for (i = 7; i >= 0 && st->size >= 8; i--)
		len = len << 8 | p[i];
	if (!len || len > MAX_HEADER || len > st->size - 8) {
		ret = wk_error(-EINVAL, "%s: not a safetensors file, or truncated", path);
		goto err;
	}
	st->header = json_loadb(st->image + 8, len, JSON_REJECT_DUPLICATES, &je);
	if (!json_is_object(st->header)) {
		ret = wk_error(-EINVAL, "%s: header: %s", path,
			       st->header ? "not an object" : je.text);
		goto err;
	}
	st->data = st->image + 8 + len;
	return 0;
err:
	wk_st_close(st);
	return ret;
}

void wk_st_close(struct wk_st *st)
{
	json_decref(st->header);
	free(st->image);
	memset(st, 0, sizeof(*st));
}

static size_t type_bytes(const char *dtype)
{
	if (!strcmp(dtype, "F16") || !strcmp(dtype, "U16"))
		return 2;
	if (!strcmp(dtype, "F32") || !strcmp(dtype, "I32"))
		return 4;
	return 0;
}

static bool has_int(const json_t *array, size_t i, uint64_t value)
{
	const json_t *j = json_array_get(array, i);

	return json_is_integer(j) && json_integer_value(j) >= 0 &&
	       (uint64_t)json_integer_value(j) == value;
}

int wk_st_tensor(const struct wk_st *st, const char *name, const char *dtype,
		 size_t rows, size_t cols, const void **out)
{
	const json_t *t = json_object_get(st->header, name), *shape, *place;
	const char *type = json_string_value(json_object_get(t, "dtype"));
	uint64_t begin, bytes = type_bytes(dtype) * rows * (cols ? cols : 1);
	size_t room = st->size - (size_t)(st->data - st->image);

	if (!t)
		return wk_error(-EINVAL, "%s: no tensor %s", st->path, name);
	if (!type || strcmp(type, dtype))
		return wk_error(-EINVAL, "%s: %s is %s, not %s", st->path, name,
				type ? type : "of no type", dtype);
	shape = json_object_get(t, "shape");
	if (json_array_size(shape) != (cols ? 2 : 1) || !has_int(shape, 0, rows) ||
	    (cols && !has_int(shape, 1, cols)))
		return wk_error(-EINVAL, "%s: %s has not the shape [%zu][%zu]",
				st->path, name, rows, cols);
	place = json_object_get(t, "data_offsets");
	begin = (uint64_t)json_integer_value(json_array_get(place, 0));
	if (json_array_size(place) != 2 || !has_int(place, 0, begin) ||
	    begin > room || bytes > room - begin ||
	    !has_int(place, 1, begin + bytes))
		return wk_error(-EINVAL, "%s: %s lies outside the file",
				st->path, name);
	/* The header's length decides how data is aligned: read with memcpy. */
	*out = st->data + begin;
	return 0;
}
