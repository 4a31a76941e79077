// SPDX-License-Identifier: MIT
/* A model on a device: context, kernels, tables, arena; segments mapped twice. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/gpu.h"
#include "kernels/cuda/map.h"

#define ALIGN_BLOCK 256u	/* of fp16 blocks */

/**
 * cqc_gpu_uuid() - which device
 * @model: model
 *
 * Return: its UUID; NULL: the host.
 */
char *cqc_gpu_uuid(const struct cq_model *model)
{
	return model->gpu ? model->gpu->uuid : NULL;
}

/**
 * cqc_gpu_fail() - a driver call failed
 * @g:      device
 * @result: of the call
 * @what:   was attempted
 *
 * Return: -errno, with text.
 */
int cqc_gpu_fail(struct cqc_gpu *g, int result, const char *what)
{
	char text[CQK_CUDA_TEXT];
	int ret = cqk_cuda_errno(result);

	if (cqk_cuda_fatal(result))
		WRITE_ONCE(g->lost, ret);
	return cqc_fail(ret, "GPU %s: %s: %s", g->uuid, what, cqk_cuda_text(result, text));
}

/**
 * cqc_gpu_finish() - wait for what was begun
 * @g:      device
 * @stream: where it was
 * @ret:    0, or a failure on the way, with text
 * @what:   is waited for
 *
 * Waits also after a failure: what was begun uses memory of the host's.
 *
 * Return: @ret; else 0 or -errno with text.
 */
int cqc_gpu_finish(struct cqc_gpu *g, struct cqcu_stream *stream, int ret, const char *what)
{
	int r = g->cu->cuStreamSynchronize(stream);

	if (ret || !r)
		return ret;
	return cqc_gpu_fail(g, r, what);
}

/**
 * cqc_gpu_in() - use the device's context
 * @g: device
 *
 * Return: 0, then cqc_gpu_out() is due; -errno with text.
 */
int cqc_gpu_in(const struct cqc_gpu *g)
{
	int lost = READ_ONCE(g->lost), r;

	if (lost)
		return cqc_fail(lost, "GPU %s: the context was lost: only a new process can go "
				      "on there", g->uuid);
	r = g->cu->cuCtxPushCurrent(g->ctx);
	return r ? cqk_cuda_fail(cqc_err(), r, "using the GPU's context") : 0;
}

/**
 * cqc_gpu_out() - the context that was current before
 * @g: device
 */
void cqc_gpu_out(const struct cqc_gpu *g)
{
	struct cqcu_ctx *was;

	g->cu->cuCtxPopCurrent(&was);
}

/**
 * cqc_gpu_eng_in() - cqc_gpu_in() of the engine
 * @g:    device
 * @mode: kept for cqc_gpu_eng_out()
 *
 * Another thread may be capturing a graph: that forbids nothing here.
 *
 * Return: 0, then cqc_gpu_eng_out() is due; -errno with text.
 */
int cqc_gpu_eng_in(const struct cqc_gpu *g, int *mode)
{
	int ret = cqc_gpu_in(g);

	*mode = CQCU_STREAM_CAPTURE_MODE_RELAXED;
	if (!ret)
		g->cu->cuThreadExchangeStreamCaptureMode(mode);
	return ret;
}

/**
 * cqc_gpu_eng_out() - undo that
 * @g:    device
 * @mode: as it was set
 */
void cqc_gpu_eng_out(const struct cqc_gpu *g, int *mode)
{
	g->cu->cuThreadExchangeStreamCaptureMode(mode);
	cqc_gpu_out(g);
}

/* The device that the options name, by UUID or by ordinal. */
static int device_find(struct cqc_gpu *g, const struct cq_model_opts *o)
{
	int ret, r;

	ret = cqk_cuda_get(&g->cu, cqc_err());
	if (ret)
		return ret;
	if (o->gpu) {
		ret = cqk_cuda_find(&g->dev, o->gpu, cqc_err());
	} else {
		r = g->cu->cuDeviceGet(&g->dev, o->device);
		ret = r ? cqk_cuda_fail(cqc_err(), r, "cq_model_opts: no such device") : 0;
	}
	return ret ? ret : cqk_cuda_uuid(g->dev, g->uuid, cqc_err());
}

/**
 * cqc_gpu_new() - let a model be on a device
 * @model: new model
 * @o:     names the device, and the stream
 *
 * Return: 0, the rest is undone by the backend's fini; -errno with text.
 */
int cqc_gpu_new(struct cq_model *model, const struct cq_model_opts *o)
{
	struct cqc_gpu *g = calloc(1, sizeof(*g));
	int ret, r;

	if (!g)
		return cqc_fail(-ENOMEM, "out of memory");
	ret = device_find(g, o);
	if (ret)
		goto err_free;
	r = g->cu->cuDevicePrimaryCtxRetain(&g->ctx, g->dev);
	if (r) {
		ret = cqc_gpu_fail(g, r, "making its context");
		goto err_free;
	}
	g->stream = o->stream;
	g->cu->cuDeviceGetAttribute(&g->sms, CQCU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, g->dev);
	model->gpu = g;
	model->device = g->dev;
	model->be = &cqc_cuda;
	return 0;

err_free:
	free(g);
	return ret;
}

static int alloc(struct cqc_gpu *g, cqcu_ptr *p, uint64_t bytes, const char *what)
{
	int r = g->cu->cuMemAlloc(p, bytes);

	if (!r)
		return 0;
	*p = 0;
	return cqc_gpu_fail(g, r, what);
}

static int tables_new(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	uint8_t *image;
	int ret, r;

	ret = cqk_cuda_tables_new(&model->m, &model->rope, &g->tabs, cqc_err());
	if (!ret)
		ret = alloc(g, &g->tables, g->tabs->bytes + ALIGN_BLOCK, "memory for codebooks");
	if (ret)
		return ret;
	image = aligned_alloc(64, ALIGN_UP(g->tabs->bytes + 1, 64));
	if (!image)
		return cqc_fail(-ENOMEM, "out of memory for codebooks");
	cqk_cuda_tables_fill(g->tabs, image);
	r = g->cu->cuMemcpyHtoD(g->tables, image, g->tabs->bytes);
	free(image);
	if (r)
		return cqc_gpu_fail(g, r, "copying codebooks");
	cqk_cuda_tables_place(g->tabs, g->tables);
	return 0;
}

static int arena_new(struct cq_model *model, uint64_t bytes)
{
	uint64_t block = ALIGN_UP(model->m.f16_block, ALIGN_BLOCK);
	struct cqc_arena *a = &model->arena;
	struct cqc_gpu *g = model->gpu;
	int ret;

	ret = cqc_arena_plan(a, bytes ? bytes : CQC_ARENA_BLOCKS * block, block,
			     MAX(model->m.payload, model->m.sink_payload), cqc_err());
	if (!ret)
		ret = alloc(g, &g->arena_at, a->bytes, "memory for the arena");
	if (!ret)
		ret = alloc(g, &g->status, sizeof(uint64_t), "memory for a status");
	if (!ret)
		ret = alloc(g, &g->bads, CQC_LEASES * sizeof(uint32_t), "memory for a status");
	if (!ret)
		ret = alloc(g, &g->dests, CQC_DEST_RING, "memory for destinations");
	a->base = (uint8_t *)(uintptr_t)g->arena_at;
	return ret;
}

static int pinned_new(struct cqc_gpu *g)
{
	void *p;
	int r;

	r = g->cu->cuMemHostAlloc(&p, CQC_DEST_RING, CQCU_MEMHOSTALLOC_PORTABLE);
	if (r)
		return cqc_gpu_fail(g, r, "pinning host memory");
	g->dests_host = p;
	r = g->cu->cuMemsetD8(g->status, 0, sizeof(uint64_t));
	if (!r)
		r = g->cu->cuMemsetD8(g->bads, 0, CQC_LEASES * sizeof(uint32_t));
	return r ? cqc_gpu_fail(g, r, "clearing the status") : 0;
}

/* Streams of ours and the engine's don't wait for what was copied and cleared. */
static int settle(struct cqc_gpu *g)
{
	int r = g->cu->cuCtxSynchronize();

	return r ? cqc_gpu_fail(g, r, "waiting for tables") : 0;
}

/**
 * cqc_gpu_memory() - kernels, tables, arena
 * @model: parsed
 * @bytes: of the arena, 0: the default
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_memory(struct cq_model *model, uint64_t bytes)
{
	struct cqc_gpu *g = model->gpu;
	int ret = cqc_gpu_in(g);

	if (ret)
		return ret;
	ret = cqk_cuda_kernels_load(g->cu, &g->kernels, cqc_err());
	if (!ret)
		ret = tables_new(model);
	if (!ret)
		ret = arena_new(model, bytes);
	if (!ret)
		ret = pinned_new(g);
	if (!ret)
		ret = cqc_gpu_fences_new(g);
	if (!ret)
		ret = cqc_gpu_hashing_new(model);
	if (!ret)
		ret = settle(g);
	cqc_gpu_out(g);
	if (!ret)
		ret = cqc_gpu_leases_new(model);
	return ret ? ret : cqc_rings_init(model, CQC_LEASES);
}

/**
 * cqc_gpu_fini() - give the device's memory and context back
 * @model: nothing of it is in use
 */
void cqc_gpu_fini(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;

	cqc_arena_fini(&model->arena);
	g->cu->cuCtxPushCurrent(g->ctx);
	cqc_gpu_hashing_free(g);
	cqc_gpu_fences_free(g);
	if (g->dests_host)
		g->cu->cuMemFreeHost(g->dests_host);
	g->cu->cuMemFree(g->dests);
	g->cu->cuMemFree(g->status);
	g->cu->cuMemFree(g->bads);
	g->cu->cuMemFree(g->arena_at);
	g->cu->cuMemFree(g->tables);
	cqk_cuda_tables_free(g->tabs);
	cqk_cuda_kernels_free(g->kernels);
	cqc_gpu_out(g);
	g->cu->cuDevicePrimaryCtxRelease(g->dev);
	cqc_gpu_leases_free(g);
	free(g);
	model->gpu = NULL;
}

/**
 * cqc_gpu_call() - is a call for this device?
 * @model:  model
 * @device: the caller's
 * @stream: the caller's, any
 * @what:   name of the call
 *
 * Return: 0 or -EINVAL.
 */
int cqc_gpu_call(const struct cq_model *model, int32_t device, void *stream, const char *what)
{
	if (device == model->device)
		return 0;
	return cqc_fail(-EINVAL, "%s: device %d; this is on GPU %s, which is device %d here", what,
			device, model->gpu->uuid, model->device);
}

/* --- segments --- */

/* Fails when the memory's owner has ended and cqd does not know it yet. */
static int open_handle(struct cqc_gpu *g, const uint8_t *handle, uint64_t bytes, cqcu_ptr *out)
{
	int r = cqk_cuda_open_handle(g->cu, handle, bytes, out);

	_Static_assert(sizeof(struct cqcu_ipc_handle) == CQC_IPC_HANDLE, "as in SegmentOk");
	if (r <= 0)
		return r;
	cqc_gpu_fail(g, r, "opening a segment");
	return -ENODATA;
}

/**
 * cqc_gpu_seg_map() - map a segment of the device: read-only, if by a descriptor
 * @seg:    segment
 * @fd:     from the daemon, not taken; -1: @handle
 * @handle: [CQC_IPC_HANDLE]; one more opening of a handle is counted by the driver
 *
 * Return: 0; -ENODATA the handle's owner is gone; -EPROTO; -errno.
 */
int cqc_gpu_seg_map(struct cqc_seg *seg, int fd, const uint8_t *handle)
{
	struct cqc_gpu *g = seg->model->gpu;
	int mode, r, ret = cqc_gpu_eng_in(g, &mode);
	const char *what;
	cqcu_ptr p = 0;

	if (ret)
		return ret;
	if (fd >= 0) {
		r = cqk_cuda_map_fd(g->cu, g->dev, fd, seg->bytes, &p, &what);
		ret = r ? cqc_gpu_fail(g, r, what) : 0;
	} else {
		ret = open_handle(g, handle, seg->bytes, &p);
	}
	cqc_gpu_eng_out(g, &mode);
	seg->base = (const uint8_t *)(uintptr_t)p;
	seg->ipc = fd < 0;
	seg->rw = seg->ipc ? p : 0;
	return ret;
}

/**
 * cqc_gpu_seg_rw() - map it writable too, for slots that were leased
 * @seg: mapped
 *
 * Return: 0; -errno.
 */
int cqc_gpu_seg_rw(struct cqc_seg *seg)
{
	const char *what = "mapping a segment again";
	struct cqc_gpu *g = seg->model->gpu;
	int ret, r, mode;
	cqcu_mem h;

	if (seg->rw)
		return 0;
	ret = cqc_gpu_eng_in(g, &mode);
	if (ret)
		return ret;
	r = g->cu->cuMemRetainAllocationHandle(&h, (void *)(uintptr_t)seg->base);
	if (!r) {
		r = cqk_cuda_map(g->cu, g->dev, h, seg->bytes,
				 CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE, &seg->rw, &what);
		g->cu->cuMemRelease(h);
	}
	if (r)
		ret = cqc_gpu_fail(g, r, what);
	cqc_gpu_eng_out(g, &mode);
	return ret;
}

/**
 * cqc_gpu_seg_unmap() - undo both mappings
 * @seg: mapped; no work uses it
 */
void cqc_gpu_seg_unmap(struct cqc_seg *seg)
{
	struct cqc_gpu *g = seg->model->gpu;

	g->cu->cuCtxPushCurrent(g->ctx);
	if (seg->ipc) {
		g->cu->cuIpcCloseMemHandle(seg->rw);
	} else {
		cqk_cuda_unmap(g->cu, seg->rw, seg->bytes);
		cqk_cuda_unmap(g->cu, (uintptr_t)seg->base, seg->bytes);
	}
	cqc_gpu_out(g);
}
