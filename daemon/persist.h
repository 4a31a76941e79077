/* SPDX-License-Identifier: MIT */
/* persist=: what daemon/persist.c and daemon/persist_dir.c share, and for tests. */
#ifndef CQD_PERSIST_H
#define CQD_PERSIST_H

#include "daemon/save.h"

enum cqd_persist_state {
	CQD_PERSIST_LIST,	/* and RESTORE */
	CQD_PERSIST_IDLE,
	CQD_PERSIST_WRITE,
	CQD_PERSIST_REWRITE,
};

/* A file of a daemon before. @fd: -1 once it has been read. */
struct cqd_persist_file {
	uint32_t number;
	int fd;
	uint64_t bytes;
};

/**
 * struct cqd_persist - a folder that follows the store
 * @timer:    pauses
 * @file:     files of daemons before, oldest first; @old_bytes of them
 * @number:   of the newest file
 * @save:     this daemon's log: fd -1 while there is none
 * @seen:     pages published when the last round began; @dirty: another is wanted anyway
 * @slack:    bytes that files may be larger than twice what is resident
 * @failing:  said already
 * @distrust: the disk failed: marks mean nothing, everything is written anew
 * @damaged:  records are missing in the files: they are written anew
 * @rest_ms:  the pause behind the last batch, by @rate
 * @said:     of the folder's reading
 */
struct cqd_persist {
	struct cqd_job job;
	struct cqd_store *st;
	char *dir;
	int dirfd;
	uint64_t rate, slack;
	uv_timer_t timer;
	enum cqd_persist_state state;
	struct cqd_persist_file *file;
	unsigned int n_files;
	uint64_t old_bytes;
	uint32_t number;
	struct cqd_save save;
	struct cqd_restore *restore;
	uint64_t seen;
	uint64_t rest_ms;
	bool saving, dirty, failing, distrust, damaged, flushing;
	int ret;
	char said[256];
	void (*flushed)(void *arg);
	void *flushed_arg;
};

/* Of the folder, on a worker thread; the outcome is in the struct's @ret. */
void cqd_persist_list(struct cqd_job *job);
void cqd_persist_open(struct cqd_job *job);
void cqd_persist_drop(struct cqd_job *job);
void cqd_persist_swap(struct cqd_job *job);

#endif /* CQD_PERSIST_H */
