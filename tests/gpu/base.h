/* SPDX-License-Identifier: MIT */
/*
 * What attention over codes is compared with: attention over pages of halves and of fp8, of
 * each sequence by itself or as a cascade, by kernels that only gpu-bench and their own test
 * have. Plans and the last step are those of attention over codes. Include it after gpu.h.
 */
#ifndef GPU_BASE_H
#define GPU_BASE_H

#include "kernels/cuda/images.h"
#include "tests/gpu/base_params.h"

extern const struct cqk_cuda_image cqb_cuda_images[];
extern const uint32_t cqb_cuda_num_images;

enum base_type {
	BASE_F16, BASE_FP8,
	BASE_FP8_BITS,	/* fp8 as older GPUs decode it; on the emulation alone */
	BASE_TYPES
};

#define BASE_MODULES	8
#define BASE_WIDES	6	/* kernels of many vectors, of each type */

/* @groups: by products of warpgroups, in fp16 alone. */
static const struct {
	uint32_t d, vecs;
	bool groups;
} base_wides[BASE_WIDES] = {
	{ 64, 64, false }, { 128, 32, false }, { 128, 64, false }, { 128, 128, false },
	{ 128, 256, false }, { 128, CQKD_WGMMA_VECS, true },
};

/**
 * struct base - the kernels, on one device
 * @few:    of at most eight vectors, with head_dim 64 and 128
 * @wide:   of many, as base_wides; NULL: not on this device
 * @shared: bytes of shared memory that a block of threads can have
 */
struct base {
	const struct cqk_cuda *cu;
	struct cqcu_module *modules[BASE_MODULES];
	uint32_t n_modules;
	struct cqcu_func *few[BASE_TYPES][2], *wide[BASE_TYPES][BASE_WIDES], *merge;
	uint32_t shared;
};

/**
 * struct base_call - one call
 * @type:   of what is stored
 * @vecs:   a kernel for items of so many vectors, 0: there are only items of few
 * @groups: by products of warpgroups
 * @blocks: of threads, for a kv head: of items of few vectors, and of others
 * @p:      what kernels are told
 */
struct base_call {
	enum base_type type;
	uint32_t vecs;
	bool groups;
	uint32_t blocks[2];
	struct cqbd_attn p;
};

/* What a byte of e4m3 is, unless it is NaN. */
static inline double base_e4m3(uint8_t byte)
{
	int exponent = byte >> 3 & 15;
	double x = exponent ? ldexp(8 + (byte & 7), exponent - 10) : ldexp(byte & 7, -9);

	return byte & 0x80 ? -x : x;
}

/* @n of them as halves, which have each. */
static inline void base_e4m3_halves(const uint8_t *from, size_t n, void *to)
{
	uint8_t *out = to;
	size_t i;

	for (i = 0; i < n; i++) {
		uint16_t h = cqk_f32_to_f16((float)base_e4m3(from[i]));

		memcpy(out + 2 * i, &h, sizeof(h));
	}
}

static inline uint32_t base_bytes(enum base_type type)
{
	return type == BASE_F16 ? 2 : 1;
}

static inline uint32_t base_few_shared(enum base_type type, uint32_t d)
{
	return type == BASE_F16 ? CQKD_F16_SHARED(d) : CQKD_RING_SHARED(d, 1, CQBD_FP8_STAGES);
}

static inline uint32_t base_wide_shared(enum base_type type, uint32_t i)
{
	if (base_wides[i].groups)
		return CQBD_WGMMA_SHARED;
	return CQBD_WIDE_SHARED(base_wides[i].d, base_bytes(type), base_wides[i].vecs);
}

static inline uint32_t base_wide_threads(uint32_t i)
{
	return base_wides[i].groups ? CQKD_WGMMA_THREADS : CQBD_WARPS(base_wides[i].vecs) * 32;
}

/* A kernel by name, with the shared memory it wants; NULL if there is none, or too little. */
static inline struct cqcu_func *base_find(struct base *b, uint32_t shared, const char *name)
{
	struct cqcu_func *fn = NULL;
	uint32_t i;

	if (shared > b->shared)
		return NULL;
	for (i = 0; i < b->n_modules && !fn; i++)
		if (b->cu->cuModuleGetFunction(&fn, b->modules[i], name))
			fn = NULL;
	if (fn && shared)
		CU(b->cu->cuFuncSetAttribute(fn,
				CQCU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)shared));
	return fn;
}

static inline void base_load(struct base *b, const struct cqk_cuda_image *image, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		const char *name = image[i].name;

		/* of cq's own those that are launched here, too */
		if (image == cqk_cuda_images && strcmp(name, "merge") &&
		    strcmp(name, "attn_f16") && strcmp(name, "none"))
			continue;
		ASSERT(b->n_modules < BASE_MODULES);
		CU(b->cu->cuModuleLoadData(&b->modules[b->n_modules++], image[i].data));
	}
}

static inline void base_open(struct base *b, const struct gpu *g)
{
	static const char *const few[BASE_TYPES] = { "cqk_attn_f16", "cqb_fp8", "cqb_fp8_bits" };
	static const char *const wide[BASE_TYPES] = { "f16", "fp8", "none" };
	int shared = 0, type, i;
	char name[64];

	memset(b, 0, sizeof(*b));
	b->cu = g->cu;
	CU(b->cu->cuDeviceGetAttribute(&shared,
			CQCU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, g->dev));
	b->shared = (uint32_t)shared;
	base_load(b, cqk_cuda_images, cqk_cuda_num_images);
	base_load(b, cqb_cuda_images, cqb_cuda_num_images);
	b->merge = base_find(b, 0, "cqk_merge");
	ASSERT(b->merge);
	for (type = 0; type < BASE_TYPES; type++) {
		for (i = 0; i < 2; i++) {
			snprintf(name, sizeof(name), "%s_d%d", few[type], 64 << i);
			b->few[type][i] = base_find(b, base_few_shared(type, 64u << i), name);
		}
		for (i = 0; i < BASE_WIDES; i++) {
			snprintf(name, sizeof(name), "cqb_%s_%s_d%u_v%u",
				 base_wides[i].groups ? "wgmma" : "wide", wide[type],
				 base_wides[i].d, base_wides[i].vecs);
			b->wide[type][i] = base_find(b, base_wide_shared(type, i), name);
		}
	}
}

static inline void base_close(struct base *b)
{
	while (b->n_modules)
		CU(b->cu->cuModuleUnload(b->modules[--b->n_modules]));
}

/* Which kernel takes a call's items; BASE_WIDES: none. */
static inline uint32_t base_wide_of(const struct base *b, const struct base_call *c, uint32_t d)
{
	uint32_t i;

	for (i = 0; i < BASE_WIDES; i++)
		if (base_wides[i].d == d && base_wides[i].vecs >= c->vecs &&
		    base_wides[i].groups == c->groups && b->wide[c->type][i])
			break;
	return i;
}

static inline struct cqkd_view base_view(const struct cq_view *v)
{
	return (struct cqkd_view){ .data = (uint64_t)(uintptr_t)v->data, .dtype = v->dtype,
				   .stride_token = v->stride_token, .stride_head = v->stride_head };
}

/*
 * The parameters of a call of attention over halves, which need no rotation, or the same over
 * pages of half the bytes. @scales: of keys, [kv_head] f32, and of values behind them; not
 * read of halves.
 */
static inline void base_params(struct base_call *c, const struct cqk_cuda_tables *t,
			       const struct cqk_cuda_attn *a, uint64_t scales)
{
	const struct cqk_geom *g = &t->model->geom;
	uint32_t heads = a->head_end - a->head_begin, times = 2 / base_bytes(c->type);
	const struct cqkd_layer *at = &t->layers[a->layer];

	c->p = (struct cqbd_attn){
		.a = {
			.q = base_view(&a->q), .o = base_view(&a->o), .plan = a->plan,
			.at = { .offset = at->offset / times, .k_bytes = at->k_bytes / times,
				.v_bytes = at->v_bytes / times },
			.rope = { .factor = 1 },
			.part_ml = a->workspace,
			.part_o = a->workspace +
				  ALIGN_UP((uint64_t)heads * a->limits->slots * 8, 256),
			.lse = a->lse, .lse_stride = a->lse_stride, .layer = a->layer,
			.n_kv_heads = g->n_kv_heads, .head_begin = a->head_begin,
			.n_heads = heads, .gqa = g->n_heads / g->n_kv_heads, .d = g->head_dim,
			.max_items = a->limits->items, .max_rows = a->limits->rows,
			.max_slots = a->limits->slots, .scale = a->scale,
			.soft_cap = a->soft_cap, .window = a->sliding_window,
			.few = CQKD_FEW_VECS,
		},
		.k_scale = scales, .v_scale = scales + g->n_kv_heads * sizeof(float),
	};
}

static inline void base_launch(const struct base *b, const struct base_call *c,
			       struct cqcu_stream *stream)
{
	const struct cqkd_attn *a = &c->p.a;
	void *list[] = { (void *)(uintptr_t)&c->p };
	uint32_t d = a->d, i = c->vecs ? base_wide_of(b, c, d) : 0;

	if (c->vecs)
		CU(b->cu->cuLaunchKernel(b->wide[c->type][i], c->blocks[1], a->n_heads, 1,
					 base_wide_threads(i), 1, 1,
					 base_wide_shared(c->type, i), stream, list, NULL));
	CU(b->cu->cuLaunchKernel(b->few[c->type][d > 64], c->blocks[0], a->n_heads, 1,
				 CQKD_F16_WARPS * 32, 1, 1, base_few_shared(c->type, d), stream,
				 list, NULL));
	CU(b->cu->cuLaunchKernel(b->merge, a->max_rows, (a->n_heads * a->gqa + 3) / 4, 1,
				 CQKD_THREADS, 1, 1, 0, stream, list, NULL));
}

#endif /* GPU_BASE_H */
