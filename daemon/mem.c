// SPDX-License-Identifier: MIT
/* The table of memory backends. Filled before the loop runs, read afterwards. */
#include <errno.h>
#include <string.h>
#include "daemon/mem.h"

#define MAX_BACKENDS 5

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
