// SPDX-License-Identifier: MIT
/* Arenas: memory of workers that pages are sealed from. Read, never mapped. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/store_priv.h"

static void close_run(struct cqd_job *job)
{
	close(container_of(job, struct cqd_arena, job)->fd);
}

static void close_done(struct cqd_job *job)
{
	free(container_of(job, struct cqd_arena, job));
}

/* Of a worker that died this frees its whole arena: 40 to 250 ms per GiB. */
static void arena_release(struct kref *ref)
{
	struct cqd_arena *a = container_of(ref, struct cqd_arena, ref);

	a->job.run = close_run;
	a->job.done = close_done;
	cqd_job_queue(a->st, &a->job, true);
}

/**
 * cqd_arena_put() - drop a reference
 * @a: arena; a copy under way holds one of its own
 */
void cqd_arena_put(struct cqd_arena *a)
{
	kref_put(&a->ref, arena_release);
}

/**
 * cqd_arena_find() - arena of a message
 * @cl: sender
 * @id: as given by cqd_arena_offer()
 *
 * Return: the arena or NULL.
 */
struct cqd_arena *cqd_arena_find(struct cqd_client *cl, uint32_t id)
{
	struct list_head *pos;

	list_for_each(pos, &cl->arenas)
		if (list_entry(pos, struct cqd_arena, node)->id == id)
			return list_entry(pos, struct cqd_arena, node);
	return NULL;
}

static void drop(struct cqd_client *cl, struct cqd_arena *a)
{
	list_del(&a->node);
	cl->n_arenas--;
	cl->ns->used_bytes -= a->bytes;
	cl->ns->arena_bytes -= a->bytes;
	cqd_arena_put(a);
}

/**
 * cqd_arena_drop_all() - a client's arenas no longer count
 * @cl: client
 */
void cqd_arena_drop_all(struct cqd_client *cl)
{
	while (!list_empty(&cl->arenas))
		drop(cl, list_first(&cl->arenas, struct cqd_arena, node));
}

/**
 * cqd_arena_drop() - an arena no longer counts
 * @client: its owner
 * @arena:  as given by cqd_arena_offer(); a copy under way goes on
 *
 * Return: 0; -ENOENT no such arena of this client.
 */
int cqd_arena_drop(struct cqd_client *client, uint32_t arena)
{
	struct cqd_arena *a = cqd_arena_find(client, arena);

	if (!a)
		return -ENOENT;
	drop(client, a);
	return 0;
}

static int fd_check(int fd, uint64_t bytes, struct cq_err *err)
{
	struct stat sb;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return cq_err_set(err, -EINVAL,
				  "an arena must be a memfd with F_SEAL_SHRINK");
	if (fstat(fd, &sb) < 0 || sb.st_size < 0 || (uint64_t)sb.st_size < bytes || !bytes)
		return cq_err_set(err, -EINVAL,
				  "the arena's memfd is smaller than the %llu bytes offered",
				  (unsigned long long)bytes);
	return 0;
}

/**
 * cqd_arena_offer() - register a worker's arena
 * @client: its owner
 * @shard:  one that it opened
 * @fd:     memfd of at least @bytes, F_SEAL_SHRINK set; a duplicate is taken
 * @bytes:  counted to the namespace's quota
 * @arena:  id for cqd_seal(), set on success
 * @err:    text of the failure
 *
 * Return: 0; -EINVAL not such an fd; -EDQUOT; -ENOSPC too many; -ENOMEM.
 */
int cqd_arena_offer(struct cqd_client *client, struct cqd_shard *shard, int fd,
		    uint64_t bytes, uint32_t *arena, struct cq_err *err)
{
	struct cqd_ns *ns = client->ns;
	struct cqd_arena *a;
	int ret = fd_check(fd, bytes, err);

	if (ret)
		return ret;
	if (client->n_arenas >= CQD_ARENAS_PER_CLIENT)
		return cq_err_set(err, -ENOSPC, "a session may offer %d arenas",
				  CQD_ARENAS_PER_CLIENT);
	if (!cqd_ns_room(ns, bytes, 0))
		return cq_err_set(err, -EDQUOT,
				  "arena of %llu bytes: quota of '%s' is in use "
				  "(%llu of %llu bytes): raise it",
				  (unsigned long long)bytes, ns->name,
				  (unsigned long long)ns->used_bytes,
				  (unsigned long long)ns->quota_bytes);
	a = calloc(1, sizeof(*a));
	if (!a)
		return cq_err_set(err, -ENOMEM, "no memory for an arena");
	a->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (a->fd < 0) {
		free(a);
		return cq_err_set(err, -ENOMEM, "no descriptor for an arena");
	}
	kref_init(&a->ref);
	a->st = client->st;
	a->bytes = bytes;
	a->id = ++client->next_arena;
	list_add_tail(&a->node, &client->arenas);
	client->n_arenas++;
	ns->used_bytes += bytes;
	ns->arena_bytes += bytes;
	*arena = a->id;
	return 0;
}
