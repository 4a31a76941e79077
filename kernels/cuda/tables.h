/* SPDX-License-Identifier: MIT */
/*
 * A model's codebooks and RoPE tables in device memory, once for all calls.
 */
#ifndef CQK_CUDA_TABLES_H
#define CQK_CUDA_TABLES_H

#include "cq/err.h"
#include "kernels/cuda/params.h"
#include "kernels/kernels.h"

/**
 * struct cqk_cuda_tables - where a model's tables lie on a device
 * @model:  the model (or shard), which must outlive this
 * @rope:   tables of the host, likewise
 * @layers: [n_layers]; addresses are set by cqk_cuda_tables_place()
 * @near:   [n_layers][2] of keys and values, likewise; zeros unless cqk_near_can()
 * @turn:   the RoPE tables there
 * @base:   their first byte on the device; 1 before they were placed
 * @bytes:  of device memory they need
 */
struct cqk_cuda_tables {
	const struct cqk_model *model;
	const struct cqk_rope *rope;
	struct cqkd_layer *layers;
	struct cqkd_near *near;
	struct cqkd_rope turn;
	uint64_t base;
	uint64_t bytes;
};

/**
 * cqk_cuda_tables_new() - plan a model's tables
 * @model: model or shard
 * @rope:  its tables on the host, half = 0 for none
 * @out:   ended with cqk_cuda_tables_free()
 * @err:   text of the failure, may be NULL
 *
 * Return: 0; -EOPNOTSUPP a coding, head_dim or number of heads that the GPU
 * kernels lack, or a centroid that fp16 cannot hold: the text names it; -ENOMEM.
 */
int cqk_cuda_tables_new(const struct cqk_model *model, const struct cqk_rope *rope,
			struct cqk_cuda_tables **out, struct cq_err *err);

/**
 * cqk_cuda_tables_fill() - the tables' bytes
 * @t:     tables
 * @image: host memory, @t->bytes, 16-byte aligned: to be copied to the device
 */
void cqk_cuda_tables_fill(const struct cqk_cuda_tables *t, void *image);

/**
 * cqk_cuda_tables_place() - say where the tables are
 * @t:    tables
 * @base: device address of @t->bytes bytes, a multiple of 256
 */
void cqk_cuda_tables_place(struct cqk_cuda_tables *t, uint64_t base);

/**
 * cqk_cuda_tables_free() - end tables
 * @t: tables, whose device memory is the caller's; or NULL
 */
void cqk_cuda_tables_free(struct cqk_cuda_tables *t);

#endif /* CQK_CUDA_TABLES_H */
