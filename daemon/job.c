// SPDX-License-Identifier: MIT
/*
 * Worker threads: four for all stores of the process. Slow jobs, which reserve
 * memory or wait for the service manager, may take two of them at most, so that
 * copies and checksums always find a thread.
 *
 * Not libuv's pool: its loop spins while a thread announces a completion, and
 * takes mutexes that threads hold, so a loop with real-time priority would wait
 * for threads that have none. Here the loop takes no lock. Jobs go to the
 * threads and come back on lists that one atomic operation pushes to or empties.
 *
 * Where the kernel gives no threads (RLIMIT_NPROC, pids.max) fewer do, and without
 * any the loop does the work itself, which clients feel: said once, and tried again.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/store_priv.h"

#define THREADS		4u
#define SLOW_AT_ONCE	2

/*
 * struct cqd_back - where the jobs of a store come back
 * @list: done, newest first
 * @fd:   eventfd that each of them is announced on, once it is on the list
 * @away: given to threads less announced: a thread may still be at it although
 *        its job was found on the list
 */
struct cqd_back {
	struct cqd_job *list;
	int fd;
	uint64_t away;
};

/*
 * @inbox:  pushed by loops, newest first
 * @oldest: what a thread took out of it, oldest first; under @lock
 * @lock:   of the threads among each other
 * @ready:  counts jobs in both
 * @pid:    whose threads they are: a forked child has none of them
 * @few:    it was said that there are too few
 */
static struct {
	struct cqd_job *inbox, *oldest;
	pthread_mutex_t lock;
	sem_t ready;
	unsigned int threads;
	pid_t pid;
	bool few;
} pool;

static void push(struct cqd_job **list, struct cqd_job *job)
{
	struct cqd_job *head = READ_ONCE(*list);

	/* Release, pairs with the acquire in take_all(): the job before its place. */
	do {
		job->next = head;
	} while (!__atomic_compare_exchange_n(list, &head, job, true, __ATOMIC_RELEASE,
					      __ATOMIC_RELAXED));
}

/* Everything on @list, oldest first. */
static struct cqd_job *take_all(struct cqd_job **list)
{
	struct cqd_job *job = __atomic_exchange_n(list, NULL, __ATOMIC_ACQUIRE);
	struct cqd_job *next, *out = NULL;

	for (; job; job = next) {
		next = job->next;
		job->next = out;
		out = job;
	}
	return out;
}

/* --- threads --- */

/* A job is there: the semaphore said so. */
static struct cqd_job *take(void)
{
	struct cqd_job *job;

	pthread_mutex_lock(&pool.lock);
	if (!pool.oldest)
		pool.oldest = take_all(&pool.inbox);
	job = pool.oldest;
	pool.oldest = job->next;
	pthread_mutex_unlock(&pool.lock);
	return job;
}

static void work(struct cqd_job *job)
{
	struct cqd_back *b = job->st->back;
	uint64_t one = 1;

	job->run(job);
	push(&b->list, job);
	/* After this the store may be gone. */
	while (write(b->fd, &one, sizeof(one)) < 0 && (errno == EINTR || errno == EAGAIN))
		;
}

static void *thread_main(void *arg)
{
	for (;;) {
		while (sem_wait(&pool.ready))
			;
		work(take());
	}
	return NULL;
}

static void say_few(int ret)
{
	if (!pool.few)
		cq_warn("%u of %u worker threads: %s; cqd serves on, slowly: raise LimitNPROC= "
			"or TasksMax= of cqd.service", pool.threads, THREADS, strerror(ret));
	pool.few = true;
}

/* As many as there may be. */
static void pool_grow(void)
{
	sigset_t all, old;
	pthread_t thread;
	int ret = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (!ret && pool.threads < THREADS) {
		ret = pthread_create(&thread, NULL, thread_main, NULL);
		if (ret)
			break;
		pthread_detach(thread);
		pool.threads++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		say_few(ret);
}

/* By the loop. They are never joined: a store waits for its jobs itself. */
static int pool_start(void)
{
	if (pool.pid != getpid()) {
		pool.inbox = NULL;
		pool.oldest = NULL;
		pool.threads = 0;
		pool.few = false;
		pool.pid = getpid();
	}
	if (!pool.threads) {
		pthread_mutex_init(&pool.lock, NULL);
		if (sem_init(&pool.ready, 0, 0))
			return -errno;
	}
	pool_grow();
	return 0;
}

/* --- the loop's side --- */

static void start(struct cqd_job *job)
{
	if (job->slow)
		job->st->slow_running++;
	job->st->back->away++;
	if (!pool.threads)
		pool_grow();
	if (!pool.threads) {
		work(job);
		return;
	}
	push(&pool.inbox, job);
	sem_post(&pool.ready);
}

static void finish(struct cqd_store *st, struct cqd_job *job)
{
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
}

static void on_back(uv_poll_t *poll, int status, int events)
{
	struct cqd_store *st = poll->data;
	struct cqd_job *job, *next;
	uint64_t n;

	/* Emptied first: what comes later makes it readable again. */
	if (read(st->back->fd, &n, sizeof(n)) < 0)
		return;
	st->back->away -= n;
	for (job = take_all(&st->back->list); job; job = next) {
		next = job->next;
		finish(st, job);
	}
	cqd_store_jobs_gone(st);
}

/**
 * cqd_jobs_open() - threads, and the way back from them
 * @st: store with its loop
 *
 * Return: 0, with whatever number of threads; -ENOMEM; -EMFILE.
 */
int cqd_jobs_open(struct cqd_store *st)
{
	struct cqd_back *b = calloc(1, sizeof(*b));
	int ret;

	if (!b)
		return -ENOMEM;
	b->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = b->fd < 0 ? -errno : pool_start();
	if (!ret)
		ret = uv_poll_init(st->loop, &st->back_poll, b->fd);
	if (ret) {
		if (b->fd >= 0)
			close(b->fd);
		free(b);
		return ret;
	}
	st->back = b;
	st->back_poll.data = st;
	uv_poll_start(&st->back_poll, UV_READABLE, on_back);
	return 0;
}

/**
 * cqd_jobs_close() - no job comes back any more
 * @st:     store without jobs; nothing is done while a thread is still at the
 *          last: its announcement comes
 * @closed: called when the handle is closed
 */
void cqd_jobs_close(struct cqd_store *st, uv_close_cb closed)
{
	if (st->back->away)
		return;
	uv_close((uv_handle_t *)&st->back_poll, closed);
	close(st->back->fd);
	free(st->back);
	st->back = NULL;
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
