// SPDX-License-Identifier: MIT
/*
 * Appending and encoding on the (emulated) GPU: rows as the host rounds and
 * rotates them, codes as the portable encoder has them, bit by bit.
 */
#include "tests/harness.h"
#include "tests/kernels/toy.h"
#include "tests/kernels/gpu.h"

#define SINKS 3

/* What to append, and where it goes: see batch_dests(). */
struct batch {
	struct toy_opts toy;
	uint32_t dtype, rows, pos, first;
	uint32_t layer;
	int turn;
	bool hnd;		/* [head][token] rather than [token][head] */
	bool apart;		/* each destination in a launch of its own */
};

/* Both sides of a test: fp16 blocks and pages, one more than is used. */
struct sides {
	struct toy toy;
	struct cq_view k, v;
	uint8_t *kv[2];
	size_t kv_bytes, f16_bytes, page_bytes, sink_bytes;
	struct cqkd_dest dests[8];
	uint32_t n_dests;
	uint32_t words[8];	/* of the destinations */
	uint8_t *want_f16, *want_page, *want_sink;
	uint8_t *got;
};

static size_t elem(uint32_t dtype)
{
	return dtype == CQ_F32 ? 4 : 2;
}

static uint8_t *fill_view(const struct batch *b, struct cq_view *v, size_t *bytes)
{
	const struct toy_opts *o = &b->toy;
	size_t n = (size_t)(b->rows + 1) * (o->n_kv_heads + 1) * (o->d + 2), i;
	uint8_t *mem = toy_alloc(n * 4);

	*v = (struct cq_view){ .data = mem, .dtype = b->dtype,
			       .stride_head = o->d + 1,
			       .stride_token = o->n_kv_heads * (o->d + 1) + 3 };
	if (b->hnd) {
		v->stride_token = o->d;
		v->stride_head = (int64_t)b->rows * o->d + 5;
	}
	for (i = 0; i < n; i++) {
		float x = toy_normal();
		uint16_t h = b->dtype == CQ_F16 ? cqk_f32_to_f16(x) : cqk_f32_to_bf16(x);

		memcpy(mem + i * elem(b->dtype), b->dtype == CQ_F32 ? (void *)&x : (void *)&h,
		       elem(b->dtype));
	}
	*bytes = n * elem(b->dtype);
	return mem;
}

/*
 * Rows go to a run of blocks that begins at token @first of block 0; tokens
 * below SINKS of block 0 also go to a sink object. The base addresses are
 * added by the caller.
 */
static void batch_dests(const struct batch *b, struct sides *s)
{
	uint32_t at = b->first, row = 0, n;

	if (b->first < SINKS)
		s->dests[s->n_dests++] = (struct cqkd_dest){
			.f16 = 2, .tokens = SINKS, .first = b->first,
			.count = MIN(SINKS - b->first, b->rows), .pos = b->pos };
	for (; row < b->rows; row += n, at += n) {
		n = MIN(64 - at % 64, b->rows - row);
		s->dests[s->n_dests++] = (struct cqkd_dest){
			.f16 = 1, .codes = at / 64 + 1, .tokens = 64, .first = at % 64,
			.count = n, .row = row, .pos = b->pos + row };
	}
	ASSERT(s->n_dests <= ARRAY_SIZE(s->dests));
}

/* One head's row as the host has it: rounded, K rotated in float. */
static void host_row(const struct batch *b, const struct sides *s, bool v, uint32_t row,
		     uint32_t head, uint32_t pos, uint16_t *out)
{
	float x[256];
	uint32_t ch;

	for (ch = 0; ch < b->toy.d; ch++)
		x[v ? ch : ref_stored(&s->toy.m.geom, ch)] =
			(float)toy_load(v ? &s->v : &s->k, row, head, ch);
	if (!v && b->turn)
		cqk_rope_rotate(&s->toy.rope, x, 1, b->toy.d, pos, b->turn < 0);
	for (ch = 0; ch < b->toy.d; ch++)
		out[ch] = cqk_f32_to_f16(x[ch]);
}

static void host_dest(const struct batch *b, struct sides *s, const struct cqkd_dest *to,
		      uint32_t head, bool v)
{
	const struct cqk_geom *g = &s->toy.m.geom;
	const struct cqk_layer *y = &s->toy.m.layers[b->layer];
	size_t index = ((size_t)b->layer * g->n_kv_heads + head) * 2 + v, at;
	uint16_t rows[64 * 256];
	uint8_t *f16;
	uint32_t t;

	for (t = 0; t < to->count; t++)
		host_row(b, s, v, to->row + t, head, to->pos + t, rows + t * g->head_dim);
	at = (index * to->tokens + to->first) * g->head_dim * 2;
	f16 = to->f16 == 2 ? s->want_sink : s->want_f16 + (to->codes - 1) * s->f16_bytes;
	memcpy(f16 + at, rows, (size_t)to->count * g->head_dim * 2);
	if (!to->codes)
		return;
	at = y->offset + head * (y->k_bytes + y->v_bytes) + (v ? y->k_bytes : 0);
	cqk_portable_encode(v ? &y->v : &y->k, head, rows, to->first, to->count,
			    s->want_page + (to->codes - 1) * s->page_bytes + at);
}

static void sides_make(const struct batch *b, struct sides *s)
{
	const struct cqk_geom *g = &s->toy.m.geom;
	uint32_t i, head, v, blocks = 4;

	memset(s, 0, sizeof(*s));
	toy_init(&s->toy, &b->toy, b->pos + b->rows + 64);
	s->kv[0] = fill_view(b, &s->k, &s->kv_bytes);
	s->kv[1] = fill_view(b, &s->v, &s->kv_bytes);
	s->f16_bytes = cq_f16_block_bytes(g->n_layers, g->n_kv_heads, g->head_dim, 64);
	s->sink_bytes = cq_f16_block_bytes(g->n_layers, g->n_kv_heads, g->head_dim, SINKS);
	s->page_bytes = s->toy.m.payload;
	s->want_f16 = malloc(blocks * s->f16_bytes);
	s->want_page = malloc(blocks * s->page_bytes);
	s->want_sink = malloc(s->sink_bytes);
	s->got = malloc(blocks * s->f16_bytes);
	memset(s->want_f16, 0xa5, blocks * s->f16_bytes);
	memset(s->want_page, 0xa5, blocks * s->page_bytes);
	memset(s->want_sink, 0xa5, s->sink_bytes);
	batch_dests(b, s);
	for (i = 0; i < s->n_dests; i++)
		for (head = 0; head < g->n_kv_heads; head++)
			for (v = 0; v < 2; v++)
				host_dest(b, s, &s->dests[i], head, v);
}

static void sides_free(struct sides *s)
{
	toy_free(&s->toy);
	free(s->kv[0]);
	free(s->kv[1]);
	free(s->want_f16);
	free(s->want_page);
	free(s->want_sink);
	free(s->got);
}

static void same(struct gpu *g, struct sides *s, cqcu_ptr at, const uint8_t *want, size_t n,
		 const char *what)
{
	size_t i;

	gpu_get(g, s->got, at, n);
	for (i = 0; i < n; i++)
		if (s->got[i] != want[i])
			FAIL("%s: byte %zu is %02x, want %02x", what, i, s->got[i], want[i]);
}

/* Runs the append on the device and compares every byte; returns the status. */
static uint64_t append_by(struct gpu *g, const struct batch *b, struct sides *s, bool compare)
{
	struct cqk_cuda_tables *t = gpu_tables(g, &s->toy.m, &s->toy.rope);
	cqcu_ptr f16 = gpu_alloc(g, 4 * s->f16_bytes, 0xa5);
	cqcu_ptr page = gpu_alloc(g, 4 * s->page_bytes, 0xa5);
	cqcu_ptr sink = gpu_alloc(g, s->sink_bytes, 0xa5);
	uint32_t each = b->apart ? 1 : s->n_dests;
	struct cqk_cuda_append a = {
		.layer = b->layer, .turn = b->turn, .max_dests = each + 2,
		.tokens = b->rows,
		.k = gpu_view(&s->k, s->kv[0], gpu_put(g, s->kv[0], s->kv_bytes)),
		.v = gpu_view(&s->v, s->kv[1], gpu_put(g, s->kv[1], s->kv_bytes)),
		.n_dests = gpu_put(g, &each, 4), .status = gpu_alloc(g, 8, 0),
	};
	cqcu_ptr words = gpu_put(g, s->words, sizeof(s->words));
	struct cqkd_dest dests[ARRAY_SIZE(s->dests)];
	uint64_t status;
	uint32_t i;

	memcpy(dests, s->dests, sizeof(dests));
	for (i = 0; i < s->n_dests; i++) {
		struct cqkd_dest *to = &dests[i];

		to->bad = words + 4 * i;
		to->tag = 7 + i;
		to->f16 = to->f16 == 2 ? sink : f16 + (to->codes - 1) * s->f16_bytes;
		to->codes = to->codes ? page + (to->codes - 1) * s->page_bytes : 0;
	}
	a.dests = gpu_put(g, dests, s->n_dests * sizeof(dests[0]));
	for (i = 0; i < s->n_dests; i += each, a.dests += each * sizeof(dests[0]))
		if (cqk_cuda_append(g->k, t, &a, g->stream, &g->err))
			FAIL("%s", g->err.text);
	if (compare) {
		same(g, s, f16, s->want_f16, 4 * s->f16_bytes, "fp16 blocks");
		same(g, s, page, s->want_page, 4 * s->page_bytes, "pages");
		same(g, s, sink, s->want_sink, s->sink_bytes, "sink object");
	}
	gpu_get(g, &status, a.status, sizeof(status));
	gpu_get(g, s->words, words, sizeof(s->words));
	cqk_cuda_tables_free(t);
	gpu_reset(g);
	return status;
}

/* By every way there is to codes, which tell the same of values. */
static uint64_t append(struct gpu *g, const struct batch *b, struct sides *s, bool compare)
{
	uint32_t words[ARRAY_SIZE(s->words)];
	uint64_t status;

	memcpy(words, s->words, sizeof(words));
	cqk_cuda_force_encode(g->k, CQK_ENCODE_ALL);
	status = append_by(g, b, s, compare);
	memcpy(s->words, words, sizeof(words));
	cqk_cuda_force_encode(g->k, CQK_ENCODE_NEAR);
	ASSERT_EQ(append_by(g, b, s, compare), status);
	cqk_cuda_force_encode(g->k, CQK_ENCODE_AUTO);
	return status;
}

static void check(struct gpu *g, const struct batch *b)
{
	struct sides s;

	sides_make(b, &s);
	ASSERT_EQ(append(g, b, &s, true), 0);
	sides_free(&s);
}

static struct batch plain(uint32_t d, uint32_t ck, uint32_t cv)
{
	return (struct batch){
		.toy = { .n_layers = 2, .n_heads = 2, .n_kv_heads = 2, .d = d, .rope_dim = d,
			 .ck = ck, .cv = cv },
		.rows = 1, .layer = 1, .pos = 100, .first = 5,
	};
}

TEST_LIMIT(every_pair_of_settings, 60)
{
	static const uint32_t dims[] = { 64, 128, 256 };
	static const uint32_t codes[] = { 2, 4, 8, 0, 8 }, bits[] = { 0, 0, 0, 0, 10 };
	static const uint32_t rows[] = { 1, 2, 33, 70 }, firsts[] = { 0, 2, 31, 63 };
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	for (i = 0; i < 30; i++) {
		struct batch b = plain(dims[i % 3], codes[i % 5], codes[(i / 5 + i) % 5]);

		b.toy.bk = bits[i % 5];
		b.toy.bv = bits[(i / 5 + i) % 5];
		b.toy.i8 = i / 5 % 2;
		b.toy.metric = i / 3 % 2;
		b.toy.rope_dim = b.toy.d / (1 + i / 2 % 3) & ~1u;
		b.dtype = (i + i / 6) % 3;
		b.turn = (int)(i / 3 % 3) - 1;
		b.rows = rows[(i + i / 8) % 4];
		b.first = firsts[(i / 2 + i / 7) % 4];
		b.hnd = i / 4 % 2;
		b.toy.pairs = i / 6 % 2;
		b.toy.scaling = ref_scaling((i + i / 4) % 4, 100);
		if (b.toy.d == 256)
			b.rows = MIN(b.rows, 33u);
		check(&g, &b);
	}
	gpu_close(&g);
}

/* Codes k, k + @apart, ... of each group have the same centroid. */
static void equal_centroids(struct cqk_codebook *cb, size_t apart)
{
	size_t n = cqk_code_centroids(cb->code), c = cb->code.channels;
	int8_t *stored = (int8_t *)(uintptr_t)cb->stored;
	size_t g, k, i, j;

	for (g = 0; g < (size_t)cb->n_kv_heads * cb->n_groups; g++)
		for (k = apart; k < n; k++)
			memcpy(stored + (g * n + k) * c, stored + (g * n + k % apart) * c, c);
	for (i = 0; i < (size_t)cb->n_kv_heads * cb->head_dim; i++)
		for (j = 0; j < n; j++) {
			int8_t x = stored[(i / c * n + j) * c + i % c];

			cb->f32[i * n + j] = (float)x * cb->scale[i];
		}
	toy_half_norm(cb);
}

TEST(ties_take_the_lowest_code)
{
	static const struct { uint32_t c, bits, apart; } at[] = {
		{ 4, 8, 64 }, { 8, 10, 256 }, { 8, 10, 100 },
	};
	struct sides s;
	struct gpu g;
	uint32_t i, j, n;

	gpu_open(&g);
	for (n = 0; n < ARRAY_SIZE(at); n++) {
		struct batch b = plain(64, at[n].c, 2);

		b.toy.bk = at[n].bits;
		b.toy.i8 = true;
		b.rows = 40;
		sides_make(&b, &s);
		equal_centroids(&s.toy.m.layers[1].k, at[n].apart);
		for (i = 0; i < s.n_dests; i++)
			for (j = 0; j < 4; j++)
				host_dest(&b, &s, &s.dests[i], j / 2, j % 2);
		ASSERT_EQ(append(&g, &b, &s, true), 0);
		sides_free(&s);
	}
	gpu_close(&g);
}

/*
 * Four tokens share a byte of upper bits, and any of them may be in a launch of its own:
 * each time the others keep theirs, and in the end the page is that of one launch.
 */
TEST_LIMIT(wide_codes_in_pieces, 60)
{
	static const uint32_t ends[] = { 1, 3, 18, 19, 34, 50, 63, 64 };
	struct batch b = plain(64, 8, 8);
	struct cqkd_dest whole;
	struct sides s;
	struct gpu g;
	uint32_t i, at;

	gpu_open(&g);
	b.toy.bk = b.toy.bv = 10;
	b.toy.i8 = true;
	b.rows = 64;
	b.first = 0;
	sides_make(&b, &s);
	whole = s.dests[1];	/* behind the sinks */
	for (i = at = 0; i < ARRAY_SIZE(ends); at = ends[i++]) {
		s.dests[i] = whole;
		s.dests[i].first = s.dests[i].row = at;
		s.dests[i].count = ends[i] - at;
		s.dests[i].pos += at;
	}
	memset(s.want_sink, 0xa5, s.sink_bytes);
	s.n_dests = i;
	b.apart = true;
	ASSERT_EQ(append(&g, &b, &s, true), 0);
	sides_free(&s);
	gpu_close(&g);
}

/* Every second centroid is the one before it, but for the last bit of one channel. */
static void nearly_alike(struct cqk_codebook *cb)
{
	uint32_t c = cb->code.channels, groups = cb->n_kv_heads * cb->n_groups, g, k, j;
	uint16_t *f16 = (uint16_t *)(uintptr_t)cb->stored;
	int8_t *i8 = (int8_t *)(uintptr_t)cb->stored;

	for (g = 0; g < groups; g++)
		for (k = 1; k < 256; k += 2)
			for (j = 0; j < c; j++) {
				size_t at = ((size_t)g * 256 + k) * c + j, ch = (size_t)g * c + j;
				bool other = k / 2 % c == j;

				if (cb->centroids == CQK_CENTROIDS_F16) {
					f16[at] = f16[at - c] ^ other;
					cb->f32[ch * 256 + k] = cqk_f16_to_f32(f16[at]);
				} else {
					i8[at] = i8[at - c] ^ other;
					cb->f32[ch * 256 + k] = (float)i8[at] * cb->scale[ch];
				}
			}
	toy_half_norm(cb);
}

/* Tokens at centroids, or not far from them. */
static void rows_at_centroids(const struct batch *b, struct cq_view *view,
			      const struct cqk_codebook *cb, float size)
{
	uint32_t d = b->toy.d, c = cb->code.channels, row, head, ch;

	for (row = 0; row < b->rows; row++)
		for (head = 0; head < b->toy.n_kv_heads; head++)
			for (ch = 0; ch < d; ch++) {
				uint32_t k = (row * 37 + ch / c * 11 + head) % 256;
				float x = cb->f32[((size_t)head * d + ch) * 256 + k];

				if (row % 3 == 1)
					x += 0.1f * size * toy_normal();
				if (row % 3 == 2)
					x = cqk_f16_to_f32(cqk_f32_to_f16(x) ^ (ch & 1));
				((uint16_t *)view->data)[row * view->stride_token +
							 head * view->stride_head + ch] =
					cqk_f32_to_f16(fmaxf(-65504, fminf(x, 65504)));
			}
}

/* All rows have @x in channel @at of each group. */
static void rows_put(const struct batch *b, const struct cq_view *view,
		     const struct cqk_codebook *cb, uint32_t at, uint16_t x)
{
	uint32_t n = b->toy.n_kv_heads * b->toy.d, c = cb->code.channels, row, i;

	for (row = 0; row < b->rows; row++)
		for (i = at; i < n; i += c)
			((uint16_t *)view->data)[row * view->stride_token +
						 i / b->toy.d * view->stride_head +
						 i % b->toy.d] = x;
}

/* Whatever the sizes are: of centroids, and of what the metric makes of them. */
TEST_LIMIT(what_is_nearly_as_near_is_told_apart, 60)
{
	static const float sizes[] = { 1, 1e-7f, 3e-5f, 0.01f, 300, 1e4f };
	static const float weights[] = { 0, 1, 0x1p-110f, 0x1p60f };
	static const uint32_t codes[] = { 8, 4, 2 };
	struct gpu g;
	uint32_t i, j;

	gpu_open(&g);
	for (i = 0; i < 24; i++) {
		struct batch b = plain(64, codes[i % 3], codes[(i + i / 3) % 3]);
		float size = sizes[i % 6], weight = weights[(i + i / 4) % 4];
		struct cqk_layer *y;
		struct sides s;

		b.dtype = CQ_F16;
		b.rows = 37;
		b.toy.i8 = i / 3 % 2;
		b.toy.metric = weight > 0;
		b.toy.k_size = b.toy.v_size = size;
		sides_make(&b, &s);
		y = &s.toy.m.layers[1];
		for (j = 0; j < 2 * 64 && weight > 0; j++) {
			((float *)(uintptr_t)y->k.metric)[j] *= weight;
			((float *)(uintptr_t)y->v.metric)[j] *= weight;
		}
		nearly_alike(&y->k);
		nearly_alike(&y->v);
		rows_at_centroids(&b, &s.k, &y->k, size);
		rows_at_centroids(&b, &s.v, &y->v, size);
		for (j = 0; j < s.n_dests * 4; j++)
			host_dest(&b, &s, &s.dests[j / 4], j / 2 % 2, j % 2);
		ASSERT_EQ(append(&g, &b, &s, true), 0);
		sides_free(&s);
	}
	gpu_close(&g);
}

/* A channel of each group that is zero in all centroids, as where a head is padded. */
static void channel_dies(struct cqk_codebook *cb, uint32_t at)
{
	uint32_t c = cb->code.channels, n = cb->n_kv_heads * cb->head_dim * 256, i;

	for (i = 0; i < n; i++)
		if (i / 256 % c == at)
			cb->f32[i] = 0;
	for (i = 0; i < n; i++)
		if (i % c == at)
			((uint16_t *)(uintptr_t)cb->stored)[i] = 0;
	toy_half_norm(cb);
}

/* What a channel adds in which no centroid has anything is nothing, or the same for all. */
TEST_LIMIT(a_channel_without_centroids_hides_no_difference, 60)
{
	static const float sizes[] = { 1, 0.01f, 1e-3f, 3e-5f };
	static const uint16_t others[] = { 0, 1, 0x3c00, 0xfbff };
	static const uint32_t codes[] = { 8, 4, 2 };
	struct gpu g;
	uint32_t i, j;

	gpu_open(&g);
	for (i = 0; i < 16; i++) {
		struct batch b = plain(64, codes[i % 3], codes[(i + i / 3) % 3]);
		struct cqk_layer *y;
		struct sides s;

		b.dtype = CQ_F16;
		b.rows = 37;
		b.toy.k_size = b.toy.v_size = sizes[i % 4];
		sides_make(&b, &s);
		y = &s.toy.m.layers[1];
		nearly_alike(&y->k);
		nearly_alike(&y->v);
		channel_dies(&y->k, 1);
		channel_dies(&y->v, 0);
		rows_at_centroids(&b, &s.k, &y->k, sizes[i % 4]);
		rows_at_centroids(&b, &s.v, &y->v, sizes[i % 4]);
		rows_put(&b, &s.k, &y->k, 1, others[(i + i / 4) % 4]);
		rows_put(&b, &s.v, &y->v, 0, others[(i + i / 4) % 4]);
		for (j = 0; j < s.n_dests * 4; j++)
			host_dest(&b, &s, &s.dests[j / 4], j / 2 % 2, j % 2);
		ASSERT_EQ(append(&g, &b, &s, true), 0);
		sides_free(&s);
	}
	gpu_close(&g);
}

/* Zeros of both signs, the least and the largest halves. */
TEST(extreme_inputs)
{
	struct batch b = plain(64, 8, 8);
	struct sides s;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	b.dtype = CQ_F16;
	b.rows = 4;
	b.toy.k_size = 3000;
	sides_make(&b, &s);
	for (i = 0; i < s.kv_bytes / 2; i++) {
		uint16_t h = (uint16_t)((i % 2 ? 0x8000 : 0) | (i % 3 ? 0x7bff : i % 5));

		memcpy(s.kv[0] + 2 * i, &h, 2);
		memcpy(s.kv[1] + 2 * i, i % 7 ? (uint16_t[]){ 0 } : (uint16_t[]){ 0x8000 }, 2);
	}
	for (i = 0; i < s.n_dests * 4; i++)
		host_dest(&b, &s, &s.dests[i / 4], i / 2 % 2, i % 2);
	ASSERT_EQ(append(&g, &b, &s, true), 0);
	sides_free(&s);
	gpu_close(&g);
}

static void put_bad(struct sides *s, bool v, uint32_t row, uint32_t head, uint32_t ch, float x)
{
	const struct cq_view *view = v ? &s->v : &s->k;

	((float *)view->data)[row * view->stride_token + head * view->stride_head + ch] = x;
}

static void expect_bad(uint64_t status, uint32_t row, uint32_t head, bool v, uint32_t ch)
{
	struct cqk_cuda_bad bad;

	ASSERT(cqk_cuda_bad(status, &bad));
	ASSERT_EQ(bad.layer, 1);
	ASSERT_EQ(bad.row, row);
	ASSERT_EQ(bad.head, head);
	ASSERT_EQ(bad.v, v);
	ASSERT_EQ(bad.channel, ch);
}

TEST(values_that_fp16_cannot_hold_are_named)
{
	static const float bad[] = { NAN, INFINITY, -65520.0f, 1e30f };
	struct batch b = plain(64, 4, 4);
	struct cqk_cuda_bad none;
	struct sides s;
	struct gpu g;
	uint32_t i;

	gpu_open(&g);
	b.rows = 70;
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		b.turn = (int)i % 3 - 1;
		sides_make(&b, &s);
		put_bad(&s, true, 69, 1, 3, bad[i]);
		put_bad(&s, true, 66, 1, 63, bad[i]);
		put_bad(&s, false, 67, 0, 0, bad[i]);
		expect_bad(append(&g, &b, &s, false), 66, 1, true, 63);
		put_bad(&s, false, 66, 1, 63, bad[i]);	/* its partner is 31 */
		s.n_dests = 0;
		batch_dests(&b, &s);
		expect_bad(append(&g, &b, &s, false), 66, 1, false, 63);
		sides_free(&s);
		/* 62 and 63 are a pair, and stored as 31 and 63 */
		b.toy.pairs = CQK_PAIRS_INTERLEAVED;
		sides_make(&b, &s);
		put_bad(&s, false, 66, 1, 62, bad[i]);
		expect_bad(append(&g, &b, &s, false), 66, 1, false, 62);
		sides_free(&s);
		b.toy.pairs = CQK_PAIRS_HALF;
	}
	ASSERT(!cqk_cuda_bad(0, &none));
	gpu_close(&g);
}

/* Both channels are halves, but not what the rotation makes of them. */
TEST(a_rotation_may_leave_fp16)
{
	struct batch b = plain(64, 4, 4);
	struct sides s;
	struct gpu g;
	uint32_t ch;

	gpu_open(&g);
	b.turn = 1;
	b.pos = 1;
	b.first = 10;
	sides_make(&b, &s);
	for (ch = 0; ch < 64; ch++)
		put_bad(&s, false, 0, 1, ch, ch % 32 == 0 ? 60000.0f : 0);
	expect_bad(append(&g, &b, &s, false), 0, 1, false, 32);
	sides_free(&s);
	gpu_close(&g);
}

/* Each destination's own word, and no other's; one that is higher stays. */
TEST(values_are_told_where_they_went)
{
	struct batch b = plain(64, 4, 4);
	struct sides s;
	struct gpu g;

	gpu_open(&g);
	b.first = 0;
	b.rows = 150;
	sides_make(&b, &s);
	ASSERT_EQ(s.n_dests, 4);	/* sinks, 64, 64, 22 */
	put_bad(&s, true, 70, 1, 3, NAN);
	put_bad(&s, false, 149, 0, 3, INFINITY);
	s.words[3] = 1000;
	append(&g, &b, &s, false);
	ASSERT_EQ(s.words[0], 0);
	ASSERT_EQ(s.words[1], 0);
	ASSERT_EQ(s.words[2], 9);
	ASSERT_EQ(s.words[3], 1000);
	put_bad(&s, false, 1, 0, 63, NAN);
	s.n_dests = 0;
	batch_dests(&b, &s);
	append(&g, &b, &s, false);
	ASSERT_EQ(s.words[0], 7);
	ASSERT_EQ(s.words[1], 8);
	sides_free(&s);
	gpu_close(&g);
}

TEST(ways_have_names_and_a_rule)
{
	enum cqk_cuda_encode e = CQK_ENCODE_ALL;
	struct cq_err err;
	uint32_t c;

	ASSERT_EQ(cqk_cuda_encode_of(NULL, &e, &err), 0);
	ASSERT_EQ(e, CQK_ENCODE_AUTO);
	ASSERT_EQ(cqk_cuda_encode_of("near", &e, &err), 0);
	ASSERT_EQ(e, CQK_ENCODE_NEAR);
	ASSERT_EQ(cqk_cuda_encode_of("far", &e, &err), -EINVAL);
	ASSERT(strstr(err.text, "all and near"));
	ASSERT(!strcmp(cqk_cuda_encode_name(CQK_ENCODE_NEAR), "near"));
	for (c = 2; c <= 8; c *= 2) {
		ASSERT(!cqk_cuda_encode_near(CQK_ENCODE_AUTO, c, 1));
		ASSERT(cqk_cuda_encode_near(CQK_ENCODE_AUTO, c, 64));
		ASSERT(cqk_cuda_encode_near(CQK_ENCODE_NEAR, c, 1));
		ASSERT(!cqk_cuda_encode_near(CQK_ENCODE_ALL, c, 64));
	}
}

/* Not of 10 bits, nor of the other side of such a layer. */
TEST(tables_for_tensor_cores)
{
	static const struct { uint32_t bk, bv; bool any; } at[] = {
		{ 8, 8, true }, { 10, 8, false }, { 8, 10, false }, { 10, 10, false },
	};
	struct cqk_cuda_tables *t;
	struct cq_err err;
	struct toy toy;
	uint32_t i, j;

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		struct batch b = plain(64, 8, 8);

		b.toy.bk = at[i].bk;
		b.toy.bv = at[i].bv;
		b.toy.i8 = true;
		toy_init(&toy, &b.toy, 64);
		ASSERT_EQ(cqk_cuda_tables_new(&toy.m, &toy.rope, &t, &err), 0);
		for (j = 0; j < 2 * b.toy.n_layers; j++) {
			const struct cqkd_near *n = &t->near[j];

			ASSERT_EQ(n->top && n->rest && n->tail && n->bound, at[i].any);
			ASSERT_EQ(n->top || n->rest || n->tail || n->bound, at[i].any);
		}
		cqk_cuda_tables_free(t);
		toy_free(&toy);
	}
}

TEST(bad_arguments)
{
	struct batch b = plain(64, 4, 4);
	struct cqk_cuda_tables *t;
	struct cqk_cuda_append good, a;
	struct sides s;
	struct gpu g;

	gpu_open(&g);
	sides_make(&b, &s);
	t = gpu_tables(&g, &s.toy.m, &s.toy.rope);
	good = (struct cqk_cuda_append){
		.k = gpu_view(&s.k, s.kv[0], gpu_put(&g, s.kv[0], s.kv_bytes)),
		.v = gpu_view(&s.v, s.kv[1], gpu_put(&g, s.kv[1], s.kv_bytes)),
		.dests = gpu_put(&g, s.dests, sizeof(s.dests)),
		.n_dests = gpu_alloc(&g, 4, 0), .status = gpu_alloc(&g, 8, 0), .max_dests = 3,
	};
#define REFUSED(field, value) do { \
	a = good; \
	a.field = value; \
	ASSERT_EQ(cqk_cuda_append(g.k, t, &a, g.stream, &g.err), -EINVAL); \
	ASSERT(g.err.text[0]); \
	ASSERT_EQ(cqk_cuda_append(g.k, t, &good, g.stream, &g.err), 0); \
} while (0)
	REFUSED(layer, 2);
	REFUSED(turn, 2);
	REFUSED(k.dtype, 7);
	REFUSED(k.data, s.kv[0]);
	REFUSED(v.data, (char *)good.v.data + 2);
	REFUSED(v.stride_token, INT64_MIN);
	REFUSED(dests, 0);
	REFUSED(n_dests, good.n_dests + 2);
	REFUSED(status, (uintptr_t)&s);
#undef REFUSED
	CU(g.cu->cuStreamSynchronize(g.stream));
	cqk_cuda_tables_free(t);
	sides_free(&s);
	gpu_close(&g);
}
