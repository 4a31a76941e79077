/* SPDX-License-Identifier: MIT */
/*
 * What gpu_bench measures with: memory full of random codes and halves, models of many
 * layers over it, and calls that run from a CUDA graph. Include it once.
 */
#ifndef BENCH_RIG_H
#define BENCH_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASSERT(c) do { if (!(c)) FAIL("%s", #c); } while (0)
#define FAIL(...) do {						\
	fprintf(stderr, "gpu_bench: " __VA_ARGS__);		\
	fputc('\n', stderr);					\
	exit(1);						\
} while (0)
#include "tests/kernels/gpu.h"
#include "tests/kernels/toy.h"
#include "tests/gpu/base.h"

#define MAX_RING	128	/* layers */
#define MAX_SAMPLES	25
#define SEED_BYTES	((size_t)16 << 20)

/* How a step is attended. A cascade attends to what sequences share once for all of them. */
enum way {
	WAY_CODES, WAY_F16, WAY_F16_CASCADE,
	WAY_F16_GROUPS,		/* a cascade by products of warpgroups, where a GPU has them */
	WAY_FP8, WAY_FP8_CASCADE, N_WAYS
};

static inline bool way_cascade(enum way w)
{
	return w == WAY_F16_CASCADE || w == WAY_F16_GROUPS || w == WAY_FP8_CASCADE;
}

static inline bool way_fp8(enum way w)
{
	return w == WAY_FP8 || w == WAY_FP8_CASCADE;
}

/* Memory, and what is known of the device. */
struct rig {
	struct gpu g;
	struct base base;
	char name[128];
	bool emulated;
	uint32_t sms, l2;
	double clock_hz;		/* at most */
	uint32_t arch;			/* compute capability, 90 for 9.0 */
	double copy_bytes_s;		/* read and written, measured */
	cqcu_ptr codes, halves;		/* random; each code is a number of e4m3, too */
	cqcu_ptr scales;		/* of these */
	double scale;
	size_t codes_bytes, halves_bytes;
	uint8_t *seed;			/* what codes repeat */
	size_t seed_bytes;
	struct cqcu_event *from, *to;
};

/* Layers that share their centroids on the host, not on the device. */
struct model {
	struct toy one;			/* of a single layer */
	struct cqk_model m;
	struct cqk_cuda_tables *t;
	cqcu_ptr mem;
	size_t layer_bytes;		/* of a page */
};

/* What is attended: @batch sequences of @context tokens, one query row each. */
struct step {
	uint32_t batch, context;
	bool prefix;			/* they share all but two pages */
};

/* One kind of call, made for each layer of a ring in turn. */
struct call {
	const struct model *m;
	struct cqk_block *blocks;	/* on the device */
	struct cqk_span *spans;
	uint32_t *row_pos;
	uint32_t n_blocks, n_spans, calls;
	struct cqk_cuda_limits limits;
	struct cqk_cuda_attn a;
	enum cqk_cuda_variant variant, few;	/* the latter is of items of few vectors */
	bool wide;				/* there are wide items */
	enum way way;
	struct base_call base;
	struct cqcu_exec *exec;
	cqcu_ptr mem;			/* plan, workspace, queries, results */
	double bytes;			/* read by one call at least */
};

struct times {
	double us[MAX_SAMPLES];
	uint32_t n;
};

static inline int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* A quantile of the samples; they are sorted. */
static inline double times_at(struct times *t, double q)
{
	qsort(t->us, t->n, sizeof(t->us[0]), by_value);
	return t->us[(uint32_t)(q * (t->n - 1) + 0.5)];
}

/* @n bytes that repeat the first @seed of them. */
static inline void repeat(struct rig *r, cqcu_ptr p, size_t seed, size_t n)
{
	size_t done = seed;

	for (; done < n; done *= 2)
		CU(r->g.cu->cuMemcpyDtoDAsync(p + done, p, MIN(done, n - done), r->g.stream));
	CU(r->g.cu->cuStreamSynchronize(r->g.stream));
}

/* A copy from pageable memory may return before it is done; the stream doesn't wait. */
static inline void copy_in(struct rig *r, cqcu_ptr to, const void *from, size_t bytes)
{
	CU(r->g.cu->cuMemcpyHtoD(to, from, bytes));
	CU(r->g.cu->cuCtxSynchronize());
}

/* Factors that make keys and values of variance 1 of random codes. */
static inline void fill_scales(struct rig *r, const uint8_t *codes, size_t n)
{
	float all[2 * CQ_MAX_HEADS];
	double sum = 0;
	size_t i;

	for (i = 0; i < n; i++)
		sum += base_e4m3(codes[i]) * base_e4m3(codes[i]);
	for (i = 0; i < ARRAY_SIZE(all); i++)
		all[i] = (float)sqrt((double)n / sum);
	r->scale = (double)all[0];
	CU(r->g.cu->cuMemAlloc(&r->scales, sizeof(all)));
	copy_in(r, r->scales, all, sizeof(all));
}

/* At first, and after codes were appended, of which some are NaN as numbers. */
static inline void fill_codes(struct rig *r)
{
	copy_in(r, r->codes, r->seed, r->seed_bytes);
	repeat(r, r->codes, r->seed_bytes, r->codes_bytes);
}

static inline void fill_memory(struct rig *r, size_t codes, size_t halves)
{
	size_t seed = MIN(SEED_BYTES, MIN(codes, halves)), i;
	uint8_t *x = toy_alloc(seed);

	r->seed = toy_alloc(seed);
	r->seed_bytes = seed;
	r->codes_bytes = codes;
	r->halves_bytes = halves;
	CU(r->g.cu->cuMemAlloc(&r->codes, codes));
	CU(r->g.cu->cuMemAlloc(&r->halves, halves));
	for (i = 0; i < seed; i++) {
		r->seed[i] = (uint8_t)(toy_u32() >> 9);
		r->seed[i] ^= (r->seed[i] & 0x7f) == 0x7f;	/* NaN */
	}
	fill_codes(r);
	fill_scales(r, r->seed, seed);
	toy_halves(x, seed / 2, 1.0f);
	copy_in(r, r->halves, x, seed);
	free(x);
	repeat(r, r->halves, seed, halves);
}

/* Bytes per second that a large copy reads and writes: the median of some. */
static inline void measure_copy(struct rig *r)
{
	size_t n = MIN(r->halves_bytes / 2, (size_t)2 << 30);
	struct times t = { .n = 9 };
	float ms = 0;
	uint32_t i;

	for (i = 0; i < t.n; i++) {
		CU(r->g.cu->cuEventRecord(r->from, r->g.stream));
		CU(r->g.cu->cuMemcpyDtoDAsync(r->halves + n, r->halves, n, r->g.stream));
		CU(r->g.cu->cuEventRecord(r->to, r->g.stream));
		CU(r->g.cu->cuEventSynchronize(r->to));
		CU(r->g.cu->cuEventElapsedTime(&ms, r->from, r->to));
		t.us[i] = fmax((double)ms * 1e3, 1e-3);
	}
	r->copy_bytes_s = 2 * (double)n / times_at(&t, 0.5) * 1e6;
}

/* @mib: of memory, 0: most of what is free. */
static inline void rig_open(struct rig *r, int device, size_t mib)
{
	size_t have = 0, all = 0;
	int value = 0, ret = gpu_open_on(&r->g, device);

	if (ret)
		FAIL("%s", r->g.err.text);
	CU(r->g.cu->cuDeviceGetName(r->name, sizeof(r->name), r->g.dev));
	r->emulated = strstr(r->name, "emulated") != NULL;
	CU(r->g.cu->cuDeviceGetAttribute(&value, CQCU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
					 r->g.dev));
	r->sms = (uint32_t)value;
	CU(r->g.cu->cuDeviceGetAttribute(&value, CQCU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, r->g.dev));
	r->l2 = (uint32_t)value;
	CU(r->g.cu->cuDeviceGetAttribute(&value, CQCU_DEVICE_ATTRIBUTE_CLOCK_RATE, r->g.dev));
	r->clock_hz = value * 1e3;
	CU(r->g.cu->cuDeviceGetAttribute(&value, CQCU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
					 r->g.dev));
	r->arch = (uint32_t)value * 10;
	CU(r->g.cu->cuDeviceGetAttribute(&value, CQCU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
					 r->g.dev));
	r->arch += (uint32_t)value;
	CU(r->g.cu->cuMemGetInfo(&have, &all));
	have = mib ? MIN(mib << 20, have) : have;
	/* a tenth for plans, tables and workspaces */
	fill_memory(r, have / 10 * 3 & ~(size_t)4095, have / 10 * 6 & ~(size_t)4095);
	base_open(&r->base, &r->g);
	CU(r->g.cu->cuEventCreate(&r->from, 0));
	CU(r->g.cu->cuEventCreate(&r->to, 0));
	measure_copy(r);
}

static inline void rig_close(struct rig *r)
{
	CU(r->g.cu->cuEventDestroy(r->from));
	CU(r->g.cu->cuEventDestroy(r->to));
	base_close(&r->base);
	free(r->seed);
	CU(r->g.cu->cuMemFree(r->scales));
	CU(r->g.cu->cuMemFree(r->codes));
	CU(r->g.cu->cuMemFree(r->halves));
	gpu_close(&r->g);
}

/* Tables of one layer for each of them, and those of RoPE behind. */
static inline void tables_copy(struct rig *r, struct model *m, const struct cqk_rope *rope)
{
	struct cqk_cuda_tables *one;
	uint32_t layers = m->m.geom.n_layers, l;
	size_t step;
	uint8_t *image;

	if (cqk_cuda_tables_new(&m->one.m, rope, &one, &r->g.err) ||
	    cqk_cuda_tables_new(&m->m, rope, &m->t, &r->g.err))
		FAIL("%s", r->g.err.text);
	step = one->turn.base ? one->turn.base - one->base : one->bytes;
	ASSERT(m->t->bytes == one->bytes + step * (layers - 1));
	image = toy_alloc(one->bytes);
	cqk_cuda_tables_fill(one, image);
	CU(r->g.cu->cuMemAlloc(&m->mem, m->t->bytes + 256));
	for (l = 0; l < layers && step; l++)
		CU(r->g.cu->cuMemcpyHtoD(m->mem + l * step, image, step));
	if (one->bytes > step)
		CU(r->g.cu->cuMemcpyHtoD(m->mem + layers * step, image + step,
					 one->bytes - step));
	cqk_cuda_tables_place(m->t, m->mem);
	cqk_cuda_tables_free(one);
	free(image);
}

/* Halves, if nothing is coded, or with @fp8 as many bytes. */
static inline void model_new(struct rig *r, struct model *m, const struct toy_opts *o,
			     uint32_t layers, uint32_t positions, bool fp8)
{
	static const struct cqk_rope none;
	struct toy_opts one = *o;
	uint32_t l;

	one.n_layers = 1;
	toy_init(&m->one, &one, positions);
	m->layer_bytes = m->one.m.payload;
	m->m = m->one.m;
	m->m.geom.n_layers = layers;
	m->m.payload *= layers;
	m->m.layers = toy_alloc(layers * sizeof(*m->m.layers));
	for (l = 0; l < layers; l++) {
		m->m.layers[l] = m->one.m.layers[0];
		m->m.layers[l].offset = l * m->layer_bytes;
	}
	tables_copy(r, m, o->keys == CQK_KEYS_PRE_ROPE ? &m->one.rope : &none);
	if (fp8) {	/* where layers are is halved by base_params() */
		m->layer_bytes /= 2;
		m->m.payload /= 2;
	}
}

static inline void model_free(struct rig *r, struct model *m)
{
	CU(r->g.cu->cuMemFree(m->mem));
	cqk_cuda_tables_free(m->t);
	free(m->m.layers);
	toy_free(&m->one);
}

/* Pages that a step reads. */
static inline uint32_t pages_of(const struct step *s)
{
	uint32_t each = s->context / 64;

	return s->prefix ? each - 2 + 2 * s->batch : each * s->batch;
}

/* Page @index of the memory at @base, which is page @page of @rows sequences. */
static inline void put_block(struct call *c, cqcu_ptr base, uint32_t index, uint32_t row,
			     uint32_t rows, uint32_t page)
{
	struct cqk_block *b = &c->blocks[c->n_blocks++];
	uint32_t i;

	*b = (struct cqk_block){
		.base = (const uint8_t *)(uintptr_t)(base + index * c->m->m.payload),
		.kind = CQK_BLOCK_CODES, .tokens = 64, .span_first = c->n_spans, .n_spans = rows,
	};
	for (i = 0; i < rows; i++)
		c->spans[c->n_spans++] = (struct cqk_span){ .mask = ~0ull, .row_first = row + i,
							    .n_rows = 1, .pos = page * 64 };
}

/* Of pages that are shared there is one, but who is no cascade names it for each sequence. */
static inline void put_blocks(struct call *c, const struct step *s, cqcu_ptr base)
{
	uint32_t each = s->context / 64, shared = s->prefix ? each - 2 : 0, i, p;
	bool alone = c->way == WAY_F16 || c->way == WAY_FP8;

	c->blocks = toy_alloc((size_t)each * s->batch * sizeof(*c->blocks));
	c->spans = toy_alloc((size_t)each * s->batch * sizeof(*c->spans));
	c->row_pos = toy_alloc(s->batch * sizeof(*c->row_pos));
	for (p = 0; p < shared && !alone; p++)
		put_block(c, base, p, 0, s->batch, p);
	for (i = 0; i < s->batch; i++) {
		for (p = alone ? 0 : shared; p < each; p++)
			put_block(c, base, p < shared ? p : p + i * (each - shared), i, 1, p);
		c->row_pos[i] = s->context - 1;
	}
}

/* What a baseline's blocks of threads have in common. */
struct crew {
	uint32_t slots;		/* that the device has at once, for a kv head */
	uint32_t vecs;		/* of a cascade's items; 0: no kernel of many is needed */
	uint32_t most;		/* vectors of an item */
};

static inline struct crew crew_of(const struct rig *r, const struct call *c, const struct step *s)
{
	const struct cqk_geom *g = &c->m->m.geom;
	uint32_t n = s->batch * (g->n_heads / g->n_kv_heads), at, shared;
	uint32_t times = c->way == WAY_FP8 ? 3 : 2;
	struct crew crew = { .most = c->base.groups ? CQKD_WGMMA_VECS :
					CQKD_WIDE_VECS(g->head_dim) };

	if (way_cascade(c->way) && n > CQKD_FEW_VECS) {
		struct base_call of = c->base;

		/* as cqk_cuda_plan() shares them out */
		of.vecs = crew.vecs = n > CQKD_VECS(g->head_dim) ? MIN(n, crew.most) : n;
		at = base_wide_of(&r->base, &of, g->head_dim);
		shared = at < BASE_WIDES ? base_wide_shared(c->base.type, at) : 1;
		times = MAX(MIN(r->base.shared / shared, 3u), 1u);
	}
	crew.slots = MAX(times * r->sms / g->n_kv_heads, 1u);
	return crew;
}

/*
 * Items that a plan shall aim at. Codes have what cq aims at; a baseline the cut of its pages
 * by which the slowest of the blocks of threads has the least to do, and two pages' time for
 * each item.
 */
static inline uint32_t want_of(const struct call *c, const struct step *s, struct crew crew)
{
	uint32_t each = s->context / 64, groups = s->batch, pages = each, k, best = 1;
	uint64_t least = UINT64_MAX, work = c->n_blocks;
	const struct cqk_geom *g = &c->m->m.geom;

	if (way_cascade(c->way)) {
		uint32_t n = s->batch * (g->n_heads / g->n_kv_heads);

		pages = each - 2;
		groups = (n + crew.most - 1) / crew.most;
		work += (uint64_t)pages * (groups - 1);
	}
	for (k = 1; k <= pages && k <= 2 * crew.slots; k++) {
		uint64_t rounds = ((uint64_t)groups * k + crew.slots - 1) / crew.slots;
		uint64_t cost = rounds * ((pages + k - 1) / k + 2);

		if (cost < least) {
			least = cost;
			best = (pages + k - 1) / k;
		}
	}
	return (uint32_t)((work + best - 1) / best);
}

/* Limits for the blocks of threads that a variant wants. */
static inline void call_limits(struct rig *r, struct call *c, const struct step *s,
			       uint32_t want)
{
	const struct cqk_geom *g = &c->m->m.geom;
	uint32_t gqa = g->n_heads / g->n_kv_heads;

	cqk_cuda_limits_init(&c->limits, r->g.k, c->m->t, s->batch, s->batch + 1, 2 * s->batch,
			     MAX(want, MAX(2 * r->sms / g->n_kv_heads, 1u)));
	if (c->base.groups) {
		/* of as many vectors at once as it takes */
		c->limits.wide_vecs = CQKD_WGMMA_VECS;
		c->limits.wide += s->batch * gqa / CQKD_WGMMA_VECS + want;
	}
	c->limits.few_only = gqa <= CQKD_FEW_VECS && (!s->prefix || c->way == WAY_F16);
}

static inline cqcu_ptr carve(cqcu_ptr *at, size_t n)
{
	cqcu_ptr p = *at;

	*at += ALIGN_UP(n, 256);
	return p;
}

static inline void call_plan(struct rig *r, struct call *c, const struct step *s, size_t queries,
			     uint32_t want)
{
	const struct cqk_geom *g = &c->m->m.geom;
	uint32_t gqa = g->n_heads / g->n_kv_heads;
	struct cqk_cuda_step step = {
		.blocks = c->blocks, .n_blocks = c->n_blocks, .spans = c->spans,
		.n_spans = c->n_spans, .row_pos = c->row_pos, .n_rows = s->batch, .gqa = gqa,
		.head_dim = g->head_dim, .want = want,
	};
	size_t size = sizeof(struct cqkd_plan) + c->n_blocks * sizeof(struct cqkd_block) +
		      c->n_spans * sizeof(struct cqkd_span) +
		      (c->limits.items + c->limits.wide) * sizeof(struct cqkd_item) +
		      ((size_t)c->limits.slots + 8 * s->batch) * 8 + 4096, used;
	uint64_t work = cqk_cuda_workspace(c->m->t, &c->limits, g->n_kv_heads);
	void *plan = toy_alloc(size);
	cqcu_ptr at;

	/* the variant that shares centroids wants whole multiprocessors, the other one halves */
	c->variant = c->few = cqk_cuda_variant(r->g.k, c->m->t, &c->a);
	if (c->way == WAY_CODES)
		step.want = MAX((c->variant == CQK_CUDA_BLOCK ? 2 : 1) * r->sms / g->n_kv_heads,
				1u);
	if (cqk_cuda_plan(&step, &c->limits, plan, size, &used, &r->g.err))
		FAIL("%s", r->g.err.text);
	if (((struct cqkd_plan *)plan)->vecs <= CQKD_FEW_VECS)
		c->limits.few_only = 1;
	/* a call has the name of what the many are computed by, if it is another one */
	c->wide = ((struct cqkd_plan *)plan)->n_wide;
	if (c->way == WAY_CODES && c->wide) {
		enum cqk_cuda_variant wide = cqk_cuda_variant_wide(r->g.k, c->m->t, &c->a);

		if (wide != CQK_CUDA_BLOCK)
			c->variant = wide;
	}
	CU(r->g.cu->cuMemAlloc(&c->mem, used + work + 2 * queries + 4096));
	at = c->mem;
	c->a.workspace = carve(&at, work);
	c->a.workspace_bytes = work;
	c->a.plan = carve(&at, used);
	c->a.q.data = (void *)(uintptr_t)carve(&at, queries);
	c->a.o.data = (void *)(uintptr_t)carve(&at, queries);
	copy_in(r, c->a.plan, plan, used);
	/* on the stream, which does not wait for what others do */
	CU(r->g.cu->cuMemcpyDtoDAsync((uintptr_t)c->a.q.data, r->halves, queries, r->g.stream));
	CU(r->g.cu->cuMemsetD8Async((uintptr_t)c->a.o.data, 0xff, queries, r->g.stream));
	free(plan);
}

/*
 * A step over pages that begin at @base, ready for call_layer(). False: no kernel of that way
 * computes it here.
 */
static inline bool call_new(struct rig *r, struct call *c, const struct model *m,
			    const struct step *s, cqcu_ptr base, enum way way)
{
	const struct cqk_geom *g = &m->m.geom;
	struct cq_view view = { .dtype = CQ_F16, .stride_head = g->head_dim,
				.stride_token = (int64_t)g->n_heads * g->head_dim };
	struct crew crew;
	uint32_t want;

	*c = (struct call){ .m = m, .way = way,
			    .base.type = way_fp8(way) ? BASE_FP8 : BASE_F16,
			    .base.groups = way == WAY_F16_GROUPS };
	crew = crew_of(r, c, s);
	c->base.vecs = crew.vecs;
	if (way != WAY_CODES && way != WAY_F16 &&
	    (!r->base.few[c->base.type][g->head_dim > 64] ||
	     g->n_heads / g->n_kv_heads > CQKD_FEW_VECS ||
	     (crew.vecs && base_wide_of(&r->base, &c->base, g->head_dim) == BASE_WIDES)))
		return false;
	put_blocks(c, s, base);
	want = want_of(c, s, crew);
	call_limits(r, c, s, way == WAY_CODES ? 0 : want);
	c->base.blocks[0] = c->base.blocks[1] = c->limits.items + c->limits.wide;
	c->a = (struct cqk_cuda_attn){
		.head_end = g->n_kv_heads, .limits = &c->limits, .q = view, .o = view,
		.scale = 1.0f / sqrtf((float)g->head_dim),
		.flags = g->keys == CQK_KEYS_PRE_ROPE ? 0 : CQ_ATTN_Q_ROTATED,
	};
	c->bytes = (double)pages_of(s) * (double)m->layer_bytes;
	call_plan(r, c, s, (size_t)s->batch * g->n_heads * g->head_dim * 2, want);
	return true;
}

static inline void call_layer(struct rig *r, struct call *c, uint32_t layer)
{
	c->a.layer = layer;
	if (c->way != WAY_CODES && c->way != WAY_F16) {
		base_params(&c->base, c->m->t, &c->a, r->scales);
		base_launch(&r->base, &c->base, r->g.stream);
	} else if (cqk_cuda_attention(r->g.k, c->m->t, &c->a, r->g.stream, &r->g.err)) {
		FAIL("%s", r->g.err.text);
	}
}

/* What a call is by name: codes by their variant, fp16 of ours likewise. */
static inline const char *call_name(const struct call *c)
{
	static const char *const names[N_WAYS] = {
		[WAY_F16_CASCADE] = "f16-cascade", [WAY_F16_GROUPS] = "f16-wgmma-cascade",
		[WAY_FP8] = "fp8",
		[WAY_FP8_CASCADE] = "fp8-cascade",
	};

	return names[c->way] ? names[c->way] : cqk_cuda_variant_name(c->variant);
}

static inline void graph_begin(struct rig *r)
{
	CU(r->g.cu->cuStreamSynchronize(r->g.stream));
	CU(r->g.cu->cuStreamBeginCapture(r->g.stream, CQCU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
}

static inline struct cqcu_exec *graph_end(struct rig *r)
{
	struct cqcu_graph *graph;
	struct cqcu_exec *exec;

	CU(r->g.cu->cuStreamEndCapture(r->g.stream, &graph));
	CU(r->g.cu->cuGraphInstantiateWithFlags(&exec, graph, 0));
	CU(r->g.cu->cuGraphDestroy(graph));
	return exec;
}

/* A graph that goes once through the ring of layers, or a few times. */
static inline void call_graph(struct rig *r, struct call *c)
{
	uint32_t layers = c->m->m.geom.n_layers, i;

	c->calls = c->bytes < 1e9 && !r->emulated ? layers * MAX(8 / layers, 1u) : layers;
	graph_begin(r);
	for (i = 0; i < c->calls; i++)
		call_layer(r, c, i % layers);
	c->exec = graph_end(r);
}

/* Microseconds of one of @calls that a graph has. */
static inline double graph_us(struct rig *r, struct cqcu_exec *exec, uint32_t calls)
{
	float ms = 0;

	CU(r->g.cu->cuEventRecord(r->from, r->g.stream));
	CU(r->g.cu->cuGraphLaunch(exec, r->g.stream));
	CU(r->g.cu->cuEventRecord(r->to, r->g.stream));
	CU(r->g.cu->cuEventSynchronize(r->to));
	CU(r->g.cu->cuEventElapsedTime(&ms, r->from, r->to));
	return (double)ms * 1e3 / calls;
}

static inline void call_free(struct rig *r, struct call *c)
{
	if (c->exec)
		CU(r->g.cu->cuGraphExecDestroy(c->exec));
	CU(r->g.cu->cuMemFree(c->mem));
	free(c->blocks);
	free(c->spans);
	free(c->row_pos);
}

/* Distance of a call's result for the first row and head from double precision. */
static inline double call_error(struct rig *r, struct call *c, uint32_t layer)
{
	const struct model *m = c->m;
	uint32_t d = m->m.geom.head_dim, i;
	struct cqk_attn a = {
		.model = &m->one.m, .rope = &m->one.rope, .spans = c->spans,
		.row_pos = c->row_pos, .n_rows = 1,
		.scale = c->a.scale, .flags = c->a.flags, .q = c->a.q,
		.head_end = m->m.geom.n_kv_heads,
	};
	struct cqk_block *blocks = toy_alloc(c->n_blocks * sizeof(*blocks));
	uint8_t *pages, *page = toy_alloc(m->layer_bytes);
	size_t bytes = m->one.m.payload;	/* twice what fp8 has */
	uint16_t q[256], o[256];
	double ref[256], err = 0, norm = 0;

	CU(r->g.cu->cuMemsetD8Async((uintptr_t)c->a.o.data, 0xff, d * 2, r->g.stream));
	call_layer(r, c, layer);
	while (a.n_blocks < c->n_blocks &&
	       c->spans[c->blocks[a.n_blocks].span_first].row_first == 0)
		a.n_blocks++;
	pages = toy_alloc(a.n_blocks * bytes);
	for (i = 0; i < a.n_blocks; i++) {
		blocks[i] = c->blocks[i];
		blocks[i].base = pages + i * bytes;
		gpu_get(&r->g, page,
			(uintptr_t)c->blocks[i].base + layer * m->layer_bytes, m->layer_bytes);
		if (way_fp8(c->way))
			base_e4m3_halves(page, m->layer_bytes, pages + i * bytes);
		else
			memcpy(pages + i * bytes, page, bytes);
	}
	a.blocks = blocks;
	if (way_fp8(c->way))
		a.scale *= (float)r->scale;
	gpu_get(&r->g, q, (uintptr_t)c->a.q.data, d * 2);
	gpu_get(&r->g, o, (uintptr_t)c->a.o.data, d * 2);
	a.q.data = q;
	toy_reference(&a, 0, 0, ref);
	for (i = 0; i < d; i++) {
		double e;

		ref[i] *= way_fp8(c->way) ? r->scale : 1;
		e = (double)cqk_f16_to_f32(o[i]) - ref[i];
		err += e * e;
		norm += ref[i] * ref[i];
	}
	free(blocks);
	free(pages);
	free(page);
	return sqrt(err / norm);
}

#endif /* BENCH_RIG_H */
