// SPDX-License-Identifier: MIT
/*
 * Models: a file becomes a sealed memfd of the daemon's own, which workers
 * map. Loading takes two jobs: copy and check; then, when the loop has agreed
 * to the name, the hand-over to the service manager.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/store_priv.h"

#define MAX_MODEL_BYTES	(4ull << 30)
#define MODEL_SEALS	(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)

struct load {
	struct cqd_job job;
	struct cqd_model *m;
	int src;
	int ret;
	struct cq_err err;
	cqd_model_cb done;
	void *arg;
};

/**
 * cqd_model_find() - model by name
 * @st:   store
 * @name: as loaded
 *
 * Return: the model, also one that is being loaded; NULL if none.
 */
struct cqd_model *cqd_model_find(struct cqd_store *st, const char *name)
{
	struct list_head *pos;

	list_for_each(pos, &st->models)
		if (!strcmp(list_entry(pos, struct cqd_model, node)->name, name))
			return list_entry(pos, struct cqd_model, node);
	return NULL;
}

/**
 * cqd_model_map() - check a sealed memfd and read the model's head
 * @m:   fd, image, bytes and head are set on success
 * @fd:  owned by @m on success
 * @err: text of the failure
 *
 * Any thread, while @m is not in a list.
 *
 * Return: 0; -EINVAL; -EPROTO; -ENOMEM; other -errno.
 */
int cqd_model_map(struct cqd_model *m, int fd, struct cq_err *err)
{
	struct stat sb;
	const void *p;
	int ret, seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || (seals & MODEL_SEALS) != MODEL_SEALS)
		return cq_err_set(err, -EINVAL, "fd %d is not a sealed memfd", fd);
	if (fstat(fd, &sb) < 0 || sb.st_size <= 0)
		return cq_err_set(err, -EINVAL, "a model file cannot be empty");
	p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return cq_err_set(err, -errno, "mapping a model: %s", strerror(errno));
	ret = cqk_model_head(p, (size_t)sb.st_size, &m->head, err);
	if (ret) {
		munmap((void *)(uintptr_t)p, (size_t)sb.st_size);
		return ret;
	}
	m->fd = fd;
	m->image = p;
	m->bytes = (uint64_t)sb.st_size;
	return 0;
}

/**
 * cqd_model_free() - unmap, close, free; the record and stored fd stay
 * @m: model, may be half made
 */
void cqd_model_free(struct cqd_model *m)
{
	list_del(&m->node);
	cqk_model_free(m->head);
	if (m->image)
		munmap((void *)(uintptr_t)m->image, m->bytes);
	if (m->fd >= 0)
		close(m->fd);
	free(m);
}

/**
 * cqd_model_put() - a shard of the model is gone
 * @m: freed if it was unloaded and this was the last
 */
void cqd_model_put(struct cqd_model *m)
{
	if (--m->shards == 0 && m->dying)
		cqd_model_free(m);
}

static int copy_into(int dst, int src, uint64_t bytes, struct cq_err *err)
{
	uint8_t *p;
	uint64_t at = 0;
	ssize_t n = 1;
	int ret = 0;

	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, dst, 0);
	if (p == MAP_FAILED)
		return cq_err_set(err, -errno, "mapping a model: %s", strerror(errno));
	while (at < bytes && n > 0) {
		n = pread(src, p + at, bytes - at, (off_t)at);
		if (n > 0)
			at += (uint64_t)n;
		else if (n < 0 && errno == EINTR)
			n = 1;
	}
	if (n < 0)
		ret = cq_err_set(err, -errno, "reading the model file: %s", strerror(errno));
	else if (at < bytes)
		ret = cq_err_set(err, -EINVAL, "the model file shrank while it was read");
	/* F_SEAL_WRITE needs every writable mapping gone. */
	munmap(p, bytes);
	return ret;
}

static int copy_sealed(int src, int *out, struct cq_err *err)
{
	struct stat sb;
	int fd, ret;

	if (fstat(src, &sb) < 0 || !S_ISREG(sb.st_mode) || sb.st_size <= 0 ||
	    (uint64_t)sb.st_size > MAX_MODEL_BYTES)
		return cq_err_set(err, -EINVAL,
				  "a model must be a regular file of 1 byte to 4 GiB");
	fd = memfd_create("cq-model", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return cq_err_set(err, -errno, "memfd_create: %s", strerror(errno));
	ret = cqd_fallocate(fd, 0, (uint64_t)sb.st_size);
	if (ret) {
		cq_err_set(err, ret, "reserving memory for a model: %s", strerror(-ret));
		goto err_close;
	}
	ret = copy_into(fd, src, (uint64_t)sb.st_size, err);
	if (ret)
		goto err_close;
	if (fcntl(fd, F_ADD_SEALS, MODEL_SEALS) < 0 || fchmod(fd, 0444) < 0) {
		ret = cq_err_set(err, -errno, "sealing a model: %s", strerror(errno));
		goto err_close;
	}
	*out = fd;
	return 0;

err_close:
	close(fd);
	return ret;
}

static void load_run(struct cqd_job *job)
{
	struct load *l = container_of(job, struct load, job);
	int fd;

	l->ret = copy_sealed(l->src, &fd, &l->err);
	if (l->ret)
		return;
	l->ret = cqd_model_map(l->m, fd, &l->err);
	if (l->ret)
		close(fd);
}

static void load_free(struct load *l)
{
	close(l->src);
	free(l);
}

/* Failed, or there already: the copy just made goes. */
static void load_drop(struct load *l, int ret, const struct cqd_model *have)
{
	uint8_t hash[32] = { 0 };

	if (have)
		memcpy(hash, have->head->hash, sizeof(hash));
	l->done(l->arg, ret, hash, have && !ret, &l->err);
	cqd_model_free(l->m);
	load_free(l);
}

static void push_run(struct cqd_job *job)
{
	struct load *l = container_of(job, struct load, job);
	char name[32];

	snprintf(name, sizeof(name), "cq-model-%u", l->m->rec);
	l->ret = cqd_fdstore_push(job->st, name, l->m->fd, CQD_FD_SURE, &l->err);
}

static void push_done(struct cqd_job *job)
{
	struct load *l = container_of(job, struct load, job);
	struct cqd_model *m = l->m;
	struct cqp_rec_model *r = &job->st->ix.models[m->rec];
	char name[32];

	if (l->ret) {
		/* It may have arrived: the next of that name must be the only one. */
		snprintf(name, sizeof(name), "cq-model-%u", m->rec);
		cqd_fdstore_remove(job->st, name);
		cqd_tab_put(&job->st->ix.t_models, m->rec);
		load_drop(l, l->ret, NULL);
		return;
	}
	memset(r->name, 0, sizeof(r->name));
	snprintf(r->name, sizeof(r->name), "%s", m->name);
	memcpy(r->hash, m->head->hash, sizeof(r->hash));
	r->bytes = m->bytes;
	cqd_word_born(&r->word, CQP_SEALED);
	m->ready = true;
	cqd_model_changed(m, true);
	l->done(l->arg, 0, m->head->hash, false, &l->err);
	load_free(l);
}

static void load_done(struct cqd_job *job)
{
	struct load *l = container_of(job, struct load, job);
	struct cqd_store *st = job->st;
	struct cqd_model *have;

	if (!l->ret && st->closing)
		l->ret = cq_err_set(&l->err, -ECANCELED, "cqd is stopping");
	if (l->ret) {
		load_drop(l, l->ret, NULL);
		return;
	}
	have = cqd_model_find(st, l->m->name);
	if (have && memcmp(have->head->hash, l->m->head->hash, 32)) {
		load_drop(l, cq_err_set(&l->err, -EEXIST,
			  "another model is loaded as '%s': unload it or take another name",
			  l->m->name), NULL);
		return;
	}
	if (have && !have->ready) {
		load_drop(l, cq_err_set(&l->err, -EBUSY, "'%s' is being loaded already",
			  l->m->name), NULL);
		return;
	}
	if (have) {
		load_drop(l, 0, have);
		return;
	}
	l->m->rec = cqd_tab_get(&st->ix.t_models);
	if (l->m->rec == CQP_NONE) {
		load_drop(l, cq_err_set(&l->err, -ENOSPC, "%u models are loaded: unload one",
			  st->ix.t_models.n), NULL);
		return;
	}
	list_add_tail(&l->m->node, &st->models);
	l->job.run = push_run;
	l->job.done = push_done;
	cqd_job_queue(st, &l->job, true);
}

static struct load *load_new(struct cqd_store *st, const char *name, int fd)
{
	struct load *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->m = calloc(1, sizeof(*l->m));
	l->src = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (!l->m || l->src < 0) {
		free(l->m);
		if (l->src >= 0)
			close(l->src);
		free(l);
		return NULL;
	}
	l->m->st = st;
	l->m->fd = -1;
	list_init(&l->m->node);
	snprintf(l->m->name, sizeof(l->m->name), "%s", name);
	return l;
}

/**
 * cqd_model_load() - copy a model file into a sealed memfd of the daemon's own
 * @st:   store
 * @name: name workers open it by
 * @fd:   readable file; a duplicate is taken
 * @done: called on the loop, exactly once, unless an error is returned
 * @arg:  passed to @done
 * @err:  text of the failure
 *
 * Return: 0; -EINVAL name; -ENOMEM.
 */
int cqd_model_load(struct cqd_store *st, const char *name, int fd,
		   cqd_model_cb done, void *arg, struct cq_err *err)
{
	size_t n = strnlen(name, CQP_MAX_NAME);
	struct load *l;

	if (!n || n == CQP_MAX_NAME)
		return cq_err_set(err, -EINVAL, "model name must be 1 to %d bytes",
				  CQP_MAX_NAME - 1);
	if (fcntl(fd, F_GETFD) < 0)
		return cq_err_set(err, -EINVAL, "no model file beside the request");
	l = load_new(st, name, fd);
	if (!l)
		return cq_err_set(err, -ENOMEM, "no memory or descriptor for a model");
	l->done = done;
	l->arg = arg;
	l->job.run = load_run;
	l->job.done = load_done;
	cqd_job_queue(st, &l->job, true);
	return 0;
}

/* Something of the model is in use: a pin, a name, a lease, a seal, a check, a creation. */
static bool in_use(struct cqd_store *st, const struct cqd_model *m)
{
	struct list_head *pos;
	uint32_t p;

	list_for_each(pos, &st->shards) {
		const struct cqd_shard *sh = list_entry(pos, struct cqd_shard, node);

		if (sh->model == m && (sh->names || sh->leases || sh->kind[0].creating ||
				       sh->kind[1].creating))
			return true;
	}
	for (p = 0; p < CQD_MAX_SEGMENTS; p++)
		if (st->segs[p] && st->segs[p]->shard->model == m && st->segs[p]->importers)
			return true;
	for (p = 0; p < st->ix.t_pages.high; p++) {
		const struct cqd_page *pg = &st->pages[p];

		if (pg->shard && pg->shard->model == m &&
		    (pg->pins || pg->holds || pg->state == CQP_FILLING))
			return true;
	}
	return false;
}

static void drop_all(struct cqd_store *st, const struct cqd_model *m)
{
	struct list_head *pos, *tmp;
	uint32_t i;

	for (i = 0; i < st->ix.t_pages.high; i++)
		if (st->pages[i].shard && st->pages[i].shard->model == m)
			cqd_page_drop(st, i);
	for (i = 0; i < CQD_MAX_SEGMENTS; i++)
		if (st->segs[i] && st->segs[i]->shard->model == m)
			cqd_segment_retire(st->segs[i]);
	list_for_each_safe(pos, tmp, &st->shards)
		if (list_entry(pos, struct cqd_shard, node)->model == m)
			cqd_shard_put(list_entry(pos, struct cqd_shard, node));
}

/**
 * cqd_model_unload() - forget a model and its pages
 * @st:   store
 * @name: as loaded
 * @err:  text of the failure
 *
 * Return: 0; -ENOENT; -EBUSY sessions have it open or pages are in use.
 */
int cqd_model_unload(struct cqd_store *st, const char *name, struct cq_err *err)
{
	struct cqd_model *m = cqd_model_find(st, name);
	char fdname[32];

	if (!m)
		return cq_err_set(err, -ENOENT, "no model '%s' is loaded", name);
	if (m->opens)
		return cq_err_set(err, -EBUSY, "model '%s' is in use: open in %u sessions",
				  name, m->opens);
	if (!m->ready || in_use(st, m))
		return cq_err_set(err, -EBUSY, "model '%s' is in use: its pages are read or have "
				  "a name, see cqctl list names", name);
	m->shards++;	/* stays until we are through */
	m->dying = true;
	drop_all(st, m);
	cqd_word_state(&st->ix.models[m->rec].word, CQP_FREE);
	snprintf(fdname, sizeof(fdname), "cq-model-%u", m->rec);
	cqd_fdstore_remove(st, fdname);
	cqd_tab_put(&st->ix.t_models, m->rec);
	list_del(&m->node);
	cqd_model_changed(m, false);
	cqd_model_put(m);
	return 0;
}
