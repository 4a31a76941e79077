// SPDX-License-Identifier: MIT
/* simde_avx512.c for the row without VBMI and VNNI. */
#define CQK_AVX512_BW 1
#include "tests/kernels/simde_avx512.c"
