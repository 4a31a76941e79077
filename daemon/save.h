/* SPDX-License-Identifier: MIT */
/*
 * Saving sealed pages to files and bringing them back: what is shared by
 * cqctl save, cqctl restore (daemon/save.c, daemon/restore.c) and persist=
 * (daemon/persist.c).
 */
#ifndef CQD_SAVE_H
#define CQD_SAVE_H

#include "daemon/savefile.h"
#include "daemon/store_priv.h"

#define CQD_SAVE_BATCH		16
#define CQD_SAVE_BATCH_BYTES	(4u << 20)
#define CQD_SAVE_BUFFER		(256u << 10)	/* blocks of 512 bytes */

/*
 * struct cqd_transfer - one for cqctl; the store has one at a time
 * @arg:  of the callback
 * @gone: nobody waits for its outcome any more
 */
struct cqd_transfer {
	const void *arg;
	bool gone;
};

/* A page being written. */
struct cqd_save_item {
	uint32_t page;
	struct cqd_place at[CQD_N_KINDS];
	struct cqp_save_page meta;
};

/**
 * struct cqd_save - pages on their way to a file
 * @fd:       regular file, of the caller
 * @log:      appended to without an end; else head, pages, end
 * @mark:     pages written get CQD_PG_SAVED
 * @unsaved:  only pages without that flag
 * @rewrite:  only pages with it; those that are not sealed just now lose it
 * @cancel:   ends with -ECANCELED after the batch under way
 * @timer:    pauses between batches, so that no more than @rate bytes per second
 *            are written; NULL: no pauses
 * @file_id, @pos, @seq: where to go on in the file; @pos 0: with its head
 * @pages, @bytes: written by this run
 * @ret, @err: how it ended; @doubt: batches written before may be lost as well
 * @batch:    called after each batch, may be NULL
 * @done:     called on the loop, once
 */
struct cqd_save {
	struct cqd_job job;
	struct cqd_store *st;
	int fd;
	bool log, mark, unsaved, rewrite, cancel, last, paused, doubt;
	uv_timer_t *timer;
	uint64_t rate;
	uint64_t file_id, pos, seq, good_pos, good_seq, unsynced;
	uint64_t pages, bytes, batch_bytes;
	uint32_t next, n;
	struct cqd_save_item item[CQD_SAVE_BATCH];
	size_t fill;
	uint8_t buf[CQD_SAVE_BUFFER];
	int ret;
	struct cq_err err;
	void (*batch)(struct cqd_save *s);
	void (*done)(struct cqd_save *s);
};

/* Starts a run; what the caller must set is all above but the rest, which is 0. */
void cqd_save_run(struct cqd_store *st, struct cqd_save *s);
/* Ends a pause at once. */
void cqd_save_hurry(struct cqd_save *s);

/**
 * struct cqd_restore_opts - where pages come from
 * @fds:   regular files, of which the operation takes duplicates
 * @n:     their number
 * @name:  of the session that holds pages while they are copied
 * @mark:  pages that are resident, or were brought back, get CQD_PG_SAVED
 * @look:  bring nothing back
 * @admin: counts as the store's one transfer
 */
struct cqd_restore_opts {
	const int *fds;
	unsigned int n;
	const char *name;
	bool mark, look, admin;
};

struct cqd_restore;
/* As cqd_restore() of store.h. @out: for cqd_restore_look(), gone with @done. */
int cqd_restore_start(struct cqd_store *st, const struct cqd_restore_opts *o,
		      cqd_restore_cb done, void *arg, struct cqd_restore **out,
		      struct cq_err *err);
/* Brings nothing more back from now on, and ends soon. */
void cqd_restore_look(struct cqd_restore *r);

/**
 * struct cqd_seal_saved - a page to be copied from a file and published
 * @file:   open file in the shape of an arena
 * @meta:   what is known of it
 * @offset: of its codes in the file
 */
struct cqd_seal_saved {
	struct cqd_arena *file;
	const struct cqp_save_page *meta;
	uint64_t offset;
};

/* As cqd_seal(), but nothing is evicted for it. -EBADMSG to @done: checksum. */
int cqd_seal_saved(struct cqd_client *client, struct cqd_shard *shard,
		   const struct cqd_seal_saved *req, cqd_seal_cb done, void *arg,
		   struct cq_err *err);

#endif /* CQD_SAVE_H */
