/* SPDX-License-Identifier: MIT */
/*
 * Memory of another process, in the current context's device: behind a descriptor
 * (cuMemExportToShareableHandle) or a legacy handle (cuIpcGetMemHandle). Functions return
 * the driver's result; of a failure @what says what was attempted.
 */
#ifndef CQK_CUDA_MAP_H
#define CQK_CUDA_MAP_H

#include "kernels/cuda/abi.h"

/**
 * cqk_cuda_map() - map an allocation
 * @cu:     driver
 * @dev:    device that is to reach it
 * @h:      allocation; the mapping keeps it
 * @bytes:  of it, a multiple of its granularity
 * @rights: CQCU_MEM_ACCESS_FLAGS_PROT_READ or _READWRITE
 * @out:    address, undone by cqk_cuda_unmap(); untouched on failure
 * @what:   set on failure
 *
 * Return: CQCU_SUCCESS or the driver's error.
 */
int cqk_cuda_map(const struct cqk_cuda *cu, cqcu_device dev, cqcu_mem h, uint64_t bytes,
		 int rights, cqcu_ptr *out, const char **what);

/**
 * cqk_cuda_map_fd() - map what a descriptor leads to, read-only
 * @fd: stays the caller's
 *
 * The others are as for cqk_cuda_map().
 *
 * Return: CQCU_SUCCESS or the driver's error.
 */
int cqk_cuda_map_fd(const struct cqk_cuda *cu, cqcu_device dev, int fd, uint64_t bytes,
		    cqcu_ptr *out, const char **what);

/**
 * cqk_cuda_unmap() - undo that
 * @cu:    driver
 * @p:     address; 0: nothing happens
 * @bytes: as it was mapped
 */
void cqk_cuda_unmap(const struct cqk_cuda *cu, cqcu_ptr p, uint64_t bytes);

/**
 * cqk_cuda_open_handle() - open a block by its handle
 * @cu:     driver
 * @handle: 64 bytes
 * @bytes:  that must be behind it
 * @out:    address, undone by cuIpcCloseMemHandle(); untouched on failure
 *
 * Return: CQCU_SUCCESS; the driver's error: the block's owner may be gone; -EPROTO it
 * leads to less than that, or into a block.
 */
int cqk_cuda_open_handle(const struct cqk_cuda *cu, const uint8_t *handle, uint64_t bytes,
			 cqcu_ptr *out);

#endif /* CQK_CUDA_MAP_H */
