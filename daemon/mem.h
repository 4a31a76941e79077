/* SPDX-License-Identifier: MIT */
/* Where segments live: the table of memory backends. */
#ifndef CQD_MEM_H
#define CQD_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "cq/err.h"

#define CQD_HUGE_BYTES	(2u << 20)

struct cqd_ipc_link;

enum cqd_huge { CQD_HUGE_NEVER, CQD_HUGE_AUTO, CQD_HUGE_ALWAYS };
enum cqd_numa { CQD_NUMA_DEFAULT, CQD_NUMA_INTERLEAVE, CQD_NUMA_BIND, CQD_NUMA_PREFERRED };

/**
 * struct cqd_mem_policy - where pages of host memory come from
 * @huge:  enum cqd_huge
 * @numa:  enum cqd_numa
 * @nodes: of CQD_NUMA_BIND and _PREFERRED, by bit
 */
struct cqd_mem_policy {
	uint32_t huge, numa;
	uint64_t nodes;
};

#define CQD_UUID_TEXT	48
#define CQD_HANDLE	64	/* bytes of an IPC handle */

/**
 * struct cqd_mem_device - a device with memory of its own
 * @uuid:        as in cqd.conf; empty: the host
 * @ordinal:     the driver's number, of this process
 * @bytes:       of its memory, 0: unknown
 * @granularity: segments are multiples of it
 * @node:        device node that must stay open for as long as there are segments;
 *               empty: none
 * @link:        to the process that holds its memory, NULL: there is none
 */
struct cqd_mem_device {
	char uuid[CQD_UUID_TEXT];
	int ordinal;
	uint64_t bytes, granularity;
	char node[32];
	struct cqd_ipc_link *link;
};

/* As in enum Backend of proto/cq.proto. */
enum cqd_mem_kind { CQD_MEM_MEMFD, CQD_MEM_CUDA_VMM, CQD_MEM_CUDA_IPC };

/**
 * struct cqd_mem - memory of one segment
 * @bytes: size, fixed for life
 * @id:    its number, which no other has, also after a restart
 * @fd:    owner's descriptor, goes to the fd store; -1: there is none
 * @ro_fd: what clients get; for memfd an O_RDONLY reopen
 * @boot:  with a holder: which one made it, 0: none
 * @handle: with a holder: what clients get
 * @dev:   where, NULL: the host
 * @policy: for create, NULL: none
 * @base:  mapping in the daemon, NULL where it has none; of a segment it is not
 *         touched, payloads go through the table below
 */
struct cqd_mem {
	uint64_t bytes, id;
	int fd;
	int ro_fd;
	uint64_t boot;
	uint8_t handle[CQD_HANDLE];
	void *base;
	const struct cqd_mem_device *dev;
	const struct cqd_mem_policy *policy;
};

/**
 * struct cqd_mem_ops - a memory backend
 * @name:    unique, as written in cqd.conf: "memfd", "cuda-vmm", "cuda-ipc"
 * @kind:    as clients are told
 * @remote:  cqd cannot reach payloads: workers lease slots and write them; then
 *           @write, @fill, @read and @check must be missing, and nobody calls them
 * @usable:  0, or -errno with the reason; called once for each pool
 * @probe:   look for @dev->uuid, and fill in the rest; -ENODEV
 * @create:  reserve @mem->bytes and fill the rest of @mem
 * @adopt:   the same around @mem->fd, which came back from the fd store, or by @mem->id
 * @discard: give the bytes back although others may have them mapped; nobody
 *           reads them any more
 * @destroy: undo either; memory not discarded lives on while others hold fds, or
 *           its holder lives
 * @write:   copy @len bytes from @src_fd at @src_off to @dst_off; short source is
 *           -EFAULT
 * @fill:    copy @len bytes from memory
 * @read:    copy @len bytes to memory
 * @check:   XXH3-128 over XXH3-64 of each 4 KiB of [@off, @off + @len)
 *
 * All other callbacks are mandatory and registration refuses a table with a hole.
 * They may block and run on worker threads, never two at a time on the same
 * range of the same segment.
 */
struct cqd_mem_ops {
	const char *name;
	enum cqd_mem_kind kind;
	bool remote;
	int (*usable)(struct cq_err *err);
	int (*probe)(struct cqd_mem_device *dev, struct cq_err *err);
	int (*create)(struct cqd_mem *mem, struct cq_err *err);
	int (*adopt)(struct cqd_mem *mem, struct cq_err *err);
	void (*discard)(struct cqd_mem *mem);
	void (*destroy)(struct cqd_mem *mem);
	int (*write)(struct cqd_mem *mem, uint64_t dst_off, int src_fd,
		     uint64_t src_off, uint64_t len);
	int (*fill)(struct cqd_mem *mem, uint64_t dst_off, const void *src, uint64_t len);
	int (*read)(struct cqd_mem *mem, uint64_t off, void *dst, uint64_t len);
	int (*check)(struct cqd_mem *mem, uint64_t off, uint64_t len,
		     uint64_t *lo, uint64_t *hi);
};

/* 0, or -EINVAL: a hole, or the name is taken. */
int cqd_mem_register(const struct cqd_mem_ops *ops);
/* NULL if there is none of that name. */
const struct cqd_mem_ops *cqd_mem_find(const char *name);
/* Makes a segment by @attempt, again for a second while that is -ENOMEM: then -ENOSPC. */
int cqd_mem_patient(struct cqd_mem *mem,
		    int (*attempt)(struct cqd_mem *mem, void *arg, struct cq_err *err),
		    void *arg, struct cq_err *err);

extern const struct cqd_mem_ops cqd_mem_memfd, cqd_mem_cuda, cqd_mem_ipc;

/* --- mem_policy.c --- */

/* Nodes and huge pages of a memfd without pages yet; then it is reserved. */
int cqd_mem_prepare(int fd, uint64_t bytes, const struct cqd_mem_policy *policy,
		    struct cq_err *err);
/* Huge pages of one that is reserved, if they must be. */
void cqd_mem_collapse(int fd, uint64_t bytes, const struct cqd_mem_policy *policy);
/* Tries @policy and says what it gives; -EINVAL no such nodes. */
int cqd_mem_probe(const struct cqd_mem_ops *ops, struct cqd_mem_policy *policy, char *text,
		  size_t size, struct cq_err *err);

#endif /* CQD_MEM_H */
