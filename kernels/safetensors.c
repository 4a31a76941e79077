// SPDX-License-Identifier: MIT
/*
 * The safetensors container: 8 bytes of header length, JSON, data.
 *
 * The image may come from anybody. Every number of the header is checked
 * against the image before a pointer is made from it: afterwards a tensor's
 * data, bytes, shape and alignment can be relied on.
 */
#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/safetensors.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "tensors are used in place: big-endian machines would have to swap");

#define META "__metadata__"
#define MAX_NAME 200
#define DATA_ALIGN 64

static const struct {
	const char *name;
	uint32_t bytes;
} dtypes[] = {
	[ST_F16] = { "F16", 2 },  [ST_BF16] = { "BF16", 2 },
	[ST_F32] = { "F32", 4 },  [ST_I8] = { "I8", 1 },
	[ST_U8] = { "U8", 1 },	  [ST_I32] = { "I32", 4 },
	[ST_U16] = { "U16", 2 },  [ST_I64] = { "I64", 8 },
};

/**
 * struct st_file - a parsed image
 * @root:    the header; owns every name
 * @tensors: [n] in the order of their data
 * @by_name: [n] sorted
 * @n:       tensors
 * @data:    first byte behind the header
 * @data_bytes: bytes from there on
 */
struct st_file {
	json_t *root;
	struct st_tensor *tensors;
	const struct st_tensor **by_name;
	size_t n;
	const uint8_t *data;
	uint64_t data_bytes;
};

/* Names end up in messages and on terminals: ASCII, no control characters. */
static bool name_ok(const char *s)
{
	size_t i;

	for (i = 0; s[i]; i++)
		if ((unsigned char)s[i] < 0x20 || (unsigned char)s[i] > 0x7e || i >= MAX_NAME)
			return false;
	return i > 0;
}

static int parse_dtype(const json_t *j, uint32_t *out)
{
	const char *s = json_string_value(j);
	uint32_t i;

	for (i = 0; s && i < ARRAY_SIZE(dtypes); i++) {
		if (!strcmp(s, dtypes[i].name)) {
			*out = i;
			return 0;
		}
	}
	return -EINVAL;
}

/* A count in a header: an integer that is not negative. */
static int parse_count(const json_t *j, uint64_t *out)
{
	if (!json_is_integer(j) || json_integer_value(j) < 0)
		return -EINVAL;
	*out = (uint64_t)json_integer_value(j);
	return 0;
}

/* Shape and, from it, the bytes the tensor must have. */
static int parse_shape(const json_t *j, struct st_tensor *t)
{
	uint64_t bytes = dtypes[t->dtype].bytes;
	size_t i;

	if (!json_is_array(j) || json_array_size(j) > ST_MAX_DIMS)
		return -EINVAL;
	t->n_dims = (uint32_t)json_array_size(j);
	for (i = 0; i < t->n_dims; i++) {
		if (parse_count(json_array_get(j, i), &t->shape[i]) ||
		    __builtin_mul_overflow(bytes, t->shape[i], &bytes))
			return -EINVAL;
	}
	t->bytes = bytes;
	return 0;
}

static int parse_tensor(const struct st_file *f, json_t *j, struct st_tensor *t,
			struct cq_err *err)
{
	const json_t *off = json_object_get(j, "data_offsets");
	const char *dtype = json_string_value(json_object_get(j, "dtype"));
	uint64_t begin, end;

	if (!json_is_object(j) || json_object_size(j) != 3)
		return cq_err_set(err, -EINVAL, "tensor %s: a description has "
				  "dtype, shape and data_offsets, this one has not",
				  t->name);
	if (parse_dtype(json_object_get(j, "dtype"), &t->dtype))
		return cq_err_set(err, -EINVAL, "tensor %s: unknown dtype %.20s",
				  t->name, dtype && name_ok(dtype) ? dtype : "(none)");
	if (parse_shape(json_object_get(j, "shape"), t))
		return cq_err_set(err, -EINVAL, "tensor %s: bad shape", t->name);
	if (!json_is_array(off) || json_array_size(off) != 2 ||
	    parse_count(json_array_get(off, 0), &begin) ||
	    parse_count(json_array_get(off, 1), &end))
		return cq_err_set(err, -EINVAL, "tensor %s: bad data_offsets", t->name);
	if (begin > end || end > f->data_bytes)
		return cq_err_set(err, -EINVAL, "tensor %s: data_offsets %llu to %llu "
				  "leave the file, which has %llu bytes of data: is it "
				  "cut short?", t->name, (unsigned long long)begin,
				  (unsigned long long)end,
				  (unsigned long long)f->data_bytes);
	if (end - begin != t->bytes)
		return cq_err_set(err, -EINVAL, "tensor %s: %llu bytes in the file, its "
				  "shape needs %llu", t->name,
				  (unsigned long long)(end - begin),
				  (unsigned long long)t->bytes);
	t->data = f->data + begin;
	if ((uintptr_t)t->data % dtypes[t->dtype].bytes)
		return cq_err_set(err, -EINVAL, "tensor %s: its data is not aligned to "
				  "%u bytes: write the file with a padded header", t->name,
				  dtypes[t->dtype].bytes);
	return 0;
}

/* Empty tensors before the one that begins at the same place. */
static int cmp_data(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	if (x->data != y->data)
		return x->data < y->data ? -1 : 1;
	return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int cmp_name(const void *a, const void *b)
{
	const struct st_tensor *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

/* The format wants the data covered: no gap, no overlap, nothing behind it. */
static int check_cover(const struct st_file *f, struct cq_err *err)
{
	const uint8_t *at = f->data;
	size_t i;

	for (i = 0; i < f->n; i++) {
		if (f->tensors[i].data != at)
			return cq_err_set(err, -EINVAL, "tensor %s: its data %s",
					  f->tensors[i].name,
					  (const uint8_t *)f->tensors[i].data < at ?
					  "overlaps that of another tensor" :
					  "lies behind a gap");
		at += f->tensors[i].bytes;
	}
	if (at != f->data + f->data_bytes)
		return cq_err_set(err, -EINVAL, "%llu bytes behind the last tensor",
				  (unsigned long long)(f->data + f->data_bytes - at));
	return 0;
}

static int check_meta(json_t *meta, struct cq_err *err)
{
	const char *key;
	json_t *j;

	if (!json_is_object(meta))
		return cq_err_set(err, -EINVAL, META " is not an object");
	json_object_foreach(meta, key, j) {
		if (!name_ok(key))
			return cq_err_set(err, -EINVAL, "metadata with a key that is "
					  "empty, too long or not printable");
		if (!json_is_string(j))
			return cq_err_set(err, -EINVAL, "metadata %s is not a string",
					  key);
	}
	return 0;
}

static int read_tensors(struct st_file *f, struct cq_err *err)
{
	struct st_tensor *t = f->tensors;
	const char *key;
	json_t *j;
	size_t i;
	int ret;

	json_object_foreach(f->root, key, j) {
		if (!strcmp(key, META)) {
			ret = check_meta(j, err);
			if (ret)
				return ret;
			continue;
		}
		if (!name_ok(key))
			return cq_err_set(err, -EINVAL, "a tensor's name is empty, too "
					  "long or not printable");
		t->name = key;
		ret = parse_tensor(f, j, t, err);
		if (ret)
			return ret;
		t++;
	}
	f->n = (size_t)(t - f->tensors);
	qsort(f->tensors, f->n, sizeof(*f->tensors), cmp_data);
	for (i = 0; i < f->n; i++)
		f->by_name[i] = &f->tensors[i];
	qsort(f->by_name, f->n, sizeof(*f->by_name), cmp_name);
	return check_cover(f, err);
}

/*
 * jansson (2.14) drops a character of a string, and goes on, when its buffer
 * cannot grow. What two parses agree on is what the file says.
 */
static int parse_header(struct st_file *f, const char *text, size_t len,
			struct cq_err *err)
{
	json_error_t je;
	json_t *again;
	int same;
	char *p;

	f->root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
	if (f->root) {
		again = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
		same = json_equal(f->root, again);
		json_decref(again);
		if (!same)
			return cq_err_set(err, -ENOMEM, "no memory for a safetensors "
					  "header");
		if (json_is_object(f->root))
			return 0;
		return cq_err_set(err, -EINVAL, "safetensors header: not an object");
	}
	/* Out of memory, jansson may leave no text. */
	if (!je.text[0] || json_error_code(&je) == json_error_out_of_memory)
		return cq_err_set(err, -ENOMEM, "no memory for a safetensors header");
	for (p = je.text; *p; p++)
		if ((unsigned char)*p < 0x20 || (unsigned char)*p > 0x7e)
			*p = '?';
	return cq_err_set(err, -EINVAL, "safetensors header: %.160s", je.text);
}

static int load_header(struct st_file *f, const uint8_t *image, size_t size,
		       struct cq_err *err)
{
	uint64_t len;

	if (size < 8)
		return cq_err_set(err, -EINVAL, "%zu bytes are no safetensors file",
				  size);
	memcpy(&len, image, 8);
	if (len > ST_MAX_HEADER)
		return cq_err_set(err, -EINVAL, "not a safetensors file: a header of "
				  "%llu bytes", (unsigned long long)len);
	if (len > size - 8)
		return cq_err_set(err, -EINVAL, "safetensors file cut short: %zu bytes, "
				  "its header alone takes %llu", size,
				  (unsigned long long)len + 8);
	f->data = image + 8 + len;
	f->data_bytes = size - 8 - len;
	return parse_header(f, (const char *)image + 8, len, err);
}

/**
 * st_open() - parse an image
 * @image: the file, kept by reference until st_close()
 * @size:  its bytes
 * @out:   set on success
 * @err:   text of the failure, may be NULL
 *
 * Return: 0; -EINVAL not a strict safetensors file (Documentation/formats.md);
 * -ENOMEM. Thread-safe.
 */
int st_open(const void *image, size_t size, struct st_file **out, struct cq_err *err)
{
	struct st_file *f = calloc(1, sizeof(*f));
	size_t n;
	int ret = -ENOMEM;

	if (!f)
		goto err_nomem;
	ret = load_header(f, image, size, err);
	if (ret)
		goto err_close;
	n = json_object_size(f->root);
	ret = -ENOMEM;
	f->tensors = calloc(n + 1, sizeof(*f->tensors));
	f->by_name = calloc(n + 1, sizeof(*f->by_name));
	if (!f->tensors || !f->by_name)
		goto err_nomem;
	ret = read_tensors(f, err);
	if (ret)
		goto err_close;
	*out = f;
	return 0;

err_nomem:
	cq_err_set(err, -ENOMEM, "out of memory reading a safetensors header");
err_close:
	st_close(f);
	return ret;
}

/**
 * st_close() - forget a parsed image; the image itself stays the caller's
 * @f: file, or NULL
 */
void st_close(struct st_file *f)
{
	if (!f)
		return;
	json_decref(f->root);
	free(f->by_name);
	free(f->tensors);
	free(f);
}

/**
 * st_find() - tensor by name
 * @f:    file
 * @name: its name
 *
 * Return: the tensor, owned by @f, or NULL.
 */
const struct st_tensor *st_find(const struct st_file *f, const char *name)
{
	size_t lo = 0, hi = f->n, mid;
	int c;

	while (lo < hi) {
		mid = lo + (hi - lo) / 2;
		c = strcmp(name, f->by_name[mid]->name);
		if (!c)
			return f->by_name[mid];
		if (c < 0)
			hi = mid;
		else
			lo = mid + 1;
	}
	return NULL;
}

/**
 * st_meta() - metadata string
 * @f:   file
 * @key: its key
 *
 * Return: the text, owned by @f, or NULL.
 */
const char *st_meta(const struct st_file *f, const char *key)
{
	return json_string_value(json_object_get(json_object_get(f->root, META), key));
}

/**
 * st_meta_next() - walk the metadata
 * @f:   file
 * @key: key of the entry before, NULL to begin; as returned by this function
 *
 * Return: the next key, owned by @f, or NULL.
 */
const char *st_meta_next(const struct st_file *f, const char *key)
{
	json_t *meta = json_object_get(f->root, META);
	void *it;

	if (!meta)
		return NULL;
	it = key ? json_object_iter_next(meta, json_object_iter_at(meta, key)) :
		   json_object_iter(meta);
	return it ? json_object_iter_key(it) : NULL;
}

/**
 * st_count() - number of tensors
 * @f: file
 *
 * Return: their number.
 */
size_t st_count(const struct st_file *f)
{
	return f->n;
}

/**
 * st_nth() - tensor by place, in the order of the data
 * @f: file
 * @i: 0 .. st_count() - 1
 *
 * Return: the tensor, owned by @f, or NULL past the end.
 */
const struct st_tensor *st_nth(const struct st_file *f, size_t i)
{
	return i < f->n ? &f->tensors[i] : NULL;
}

/**
 * st_dtype_bytes() - size of an element
 * @dtype: enum st_dtype
 *
 * Return: bytes.
 */
uint32_t st_dtype_bytes(uint32_t dtype)
{
	return dtypes[dtype].bytes;
}

static json_t *describe(const struct st_tensor *t, uint64_t at)
{
	json_t *shape = json_array();
	uint32_t i;

	for (i = 0; shape && i < t->n_dims; i++) {
		if (json_array_append_new(shape, json_integer((json_int_t)t->shape[i]))) {
			json_decref(shape);
			return NULL;
		}
	}
	return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtypes[t->dtype].name,
			 "shape", shape, "data_offsets", (json_int_t)at,
			 (json_int_t)(at + t->bytes));
}

static json_t *header_json(const struct st_tensor *tensors, size_t n,
			   const char *const *meta, size_t n_meta)
{
	json_t *root = json_object(), *m = json_object();
	uint64_t at = 0;
	size_t i;
	int bad = !root || !m;

	for (i = 0; !bad && i < n_meta; i++)
		bad = json_object_set_new(m, meta[2 * i], json_string(meta[2 * i + 1]));
	if (!bad && n_meta)
		bad = json_object_set(root, META, m);
	for (i = 0; !bad && i < n; i++) {
		bad = json_object_set_new(root, tensors[i].name,
					  describe(&tensors[i], at));
		at += tensors[i].bytes;
	}
	json_decref(m);
	if (!bad)
		return root;
	json_decref(root);
	return NULL;
}

/* The text, if it reads back as what was written: see parse_header(). */
static char *header_text(const struct st_tensor *tensors, size_t n,
			 const char *const *meta, size_t n_meta)
{
	json_t *root = header_json(tensors, n, meta, n_meta), *back = NULL;
	char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;

	if (text)
		back = json_loads(text, 0, NULL);
	if (text && !json_equal(root, back)) {
		free(text);
		text = NULL;
	}
	json_decref(root);
	json_decref(back);
	return text;
}

size_t st_header(const struct st_tensor *tensors, size_t n, const char *const *meta,
		 size_t n_meta, void **out)
{
	char *text = header_text(tensors, n, meta, n_meta);
	size_t len, total = 0;
	uint64_t padded;
	uint8_t *buf;

	if (!text)
		return 0;
	len = strlen(text);
	buf = malloc(ALIGN_UP(8 + len, DATA_ALIGN));
	if (buf) {
		total = ALIGN_UP(8 + len, DATA_ALIGN);
		padded = total - 8;
		memcpy(buf, &padded, 8);
		memcpy(buf + 8, text, len);
		memset(buf + 8 + len, ' ', total - 8 - len);
		*out = buf;
	}
	free(text);
	return total;
}
