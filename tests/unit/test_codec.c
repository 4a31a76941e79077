// SPDX-License-Identifier: MIT
/* cq_codec_*: a model file without a daemon. */
#include "tests/harness.h"
#include "cq.h"
#include "kernels/kernels.h"
#include "tests/kernels/image.h"

#define D 64
#define TOKENS 150	/* two pages and a part */
#define BLOCKS 3

static char path[300];

static void put_file(const void *data, size_t size)
{
	FILE *f;

	snprintf(path, sizeof(path), "%s/model.st", test_dir());
	f = fopen(path, "w");
	ASSERT(f);
	ASSERT_EQ(fwrite(data, 1, size, f), size);
	ASSERT_EQ(fclose(f), 0);
}

static struct cq_codec *make(struct cqk_geom geom, const char *k, const char *v,
			     struct image *im)
{
	struct cq_codec *codec = NULL;

	*im = image_model(geom, k, v, CQK_CENTROIDS_F16);
	put_file(im->buf, im->size);
	if (cq_codec_open(path, &codec))
		FAIL("%s", cq_last_error());
	ASSERT_SYS(unlink(path));	/* it was read whole */
	return codec;
}

static void fill(float *x, size_t n)
{
	uint64_t rng = 5;
	size_t i;

	for (i = 0; i < n; i++)
		x[i] = (float)gauss(&rng);
}

static struct cq_view view_of(void *data, uint32_t dtype, int64_t stride)
{
	return (struct cq_view){ .data = data, .dtype = dtype, .stride_token = stride };
}

TEST(tells_what_the_file_holds)
{
	struct cq_codec_info info = { .sz = sizeof(info) };
	struct cq_codec_part part = { .sz = sizeof(part) };
	struct image im;
	struct cq_codec *codec = make(small_geom(D), "2c8b", "fp16", &im);
	struct cqk_model *m;

	ASSERT_OK(cqk_model_head(im.buf, im.size, &m, NULL));
	ASSERT_OK(cq_codec_get_info(codec, &info));
	ASSERT_EQ(info.n_layers, 2);
	ASSERT_EQ(info.n_heads, 4);
	ASSERT_EQ(info.n_kv_heads, 2);
	ASSERT_EQ(info.head_dim, D);
	ASSERT_EQ(info.sinks, 4);
	ASSERT_EQ(info.window, 128);
	ASSERT_EQ(info.rotated, 0);
	ASSERT_EQ(info.file_bytes, im.size);
	ASSERT_EQ(info.page_bytes, m->payload);
	ASSERT(!memcmp(info.hash, m->hash, 32));
	ASSERT(!memcmp(info.fingerprint, m->fingerprint, 32));
	ASSERT_OK(cq_codec_get_part(codec, 1, CQ_K, &part));
	ASSERT_EQ(part.channels, 2);
	ASSERT_EQ(part.bits, 8);
	ASSERT_EQ(part.block_bytes, 64 * D / 2);
	ASSERT_STREQ(part.name, "2c8b");
	ASSERT_OK(cq_codec_get_part(codec, 1, CQ_V, &part));
	ASSERT_EQ(part.channels, 0);
	ASSERT_EQ(part.block_bytes, 64 * D * 2);
	ASSERT_STREQ(part.name, "fp16");
	cqk_model_free(m);
	cq_codec_close(codec);
	free(im.buf);
}

/* Codes and values are those of the portable kernels, block by block. */
static void same_as_kernels(uint32_t dtype, const char *coding)
{
	const struct cqk_ops *ops = cqk_select("portable");
	static float x[TOKENS * D], got[TOKENS * D], want[CQ_PAGE_TOKENS * D];
	static uint16_t halves[TOKENS * D];
	uint8_t codes[BLOCKS * 64 * D / 4], block[64 * D / 4];
	struct cq_codec_part part = { .sz = sizeof(part) };
	struct cq_view in = view_of(dtype == CQ_F32 ? (void *)x : halves, dtype, D);
	struct cq_view out = view_of(got, CQ_F32, D);
	struct image im;
	struct cq_codec *codec = make(small_geom(D), "4c8b", coding, &im);
	struct cqk_model *m;
	uint32_t b, n, i;

	fill(x, TOKENS * D);
	for (i = 0; i < TOKENS * D; i++)
		halves[i] = cqk_f32_to_f16(x[i]);
	memset(codes, 0xee, sizeof(codes));
	ASSERT_OK(cq_codec_get_part(codec, 1, CQ_V, &part));
	ASSERT_STREQ(part.name, coding);
	ASSERT_LE(part.block_bytes, sizeof(block));
	ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
	ASSERT_OK(cq_codec_encode(codec, 1, CQ_V, 1, &in, TOKENS, codes));
	ASSERT_OK(cq_codec_decode(codec, 1, CQ_V, 1, codes, TOKENS, &out));
	for (b = 0; b < BLOCKS; b++) {
		n = b < 2 ? 64 : TOKENS - 128;
		memset(block, 0, sizeof(block));
		ops->encode(&m->layers[1].v, 1, halves + b * 64 * D, 0, n, block);
		ASSERT(!memcmp(block, codes + b * part.block_bytes, part.block_bytes));
		ops->decode(&m->layers[1].v, 1, block, 0, n, want);
		ASSERT(!memcmp(want, got + b * 64 * D, n * D * sizeof(float)));
	}
	cqk_model_free(m);
	cq_codec_close(codec);
	free(im.buf);
}

TEST(codes_f32_as_the_kernels_do)
{
	same_as_kernels(CQ_F32, "4c8b");
	same_as_kernels(CQ_F32, "8c10b");
}

TEST(codes_f16_as_the_kernels_do)
{
	same_as_kernels(CQ_F16, "4c8b");
	same_as_kernels(CQ_F16, "8c10b");
}

TEST(fp16_rounds_and_nothing_else)
{
	static float x[TOKENS * D], got[TOKENS * D];
	static uint8_t codes[BLOCKS * 64 * D * 2];
	struct cq_view in = view_of(x, CQ_F32, D), out = view_of(got, CQ_F32, D);
	struct image im;
	struct cq_codec *codec = make(small_geom(D), "fp16", "fp16", &im);
	uint32_t i;

	fill(x, TOKENS * D);
	ASSERT_OK(cq_codec_encode(codec, 0, CQ_K, 0, &in, TOKENS, codes));
	ASSERT_OK(cq_codec_decode(codec, 0, CQ_K, 0, codes, TOKENS, &out));
	for (i = 0; i < TOKENS * D; i++)
		ASSERT(got[i] == cqk_f16_to_f32(cqk_f32_to_f16(x[i])));
	cq_codec_close(codec);
	free(im.buf);
}

/* Keys of a model with interleaved pairs come and go in its own order. */
TEST(keys_are_in_the_models_order)
{
	static float x[D], got[D];
	static uint8_t codes[64 * D * 2];
	struct cq_view in = view_of(x, CQ_F32, D), out = view_of(got, CQ_F32, D);
	struct cqk_geom geom = small_geom(D);
	struct cq_codec *codec;
	struct image im;
	uint16_t first;
	uint32_t i;

	geom.rope_pairs = CQK_PAIRS_INTERLEAVED;
	codec = make(geom, "fp16", "fp16", &im);
	for (i = 0; i < D; i++)
		x[i] = (float)i;
	ASSERT_OK(cq_codec_encode(codec, 0, CQ_K, 0, &in, 1, codes));
	memcpy(&first, codes + 2, 2);
	ASSERT(cqk_f16_to_f32(first) == 2);	/* channel 2 is stored at 1 */
	ASSERT_OK(cq_codec_decode(codec, 0, CQ_K, 0, codes, 1, &out));
	ASSERT(!memcmp(x, got, sizeof(x)));
	ASSERT_OK(cq_codec_encode(codec, 0, CQ_V, 0, &in, 1, codes));
	memcpy(&first, codes + 2, 2);
	ASSERT(cqk_f16_to_f32(first) == 1);
	cq_codec_close(codec);
	free(im.buf);
}

TEST(names_a_value_that_cannot_be_coded)
{
	static float x[TOKENS * D];
	uint8_t codes[BLOCKS * 64 * D / 8];
	struct cq_view in = view_of(x, CQ_F32, D);
	struct image im;
	struct cq_codec *codec = make(small_geom(D), "8c8b", "8c8b", &im);

	x[70 * D + 9] = 70000;
	ASSERT_EQ(cq_codec_encode(codec, 0, CQ_K, 0, &in, TOKENS, codes), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "token 70, channel 9 is NaN, Inf or beyond fp16");
	ASSERT_OK(cq_codec_encode(codec, 0, CQ_K, 0, &in, 70, codes));
	cq_codec_close(codec);
	free(im.buf);
}

TEST(refuses_arguments)
{
	float x[D] = { 0 };
	uint8_t codes[64 * D / 4];
	struct cq_view in = view_of(x, CQ_F32, D), bad = view_of(x, 7, D);
	struct cq_codec_info info = { 0 };
	struct image im;
	struct cq_codec *codec = make(small_geom(D), "4c8b", "4c8b", &im);

	ASSERT_EQ(cq_codec_encode(NULL, 0, 0, 0, &in, 1, codes), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "not an open codec");
	ASSERT_EQ(cq_codec_encode(codec, 2, 0, 0, &in, 1, codes), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "layer 2, kv 0, head 0: the model has 2 layers");
	ASSERT_EQ(cq_codec_encode(codec, 0, 2, 0, &in, 1, codes), -EINVAL);
	ASSERT_EQ(cq_codec_encode(codec, 0, 0, 2, &in, 1, codes), -EINVAL);
	ASSERT_EQ(cq_codec_encode(codec, 0, 0, 0, &bad, 1, codes), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "dtype 7");
	ASSERT_EQ(cq_codec_encode(codec, 0, 0, 0, &in, 1, NULL), -EINVAL);
	ASSERT_EQ(cq_codec_encode(codec, 0, 0, 0, &in, (size_t)-1, codes), -EINVAL);
	ASSERT_EQ(cq_codec_decode(codec, 0, 0, 0, codes, 1, NULL), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "no data");
	ASSERT_OK(cq_codec_encode(codec, 0, 0, 0, &in, 0, codes));
	ASSERT_EQ(cq_codec_get_info(codec, &info), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "cq_codec_info: sz is 0");
	ASSERT_EQ(cq_codec_get_part(codec, 9, 0, NULL), -EINVAL);
	cq_codec_close(codec);
	free(im.buf);
	cq_codec_close(NULL);
}

/* Every byte a code could be is one: nothing is read beyond the codebook. */
TEST(decodes_any_bytes)
{
	static uint8_t codes[64 * D / 2];
	static float got[64 * D];
	struct cq_view out = view_of(got, CQ_F32, D);
	struct image im;
	struct cq_codec *codec = make(small_geom(D), "2c8b", "2c8b", &im);
	size_t i;

	for (i = 0; i < sizeof(codes); i++)
		codes[i] = (uint8_t)(i * 37);
	ASSERT_OK(cq_codec_decode(codec, 0, CQ_K, 1, codes, 64, &out));
	for (i = 0; i < 64 * D; i++)
		ASSERT(isfinite(got[i]));
	cq_codec_close(codec);
	free(im.buf);
}

TEST(refuses_files)
{
	struct image im = image_model(small_geom(D), "4c8b", "4c8b", CQK_CENTROIDS_F16);
	struct cq_codec *codec = NULL;
	size_t cut;

	ASSERT_EQ(cq_codec_open("/nonexistent/model.st", &codec), -ENOENT);
	ASSERT_STRHAS(cq_last_error(), "cannot open /nonexistent/model.st");
	ASSERT_EQ(cq_codec_open("/dev/null", &codec), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "not a regular file");
	ASSERT_EQ(cq_codec_open(test_dir(), &codec), -EINVAL);
	ASSERT_EQ(cq_codec_open(NULL, &codec), -EINVAL);
	put_file("", 0);
	ASSERT_EQ(cq_codec_open(path, &codec), -EINVAL);
	for (cut = 1; cut < im.size; cut += im.size / 7) {
		put_file(im.buf, cut);
		ASSERT(cq_codec_open(path, &codec) < 0);
		ASSERT_STRHAS(cq_last_error(), "model.st: ");
	}
	ASSERT(!codec);
	setenv("CQ_KERNELS", "abacus", 1);
	put_file(im.buf, im.size);
	ASSERT_EQ(cq_codec_open(path, &codec), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "CQ_KERNELS=abacus");
	free(im.buf);
}

TEST(refuses_a_file_too_large)
{
	struct cq_codec *codec = NULL;

	put_file("x", 1);
	ASSERT_SYS(truncate(path, (1ll << 32) + 1));
	ASSERT_EQ(cq_codec_open(path, &codec), -EFBIG);
	ASSERT_STRHAS(cq_last_error(), "a model file has at most 4294967296");
}
