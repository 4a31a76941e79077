/* SPDX-License-Identifier: MIT */
/*
 * Access to the NVIDIA driver. driver.c is the only file of cq that knows
 * libcuda.so.1: it is looked for at run time, so that one build serves
 * machines with and without a GPU. GPUs are named by UUID: ordinals differ
 * between processes (CUDA_VISIBLE_DEVICES).
 */
#ifndef CQK_CUDA_DRIVER_H
#define CQK_CUDA_DRIVER_H

#include <stdbool.h>
#include "cq/err.h"
#include "kernels/cuda/abi.h"

#define CQK_CUDA_NEED	12000	/* of cuDriverGetVersion(): CUDA 12.0 */
#define CQK_CUDA_UUID	41	/* "GPU-" + 36 + NUL */
#define CQK_CUDA_TEXT	160

/**
 * cqk_cuda_get() - the driver's calls, loading and initialising it if need be
 * @cu:  set on success; valid until the process ends
 * @err: why not, may be NULL
 *
 * No context is made: that is the caller's affair (cuDevicePrimaryCtxRetain).
 * Success is remembered, failure is not: a driver may be installed or a module
 * loaded later. Any thread may call, at any time.
 *
 * Return: 0; -ENODEV without a driver or without a GPU; -ENOSYS if the driver
 * is too old; -EOWNERDEAD in a child of the process that started CUDA, which
 * can do nothing with it; -EIO or what cqk_cuda_errno() says if the driver
 * cannot start.
 */
int cqk_cuda_get(const struct cqk_cuda **cu, struct cq_err *err);

/**
 * cqk_cuda_find() - the device that has a UUID
 * @dev:  set on success
 * @uuid: "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx" or "MIG-...", case ignored
 * @err:  why not, naming the GPUs that are there; may be NULL
 *
 * Return: 0, -EINVAL if @uuid is not of that form, -ENODEV if no device has
 * it, or what cqk_cuda_get() returns.
 */
int cqk_cuda_find(cqcu_device *dev, const char *uuid, struct cq_err *err);

/**
 * cqk_cuda_uuid() - the UUID of a device as text
 * @dev:  device
 * @text: written on success
 * @err:  why not, may be NULL
 *
 * Return: 0 or -errno as of cqk_cuda_get() and cqk_cuda_errno().
 */
int cqk_cuda_uuid(cqcu_device dev, char text[CQK_CUDA_UUID], struct cq_err *err);

/**
 * cqk_cuda_text() - a result in words
 * @result: of a driver call
 * @text:   written: "out of memory (CUDA_ERROR_OUT_OF_MEMORY)"; always terminated
 *
 * Return: @text.
 */
const char *cqk_cuda_text(int result, char text[CQK_CUDA_TEXT]);

/**
 * cqk_cuda_errno() - the errno nearest to a result
 * @result: of a driver call
 *
 * Return: 0 for success, else negative. -EFAULT: device memory was accessed
 * that must not be; -ENOMEM: device memory is short; -EAGAIN: not done yet.
 */
int cqk_cuda_errno(int result);

/**
 * cqk_cuda_fatal() - is the context lost?
 * @result: of a driver call
 *
 * Return: true if every later call in this context will fail too, so that only
 * a new process helps.
 */
bool cqk_cuda_fatal(int result);

/**
 * cqk_cuda_fail() - describe the failure of a driver call
 * @err:    where to, may be NULL
 * @result: what the call returned, not CQCU_SUCCESS
 * @what:   what was attempted, such as "cuMemCreate of 2 MiB on GPU-..."
 *
 * Return: cqk_cuda_errno() of @result.
 */
int cqk_cuda_fail(struct cq_err *err, int result, const char *what);

#endif /* CQK_CUDA_DRIVER_H */
