// SPDX-License-Identifier: MIT
/*
 * Publishing: a worker's tail is copied out of its arena into a memfd of the
 * daemon's own, sealed against every change, and kept with its last page under
 * a name.
 *
 * The page is held from the beginning and the bytes are counted; the copy and
 * the hand-over to the service manager run on a worker thread; the record comes
 * last. The publisher says what the bytes sum up to: an arena that changed under
 * the copy, also because the publisher gave up waiting, is published by nobody.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "daemon/store_priv.h"

#define TAIL_SEALS	(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
#define PUBLISHES	16		/* open at once in a session */

/*
 * struct publish - one of them under way
 * @client: NULL once it ended
 * @page:   held; CQP_NONE: none
 * @rec:    the name's record, not alive yet
 * @fd:     the copy, read-only
 */
struct publish {
	struct cqd_job job;
	struct list_head node;
	struct cqd_client *client;
	struct cqd_shard *shard;
	struct cqd_arena *arena;
	struct cqp_extent *extents;
	unsigned int n_extents;
	uint64_t bytes, check_lo, check_hi;
	uint32_t page, rec, id;
	bool replace;
	int fd, ret;
	struct cq_err err;
	cqd_publish_cb done;
	void *arg;
};

/* --- the name --- */

static int check_name(struct cqd_shard *sh, const struct cqd_publish_req *req,
		      struct cq_err *err)
{
	if (!cqd_name_good(req->name))
		return cq_err_set(err, -EINVAL,
				  "a name must be 1 to %d printable characters without space",
				  CQP_MAX_NAME - 1);
	if (!req->replace && cqd_name_find(sh->ns, req->name) != CQP_NONE)
		return cq_err_set(err, -EEXIST, "namespace '%s' has a name '%s': replace it or "
				  "take another", sh->ns->name, req->name);
	return 0;
}

/* The page named by its key; CQP_NONE if there is none to name. */
static int find_page(struct cqd_shard *sh, const struct cqd_publish_req *req, uint32_t *page,
		     struct cq_err *err)
{
	struct cqd_store *st = sh->st;
	uint64_t depth = req->tokens / CQ_PAGE_TOKENS;

	*page = CQP_NONE;
	if (!req->tokens || depth > UINT32_MAX || !req->key != !depth)
		return cq_err_set(err, -EINVAL, "%llu tokens %s the key of a last page",
				  (unsigned long long)req->tokens,
				  req->key ? "do not go with" : "need");
	if (!req->key)
		return 0;
	*page = cqd_page_find(st, sh, req->key);
	if (*page == CQP_NONE || st->pages[*page].state == CQP_FILLING)
		return cq_err_set(err, -ENOENT,
				  "the last page is not resident: seal the sequence first");
	if (st->pages[*page].state == CQP_EVICTING)
		cqd_evict_take_back(st, *page);
	if (st->ix.pages[*page].depth + 1ull != depth)
		return cq_err_set(err, -EINVAL, "the last page of %llu tokens is number %llu, "
				  "not %u", (unsigned long long)req->tokens,
				  (unsigned long long)depth, st->ix.pages[*page].depth + 1);
	return 0;
}

/* A record filled in, not alive. CQP_NONE: there is none. */
static uint32_t record(struct cqd_shard *sh, const struct cqd_publish_req *req, uint32_t page,
		       uint64_t bytes, uint32_t id)
{
	struct cqd_store *st = sh->st;
	uint32_t n = cqd_tab_get(&st->ix.t_names);
	uint64_t now = cqd_now_us();
	struct cqp_rec_name *r;

	if (n == CQP_NONE)
		return n;
	r = &st->ix.names[n];
	memset((uint8_t *)r + sizeof(r->word), 0, sizeof(*r) - sizeof(r->word));
	snprintf(r->name, sizeof(r->name), "%s", req->name);
	r->ns = sh->ns->rec;
	r->model = sh->model->rec;
	r->layer_begin = sh->range.layer_begin;
	r->layer_end = sh->range.layer_end;
	r->head_begin = sh->range.head_begin;
	r->head_end = sh->range.head_end;
	r->page = page;
	r->id = id;
	r->slot_gen = page == CQP_NONE ? 0 : st->ix.pages[page].slot_gen;
	r->tokens = req->tokens;
	r->tail_bytes = bytes;
	r->check_lo = req->check_lo;
	r->check_hi = req->check_hi;
	r->created_us = now;
	r->expires_us = req->ttl_s ? now + req->ttl_s * 1000000ull : 0;
	r->flags = req->once ? CQP_NAME_ONCE : 0;
	return n;
}

static int no_record(struct cq_err *err)
{
	return cq_err_set(err, -ENOSPC, "%d names are in use: unpublish some", CQD_MAX_NAMES);
}

/**
 * cqd_name_make() - a name without a tail
 * @sh:  shard of the page
 * @req: no extents
 * @err: text of the failure
 *
 * Return: as cqd_publish().
 */
int cqd_name_make(struct cqd_shard *sh, const struct cqd_publish_req *req,
		  struct cq_err *err)
{
	int ret = check_name(sh, req, err);
	uint32_t page, n;

	if (ret)
		return ret;
	ret = find_page(sh, req, &page, err);
	if (ret)
		return ret;
	if (page == CQP_NONE)
		return cq_err_set(err, -EINVAL, "a name without a tail needs a full page");
	ret = cqd_pin_named(sh->ns, page, err);
	if (ret)
		return ret;
	n = record(sh, req, page, 0, 0);
	if (n == CQP_NONE) {
		cqd_unpin_named(sh->ns, page);
		return no_record(err);
	}
	cqd_name_born(sh, n, -1);
	return 0;
}

/* --- the copy --- */

/**
 * cqd_tail_name() - of a tail's descriptor with the service manager
 * @id:  of the tail
 * @buf: filled
 */
void cqd_tail_name(uint32_t id, char buf[32])
{
	snprintf(buf, 32, "cq-tail-%u", id);
}

/**
 * cqd_tail_sealed() - is it a tail's memfd that nobody can change any more?
 * @fd:    from the fd store
 * @bytes: recorded
 *
 * Return: true if so.
 */
bool cqd_tail_sealed(int fd, uint64_t bytes)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat sb;

	return seals >= 0 && (seals & TAIL_SEALS) == TAIL_SEALS && fstat(fd, &sb) == 0 &&
	       (uint64_t)sb.st_size == bytes;
}

static int copy_extent(const struct publish *op, const struct cqp_extent *e, uint8_t *to)
{
	uint64_t at = 0;
	ssize_t n;

	/* pread() and no mapping: its owner may punch it, see mem_memfd.c. */
	while (at < e->bytes) {
		n = pread(op->arena->fd, to + at, e->bytes - at, (off_t)(e->offset + at));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EFAULT;
		at += (uint64_t)n;
	}
	return 0;
}

static int copy_all(struct publish *op, uint8_t *to)
{
	XXH128_hash_t h;
	uint64_t at = 0;
	unsigned int i;
	int ret;

	for (i = 0; i < op->n_extents; i++) {
		ret = copy_extent(op, &op->extents[i], to + at);
		if (ret)
			return cq_err_set(&op->err, ret, "copying a tail out of arena %u: %s",
					  op->arena->id, strerror(-ret));
		at += op->extents[i].bytes;
	}
	h = XXH3_128bits(to, op->bytes);
	if (h.low64 != op->check_lo || h.high64 != op->check_hi)
		return cq_err_set(&op->err, -EIO, "the tail changed while it was copied: "
				  "publish it again");
	return 0;
}

/* Every byte reserved, sealed; *out may be read and nothing else. */
static int copy_sealed(struct publish *op, int fd)
{
	char path[32];
	void *p;
	int ret = cqd_fallocate(fd, 0, op->bytes);

	if (ret)
		return cq_err_set(&op->err, ret, "reserving %llu bytes for a tail: %s",
				  (unsigned long long)op->bytes, strerror(-ret));
	p = mmap(NULL, op->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return cq_err_set(&op->err, -errno, "mapping a tail: %s", strerror(errno));
	ret = copy_all(op, p);
	/* F_SEAL_WRITE needs every writable mapping gone. */
	munmap(p, op->bytes);
	if (ret)
		return ret;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fcntl(fd, F_ADD_SEALS, TAIL_SEALS) == 0 && fchmod(fd, 0444) == 0)
		op->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (op->fd < 0)
		return cq_err_set(&op->err, -errno, "sealing a tail: %s", strerror(errno));
	return 0;
}

static void copy_run(struct cqd_job *job)
{
	struct publish *op = container_of(job, struct publish, job);
	int fd = memfd_create("cq-tail", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char name[32];

	if (fd < 0) {
		op->ret = cq_err_set(&op->err, -errno, "memfd_create(cq-tail): %s",
				     strerror(errno));
		return;
	}
	op->ret = copy_sealed(op, fd);
	close(fd);
	if (op->ret)
		return;
	cqd_tail_name(op->id, name);
	op->ret = cqd_fdstore_push(job->st, name, op->fd, CQD_FD_SURE, &op->err);
	if (op->ret)	/* it may have arrived all the same */
		cqd_fdstore_remove(job->st, name);
}

/* --- the end --- */

static void op_free(struct publish *op)
{
	struct cqd_shard *sh = op->shard;

	cqd_arena_put(op->arena);
	sh->names--;
	cqd_shard_put(sh);
	free(op->extents);
	free(op);
}

/* Nothing of it was visible. */
static void undo(struct publish *op)
{
	struct cqd_ns *ns = op->shard->ns;
	char name[32];

	if (op->fd >= 0) {
		cqd_tail_name(op->id, name);
		cqd_fdstore_remove(op->shard->st, name);
		close(op->fd);
	}
	cqd_tab_put(&op->shard->st->ix.t_names, op->rec);
	ns->used_bytes -= op->bytes;
	ns->tail_bytes -= op->bytes;
}

/* What may have changed while the thread was copying. */
static int still_wanted(struct publish *op)
{
	struct cqd_store *st = op->shard->st;
	const struct cqp_rec_name *r = &st->ix.names[op->rec];

	if (!op->client)
		return cq_err_set(&op->err, -ECANCELED, "the session ended");
	if (op->page != CQP_NONE && st->pages[op->page].state != CQP_SEALED)
		return cq_err_set(&op->err, -ENOENT, "the last page was lost meanwhile");
	if (!op->replace && cqd_name_find(op->shard->ns, r->name) != CQP_NONE)
		return cq_err_set(&op->err, -EEXIST, "'%s' was published by another meanwhile",
				  r->name);
	return op->page == CQP_NONE ? 0 : cqd_pin_named(op->shard->ns, op->page, &op->err);
}

static void copy_done(struct cqd_job *job)
{
	struct publish *op = container_of(job, struct publish, job);
	struct cqd_store *st = job->st;
	int ret = op->ret;

	if (!ret)
		ret = still_wanted(op);
	if (ret) {
		undo(op);
	} else {
		st->ix.names[op->rec].created_us = cqd_now_us();
		cqd_name_born(op->shard, op->rec, op->fd);
	}
	if (op->page != CQP_NONE)
		cqd_page_unhold(st, op->page);
	list_del(&op->node);
	op->done(op->arg, ret, &op->err);
	op_free(op);
}

/**
 * cqd_publish_cancel_client() - a client's publishes come to nothing
 * @cl: client; a thread may be copying, its completion undoes the rest
 */
void cqd_publish_cancel_client(struct cqd_client *cl)
{
	struct publish *op;

	while (!list_empty(&cl->publishes)) {
		op = list_first(&cl->publishes, struct publish, node);
		list_del(&op->node);
		op->client = NULL;
	}
}

/* --- the beginning --- */

/* Sum of the extents, each of which lies in the arena. */
static int check_extents(const struct cqd_publish_req *req, const struct cqd_arena *a,
			 uint64_t *bytes, struct cq_err *err)
{
	const struct cqp_extent *e = req->extents;
	unsigned int i;

	if (!a)
		return cq_err_set(err, -EINVAL, "arena %u was not offered by this session",
				  req->arena);
	*bytes = 0;
	for (i = 0; i < req->n_extents; i++) {
		if (!e[i].bytes || e[i].offset > a->bytes ||
		    e[i].bytes > a->bytes - e[i].offset ||
		    __builtin_add_overflow(*bytes, e[i].bytes, bytes))
			return cq_err_set(err, -EINVAL, "extent %u of %llu bytes at %llu lies "
					  "outside arena %u of %llu bytes", i,
					  (unsigned long long)e[i].bytes,
					  (unsigned long long)e[i].offset, a->id,
					  (unsigned long long)a->bytes);
	}
	/* The extents may name one piece many times over. */
	if (*bytes > INT64_MAX || *bytes > a->bytes)
		return cq_err_set(err, -EINVAL, "a tail of %llu bytes out of an arena of %llu",
				  (unsigned long long)*bytes, (unsigned long long)a->bytes);
	return 0;
}

static unsigned int open_publishes(const struct cqd_client *cl)
{
	const struct list_head *pos;
	unsigned int n = 0;

	list_for_each(pos, &cl->publishes)
		n++;
	return n;
}

/* Random, as segments' are; of a descriptor that no name has. */
static uint32_t new_id(struct cqd_store *st)
{
	uint32_t id, i;

again:
	id = (uint32_t)cqd_random();
	for (i = 0; i < st->ix.t_names.high; i++)
		if (st->ix.names[i].id == id)	/* of free ones too */
			goto again;
	return id ? id : 1;
}

static struct publish *op_new(struct cqd_client *cl, struct cqd_shard *sh,
			      const struct cqd_publish_req *req)
{
	struct publish *op = calloc(1, sizeof(*op));
	size_t size = req->n_extents * sizeof(*op->extents);

	if (!op)
		return NULL;
	op->extents = malloc(size);
	if (!op->extents) {
		free(op);
		return NULL;
	}
	memcpy(op->extents, req->extents, size);
	op->n_extents = req->n_extents;
	op->client = cl;
	op->shard = sh;
	op->fd = -1;
	op->replace = req->replace;
	op->check_lo = req->check_lo;
	op->check_hi = req->check_hi;
	return op;
}

/* All that can be refused at once; *page and *bytes are set. */
static int check(struct cqd_client *cl, struct cqd_shard *sh,
		 const struct cqd_publish_req *req, uint32_t *page, uint64_t *bytes,
		 struct cq_err *err)
{
	int ret = check_name(sh, req, err);

	if (!ret)
		ret = check_extents(req, cqd_arena_find(cl, req->arena), bytes, err);
	if (!ret)
		ret = find_page(sh, req, page, err);
	if (!ret && open_publishes(cl) >= PUBLISHES)
		ret = cq_err_set(err, -EDQUOT, "a session may have %d sequences being published",
				 PUBLISHES);
	return ret;
}

/**
 * cqd_publish() - copy a tail, keep it and the pages under a name
 * @client: publisher
 * @shard:  one that it opened
 * @req:    nothing of it is kept
 * @done:   called on the loop, exactly once and possibly before return, unless an
 *          error is returned
 * @arg:    passed to @done
 * @err:    text of the failure
 *
 * Return: 0; see store.h.
 */
int cqd_publish(struct cqd_client *client, struct cqd_shard *shard,
		const struct cqd_publish_req *req, cqd_publish_cb done, void *arg,
		struct cq_err *err)
{
	struct cqd_store *st = client->st;
	struct cqd_ns *ns = client->ns;
	struct publish *op;
	uint64_t bytes = 0;
	uint32_t page;
	int ret;

	if (!req->n_extents) {
		ret = cqd_name_make(shard, req, err);
		if (!ret)
			done(arg, 0, NULL);
		return ret;
	}
	ret = check(client, shard, req, &page, &bytes, err);
	if (ret)
		return ret;
	op = op_new(client, shard, req);
	if (!op)
		return cq_err_set(err, -ENOMEM, "no memory to publish");
	if (page != CQP_NONE)
		cqd_page_hold(st, page);
	if (!cqd_ns_room(ns, bytes, 0)) {
		ret = cq_err_set(err, -EDQUOT, "tail of %llu bytes: quota of '%s' is in use "
				 "(%llu of %llu bytes): raise it", (unsigned long long)bytes,
				 ns->name, (unsigned long long)ns->used_bytes,
				 (unsigned long long)ns->quota_bytes);
		goto err_hold;
	}
	op->id = new_id(st);
	op->rec = record(shard, req, page, bytes, op->id);
	if (op->rec == CQP_NONE) {
		ret = no_record(err);
		goto err_hold;
	}
	op->page = page;
	op->bytes = bytes;
	ns->used_bytes += bytes;
	ns->tail_bytes += bytes;
	shard->names++;
	op->arena = cqd_arena_find(client, req->arena);
	kref_get(&op->arena->ref);
	op->done = done;
	op->arg = arg;
	list_add_tail(&op->node, &client->publishes);
	op->job.run = copy_run;
	op->job.done = copy_done;
	cqd_job_queue(st, &op->job, true);
	return 0;

err_hold:
	if (page != CQP_NONE)
		cqd_page_unhold(st, page);
	free(op->extents);
	free(op);
	return ret;
}
