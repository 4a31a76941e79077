/* SPDX-License-Identifier: MIT */
/*
 * What a library of emulated kernels (libcqk_emu.so) offers to who loads it:
 * the fake driver and the tests. Plain C, found by dlsym().
 *
 * A kernel is a function of the same .cu file that nvcc compiles. Each block
 * runs on one thread of the operating system and its threads are fibers on it,
 * which switch at barriers and collectives only. Memory is the process's own.
 */
#ifndef CUEMU_API_H
#define CUEMU_API_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CUEMU_API __attribute__((visibility("default")))

#define CUEMU_MAX_THREADS	1024		/* of a block */
#define CUEMU_MAX_CLUSTER	8		/* blocks, as on every device that has them */
#define CUEMU_MAX_SHARED	(227 * 1024)	/* dynamic shared memory, as on sm_90 */

/* Where one parameter lies in the buffer of them all, as the compiler has it. */
struct cuemu_param {
	uint32_t offset;
	uint32_t size;
};

/*
 * One kernel. @max_threads is of __launch_bounds__, @cluster of __cluster_dims__: so many
 * blocks that follow each other in x, of which a grid has a multiple; @param_bytes is the size
 * of the buffer of all parameters; @call runs one thread (for cuemu alone).
 */
struct cuemu_kernel {
	const char *name;
	uint32_t max_threads;
	uint32_t cluster;
	uint32_t num_params;
	uint32_t param_bytes;
	const struct cuemu_param *params;
	void (*call)(void *const *params);
	const struct cuemu_kernel *next;
};

/* Which of the threads that may run goes on: the results must not depend on it. */
enum cuemu_order {
	CUEMU_FORWARD = 0,
	CUEMU_REVERSE = 1,
	CUEMU_RANDOM = 2,
};

/*
 * A launch. @params has a pointer to each parameter, as for cuLaunchKernel();
 * they are read until cuemu_launch() returns, so who queues a launch copies
 * them first (@num_params and @params of the kernel say how much).
 * @threads of the operating system share the blocks, 0 means one; @seed is for
 * CUEMU_RANDOM, and one seed gives one order whatever @threads is.
 */
struct cuemu_launch_args {
	uint32_t grid[3];
	uint32_t block[3];
	uint32_t shared_bytes;
	uint32_t threads;
	uint32_t order;
	uint64_t seed;
	void *const *params;
};

/* The kernel of that name, NULL if there is none; cuemu_first() begins the list. */
CUEMU_API const struct cuemu_kernel *cuemu_find(const char *name);
CUEMU_API const struct cuemu_kernel *cuemu_first(void);

/*
 * Run all blocks of a launch. 0; -EINVAL for a launch that no device would
 * take; -EFAULT when the kernel did what a device would not survive, or what
 * no device defines (a barrier that not all threads reach, ...), -EACCES when
 * it was a trap of the CPU, mostly an address that it has no access to: the launch
 * stops there. The text is in cuemu_error(), of the calling thread, and has
 * been printed on stderr.
 */
CUEMU_API int cuemu_launch(const struct cuemu_kernel *kernel, const struct cuemu_launch_args *args);
CUEMU_API const char *cuemu_error(void);

/*
 * Launches install a handler of SIGSEGV and SIGBUS, unless their user says with
 * cuemu_no_handler() that it has one. That one may ask whether it is a kernel
 * that was interrupted, with its ucontext_t; cuemu_trap() then ends the launch
 * and does not return. It returns if it is not.
 */
CUEMU_API void cuemu_no_handler(void);
CUEMU_API int cuemu_is_kernel(const void *ucontext);
CUEMU_API void cuemu_trap(const void *ucontext, const void *address);

#ifdef __cplusplus
}
#endif

#endif /* CUEMU_API_H */
