/* SPDX-License-Identifier: MIT */
/* An activation dump, opened for calibration. */
#ifndef CQK_DUMP_H
#define CQK_DUMP_H

#include "kernels/calibrate.h"
#include "kernels/safetensors.h"

/**
 * struct cqk_dump - checked shapes and places
 * @file:   parsed header
 * @info:   metadata and sizes
 * @x:      [2 * n_layers]: K of layer 0, V of layer 0, K of layer 1, ...
 * @fisher: the same for squared gradients; NULL entries if there are none
 */
struct cqk_dump {
	struct st_file *file;
	struct cqk_dump_info info;
	const struct st_tensor **x;
	const struct st_tensor **fisher;
};

/* 0, -EINVAL, -EPROTO, -ENOMEM. */
int cqk_dump_open(const void *image, size_t size, struct cqk_dump *out,
		  struct cq_err *err);
void cqk_dump_close(struct cqk_dump *d);

/**
 * cqk_dump_scan() - refuse what cannot be coded
 * @d:      dump
 * @i:      entry of @x
 * @head:   kv head
 * @fisher: look at the squared gradients instead
 * @err:    text of the failure
 *
 * Return: 0, or -EINVAL naming layer, K or V, head and token of the first
 * value that is NaN, infinite or beyond the range of a half, or of the first
 * gradient that is negative or not finite.
 */
int cqk_dump_scan(const struct cqk_dump *d, uint32_t i, uint32_t head, bool fisher,
		  struct cq_err *err);

/* Tokens that remain when the first @sinks of each sequence are left out. */
uint32_t cqk_dump_kept(const struct cqk_dump *d, uint32_t sinks);

/**
 * cqk_dump_group() - the kept tokens of one channel group
 * @d:      dump
 * @i:      entry of @x
 * @head:   kv head
 * @first:  first channel of the group, in stored order: for keys
 *          cqk_given_channel() of @d->info.geom says where it is in the dump
 * @c:      channels
 * @sinks:  tokens at the start of each sequence to leave out
 * @x:      [c][stride], filled with the values and, behind them, zeros
 * @stride: at least cqk_dump_kept()
 */
void cqk_dump_group(const struct cqk_dump *d, uint32_t i, uint32_t head, uint32_t first,
		    uint32_t c, uint32_t sinks, float *x, size_t stride);
/* The same for weights: @w[token] = sum of the group's squared gradients. */
void cqk_dump_weights(const struct cqk_dump *d, uint32_t i, uint32_t head,
		      uint32_t first, uint32_t c, uint32_t sinks, float *w);

#endif /* CQK_DUMP_H */
