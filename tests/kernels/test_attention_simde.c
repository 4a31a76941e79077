// SPDX-License-Identifier: MIT
/*
 * The AVX-512 kernel on any x86-64 with AVX2: the same source on SIMDe, the
 * same cases as test_attention.c. This table entry exists in this program only.
 */
#define CQK_SIMDE 1
#include "tests/kernels/simde_many.h"
#include "kernels/x86/many_avx512.c"
#include "kernels/x86/attn_avx512.c"
#define ONLY_OPS (&cqk_avx512_simde)
#include "tests/kernels/test_attention.c"
