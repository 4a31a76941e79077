/* SPDX-License-Identifier: MIT */
/*
 * A partial file: layers that a calibration has finished, so that one that is
 * killed loses no more than what it was at.
 */
#ifndef CQCTL_PARTIAL_H
#define CQCTL_PARTIAL_H

#include <stdbool.h>
#include "cq/err.h"
#include "cq/page.h"

/**
 * struct ctl_partial - a partial file
 * @path: its name, or NULL before ctl_partial_open()
 * @fd:   -1 before ctl_partial_open() and if it failed
 * @id:   of the dump and the options
 * @at:   [layer] where its record is, 0 if there is none
 * @end:  where the next record goes, 0 if nothing of this run is there
 */
struct ctl_partial {
	char *path;
	int fd;
	uint8_t id[32];
	uint64_t at[CQ_MAX_LAYERS];
	uint64_t end;
};

/**
 * ctl_partial_open() - have a file that no other process works at
 * @p:      filled; ended with ctl_partial_close(), even on failure
 * @output: the partial file has this name and ".part" behind it
 * @err:    text of the failure
 *
 * Nothing that is there changes. Return: 0; -EINVAL no regular file; -EBUSY another
 * process is at it; -ENOMEM; -errno.
 */
int ctl_partial_open(struct ctl_partial *p, const char *output, struct cq_err *err);

/**
 * ctl_partial_start() - find out what an earlier run has kept
 * @p:      opened
 * @id:     [32] of the dump and the options
 * @resume: read what is there; otherwise it is overwritten by the first record
 * @err:    text of the failure
 *
 * A record that is cut short is dropped; a file that ends within its head holds
 * nothing. Return: 0; -EINVAL it is of another run; -errno.
 */
int ctl_partial_start(struct ctl_partial *p, const uint8_t *id, bool resume,
		      struct cq_err *err);

/**
 * ctl_partial_load() - a layer that was kept
 * @p:     file
 * @layer: its number
 * @data:  [size] set
 * @size:  bytes wanted
 *
 * Return: 1; 0 it was not kept, not with that size, or has changed since; -errno.
 */
int ctl_partial_load(struct ctl_partial *p, uint32_t layer, void *data, size_t size);

/* Keeps a layer: on return it is on disk. 0 or -errno. */
int ctl_partial_save(struct ctl_partial *p, uint32_t layer, const void *data, size_t size);

/* All of @buf, from offset @at of a file on. 0 or -errno. */
int ctl_write_at(int fd, const void *buf, size_t n, uint64_t at);

/* Removes the file, if this process has one. */
void ctl_partial_remove(struct ctl_partial *p);
/* Ends its use; a file that holds nothing goes. */
void ctl_partial_close(struct ctl_partial *p);

#endif /* CQCTL_PARTIAL_H */
