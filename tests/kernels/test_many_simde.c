// SPDX-License-Identifier: MIT
/* The AVX-512 kernel on SIMDe, as in test_attention_simde.c, with test_many.c. */
#define CQK_SIMDE 1
#include "tests/kernels/simde_many.h"
#include "kernels/x86/many_avx512.c"
#include "kernels/x86/attn_avx512.c"
#define ONLY_OPS (&cqk_avx512_simde)
#include "tests/kernels/test_many.c"
