// SPDX-License-Identifier: MIT
/*
 * persist=: sealed pages follow into files of a folder, and come back from there
 * when the fd store is lost, by stop, crash of the machine or reboot.
 *
 *	pages-00000007.cq	log, in the format of proto/save.h
 *	pages-00000008.tmp	one being written anew
 *
 * One operation at a time, each of them on worker threads:
 *
 *	LIST	the folder is read once; what a daemon left half done goes
 *	RESTORE	pages in the files that are resident are marked; others are brought
 *		back, unless the index came from the fd store: then it is the truth
 *	IDLE	until something was sealed
 *	WRITE	pages without a mark are appended to this daemon's own log
 *	REWRITE	marked pages go to a new file, which takes the place of all others:
 *		when these are too large for what is resident
 *
 * Records are never changed: a page that was evicted stays in its file until that
 * is rewritten. A failure is said once, and nothing in memory depends on it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/persist.h"

#define LOOK_MS		200
#define RETRY_MS	60000
#define MAX_FILES	16		/* of daemons before, until they are rewritten */
#define SLACK		(64ull << 20)
#define EXTEND_US	"30000000"

static void next(struct cqd_persist *p);

static void queue(struct cqd_persist *p, void (*run)(struct cqd_job *job),
		  void (*done)(struct cqd_job *job))
{
	p->job.run = run;
	p->job.done = done;
	cqd_job_queue(p->st, &p->job, true);
}

static void wait_ms(struct cqd_persist *p, uint64_t ms);

/* --- failures --- */

/* Said once, until it works again. */
static void failed(struct cqd_persist *p, const char *text)
{
	if (!p->failing)
		cq_err("persist: %s: %s; pages stay in memory, and it is tried again: "
		       "make room, or see to the disk", p->dir, text);
	p->failing = true;
}

static void worked(struct cqd_persist *p)
{
	if (p->failing)
		cq_info("persist: %s can be written again", p->dir);
	p->failing = false;
}

/* --- RESTORE --- */

static void say_restored(struct cqd_persist *p, const struct cqd_restore_result *r)
{
	uint64_t left = r->no_model + r->no_namespace + r->no_room;

	if (r->restored || left)
		cq_info("persist: %llu pages (%llu MiB) came back from %s, %llu were there, %llu "
			"found no room, %llu no model or namespace%s%s",
			(unsigned long long)r->restored, (unsigned long long)(r->bytes >> 20),
			p->dir, (unsigned long long)r->existing,
			(unsigned long long)r->no_room,
			(unsigned long long)(r->no_model + r->no_namespace),
			r->text[0] ? ", the first: " : "", r->text);
	if (r->lost || r->bad)
		cq_warn("persist: %s is damaged: %llu records are missing, %llu pages have wrong "
			"bytes, %llu lack the page before them", p->dir,
			(unsigned long long)r->lost, (unsigned long long)r->bad,
			(unsigned long long)r->no_parent);
}

static void on_restored(void *arg, int ret, const struct cqd_restore_result *res,
			const struct cq_err *err)
{
	struct cqd_persist *p = arg;
	unsigned int i;

	p->restore = NULL;
	for (i = 0; i < p->n_files; i++) {
		close(p->file[i].fd);
		p->file[i].fd = -1;
	}
	if (ret && ret != -ECANCELED) {
		cq_err("persist: %s: %s; its files stay for the next start of cqd", p->dir,
		       err->text);
		/* Not ours to replace: nobody knows what is in them. */
		p->n_files = 0;
		p->old_bytes = 0;
	} else if (!ret) {
		say_restored(p, res);
	}
	/* Damage is said once: a new file is made, unless pages wait in the old ones. */
	p->damaged = !ret && (res->lost || res->bad) && !res->unread &&
		     !(res->no_model + res->no_namespace + res->no_room);
	/* What a daemon that was killed had not written yet. */
	p->dirty = true;
	next(p);
}

static void list_done(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);
	struct cqd_restore_opts o = { .name = "persist", .mark = true,
				      .look = p->st->adopted || p->flushing };
	static const struct cqd_restore_result none;
	struct cq_err err = { "" };
	unsigned int i;
	int *fds, ret = p->ret;

	if (p->said[0])
		cq_warn("persist: %s/%s", p->dir, p->said);
	fds = calloc(p->n_files + 1, sizeof(*fds));
	if (!fds)
		ret = -ENOMEM;
	if (ret)
		cq_err_set(&err, ret, "cannot read the folder: %s", strerror(-ret));
	for (i = 0; !ret && i < p->n_files; i++)
		fds[i] = p->file[i].fd;
	o.fds = fds;
	o.n = p->n_files;
	if (!ret)
		ret = cqd_restore_start(p->st, &o, on_restored, p, &p->restore, &err);
	free(fds);
	if (ret)
		on_restored(p, ret, &none, &err);
}

/* --- WRITE and REWRITE --- */

static void drop_done(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);

	p->save.fd = -1;
	next(p);
}

static void swap_done(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);

	if (p->ret) {
		p->save.fd = -1;
		failed(p, strerror(-p->ret));
		wait_ms(p, RETRY_MS);
		return;
	}
	p->n_files = 0;
	p->old_bytes = 0;
	p->distrust = false;
	p->damaged = false;
	worked(p);
	next(p);
}

/* This daemon's log becomes one of the others. */
static int retire_log(struct cqd_persist *p)
{
	struct cqd_persist_file *f;

	if (p->save.fd < 0)
		return 0;
	f = realloc(p->file, (p->n_files + 1) * sizeof(*f));
	if (!f)
		return -ENOMEM;
	p->file = f;
	f[p->n_files++] = (struct cqd_persist_file){ p->number, -1, p->save.pos };
	p->old_bytes += p->save.pos;
	close(p->save.fd);
	p->save.fd = -1;
	return 0;
}

static void on_batch(struct cqd_save *s)
{
	const struct cqd_persist *p = container_of(s, struct cqd_persist, save);

	if (p->flushing)
		sd_notify(0, "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=" EXTEND_US);
}

static void write_failed(struct cqd_persist *p, int ret, const char *text)
{
	p->dirty = true;
	if (ret == -ECANCELED) {
		next(p);
		return;
	}
	/* What was written before may not have reached the disk either. */
	if (p->save.doubt || (ret != -ENOSPC && ret != -EDQUOT && ret != -EFBIG))
		p->distrust = true;
	failed(p, text);
	if (p->flushing)
		next(p);
	else
		wait_ms(p, RETRY_MS);
}

/* Others that are whole stay: the new file goes. */
static void rewrite_dropped(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);

	p->save.fd = -1;
	write_failed(p, p->save.ret, p->save.err.text);
}

static void on_written(struct cqd_save *s)
{
	struct cqd_persist *p = container_of(s, struct cqd_persist, save);
	bool rewrite = p->state == CQD_PERSIST_REWRITE;

	p->saving = false;
	if (p->st->closing)
		return;
	if (s->ret && rewrite) {
		queue(p, cqd_persist_drop, rewrite_dropped);
		return;
	}
	if (s->ret) {
		write_failed(p, s->ret, s->err.text);
		return;
	}
	if (rewrite) {
		queue(p, cqd_persist_swap, swap_done);
		return;
	}
	worked(p);
	p->rest_ms = s->rate ? s->batch_bytes * 1000 / s->rate : 0;
	if (!s->pos)
		queue(p, cqd_persist_drop, drop_done);
	else
		next(p);
}

static void run_save(struct cqd_persist *p)
{
	struct cqd_save *s = &p->save;

	s->log = true;
	s->unsaved = p->state == CQD_PERSIST_WRITE;
	s->rewrite = p->state == CQD_PERSIST_REWRITE && !p->distrust;
	s->mark = !s->rewrite;
	s->timer = &p->timer;
	s->rate = p->flushing ? 0 : p->rate;
	s->batch = on_batch;
	s->done = on_written;
	s->cancel = p->flushing && p->state == CQD_PERSIST_REWRITE;
	p->saving = true;
	cqd_save_run(p->st, s);
}

static void open_done(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);

	/* A folder that could not be read has files nobody knows of. */
	p->number += !p->ret || p->ret == -EEXIST;
	if (p->ret == -EEXIST) {
		queue(p, cqd_persist_open, open_done);
		return;
	}
	if (p->ret) {
		write_failed(p, p->ret, strerror(-p->ret));
		return;
	}
	p->save.pos = 0;
	p->save.seq = 0;
	p->save.unsynced = 0;
	run_save(p);
}

static bool too_large(const struct cqd_persist *p)
{
	return p->distrust || p->damaged || p->n_files > MAX_FILES ||
	       p->old_bytes + (p->save.fd < 0 ? 0 : p->save.pos) >
	       2 * p->st->pool[0].used + p->slack;
}

static void begin(struct cqd_persist *p)
{
	p->seen = p->st->published;
	p->dirty = false;
	p->state = CQD_PERSIST_WRITE;
	if (!p->flushing && too_large(p)) {
		p->state = CQD_PERSIST_REWRITE;
		p->dirty = true;	/* what has no mark comes behind */
		if (retire_log(p)) {
			write_failed(p, -ENOSPC, "no memory");
			return;
		}
	}
	if (p->save.fd < 0)
		queue(p, cqd_persist_open, open_done);
	else
		run_save(p);
}

/* --- the order of things --- */

static void on_timer(uv_timer_t *timer)
{
	next(timer->data);
}

static void wait_ms(struct cqd_persist *p, uint64_t ms)
{
	p->state = CQD_PERSIST_IDLE;
	if (p->st->closing)
		return;
	p->timer.data = p;
	uv_timer_start(&p->timer, on_timer, ms, 0);
}

/* An operation has ended, or it is time to look. */
static void next(struct cqd_persist *p)
{
	void (*flushed)(void *arg) = p->flushed;
	bool due = p->dirty || p->seen != p->st->published;

	p->state = CQD_PERSIST_IDLE;
	if (p->st->closing)
		return;
	if (due && !p->flushing && p->rest_ms) {
		wait_ms(p, p->rest_ms);
		p->rest_ms = 0;
	} else if (due && !(p->flushing && p->failing)) {
		begin(p);
	} else if (p->flushing) {
		p->flushed = NULL;
		if (flushed)
			flushed(p->flushed_arg);
	} else {
		wait_ms(p, LOOK_MS + p->rest_ms);
	}
}

/**
 * cqd_persist_start() - bring pages back from a folder, then keep it up to date
 * @st:   store; models that pages are of should be loaded
 * @dir:  folder
 * @rate: bytes per second that are written, 0: no limit
 * @err:  text of the failure
 *
 * Return: 0; -EBUSY another cqd uses it; -ENOMEM; other -errno: no such folder.
 */
int cqd_persist_start(struct cqd_store *st, const char *dir, uint64_t rate,
		      struct cq_err *err)
{
	struct cqd_persist *p = calloc(1, sizeof(*p));
	int ret;

	if (!p)
		return cq_err_set(err, -ENOMEM, "persist: out of memory");
	p->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (p->dirfd < 0 || faccessat(p->dirfd, ".", W_OK | X_OK, AT_EACCESS) < 0) {
		ret = cq_err_set(err, -errno, "persist = %s: %s; pages are not kept over a stop "
				 "of cqd (the folder must exist and be cqd's own)", dir,
				 strerror(errno));
		goto err_free;
	}
	if (flock(p->dirfd, LOCK_EX | LOCK_NB) < 0) {
		ret = cq_err_set(err, -EBUSY, "persist = %s: another cqd uses this folder; pages "
				 "are not kept over a stop of this one", dir);
		goto err_free;
	}
	p->st = st;
	p->dir = strdup(dir);
	if (!p->dir) {
		ret = cq_err_set(err, -ENOMEM, "persist: out of memory");
		goto err_free;
	}
	p->rate = rate;
	p->slack = SLACK;
	p->save.fd = -1;
	p->state = CQD_PERSIST_LIST;
	uv_timer_init(st->loop, &p->timer);
	st->persist = p;
	queue(p, cqd_persist_list, list_done);
	return 0;

err_free:
	if (p->dirfd >= 0)
		close(p->dirfd);
	free(p);
	return ret;
}

/**
 * cqd_persist_flush() - write what is not written, then call back
 * @st:   store; nothing is sealed any more
 * @done: called on the loop, possibly before return; at once without persist=
 * @arg:  passed to @done
 */
void cqd_persist_flush(struct cqd_store *st, void (*done)(void *arg), void *arg)
{
	struct cqd_persist *p = st->persist;

	if (!p) {
		done(arg);
		return;
	}
	sd_notify(0, "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=" EXTEND_US);
	p->flushing = true;
	p->failing = false;	/* tried, and said, once more */
	p->flushed = done;
	p->flushed_arg = arg;
	if (p->restore)
		cqd_restore_look(p->restore);
	if (p->saving) {
		/* A new file instead of others that are whole can wait. */
		p->save.cancel = p->state == CQD_PERSIST_REWRITE;
		cqd_save_hurry(&p->save);
	} else if (p->state == CQD_PERSIST_IDLE) {
		uv_timer_stop(&p->timer);
		next(p);
	}
}

static void timer_closed(uv_handle_t *handle)
{
	struct cqd_persist *p = container_of(handle, struct cqd_persist, timer);

	cqd_store_handle_gone(p->st);
}

/**
 * cqd_persist_close() - no more operations
 * @st: store that closes
 */
void cqd_persist_close(struct cqd_store *st)
{
	struct cqd_persist *p = st->persist;

	if (!p)
		return;
	if (p->saving)
		cqd_save_hurry(&p->save);
	st->open_handles++;
	uv_close((uv_handle_t *)&p->timer, timer_closed);
}

/**
 * cqd_persist_free() - close the files
 * @st: store in which nothing runs any more
 */
void cqd_persist_free(struct cqd_store *st)
{
	struct cqd_persist *p = st->persist;
	unsigned int i;

	if (!p)
		return;
	for (i = 0; i < p->n_files; i++)
		if (p->file[i].fd >= 0)
			close(p->file[i].fd);
	if (p->save.fd >= 0)
		close(p->save.fd);
	close(p->dirfd);
	free(p->file);
	free(p->dir);
	free(p);
	st->persist = NULL;
}

/**
 * cqd_persist_bytes() - bytes of the files of persist=
 * @st: store
 *
 * Return: bytes; 0 without persist=.
 */
uint64_t cqd_persist_bytes(const struct cqd_store *st)
{
	const struct cqd_persist *p = st->persist;

	return p ? p->old_bytes + (p->save.fd < 0 ? 0 : p->save.pos) : 0;
}
