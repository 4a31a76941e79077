// SPDX-License-Identifier: MIT
/* The container: what is written is read back, what is wrong is named. */
#include "tests/harness.h"
#include "tests/kernels/image.h"

#define T(name, type, shape, from, to) \
	"\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape \
	",\"data_offsets\":[" #from "," #to "]}"

/* st_open() on @json over @bytes of data fails with @code and says @text. */
static void refused_code(const char *json, size_t bytes, int code, const char *text)
{
	struct image im = image_json(json, bytes);
	struct st_file *f = (void *)&im;
	struct cq_err err = { "" };

	ASSERT_EQ(st_open(im.buf, im.size, &f, &err), code);
	ASSERT(f == (void *)&im);
	ASSERT_STRHAS(err.text, text);
	ASSERT_EQ(st_open(im.buf, im.size, &f, NULL), code);
	free(im.buf);
}

static void refused(const char *json, size_t bytes, const char *text)
{
	refused_code(json, bytes, -EINVAL, text);
}

TEST(written_is_read)
{
	struct st_tensor t[] = {
		{ .name = "a", .dtype = ST_F16, .n_dims = 2, .shape = { 3, 2 }, .bytes = 12 },
		{ .name = "b", .dtype = ST_F32, .n_dims = 0, .bytes = 4 },
		{ .name = "c", .dtype = ST_I8, .n_dims = 1, .shape = { 5 }, .bytes = 5 },
	};
	const char *meta[] = { "format", "x\"\\\n", "k", "" };
	const char *key = NULL;
	struct st_file *f;
	uint8_t *image;
	void *header;
	size_t n, i;

	n = st_header(t, 3, meta, 2, &header);
	ASSERT(n);
	ASSERT_EQ(n % 64, 0);
	image = realloc(header, n + 21);
	for (i = 0; i < 21; i++)
		image[n + i] = (uint8_t)i;
	ASSERT_OK(st_open(image, n + 21, &f, NULL));
	ASSERT_EQ(st_count(f), 3);
	for (i = 0; i < 3; i++) {
		ASSERT_STREQ(st_nth(f, i)->name, t[i].name);
		ASSERT(st_find(f, t[i].name) == st_nth(f, i));
		ASSERT_EQ(st_nth(f, i)->dtype, t[i].dtype);
		ASSERT_EQ(st_nth(f, i)->n_dims, t[i].n_dims);
		ASSERT_EQ(st_nth(f, i)->bytes, t[i].bytes);
		ASSERT_MEMEQ(st_nth(f, i)->shape, t[i].shape, sizeof(t[i].shape));
	}
	ASSERT_EQ(*(const uint8_t *)st_find(f, "c")->data, 16);
	ASSERT(!st_nth(f, 3) && !st_find(f, "d") && !st_meta(f, "d"));
	ASSERT_STREQ(st_meta(f, "format"), "x\"\\\n");
	for (i = 0; (key = st_meta_next(f, key)); i++)
		ASSERT_STREQ(key, meta[2 * i]);
	ASSERT_EQ(i, 2);
	st_close(f);
	st_close(NULL);
	free(image);
}

TEST(order_in_the_header_does_not_matter)
{
	struct image im = image_json("{" T("z", "U8", "[4]", 4, 8) ","
				     T("m", "I32", "[1]", 0, 4) ","
				     T("e", "F32", "[0,7]", 4, 4) "}", 8);
	struct st_file *f;

	ASSERT_OK(st_open(im.buf, im.size, &f, NULL));
	ASSERT_STREQ(st_nth(f, 0)->name, "m");
	ASSERT_STREQ(st_nth(f, 2)->name, "z");
	ASSERT(st_find(f, "z")->data == im.buf + im.size - 4);
	ASSERT_EQ(st_find(f, "e")->bytes, 0);
	ASSERT(!st_meta(f, "format"));
	ASSERT(!st_meta_next(f, NULL));
	st_close(f);
	free(im.buf);
}

TEST(offsets)
{
	refused("{" T("a", "F32", "[2]", 0, 8) "}", 4, "leave the file");
	refused("{" T("a", "F32", "[2]", 0, 4) "}", 8, "shape needs 8");
	refused("{" T("a", "F32", "[1]", 4, 0) "}", 8, "leave the file");
	refused("{" T("a", "F32", "[1]", -4, 0) "}", 8, "data_offsets");
	refused("{" T("a", "F32", "[1]", 0, 4.0) "}", 8, "data_offsets");
	refused("{" T("a", "F32", "[1]", 4, 8) "}", 8, "gap");
	refused("{" T("a", "F32", "[1]", 0, 4) "}", 8, "4 bytes behind");
	refused("{" T("a", "F32", "[1]", 0, 4) "," T("b", "I8", "[4]", 2, 6) "}", 6,
		"overlaps");
	refused("{" T("a", "U8", "[2]", 0, 2) "," T("b", "F32", "[1]", 2, 6) "}", 6,
		"aligned to 4");
	refused("{" T("a", "U8", "[1]", 0, 1) "," T("b", "I64", "[1]", 1, 9) "}", 9,
		"aligned to 8");
	refused("{" T("a", "F32", "[4611686018427387904,4,4]", 0, 0) "}", 0, "shape");
	refused("{" T("a", "F32", "[1,1,1,1,1]", 0, 4) "}", 4, "shape");
	refused("{" T("a", "F32", "[-1]", 0, 4) "}", 4, "shape");
	refused("{" T("a", "F32", "{}", 0, 4) "}", 4, "shape");
	refused("{" T("a", "F99", "[1]", 0, 4) "}", 4, "F99");
	refused("{\"a\":{\"dtype\":3,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "(none)");
	refused("{" T("a", "\\u001b[31m", "[1]", 0, 4) "}", 4, "dtype (none)");
	refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0]}}", 4,
		"data_offsets");
}

TEST(header)
{
	refused("{" T("a", "I8", "[1]", 0, 1) "," T("a", "I8", "[1]", 0, 1) "}", 1,
		"duplicate");
	refused("{\"a\":{\"dtype\":\"I8\",\"dtype\":\"U8\",\"shape\":[]}}", 1, "duplicate");
	refused("[]", 0, "not an object");
	refused("", 0, "header");
	refused("{\"a\":1}", 0, "description");
	refused("{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
		"description");
	refused("{\"\":1}", 0, "name");
	refused("{\"a\\u0007\":1}", 0, "name");
	refused("{\"a\\u009b31m\":1}", 0, "name");
	refused("{\"__metadata__\":{\"a\":1}}", 0, "metadata a");
	refused("{\"__metadata__\":{\"a\\n\":\"\"}}", 0, "printable");
	refused("{\"__metadata__\":7}", 0, "not an object");
	refused("{\"\x1b[31m\":", 0, "header");
	refused("{} {}", 0, "header");
}

TEST(lengths)
{
	struct image im = image_json("{" T("a", "I8", "[8]", 0, 8) "}", 8);
	uint64_t len = im.size - 16, bad[] = { len + 9, ST_MAX_HEADER + 1, UINT64_MAX };
	struct cq_err err;
	struct st_file *f;
	size_t i;

	ASSERT_OK(st_open(im.buf, im.size, &f, NULL));
	st_close(f);
	for (i = 0; i < im.size; i++) {
		uint8_t *cut = malloc(MAX(i, 1u));	/* ASan sees a read behind it */

		memcpy(cut, im.buf, i);
		ASSERT_EQ(st_open(cut, i, &f, &err), -EINVAL);
		ASSERT_STRHAS(err.text, i < 8 ? "no safetensors" : "cut short");
		free(cut);
	}
	for (i = 0; i < 3; i++) {
		memcpy(im.buf, &bad[i], 8);
		ASSERT_EQ(st_open(im.buf, im.size, &f, NULL), -EINVAL);
	}
	free(im.buf);
}
