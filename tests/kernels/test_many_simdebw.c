// SPDX-License-Identifier: MIT
/* test_many_simde.c for the row without VBMI and VNNI. */
#define CQK_AVX512_BW 1
#include "tests/kernels/test_many_simde.c"
