// SPDX-License-Identifier: MIT
/* Model files: layout, identity, prepared planes, and every way to be wrong. */
#include "tests/harness.h"
#include "kernels/meta.h"
#include "tests/kernels/image.h"
#include "tests/rope_ref.h"

static struct cqk_model *parsed(struct image im)
{
	struct cqk_model *m = NULL;
	struct cq_err err = { "" };
	int ret = cqk_model_parse(im.buf, im.size, &m, &err);

	if (ret)
		FAIL("parse = %d: %s", ret, err.text);
	return m;
}

static void planes_match(const struct cqk_codebook *cb)
{
	uint32_t c = cb->code.channels, n = 1u << cb->code.bits, h, g, k, j, ch;
	const int8_t *bytes = cb->stored;
	const uint16_t *halves = cb->stored;
	size_t at = 0;
	float x, e, sum;

	ASSERT_EQ((uintptr_t)cb->f32 % 64, 0);
	ASSERT_EQ((uintptr_t)cb->enc % 64, 0);
	ASSERT_EQ(cb->enc == cb->f32, !cb->metric);
	ASSERT_EQ((uintptr_t)cb->i8 % 64, 0);
	ASSERT_EQ((uintptr_t)cb->half_norm % 64, 0);
	ASSERT_EQ(!cb->i8, cb->centroids == CQK_CENTROIDS_F16);
	for (h = 0; h < cb->n_kv_heads; h++)
		for (g = 0; g < cb->n_groups; g++)
			for (k = 0; k < n; k++) {
				for (sum = 0, j = 0; j < c; j++, at++) {
					ch = h * cb->head_dim + g * c + j;
					x = cb->i8 ? (float)bytes[at] * cb->scale[ch] :
						     cqk_f16_to_f32(halves[at]);
					ASSERT(cb->f32[ch * n + k] == x);
					if (cb->i8)
						ASSERT_EQ(cb->i8[ch * n + k],
							  bytes[at]);
					e = cb->metric ? x * cb->metric[ch] : x;
					ASSERT(cb->enc[ch * n + k] == e);
					sum += x * e;
				}
				ASSERT(cb->half_norm[(h * cb->n_groups + g) * n + k] ==
				       sum * 0.5f);
			}
}

static void check_layout(const struct cqk_model *m)
{
	uint64_t at = 0;
	uint32_t l;

	for (l = 0; l < m->geom.n_layers; l++) {
		ASSERT_EQ(m->layers[l].offset, at);
		ASSERT_EQ(m->layers[l].k_bytes,
			  cq_code_block_bytes(m->layers[l].k.code, m->geom.head_dim));
		at += m->geom.n_kv_heads * (m->layers[l].k_bytes + m->layers[l].v_bytes);
	}
	ASSERT_EQ(m->payload, at);
	ASSERT_EQ(m->slot_bytes % 4096, 0);
	ASSERT_GE(m->slot_bytes, at + 64);
}

TEST(geometries)
{
	static const uint32_t dims[] = { 64, 80, 96, 112, 128, 256 };
	static const char *const codes[] = { "2c8b", "4c8b", "8c8b", "16c8b", "1c8b",
					     "8c10b", "fp16" };
	struct cqk_model *m;
	struct image im;
	size_t d, i, kind;

	for (d = 0; d < ARRAY_SIZE(dims); d++)
		for (i = 0; i < ARRAY_SIZE(codes); i++)
			for (kind = 0; kind < 2; kind++) {
				im = image_metric(small_geom(dims[d]), codes[i],
						  codes[(i + d) % 7], (uint32_t)kind,
						  (d + i) % 2);
				m = parsed(im);
				check_layout(m);
				if (m->layers[1].k.code.type)
					planes_match(&m->layers[1].k);
				else
					ASSERT(!m->layers[1].k.f32 &&
					       !m->layers[1].k.stored &&
					       !m->layers[1].k.metric);
				ASSERT_EQ(m->sinks, 4);
				ASSERT_EQ(m->window, 128);
				ASSERT_EQ(m->sink_payload, 2 * 2 * 2 * 4 * dims[d] * 2);
				ASSERT_EQ(m->f16_block, 2 * 2 * 2 * 64 * dims[d] * 2);
				cqk_model_free(m);
				free(im.buf);
			}
}

TEST(small_model_page)
{
	struct cqk_geom g = small_geom(64);
	struct cqk_model *m;
	struct image im;

	g.n_layers = 6;		/* the figures of Documentation/formats.md */
	im = image_model(g, "4c8b", "4c8b", CQK_CENTROIDS_I8);
	m = parsed(im);
	ASSERT_EQ(m->payload, 24576);
	ASSERT_EQ(m->f16_block, 196608);
	ASSERT_EQ(m->slot_bytes, 28672);
	cqk_model_free(m);
	free(im.buf);
}

/* Byte planes first, upper bits behind them, all in whole lines of the cache. */
TEST(pages_of_wide_codes)
{
	static const struct { uint32_t d, k_bytes; } block[] = {
		{ 64, 640 }, { 80, 832 }, { 96, 960 }, { 112, 1152 }, { 128, 1280 },
		{ 256, 2560 },
	};
	static uint8_t page[2560], was[2560];
	struct cq_code code;
	struct cqk_model *m;
	struct image im;
	uint32_t i, g, t;

	for (i = 0; i < ARRAY_SIZE(block); i++) {
		im = image_model(small_geom(block[i].d), "8c10b", "4c8b", CQK_CENTROIDS_I8);
		m = parsed(im);
		ASSERT_EQ(m->layers[1].k_bytes, block[i].k_bytes);
		ASSERT_EQ(m->layers[1].v_bytes, 16 * block[i].d);
		ASSERT_EQ(m->payload, 4 * (block[i].k_bytes + 16 * block[i].d));
		cqk_model_free(m);
		free(im.buf);
	}
	ASSERT_OK(cqk_code_parse("8c10b", 256, &code, NULL));
	for (g = 0; g < 32; g++)
		for (t = 0; t < 64; t++)
			cq_code_put(page, code, 32, g, t, (g * 64 + t) * 37 % 1024);
	for (g = 0; g < 32; g++)
		for (t = 0; t < 64; t++) {
			uint32_t want = (g * 64 + t) * 37 % 1024;
			uint8_t upper = page[32 * 64 + g * 16 + t % 16];

			ASSERT_EQ(cq_code_get(page, code, 32, g, t), want);
			ASSERT_EQ(page[g * 64 + t], want % 256);
			ASSERT_EQ(upper >> t / 16 * 2 & 3, want / 256);
		}
	memcpy(was, page, sizeof(page));
	cq_code_put(page, code, 32, 7, 40, 0x3ff ^ cq_code_get(page, code, 32, 7, 40));
	cq_code_put(page, code, 32, 7, 40, 0x3ff ^ cq_code_get(page, code, 32, 7, 40));
	ASSERT_MEMEQ(was, page, sizeof(page));
}

TEST(head_prepares_nothing)
{
	struct image im = image_model(small_geom(64), "4c8b", "fp16", CQK_CENTROIDS_I8);
	struct cqk_model *m, *full = parsed(im);

	ASSERT_OK(cqk_model_head(im.buf, im.size, &m, NULL));
	ASSERT(!m->layers[0].k.f32 && !m->layers[0].k.half_norm && !m->layers[0].k.i8);
	ASSERT(m->layers[0].k.stored && m->layers[0].k.scale);
	ASSERT_EQ(m->layers[0].k.n_groups, 16);
	ASSERT_MEMEQ(m->hash, full->hash, 32);
	ASSERT_EQ(m->payload, full->payload);
	cqk_model_free(m);
	cqk_model_free(full);
	cqk_model_free(NULL);
	free(im.buf);
}

/* The JSON of an image with the first @from replaced by @to, data unchanged. */
static struct image edited(struct image im, const char *from, const char *to)
{
	size_t data;
	char *json, *at;
	struct image out;
	uint64_t len;

	memcpy(&len, im.buf, 8);
	data = im.size - 8 - len;
	json = strndup((char *)im.buf + 8, len);
	at = strstr(json, from);
	if (!at)
		FAIL("no %s in %s", from, json);
	ASSERT(asprintf(&at, "%.*s%s%s", (int)(at - json), json, to,
			at + strlen(from)) > 0);
	out = image_json(at, data);
	memcpy(out.buf + out.size - data, im.buf + im.size - data, data);
	free(json);
	free(at);
	return out;
}

static struct cqk_model *head_of(struct image im)
{
	struct cqk_model *m;
	struct cq_err err = { "" };

	if (cqk_model_head(im.buf, im.size, &m, &err))
		FAIL("%s", err.text);
	return m;
}

TEST(identity)
{
	struct image im = image_model(small_geom(64), "4c8b", "8c8b", CQK_CENTROIDS_F16);
	static const struct {
		const char *from, *to;
		bool same;
	} edit[] = {
		{ "\"provenance\":\"random\"", "\"x-note\" : \"other\"", true },
		{ "\"k\":\"4c8b\"", "\"k\":\"4c8b,4c8b\"", true },
		{ "\"10000\"", "\"1e4\"", true },
		{ "\"10000\"", "\"10001\"", false },
		{ "\"sinks\":\"4\"", "\"sinks\":\"5\"", false },
		{ "\"window\":\"128\"", "\"window\":\"64\"", false },
		{ "\"fingerprint\":\"00", "\"fingerprint\":\"01", false },
		{ "\"n_heads\":\"4\"", "\"n_heads\":\"8\"", false },
		{ "\"max_position\":\"2048\"", "\"max_position\":\"2047\"", false },
		{ "\"keys\":\"pre-rope\"", "\"keys\":\"rotated\"", false },
		{ "\"rope\":\"half\"", "\"rope\":\"interleaved\"", false },
		{ "\"rope\":\"half\"", "\"rope\":\"half\",\"rope_scaling\":\"none\"", true },
		{ "\"rope\":\"half\"", "\"rope\":\"half\",\"rope_scaling\":\"linear\","
		  "\"rope_factor\":\"1\"", false },
	};
	struct cqk_model *m = head_of(im), *other;
	struct image ed;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(edit); i++) {
		ed = edited(im, edit[i].from, edit[i].to);
		other = head_of(ed);
		if (!memcmp(m->hash, other->hash, 32) != edit[i].same)
			FAIL("%s -> %s", edit[i].from, edit[i].to);
		cqk_model_free(other);
		free(ed.buf);
	}
	im.buf[im.size - 1] ^= 1;	/* one bit of the last centroid */
	other = head_of(im);
	ASSERT(memcmp(m->hash, other->hash, 32));
	cqk_model_free(other);
	cqk_model_free(m);
	free(im.buf);
}

/*
 * Frozen: another value means that every key of every cache changes. The value
 * was computed from the file by a Python script after Documentation/formats.md.
 */
TEST(identity_is_frozen)
{
	static const uint8_t want[4] = { 0x65, 0x68, 0x5a, 0x9c };
	struct image im = image_model(small_geom(64), "4c8b", "2c8b", CQK_CENTROIDS_I8);
	struct cqk_model *m = head_of(im);

	ASSERT_MEMEQ(m->hash, want, 4);
	cqk_model_free(m);
	free(im.buf);
}

TEST(wrong_metadata)
{
	struct image im = image_model(small_geom(64), "4c8b", "4c8b", CQK_CENTROIDS_I8);
	static const struct {
		const char *from, *to, *text;
		int code;
	} edit[] = {
		{ "cq-model-1", "cq-model-2", "cq-model-2", -EPROTO },
		{ "\"format\":\"cq-model-1\",", "", "missing", -EPROTO },
		{ "\"n_layers\":\"2\"", "\"n_layers\":\"3\"", "layers.2.k", -EINVAL },
		{ "\"n_layers\":\"2\"", "\"n_layers\":\"1\"", "4 tensors", -EINVAL },
		{ "\"n_layers\":\"2\"", "\"n_layers\":\"257\"", "n_layers", -EINVAL },
		{ "\"n_layers\":\"2\"", "\"n_layers\":\"02\"", "n_layers", -EINVAL },
		{ "\"n_layers\":\"2\"", "\"n_layers\":\"\"", "n_layers", -EINVAL },
		{ "\"n_layers\":\"2\"", "\"n_layers\":\"2x\"", "n_layers", -EINVAL },
		{ "\"n_layers\":\"2\",", "", "n_layers is missing", -EINVAL },
		{ "\"n_heads\":\"4\"", "\"n_heads\":\"3\"", "multiple", -EINVAL },
		{ "\"n_kv_heads\":\"2\"", "\"n_kv_heads\":\"4\"", "dimension 0", -EINVAL },
		{ "\"head_dim\":\"64\"", "\"head_dim\":\"65\"", "head_dim", -EINVAL },
		{ "\"head_dim\":\"64\"", "\"head_dim\":\"68\"", "dimension 1", -EINVAL },
		{ "\"max_position\":\"2048\"", "\"max_position\":\"-1\"", "max_pos",
		  -EINVAL },
		{ "\"keys\":\"pre-rope\"", "\"keys\":\"none\"", "does not go", -EINVAL },
		{ "\"keys\":\"pre-rope\"", "\"keys\":\"\\u001b[2J\"", "?[2J", -EINVAL },
		{ "\"rope\":\"half\"", "\"rope\":\"quarter\"", "quarter", -EINVAL },
		{ "\"rope\":\"half\"", "\"rope\":\"none\"", "does not go", -EINVAL },
		{ "\"rope\":\"half\"", "\"rope\":\"half\",\"rope_mscale\":\"1\"",
		  "unknown metadata rope_mscale", -EINVAL },
		{ "\"rope\":\"half\"", "\"rope\":\"half\",\"rope_factor\":\"2\"",
		  "rope_factor does not go with rope_scaling \"none\"", -EINVAL },
		{ "\"rope_dim\":\"64\"", "\"rope_dim\":\"66\"", "rope_dim", -EINVAL },
		{ "\"rope_dim\":\"64\"", "\"rope_dim\":\"33\"", "rope_dim", -EINVAL },
		{ "\"rope_dim\":\"64\"", "\"rope_dim\":\"0\"", "rope_dim", -EINVAL },
		{ "\"10000\"", "\"nan\"", "rope_theta", -EINVAL },
		{ "\"10000\"", "\"1e999\"", "rope_theta", -EINVAL },
		{ "\"10000\"", "\"-5\"", "rope_theta", -EINVAL },
		{ "\"10000\"", "\"0\"", "rope_theta", -EINVAL },
		{ "\"10000\"", "\"1,5\"", "rope_theta", -EINVAL },
		{ "\"k\":\"4c8b\"", "\"k\":\"4c8b,4c8b,4c8b\"", "3 codings", -EINVAL },
		{ "\"k\":\"4c8b\"", "\"k\":\"\"", "coding", -EINVAL },
		{ "\"k\":\"4c8b\"", "\"k\":\"4c8b,\"", "coding", -EINVAL },
		{ "\"k\":\"4c8b\"", "\"k\":\"4c10b\"", "10 bits", -EOPNOTSUPP },
		{ "\"k\":\"4c8b\"", "\"k\":\"8c10b\"", "dimension", -EINVAL },
		{ "\"k\":\"4c8b\"", "\"k\":\"8c8b\"", "dimension", -EINVAL },
		{ "\"k\":\"4c8b\"", "\"k\":\"fp16\"", "4 tensors", -EINVAL },
		{ "\"v\":\"4c8b\",", "", "v is missing", -EINVAL },
		{ "\"i8\"", "\"f16\"", "type", -EINVAL },
		{ "\"i8\"", "\"i4\"", "i4", -EINVAL },
		{ "\"sinks\":\"4\"", "\"sinks\":\"65\"", "sinks", -EINVAL },
		{ "\"window\":\"128\"", "\"window\":\"100\"", "64", -EINVAL },
		{ "\"fingerprint\":\"00", "\"fingerprint\":\"0", "fingerprint", -EINVAL },
		{ "\"fingerprint\":\"00", "\"fingerprint\":\"0X", "fingerprint", -EINVAL },
		{ "\"fingerprint\":\"00", "\"fingerprint\":\"0000", "fingerprint",
		  -EINVAL },
		{ "\"provenance\"", "\"provenence\"", "provenence", -EINVAL },
		{ "layers.1.v.scale", "layers.1.v.scales", "layers.1.v.scale ", -EINVAL },
		{ "layers.1.k.codebook", "layers.1.k.Codebook", "layers.1.k.codebook ",
		  -EINVAL },
		{ "[2,64]", "[64,2]", "layers.0.k.scale", -EINVAL },
		{ "[2,16,256,4]", "[2,16,1024]", "layers.0.k.codebook", -EINVAL },
	};
	struct cqk_model *m = NULL;
	struct cq_err err;
	struct image ed;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(edit); i++) {
		ed = edited(im, edit[i].from, edit[i].to);
		ASSERT_EQ(cqk_model_parse(ed.buf, ed.size, &m, &err), edit[i].code);
		ASSERT(!m);
		ASSERT_STRHAS(err.text, edit[i].text);
		free(ed.buf);
	}
	free(im.buf);
}

static struct cqk_geom scaled_geom(uint32_t type)
{
	struct cqk_geom g = small_geom(64);

	g.rope_dim = 32;
	g.rope_pairs = CQK_PAIRS_INTERLEAVED;
	g.rope_scaling = ref_scaling(type, 512);
	g.rope_scaling.attention_factor *= 1.0 / 3;	/* all digits are kept */
	if (type == CQK_SCALING_YARN)
		g.rope_scaling.truncate = 0;
	return g;
}

TEST(scaling_round_trip)
{
	const struct cqk_rope_number *n;
	uint8_t hash[4][32];
	struct cqk_model *m;
	struct image im;
	uint32_t type, i;

	for (type = 0; type <= CQK_SCALING_YARN; type++) {
		struct cqk_geom g = scaled_geom(type);

		im = image_model(g, "4c8b", "4c8b", CQK_CENTROIDS_F16);
		m = parsed(im);
		ASSERT_EQ(m->geom.rope_pairs, CQK_PAIRS_INTERLEAVED);
		ASSERT_EQ(m->geom.rope_scaling.type, type);
		for (i = 0; (n = cqk_rope_number(i)); i++)
			ASSERT(*cqk_rope_value(&m->geom.rope_scaling, n) ==
			       *cqk_rope_value(&g.rope_scaling, n));
		memcpy(hash[type], m->hash, 32);
		for (i = 0; i < type; i++)
			ASSERT(memcmp(hash[i], hash[type], 32));
		cqk_model_free(m);
		free(im.buf);
	}
}

/* As identity_is_frozen: YaRN and interleaved pairs, from a script of its own. */
TEST(identity_of_scaling_is_frozen)
{
	static const uint8_t want[4] = { 0x72, 0x32, 0x20, 0xd9 };
	struct image im = image_model(scaled_geom(CQK_SCALING_YARN), "4c8b", "2c8b",
				      CQK_CENTROIDS_I8);
	struct cqk_model *m = head_of(im);

	ASSERT_MEMEQ(m->hash, want, 4);
	cqk_model_free(m);
	free(im.buf);
}

/* Every number of a kind of scaling counts in the identity, and must be there. */
TEST(every_number_of_a_scaling)
{
	const struct cqk_rope_number *n;
	struct cqk_model *m = NULL, *other;
	char from[64], to[80];
	struct cqk_geom g;
	struct cq_err err;
	struct image im, ed;
	uint32_t type, i;

	for (type = CQK_SCALING_LINEAR; type <= CQK_SCALING_YARN; type++) {
		g = scaled_geom(type);
		im = image_model(g, "fp16", "fp16", CQK_CENTROIDS_F16);
		m = head_of(im);
		for (i = 0; (n = cqk_rope_number(i)); i++) {
			if (!cqk_rope_has(&g.rope_scaling, n))
				continue;
			snprintf(from, sizeof(from), "\"%s\":\"%.17g\"", n->key,
				 *cqk_rope_value(&g.rope_scaling, n));
			snprintf(to, sizeof(to), "\"%s\":\"%.17g\"", n->key,
				 n->whole && n->max <= 1 ? 1 :
				 *cqk_rope_value(&g.rope_scaling, n) + (n->whole ? 1 : 0.01));
			ed = edited(im, from, to);
			other = head_of(ed);
			ASSERT(memcmp(m->hash, other->hash, 32));
			cqk_model_free(other);
			free(ed.buf);
			snprintf(to, sizeof(to), "\"x-%s\":\"1\"", n->key);
			ed = edited(im, from, to);
			ASSERT_EQ(cqk_model_head(ed.buf, ed.size, &other, &err), -EINVAL);
			snprintf(to, sizeof(to), "%s is missing", n->key);
			ASSERT_STRHAS(err.text, to);
			free(ed.buf);
		}
		cqk_model_free(m);
		free(im.buf);
	}
}

TEST(wrong_scaling)
{
	static const struct {
		uint32_t type;
		const char *from, *to, *text;
	} edit[] = {
		{ 1, "linear", "longrope", "longrope" },
		{ 1, "linear", "dynamic", "dynamic" },
		{ 1, "linear", "none", "rope_factor does not go" },
		{ 1, "linear", "llama3", "rope_original_max_position is missing" },
		{ 1, "rope_factor\":\"4", "rope_factor\":\"0.5", "rope_factor 0.5" },
		{ 1, "rope_factor\":\"4", "rope_factor\":\"1e7", "rope_factor 1e+07" },
		{ 1, "rope_factor\":\"4", "rope_factor\":\"nan", "nan" },
		{ 1, "rope_factor\":\"4", "rope_factor\":\"1e999", "rope_factor inf" },
		{ 1, "rope_factor\":\"4", "rope_factor\":\"-4", "rope_factor" },
		{ 1, "rope_factor\":\"4", "rope_factor\":\"", "rope_factor" },
		{ 1, "rope_factor\":\"4", "rope_factor\":\"4 ", "rope_factor" },
		{ 2, "rope_original_max_position\":\"512", "rope_original_max_position\":\"512.5",
		  "a whole number" },
		{ 2, "rope_original_max_position\":\"512", "rope_original_max_position\":\"0",
		  "rope_original_max_position" },
		{ 2, "rope_original_max_position\":\"512", "rope_original_max_position\":\"1e9",
		  "rope_original_max_position" },
		{ 2, "rope_low_freq_factor\":\"1", "rope_low_freq_factor\":\"4", "not below" },
		{ 2, "rope_low_freq_factor\":\"1", "rope_low_freq_factor\":\"0",
		  "rope_low_freq_factor 0" },
		{ 3, "rope_beta_slow\":\"1", "rope_beta_slow\":\"32", "not below" },
		{ 3, "rope_truncate\":\"0", "rope_truncate\":\"2", "rope_truncate 2" },
		{ 3, "rope_attention_factor\":\"0", "rope_attention_factor\":\"9",
		  "rope_attention_factor 9" },
		{ 3, "rope_attention_factor\":\"0.3", "rope_attention_factor\":\"0.03",
		  "rope_attention_factor 0.03" },
		{ 3, "rope_theta\":\"10000", "rope_theta\":\"1", "above 1" },
	};
	struct cqk_model *m = NULL;
	struct image im, ed;
	struct cq_err err;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(edit); i++) {
		im = image_model(scaled_geom(edit[i].type), "4c8b", "4c8b", CQK_CENTROIDS_I8);
		ed = edited(im, edit[i].from, edit[i].to);
		ASSERT_EQ(cqk_model_parse(ed.buf, ed.size, &m, &err), -EINVAL);
		ASSERT(!m);
		ASSERT_STRHAS(err.text, edit[i].text);
		free(ed.buf);
		free(im.buf);
	}
}

/* What a program may put together, beside what a file may say. */
TEST(wrong_geometry)
{
	struct cqk_geom g = small_geom(64);
	struct cq_err err;
	char buf[200];

	g.rope_pairs = 2;
	ASSERT_EQ(cqk_geom_check(&g, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "pairs 2");
	g.rope_pairs = 0;
	g.rope_scaling.type = 4;
	ASSERT_EQ(cqk_geom_check(&g, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "kind 4");
	g.rope_scaling.type = 0;
	g.rope_scaling.factor = 2;
	ASSERT_EQ(cqk_geom_check(&g, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "rope_factor 2");
	g = scaled_geom(CQK_SCALING_LINEAR);
	g.keys = CQK_KEYS_NONE;
	g.rope_dim = 0;
	g.rope_theta = 0;
	ASSERT_EQ(cqk_geom_check(&g, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "without RoPE");
	ASSERT_STREQ(cqk_rope_text(&g, buf, sizeof(buf)), "none");
	g = scaled_geom(CQK_SCALING_LLAMA3);
	ASSERT_STREQ(cqk_rope_text(&g, buf, sizeof(buf)),
		     "interleaved, dim 32, theta 10000, llama3 factor 4 original_max_position 512 "
		     "low_freq_factor 1 high_freq_factor 4");
	cqk_rope_text(&g, buf, 20);
	ASSERT_EQ(strlen(buf), 19);
}

/* @bytes at offset @at of tensor @name: refused, naming tensor and value 5. */
static void bad_value(uint32_t centroids, const char *name, const void *bytes,
		      size_t n)
{
	struct image im = image_metric(small_geom(64), "4c8b", "4c8b", centroids, true);
	struct cqk_model *m = NULL;
	struct cq_err err;
	struct st_file *f;
	size_t at;

	ASSERT_OK(st_open(im.buf, im.size, &f, NULL));
	at = (size_t)((const uint8_t *)st_find(f, name)->data - im.buf);
	st_close(f);
	memcpy(im.buf + at + 5 * n, bytes, n);
	ASSERT_EQ(cqk_model_parse(im.buf, im.size, &m, &err), -EINVAL);
	ASSERT_STRHAS(err.text, name);
	ASSERT_STRHAS(err.text, "value 5 ");
	free(im.buf);
}

TEST(wrong_values)
{
	float scales[] = { NAN, INFINITY, -1, 517 };
	float metrics[] = { NAN, INFINITY, -1, 0, 2e6f, 1e-7f };
	uint16_t halves[] = { 0x7c00, 0xfc00, 0x7e00 };
	int8_t byte = -128;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(scales); i++)
		bad_value(CQK_CENTROIDS_I8, "layers.1.v.scale", &scales[i], 4);
	for (i = 0; i < ARRAY_SIZE(metrics); i++)
		bad_value(i % 2, "layers.1.k.metric", &metrics[i], 4);
	for (i = 0; i < ARRAY_SIZE(halves); i++)
		bad_value(CQK_CENTROIDS_F16, "layers.0.k.codebook", &halves[i], 2);
	bad_value(CQK_CENTROIDS_I8, "layers.0.v.codebook", &byte, 1);
}

TEST(a_metric_is_part_of_the_model)
{
	static const uint8_t zeros[4];
	struct image im, ed;
	struct cqk_model *m[2];
	struct cq_err err;
	float *at;

	im = image_metric(small_geom(64), "4c8b", "fp16", CQK_CENTROIDS_F16, true);
	m[0] = parsed(im);
	ASSERT(!m[0]->layers[1].v.metric);
	at = (float *)(uintptr_t)m[0]->layers[1].k.metric;
	ASSERT_NEAR(at[3], 0.02, 0.011);
	at[3] *= 2;
	m[1] = head_of(im);
	ASSERT(m[1]->layers[1].k.metric == at);
	ASSERT(memcmp(m[0]->hash, m[1]->hash, 32));
	cqk_model_free(m[0]);
	cqk_model_free(m[1]);
	ed = edited(im, "layers.1.k.metric", "layers.1.v.metric");
	ASSERT_EQ(cqk_model_head(ed.buf, ed.size, &m[0], &err), -EINVAL);
	ASSERT_STRHAS(err.text, "1 tensors that are no codebook");
	free(ed.buf);
	ed = edited(im, "\"F32\"", "\"I32\"");
	ASSERT_EQ(cqk_model_head(ed.buf, ed.size, &m[0], &err), -EINVAL);
	ASSERT_STRHAS(err.text, "metric: not of the type");
	free(ed.buf);
	ed = edited(im, "\"shape\":[2,64]", "\"shape\":[4,32]");
	ASSERT_EQ(cqk_model_head(ed.buf, ed.size, &m[0], &err), -EINVAL);
	ASSERT_STRHAS(err.text, "metric: its shape");
	free(ed.buf);
	free(im.buf);
	bad_value(CQK_CENTROIDS_I8, "layers.0.v.metric", zeros, 4);
}

TEST(cut_short)
{
	struct image im = image_model(small_geom(64), "8c8b", "fp16", CQK_CENTROIDS_F16);
	struct cqk_model *m = NULL;
	struct cq_err err;
	size_t n;

	for (n = 0; n < im.size; n += n < 2048 ? 7 : 4093) {
		uint8_t *cut = malloc(n ? n : 1);

		memcpy(cut, im.buf, n);
		ASSERT_LT(cqk_model_parse(cut, n, &m, &err), 0);
		ASSERT(err.text[0] && !m);
		free(cut);
	}
	free(im.buf);
}

TEST(no_rope)
{
	struct cqk_geom g = small_geom(64);
	struct cqk_model *m;
	struct image im;

	g.keys = CQK_KEYS_NONE;
	g.rope_dim = 0;
	g.rope_theta = 0;
	im = image_model(g, "4c8b", "4c8b", CQK_CENTROIDS_F16);
	m = parsed(im);
	ASSERT_EQ(m->geom.keys, CQK_KEYS_NONE);
	cqk_model_free(m);
	free(im.buf);
}

TEST(codings)
{
	static const struct {
		const char *text;
		uint32_t dim;
		int ret;
	} code[] = {
		{ "fp16", 64, 0 }, { "4c8b", 64, 0 }, { "5c8b", 80, 0 },
		{ "16c8b", 80, 0 }, { "7c8b", 112, 0 }, { "1c8b", 2, 0 },
		{ "5c8b", 64, -EINVAL }, { "17c8b", 68, -EINVAL },
		{ "32c8b", 64, -EINVAL }, { "0c8b", 64, -EINVAL },
		{ "4c4b", 64, -EOPNOTSUPP }, { "4c16b", 64, -EOPNOTSUPP },
		{ "8c10b", 64, 0 }, { "8c10b", 80, 0 }, { "8c10b", 84, -EINVAL },
		{ "4c10b", 64, -EOPNOTSUPP }, { "16c10b", 64, -EOPNOTSUPP },
		{ "8c9b", 64, -EOPNOTSUPP }, { "8c12b", 64, -EOPNOTSUPP },
		{ "4c8", 64, -EINVAL }, { "4c8bb", 64, -EINVAL }, { "", 64, -EINVAL },
		{ "04c8b", 64, -EINVAL }, { "4c08b", 64, -EINVAL },
		{ "+4c8b", 64, -EINVAL }, { " 4c8b", 64, -EINVAL },
		{ "104c8b", 64, -EINVAL }, { "FP16", 64, -EINVAL }, { "4d8b", 64, -EINVAL },
	};
	struct cq_code out;
	struct cq_err err;
	char name[16];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(code); i++) {
		ASSERT_EQ(cqk_code_parse(code[i].text, code[i].dim, &out, &err),
			  code[i].ret);
		if (!code[i].ret)
			ASSERT_STREQ(cqk_code_name(out, name), code[i].text);
	}
}
