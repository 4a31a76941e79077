// SPDX-License-Identifier: MIT
/*
 * Rows on their way to a GPU and back, as an engine has them that computes on the
 * host: queries, keys and values of a layer go over in one copy, the result comes back.
 */
#include <errno.h>
#include <stdlib.h>
#include "client/worker/worker.h"
#include "cq.h"
#include "kernels/cuda/driver.h"

/**
 * struct wk_device - a stream and buffers on a device
 * @max: floats of @in
 * @in:  rows of queries, keys and values
 * @out: rows of results
 */
struct wk_device {
	const struct cqk_cuda *cu;
	cqcu_device dev;
	struct cqcu_ctx *ctx;
	struct cqcu_stream *stream;
	size_t max;
	cqcu_ptr in, out;
};

static int failed(int result, const char *what)
{
	char text[CQK_CUDA_TEXT];

	return wk_error(cqk_cuda_errno(result), "GPU: %s: %s", what,
			cqk_cuda_text(result, text));
}

static int memory(struct wk_device *dv, const struct wk_config *cfg, size_t max_rows)
{
	size_t q = max_rows * cfg->n_heads * cfg->head_dim;
	int r;

	dv->max = q + 2 * max_rows * cfg->n_kv_heads * cfg->head_dim;
	r = dv->cu->cuCtxSetCurrent(dv->ctx);
	if (!r)
		r = dv->cu->cuStreamCreate(&dv->stream, CQCU_STREAM_NON_BLOCKING);
	if (!r)
		r = dv->cu->cuMemAlloc(&dv->in, dv->max * sizeof(float));
	if (!r)
		r = dv->cu->cuMemAlloc(&dv->out, q * sizeof(float));
	return r ? failed(r, "making buffers") : 0;
}

int wk_device_new(const char *uuid, const struct wk_config *cfg, size_t max_rows,
		  struct wk_device **out)
{
	struct wk_device *dv = calloc(1, sizeof(*dv));
	struct cq_err err = { "" };
	int ret, r;

	if (!dv)
		return wk_error(-ENOMEM, "out of memory");
	ret = cqk_cuda_get(&dv->cu, &err);
	if (!ret)
		ret = cqk_cuda_find(&dv->dev, uuid, &err);
	if (ret) {
		free(dv);
		return wk_error(ret, "%s", err.text);
	}
	r = dv->cu->cuDevicePrimaryCtxRetain(&dv->ctx, dv->dev);
	if (r) {
		free(dv);
		return failed(r, "making its context");
	}
	ret = memory(dv, cfg, max_rows);
	if (ret) {
		wk_device_free(dv);
		return ret;
	}
	*out = dv;
	return 0;
}

void wk_device_free(struct wk_device *dv)
{
	if (!dv)
		return;
	dv->cu->cuMemFree(dv->in);
	dv->cu->cuMemFree(dv->out);
	if (dv->stream)
		dv->cu->cuStreamDestroy(dv->stream);
	dv->cu->cuDevicePrimaryCtxRelease(dv->dev);
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
	r = dv->cu->cuMemcpyHtoDAsync(dv->in, rows->q, n * sizeof(float), dv->stream);
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
	int r = dv->cu->cuMemcpyDtoHAsync(o, dv->out, n * sizeof(float), dv->stream);

	if (!r)
		r = dv->cu->cuStreamSynchronize(dv->stream);
	return r ? failed(r, "copying results") : 0;
}
