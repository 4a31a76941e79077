// SPDX-License-Identifier: MIT
/*
 * Saved pages back into memory. Worker threads look through the files for
 * records (SCAN), sort what they found by depth, and read the heads of some at
 * a time (READ); the loop says which of them are wanted, and each of these goes
 * the way of a seal: slot, copy, checksum of the copy, publication, parents
 * first. A session of cqd's own holds the pages meanwhile.
 *
 * Nothing is evicted for a saved page, and what is resident stays.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/save.h"

#define SCAN_RECORDS	256	/* per turn of a worker thread */
#define READ_RECORDS	32
#define AT_ONCE		8	/* pages being copied */
#define MAX_DEPTH	(1u << 30)	/* of a page without those before it */

struct entry {
	uint64_t offset;
	uint32_t depth;
	uint32_t file;
};

/* A record of the batch that was read last. */
struct found {
	struct cqp_save_page meta;
	uint64_t offset;
	uint32_t file;
	int ret;
};

/* A page being copied. */
struct load {
	struct cqd_restore *r;
	struct cqd_client *client;
	struct cqd_shard *shard;
	struct cqp_save_page meta;
	bool busy;
};

/*
 * struct cqd_restore - the operation
 * @file:    shapes of arenas around the files, what seals copy from
 * @opened:  heads of the files were checked
 * @entries: sorted by depth once all files have been looked through
 * @next:    entry to be read next
 * @found, @at: batch that was read, and where the loop is in it
 * @flying:  entries of @load in use
 * @jobs:    a worker thread is busy for it
 */
struct cqd_restore {
	struct cqd_job job;
	struct cqd_store *st;
	struct cqd_restore_opts o;
	struct cqd_arena **file;
	struct cqd_savefile *reader;
	unsigned int scanning;
	struct entry *entries;
	size_t n, room, max, next;
	struct found found[READ_RECORDS];
	unsigned int n_found, at, flying;
	struct load load[AT_ONCE];
	struct cqd_client *client[CQD_MAX_NS];
	bool busy, stepping, full, opened;
	int ret;
	struct cq_err err;
	struct cqd_restore_result res;
	struct cqd_transfer transfer;
	cqd_restore_cb done;
	void *arg;
};

static void step(struct cqd_restore *r);

/* --- looking for pages, on a worker thread --- */

static int add(struct cqd_restore *r, uint64_t offset, uint32_t depth)
{
	size_t room = r->room ? 2 * r->room : 1024;
	struct entry *e = r->entries;

	if (r->n == r->max) {
		r->res.no_room++;
		return 0;
	}
	if (r->n == r->room) {
		e = realloc(e, room * sizeof(*e));
		if (!e)
			return -ENOMEM;
		r->entries = e;
		r->room = room;
	}
	e[r->n++] = (struct entry){ offset, depth, r->scanning };
	return 0;
}

static int by_depth(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->depth != y->depth)
		return x->depth < y->depth ? -1 : 1;
	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Here and not on the loop: the file may be on a disk that sleeps. */
static int open_files(struct cqd_restore *r)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < r->o.n && !ret; i++) {
		ret = cqd_savefile_open(&r->reader[i], r->file[i]->fd, &r->err);
		r->file[i]->bytes = r->reader[i].bytes;
	}
	r->opened = true;
	return ret;
}

static void scan_run(struct cqd_job *job)
{
	struct cqd_restore *r = container_of(job, struct cqd_restore, job);
	struct cqd_savefile *f = &r->reader[r->scanning];
	struct cqp_save_page page;
	uint64_t offset = 0;
	unsigned int i;
	int ret;

	if (!r->opened)
		r->ret = open_files(r);
	if (r->ret)
		return;
	for (i = 0; i < SCAN_RECORDS && r->scanning < r->o.n; i++) {
		ret = cqd_savefile_next(f, &page, &offset);
		if (ret == 1)
			r->ret = add(r, offset, page.depth);
		if (r->ret)
			return;
		if (ret == -EAGAIN && f->torn)
			return;		/* it took long */
		if (ret)
			continue;
		r->res.lost += cqd_savefile_lost(f);
		r->res.unread += f->unread;
		f = &r->reader[++r->scanning];
	}
	if (r->scanning == r->o.n && r->n)
		qsort(r->entries, r->n, sizeof(*r->entries), by_depth);
}

static void read_run(struct cqd_job *job)
{
	struct cqd_restore *r = container_of(job, struct cqd_restore, job);
	const struct entry *e = r->entries + r->next;
	unsigned int i;

	for (i = 0; i < r->n_found; i++, e++) {
		r->found[i].offset = e->offset;
		r->found[i].file = e->file;
		r->found[i].ret = cqd_savefile_page(&r->reader[e->file], e->offset,
						    &r->found[i].meta);
	}
}

static void job_done(struct cqd_job *job)
{
	struct cqd_restore *r = container_of(job, struct cqd_restore, job);

	r->busy = false;
	step(r);
}

static void start(struct cqd_restore *r, void (*run)(struct cqd_job *job),
		  void (*done)(struct cqd_job *job))
{
	r->busy = true;
	r->job.run = run;
	r->job.done = done;
	cqd_job_queue(r->st, &r->job, true);
}

/* --- what becomes of one --- */

static void note_missing(struct cqd_restore *r, const char *what, const char *name)
{
	if (!r->res.text[0])
		snprintf(r->res.text, sizeof(r->res.text), "%s '%.63s'", what, name);
}

static struct cqd_model *model_of(struct cqd_store *st, const uint8_t hash[32])
{
	struct list_head *pos;

	list_for_each(pos, &st->models) {
		struct cqd_model *m = list_entry(pos, struct cqd_model, node);

		if (m->ready && !m->dying && !memcmp(m->head->hash, hash, 32))
			return m;
	}
	return NULL;
}

/* Without its salt no key of it can be told: it is not in cqd.conf. */
static struct cqd_ns *ns_of(struct cqd_store *st, const char *name)
{
	struct cqd_ns *ns = cqd_ns_find(st, name);

	return ns && ns->salted ? ns : NULL;
}

/* Shard of a record, or NULL: counted, nothing to be done about it. */
static struct cqd_shard *shard_of(struct cqd_restore *r, const struct cqp_save_page *m)
{
	struct cqp_shard range = { m->layer_begin, m->layer_end, m->head_begin,
				   m->head_end };
	struct cqd_model *model = model_of(r->st, m->model_hash);
	struct cqd_ns *ns = ns_of(r->st, m->tenant);
	struct cqd_shard *sh;

	if (!ns) {
		r->res.no_namespace++;
		note_missing(r, "namespace", m->tenant);
		return NULL;
	}
	if (!model) {
		r->res.no_model++;
		note_missing(r, "model", m->model);
		return NULL;
	}
	if (cqd_shard_make(ns, model, ns->st->pool, &range, &sh, NULL)) {
		r->res.bad++;
		return NULL;
	}
	if (cqd_shard_root(sh, NULL) || sh->kind[CQD_CODES].payload != m->payload ||
	    (m->sink && sh->kind[CQD_SINKS].payload != m->sink)) {
		r->res.bad++;
		cqd_shard_put(sh);
		return NULL;
	}
	return sh;
}

/*
 * Would a seal of that page be taken? Page 0 of a model with sinks has them; what has
 * the root key before it and is no page 0 lay behind another namespace's pages.
 */
static bool parent_fits(struct cqd_restore *r, struct cqd_shard *sh,
			const struct cqp_save_page *m)
{
	bool root = !memcmp(m->parent, sh->root.b, sizeof(m->parent));
	bool first = root && !m->depth;
	struct cqp_key parent;

	if (!!m->sink != (first && sh->kind[CQD_SINKS].payload) ||
	    (root && m->depth > MAX_DEPTH)) {
		/* Page 0 below another root: the salt has changed. */
		r->res.bad++;
		return false;
	}
	memcpy(parent.b, m->parent, sizeof(parent.b));
	if (root || cqd_page_find(r->st, sh, &parent) != CQP_NONE)
		return true;
	if (m->depth)
		r->res.no_parent++;
	else
		r->res.bad++;
	return false;
}

static struct cqd_client *client_of(struct cqd_restore *r, struct cqd_ns *ns)
{
	struct cqd_client **cl = &r->client[ns->rec];

	/* Start time 0 is no process's: nobody ever comes back to the session. */
	if (!*cl && cqd_client_new(r->st, ns, getpid(), 0, geteuid(), r->o.name, cl, &r->err))
		return NULL;
	return *cl;
}

static void loaded(struct load *l, const struct cqd_seal_result *res)
{
	struct cqd_store *st = l->r->st;
	uint32_t p = cqd_page_find(st, l->shard, &res->key);
	uint64_t now = cqd_now_us();

	if (p == CQP_NONE)
		return;
	if (l->r->o.mark)
		st->pages[p].flags |= CQD_PG_SAVED;
	cqd_release(l->client, &res->page, 1, NULL);
	if (res->existing) {
		l->r->res.existing++;
		return;
	}
	l->r->res.restored++;
	l->r->res.bytes += l->meta.payload + l->meta.sink;
	if (st->transfer == &l->r->transfer)
		st->transfer_done = l->r->res.bytes;
	/* As old as it was: it must not look just used to the eviction. */
	cqd_lru_del(st, p);
	st->ix.pages[p].uses = l->meta.uses;
	st->ix.pages[p].last_use_us = now - MIN(now, l->meta.age_us);
	cqd_page_settle(st, p);
}

static void on_sealed(void *arg, int ret, const struct cqd_seal_result *res,
		      const struct cq_err *err)
{
	struct load *l = arg;
	struct cqd_restore *r = l->r;

	switch (ret) {
	case 0:
		loaded(l, res);
		break;
	case -EBADMSG:
	case -EFAULT:
	case -EIO:
		r->res.bad++;
		r->res.unread += ret != -EBADMSG;
		break;
	case -ENOENT:
		r->res.no_parent++;
		break;
	case -ECANCELED:
		break;
	default:
		r->res.no_room++;
		r->full |= ret == -ENOSPC;
		break;
	}
	l->busy = false;
	l->shard->opens--;
	r->flying--;
	step(r);
}

static void load_page(struct cqd_restore *r, const struct found *f, struct cqd_shard *sh,
		      struct cqd_client *cl)
{
	struct cqd_seal_saved req = { .file = r->file[f->file],
				      .offset = f->offset + CQP_SAVE_BLOCK };
	struct load *l = r->load;

	while (l->busy)
		l++;
	*l = (struct load){ .r = r, .client = cl, .shard = sh, .meta = f->meta, .busy = true };
	req.meta = &l->meta;
	r->flying++;
	sh->opens++;	/* stays while it is copied */
	if (cqd_seal_saved(cl, sh, &req, on_sealed, l, NULL)) {
		sh->opens--;
		l->busy = false;
		r->flying--;
		r->res.no_room++;
	}
}

/* Resident, or not wanted: nothing has to be copied. */
static bool settled(struct cqd_restore *r, struct cqd_shard *sh,
		    const struct cqp_save_page *m)
{
	struct cqp_key key;
	uint32_t p;

	memcpy(key.b, m->key, sizeof(key.b));
	p = cqd_page_find(r->st, sh, &key);
	if (p != CQP_NONE && r->st->pages[p].state != CQP_FILLING) {
		r->res.existing++;
		if (r->o.mark)
			r->st->pages[p].flags |= CQD_PG_SAVED;
		return true;
	}
	if (r->o.look)
		return true;
	if (r->full) {
		r->res.no_room++;
		return true;
	}
	return !parent_fits(r, sh, m);
}

static void consider(struct cqd_restore *r, const struct found *f)
{
	struct cqd_client *cl;
	struct cqd_shard *sh;

	if (f->ret) {
		r->res.bad++;
		r->res.unread += f->ret != -EINVAL;
		return;
	}
	sh = shard_of(r, &f->meta);
	if (!sh)
		return;
	sh->opens++;
	if (!settled(r, sh, &f->meta)) {
		cl = client_of(r, sh->ns);
		if (cl)
			load_page(r, f, sh, cl);
		else
			r->ret = -ENOSPC;
	}
	sh->opens--;
	cqd_shard_put(sh);
}

/* --- the whole --- */

static void restore_free(struct cqd_restore *r)
{
	unsigned int i;

	for (i = 0; r->file && i < r->o.n; i++)
		if (r->file[i])
			cqd_arena_put(r->file[i]);
	free(r->file);
	free(r->reader);
	free(r->entries);
	free(r);
}

static void end_run(struct cqd_job *job)
{
}

static void end_done(struct cqd_job *job)
{
	struct cqd_restore *r = container_of(job, struct cqd_restore, job);
	unsigned int i;

	for (i = 0; i < CQD_MAX_NS; i++)
		if (r->client[i])
			cqd_client_end(r->client[i]);
	if (r->ret && !r->err.text[0])
		cq_err_set(&r->err, r->ret, "reading saved pages: %s", strerror(-r->ret));
	if (r->st->transfer == &r->transfer)
		r->st->transfer = NULL;
	r->done(r->arg, r->ret, &r->res, &r->err);
	restore_free(r);
}

/* Goes on as far as it goes. Pages may be done before their seal returns. */
static void step(struct cqd_restore *r)
{
	if (r->busy || r->stepping)
		return;
	r->stepping = true;
	if (r->st->closing && !r->ret)
		r->ret = cq_err_set(&r->err, -ECANCELED, "cqd stops");
	if (r->transfer.gone && !r->ret)
		r->ret = cq_err_set(&r->err, -ECANCELED, "nobody waits for the pages");
	while (!r->ret && r->at < r->n_found && r->flying < AT_ONCE)
		consider(r, &r->found[r->at++]);
	r->stepping = false;
	if (!r->ret && r->at < r->n_found)
		return;		/* until one of those that fly is down */
	if (!r->ret && r->scanning < r->o.n) {
		start(r, scan_run, job_done);
		return;
	}
	r->next += r->n_found;
	r->n_found = 0;
	r->at = 0;
	if (!r->ret && r->next < r->n) {
		r->n_found = (unsigned int)MIN(r->n - r->next, READ_RECORDS);
		start(r, read_run, job_done);
	} else if (!r->flying) {
		/* Not from inside of a seal that the session still has. */
		start(r, end_run, end_done);
	}
}

static struct cqd_arena *shape(struct cqd_store *st, int fd)
{
	struct cqd_arena *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (a->fd < 0) {
		free(a);
		return NULL;
	}
	kref_init(&a->ref);
	list_init(&a->node);
	a->st = st;
	return a;
}

/**
 * cqd_restore_start() - bring saved pages back
 * @st:   store
 * @o:    files and what is wanted of them; oldest first
 * @done: called on the loop, once, unless an error is returned
 * @arg:  passed to @done
 * @out:  set on success; gone when @done was called
 * @err:  text of the failure
 *
 * A file that is none of saved pages is -EINVAL to @done.
 *
 * Return: 0; -ENOMEM.
 */
int cqd_restore_start(struct cqd_store *st, const struct cqd_restore_opts *o,
		      cqd_restore_cb done, void *arg, struct cqd_restore **out,
		      struct cq_err *err)
{
	struct cqd_restore *r = calloc(1, sizeof(*r));
	unsigned int i;

	if (!r)
		return cq_err_set(err, -ENOMEM, "no memory to restore pages");
	r->st = st;
	r->o = *o;
	r->done = done;
	r->arg = arg;
	/* Twice as many as can be resident: logs keep evicted ones for a while. */
	r->max = 4 * (size_t)st->ix.t_pages.n + 65536;
	r->file = calloc(o->n + 1, sizeof(*r->file));
	r->reader = calloc(o->n + 1, sizeof(*r->reader));
	if (!r->file || !r->reader)
		goto err_free;
	for (i = 0; i < o->n; i++) {
		r->file[i] = shape(st, o->fds[i]);
		if (!r->file[i])
			goto err_free;
	}
	r->transfer.arg = arg;
	if (o->admin)
		st->transfer = &r->transfer;
	if (out)
		*out = r;
	step(r);
	return 0;

err_free:
	restore_free(r);
	return cq_err_set(err, -ENOMEM, "no memory to restore pages");
}

/**
 * cqd_restore_look() - bring nothing more back
 * @r: running
 */
void cqd_restore_look(struct cqd_restore *r)
{
	r->o.look = true;
}

/**
 * cqd_restore() - bring the pages of a file back
 * @st:   store
 * @fd:   regular file open for reading; a duplicate is taken
 * @done: called on the loop, once, unless an error is returned
 * @arg:  passed to @done
 * @err:  text of the failure
 *
 * A file that is none of saved pages is -EINVAL to @done.
 *
 * Return: 0; -EBUSY a save or restore runs; -ENOMEM.
 */
int cqd_restore(struct cqd_store *st, int fd, cqd_restore_cb done, void *arg,
		struct cq_err *err)
{
	struct cqd_restore_opts o = { .fds = &fd, .n = 1, .name = "cqctl-restore",
				      .admin = true };
	struct stat sb;

	if (st->transfer)
		return cq_err_set(err, -EBUSY, "a save or restore is running: try again later");
	st->transfer_done = 0;
	st->transfer_total = fstat(fd, &sb) < 0 || sb.st_size < 0 ? 0 : (uint64_t)sb.st_size;
	return cqd_restore_start(st, &o, done, arg, NULL, err);
}
