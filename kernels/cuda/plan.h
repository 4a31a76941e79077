/* SPDX-License-Identifier: MIT */
/*
 * The plan of an attention step for a GPU: which block of threads takes which
 * blocks of tokens and query vectors. Made on the host once per step, copied
 * to the device, and used by every layer and kv head of the step.
 */
#ifndef CQK_CUDA_PLAN_H
#define CQK_CUDA_PLAN_H

#include "cq/err.h"
#include "kernels/kernels.h"

/**
 * struct cqk_cuda_limits - what launches are made for
 * @rows:  query rows at most
 * @items: items at most: blocks of threads per kv head
 * @slots: query vectors over all items at most, of one kv head
 * @wide:  items at most, beside @items, that decode a block once for all of up to
 *         @wide_vecs query vectors; 0: there are none
 * @wide_vecs: query vectors of such an item at most; 0: 256 (112 with more than 128
 *         channels)
 * @wide_from: blocks of one position that more vectors see become wide items; 0: those
 *         of more than 64 (32) and more than @few_vecs
 * @wide_work: @wide_from counts if its items have that much to do: blocks, times vectors
 *         beyond eight. For less their kernel is not worth its start
 * @few:   blocks of threads per kv head that share items of at most eight query
 *         vectors, if the variant (variant.h) is one that shares; 0: it is not used
 * @few_only: no item that is not wide has more vectors than that: a plan with one
 *         does not fit
 * @few_vecs: blocks that more than eight query vectors see, but no more than so many,
 *         become items of eight, each of which reads the blocks again; 0: none do
 *
 * A launch with these limits serves every plan within them, so a CUDA graph
 * needs to be captured once.
 */
struct cqk_cuda_limits {
	uint32_t rows;
	uint32_t items;
	uint32_t slots;
	uint32_t wide;
	uint32_t wide_vecs;
	uint32_t wide_from;
	uint32_t wide_work;
	uint32_t few;
	uint32_t few_only;
	uint32_t few_vecs;
};

/**
 * struct cqk_cuda_step - what a step attends over, as in struct cqk_attn
 * @blocks:   [n_blocks], base is a device address, a multiple of 16
 * @n_blocks: their number
 * @spans:    [n_spans], grouped by block
 * @n_spans:  their number
 * @row_pos:  [n_rows] position of each query row
 * @n_rows:   query rows
 * @gqa:      query heads per kv head
 * @head_dim: channels of a head
 * @want:     items to aim at: about twice the multiprocessors of the device,
 *            divided by the kv heads
 */
struct cqk_cuda_step {
	const struct cqk_block *blocks;
	uint32_t n_blocks;
	const struct cqk_span *spans;
	uint32_t n_spans;
	const uint32_t *row_pos;
	uint32_t n_rows;
	uint32_t gqa;
	uint32_t head_dim;
	uint32_t want;
};

/**
 * cqk_cuda_plan() - plan a step
 * @step:   the step
 * @limits: of the launches that will use the plan
 * @out:    host memory, 16-byte aligned
 * @size:   its bytes
 * @used:   bytes to be copied to the device; set on success
 * @err:    text of the failure, may be NULL
 *
 * Blocks that follow each other and are read by the same rows are computed
 * together; more rows than fit at once read them again, and so do eight vectors each
 * where @limits says so. Many fit, if all of them read the blocks at the same position:
 * those are wide items.
 *
 * Return: 0; -EINVAL a block, span or row that cannot be; -ENOBUFS the step
 * does not fit into @limits or @size; the text says which.
 */
int cqk_cuda_plan(const struct cqk_cuda_step *step, const struct cqk_cuda_limits *limits,
		  void *out, size_t size, size_t *used, struct cq_err *err);

#endif /* CQK_CUDA_PLAN_H */
