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
 * @fd:   -1 until there is a file
 * @id:   of the dump and the options
 * @at:   [layer] where its record is, 0 if there is none
 * @end:  where the next record goes
 */
struct ctl_partial {
	char *path;
	int fd;
	uint8_t id[32];
	uint64_t at[CQ_MAX_LAYERS];
	uint64_t end;
};

/**
 * ctl_partial_open() - find out what an earlier run has kept
 * @p:      filled; ended with ctl_partial_close(), even on failure
 * @output: the partial file has this name and ".part" behind it
 * @id:     [32] of the dump and the options
 * @resume: read what is there; otherwise it is overwritten by the first record
 * @err:    text of the failure
 *
 * A record that is cut short is dropped. Return: 0; -EINVAL it is of another run or
 * no such file; -EBUSY another process is at it; -ENOMEM; -errno.
 */
int ctl_partial_open(struct ctl_partial *p, const char *output, const uint8_t *id,
		     bool resume, struct cq_err *err);

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

/* Removes the file, if this process has one. */
void ctl_partial_remove(struct ctl_partial *p);
void ctl_partial_close(struct ctl_partial *p);

#endif /* CQCTL_PARTIAL_H */
