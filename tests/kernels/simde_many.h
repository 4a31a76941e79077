/* SPDX-License-Identifier: MIT */
/* SIMDe's names of the intrinsics that many_avx512.c needs. Test builds only. */
#ifndef SIMDE_MANY_H
#define SIMDE_MANY_H

#include "tests/kernels/simde_fill.h"

#undef _mm512_max_ps
#define _mm512_max_ps simde_mm512_max_ps
#undef _mm512_sqrt_ps
#define _mm512_sqrt_ps simde_mm512_sqrt_ps
#undef _mm512_cvtepi8_epi16
#define _mm512_cvtepi8_epi16 simde_mm512_cvtepi8_epi16
#undef _mm512_castsi512_si256
#define _mm512_castsi512_si256 simde_mm512_castsi512_si256
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64 simde_mm512_extracti64x4_epi64

#endif /* SIMDE_MANY_H */
