/* SPDX-License-Identifier: MIT */
/* Inside of cq-holder: its device, its blocks, its connections. */
#ifndef CQD_HOLDER_HOLDER_H
#define CQD_HOLDER_HOLDER_H

#include <stdbool.h>
#include <stdint.h>
#include "cq/err.h"
#include "kernels/cuda/driver.h"
#include "proto/holder.h"

/* --- device.c --- */

/**
 * struct ch_device - the GPU, with a context of this process
 * @cu:    driver's calls
 * @bytes: of its memory
 */
struct ch_device {
	const struct cqk_cuda *cu;
	cqcu_device ordinal;
	uint64_t bytes;
	char uuid[48];
};

/* 0; -ENODEV; what cqk_cuda_get() returns. The context stays until the process ends. */
int ch_device_open(struct ch_device *dev, const char *uuid, struct cq_err *err);
/* Zeroed memory and its handle. 0; -ENOMEM; -EOWNERDEAD the context is lost; -EIO. */
int ch_device_alloc(const struct ch_device *dev, uint64_t bytes, cqcu_ptr *p,
		    uint8_t handle[CQP_HOLDER_HANDLE], struct cq_err *err);
/* 0; -EOWNERDEAD; -EIO. */
int ch_device_free(const struct ch_device *dev, cqcu_ptr p, struct cq_err *err);

/* --- blocks.c --- */

struct ch_block {
	struct cqp_holder_block b;
	cqcu_ptr p;
};

/**
 * struct ch_blocks - what is allocated
 * @block: ascending by number, [@n]
 */
struct ch_blocks {
	struct ch_block block[CQP_HOLDER_BLOCKS];
	unsigned int n;
};

/* Place of the first block of that number or above. */
unsigned int ch_blocks_from(const struct ch_blocks *t, uint64_t number);
/* NULL: there is none. */
struct ch_block *ch_blocks_find(struct ch_blocks *t, uint64_t number);
/* Its number is not in the table, and the table not full. */
void ch_blocks_add(struct ch_blocks *t, const struct ch_block *b);
void ch_blocks_remove(struct ch_blocks *t, struct ch_block *b);
uint64_t ch_blocks_bytes(const struct ch_blocks *t);

/* --- serve.c --- */

#define CH_CONNS 4

/**
 * struct ch_server - the process
 * @name:  of the section in cqd.conf
 * @boot:  of this process
 * @conn:  connections, -1: none
 * @cqd:   place in @conn of the one that said Hello last, -1
 */
struct ch_server {
	const char *name;
	struct ch_device dev;
	struct ch_blocks blocks;
	uint64_t boot;
	int listener, signals;
	int conn[CH_CONNS];
	int cqd;
};

/* Until SIGTERM or SIGINT: 0. -EOWNERDEAD: the context is lost; other -errno. */
int ch_serve(struct ch_server *s);

#endif /* CQD_HOLDER_HOLDER_H */
