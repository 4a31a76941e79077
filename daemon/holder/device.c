// SPDX-License-Identifier: MIT
/*
 * Memory of one GPU, in a context of this process, handed out as legacy handles. It
 * lasts as long as the process.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "cq/util.h"
#include "daemon/holder/holder.h"

_Static_assert(sizeof(struct cqcu_ipc_handle) == CQP_HOLDER_HANDLE, "of the driver");

/* A context that is lost does nothing more for this process. */
static int fail(struct cq_err *err, int res, const char *what)
{
	int ret = cqk_cuda_fail(err, res, what);

	if (cqk_cuda_fatal(res))
		return -EOWNERDEAD;
	return res == CQCU_ERROR_OUT_OF_MEMORY ? -ENOMEM : ret;
}

/**
 * ch_device_open() - find the GPU and make a context there
 * @dev:  filled on success
 * @uuid: as in cqd.conf
 * @err:  text of the failure
 *
 * Once, by the thread that allocates and frees.
 *
 * Return: 0; -ENODEV no driver or no such GPU; other -errno.
 */
int ch_device_open(struct ch_device *dev, const char *uuid, struct cq_err *err)
{
	struct cqcu_ctx *ctx;
	size_t bytes = 0;
	int ret, res;

	ret = cqk_cuda_get(&dev->cu, err);
	if (!ret)
		ret = cqk_cuda_find(&dev->ordinal, uuid, err);
	if (ret)
		return ret;
	res = dev->cu->cuDevicePrimaryCtxRetain(&ctx, dev->ordinal);
	if (!res)
		res = dev->cu->cuCtxSetCurrent(ctx);
	if (!res)
		res = dev->cu->cuDeviceTotalMem(&bytes, dev->ordinal);
	if (res)
		return cqk_cuda_fail(err, res, "making a context on the GPU");
	dev->bytes = bytes;
	snprintf(dev->uuid, sizeof(dev->uuid), "%s", uuid);
	return 0;
}

/* The driver hands memory that one tenant gave back to the next as it was. */
static int clear(const struct ch_device *dev, cqcu_ptr p, uint64_t bytes)
{
	int res = dev->cu->cuMemsetD8(p, 0, bytes);

	return res ? res : dev->cu->cuCtxSynchronize();
}

/**
 * ch_device_alloc() - memory that other processes may open
 * @dev:    device
 * @bytes:  a multiple of CQP_HOLDER_GRAIN: a handle leads to whole pages of that size
 * @p:      set on success
 * @handle: filled on success
 * @err:    text of the failure
 *
 * Return: 0; -ENOMEM the GPU has none now; -EOWNERDEAD only a new process can go on;
 * other -errno.
 */
int ch_device_alloc(const struct ch_device *dev, uint64_t bytes, cqcu_ptr *p,
		    uint8_t handle[CQP_HOLDER_HANDLE], struct cq_err *err)
{
	struct cqcu_ipc_handle h;
	char what[64];
	cqcu_ptr at;
	int res;

	snprintf(what, sizeof(what), "allocating %llu MiB", (unsigned long long)(bytes >> 20));
	res = dev->cu->cuMemAlloc(&at, bytes);
	if (res)
		return fail(err, res, what);
	res = clear(dev, at, bytes);
	if (!res)
		res = dev->cu->cuIpcGetMemHandle(&h, at);
	if (res) {
		(void)dev->cu->cuMemFree(at);
		return fail(err, res, "sharing a block");
	}
	memcpy(handle, h.reserved, CQP_HOLDER_HANDLE);
	*p = at;
	return 0;
}

/**
 * ch_device_free() - give memory back
 * @dev: device
 * @p:   of ch_device_alloc(); nobody has it open any more
 * @err: text of the failure
 *
 * Return: 0; -EOWNERDEAD; other -errno, and the memory is lost to this process.
 */
int ch_device_free(const struct ch_device *dev, cqcu_ptr p, struct cq_err *err)
{
	int res = dev->cu->cuMemFree(p);

	return res ? fail(err, res, "freeing a block") : 0;
}
