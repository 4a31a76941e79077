// SPDX-License-Identifier: MIT
/*
 * Rows on their way to a GPU and back, as an engine has them that computes on the
 * host: queries, keys and values of a layer go over in one copy, the result comes back.
 * The driver is found when the program runs, so that there need be none.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "client/worker/worker.h"
#include "cq.h"

#define NON_BLOCKING 1u		/* CU_STREAM_NON_BLOCKING */

typedef uint64_t ptr_t;		/* CUdeviceptr */

/* NVIDIA's driver API: name, CUDA version of its form, parameters. */
#define CALLS(X)								\
	X(cuInit, 2000, (unsigned int flags))					\
	X(cuDeviceGetCount, 2000, (int *n))					\
	X(cuDeviceGetUuid, 11040, (void *uuid, int dev))			\
	X(cuDevicePrimaryCtxRetain, 7000, (void **ctx, int dev))		\
	X(cuDevicePrimaryCtxRelease, 11000, (int dev))				\
	X(cuCtxSetCurrent, 4000, (void *ctx))					\
	X(cuStreamCreate, 2000, (void **stream, unsigned int flags))		\
	X(cuStreamDestroy, 4000, (void *stream))				\
	X(cuStreamSynchronize, 2000, (void *stream))				\
	X(cuMemAlloc, 3020, (ptr_t *p, size_t bytes))				\
	X(cuMemFree, 3020, (ptr_t p))						\
	X(cuMemcpyHtoDAsync, 3020, (ptr_t to, const void *from, size_t n, void *stream)) \
	X(cuMemcpyDtoHAsync, 3020, (void *to, ptr_t from, size_t n, void *stream))

struct calls {
#define MEMBER(name, version, params) int (*name) params;
	CALLS(MEMBER)
#undef MEMBER
};

/**
 * struct wk_device - a stream and buffers on a device
 * @max: floats of @in
 * @in:  rows of queries, keys and values
 * @out: rows of results
 */
struct wk_device {
	struct calls cu;
	int dev;
	void *ctx, *stream;
	size_t max;
	ptr_t in, out;
};

static int failed(int result, const char *what)
{
	return wk_error(-EIO, "GPU: %s: error %d of the CUDA driver", what, result);
}

static int driver_load(struct calls *cu)
{
	int (*get)(const char *name, void **fn, int version, uint64_t flags, int *status);
	static const struct {
		const char *name;
		int version;
		size_t at;
	} want[] = {
#define WANT(name, version, params) { #name, version, offsetof(struct calls, name) },
		CALLS(WANT)
#undef WANT
	};
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *fn;
	int status;
	size_t i;

	fn = lib ? dlsym(lib, "cuGetProcAddress_v2") : NULL;
	if (!fn) {
		if (lib)
			dlclose(lib);
		return wk_error(-ENODEV, "GPU: no CUDA driver, or one older than 12.0");
	}
	memcpy(&get, &fn, sizeof(get));
	for (i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		if (get(want[i].name, &fn, want[i].version, 0, &status) || !fn)
			return wk_error(-ENOSYS, "GPU: the CUDA driver has no %s", want[i].name);
		memcpy((char *)cu + want[i].at, &fn, sizeof(fn));
	}
	return cu->cuInit(0) ? wk_error(-ENODEV, "GPU: the CUDA driver finds none") : 0;
}

/* As nvidia-smi has it. */
static void uuid_text(const uint8_t u[16], char text[48])
{
	snprintf(text, 48, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
		 "%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7],
		 u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

static int device_find(struct wk_device *dv, const char *uuid)
{
	uint8_t u[16];
	char text[48];
	int n = 0;

	dv->cu.cuDeviceGetCount(&n);
	for (dv->dev = 0; dv->dev < n; dv->dev++) {
		if (dv->cu.cuDeviceGetUuid(u, dv->dev))
			continue;
		uuid_text(u, text);
		if (!strcasecmp(text, uuid))
			return 0;
	}
	return wk_error(-ENODEV, "%s is none of the %d GPUs that are here", uuid, n);
}

static int memory(struct wk_device *dv, const struct wk_config *cfg, size_t max_rows)
{
	size_t q = max_rows * cfg->n_heads * cfg->head_dim;
	int r;

	dv->max = q + 2 * max_rows * cfg->n_kv_heads * cfg->head_dim;
	r = dv->cu.cuCtxSetCurrent(dv->ctx);
	if (!r)
		r = dv->cu.cuStreamCreate(&dv->stream, NON_BLOCKING);
	if (!r)
		r = dv->cu.cuMemAlloc(&dv->in, dv->max * sizeof(float));
	if (!r)
		r = dv->cu.cuMemAlloc(&dv->out, q * sizeof(float));
	return r ? failed(r, "making buffers") : 0;
}

int wk_device_new(const char *uuid, const struct wk_config *cfg, size_t max_rows,
		  struct wk_device **out)
{
	struct wk_device *dv = calloc(1, sizeof(*dv));
	int ret, r;

	if (!dv)
		return wk_error(-ENOMEM, "out of memory");
	ret = driver_load(&dv->cu);
	if (!ret)
		ret = device_find(dv, uuid);
	if (ret)
		goto err_free;
	r = dv->cu.cuDevicePrimaryCtxRetain(&dv->ctx, dv->dev);
	if (r) {
		ret = failed(r, "making its context");
		goto err_free;
	}
	ret = memory(dv, cfg, max_rows);
	if (ret) {
		wk_device_free(dv);
		return ret;
	}
	*out = dv;
	return 0;

err_free:
	free(dv);
	return ret;
}

void wk_device_free(struct wk_device *dv)
{
	if (!dv)
		return;
	dv->cu.cuMemFree(dv->in);
	dv->cu.cuMemFree(dv->out);
	if (dv->stream)
		dv->cu.cuStreamDestroy(dv->stream);
	dv->cu.cuDevicePrimaryCtxRelease(dv->dev);
	free(dv);
}

void *wk_device_stream(const struct wk_device *dv)
{
	return dv->stream;
}

/* Where what @rows has at @p is on the device. */
static float *there(const struct wk_device *dv, const struct wk_rows *rows, const float *p)
{
	return (float *)(uintptr_t)(dv->in + (uint64_t)(p - rows->q) * sizeof(float));
}

int wk_device_in(struct wk_device *dv, const struct wk_rows *rows, struct wk_rows *on)
{
	size_t n = rows->n * rows->stride;
	int r;

	/* A row has queries, keys and values one behind the other. */
	if (n > dv->max || rows->k < rows->q || rows->v < rows->k ||
	    rows->v >= rows->q + rows->stride)
		return wk_error(-EINVAL, "%zu rows are too many, or not in one piece", rows->n);
	r = dv->cu.cuMemcpyHtoDAsync(dv->in, rows->q, n * sizeof(float), dv->stream);
	if (r)
		return failed(r, "copying rows");
	*on = *rows;
	on->q = there(dv, rows, rows->q);
	on->k = there(dv, rows, rows->k);
	on->v = there(dv, rows, rows->v);
	on->o = (float *)(uintptr_t)dv->out;
	return 0;
}

int wk_device_out(struct wk_device *dv, float *o, size_t n)
{
	int r = dv->cu.cuMemcpyDtoHAsync(o, dv->out, n * sizeof(float), dv->stream);

	if (!r)
		r = dv->cu.cuStreamSynchronize(dv->stream);
	return r ? failed(r, "copying results") : 0;
}
