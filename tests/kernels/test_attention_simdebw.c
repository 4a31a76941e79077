// SPDX-License-Identifier: MIT
/* test_attention_simde.c for the row without VBMI and VNNI. */
#define CQK_AVX512_BW 1
#include "tests/kernels/test_attention_simde.c"
