// SPDX-License-Identifier: MIT
/*
 * Sealed pages to a file: by batches that a worker thread writes, the loop in
 * between. Pages of a batch are held, so their slots are not written
 * meanwhile; pages sealed behind the pass are not part of it.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "daemon/save.h"

#define LOOK		4096		/* records looked at per turn of the loop */
#define SYNC_BYTES	(64ull << 20)	/* written between two syncs */

static void advance(struct cqd_save *s);

/* --- on a worker thread --- */

static int flush(struct cqd_save *s)
{
	const uint8_t *p = s->buf;
	ssize_t n;

	for (; s->fill; p += n, s->fill -= (size_t)n) {
		n = pwrite(s->fd, p, s->fill, (off_t)s->pos);
		if (n < 0 && errno == EINTR) {
			n = 0;
			continue;
		}
		if (n <= 0)
			return n < 0 ? -errno : -ENOSPC;
		s->pos += (size_t)n;
		s->unsynced += (size_t)n;
	}
	return 0;
}

/* Room for at least a byte in the buffer. */
static int make_room(struct cqd_save *s)
{
	return s->fill == sizeof(s->buf) ? flush(s) : 0;
}

static int write_block(struct cqd_save *s, const union cqp_save_block *b)
{
	int ret = make_room(s);

	/* The buffer is a number of blocks, and so is what is in it. */
	if (!ret) {
		memcpy(s->buf + s->fill, b, sizeof(*b));
		s->fill += sizeof(*b);
	}
	return ret;
}

static int write_head(struct cqd_save *s)
{
	union cqp_save_block b;
	struct timespec ts;
	int ret;

	clock_gettime(CLOCK_REALTIME, &ts);
	s->file_id = cqd_random();
	cqp_save_head(&b, s->log ? CQP_SAVE_LOG : 0, s->file_id,
		      (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000,
		      s->st->ix.hdr->boot_id);
	ret = write_block(s, &b);
	return ret ? ret : write_block(s, &b);
}

/* Payload of a slot, padded. */
static int write_payload(struct cqd_save *s, const struct cqd_save_item *it,
			 unsigned int kind, uint64_t len)
{
	const struct cqd_place *at = &it->at[kind];
	const struct cqd_mem_ops *mem = cqd_pool_of(at->seg)->mem;
	uint64_t off = at->slot * at->seg->slot_bytes + sizeof(struct cq_page_hdr), n;
	size_t pad = (size_t)(ALIGN_UP(len, CQP_SAVE_BLOCK) - len);
	int ret = 0;

	for (; len && !ret; len -= n, off += n) {
		ret = make_room(s);
		n = MIN(len, sizeof(s->buf) - s->fill);
		if (!ret)
			ret = mem->read(&at->seg->mem, off, s->buf + s->fill, n);
		s->fill += (size_t)n;
	}
	if (ret)
		return ret;
	memset(s->buf + s->fill, 0, pad);
	s->fill += pad;
	return 0;
}

/* The index knows the checksum of codes; that of sinks is in their slot only. */
static int sink_check(const struct cqd_save *s, struct cqd_save_item *it)
{
	const struct cqd_place *at = &it->at[CQD_SINKS];
	struct cq_page_hdr h;
	const struct cqd_mem_ops *mem = cqd_pool_of(at->seg)->mem;
	int ret = mem->read(&at->seg->mem, at->slot * at->seg->slot_bytes, &h, sizeof(h));

	it->meta.sink_lo = h.check_lo;
	it->meta.sink_hi = h.check_hi;
	return ret;
}

static int write_page(struct cqd_save *s, struct cqd_save_item *it)
{
	const struct cqp_save_page *m = &it->meta;
	union cqp_save_block b;
	int ret = m->sink ? sink_check(s, it) : 0;

	if (ret)
		return ret;
	cqp_save_rec(&b, CQP_SAVE_PAGE, s->file_id, s->seq, m, sizeof(*m),
		     cqp_save_data(m->payload, m->sink));
	ret = write_block(s, &b);
	if (!ret)
		ret = write_payload(s, it, CQD_CODES, m->payload);
	if (!ret && m->sink)
		ret = write_payload(s, it, CQD_SINKS, m->sink);
	s->seq++;
	return ret;
}

static int write_end(struct cqd_save *s)
{
	union cqp_save_block b;

	if (s->log)
		return 0;
	cqp_save_rec(&b, CQP_SAVE_END, s->file_id, s->seq, NULL, 0, 0);
	return write_block(s, &b);
}

/* What is in the cache alone is not saved. */
static int sync_file(struct cqd_save *s)
{
	if (!s->unsynced && s->log)
		return 0;
	s->unsynced = 0;
	if (fdatasync(s->fd) == 0)
		return 0;
	s->doubt = true;
	return -errno;
}

static void batch_run(struct cqd_job *job)
{
	struct cqd_save *s = container_of(job, struct cqd_save, job);
	uint32_t i;
	int ret = 0;

	s->fill = 0;
	s->good_pos = s->pos;
	s->good_seq = s->seq;
	if (!s->pos && (s->n || !s->log))
		ret = write_head(s);
	for (i = 0; i < s->n && !ret; i++)
		ret = write_page(s, &s->item[i]);
	if (!ret && s->last)
		ret = write_end(s);
	if (!ret)
		ret = flush(s);
	if (!ret && (s->last || s->unsynced >= SYNC_BYTES))
		ret = sync_file(s);
	if (ret && s->log)
		(void)!ftruncate(s->fd, (off_t)s->good_pos);
	if (ret)
		cq_err_set(&s->err, ret, "writing saved pages at %llu MiB: %s",
			   (unsigned long long)(s->pos >> 20), strerror(-ret));
	s->ret = ret;
}

/* --- on the loop --- */

static void take(struct cqd_save *s, uint32_t p)
{
	struct cqd_store *st = s->st;
	const struct cqp_rec_page *r = &st->ix.pages[p];
	const struct cqd_page *pg = &st->pages[p];
	const struct cqd_shard *sh = pg->shard;
	struct cqd_save_item *it = &s->item[s->n++];
	struct cqp_save_page *m = &it->meta;
	uint64_t now = cqd_now_us();
	unsigned int k;

	*it = (struct cqd_save_item){ 0 };
	it->page = p;
	for (k = 0; k < CQD_N_KINDS; k++)
		it->at[k] = cqd_page_place(st, p, k);
	memcpy(m->key, r->key, sizeof(m->key));
	memcpy(m->parent, pg->parent == CQP_NONE ? sh->root.b :
	       st->ix.pages[pg->parent].key, sizeof(m->parent));
	memcpy(m->model_hash, sh->model->head->hash, sizeof(m->model_hash));
	memcpy(m->tenant, sh->ns->name, sizeof(m->tenant));
	memcpy(m->model, sh->model->name, sizeof(m->model));
	m->layer_begin = sh->range.layer_begin;
	m->layer_end = sh->range.layer_end;
	m->head_begin = sh->range.head_begin;
	m->head_end = sh->range.head_end;
	m->depth = r->depth;
	m->uses = r->uses;
	m->ttl_s = r->ttl_s;
	m->priority = r->priority;
	m->age_us = now - MIN(now, r->last_use_us);
	m->payload = sh->kind[CQD_CODES].payload;
	m->sink = it->at[CQD_SINKS].seg ? sh->kind[CQD_SINKS].payload : 0;
	m->check_lo = r->check_lo;
	m->check_hi = r->check_hi;
	s->batch_bytes += sizeof(union cqp_save_block) + cqp_save_data(m->payload, m->sink);
	cqd_page_hold(st, p);
}

/*
 * A page adopted from the daemon before may have no root key yet: it is made
 * when somebody opens the shard, or here.
 */
static bool due(const struct cqd_save *s, uint32_t p)
{
	struct cqd_page *pg = &s->st->pages[p];

	if (!pg->shard || pg->shard->pool->mem->remote)
		return false;	/* or cqd cannot read it */
	if (pg->state != CQP_SEALED) {
		if (s->rewrite)
			pg->flags &= (uint8_t)~CQD_PG_SAVED;
		return false;
	}
	if (pg->flags & CQD_PG_SAVED ? s->unsaved : s->rewrite)
		return false;
	return !cqd_shard_root(pg->shard, NULL);
}

static void finish(struct cqd_save *s, int ret)
{
	s->ret = ret;
	s->done(s);
}

static void unhold(struct cqd_save *s)
{
	struct cqd_store *st = s->st;
	uint32_t i;

	for (i = 0; i < s->n; i++) {
		if (s->mark && !s->ret)
			st->pages[s->item[i].page].flags |= CQD_PG_SAVED;
		cqd_page_unhold(st, s->item[i].page);
	}
	if (!s->ret) {
		s->pages += s->n;
		s->bytes += s->batch_bytes;
	}
}

static void on_pause(uv_timer_t *timer)
{
	struct cqd_save *s = timer->data;

	s->paused = false;
	advance(s);
}

static void batch_done(struct cqd_job *job)
{
	struct cqd_save *s = container_of(job, struct cqd_save, job);
	uint64_t ms;

	unhold(s);
	if (s->ret) {
		/* A log goes on behind its last whole batch. */
		s->pos = s->good_pos;
		s->seq = s->good_seq;
		finish(s, s->ret);
		return;
	}
	if (s->batch)
		s->batch(s);
	if (s->last) {
		finish(s, 0);
	} else if (s->timer && s->rate && s->n && !s->st->closing) {
		/* The pause that makes bytes over time the rate. */
		ms = s->batch_bytes * 1000 / s->rate;
		s->paused = true;
		s->timer->data = s;
		uv_timer_start(s->timer, on_pause, ms, 0);
	} else {
		advance(s);
	}
}

/* Gathers a batch, without looking at too many records at once. */
static void advance(struct cqd_save *s)
{
	struct cqd_store *st = s->st;
	uint32_t end = st->ix.t_pages.high, stop = s->next + LOOK;

	s->n = 0;
	s->batch_bytes = 0;
	if (st->closing || s->cancel) {
		finish(s, cq_err_set(&s->err, -ECANCELED, st->closing ? "cqd stops" :
				     "nobody waits for the file"));
		return;
	}
	for (; s->next < MIN(end, stop) && s->n < CQD_SAVE_BATCH &&
	     s->batch_bytes < CQD_SAVE_BATCH_BYTES; s->next++)
		if (due(s, s->next))
			take(s, s->next);
	s->last = s->next >= end;
	s->job.run = batch_run;
	s->job.done = batch_done;
	cqd_job_queue(st, &s->job, true);
}

/**
 * cqd_save_run() - write pages to a file
 * @st: store
 * @s:  what and where; must stay until its done was called
 */
void cqd_save_run(struct cqd_store *st, struct cqd_save *s)
{
	s->st = st;
	s->next = 0;
	s->ret = 0;
	s->doubt = false;
	s->pages = 0;
	s->bytes = 0;
	advance(s);
}

/**
 * cqd_save_hurry() - end a pause at once
 * @s: running, paused or not
 */
void cqd_save_hurry(struct cqd_save *s)
{
	s->rate = 0;
	if (!s->paused)
		return;
	uv_timer_stop(s->timer);
	on_pause(s->timer);
}

/* --- cqctl save --- */

struct admin_save {
	struct cqd_save s;
	struct cqd_transfer transfer;
	cqd_save_cb done;
	void *arg;
};

static void admin_done(struct cqd_save *s)
{
	struct admin_save *a = container_of(s, struct admin_save, s);

	if (s->st->transfer == &a->transfer)
		s->st->transfer = NULL;
	close(s->fd);
	a->done(a->arg, s->ret, s->pages, s->bytes, &s->err);
	free(a);
}

static void admin_batch(struct cqd_save *s)
{
	const struct admin_save *a = container_of(s, struct admin_save, s);

	s->cancel = a->transfer.gone;
	if (s->cancel)
		return;
	s->st->transfer_done = s->bytes;
	s->st->transfer_total = MAX(s->bytes, s->st->pool[0].used);
}

/**
 * cqd_save() - write every sealed page to a file
 * @st:   store
 * @fd:   regular file open for writing; a duplicate is taken
 * @done: called on the loop, once, unless an error is returned
 * @arg:  passed to @done
 * @err:  text of the failure
 *
 * Return: 0; -EBUSY a save or restore runs; -EINVAL no regular file; -ENOMEM.
 */
int cqd_save(struct cqd_store *st, int fd, cqd_save_cb done, void *arg, struct cq_err *err)
{
	struct admin_save *a;
	struct stat sb;

	if (st->transfer)
		return cq_err_set(err, -EBUSY, "a save or restore is running: try again later");
	if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode))
		return cq_err_set(err, -EINVAL, "pages are saved to regular files only");
	a = calloc(1, sizeof(*a));
	if (!a)
		return cq_err_set(err, -ENOMEM, "no memory for a save");
	a->s.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (a->s.fd < 0) {
		free(a);
		return cq_err_set(err, -ENOMEM, "no descriptor for a save");
	}
	a->s.batch = admin_batch;
	a->s.done = admin_done;
	a->done = done;
	a->arg = arg;
	a->transfer.arg = arg;
	st->transfer = &a->transfer;
	st->transfer_done = 0;
	st->transfer_total = st->pool[0].used;
	cqd_save_run(st, &a->s);
	return 0;
}

/**
 * cqd_transfer_gone() - nobody waits for a save or restore any more
 * @st:  store
 * @arg: given to cqd_save() or cqd_restore(); may have ended already
 *
 * It ends after the step under way, with -ECANCELED; another may begin at once.
 */
void cqd_transfer_gone(struct cqd_store *st, const void *arg)
{
	if (!st->transfer || st->transfer->arg != arg)
		return;
	st->transfer->gone = true;
	st->transfer = NULL;
}
