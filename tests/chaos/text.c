// SPDX-License-Identifier: MIT
/*
 * Texts out of thin air. What every page of them reads as is computed here
 * once, before the first worker starts: its keys and values in full precision
 * and through their codes. The reference for
 * attention is double precision over these, never over anything that libcq or
 * cqd has had in hand.
 */
#include <math.h>
#include "kernels/f16.h"
#include "kernels/kernels.h"
#include "tests/chaos/chaos.h"

/* [K|V][head][token][channel] of one layer, as fp16 and as decoded. */
struct page_layer {
	uint16_t f16[2][KV_HEADS][64][DIM];
	uint16_t coded[2][KV_HEADS][64][DIM];
};

static struct page_layer (*table)[LAYERS];	/* [PAGES] */
static double rope_cos[TEXT_TOKENS][DIM / 2], rope_sin[TEXT_TOKENS][DIM / 2];

/**
 * text_page() - number of a page, the same for texts that share it
 * @text: text
 * @page: page of it
 */
uint32_t text_page(uint32_t text, uint32_t page)
{
	if (page < TEXT_SHARED)
		return text / TEXT_VARIANTS * TEXT_SHARED + page;
	return TEXT_GROUPS * TEXT_SHARED + text * (TEXT_PAGES - TEXT_SHARED) + page - TEXT_SHARED;
}

/* The text of synth.h that token @at is taken from. */
static uint32_t source(uint32_t text, size_t at)
{
	return at < TEXT_SHARED * 64 ? 1 + text / TEXT_VARIANTS : 1000 + text;
}

/**
 * text_ids() - token ids
 * @ids:  [n]
 * @text: text
 * @from: first token
 * @n:    tokens
 */
void text_ids(uint32_t *ids, uint32_t text, size_t from, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++)
		ids[i] = (uint32_t)(synth_mix((uint64_t)source(text, from + i) << 32 |
					      (from + i)) % 32000);
}

static const struct page_layer *page_of(uint32_t text, uint32_t layer, size_t at)
{
	return &table[text_page(text, (uint32_t)(at / 64))][layer];
}

/**
 * text_rows() - keys or values of a text
 * @x:     [n][KV_HEADS][DIM] halves
 * @text:  text
 * @what:  0: keys, 1: values
 * @layer: layer
 * @from:  first token
 * @n:     tokens
 */
void text_rows(uint16_t *x, uint32_t text, uint32_t what, uint32_t layer, size_t from, size_t n)
{
	size_t i, h;

	for (i = 0; i < n; i++)
		for (h = 0; h < KV_HEADS; h++)
			memcpy(x + (i * KV_HEADS + h) * DIM,
			       page_of(text, layer, from + i)->f16[what][h][(from + i) % 64],
			       DIM * sizeof(*x));
}

/**
 * text_query() - query row at a position
 * @q:     [HEADS][DIM] halves
 * @text:  text
 * @layer: layer
 * @at:    token
 */
void text_query(uint16_t *q, uint32_t text, uint32_t layer, size_t at)
{
	synth_rows(q, &chaos_model, source(text, at), 2, layer, at, 1);
}

/* Few texts are asked for often, many rarely: 1 / rank (Zipf). */
static uint32_t zipf(uint64_t *rng, uint32_t n)
{
	double top = log((double)n + 1);
	double u = (double)(chaos_random(rng) >> 11) * 0x1p-53;

	return MIN((uint32_t)(exp(u * top) - 1), n - 1);
}

/**
 * text_pick() - a text, some more often than others
 * @rng: random numbers
 */
uint32_t text_pick(uint64_t *rng)
{
	return zipf(rng, TEXT_GROUPS) * TEXT_VARIANTS + zipf(rng, TEXT_VARIANTS);
}

/**
 * text_cousin() - another text with the same prefix
 * @text: text
 * @rng:  random numbers
 */
uint32_t text_cousin(uint32_t text, uint64_t *rng)
{
	return text / TEXT_VARIANTS * TEXT_VARIANTS + chaos_below(rng, TEXT_VARIANTS);
}

/* --- the tables --- */

/* Encoders agree bit for bit, and the portable one would take 12 s here. */
static void page_code(const struct cqk_codebook *cb, uint32_t head, uint16_t x[64][DIM],
		      uint16_t out[64][DIM])
{
	static uint8_t codes[DIM * 64];
	static float f32[64][DIM];
	uint32_t t, ch;

	cqk_select(NULL)->encode(cb, head, x[0], 0, 64, codes);
	cqk_select("portable")->decode(cb, head, codes, 0, 64, f32[0]);
	for (t = 0; t < 64; t++)
		for (ch = 0; ch < DIM; ch++)
			out[t][ch] = cqk_f32_to_f16(f32[t][ch]);
}

static void page_fill(const struct cqk_model *m, uint32_t text, uint32_t page)
{
	static uint16_t rows[64 * KV_HEADS * DIM];
	uint32_t l, kv, h, t;

	for (l = 0; l < LAYERS; l++)
		for (kv = 0; kv < 2; kv++) {
			struct page_layer *p = &table[text_page(text, page)][l];

			synth_rows(rows, &chaos_model, source(text, page * 64u), kv, l,
				   page * 64u, 64);
			for (h = 0; h < KV_HEADS; h++) {
				for (t = 0; t < 64; t++)
					memcpy(p->f16[kv][h][t], rows + (t * KV_HEADS + h) * DIM,
					       DIM * sizeof(rows[0]));
				page_code(kv ? &m->layers[l].v : &m->layers[l].k, h,
					  p->f16[kv][h], p->coded[kv][h]);
			}
		}
}

static void rope_fill(void)
{
	uint32_t p, j;

	for (p = 0; p < TEXT_TOKENS; p++)
		for (j = 0; j < DIM / 2; j++) {
			double a = p * pow(10000, -2.0 * j / DIM);

			rope_cos[p][j] = cos(a);
			rope_sin[p][j] = sin(a);
		}
}

static void *file_map(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat sb;
	void *p;

	ASSERT_SYS(fd);
	ASSERT_SYS(fstat(fd, &sb));
	*size = (size_t)sb.st_size;
	p = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
	ASSERT(p != MAP_FAILED);
	close(fd);
	return p;
}

/**
 * text_init() - compute the tables
 * @model_path: model file as cqd loads it
 *
 * Return: 0 or -errno.
 */
int text_init(const char *model_path)
{
	struct cqk_model *m = NULL;
	struct cq_err err = { "" };
	uint32_t text, page;
	size_t size;
	void *image = file_map(model_path, &size);
	int ret = cqk_model_parse(image, size, &m, &err);

	if (ret)
		return ret;
	table = mmap(NULL, PAGES * sizeof(*table), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (table == MAP_FAILED)
		return -ENOMEM;
	for (text = 0; text < TEXTS; text++)
		for (page = text % TEXT_VARIANTS ? TEXT_SHARED : 0; page < TEXT_PAGES; page++)
			page_fill(m, text, page);
	/* nobody writes what everybody is compared with */
	ASSERT_SYS(mprotect(table, PAGES * sizeof(*table), PROT_READ));
	rope_fill();
	cqk_model_free(m);
	munmap(image, size);
	return 0;
}

/* --- comparing --- */

static bool token_is(uint16_t rows[2][KV_HEADS][64][DIM], const uint16_t *k, const uint16_t *v,
		     size_t at)
{
	size_t h, off;

	for (h = 0; h < KV_HEADS; h++) {
		off = (at * KV_HEADS + h) * DIM;
		if (memcmp(rows[0][h][at % 64], k + off, DIM * sizeof(*k)) ||
		    memcmp(rows[1][h][at % 64], v + off, DIM * sizeof(*v)))
			return false;
	}
	return true;
}

/**
 * text_compare() - what a sequence reads as
 * @k:     [n][KV_HEADS][DIM] halves
 * @v:     the same
 * @text:  text it is of
 * @layer: layer
 * @n:     tokens
 * @coded: filled: a bit for each token that was read from codes
 *
 * Return: -1; else the first token that is not what it must be.
 */
int text_compare(const uint16_t *k, const uint16_t *v, uint32_t text, uint32_t layer, size_t n,
		 uint64_t coded[TEXT_PAGES])
{
	size_t i;

	memset(coded, 0, TEXT_PAGES * sizeof(*coded));
	for (i = 0; i < n; i++) {
		struct page_layer *p = &table[text_page(text, (uint32_t)(i / 64))][layer];

		if (token_is(p->coded, k, v, i))
			coded[i / 64] |= 1ull << i % 64;
		else if (!token_is(p->f16, k, v, i))
			return (int)i;
	}
	return -1;
}

/* --- the reference --- */

static void rotate(double x[DIM], size_t pos)
{
	uint32_t j;

	for (j = 0; j < DIM / 2; j++) {
		double a = x[j], b = x[j + DIM / 2];

		x[j] = a * rope_cos[pos][j] - b * rope_sin[pos][j];
		x[j + DIM / 2] = a * rope_sin[pos][j] + b * rope_cos[pos][j];
	}
}

static void widen(double *x, const uint16_t *h)
{
	uint32_t i;

	for (i = 0; i < DIM; i++)
		x[i] = (double)cqk_f16_to_f32(h[i]);
}

/* One head by the definition: softmax(scale * q k) v; scores are small. */
static void head_reference(double *o, uint32_t text, uint32_t layer, size_t n, uint32_t head,
			   const uint64_t *coded, double scale)
{
	uint32_t kv = head / (HEADS / KV_HEADS), ch;
	uint16_t q16[ROW];
	double q[DIM], x[DIM], sum = 0, s;
	size_t i;

	text_query(q16, text, layer, n);
	widen(q, q16 + head * DIM);
	rotate(q, n);
	memset(o, 0, DIM * sizeof(*o));
	for (i = 0; i <= n; i++) {
		const struct page_layer *p = page_of(text, layer, i);
		bool code = i < n && coded[i / 64] >> i % 64 & 1;

		widen(x, code ? p->coded[0][kv][i % 64] : p->f16[0][kv][i % 64]);
		rotate(x, i);
		for (s = 0, ch = 0; ch < DIM; ch++)
			s += q[ch] * x[ch];
		s = exp(s * scale);
		sum += s;
		widen(x, code ? p->coded[1][kv][i % 64] : p->f16[1][kv][i % 64]);
		for (ch = 0; ch < DIM; ch++)
			o[ch] += s * x[ch];
	}
	for (ch = 0; ch < DIM; ch++)
		o[ch] /= sum;
}

/**
 * text_reference() - attention of one row in double precision
 * @memo:  what was computed before
 * @text:  text
 * @layer: layer
 * @n:     the row's token; it sees itself and all before
 * @coded: bits of tokens that are read from codes
 * @scale: factor on q.k
 *
 * Return: [HEADS][DIM], valid until the next call.
 */
const double *text_reference(struct text_memo *memo, uint32_t text, uint32_t layer, size_t n,
			     const uint64_t coded[TEXT_PAGES], double scale)
{
	uint64_t key = synth_mix((uint64_t)text << 32 | (uint64_t)layer << 16 | n) | 1;
	uint32_t i;

	for (i = 0; i < TEXT_PAGES; i++)
		key = synth_mix(key ^ coded[i]) | 1;
	i = (uint32_t)(key >> 32) % ARRAY_SIZE(memo->at);
	if (memo->at[i].key == key)
		return memo->at[i].o;
	memo->at[i].key = key;
	for (uint32_t h = 0; h < HEADS; h++)
		head_reference(memo->at[i].o + h * DIM, text, layer, n, h, coded, scale);
	return memo->at[i].o;
}
