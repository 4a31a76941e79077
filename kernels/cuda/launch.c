// SPDX-License-Identifier: MIT
/* Kernels from the images in this library, and their launches. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/driver.h"
#include "kernels/cuda/images.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/near.h"

#define MAX_IMAGES 16
#define MAX_GRID_Y 65535
#define STRIDE_MAX ((int64_t)1 << 40)

enum kernel {
	K_APPEND, K_ATTN_64, K_ATTN_128, K_ATTN_256, K_WIDE_64, K_WIDE_128, K_WIDE_256, K_MERGE,
	K_CHECK, K_GATHER, K_MANY, K_F16_64 = K_MANY + 9, K_F16_128, K_FEW, K_LUT = K_FEW + 13,
	K_BOOKS = K_LUT + 18, K_SLICES = K_BOOKS + 9, K_WGMMA = K_SLICES + 18,
	K_BYTES = K_WGMMA + 9, N_KERNELS = K_BYTES + 9
};

/* Of the kernels of attn_few.cu: head_dim, channels of a group; with 64 up to 4 of them. */
#define FEW_C(c) (((c) > 2) + ((c) > 4))
#define FEW_AT(d, kc, vc)							\
	(K_FEW + ((d) > 64 ? 4 + FEW_C(kc) * 3 + FEW_C(vc) : ((kc) > 2) * 2 + ((vc) > 2)))
/* Of those of attn_lut.cu, with as many warps as there can be. */
#define LUT_AT(d, kc, vc)	(K_LUT + ((d) > 64) * 9 + FEW_C(kc) * 3 + FEW_C(vc))
#define LUT(d, kc, vc)								\
	[LUT_AT(d, kc, vc)] = {							\
		"cqk_attn_lut_d" #d "_k" #kc "v" #vc,				\
		CQKD_LUT_SHARED(d, 32, CQKD_LUT_WARPS, d / kc + d / vc), CQKD_LUT_WARPS * 32, \
	}
/* Of those of attn_books.cu. */
#define BOOKS_AT(kc, vc) (K_BOOKS + 3 * FEW_C(kc) + FEW_C(vc))
#define BOOKS(kc, vc)								\
	[BOOKS_AT(kc, vc)] = {							\
		"cqk_attn_books_k" #kc "v" #vc,					\
		CQKD_BOOKS_SHARED(128 / kc + 128 / vc, 2), CQKD_WIDE_THREADS,	\
	}
/* Of those of attn_slices.cu: codes of 8 bits, of 10, and with 128 channels of both. */
#define SLICES_AT(d, kc, kb, vc, vb)						\
	(K_SLICES + ((kb) + (vb) <= 16 ? FEW_C(kc) * 3 + FEW_C(vc) :		\
		     (kb) + (vb) >= 20 ? 9 + ((d) > 64) + ((d) > 128) :		\
		     (kb) > 8 ? 12 + FEW_C(vc) : 15 + FEW_C(kc)))
/* Of those of attn_books_wgmma.cu, which are not on all devices. */
#define WGMMA_AT(kc, vc) (K_WGMMA + 3 * FEW_C(kc) + FEW_C(vc))
#define WGMMA(kc, vc)								\
	[WGMMA_AT(kc, vc)] = {							\
		"cqk_attn_books_wgmma_k" #kc "v" #vc,				\
		CQKD_WGMMA_SHARED(128 / kc + 128 / vc), CQKD_WGMMA_THREADS,	\
	}
/* Of those of append_many.cu. */
#define MANY_AT(kc, vc) (K_MANY + 3 * FEW_C(kc) + FEW_C(vc))
#define MANY(kc, vc)								\
	[MANY_AT(kc, vc)] = {							\
		"cqk_append_k" #kc "v" #vc, CQKD_APPEND_SHARED(CQ_MAX_HEAD_DIM), CQKD_THREADS, \
	}
#define FEW(d, kc, vc)								\
	[FEW_AT(d, kc, vc)] = {							\
		"cqk_attn_few_d" #d "_k" #kc "v" #vc,				\
		CQKD_FEW_SHARED(d, d / kc + d / vc), CQKD_FEW_WARPS * 32,	\
	}
/* Of those of attn_bytes.cu. */
#define BYTES_AT(kc, vc) (K_BYTES + 3 * FEW_C(kc) + FEW_C(vc))
#define BYTES(kc, vc)								\
	[BYTES_AT(kc, vc)] = {							\
		"cqk_attn_bytes_k" #kc "v" #vc,					\
		CQKD_BYTES_SHARED(128, 128 / kc + 128 / vc), CQKD_BYTES_WARPS * 32, \
	}
#define SLICES(d, bits, kc, kb, vc, vb)						\
	[SLICES_AT(d, kc, kb, vc, vb)] = {					\
		"cqk_attn_slices_d" #d "_k" #kc "b" #kb "v" #vc "b" #vb,	\
		CQKD_SLICES_SHARED(d, bits, kc, kb, vc, vb), CQKD_FEW_WARPS * 32, \
	}

static const struct {
	const char *name;
	unsigned int shared;	/* most dynamic shared memory */
	unsigned int threads;	/* of a block */
} kernels[N_KERNELS] = {
	[K_APPEND] = { "cqk_append", CQKD_APPEND_SHARED(CQ_MAX_HEAD_DIM), CQKD_THREADS },
	[K_ATTN_64] = { "cqk_attn_d64", CQKD_ATTN_SHARED(64, CQKD_VECS(64)), CQKD_THREADS },
	[K_ATTN_128] = { "cqk_attn_d128", CQKD_ATTN_SHARED(128, CQKD_VECS(128)), CQKD_THREADS },
	[K_ATTN_256] = { "cqk_attn_d256", CQKD_ATTN_SHARED(256, CQKD_VECS(256)), CQKD_THREADS },
	[K_WIDE_64] = { "cqk_attn_wide_d64", CQKD_WIDE_SHARED(64), CQKD_WIDE_THREADS },
	[K_WIDE_128] = { "cqk_attn_wide_d128", CQKD_WIDE_SHARED(128), CQKD_WIDE_THREADS },
	[K_WIDE_256] = { "cqk_attn_wide_d256", CQKD_WIDE_SHARED(256), CQKD_WIDE_THREADS },
	[K_MERGE] = { "cqk_merge", 0, CQKD_THREADS },
	[K_CHECK] = { "cqk_check", 0, CQKD_THREADS },
	[K_GATHER] = { "cqk_gather", 0, CQKD_THREADS },
	MANY(2, 2), MANY(2, 4), MANY(2, 8),
	MANY(4, 2), MANY(4, 4), MANY(4, 8),
	MANY(8, 2), MANY(8, 4), MANY(8, 8),
	[K_F16_64] = { "cqk_attn_f16_d64", CQKD_F16_SHARED(64), CQKD_F16_WARPS * 32 },
	[K_F16_128] = { "cqk_attn_f16_d128", CQKD_F16_SHARED(128), CQKD_F16_WARPS * 32 },
	FEW(64, 2, 2), FEW(64, 2, 4), FEW(64, 4, 2), FEW(64, 4, 4),
	FEW(128, 2, 2), FEW(128, 2, 4), FEW(128, 2, 8),
	FEW(128, 4, 2), FEW(128, 4, 4), FEW(128, 4, 8),
	FEW(128, 8, 2), FEW(128, 8, 4), FEW(128, 8, 8),
	LUT(64, 2, 2), LUT(64, 2, 4), LUT(64, 2, 8),
	LUT(64, 4, 2), LUT(64, 4, 4), LUT(64, 4, 8),
	LUT(64, 8, 2), LUT(64, 8, 4), LUT(64, 8, 8),
	LUT(128, 2, 2), LUT(128, 2, 4), LUT(128, 2, 8),
	LUT(128, 4, 2), LUT(128, 4, 4), LUT(128, 4, 8),
	LUT(128, 8, 2), LUT(128, 8, 4), LUT(128, 8, 8),
	BOOKS(2, 2), BOOKS(2, 4), BOOKS(2, 8),
	BOOKS(4, 2), BOOKS(4, 4), BOOKS(4, 8),
	BOOKS(8, 2), BOOKS(8, 4), BOOKS(8, 8),
	SLICES(256, 8, 2, 8, 2, 8), SLICES(256, 8, 2, 8, 4, 8), SLICES(256, 8, 2, 8, 8, 8),
	SLICES(256, 8, 4, 8, 2, 8), SLICES(256, 8, 4, 8, 4, 8), SLICES(256, 8, 4, 8, 8, 8),
	SLICES(256, 8, 8, 8, 2, 8), SLICES(256, 8, 8, 8, 4, 8), SLICES(256, 8, 8, 8, 8, 8),
	SLICES(64, 10, 8, 10, 8, 10), SLICES(128, 10, 8, 10, 8, 10),
	SLICES(256, 10, 8, 10, 8, 10),
	SLICES(128, 10, 8, 10, 2, 8), SLICES(128, 10, 8, 10, 4, 8), SLICES(128, 10, 8, 10, 8, 8),
	SLICES(128, 10, 2, 8, 8, 10), SLICES(128, 10, 4, 8, 8, 10), SLICES(128, 10, 8, 8, 8, 10),
	WGMMA(2, 2), WGMMA(2, 4), WGMMA(2, 8),
	WGMMA(4, 2), WGMMA(4, 4), WGMMA(4, 8),
	WGMMA(8, 2), WGMMA(8, 4), WGMMA(8, 8),
	BYTES(2, 2), BYTES(2, 4), BYTES(2, 8),
	BYTES(4, 2), BYTES(4, 4), BYTES(4, 8),
	BYTES(8, 2), BYTES(8, 4), BYTES(8, 8),
};

struct cqk_cuda_kernels {
	const struct cqk_cuda *cu;
	struct cqcu_module *modules[MAX_IMAGES];
	struct cqcu_func *fn[N_KERNELS];
	enum cqk_cuda_variant forced;
	enum cqk_cuda_encode encode;
	uint32_t arch, shared;	/* of the device */
	cqcu_device dev;
};

/* Blocks of threads; threads of one, 0: as many as the kernel is made for. */
struct grid {
	unsigned int x, y, threads;
};

static int load_images(struct cqk_cuda_kernels *k, struct cq_err *err)
{
	uint32_t i;
	int r;

	if (cqk_cuda_num_images > MAX_IMAGES)
		return cq_err_set(err, -E2BIG, "%u images of kernels", cqk_cuda_num_images);
	for (i = 0; i < cqk_cuda_num_images; i++) {
		r = k->cu->cuModuleLoadData(&k->modules[i], cqk_cuda_images[i].data);
		if (r == CQCU_ERROR_INVALID_IMAGE && !cqk_cuda_num_built)
			return cq_err_set(err, -EOPNOTSUPP, "this library was built without nvcc: "
							    "it has no kernels for GPUs");
		if (r == CQCU_ERROR_NO_BINARY_FOR_GPU)
			return cq_err_set(err, -EOPNOTSUPP, "no kernels for this GPU; they need "
							    "compute capability 8.0 or later");
		if (r)
			return cqk_cuda_fail(err, r, "loading the GPU kernels");
	}
	return 0;
}

static int find_kernel(struct cqk_cuda_kernels *k, enum kernel i, struct cq_err *err)
{
	uint32_t shared = kernels[i].shared, m;
	struct cqcu_func *fn = NULL;
	int r = CQCU_ERROR_NOT_FOUND;

	for (m = 0; m < cqk_cuda_num_images && r == CQCU_ERROR_NOT_FOUND; m++)
		r = k->cu->cuModuleGetFunction(&fn, k->modules[m], kernels[i].name);
	/* those that not every architecture has are the last */
	if (r == CQCU_ERROR_NOT_FOUND && i >= K_SLICES)
		return 0;
	/* those of which not every shape fits are launched only with one that does */
	if (i >= K_F16_64)
		shared = MIN(shared, k->shared);
	if (!r && shared)
		r = k->cu->cuFuncSetAttribute(fn, CQCU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
					      (int)shared);
	if (r)
		return cqk_cuda_fail(err, r, kernels[i].name);
	k->fn[i] = fn;
	return 0;
}

/* What the rule for variants wants to know of a device. */
static int ask_device(struct cqk_cuda_kernels *k, struct cq_err *err)
{
	static const int ask[] = {
		CQCU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
		CQCU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
		CQCU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
	};
	int said[ARRAY_SIZE(ask)] = { 0 };
	int r = k->cu->cuCtxGetDevice(&k->dev);
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(ask) && !r; i++)
		r = k->cu->cuDeviceGetAttribute(&said[i], ask[i], k->dev);
	if (r)
		return cqk_cuda_fail(err, r, "asking what the GPU has");
	k->arch = (uint32_t)(10 * said[0] + said[1]);
	k->shared = (uint32_t)said[2];
	return 0;
}

int cqk_cuda_kernels_load(const struct cqk_cuda *cu, struct cqk_cuda_kernels **out,
			  struct cq_err *err)
{
	struct cqk_cuda_kernels *k = calloc(1, sizeof(*k));
	enum kernel i;
	int ret;

	if (!k)
		return cq_err_set(err, -ENOMEM, "out of memory for the GPU kernels");
	k->cu = cu;
	ret = cqk_cuda_variant_of(getenv(CQK_CUDA_VARIANT_ENV), &k->forced, err);
	if (!ret)
		ret = cqk_cuda_encode_of(getenv(CQK_CUDA_ENCODE_ENV), &k->encode, err);
	if (!ret)
		ret = ask_device(k, err);
	if (!ret)
		ret = load_images(k, err);
	for (i = 0; i < N_KERNELS && !ret; i++)
		ret = find_kernel(k, i, err);
	/* built for older GPUs: this one runs the code for those */
	if (!ret && !k->fn[K_SLICES])
		k->arch = MIN(k->arch, 89);
	if (ret) {
		cqk_cuda_kernels_free(k);
		return ret;
	}
	*out = k;
	return 0;
}

void cqk_cuda_kernels_free(struct cqk_cuda_kernels *k)
{
	uint32_t i;

	if (!k)
		return;
	for (i = 0; i < MAX_IMAGES; i++)
		if (k->modules[i])
			k->cu->cuModuleUnload(k->modules[i]);
	free(k);
}

void cqk_cuda_force(struct cqk_cuda_kernels *k, enum cqk_cuda_variant v)
{
	k->forced = v;
}

void cqk_cuda_force_encode(struct cqk_cuda_kernels *k, enum cqk_cuda_encode e)
{
	k->encode = e;
}

static int launch(const struct cqk_cuda_kernels *k, enum kernel i, struct grid size,
		  unsigned int shared, const void *params, struct cqcu_stream *stream,
		  struct cq_err *err)
{
	void *list[] = { (void *)(uintptr_t)params };
	int r;

	if (!size.threads)
		size.threads = kernels[i].threads;
	r = k->cu->cuLaunchKernel(k->fn[i], size.x, size.y, 1, size.threads, 1, 1, shared, stream,
				  list, NULL);
	return r ? cqk_cuda_fail(err, r, kernels[i].name) : 0;
}

/* Device memory, of any kind that kernels can reach, at a multiple of @align. */
static int check_address(const struct cqk_cuda_kernels *k, uint64_t p, uint32_t align,
			 const char *what, struct cq_err *err)
{
	unsigned int type = 0;

	if (!p || p % align)
		return cq_err_set(err, -EINVAL, "%s at 0x%llx: not aligned to %u", what,
				  (unsigned long long)p, align);
	if (k->cu->cuPointerGetAttribute(&type, CQCU_POINTER_ATTRIBUTE_MEMORY_TYPE, p) ||
	    type != CQCU_MEMORYTYPE_DEVICE)
		return cq_err_set(err, -EINVAL, "%s at 0x%llx is not device memory", what,
				  (unsigned long long)p);
	return 0;
}

/*
 * The same of what a caller gives, who may use several devices. Whether kernels reach
 * another one's memory depends on the machine, and a fault there ends the context.
 */
static int check_callers(const struct cqk_cuda_kernels *k, uint64_t p, uint32_t align,
			 const char *what, struct cq_err *err)
{
	int ret = check_address(k, p, align, what, err);
	int dev = -1;

	if (ret)
		return ret;
	if (k->cu->cuPointerGetAttribute(&dev, CQCU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, p) ||
	    dev != k->dev)
		return cq_err_set(err, -EINVAL, "%s at 0x%llx is in the memory of device %d; "
				  "device %d computes: copy it there", what,
				  (unsigned long long)p, dev, k->dev);
	return 0;
}

static int view_in(const struct cqk_cuda_kernels *k, const struct cq_view *v, const char *what,
		   struct cqkd_view *out, struct cq_err *err)
{
	if (v->dtype > CQ_BF16 || v->pad)
		return cq_err_set(err, -EINVAL, "%s: dtype %u, pad %u; want CQ_F32, CQ_F16 or "
						"CQ_BF16 and 0",
				  what, v->dtype, v->pad);
	if (v->stride_token > STRIDE_MAX || v->stride_token < -STRIDE_MAX ||
	    v->stride_head > STRIDE_MAX || v->stride_head < -STRIDE_MAX)
		return cq_err_set(err, -EINVAL, "%s: stride out of range", what);
	*out = (struct cqkd_view){
		.data = (uint64_t)(uintptr_t)v->data,
		.stride_token = v->stride_token,
		.stride_head = v->stride_head,
		.dtype = v->dtype,
	};
	return check_callers(k, out->data, v->dtype == CQ_F32 ? 4 : 2, what, err);
}

static int check_layer(const struct cqk_cuda_tables *t, uint32_t layer, struct cq_err *err)
{
	if (t->base == 1)
		return cq_err_set(err, -EINVAL, "the model's tables are not on a device");
	if (layer >= t->model->geom.n_layers)
		return cq_err_set(err, -EINVAL, "layer %u of %u", layer, t->model->geom.n_layers);
	return 0;
}

static int append_in(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		     const struct cqk_cuda_append *a, struct cqkd_append *p, struct cq_err *err)
{
	const struct cqk_geom *g = &t->model->geom;
	int ret = check_layer(t, a->layer, err);

	if (ret)
		return ret;
	if (a->turn < -1 || a->turn > 1)
		return cq_err_set(err, -EINVAL, "cqk_cuda_append: turn %d", a->turn);
	*p = (struct cqkd_append){
		.at = t->layers[a->layer], .rope = t->turn,
		.near_k = t->near[2 * a->layer], .near_v = t->near[2 * a->layer + 1],
		.dests = a->dests, .n_dests = a->n_dests, .status = a->status,
		.layer = a->layer, .n_kv_heads = g->n_kv_heads, .d = g->head_dim,
		.turn = t->turn.half ? a->turn : 0,
	};
	if (p->turn < 0)
		p->rope.factor = 1.0f / t->turn.factor;
	ret = view_in(k, &a->k, "k", &p->k, err);
	if (!ret)
		ret = view_in(k, &a->v, "v", &p->v, err);
	if (!ret)
		ret = check_address(k, a->dests, 8, "destinations", err);
	if (!ret)
		ret = check_address(k, a->n_dests, 4, "number of destinations", err);
	if (!ret)
		ret = check_address(k, a->status, 8, "status", err);
	return ret;
}

int cqk_cuda_append(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		    const struct cqk_cuda_append *a, struct cqcu_stream *stream,
		    struct cq_err *err)
{
	enum kernel which = K_APPEND;
	struct cqkd_append p;
	int ret = append_in(k, t, a, &p, err);
	uint32_t kc, vc;

	if (ret || !a->max_dests)
		return ret;
	/* a side that is not coded is in any kernel */
	kc = p.at.k.channels ? p.at.k.channels : p.at.v.channels;
	vc = p.at.v.channels ? p.at.v.channels : kc;
	if (kc && cqk_near_can(&p.at) &&
	    cqk_cuda_encode_near(k->encode, MAX(kc, vc), a->tokens / a->max_dests))
		which = MANY_AT(kc, vc);
	return launch(k, which, (struct grid){ a->max_dests, 2 * p.n_kv_heads, 0 },
		      CQKD_APPEND_SHARED(p.d), &p, stream, err);
}

bool cqk_cuda_bad(uint64_t status, struct cqk_cuda_bad *bad)
{
	uint64_t key = ~status;

	if (!status)
		return false;
	*bad = (struct cqk_cuda_bad){
		.layer = CQKD_BAD_LAYER(key), .row = CQKD_BAD_ROW(key),
		.head = CQKD_BAD_HEAD(key), .v = CQKD_BAD_V(key),
		.channel = CQKD_BAD_CHANNEL(key),
	};
	return true;
}

/* The same, and of a layer. */
static void shape_of(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		     uint32_t layer, struct cqk_cuda_shape *s)
{
	const struct cqkd_layer *at = &t->layers[layer];

	*s = (struct cqk_cuda_shape){
		.head_dim = t->model->geom.head_dim,
		.k_channels = at->k.channels, .v_channels = at->v.channels,
		.k_bits = at->k.bits, .v_bits = at->v.bits, .bytes = at->k.i8 && at->v.i8,
		.turned = t->model->geom.keys == CQK_KEYS_PRE_ROPE ? 2 * t->turn.half : 0,
		.gqa = t->model->geom.n_heads / t->model->geom.n_kv_heads,
		.arch = k->arch, .shared = k->shared,
	};
}

/* A plan serves all layers: what is best for each of them. */
static uint32_t few_vecs(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t)
{
	uint32_t least = UINT32_MAX, i;

	for (i = 0; i < t->model->geom.n_layers; i++) {
		struct cqk_cuda_shape s;

		shape_of(k, t, i, &s);
		least = MIN(least, cqk_cuda_variant_vecs(k->forced, &s));
	}
	return least;
}

/* Likewise: more vectors than these are attn_books.cu's; 0: of some layer none are. */
static uint32_t books_from(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
			   uint32_t *most_work)
{
	uint32_t most = 0, i;

	*most_work = 0;
	for (i = 0; i < t->model->geom.n_layers; i++) {
		struct cqk_cuda_shape s;
		uint32_t from, work;

		shape_of(k, t, i, &s);
		from = cqk_cuda_variant_books(k->forced, &s, &work);
		if (!from)
			return 0;
		most = MAX(most, from);
		*most_work = MAX(*most_work, work);
	}
	return most;
}

void cqk_cuda_limits_init(struct cqk_cuda_limits *l, const struct cqk_cuda_kernels *k,
			  const struct cqk_cuda_tables *t, uint32_t rows, uint32_t groups,
			  uint32_t reads, uint32_t want)
{
	const struct cqk_geom *g = &t->model->geom;
	uint64_t most = (uint64_t)reads * (g->n_heads / g->n_kv_heads);
	uint64_t vecs = CQKD_VECS(g->head_dim), wide = CQKD_WIDE_VECS(g->head_dim), from = vecs;
	uint32_t few = few_vecs(k, t), work, books = books_from(k, t, &work);

	if (books) {
		wide = CQKD_BOOKS_VECS;
		from = books;
	}
	/* one item per tile of vectors and run at least, and as many as wanted */
	*l = (struct cqk_cuda_limits){
		.rows = rows,
		.items = (uint32_t)(most / (few ? CQKD_FEW_VECS : vecs) + groups + want),
		.slots = (uint32_t)(most + want * MAX(vecs, MIN(wide, most))),
		.few = MAX(want / 2, 1u),
		.few_vecs = few,
		.wide_vecs = books ? CQKD_BOOKS_VECS : 0,
		.wide_from = books,
	};
	if (books)
		l->wide_work = work * l->few;
	if (most > from)
		l->wide = (uint32_t)(most / wide + MIN(groups, most / from) + want);
}

static uint64_t part_ml_bytes(const struct cqk_cuda_limits *l, uint32_t heads)
{
	return ALIGN_UP((uint64_t)heads * l->slots * 2 * sizeof(float), 256);
}

uint64_t cqk_cuda_workspace(const struct cqk_cuda_tables *t, const struct cqk_cuda_limits *l,
			    uint32_t heads)
{
	return part_ml_bytes(l, heads) +
	       ALIGN_UP((uint64_t)heads * l->slots * t->model->geom.head_dim * sizeof(float), 256);
}

static int check_heads(const struct cqk_cuda_tables *t, const struct cqk_cuda_attn *a,
		       struct cq_err *err)
{
	uint32_t heads = t->model->geom.n_kv_heads;

	if (a->head_begin > a->head_end || a->head_end > heads)
		return cq_err_set(err, -EINVAL, "kv heads %u to %u of %u", a->head_begin,
				  a->head_end, heads);
	if (a->flags & ~(CQ_ATTN_Q_ROTATED | CQ_ATTN_LSE_BASE2))
		return cq_err_set(err, -EINVAL, "cqk_cuda_attention: unknown flags 0x%x", a->flags);
	if (!isfinite(a->scale) || !isfinite(a->soft_cap) || a->soft_cap < 0)
		return cq_err_set(err, -EINVAL, "cqk_cuda_attention: scale %g, soft_cap %g",
				  (double)a->scale, (double)a->soft_cap);
	if (a->workspace_bytes < cqk_cuda_workspace(t, a->limits, a->head_end - a->head_begin))
		return cq_err_set(err, -ENOBUFS, "workspace of %llu bytes, %llu are needed",
				  (unsigned long long)a->workspace_bytes,
				  (unsigned long long)cqk_cuda_workspace(t, a->limits,
						a->head_end - a->head_begin));
	return 0;
}

static int attn_addresses(const struct cqk_cuda_kernels *k, const struct cqk_cuda_attn *a,
			  struct cqkd_attn *p, struct cq_err *err)
{
	int ret = view_in(k, &a->q, "q", &p->q, err);

	if (!ret)
		ret = view_in(k, &a->o, "o", &p->o, err);
	if (!ret)
		ret = check_address(k, a->plan, 16, "plan", err);
	if (!ret)
		ret = check_address(k, a->workspace, 256, "workspace", err);
	if (!ret && a->lse)
		ret = check_callers(k, a->lse, 4, "lse", err);
	return ret;
}

static void attn_in(const struct cqk_cuda_tables *t, const struct cqk_cuda_attn *a,
		    struct cqkd_attn *p)
{
	const struct cqk_geom *g = &t->model->geom;
	bool rope = t->turn.half && g->keys != CQK_KEYS_NONE;

	*p = (struct cqkd_attn){
		.at = t->layers[a->layer], .rope = t->turn, .plan = a->plan,
		.part_ml = a->workspace,
		.part_o = a->workspace + part_ml_bytes(a->limits, a->head_end - a->head_begin),
		.lse = a->lse, .lse_stride = a->lse_stride,
		.layer = a->layer, .n_kv_heads = g->n_kv_heads,
		.head_begin = a->head_begin, .n_heads = a->head_end - a->head_begin,
		.gqa = g->n_heads / g->n_kv_heads, .d = g->head_dim,
		.max_items = a->limits->items, .max_rows = a->limits->rows,
		.max_slots = a->limits->slots,
		.turn_q = rope && !(a->flags & CQ_ATTN_Q_ROTATED),
		.turn_k = rope && g->keys == CQK_KEYS_PRE_ROPE,
		.scale = a->scale, .soft_cap = a->soft_cap, .window = a->sliding_window,
		.base2 = !!(a->flags & CQ_ATTN_LSE_BASE2),
	};
	/* that of the queries' rotation, and that of keys which are stored without it */
	p->rope.factor = (p->turn_q ? t->turn.factor : 1.0f) *
			 (p->turn_k ? t->turn.factor : 1.0f);
}

enum cqk_cuda_variant cqk_cuda_variant(const struct cqk_cuda_kernels *k,
				       const struct cqk_cuda_tables *t,
				       const struct cqk_cuda_attn *a)
{
	struct cqk_cuda_shape s;

	if (!a->limits->few)
		return CQK_CUDA_BLOCK;
	shape_of(k, t, a->layer, &s);
	return cqk_cuda_variant_choose(k->forced, &s);
}

/* Items of few vectors by attn_lut.cu: of one or two, if another kernel can have the others. */
static int launch_lut(const struct cqk_cuda_kernels *k, const struct cqk_cuda_shape *s,
		      const struct cqk_cuda_limits *l, struct cqkd_attn *p,
		      struct cqcu_stream *stream, struct cq_err *err)
{
	enum cqk_cuda_variant more = cqk_cuda_variant_can(CQK_CUDA_FEW, s) ? CQK_CUDA_FEW :
									      CQK_CUDA_BYTES;
	bool others = k->forced != CQK_CUDA_LUT && cqk_cuda_variant_can(more, s);
	struct grid size = { MIN(l->few, l->items), p->n_heads, 0 };
	struct cqk_cuda_lut lut;
	int ret;

	if (!cqk_cuda_variant_lut(s, &lut))
		return cq_err_set(err, -EINVAL, "no room for a table of products");
	p->lut = lut.words;
	p->few = others ? lut.vecs : CQKD_FEW_VECS;
	size.threads = lut.warps * 32;
	ret = launch(k, LUT_AT(p->d, s->k_channels, s->v_channels), size,
		     cqk_cuda_variant_shared(CQK_CUDA_LUT, s), p, stream, err);
	if (ret || !others)
		return ret;
	p->least = lut.vecs + 1;
	p->few = CQKD_FEW_VECS;
	size.threads = 0;
	return launch(k, more == CQK_CUDA_FEW ? FEW_AT(p->d, s->k_channels, s->v_channels) :
						BYTES_AT(s->k_channels, s->v_channels), size,
		      cqk_cuda_variant_shared(more, s), p, stream, err);
}

/* Items of few vectors, if there is a kernel of their own for them. */
static int launch_few(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		      const struct cqk_cuda_limits *l, struct cqkd_attn *p,
		      struct cqcu_stream *stream, struct cq_err *err)
{
	enum cqk_cuda_variant v;
	struct cqk_cuda_shape s;
	struct grid size = { MIN(l->few, l->items), p->n_heads, 0 };
	enum kernel i;

	shape_of(k, t, p->layer, &s);
	v = cqk_cuda_variant_choose(k->forced, &s);
	if (!l->few || v == CQK_CUDA_BLOCK)
		return 0;
	if (v == CQK_CUDA_LUT)
		return launch_lut(k, &s, l, p, stream, err);
	p->few = CQKD_FEW_VECS;
	i = FEW_AT(p->d, s.k_channels, s.v_channels);
	if (v == CQK_CUDA_F16) {	/* two on a multiprocessor */
		i = p->d > 64 ? K_F16_128 : K_F16_64;
		size.x = MIN(2 * l->few, l->items);
	} else if (v == CQK_CUDA_BYTES) {
		i = BYTES_AT(s.k_channels, s.v_channels);
	} else if (v == CQK_CUDA_SLICES) {
		uint32_t blocks = 2 * CQKD_SLICES(p->d, MAX(s.k_bits, s.v_bits));

		i = SLICES_AT(p->d, s.k_channels, s.k_bits, s.v_channels, s.v_bits);
		size.x = MAX(MIN(l->few / blocks, l->items), 1u) * blocks;
	}
	return launch(k, i, size, cqk_cuda_variant_shared(v, &s), p, stream, err);
}

/* Whose wide items are: planned for attn_books.cu, they have no more vectors than it takes. */
static enum cqk_cuda_variant wide_variant(const struct cqk_cuda_kernels *k,
					  const struct cqk_cuda_limits *l,
					  const struct cqk_cuda_shape *s)
{
	uint32_t work;

	if (!l->wide_vecs || l->wide_vecs > CQKD_BOOKS_VECS ||
	    !cqk_cuda_variant_books(k->forced, s, &work))
		return CQK_CUDA_BLOCK;
	if (cqk_cuda_variant_wgmma(k->forced, s) && k->fn[WGMMA_AT(s->k_channels, s->v_channels)])
		return CQK_CUDA_WGMMA;
	return CQK_CUDA_BOOKS;
}

enum cqk_cuda_variant cqk_cuda_variant_wide(const struct cqk_cuda_kernels *k,
					    const struct cqk_cuda_tables *t,
					    const struct cqk_cuda_attn *a)
{
	struct cqk_cuda_shape s;

	shape_of(k, t, a->layer, &s);
	return wide_variant(k, a->limits, &s);
}

static int launch_wide(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		       const struct cqk_cuda_limits *l, struct cqkd_attn *p,
		       struct cqcu_stream *stream, struct cq_err *err)
{
	enum kernel i = p->d == 64 ? K_WIDE_64 : p->d == 128 ? K_WIDE_128 : K_WIDE_256;
	struct grid size = { l->wide, p->n_heads, 0 };
	enum cqk_cuda_variant v;
	struct cqk_cuda_shape s;
	uint32_t shared;

	shape_of(k, t, p->layer, &s);
	v = wide_variant(k, l, &s);
	if (v == CQK_CUDA_BLOCK)
		return launch(k, i, size, kernels[i].shared, p, stream, err);
	i = v == CQK_CUDA_WGMMA ? WGMMA_AT(s.k_channels, s.v_channels) :
				  BOOKS_AT(s.k_channels, s.v_channels);
	shared = cqk_cuda_variant_shared(v, &s);
	p->tiles = shared == kernels[i].shared ? 2 : 1;
	if (l->few)
		size.x = MIN(l->few, l->wide);
	return launch(k, i, size, shared, p, stream, err);
}

int cqk_cuda_attention(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		       const struct cqk_cuda_attn *a, struct cqcu_stream *stream,
		       struct cq_err *err)
{
	uint32_t d = t->model->geom.head_dim;
	enum kernel size = d == 64 ? 0 : d == 128 ? 1 : 2;
	struct cqkd_attn p;
	int ret = check_layer(t, a->layer, err);

	if (!ret)
		ret = check_heads(t, a, err);
	if (ret)
		return ret;
	attn_in(t, a, &p);
	if (!p.n_heads || !p.max_rows)
		return 0;
	ret = attn_addresses(k, a, &p, err);
	if (!ret && a->limits->wide)
		ret = launch_wide(k, t, a->limits, &p, stream, err);
	if (!ret && p.max_items)
		ret = launch_few(k, t, a->limits, &p, stream, err);
	if (!ret && p.max_items && !(p.few && a->limits->few_only))
		ret = launch(k, K_ATTN_64 + size, (struct grid){ p.max_items, p.n_heads, 0 },
			     kernels[K_ATTN_64 + size].shared, &p, stream, err);
	if (!ret)
		ret = launch(k, K_MERGE,
			     (struct grid){ p.max_rows, (p.n_heads * p.gqa + 3) / 4, 0 }, 0, &p,
			     stream, err);
	return ret;
}

int cqk_cuda_check(const struct cqk_cuda_kernels *k, uint64_t jobs, uint64_t n_jobs,
		   uint32_t max_jobs, uint64_t max_bytes, struct cqcu_stream *stream,
		   struct cq_err *err)
{
	struct cqkd_checks p = { .jobs = jobs, .n_jobs = n_jobs };
	uint64_t chunks = max_bytes / CQKD_CHUNK + (max_bytes % CQKD_CHUNK != 0);
	uint64_t blocks = chunks / CQKD_CHECKS + (chunks % CQKD_CHECKS != 0);
	int ret = check_address(k, jobs, 8, "checks", err);

	if (!ret)
		ret = check_address(k, n_jobs, 4, "number of checks", err);
	if (ret || !max_jobs || !blocks)
		return ret;
	if (max_jobs > MAX_GRID_Y || blocks > INT32_MAX)
		return cq_err_set(err, -EINVAL, "checks of %u payloads of %llu bytes at once",
				  max_jobs, (unsigned long long)max_bytes);
	return launch(k, K_CHECK, (struct grid){ (unsigned int)blocks, max_jobs, 0 }, 0, &p, stream,
		      err);
}

int cqk_cuda_gather(const struct cqk_cuda_kernels *k, uint64_t from, uint64_t to, uint32_t n,
		    struct cqcu_stream *stream, struct cq_err *err)
{
	static const unsigned int each = CQKD_THREADS / (CQKD_HEADER / 16);
	struct cqkd_gather p = { .from = from, .to = to, .n = n };
	int ret = check_address(k, from, 8, "addresses of headers", err);

	if (!ret)
		ret = check_address(k, to, 16, "headers", err);
	if (ret || !n)
		return ret;
	return launch(k, K_GATHER, (struct grid){ n / each + (n % each != 0), 1, 0 }, 0, &p, stream,
		      err);
}
