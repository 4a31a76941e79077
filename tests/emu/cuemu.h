/* SPDX-License-Identifier: MIT */
/*
 * CUDA for kernels on the CPU: what dev.h takes when the compiler is not nvcc.
 * C++17, x86-64 or any other machine with ucontext.
 *
 *	types.hpp	words of the language, vectors of numbers
 *	half.hpp	fp16 and bf16
 *	engine.hpp	threads as fibers, barriers, what the machine checks
 *	warp.hpp	shuffles, votes, reductions
 *	memory.hpp	atomics, fences, loads with hints
 *	math.hpp	intrinsics
 *	tensor.hpp	cp.async, ldmatrix, mma.sync
 *	hopper.hpp	what sm_90 has: barriers of some threads, bulk copies, wgmma
 */
#ifndef CUEMU_H
#define CUEMU_H

#include "tests/emu/types.hpp"
#include "tests/emu/half.hpp"
#include "tests/emu/engine.hpp"
#include "tests/emu/warp.hpp"
#include "tests/emu/memory.hpp"
#include "tests/emu/math.hpp"
#include "tests/emu/tensor.hpp"
#include "tests/emu/hopper.hpp"
#include "tests/emu/kernel.hpp"

#endif /* CUEMU_H */
