/* SPDX-License-Identifier: MIT */
/*
 * Atomics, fences, loads and stores with hints. Blocks run side by side on
 * threads of the OS, so atomics are the CPU's.
 */
#ifndef CUEMU_MEMORY_HPP
#define CUEMU_MEMORY_HPP

#include "tests/emu/engine.hpp"

CUEMU_FN void __threadfence_block() {}
CUEMU_FN void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
CUEMU_FN void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
CUEMU_FN void __nanosleep(unsigned int) { cuemu::give_way(); }

namespace cuemu {

/* *p = step(*p), at once; the value before. */
template <typename T, typename Step>
static inline T atomic_step(T *p, Step step)
{
	using raw = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
	raw *at = reinterpret_cast<raw *>(p);
	raw before = __atomic_load_n(at, __ATOMIC_RELAXED), after;
	T old, now;

	static_assert(sizeof(T) == 4 || sizeof(T) == 8, "32 or 64 bits");
	do {
		memcpy(&old, &before, sizeof(old));
		now = step(old);
		memcpy(&after, &now, sizeof(after));
	} while (!__atomic_compare_exchange_n(at, &before, after, false, __ATOMIC_SEQ_CST,
					      __ATOMIC_RELAXED));
	return old;
}

template <typename T> struct same_type { typedef T type; };

} /* namespace cuemu */

/* The value's type is the pointer's, as with overloads; it is not deduced. */
#define CUEMU_ATOMIC(name, expr) \
template <typename T> \
CUEMU_FN T name(T *p, typename cuemu::same_type<T>::type v) \
{ \
	return cuemu::atomic_step(p, [v](T old) { return (T)(expr); }); \
} \
template <typename T> \
CUEMU_FN T name##_system(T *p, typename cuemu::same_type<T>::type v) { return name(p, v); } \
template <typename T> \
CUEMU_FN T name##_block(T *p, typename cuemu::same_type<T>::type v) { return name(p, v); }
CUEMU_ATOMIC(atomicAdd, old + v)
CUEMU_ATOMIC(atomicSub, old - v)
CUEMU_ATOMIC(atomicMax, old < v ? v : old)
CUEMU_ATOMIC(atomicMin, v < old ? v : old)
CUEMU_ATOMIC(atomicExch, ((void)old, v))
CUEMU_ATOMIC(atomicAnd, old & v)
CUEMU_ATOMIC(atomicOr, old | v)
CUEMU_ATOMIC(atomicXor, old ^ v)
CUEMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
CUEMU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef CUEMU_ATOMIC

template <typename T>
CUEMU_FN T atomicCAS(T *p, typename cuemu::same_type<T>::type expected,
		     typename cuemu::same_type<T>::type v)
{
	return cuemu::atomic_step(p, [=](T old) { return old == expected ? v : old; });
}

/* Cache hints change no value. */
#define CUEMU_LOAD(name) template <typename T> CUEMU_FN T name(const T *p) { return *p; }
CUEMU_LOAD(__ldg)
CUEMU_LOAD(__ldca)
CUEMU_LOAD(__ldcg)
CUEMU_LOAD(__ldcs)
CUEMU_LOAD(__ldlu)
CUEMU_LOAD(__ldcv)
#undef CUEMU_LOAD
#define CUEMU_STORE(name) \
template <typename T> \
CUEMU_FN void name(T *p, typename cuemu::same_type<T>::type v) { *p = v; }
CUEMU_STORE(__stwb)
CUEMU_STORE(__stcg)
CUEMU_STORE(__stcs)
CUEMU_STORE(__stwt)
#undef CUEMU_STORE

#endif /* CUEMU_MEMORY_HPP */
