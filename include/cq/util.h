/* SPDX-License-Identifier: MIT */
#ifndef CQ_UTIL_H
#define CQ_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/param.h>	/* MIN, MAX */

#define container_of(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))


/* @a is a power of two. */
#define ALIGN_UP(x, a) (((x) + ((a) - 1)) & ~((uint64_t)(a) - 1))

#endif /* CQ_UTIL_H */
