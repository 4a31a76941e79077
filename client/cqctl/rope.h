/* SPDX-License-Identifier: MIT */
/* RoPE as it is given to calibrate. */
#ifndef CQCTL_ROPE_H
#define CQCTL_ROPE_H

#include "client/cqctl/cqctl.h"
#include "kernels/meta.h"

/**
 * ctl_rope_scaling() - RoPE scaling from the command line
 * @text: an object as "rope_scaling" of a model's config.json, or words:
 *        "llama3,factor=8,low_freq_factor=1,..."
 * @out:  set on success; cqk_geom_check() has still to be asked
 * @err:  text of the failure
 *
 * Return: 0; -EINVAL; -EOPNOTSUPP a kind that cq does not have; -ENOMEM.
 */
int ctl_rope_scaling(const char *text, struct cqk_rope_scaling *out, struct cq_err *err);

/* "half", "interleaved": 0 or -EINVAL. */
int ctl_rope_pairs(const char *text, uint32_t *out);

#endif /* CQCTL_ROPE_H */
