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

/**
 * struct cqk_dump_part - channels of one head and the tokens to learn from
 * @entry: index of struct cqk_dump.x
 * @fisher: squared gradients instead of values
 * @head:  kv head
 * @first: first channel, in stored order: for keys cqk_given_channel() says
 *         where it is in the dump
 * @c:     channels
 * @sinks: tokens at the start of each sequence to leave out
 * @every: of the tokens that remain, one in so many is taken, the first to begin with
 */
struct cqk_dump_part {
	uint32_t entry, fisher, head, first, c, sinks, every;
};

/**
 * cqk_dump_group() - values of a part
 * @d:      dump
 * @part:   what to read
 * @x:      [c][stride], filled with the values and, behind them, zeros; a squared
 *          gradient of -0 as +0
 * @stride: at least cqk_dump_kept()
 */
void cqk_dump_group(const struct cqk_dump *d, const struct cqk_dump_part *part, float *x,
		    size_t stride);

/**
 * cqk_dump_bytes() - where the values of an entry lie
 * @d:      dump
 * @i:      entry
 * @fisher: the squared gradients instead; there must be some
 * @head:   kv head, or -1 for all
 * @bytes:  set
 *
 * Return: the first byte.
 */
const void *cqk_dump_bytes(const struct cqk_dump *d, uint32_t i, bool fisher, int head,
			   size_t *bytes);

#endif /* CQK_DUMP_H */
