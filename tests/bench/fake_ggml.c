// SPDX-License-Identifier: MIT
/*
 * As much of ggml as ggml_peer.py calls, all types floats: for tests/bench/peers.sh,
 * which builds it as an installed library, whole and (LACKING) without a function.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct params {
	size_t mem_size;
	void *mem_buffer;
	bool no_alloc;
};

struct tensor {
	int64_t ne[3];
	float *data;
	const struct tensor *q, *k, *v;
	float scale;
};

/* An arena as ggml's: who asks for too little is told so. */
struct arena {
	size_t size, used;
};

#define API __attribute__((visibility("default")))

static void *arena_take(struct arena *a, size_t n)
{
	void *at = (char *)a + a->used;

	n = (n + 63) / 64 * 64;
	if (a->used + n > a->size)
		abort();
	a->used += n;
	return at;
}

API void *ggml_init(struct params p)
{
	size_t size = p.mem_size / 64 * 64;
	struct arena *a = p.mem_buffer || p.no_alloc ? NULL : aligned_alloc(64, size);

	if (a)
		*a = (struct arena){ size, 64 };
	return a;
}

API void ggml_free(void *ctx)
{
	free(ctx);
}

API void *ggml_new_tensor_3d(void *ctx, int type, int64_t a, int64_t b, int64_t c)
{
	struct tensor *t = arena_take(ctx, sizeof(*t));

	*t = (struct tensor){ .ne = { a, b, c } };
	t->data = arena_take(ctx, (size_t)(a * b * c) * sizeof(float));
	return t;
}

API void *ggml_get_data(struct tensor *t)
{
	return t->data;
}

API size_t ggml_nbytes(struct tensor *t)
{
	return (size_t)(t->ne[0] * t->ne[1] * t->ne[2]) * sizeof(float);
}

API size_t ggml_row_size(int type, int64_t n)
{
	return (size_t)n * sizeof(float);
}

API size_t ggml_quantize_chunk(int type, const float *from, float *to, int64_t start,
			       int64_t rows, int64_t n, const float *weights)
{
	memcpy(to + start, from + start, (size_t)(rows * n) * sizeof(*to));
	return (size_t)(rows * n) * sizeof(*to);
}

API void *ggml_flash_attn_ext(void *ctx, struct tensor *q, struct tensor *k, struct tensor *v,
			      void *mask, float scale, float bias, float cap)
{
	struct tensor *t = ggml_new_tensor_3d(ctx, 0, q->ne[0], q->ne[2], q->ne[1]);

	t->q = q;
	t->k = k;
	t->v = v;
	t->scale = mask || bias != 0 || cap != 0 ? NAN : scale;
	return t;
}

API void *ggml_new_graph(void *ctx)
{
	return arena_take(ctx, sizeof(void *));
}

API void ggml_build_forward_expand(struct tensor **graph, struct tensor *t)
{
	*graph = t;
}

#ifndef LACKING
API void *ggml_backend_cpu_init(void)
{
	return calloc(1, sizeof(int));
}
#endif

API void ggml_backend_cpu_set_n_threads(int *backend, int n)
{
	*backend = n;
}

API void ggml_backend_free(void *backend)
{
	free(backend);
}

static void one_head(const struct tensor *t, int64_t head)
{
	int64_t d = t->q->ne[0], n = t->k->ne[1], kv = head / (t->q->ne[2] / t->k->ne[2]), i, j;
	float *o = t->data + head * d, sum = 0;

	memset(o, 0, (size_t)d * sizeof(*o));
	for (j = 0; j < n; j++) {
		const float *k = t->k->data + (kv * n + j) * d, *v = t->v->data + (kv * n + j) * d;
		float s = 0, p;

		for (i = 0; i < d; i++)
			s += k[i] * t->q->data[head * d + i];
		p = expf(s * t->scale);
		sum += p;
		for (i = 0; i < d; i++)
			o[i] += p * v[i];
	}
	for (i = 0; i < d; i++)
		o[i] /= sum;
}

API int ggml_backend_graph_compute(const int *backend, struct tensor **graph)
{
	int64_t head;

	for (head = 0; head < (*graph)->q->ne[2]; head++)
		one_head(*graph, head);
	return *backend != 1;
}
