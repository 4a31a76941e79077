/* SPDX-License-Identifier: MIT */
/*
 * The way to the process that holds a GPU's memory (sharing = ipc): cq-holder, or
 * whoever speaks its protocol (proto/holder.h). Knows no store and no loop.
 */
#ifndef CQD_IPC_LINK_H
#define CQD_IPC_LINK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include "cq/err.h"
#include "proto/holder.h"

/**
 * struct cqd_ipc_peer - a connection to a holder that said who it is
 * @fd:    -1: none
 * @boot:  of the holder's process; with another one all blocks are gone
 * @bytes: of the device's memory
 * @list:  [@n] what it held when it was reached, ascending; malloc'ed
 * @taken: [@n] a segment is in it
 */
struct cqd_ipc_peer {
	int fd;
	uint64_t boot, bytes;
	struct cqp_holder_block *list;
	bool *taken;
	unsigned int n;
};

/**
 * struct cqd_ipc_link - of one pool, for all threads
 * @lock: one request at a time
 * @name: of the section in cqd.conf
 * @path: of the socket
 * @uuid: of the device
 */
struct cqd_ipc_link {
	pthread_mutex_t lock;
	struct cqd_ipc_peer peer;
	uint64_t seq;
	const char *name, *path, *uuid;
};

void cqd_ipc_link_init(struct cqd_ipc_link *l, const char *name, const char *path,
		       const char *uuid);
/* Connects, says Hello and asks for the list; waits 2 s at most. 0; -ECONNREFUSED there is
 * no holder; other -errno: it cannot be said what there is. */
int cqd_ipc_reach(const struct cqd_ipc_link *l, struct cqd_ipc_peer *out, struct cq_err *err);
/* Closes and frees what is in @p; its fd is -1 then. */
void cqd_ipc_peer_close(struct cqd_ipc_peer *p);
/* Gives back what is in the list and not taken, and forgets the list. */
void cqd_ipc_peer_sweep(struct cqd_ipc_peer *p);
void cqd_ipc_peer_forget(struct cqd_ipc_peer *p);
/* The block of that number and size in the list, marked as taken; NULL. */
const struct cqp_holder_block *cqd_ipc_peer_take(struct cqd_ipc_peer *p, uint64_t block,
						 uint64_t bytes);
/* From now on @p, which is moved, or none: NULL. */
void cqd_ipc_link_set(struct cqd_ipc_link *l, struct cqd_ipc_peer *p);
/* A block of zeros. 0; -ENOMEM the device has none now; -ENODATA there is no holder;
 * -ETIMEDOUT; -EPROTO; other -errno of the holder. */
int cqd_ipc_alloc(struct cqd_ipc_link *l, uint64_t block, uint64_t bytes,
		  uint8_t handle[CQP_HOLDER_HANDLE], uint64_t *boot, struct cq_err *err);
/* Gives a block of the holder @boot back. */
void cqd_ipc_free(struct cqd_ipc_link *l, uint64_t boot, uint64_t block);

#endif /* CQD_IPC_LINK_H */
