/* SPDX-License-Identifier: MIT */
/*
 * The kernels for GPUs that this library carries, as nvcc made them: one
 * fatbin for each .cu file, with code for each architecture and PTX.
 */
#ifndef CQK_CUDA_IMAGES_H
#define CQK_CUDA_IMAGES_H

#include <stdint.h>

/**
 * struct cqk_cuda_image - one fatbin
 * @name: that of the .cu file, without ".cu"
 * @data: what cuModuleLoadData() takes
 * @size: bytes of @data
 */
struct cqk_cuda_image {
	const char *name;
	const void *data;
	uint64_t size;
};

/*
 * Built without nvcc there is one image, "none", which no real driver takes
 * and the emulated one does, and cqk_cuda_num_built is 0: then the library has
 * no kernels for GPUs and should say so.
 */
extern const struct cqk_cuda_image cqk_cuda_images[];
extern const uint32_t cqk_cuda_num_images;
extern const uint32_t cqk_cuda_num_built;

#endif /* CQK_CUDA_IMAGES_H */
