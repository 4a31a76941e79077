/* SPDX-License-Identifier: MIT */
/*
 * Reader of files of saved pages (proto/save.h). Any bytes may come: what is
 * damaged is passed over, the next record is looked for, and what is missing is
 * counted. It blocks, so it runs on worker threads.
 */
#ifndef CQD_SAVEFILE_H
#define CQD_SAVEFILE_H

#include <stdbool.h>
#include <stdint.h>
#include "proto/save.h"

#define CQD_SAVEFILE_CHUNK	65536

/**
 * struct cqd_savefile - a file being read
 * @fd:        regular file, of whoever opened it
 * @bytes:     its size when it was opened
 * @file_id, @flags: of its head
 * @pos:       where the next record should begin
 * @seq:       its number
 * @searched:  bytes passed over to find records
 * @missing:   records, by their numbers, that were not found
 * @unknown:   records of a type that may not be passed over, and pages that make
 *             no sense
 * @unread:    reads that failed
 * @ended:     an end was found
 * @torn:      bytes at the end that are no record
 * @buf:       being searched
 */
struct cqd_savefile {
	int fd;
	uint64_t bytes, file_id;
	uint32_t flags;
	uint64_t pos, seq, searched, missing, unknown, unread;
	bool ended, torn;
	_Alignas(8) uint8_t buf[CQD_SAVEFILE_CHUNK];
};

/* 0; -EINVAL no regular file, or none of saved pages; other -errno. */
int cqd_savefile_open(struct cqd_savefile *f, int fd, struct cq_err *err);
/*
 * The next page: 1 with its meta and the offset of its record; 0 at the end;
 * -EAGAIN: a stretch without records was passed, call again.
 */
int cqd_savefile_next(struct cqd_savefile *f, struct cqp_save_page *page,
		      uint64_t *offset);
/* The page at @offset once more: 0; -EINVAL no longer there; other -errno. */
int cqd_savefile_page(const struct cqd_savefile *f, uint64_t offset,
		      struct cqp_save_page *page);
/* Records missing for sure: gaps in the numbers, or the end. */
uint64_t cqd_savefile_lost(const struct cqd_savefile *f);

#endif /* CQD_SAVEFILE_H */
