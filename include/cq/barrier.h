/* SPDX-License-Identifier: MIT */
/*
 * Memory barriers under the kernel's names, over C11 atomics.
 *
 * Everything that another process can change is read with READ_ONCE() or
 * smp_load_acquire(), copied, and the copy is validated. Each use carries a
 * comment that names its partner; Documentation/memory-ordering.md lists the
 * pairs.
 */
#ifndef CQ_BARRIER_H
#define CQ_BARRIER_H

#define READ_ONCE(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define WRITE_ONCE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)
#define smp_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define smp_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define smp_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define smp_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define smp_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)

#endif /* CQ_BARRIER_H */
