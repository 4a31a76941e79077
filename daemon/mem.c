// SPDX-License-Identifier: MIT
/*
 * The table of memory backends, filled before the loop runs and read afterwards; and
 * what those of devices have in common.
 */
#include <errno.h>
#include <string.h>
#include <time.h>
#include "daemon/mem.h"

#define MAX_BACKENDS 5
#define TRIES	20	/* of a device that is full */
#define WAIT_MS	50

static const struct cqd_mem_ops *backends[MAX_BACKENDS] = {
	&cqd_mem_memfd, &cqd_mem_cuda, &cqd_mem_ipc,
};

static bool has_hole(const struct cqd_mem_ops *o)
{
	if (o->remote ? o->write || o->fill || o->read || o->check :
			!o->write || !o->fill || !o->read || !o->check)
		return true;
	return !o->name || !o->name[0] || !o->usable || !o->probe || !o->create ||
	       !o->adopt || !o->discard || !o->destroy;
}

/**
 * cqd_mem_register() - add a backend
 * @ops: complete table, lives for ever
 *
 * Not thread-safe: called while the program starts.
 *
 * Return: 0; -EINVAL a hole, a callback that a remote backend cannot have, or the
 * name is taken; -ENOSPC table full.
 */
int cqd_mem_register(const struct cqd_mem_ops *ops)
{
	unsigned int i;

	if (!ops || has_hole(ops) || cqd_mem_find(ops->name))
		return -EINVAL;
	for (i = 0; i < MAX_BACKENDS; i++) {
		if (backends[i])
			continue;
		backends[i] = ops;
		return 0;
	}
	return -ENOSPC;
}

/**
 * cqd_mem_find() - backend by name
 * @name: as in cqd.conf
 *
 * Return: the table, NULL if there is none of that name.
 */
const struct cqd_mem_ops *cqd_mem_find(const char *name)
{
	unsigned int i;

	for (i = 0; i < MAX_BACKENDS; i++)
		if (backends[i] && !strcmp(backends[i]->name, name))
			return backends[i];
	return NULL;
}

/**
 * cqd_mem_patient() - make a segment on a device that may be full for the moment
 * @mem:     to be made
 * @attempt: 0; -ENOMEM the device has no memory now; -errno with text
 * @arg:     passed to @attempt
 * @err:     text of the failure
 *
 * Memory that importers have let go comes back when the driver has got round to it, so
 * -ENOMEM is believed only after a second. For a worker thread.
 *
 * Return: 0; -ENOSPC still full after a second; -errno of @attempt.
 */
int cqd_mem_patient(struct cqd_mem *mem,
		    int (*attempt)(struct cqd_mem *mem, void *arg, struct cq_err *err),
		    void *arg, struct cq_err *err)
{
	const struct timespec pause = { .tv_nsec = WAIT_MS * 1000000L };
	int ret, i;

	for (i = 0;; i++) {
		ret = attempt(mem, arg, err);
		if (ret != -ENOMEM)
			return ret;
		if (i == TRIES)
			break;
		nanosleep(&pause, NULL);
	}
	return cq_err_set(err, -ENOSPC, "%s has no %llu MiB of memory left, tried for %d ms: "
			  "lower its pool_bytes, or what else runs there", mem->dev->uuid,
			  (unsigned long long)(mem->bytes >> 20), TRIES * WAIT_MS);
}
