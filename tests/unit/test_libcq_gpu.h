/* SPDX-License-Identifier: MIT */
/* Workers on the emulated GPU, beside those of test_libcq.h. */
#ifndef TEST_LIBCQ_GPU_H
#define TEST_LIBCQ_GPU_H

#include "kernels/cuda/driver.h"
#include "tests/unit/test_libcq.h"

#define GPU_UUID "GPU-c9e00000-6661-6b65-8000-646576696300"
#define GPU_CONF "pool_bytes = 64M\n[gpu g0]\nuuid = " GPU_UUID "\npool_bytes = 64M\n"
#define GPU_SHAPE { .layers = 2, .heads = 4, .kv_heads = 2, .dim = 64, .sinks = 4, .window = 64, \
		    .max_position = 8192, .keys = CQK_KEYS_PRE_ROPE, .k = "4c8b", .v = "4c8b" }
#define GPU_ROWS ((size_t)4 << 20)	/* bytes of each buffer */

#define CU(call) do {								\
	int _res = gpu.cu->call;						\
	char _text[CQK_CUDA_TEXT];						\
	if (_res)								\
		FAIL("%s: %s", #call, cqk_cuda_text(_res, _text));		\
} while (0)

/* This process's own use of device @dev: rows to and from it. */
static struct {
	const struct cqk_cuda *cu;
	int dev;
	struct cqcu_ctx *ctx;
	struct cqcu_stream *stream;
	cqcu_ptr k, v, q, o, lse;
} gpu;

/* The driver that a cqd started from now on finds. */
static inline void gpu_env(void)
{
	const char *o = getenv("O");
	char path[512];

	snprintf(path, sizeof(path), "%s/tests/emu", o ? o : "build");
	ASSERT_SYS(setenv("LD_LIBRARY_PATH", path, 1));
	snprintf(path, sizeof(path), "libcq%d", getpid());
	ASSERT_SYS(setenv("CQ_EMU_STATE", path, 0));
}

static inline void gpu_start(void)
{
	struct cq_err err;

	if (gpu.cu)
		return;
	if (cqk_cuda_get(&gpu.cu, &err))
		FAIL("%s", err.text);
	CU(cuDevicePrimaryCtxRetain(&gpu.ctx, gpu.dev));
	CU(cuCtxSetCurrent(gpu.ctx));
	CU(cuStreamCreate(&gpu.stream, CQCU_STREAM_NON_BLOCKING));
	CU(cuMemAlloc(&gpu.k, GPU_ROWS));
	CU(cuMemAlloc(&gpu.v, GPU_ROWS));
	CU(cuMemAlloc(&gpu.q, GPU_ROWS));
	CU(cuMemAlloc(&gpu.o, GPU_ROWS));
	CU(cuMemAlloc(&gpu.lse, GPU_ROWS));
}

static inline int worker_gpu_try(struct worker *w, const struct shape *shape, const char *sock,
				 uint32_t flags, uint32_t blocks)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST, .gpu = GPU_UUID,
				   .arena_bytes = blocks * rig_block(shape) };

	gpu_start();
	o.stream = gpu.stream;
	worker_connect(w, shape, sock, flags);
	return cq_model_open(w->ctx, "toy", &o, &w->model);
}

static inline void worker_gpu_open(struct worker *w, const struct shape *shape,
				   const char *sock, uint32_t flags, uint32_t blocks)
{
	CQ_OK(worker_gpu_try(w, shape, sock, flags, blocks));
}

static inline struct cq_view gpu_view(const struct worker *w, cqcu_ptr p, uint32_t heads)
{
	struct cq_view v = rig_view(w, NULL, heads);

	v.data = (void *)(uintptr_t)p;
	return v;
}

/* @n floats to the device; those before them there have been read. */
static inline void gpu_put(cqcu_ptr to, const float *x, size_t n)
{
	ASSERT_LE(n * 4, GPU_ROWS);
	CU(cuStreamSynchronize(gpu.stream));
	CU(cuMemcpyHtoD(to, x, n * 4));
}

static inline void gpu_get(float *x, cqcu_ptr from, size_t n)
{
	CU(cuStreamSynchronize(gpu.stream));
	CU(cuMemcpyDtoH(x, from, n * 4));
}

static inline int gpu_append_layer(const struct worker *w, struct cq_seq *seq,
				   const uint32_t *ids, size_t n, uint32_t layer)
{
	size_t from = cq_seq_length(seq), width = (size_t)w->m.kv_heads * w->m.dim;
	float *k = rig_rows(w, ids, from, n, 0, layer);
	float *v = rig_rows(w, ids, from, n, 1, layer);
	struct cq_view kv = gpu_view(w, gpu.k, w->m.kv_heads);
	struct cq_view vv = gpu_view(w, gpu.v, w->m.kv_heads);

	gpu_put(gpu.k, k, n * width);
	gpu_put(gpu.v, v, n * width);
	free(k);
	free(v);
	return cq_append(seq, layer, &kv, &vv, n, NULL);
}

static inline int gpu_try_grow(const struct worker *w, struct cq_seq *seq, const uint32_t *ids,
			       size_t to, size_t step)
{
	return rig_try_grow(w, seq, ids, to, step, gpu_append_layer);
}

static inline void gpu_grow(const struct worker *w, struct cq_seq *seq, const uint32_t *ids,
			    size_t to)
{
	CQ_OK(gpu_try_grow(w, seq, ids, to, 100));
}

/*
 * @rows rows behind the committed tokens of @seq, last layer: [rows][heads][dim] in
 * @out, [rows][heads] in @lse. @on_gpu says where @seq is.
 */
static inline int attend(const struct worker *w, struct cq_batch *b, struct cq_seq *seq,
			 const uint32_t *ids, uint32_t rows, bool on_gpu, float *out, float *lse)
{
	size_t n = (size_t)rows * w->m.heads * w->m.dim, i, len = cq_seq_length(seq);
	struct cq_attn_opts o = { .sz = sizeof(o), .device = on_gpu ? gpu.dev : CQ_DEVICE_HOST };
	struct cq_view qv, ov;
	float *q = malloc(n * 4);
	uint32_t l = w->m.layers - 1;
	int ret;

	ASSERT(q);
	for (i = 0; i < n; i++)
		q[i] = rig_value(i ^ 77ull << 40);
	if (on_gpu)
		gpu_put(gpu.q, q, n);
	qv = on_gpu ? gpu_view(w, gpu.q, w->m.heads) : rig_view(w, q, w->m.heads);
	ov = on_gpu ? gpu_view(w, gpu.o, w->m.heads) : rig_view(w, out, w->m.heads);
	o.lse = on_gpu ? (float *)(uintptr_t)gpu.lse : lse;
	ret = cq_step(b, &seq, &rows, 1);
	if (!ret)
		ret = on_gpu ? gpu_append_layer(w, seq, ids, rows, l) :
			worker_append_layer(w, seq, ids, rows, l);
	if (!ret)
		ret = cq_attention(b, l, &qv, &ov, &o);
	if (on_gpu && !ret) {
		gpu_get(out, gpu.o, n);
		gpu_get(lse, gpu.lse, (size_t)rows * w->m.heads);
	}
	free(q);
	CQ_OK(cq_truncate(seq, len));
	return ret;
}

#endif /* TEST_LIBCQ_GPU_H */
