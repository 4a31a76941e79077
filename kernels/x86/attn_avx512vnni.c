// SPDX-License-Identifier: MIT
/* attn_avx512.c once more, as the row avx512vnni of isa_avx512.h. */
#define CQK_AVX512_VNNI 1
#include "kernels/x86/attn_avx512.c" /* NOLINT(bugprone-suspicious-include) */
