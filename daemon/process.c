// SPDX-License-Identifier: MIT
/*
 * Processes that have sessions. Each is watched once, by a pidfd, however many
 * sessions it has: their end is one event.
 *
 * After a restart thousands of processes may have to be found again. That costs
 * some system calls each, so it is done a few per turn of the loop, while
 * others are served; a process that comes back by itself is watched at once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/msgid.h"
#include "daemon/server.h"

#define END_PER_TURN	64	/* sessions of one process; its event comes again */

/*
 * struct cqd_process - a process that has sessions
 * @todo:  on the server's list until it is watched
 * @users: sessions, and who walks through them
 * @pidfd: readable once the process is gone; -1 until it is watched
 */
struct cqd_process {
	struct list_head node, todo;
	struct list_head sessions;
	struct cqd_server *srv;
	uv_poll_t poll;
	uint64_t start_time;
	unsigned int users;
	pid_t pid;
	int pidfd;
};

static struct list_head *chain(struct cqd_server *srv, pid_t pid)
{
	return &srv->processes[(unsigned int)pid % CQD_HASH];
}

static struct cqd_process *find(struct cqd_server *srv, pid_t pid, uint64_t start_time)
{
	struct list_head *pos;
	struct cqd_process *p;

	list_for_each(pos, chain(srv, pid)) {
		p = list_entry(pos, struct cqd_process, node);
		if (p->pid == pid && p->start_time == start_time)
			return p;
	}
	return NULL;
}

static void on_closed(uv_handle_t *handle)
{
	struct cqd_process *p = handle->data;

	close(p->pidfd);
	free(p);
}

static void put(struct cqd_process *p)
{
	if (--p->users)
		return;
	list_del(&p->node);
	list_del(&p->todo);
	if (p->pidfd < 0)
		free(p);
	else
		uv_close((uv_handle_t *)&p->poll, on_closed);
}

/* The process is gone; @again: where to wait for another turn if there is more to end. */
static void end_some(struct cqd_process *p, struct list_head *again)
{
	struct cqd_session *s;
	struct cqd_conn *conn;
	unsigned int i;

	p->users++;
	for (i = 0; i < END_PER_TURN && !list_empty(&p->sessions); i++) {
		s = list_first(&p->sessions, struct cqd_session, process_node);
		conn = s->conn;
		cqd_session_end(s);
		/* A child of the dead process may still hold the socket. */
		if (conn)
			cqd_conn_close(conn);
	}
	if (again && !list_empty(&p->sessions))
		list_add_tail(&p->todo, again);
	put(p);
}

static void on_exit_of(uv_poll_t *poll, int status, int events)
{
	end_some(poll->data, NULL);
}

/* Takes @pidfd over on success. */
static int watch(struct cqd_process *p, int pidfd)
{
	int ret = uv_poll_init(p->srv->loop, &p->poll, pidfd);

	if (ret)
		return ret;
	p->poll.data = p;
	p->pidfd = pidfd;
	list_del(&p->todo);
	uv_poll_start(&p->poll, UV_READABLE, on_exit_of);
	return 0;
}

static struct cqd_process *process_new(struct cqd_server *srv, pid_t pid,
				       uint64_t start_time)
{
	struct cqd_process *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->srv = srv;
	p->pid = pid;
	p->start_time = start_time;
	p->pidfd = -1;
	list_init(&p->todo);
	list_init(&p->sessions);
	list_add(&p->node, chain(srv, pid));
	return p;
}

/**
 * cqd_process_join() - a session of a process
 * @s:          session
 * @pid:        its process
 * @start_time: of the process
 * @pidfd:      of the process, taken over on success; -1: it is to be found again
 *
 * Return: 0; -ENOMEM.
 */
int cqd_process_join(struct cqd_session *s, pid_t pid, uint64_t start_time, int pidfd)
{
	struct cqd_process *p = find(s->srv, pid, start_time);

	if (!p)
		p = process_new(s->srv, pid, start_time);
	if (!p)
		return -ENOMEM;
	p->users++;
	if (pidfd >= 0 && p->pidfd < 0 && watch(p, pidfd)) {
		put(p);
		return -ENOMEM;
	}
	if (pidfd >= 0 && p->pidfd != pidfd)
		close(pidfd);
	if (p->pidfd < 0 && list_empty(&p->todo)) {
		list_add_tail(&p->todo, &s->srv->unwatched);
		cqd_processes_watch(s->srv);
	}
	s->process = p;
	list_add_tail(&s->process_node, &p->sessions);
	return 0;
}

/**
 * cqd_process_seen() - the process of a session is here
 * @s:     session
 * @pidfd: of the process; taken over in any case
 */
void cqd_process_seen(struct cqd_session *s, int pidfd)
{
	/* Without memory it is tried again by number. */
	if (s->process->pidfd >= 0 || watch(s->process, pidfd))
		close(pidfd);
}

/**
 * cqd_process_leave() - a session ends
 * @s: session; the last one ends the watching
 */
void cqd_process_leave(struct cqd_session *s)
{
	list_del(&s->process_node);
	put(s->process);
}

static void find_again(struct cqd_process *p)
{
	int pidfd, ret = cqd_process_open(p->pid, p->start_time, &pidfd);

	if (ret == -ESRCH) {
		end_some(p, &p->srv->unwatched);
		return;
	}
	if (!ret && !watch(p, pidfd))
		return;
	if (!ret) {
		close(pidfd);
		ret = -ENOMEM;
	}
	/* Its pins must stay: it may be reading. */
	cq_log_field("MESSAGE_ID", "%s", CQD_MSG_UNWATCHED);
	cq_log_field("CQ_CLIENT_PID", "%d", (int)p->pid);
	cq_log_field("ERRNO", "%d", -ret);
	cq_err("cannot watch process %d of an earlier session: %s; what it holds stays "
	       "until it connects again or cqd is restarted", (int)p->pid, strerror(-ret));
}

/* One a turn: opening a process takes longer than a turn of the loop. */
static void on_idle(uv_idle_t *idle)
{
	struct cqd_server *srv = idle->data;
	struct cqd_process *p;

	if (list_empty(&srv->unwatched)) {
		uv_idle_stop(idle);
		return;
	}
	p = list_first(&srv->unwatched, struct cqd_process, todo);
	list_del(&p->todo);
	find_again(p);
}

/**
 * cqd_processes_init() - no process yet
 * @srv: server with its loop
 */
void cqd_processes_init(struct cqd_server *srv)
{
	unsigned int i;

	for (i = 0; i < CQD_HASH; i++)
		list_init(&srv->processes[i]);
	list_init(&srv->unwatched);
	uv_idle_init(srv->loop, &srv->watching);
	srv->watching.data = srv;
}

/**
 * cqd_processes_watch() - find the processes again that wait for it
 * @srv: server
 */
void cqd_processes_watch(struct cqd_server *srv)
{
	uv_idle_start(&srv->watching, on_idle);
}

/**
 * cqd_processes_close() - stop looking for processes
 * @srv: server without sessions
 */
void cqd_processes_close(struct cqd_server *srv)
{
	uv_close((uv_handle_t *)&srv->watching, NULL);
}
