// SPDX-License-Identifier: MIT
/*
 * The reference worker without a daemon: tokenizer, forward pass, sampling,
 * and the reader of weight files.
 */
#include <math.h>
#include "client/worker/worker.h"
#include "tests/harness.h"

#define LM "client/worker/lm"

struct golden {
	const char *text;
	size_t n;
	uint32_t ids[64];
};

/* What lm/tokenizer.py gives. */
static const struct golden golden[] = {
	{ " the  quick\tbrown\n\n fox 42 - 7x", 16, { 270, 256, 479, 1544, 9, 98,
	  297, 1691, 521, 854, 120, 570, 50, 365, 1781, 120 } },
	/* a space behind white space belongs to it; U+200B is none */
	{ "\xc2\xa0 the\xc2\x85 the\xe1\x9a\x80 the\xe2\x80\x80 the"
	  "\xe2\x80\x8a the\xe2\x80\x8b the\xe2\x80\xa8 the\xe2\x80\xa9 the"
	  "\xe2\x80\xaf the\xe2\x81\x9f the\xe3\x80\x80 the\x1c the",
	  55, { 194, 160, 32, 436, 194, 133, 32, 436, 225, 154, 128, 32, 436, 226,
	  128, 128, 32, 436, 226, 128, 138, 32, 436, 226, 128, 139, 270,
	  226, 128, 168, 32, 436, 226, 128, 169, 32, 436, 226, 128, 175, 32,
	  436, 226, 129, 159, 32, 436, 227, 128, 128, 32, 436, 28, 32, 436 } },
	{ "\xff\xfe \xc3( \xe2\x80 \xe2\x80\xa9\xf0\x9f\x98\x80!!", 18, { 255, 254,
	  32, 195, 40, 32, 226, 128, 32, 226, 128, 169, 240, 159, 152, 128, 33,
	  33 } },
	{ "--------==  \r\n\x85\xc2\x85.", 9, { 370, 349, 256, 13, 10, 133, 194,
	  133, 46 } },
	{ "", 0, { 0 } },
};

TEST(tokenizer_meets_its_specification)
{
	struct wk_tok *tok;
	uint32_t *ids;
	size_t i, n;

	ASSERT_OK(wk_tok_load(LM "/merges.json", &tok));
	for (i = 0; i < sizeof(golden) / sizeof(golden[0]); i++) {
		ASSERT_OK(wk_tok_encode(tok, golden[i].text, strlen(golden[i].text),
					&ids, &n));
		ASSERT_EQ(n, golden[i].n);
		ASSERT_MEMEQ(ids, golden[i].ids, n * sizeof(*ids));
		free(ids);
	}
	wk_tok_free(tok);
}

/* The two texts were encoded by lm/training/bpe.py: decode, encode again. */
static void round_trip(const struct wk_tok *tok, const char *path)
{
	uint32_t *ids, *again;
	size_t n, m, len;
	char *text;

	ASSERT_OK(wk_ids_read(path, 4096, &ids, &n));
	ASSERT_GT(n, 100000);
	ASSERT_OK(wk_tok_decode(tok, ids, n, &text, &len));
	ASSERT_OK(wk_tok_encode(tok, text, len, &again, &m));
	ASSERT_EQ(m, n);
	ASSERT_MEMEQ(again, ids, n * sizeof(*ids));
	free(ids);
	free(again);
	free(text);
}

TEST(tokenizer_encodes_real_text_as_python_did)
{
	struct wk_tok *tok;

	ASSERT_OK(wk_tok_load(LM "/merges.json", &tok));
	round_trip(tok, LM "/calibration.u16");
	round_trip(tok, LM "/heldout.u16");
	wk_tok_free(tok);
}

static const char *write_file(const char *name, const void *data, size_t size)
{
	static char path[512];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", test_dir(), name);
	f = fopen(path, "we");
	ASSERT(f);
	ASSERT_EQ(fwrite(data, 1, size, f), size);
	fclose(f);
	return path;
}

TEST(tokenizer_refuses_merges_of_what_does_not_exist_yet)
{
	static const char *const bad[] = {
		"[[32, 256]]", "[[-1, 3]]", "[[1]]", "{}", "[[1, 2], [\"a\", 3]]",
		"[[1, 2]", "[[1.5, 2]]",
	};
	struct wk_tok *tok;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ASSERT_EQ(wk_tok_load(write_file("m.json", bad[i], strlen(bad[i])),
				      &tok), -EINVAL);
}

TEST(token_ids_beyond_the_vocabulary_are_refused)
{
	static const unsigned char big[] = { 1, 0, 0, 16 };
	uint32_t *ids;
	size_t n;

	ASSERT_EQ(wk_ids_read(write_file("a", big, 4), 4096, &ids, &n), -EINVAL);
	ASSERT_EQ(wk_ids_read(write_file("b", big, 3), 4097, &ids, &n), -EINVAL);
	ASSERT_OK(wk_ids_read(write_file("c", big, 4), 4097, &ids, &n));
	ASSERT_EQ(n, 2);
	ASSERT_EQ(ids[1], 4096);
	free(ids);
	ASSERT_EQ(wk_ids_read("/nonexistent", 9, &ids, &n), -ENOENT);
}

#define TOKENS 256
#define ROWS 7
#define VOCAB 4096

struct reference {
	struct wk_st st;
	uint32_t ids[TOKENS];
	int32_t rows[ROWS];
	const float *logits;
};

static void read_reference(struct reference *r)
{
	const void *p;
	uint16_t id;
	size_t i;

	ASSERT_OK(wk_st_open(&r->st, LM "/reference.safetensors"));
	ASSERT_OK(wk_st_tensor(&r->st, "tokens", "U16", TOKENS, 0, &p));
	for (i = 0; i < TOKENS; i++) {
		memcpy(&id, (const char *)p + 2 * i, 2);
		r->ids[i] = id;
	}
	ASSERT_OK(wk_st_tensor(&r->st, "rows", "I32", ROWS, 0, &p));
	memcpy(r->rows, p, sizeof(r->rows));
	ASSERT_OK(wk_st_tensor(&r->st, "logits", "F32", ROWS, VOCAB, &p));
	r->logits = p;
}

/* Logits of PyTorch in f32, whatever the chunks the tokens are read in. */
static void check_logits(size_t chunk, const struct reference *r)
{
	float *logits = malloc(TOKENS * VOCAB * sizeof(float)), want;
	struct wk_local *local;
	struct wk_lm *lm;
	double worst = 0;
	size_t i, j;

	ASSERT(logits);
	ASSERT_OK(wk_lm_load(LM, chunk, &lm));
	ASSERT_OK(wk_local_new(wk_lm_config(lm), chunk, &local));
	ASSERT_OK(wk_lm_forward(lm, wk_local_cache(local), r->ids, TOKENS, TOKENS,
				logits));
	for (i = 0; i < ROWS; i++) {
		for (j = 0; j < VOCAB; j++) {
			memcpy(&want, (const char *)r->logits + 4 * (i * VOCAB + j), 4);
			worst = fmax(worst, fabs((double)want -
				     (double)logits[(size_t)r->rows[i] * VOCAB + j]));
		}
	}
	printf("# chunks of %zu: largest error %.2g\n", chunk, worst);
	ASSERT_LT(worst * 1e6, 200);
	wk_local_free(local);
	wk_lm_free(lm);
	free(logits);
}

TEST(logits_are_those_of_the_reference)
{
	struct reference r;

	read_reference(&r);
	check_logits(256, &r);
	check_logits(100, &r);
	check_logits(1, &r);
	wk_st_close(&r.st);
}

TEST(forward_refuses_more_than_the_context_and_unknown_tokens)
{
	static uint32_t ids[2049];
	struct wk_local *local;
	struct wk_lm *lm;
	float *row = malloc(VOCAB * sizeof(float));

	ASSERT(row);
	ASSERT_OK(wk_lm_load(LM, 64, &lm));
	ASSERT_OK(wk_local_new(wk_lm_config(lm), 64, &local));
	ASSERT_EQ(wk_lm_forward(lm, wk_local_cache(local), ids, 2049, 0, NULL),
		  -ERANGE);
	ids[1] = VOCAB;
	ASSERT_EQ(wk_lm_forward(lm, wk_local_cache(local), ids, 2, 1, row), -EINVAL);
	ASSERT_EQ(wk_local_cache(local)->ops->length(wk_local_cache(local)), 0);
	wk_local_free(local);
	wk_lm_free(lm);
	free(row);
}

/* A file with one tensor "x"; @header may lie about it. */
static int open_st(struct wk_st *st, const char *header, size_t data)
{
	static char path[512];
	unsigned char file[512] = { 0 };
	size_t len = strlen(header);

	file[0] = (unsigned char)len;
	file[1] = (unsigned char)(len >> 8);
	memcpy(file + 8, header, len);
	snprintf(path, sizeof(path), "%s", write_file("x.st", file, 8 + len + data));
	return wk_st_open(st, path);
}

#define X(dtype, shape, offsets) "{\"x\":{\"dtype\":\"" dtype "\"," \
	"\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define FAR "9223372036854775807"

TEST(weight_files_are_checked)
{
	static const struct {
		const char *header;
		size_t data;
		int ret;
	} t[] = {
		{ X("F32", "[2,3]", "[0,24]"), 24, 0 },
		{ X("F32", "[2,3]", "[0,24]"), 23, -EINVAL },
		{ X("F32", "[2,3]", "[0,20]"), 24, -EINVAL },
		{ X("F32", "[3,2]", "[0,24]"), 24, -EINVAL },
		{ X("F16", "[2,3]", "[0,12]"), 24, -EINVAL },
		{ X("F32", "[6]", "[0,24]"), 24, -EINVAL },
		{ X("F32", "[2,3]", "[-24,0]"), 24, -EINVAL },
		{ X("F32", "[2,3]", "[" FAR "," FAR "]"), 24, -EINVAL },
		{ "{\"y\":{}}", 24, -EINVAL },
		{ "{\"x\":7}", 24, -EINVAL },
	};
	struct wk_st st;
	const void *p;
	size_t i;

	for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		ASSERT_OK(open_st(&st, t[i].header, t[i].data));
		ASSERT_EQ(wk_st_tensor(&st, "x", "F32", 2, 3, &p), t[i].ret);
		wk_st_close(&st);
	}
	ASSERT_EQ(open_st(&st, "[1]", 0), -EINVAL);
	ASSERT_EQ(open_st(&st, "{\"x\"", 0), -EINVAL);
	ASSERT_EQ(wk_st_open(&st, write_file("short", "\377\377\0\0\0\0\0\0{}", 10)),
		  -EINVAL);
	ASSERT_EQ(wk_st_open(&st, write_file("empty", "", 0)), -EINVAL);
}

TEST(halves_survive_a_round_trip)
{
	uint32_t h;
	float f;

	for (h = 0; h < 65536; h++) {
		f = wk_f16_to_f32((uint16_t)h);
		if (isnan(f))
			ASSERT(isnan(wk_f16_to_f32(wk_f32_to_f16(f))));
		else
			ASSERT_EQ(wk_f32_to_f16(f), h);
	}
	ASSERT_EQ(wk_f32_to_f16(2049.0f), 0x6800);	/* tie: to even, 2048 */
	ASSERT_EQ(wk_f32_to_f16(2051.0f), 0x6802);	/* tie: to even, 2052 */
	ASSERT_EQ(wk_f32_to_f16(65520.0f), 0x7c00);
	ASSERT_EQ(wk_f32_to_f16(0x1p-25f), 0);		/* tie: to even, 0 */
	ASSERT_EQ(wk_f32_to_f16(0x1.8p-25f), 1);
}

TEST(sampling_follows_the_distribution)
{
	static const float logits[4] = { 0, 1, 2, 0 };
	struct wk_sampler s = { 0, 1 }, again;
	double e = exp(1), sum = 2 + e + e * e, want[4] = { 1, e, e * e, 1 };
	size_t seen[4] = { 0 }, i;

	for (i = 0; i < 10; i++)
		ASSERT_EQ(wk_sample(&s, logits, 4), 2);
	s.temperature = 1;
	again = s;
	for (i = 0; i < 100000; i++)
		seen[wk_sample(&s, logits, 4)]++;
	for (i = 0; i < 4; i++)		/* five standard deviations at most */
		ASSERT_NEAR((double)seen[i] / 1e5, want[i] / sum, 0.008);
	s = again;
	for (i = 0; i < 100; i++)
		ASSERT_EQ(wk_sample(&s, logits, 4), wk_sample(&again, logits, 4));
}

TEST(divergence_is_that_of_the_formula)
{
	static const float p[2] = { 5, 5 }, q[2] = { 0, 1.0986123f };

	/* p = (1/2, 1/2), q = (1/4, 3/4) */
	ASSERT_NEAR(wk_kl(p, q, 2), 0.5 * log(2) + 0.5 * log(2.0 / 3), 1e-7);
	ASSERT_NEAR(wk_kl(q, p, 2), 0.25 * log(0.5) + 0.75 * log(1.5), 1e-7);
	ASSERT_NEAR(wk_kl(q, q, 2), 0, 1e-15);
}
