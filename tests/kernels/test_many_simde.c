// SPDX-License-Identifier: MIT
/* The cases of test_many.c on simde_avx512.c. */
#include "tests/kernels/simde.h"
#define ONLY_OPS (&cqk_avx512_simde)
#include "tests/kernels/test_many.c"
