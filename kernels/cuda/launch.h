/* SPDX-License-Identifier: MIT */
/*
 * Kernels on a GPU: one function per launch. All work is put on the caller's
 * stream; nothing here waits for the device, allocates memory there, or looks
 * at what a launch reads, so that launches can be captured in a CUDA graph.
 *
 * The caller's thread has the device's context current. Unless said
 * otherwise, addresses are of device memory.
 */
#ifndef CQK_CUDA_LAUNCH_H
#define CQK_CUDA_LAUNCH_H

#include "kernels/cuda/abi.h"
#include "kernels/cuda/plan.h"
#include "kernels/cuda/tables.h"
#include "kernels/cuda/variant.h"

struct cqk_cuda_kernels;

/**
 * cqk_cuda_kernels_load() - load the kernels into the current context
 * @cu:  driver
 * @out: ended with cqk_cuda_kernels_free() in the same context
 * @err: text of the failure, may be NULL
 *
 * CQ_CUDA_VARIANT in the environment says which variant of kernels is to be taken,
 * CQ_CUDA_ENCODE how codes are found.
 *
 * Return: 0; -EOPNOTSUPP built without nvcc, or no code for this device;
 * -EINVAL no such variant or way; -ENOMEM; -errno of the driver's failure.
 */
int cqk_cuda_kernels_load(const struct cqk_cuda *cu, struct cqk_cuda_kernels **out,
			  struct cq_err *err);

/**
 * cqk_cuda_kernels_free() - unload kernels
 * @k: that no launch uses any more, in the context they were loaded in; or NULL
 */
void cqk_cuda_kernels_free(struct cqk_cuda_kernels *k);

/**
 * cqk_cuda_force() - take a variant instead of what the rule says, wherever it can
 * @k: kernels
 * @v: variant, CQK_CUDA_AUTO: the rule again
 */
void cqk_cuda_force(struct cqk_cuda_kernels *k, enum cqk_cuda_variant v);

/**
 * cqk_cuda_force_encode() - the same of how codes are found
 * @k: kernels
 * @e: CQK_ENCODE_AUTO: the rule again
 */
void cqk_cuda_force_encode(struct cqk_cuda_kernels *k, enum cqk_cuda_encode e);

/**
 * struct cqk_cuda_append - keys and values of new tokens of one layer
 * @layer:     layer of the model
 * @k:         [rows][n_kv_heads][d] on the device, channels contiguous
 * @v:         the same shape
 * @dests:     [*@n_dests] struct cqkd_dest
 * @n_dests:   address of a u32, at most @max_dests
 * @max_dests: destinations that the launch is made for
 * @tokens:    about how many tokens they have together, by which a kernel is chosen; any
 *             computes any number
 * @turn:      keys: 1 rotate to their position, -1 undo the rotation, 0 neither
 * @status:    address of a u64, 0 before the first launch; see cqk_cuda_bad()
 */
struct cqk_cuda_append {
	uint32_t layer;
	struct cq_view k, v;
	uint64_t dests;
	uint64_t n_dests;
	uint32_t max_dests;
	uint32_t tokens;
	int turn;
	uint64_t status;
};

/**
 * cqk_cuda_append() - keys and values into fp16 blocks and pages
 * @k:      kernels
 * @t:      tables of the model, placed
 * @a:      what to append
 * @stream: where to
 * @err:    text of the failure, may be NULL
 *
 * Rows are rounded to fp16; what pages get are the codes of cqk_ops.encode.
 * Values that fp16 cannot hold are written as they come out and noted in the
 * status word.
 *
 * Return: 0; -EINVAL; -errno of the driver's failure.
 */
int cqk_cuda_append(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		    const struct cqk_cuda_append *a, struct cqcu_stream *stream,
		    struct cq_err *err);

/**
 * struct cqk_cuda_bad - the first value that no fp16 can hold
 * @layer:   layer
 * @row:     row of the views
 * @head:    kv head
 * @v:       in V, not in K
 * @channel: channel
 */
struct cqk_cuda_bad {
	uint32_t layer, row, head;
	bool v;
	uint32_t channel;
};

/* What a status word says: false for 0, else @bad is set. */
bool cqk_cuda_bad(uint64_t status, struct cqk_cuda_bad *bad);

/**
 * cqk_cuda_limits_init() - limits for a batch
 * @l:      set
 * @k:      kernels; a variant that is forced later is given plans for the one before
 * @t:      tables
 * @rows:   query rows at most
 * @groups: runs of blocks with different rows at most (sequences, and prefixes
 *          that several of them share)
 * @reads:  rows over all those runs at most
 * @want:   struct cqk_cuda_step.want
 */
void cqk_cuda_limits_init(struct cqk_cuda_limits *l, const struct cqk_cuda_kernels *k,
			  const struct cqk_cuda_tables *t, uint32_t rows, uint32_t groups,
			  uint32_t reads, uint32_t want);

/**
 * cqk_cuda_workspace() - memory that attention needs beside its results
 * @t:     tables
 * @l:     limits of the plans
 * @heads: kv heads computed at once
 *
 * Return: bytes, a multiple of 256.
 */
uint64_t cqk_cuda_workspace(const struct cqk_cuda_tables *t, const struct cqk_cuda_limits *l,
			    uint32_t heads);

/**
 * struct cqk_cuda_attn - attention of one layer, as struct cqk_attn
 * @layer:      layer of the model
 * @head_begin: first kv head
 * @head_end:   one past the last
 * @plan:       what cqk_cuda_plan() made, on the device, 16-byte aligned
 * @limits:     with which it was made
 * @q:          queries
 * @o:          results
 * @lse:        [rows][n_heads] f32 or 0
 * @lse_stride: floats between rows
 * @scale:      factor on q.k
 * @soft_cap:   > 0: s -> cap * tanh(s / cap)
 * @sliding_window: tokens, 0 = none
 * @flags:      CQ_ATTN_*
 * @workspace:  cqk_cuda_workspace() bytes, in use until the launches are done
 * @workspace_bytes: how many there are
 */
struct cqk_cuda_attn {
	uint32_t layer;
	uint32_t head_begin, head_end;
	uint64_t plan;
	const struct cqk_cuda_limits *limits;
	struct cq_view q, o;
	uint64_t lse;
	uint64_t lse_stride;
	float scale;
	float soft_cap;
	uint32_t sliding_window;
	uint32_t flags;
	uint64_t workspace;
	uint64_t workspace_bytes;
};

/**
 * cqk_cuda_variant() - which kernel a call takes for items of few query vectors
 * @k: kernels
 * @t: tables
 * @a: valid
 *
 * Return: the variant.
 */
enum cqk_cuda_variant cqk_cuda_variant(const struct cqk_cuda_kernels *k,
				       const struct cqk_cuda_tables *t,
				       const struct cqk_cuda_attn *a);

/**
 * cqk_cuda_variant_wide() - which kernel a call takes for wide items
 * @k: kernels
 * @t: tables
 * @a: valid
 *
 * Return: CQK_CUDA_WGMMA, CQK_CUDA_BOOKS, or CQK_CUDA_BLOCK for attn_wide.cu.
 */
enum cqk_cuda_variant cqk_cuda_variant_wide(const struct cqk_cuda_kernels *k,
					    const struct cqk_cuda_tables *t,
					    const struct cqk_cuda_attn *a);

/**
 * cqk_cuda_attention() - attention over a plan's blocks, in two to four launches
 * @k:      kernels
 * @t:      tables of the model, placed
 * @a:      what to attend
 * @stream: where to
 * @err:    text of the failure, may be NULL
 *
 * Means what struct cqk_attn means, to 2e-3 of double precision.
 *
 * Return: 0; -EINVAL; -ENOBUFS workspace too small; -errno of the driver.
 */
int cqk_cuda_attention(const struct cqk_cuda_kernels *k, const struct cqk_cuda_tables *t,
		       const struct cqk_cuda_attn *a, struct cqcu_stream *stream,
		       struct cq_err *err);

/**
 * cqk_cuda_check() - XXH3-64 of every 4 KiB of payloads
 * @k:         kernels
 * @jobs:      [*@n_jobs] struct cqkd_check
 * @n_jobs:    address of a u32, at most @max_jobs
 * @max_jobs:  payloads that the launch is made for
 * @max_bytes: of the largest of them
 * @stream:    where to
 * @err:       text of the failure, may be NULL
 *
 * Return: 0; -EINVAL; -errno of the driver's failure.
 */
int cqk_cuda_check(const struct cqk_cuda_kernels *k, uint64_t jobs, uint64_t n_jobs,
		   uint32_t max_jobs, uint64_t max_bytes, struct cqcu_stream *stream,
		   struct cq_err *err);

/**
 * cqk_cuda_gather() - page headers, which lie in many places, side by side
 * @k:      kernels
 * @from:   [@n] u64 on the device, address of each header
 * @to:     [@n] headers
 * @n:      headers
 * @stream: where to
 * @err:    text of the failure, may be NULL
 *
 * Return: 0; -EINVAL; -errno of the driver's failure.
 */
int cqk_cuda_gather(const struct cqk_cuda_kernels *k, uint64_t from, uint64_t to, uint32_t n,
		    struct cqcu_stream *stream, struct cq_err *err);

#endif /* CQK_CUDA_LAUNCH_H */
