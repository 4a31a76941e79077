// SPDX-License-Identifier: MIT
/*
 * Pools: where segments live, how much of it there is, and how much is used.
 * The first is the host's memory.
 */
#include <errno.h>
#include <stdio.h>
#include "daemon/store_priv.h"

static int pool_init(struct cqd_pool *pool, const char *name, const char *backend,
		     uint64_t limit, struct cq_err *err)
{
	pool->mem = cqd_mem_find(backend);
	if (!pool->mem)
		return cq_err_set(err, -EINVAL, "there is no memory backend '%s'", backend);
	snprintf(pool->name, sizeof(pool->name), "%s", name);
	pool->limit = limit;
	pool->evicting = CQP_NONE;
	return pool->mem->usable(err);
}

/**
 * cqd_pools_init() - the pools that the options name
 * @st:  store with its options
 * @err: text of the failure
 *
 * Return: 0; -EINVAL no such backend; other -errno: it cannot be used.
 */
int cqd_pools_init(struct cqd_store *st, struct cq_err *err)
{
	const struct cqd_store_opts *o = &st->o;

	st->n_pools = 1;
	return pool_init(st->pool, "host", o->backend ? o->backend : "memfd", o->pool_bytes,
			 err);
}

/**
 * cqd_pools_limit() - bytes that all pools together may have
 * @st: store
 *
 * Return: bytes.
 */
uint64_t cqd_pools_limit(const struct cqd_store *st)
{
	uint64_t bytes = 0;
	unsigned int i;

	for (i = 0; i < st->n_pools; i++)
		bytes += st->pool[i].limit;
	return bytes;
}

/**
 * cqd_pool_figures() - a pool at this moment
 * @st:  store
 * @i:   number, from 0 on; 0 is the host's
 * @out: filled on success
 *
 * Return: false if there are not so many.
 */
bool cqd_pool_figures(const struct cqd_store *st, uint32_t i, struct cqd_pool_figures *out)
{
	const struct cqd_pool *pool;

	if (i >= st->n_pools)
		return false;
	pool = &st->pool[i];
	*out = (struct cqd_pool_figures){
		.name = pool->name,
		.backend = pool->mem->name,
		.limit = pool->limit,
		.reserved = pool->reserved,
		.used = pool->used,
	};
	return true;
}
