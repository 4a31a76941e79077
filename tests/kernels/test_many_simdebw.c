// SPDX-License-Identifier: MIT
/* test_many_simde.c, linked with simde_avx512bw.c. */
#include "tests/kernels/test_many_simde.c"
