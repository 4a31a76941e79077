// SPDX-License-Identifier: MIT
/*
 * Pools: where segments live, how much of it there is, and how much is used.
 * The first is the host's memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cq/log.h"
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
	pool->node_fd = -1;
	return 0;
}

/* 0, or why there can be no segment in it. */
static int probe(struct cqd_pool *pool, struct cq_err *err)
{
	int ret = pool->mem->usable(err);

	if (!ret)
		ret = pool->mem->probe(&pool->dev, err);
	pool->ready = !ret;
	return ret;
}

/*
 * A device that is missing is no reason not to start: what another cqd has kept of it
 * is still handed out, and the host's memory is all that many need.
 */
static int device_init(struct cqd_store *st, const struct cqd_pool_opts *o,
		       struct cq_err *err)
{
	struct cqd_pool *pool = &st->pool[st->n_pools];
	int ret = pool_init(pool, o->name, o->backend, o->bytes, err);

	if (ret)
		return ret;
	if (cqd_pool_find(st, o->uuid))
		return cq_err_set(err, -EINVAL, "%s: another section has %s", o->name, o->uuid);
	snprintf(pool->dev.uuid, sizeof(pool->dev.uuid), "%s", o->uuid);
	pool->trust_readers = o->trust_readers;
	pool->dev.granularity = CQD_HUGE_BYTES;
	if (pool->mem->kind == CQD_MEM_CUDA_IPC && cqd_ipc_new(st, pool, o, err))
		return -ENOMEM;
	if (probe(pool, &pool->why) && !pool->why.text[0])
		cq_err_set(&pool->why, -ENODEV, "it cannot be used");
	if (!o->bytes)
		pool->limit = pool->dev.bytes / 100 * o->percent;
	pool->limit -= pool->limit % pool->dev.granularity;
	st->n_pools++;
	return 0;
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
	unsigned int i;
	int ret;

	ret = pool_init(st->pool, "host", o->backend ? o->backend : "memfd", o->pool_bytes,
			err);
	if (!ret && st->pool->mem->remote)
		ret = cq_err_set(err, -EINVAL, "backend '%s' is for sections [gpu NAME]",
				 st->pool->mem->name);
	if (!ret)
		ret = probe(st->pool, err);
	st->n_pools = 1;
	if (!ret && o->n_pools >= CQD_MAX_POOLS)
		ret = cq_err_set(err, -EINVAL, "%u devices, at most %d", o->n_pools,
				 CQD_MAX_POOLS - 1);
	for (i = 0; i < o->n_pools && !ret; i++)
		ret = device_init(st, &o->pools[i], err);
	return ret;
}

/**
 * cqd_pool_find() - pool of a device
 * @st:   store
 * @uuid: any text
 *
 * Return: the pool; NULL if there is none.
 */
struct cqd_pool *cqd_pool_find(struct cqd_store *st, const char *uuid)
{
	unsigned int i;

	for (i = 1; i < st->n_pools; i++)
		if (!strcasecmp(st->pool[i].dev.uuid, uuid))
			return &st->pool[i];
	return NULL;
}

/* The 32 digits of "GPU-xxxxxxxx-..." and "MIG-xxxxxxxx-...". */
static void uuid_bytes(const char *uuid, uint8_t out[16])
{
	unsigned int n = 0, digit;
	const char *p;

	memset(out, 0, 16);
	p = strchr(uuid, '-');
	for (; p && *p && n < 32; p++) {
		if (*p >= '0' && *p <= '9')
			digit = (unsigned int)(*p - '0');
		else if ((*p | 0x20) >= 'a' && (*p | 0x20) <= 'f')
			digit = (unsigned int)((*p | 0x20) - 'a') + 10;
		else
			continue;
		out[n / 2] |= (uint8_t)(n % 2 ? digit : digit << 4);
		n++;
	}
}

/**
 * cqd_pool_record() - note where a segment is
 * @pool: its pool
 * @r:    its record
 */
void cqd_pool_record(const struct cqd_pool *pool, struct cqp_rec_segment *r)
{
	r->backend = pool->mem->kind;
	uuid_bytes(pool->dev.uuid, r->device);
}

/**
 * cqd_pool_recorded() - the pool that a record names
 * @st: store
 * @r:  of a segment, any content
 *
 * Return: the pool; NULL: the device has no section any more.
 */
struct cqd_pool *cqd_pool_recorded(struct cqd_store *st, const struct cqp_rec_segment *r)
{
	uint8_t device[16];
	unsigned int i;

	for (i = 0; i < st->n_pools; i++) {
		uuid_bytes(st->pool[i].dev.uuid, device);
		if (r->backend == (uint32_t)st->pool[i].mem->kind &&
		    !memcmp(r->device, device, sizeof(device)))
			return &st->pool[i];
	}
	return NULL;
}

/* Does a descriptor lead to what is at @path now? */
static bool same_node(int fd, const char *path)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_mode == b.st_mode &&
	       a.st_rdev == b.st_rdev;
}

static void hold(struct cqd_store *st, struct cqd_pool *pool, const char *name)
{
	if (pool->node_fd >= 0 && (!pool->dev.node[0] || same_node(pool->node_fd, pool->dev.node)))
		return;
	if (pool->node_fd >= 0) {
		cqd_fdstore_remove(st, name);
		close(pool->node_fd);
		pool->node_fd = -1;
	}
	if (!pool->dev.node[0])
		return;	/* said by whoever logs what there is */
	pool->node_fd = open(pool->dev.node, O_RDWR | O_CLOEXEC);
	if (pool->node_fd < 0)
		cq_warn("[gpu %s] %s cannot be kept open: %s; without persistence mode its pages "
			"are lost when no process uses the GPU", pool->name, pool->dev.node,
			strerror(errno));
	else
		cqd_fdstore_push(st, name, pool->node_fd, CQD_FD_NOW, NULL);
}

/**
 * cqd_pools_hold() - keep the nodes of devices open
 * @st:    store
 * @taken: descriptor of that name that the service manager kept, -1: none
 * @arg:   passed to @taken
 *
 * The driver gives up a GPU, and all that was exported of it, when the last of its
 * nodes is closed: so the service manager keeps one as well.
 */
void cqd_pools_hold(struct cqd_store *st, int (*taken)(void *arg, const char *name), void *arg)
{
	char name[CQP_MAX_NAME + 16];
	unsigned int i;

	for (i = 1; i < st->n_pools; i++) {
		snprintf(name, sizeof(name), "cq-gpu-%s", st->pool[i].name);
		st->pool[i].node_fd = taken(arg, name);
		hold(st, &st->pool[i], name);
	}
}

/**
 * cqd_pools_free() - close what pools hold; the service manager's stays
 * @st: store without segments
 */
void cqd_pools_free(struct cqd_store *st)
{
	unsigned int i;

	for (i = 1; i < st->n_pools; i++)
		if (st->pool[i].node_fd >= 0)
			close(st->pool[i].node_fd);
	for (i = 1; i < st->n_pools; i++)
		cqd_ipc_delete(&st->pool[i]);
}

/**
 * cqd_pool_unready() - why there can be no new segment in it now
 * @pool: that is not ready
 * @err:  filled
 *
 * Return: -ENODEV; -ENODATA of one whose holder is not there: it may come back.
 */
int cqd_pool_unready(const struct cqd_pool *pool, struct cq_err *err)
{
	return cq_err_set(err, pool->ipc ? -ENODATA : -ENODEV, "[gpu %s]: %s", pool->name,
			  pool->why.text);
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
		.uuid = pool->dev.uuid,
		.why = pool->why.text,
		.node = pool->node_fd >= 0 ? pool->dev.node : "",
		.limit = pool->limit,
		.reserved = pool->reserved,
		.used = pool->used,
	};
	return true;
}
