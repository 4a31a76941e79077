// SPDX-License-Identifier: MIT
/*
 * Worker threads. libuv has one pool (four threads by default); slow jobs,
 * which reserve memory or wait for the service manager, may take two of them
 * at most, so that copies and checksums always find a thread.
 */
#include "daemon/store_priv.h"

#define SLOW_AT_ONCE 2

static void start(struct cqd_job *job);

static void work_cb(uv_work_t *w)
{
	struct cqd_job *job = container_of(w, struct cqd_job, work);

	job->run(job);
}

static void after_cb(uv_work_t *w, int status)
{
	struct cqd_job *job = container_of(w, struct cqd_job, work);
	struct cqd_store *st = job->st;
	struct cqd_job *next;

	if (job->slow)
		st->slow_running--;
	/* @job may be freed by its own completion. */
	job->done(job);
	if (st->slow_running < SLOW_AT_ONCE && !list_empty(&st->slow_queue)) {
		next = list_first(&st->slow_queue, struct cqd_job, node);
		list_del(&next->node);
		start(next);
	}
	st->jobs--;
	cqd_store_job_gone(st);
}

static void start(struct cqd_job *job)
{
	if (job->slow)
		job->st->slow_running++;
	/* Fails only for a NULL callback. */
	uv_queue_work(job->st->loop, &job->work, work_cb, after_cb);
}

/**
 * cqd_job_queue() - run a job on a worker thread
 * @st:   store
 * @job:  run and done are set; must stay until done was called
 * @slow: takes tens of milliseconds or waits for another process
 */
void cqd_job_queue(struct cqd_store *st, struct cqd_job *job, bool slow)
{
	job->st = st;
	job->slow = slow;
	st->jobs++;
	if (slow && st->slow_running >= SLOW_AT_ONCE)
		list_add_tail(&job->node, &st->slow_queue);
	else
		start(job);
}
