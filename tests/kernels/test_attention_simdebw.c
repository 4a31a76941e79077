// SPDX-License-Identifier: MIT
/* test_attention_simde.c, linked with simde_avx512bw.c. */
#include "tests/kernels/test_attention_simde.c"
