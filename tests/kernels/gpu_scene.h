/* SPDX-License-Identifier: MIT */
/* A scene (scene.h) on the GPU of gpu.h, and its check. */
#ifndef TESTS_GPU_SCENE_H
#define TESTS_GPU_SCENE_H

#include "tests/kernels/gpu.h"
#include "tests/kernels/scene.h"

#define WANT 5		/* items: enough to split every group of a scene */

/* A small model of which a scene is made, with codes of @c channels. */
static inline struct scene_opts plain(uint32_t d, uint32_t c)
{
	return (struct scene_opts){
		.toy = { .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .d = d, .rope_dim = d,
			 .ck = c, .cv = c },
		.shared = 2, .tail = 21, .layer = 1,
	};
}

static inline size_t block_bytes(const struct scene *s, const struct cqk_block *b)
{
	const struct cqk_geom *g = &s->toy.m.geom;

	if (b->kind == CQK_BLOCK_F16)
		return cq_f16_block_bytes(g->n_layers, g->n_kv_heads, g->head_dim, b->tokens);
	return s->toy.m.payload;
}

static inline void put_blocks(struct gpu *g, struct scene *s, struct cqk_block *out)
{
	uint32_t i;

	for (i = 0; i < s->a.n_blocks; i++) {
		out[i] = s->a.blocks[i];
		out[i].base = (const uint8_t *)(uintptr_t)
			gpu_put(g, s->a.blocks[i].base, block_bytes(s, &out[i]));
	}
}

/* A scene on the device. */
struct run {
	struct cqk_cuda_tables *t;
	struct cqk_cuda_limits limits;
	struct cqk_cuda_attn a;
	struct cqk_block blocks[MAX_BLOCKS];
	cqcu_ptr plan, q, o, lse;
	size_t lse_bytes;
};

#define PLAN_BYTES ((size_t)1 << 20)

/* A plan of the scene as it is now, copied over the one before. */
static inline void put_plan(struct gpu *g, struct scene *s, struct run *r)
{
	struct cqk_cuda_step step = {
		.blocks = r->blocks, .n_blocks = s->a.n_blocks, .spans = s->spans,
		.n_spans = s->n_spans, .row_pos = s->row_pos, .n_rows = s->a.n_rows,
		.gqa = s->o.toy.n_heads / s->o.toy.n_kv_heads, .head_dim = s->o.toy.d,
		.want = s->o.want ? s->o.want : WANT,
	};
	void *plan = toy_alloc(PLAN_BYTES);
	size_t used;

	if (cqk_cuda_plan(&step, &r->limits, plan, PLAN_BYTES, &used, &g->err))
		FAIL("%s", g->err.text);
	CU(g->cu->cuStreamSynchronize(g->stream));
	CU(g->cu->cuMemcpyHtoD(r->plan, plan, used));
	free(plan);
}

static inline void run_new(struct gpu *g, struct scene *s, struct run *r)
{
	static const struct cqk_rope none;
	uint32_t reads = 0, i;

	r->t = gpu_tables(g, &s->toy.m, s->a.rope ? s->a.rope : &none);
	put_blocks(g, s, r->blocks);
	for (i = 0; i < s->n_spans; i++)
		reads += s->spans[i].n_rows;
	cqk_cuda_limits_init(&r->limits, g->k, r->t, s->a.n_rows, s->a.n_blocks, reads, WANT);
	r->plan = gpu_alloc(g, PLAN_BYTES, 0xff);
	r->q = gpu_put(g, s->q, s->out_bytes);
	r->o = gpu_alloc(g, s->out_bytes, 0xff);
	r->lse_bytes = s->a.n_rows * s->a.lse_stride * sizeof(float);
	r->lse = gpu_alloc(g, r->lse_bytes, 0xff);
	r->a = (struct cqk_cuda_attn){
		.layer = s->a.layer, .head_begin = s->a.head_begin, .head_end = s->a.head_end,
		.plan = r->plan, .limits = &r->limits,
		.q = gpu_view(&s->a.q, s->q, r->q), .o = gpu_view(&s->a.o, s->out, r->o),
		.lse = r->lse, .lse_stride = s->a.lse_stride,
		.scale = s->a.scale, .soft_cap = s->a.soft_cap,
		.sliding_window = s->a.sliding_window, .flags = s->a.flags,
	};
	r->a.workspace_bytes = cqk_cuda_workspace(r->t, &r->limits,
						  r->a.head_end - r->a.head_begin);
	r->a.workspace = gpu_alloc(g, r->a.workspace_bytes, 0xff);
	put_plan(g, s, r);
}

static inline void run_launch(struct gpu *g, const struct run *r)
{
	if (cqk_cuda_attention(g->k, r->t, &r->a, g->stream, &g->err))
		FAIL("%s", g->err.text);
}

static inline void run_get(struct gpu *g, struct scene *s, const struct run *r)
{
	gpu_get(g, s->out, r->o, s->out_bytes);
	gpu_get(g, s->lse, r->lse, r->lse_bytes);
}

static inline void run_free(struct gpu *g, struct run *r)
{
	cqk_cuda_tables_free(r->t);
	gpu_reset(g);
}

static inline void scene_gpu(struct gpu *g, struct scene *s)
{
	struct run r;

	run_new(g, s, &r);
	run_launch(g, &r);
	run_get(g, s, &r);
	run_free(g, &r);
}

static inline void check_error(struct scene *s)
{
	double e = scene_error(s);

	if (getenv("SHOW"))
		printf("# %.2e\n", e);
	if (!(e <= 2e-3))
		FAIL("d %u c %u/%u i8 %d keys %u rows %u heads %u/%u: error %.3e", s->o.toy.d,
		     s->o.toy.ck, s->o.toy.cv, s->o.toy.i8, s->o.toy.keys, s->o.rows,
		     s->o.toy.n_heads, s->o.toy.n_kv_heads, e);
}

static inline void check_scene(struct gpu *g, struct scene *s)
{
	scene_gpu(g, s);
	check_error(s);
}

static inline void check(struct gpu *g, const struct scene_opts *o)
{
	struct scene *s = scene_new(o);

	check_scene(g, s);
	scene_free(s);
}

#endif /* TESTS_GPU_SCENE_H */
