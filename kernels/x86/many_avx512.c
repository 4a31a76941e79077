// SPDX-License-Identifier: MIT
/*
 * Attention of many query vectors on coded pages with AVX-512 (isa_avx512.h): a
 * batch on a shared prefix, a prompt, a large group of heads.
 *
 * A page is decoded once per kv head to 16-bit integers (many_tile_avx512.h).
 * Vectors are lanes: 64 of them, four registers, meet one token's key or one
 * channel's value at a time, broadcast from the tile, so that both products
 * are the same loop of vpdpwssd, and softmax needs no sum across a register.
 * Probabilities are 16-bit fractions of each lane's largest in the page; sums go
 * on in float. Halves, and centroids that are halves, take the same loops with
 * tiles of floats, which are decoded by struct cqk_tile_ops.
 *
 * Online softmax: Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1.
 */
#include <string.h>
#define CQK_VB 64
#include "kernels/x86/many_avx512.h"
#include "kernels/x86/many_tile_avx512.h"

#define MANY_P 32766.0f		/* p = 1: one more by rounding still fits */
#define MANY_RAISE 8.0f		/* a maximum that rises by less stays: sums reach 2^8 */
#define MANY_NEVER -1e30f	/* score of what is not seen; no score reaches it */
#define MANY_LOG2E 1.44269504088896341f
#define MANY_LN2 0.693147180559945309f

INLINE vf many_max(vf a, vf b)
{
	return (vf)_mm512_max_ps((zf)a, (zf)b);
}

/* 2^x for x <= 0, relative error below 6e-6: p has 15 bits. 2^-126 at the least. */
INLINE vf many_exp2(vf x)
{
	const vf magic = (vf){ 0 } + 12582912.0f;	/* 1.5 * 2^23 rounds */
	vf y = many_max(x, (vf){ 0 } - 126.0f);
	vf n = y + magic;
	vf f = y - (n - magic);
	vf p = f * 9.65827201e-3f + 5.58518188e-2f;

	p = p * f + 0.240225201f;
	p = p * f + 0.693135871f;
	p = p * f + 1.0f;
	return (vf)((vi)p + ((vi)n << 23));
}

/* acc += w y: pairs of 16-bit integers, or floats. */
INLINE zi many_madd(const bool ints, zi acc, zi w, zi y)
{
	return ints ? (zi)dot_words((vi)acc, w, y) : (zi)((vf)acc + (vf)w * (vf)y);
}

INLINE vf many_float(const bool ints, zi acc)
{
	return ints ? __builtin_convertvector((vi)acc, vf) : (vf)acc;
}

/* Blocks of 16 sums, enough to hide what one takes: MANY_NB(nz) times @nz registers. */
#define MANY_SUMS 16
#define MANY_NB(nz) (MANY_SUMS / (nz))
#define MANY_EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10)	\
	X(11) X(12) X(13) X(14) X(15)

/* Sums have names because gcc 12 copies those of an array from turn to turn. */
#define MANY_ZERO(i) zi sum##i = _mm512_setzero_si512();
#define MANY_GIVE(i) acc[i] = sum##i;
#define MANY_ADD(i)								\
	if ((i) % nz == 0)							\
		w = _mm512_set1_epi32(word[(i) / nz / 4 * far + (i) / nz % 4 * gap]); \
	sum##i = many_madd(ints, sum##i, w, (i) % nz == 0 ? y0 :			\
			   (i) % nz == 1 ? y1 : (i) % nz == 2 ? y2 : y3);

/*
 * acc[MANY_NB][@nz] = sum over @n > 0 words of b and a: MANY_NB words of @b, @gap
 * apart, each four of them @far from the four before, times 16 @nz lanes of @a.
 */
INLINE void many_dot(const bool ints, const int nz, zi *acc, const void *b,
		     const size_t step, const size_t far, const size_t gap,
		     const void *a, uint32_t n)
{
	const int32_t *word = b, *lanes = a;
	zi w = _mm512_setzero_si512(), y0, y1, y2, y3;

	MANY_EACH(MANY_ZERO)
	do {
		y0 = _mm512_loadu_si512(lanes);
		y1 = nz > 1 ? _mm512_loadu_si512(lanes + 16) : y0;
		y2 = nz > 2 ? _mm512_loadu_si512(lanes + 32) : y0;
		y3 = nz > 2 ? _mm512_loadu_si512(lanes + 48) : y0;
		MANY_EACH(MANY_ADD)
		lanes += MANY_CHUNK;
		word += step;
	} while (--n);
	MANY_EACH(MANY_GIVE)
}

/* Integer scores of MANY_NB tokens from @t on; lanes from @lane on. */
INLINE void many_score_ints(const int nz, struct many *x, const struct many_chunk *c,
			    uint32_t lane, uint32_t t, vf *top)
{
	const uint32_t run = x->half ? MANY_SUM : MANY_PAIRS;
	zi acc[MANY_SUMS];
	uint32_t i, n;
	int k, z;

	for (i = 0; i < x->np; i += n) {
		n = MIN(run, x->np - i);
		many_dot(true, nz, acc, &x->key[t % 16 / 4][i][t / 16 * 4], 16,
			 MANY_PAIRS * 16, 1, c->q + (size_t)i * MANY_CHUNK + lane, n);
		for (k = 0; k < MANY_NB(nz); k++)
			for (z = 0; z < nz; z++) {
				float *at = &x->s[t + k][lane + 16 * z];
				vf s = many_float(true, acc[k * nz + z]);

				if (i)
					s += LD(at);
				if (i + n == x->np) {
					s *= LD(c->unit + lane + 16 * z);
					top[z] = many_max(top[z], s);
				}
				ST(at, s);
			}
	}
}

INLINE void many_score_floats(const int nz, struct many *x,
			      const struct many_chunk *c, uint32_t lane, uint32_t t,
			      vf *top)
{
	zi acc[MANY_SUMS];
	int k, z;

	many_dot(false, nz, acc, x->h->chunk.k + t, CQK_T, 4, 1,
		 c->f + lane, x->d);
	for (k = 0; k < MANY_NB(nz); k++)
		for (z = 0; z < nz; z++) {
			vf s = many_float(false, acc[k * nz + z]);

			top[z] = many_max(top[z], s);
			ST(&x->s[t + k][lane + 16 * z], s);
		}
}

INLINE void many_scores(const bool ints, const int nz, struct many *x,
			const struct many_chunk *c, uint32_t lane)
{
	vf top[4];
	uint32_t t;
	int z;

	for (z = 0; z < nz; z++)
		top[z] = (vf){ 0 } + MANY_NEVER;
	for (t = 0; t < CQK_T; t += MANY_NB(nz)) {
		if (ints)
			many_score_ints(nz, x, c, lane, t, top);
		else
			many_score_floats(nz, x, c, lane, t, top);
	}
	for (z = 0; z < nz; z++)
		ST(x->top + lane + 16 * z, top[z]);
}

/* o = o grow + p v, MANY_NB channels at a time. */
INLINE void many_values(const bool ints, const int nz, const bool grow,
			struct many *x, struct many_chunk *c, uint32_t lane)
{
	zi acc[MANY_SUMS];
	uint32_t ch;
	int k, z;

	for (ch = 0; ch < x->d; ch += MANY_NB(nz)) {
		if (ints)
			many_dot(true, nz, acc, x->value[ch], 1,
				 2 * CQK_T, CQK_T / 2, &x->p[0][lane], CQK_T / 2);
		else
			many_dot(false, nz, acc, x->h->chunk.v + ch,
				 x->h->dpad, 4, 1, &x->s[0][lane], x->tokens);
		for (k = 0; k < MANY_NB(nz); k++)
			for (z = 0; z < nz; z++) {
				uint32_t at = lane + 16 * z;
				float *o = c->o + (size_t)(ch + k) * MANY_CHUNK + at;
				vf y = many_float(ints, acc[k * nz + z]);
				vf old = LD(o);

				if (grow)
					old *= LD(x->grow + at);
				if (ints)
					y *= x->v_scale[ch + k];
				ST(o, old + y * LD(x->weight + at));
			}
	}
}

/* The lanes whose bit of token @t is set; @bits: [2] tokens 0..31, 32..63. */
INLINE vi many_seen(const vi *bits, int t)
{
	return bits[t / 32] << (31 - t % 32) >> 31;
}

static void many_bits(const uint64_t *vis, vi *bits)
{
	int i;

	for (i = 0; i < 16; i++) {
		bits[0][i] = (int32_t)(uint32_t)vis[i];
		bits[1][i] = (int32_t)(uint32_t)(vis[i] >> 32);
	}
}

/* Cap and mask of 16 lanes: scores and their maxima once more. */
static void many_shape(struct many *x, const uint64_t *vis, uint32_t lane, float cap)
{
	vf top = (vf){ 0 } + MANY_NEVER, never = top;
	vi bits[2];
	int t;

	many_bits(vis, bits);
	for (t = 0; t < CQK_T; t++) {
		vf s = LD(&x->s[t][lane]);

		if (cap > 0.0f)
			s = vf_cap(s, cap) * MANY_LOG2E;
		s = vf_pick(many_seen(bits, t), s, never);
		ST(&x->s[t][lane], s);
		top = many_max(top, s);
	}
	ST(x->top + lane, top);
}

/*
 * 16 lanes: p = 2^(s - top), in the place of s or as 16-bit fractions, two tokens
 * to a word; returns their sum. What rounding takes from a token goes to the one after the next:
 * tokens that are each below half a unit would otherwise vanish beside a large
 * one.
 */
INLINE vf many_exp(const bool ints, struct many *x, uint32_t lane)
{
	vf top = LD(x->top + lane), sum = (vf){ 0 }, carry[2];
	vi n[2];
	int t, k;

	carry[0] = carry[1] = (vf){ 0 };
	for (t = 0; t < CQK_T / 2; t++) {
		for (k = 0; k < 2; k++) {
			float *s = &x->s[2 * t + k][lane];
			vf p = many_exp2(LD(s) - top), want;

			sum += p;
			if (!ints) {
				ST(s, p);
				continue;
			}
			want = p * MANY_P + carry[k];
			n[k] = (vi)_mm512_cvtps_epi32((zf)want);
			carry[k] = want - __builtin_convertvector(n[k], vf);
		}
		if (ints)
			many_store(&x->p[t][lane], (zi)(n[0] | n[1] << 16));
	}
	return sum;
}

/*
 * New references and sums of 16 lanes, and the factors that values need. A lane
 * that sees nothing of the page keeps what it has. @one: a probability of 1 as
 * it is stored. True if a sum must grow.
 */
static bool many_merge(struct many *x, struct many_chunk *c, const uint64_t *vis,
		       uint32_t lane, vf sum, float one)
{
	vf old = LD(c->m + lane), top = LD(x->top + lane), m, grow, own;
	vi alive = { 0 }, before = (vi)old, after;
	int i;

	for (i = 0; i < 16; i++)
		alive[i] = vis[i] ? -1 : 0;
	top = vf_pick(alive, top, (vf){ 0 } + MANY_NEVER);
	m = vf_pick(top > old + MANY_RAISE, top, old);
	grow = vf_exp((old - m) * MANY_LN2);
	own = (vf)((vi)vf_exp((top - m) * MANY_LN2) & alive);
	ST(x->grow + lane, grow);
	ST(x->weight + lane, own * (1.0f / one));
	ST(c->l + lane, LD(c->l + lane) * grow + own * sum);
	ST(c->m + lane, m);
	after = (vi)m;
	return memcmp(&before, &after, sizeof(after));
}

/*
 * Scores to probabilities; true if old sums of values are no longer in scale.
 * Lanes that see nothing are left out by many_merge(), but for floats, where
 * what nobody sees may be NaN.
 */
INLINE bool many_softmax(const bool ints, const int nz, struct many *x,
			 struct many_chunk *c, const uint64_t *vis, uint32_t lane)
{
	float cap = x->h->a->soft_cap;
	bool grow = false;
	uint32_t at, i;

	for (at = lane; at < lane + 16 * nz; at += 16) {
		bool whole = !(cap > 0.0f);

		for (i = 0; i < 16; i++)
			whole &= !~vis[at + i] || (ints && !vis[at + i]);
		if (!whole)
			many_shape(x, vis + at, at, cap);
		grow |= many_merge(x, c, vis + at, at, many_exp(ints, x, at),
				   ints ? MANY_P : 1.0f);
	}
	return grow;
}

INLINE void many_lanes(const bool ints, const int nz, struct many *x,
		       struct many_chunk *c, const uint64_t *vis, uint32_t lane)
{
	many_scores(ints, nz, x, c, lane);
	if (many_softmax(ints, nz, x, c, vis, lane))
		many_values(ints, nz, true, x, c, lane);
	else
		many_values(ints, nz, false, x, c, lane);
}

#define MANY_LANES(kind, ints, nz)						\
static void many_##kind##_##nz(struct many *x, struct many_chunk *c,		\
			       const uint64_t *vis, uint32_t lane)		\
{										\
	many_lanes(ints, nz, x, c, vis, lane);					\
}
MANY_LANES(ints, true, 1)
MANY_LANES(ints, true, 2)
MANY_LANES(ints, true, 4)
MANY_LANES(floats, false, 1)
MANY_LANES(floats, false, 2)
MANY_LANES(floats, false, 4)

/* The registers of a chunk that hold a vector which sees something. */
static void many_chunk_page(struct many *x, struct many_chunk *c, const uint64_t *vis)
{
	static void (*const fns[2][3])(struct many *, struct many_chunk *,
				       const uint64_t *, uint32_t) = {
		{ many_floats_1, many_floats_2, many_floats_4 },
		{ many_ints_1, many_ints_2, many_ints_4 },
	};
	uint32_t from = MANY_CHUNK, to = 0, i;

	for (i = 0; i < MANY_CHUNK; i++)
		if (vis[i]) {
			from = MIN(from, i / 16);
			to = i / 16 + 1;
		}
	if (to <= from)
		return;
	i = MIN(to - from, 3u) - 1;
	fns[x->ints][i](x, c, vis, i < 2 ? from * 16 : 0);
}

/* All vectors with something in @x->vis. */
static void many_flush(struct many *x)
{
	uint32_t i;

	if (x->first >= x->last)
		return;
	if (x->ints)
		many_load_ints(x);
	else
		many_load_floats(x);
	for (i = x->first / MANY_CHUNK; i * MANY_CHUNK < x->last; i++)
		many_chunk_page(x, &x->chunks[i], x->vis + (size_t)i * MANY_CHUNK);
	memset(x->vis + x->first, 0, (x->last - x->first) * sizeof(*x->vis));
	x->first = UINT32_MAX;
	x->last = 0;
}

/* A row of @s waits already: a sequence that uses a page twice. */
static bool many_waiting(const struct many *x, const struct cqk_span *s)
{
	uint32_t i;

	for (i = s->row_first; i < s->row_first + s->n_rows; i++)
		if (x->vis[(size_t)i * x->h->gqa])
			return true;
	return false;
}

static void many_span(struct many *x, const struct cqk_block *b,
		      const struct cqk_span *s)
{
	const struct cqk_attn *a = x->h->a;
	uint32_t row, g, gqa = x->h->gqa;

	for (row = s->row_first; row < s->row_first + s->n_rows; row++) {
		uint64_t vis = cqk_visible(a, b, s, a->row_pos[row]);

		if (!vis)
			continue;
		for (g = 0; g < gqa; g++)
			x->vis[(size_t)row * gqa + g] = vis;
		x->first = MIN(x->first, row * gqa);
		x->last = MAX(x->last, (row + 1) * gqa);
	}
}

/* The block at hand: where its K and V are. */
static void many_find(struct many *x, const struct cqk_block *b)
{
	const struct cqk_attn *a = x->h->a;
	uint64_t live = 0;
	uint32_t i;

	for (i = 0; i < b->n_spans; i++)
		live |= a->spans[b->span_first + i].mask;
	x->src_k = cqk_block_src(a, b, x->h->head, false, live);
	x->src_v = cqk_block_src(a, b, x->h->head, true, live);
	x->ints = has_look_up(x->src_k.cb) && has_look_up(x->src_v.cb) &&
		  x->d % 2 == 0 && !x->coarse;
	x->tokens = b->tokens;
	x->has_raw = x->has_k = x->has_v = false;
}

/* A sequence to which the block lies elsewhere has its keys turned anew. */
static void many_block(struct many *x, const struct cqk_block *b)
{
	uint32_t i;

	many_find(x, b);
	for (i = 0; i < b->n_spans; i++) {
		const struct cqk_span *s = &x->h->a->spans[b->span_first + i];
		bool moved = x->half && (i == 0 || s->pos != x->k_pos);

		if (moved || many_waiting(x, s))
			many_flush(x);
		if (moved) {
			many_load_turn(x, s->pos);
			x->has_k = false;
		}
		many_span(x, b, s);
	}
	many_flush(x);
}

static uint32_t many_chunks(size_t nq)
{
	return (uint32_t)((nq + MANY_CHUNK - 1) / MANY_CHUNK);
}

/* Bytes of a chunk's lanes: queries, sums, what they see. */
static size_t many_chunk_bytes(uint32_t d)
{
	return (size_t)(d / 2) * MANY_CHUNK * sizeof(int32_t) +
	       (d + ALIGN_UP(d, 16)) * MANY_CHUNK * sizeof(float) +
	       MANY_CHUNK * sizeof(uint64_t);
}

static void many_lay_out(struct many *x)
{
	uint8_t *at = (uint8_t *)x + ALIGN_UP(sizeof(*x), 64);
	size_t n_q = (size_t)x->np * MANY_CHUNK, n_o = ALIGN_UP(x->d, 16) * MANY_CHUNK;
	uint32_t i, lane;

	x->vis = (uint64_t *)(void *)at;
	at += (size_t)x->n_chunks * MANY_CHUNK * sizeof(uint64_t);
	x->chunks = (struct many_chunk *)(void *)at;
	at += ALIGN_UP(x->n_chunks * sizeof(*x->chunks), 64);
	memset(x->vis, 0, (size_t)x->n_chunks * MANY_CHUNK * sizeof(uint64_t));
	for (i = 0; i < x->n_chunks; i++) {
		struct many_chunk *c = &x->chunks[i];

		memset(c, 0, sizeof(*c));
		for (lane = 0; lane < MANY_CHUNK; lane++)
			c->m[lane] = MANY_NEVER;
		c->q = (int32_t *)(void *)at;
		c->f = (float *)(void *)(c->q + n_q);
		c->o = c->f + (size_t)x->d * MANY_CHUNK;
		at = (uint8_t *)(c->o + n_o);
		memset(c->q, 0, (n_q + (size_t)x->d * MANY_CHUNK) * 4);
		memset(c->o, 0, n_o * sizeof(float));
	}
}

/* Is any block for floats, any for integers. */
static void many_kinds(struct many *x, bool *ints, bool *floats)
{
	const struct cqk_attn *a = x->h->a;
	uint32_t i;

	*ints = *floats = false;
	for (i = 0; i < a->n_blocks; i++) {
		many_find(x, &a->blocks[i]);
		*ints |= x->ints;
		*floats |= !x->ints;
	}
}

/* All queries into their lanes, as this call's blocks need them. */
static void many_load_queries(struct many *x)
{
	float log2e = x->h->a->soft_cap > 0.0f ? 1.0f : MANY_LOG2E;
	struct many_pairs by;
	bool ints, floats;
	uint32_t v;

	many_kinds(x, &ints, &floats);
	if (ints)
		many_scales(x, &by);
	for (v = 0; ints && v < x->h->nq; v++)
		many_load_query(x, v, &by, log2e);
	for (v = 0; (floats || x->coarse) && v < x->h->nq; v++)
		many_load_float_query(x, v, log2e);
}

static struct many *many_begin(struct cqk_head *h, const struct cqk_tile_ops *ops)
{
	const struct cqk_layer *layer = &h->a->model->layers[h->a->layer];
	struct many *x = h->extra;

	memset(x, 0, offsetof(struct many, raw));
	x->h = h;
	x->ops = ops;
	x->k = &layer->k;
	x->v = &layer->v;
	x->d = h->chunk.d;
	x->np = x->d / 2;
	x->half = cqk_turns_keys(h->a) ? h->a->rope->half : 0;
	x->n_chunks = many_chunks(h->nq);
	x->first = UINT32_MAX;
	many_lay_out(x);
	memset(x->value, 0, sizeof(x->value));
	if (x->v->scale)
		memcpy(x->v_scale, x->v->scale + (size_t)h->head * x->d,
		       x->d * sizeof(float));
	many_load_queries(x);
	return x;
}

/* Vector @v from its lane to the driver's state. */
static void many_end_lane(struct many *x, uint32_t v)
{
	const struct many_chunk *c = &x->chunks[v / MANY_CHUNK];
	uint32_t lane = v % MANY_CHUNK, ch;
	struct cqk_head *h = x->h;
	float *o = h->o + (size_t)v * h->dpad;

	if (!(c->m[lane] > MANY_NEVER))
		return;
	for (ch = 0; ch < x->d; ch++)
		o[ch] = c->o[(size_t)ch * MANY_CHUNK + lane];
	h->l[v] += c->l[lane];		/* NaN remains */
	h->m[v] = c->m[lane] * MANY_LN2;
}

bool cqk_many_fit(const struct cqk_attn *a)
{
	const struct cqk_geom *g = &a->model->geom;

	return g->head_dim <= 2 * MANY_PAIRS &&
	       (size_t)a->n_rows * (g->n_heads / g->n_kv_heads) > CQK_LANES;
}

size_t cqk_many_bytes(const struct cqk_model *model, uint32_t n_rows)
{
	const struct cqk_geom *g = &model->geom;
	size_t n = many_chunks((size_t)n_rows * (g->n_heads / g->n_kv_heads));

	return ALIGN_UP(sizeof(struct many), 64) +
	       ALIGN_UP(n * sizeof(struct many_chunk), 64) +
	       n * many_chunk_bytes(g->head_dim);
}

void cqk_many_head(const struct cqk_attn *a, uint32_t head,
		   const struct cqk_tile_ops *ops)
{
	struct cqk_head *h = cqk_head_begin(a, head);
	struct many *x = many_begin(h, ops);
	uint32_t i;

	for (i = 0; i < a->n_blocks; i++)
		many_block(x, &a->blocks[i]);
	for (i = 0; i < h->nq; i++)
		many_end_lane(x, i);
	cqk_head_end(h);
}
