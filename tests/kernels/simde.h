/* SPDX-License-Identifier: MIT */
/* The AVX-512 kernel on SIMDe: a table entry of test programs only. */
#ifndef SIMDE_H
#define SIMDE_H

#include "kernels/attn.h"

extern const struct cqk_ops cqk_avx512_simde;

#endif /* SIMDE_H */
