// SPDX-License-Identifier: MIT
/*
 * The AVX-512 kernel on any x86-64 with AVX2: the same source on SIMDe. It takes
 * long to compile, so the test programs share it.
 */
#define CQK_SIMDE 1
#include "tests/kernels/simde.h"
#include "tests/kernels/simde_many.h"
#include "kernels/x86/many_avx512.c"
#include "kernels/x86/attn_avx512.c"
