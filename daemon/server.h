/* SPDX-License-Identifier: MIT */
/*
 * What stands before the store: sockets, connections, sessions, handlers.
 * Everything here runs on the event loop's thread.
 *
 *	listener   a listening socket; says which namespaces it leads to
 *	conn       one accepted connection and its queue of replies
 *	session    a client of the store; outlives its conn
 *	process    has sessions, is watched by a pidfd
 *	tenant     a configured namespace: who may enter, how many are inside
 *	handler    one row per request
 */
#ifndef CQD_SERVER_H
#define CQD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>
#include "cq/err.h"
#include "cq/kref.h"
#include "cq/list.h"
#include "daemon/config.h"
#include "daemon/events.h"
#include "daemon/meter.h"
#include "daemon/store.h"
#include "proto/frame.h"

#define CQD_QUEUE_BYTES		(256u << 10)	/* replies queued before reading stops */
#define CQD_STALL_MS		10000		/* ... and before the connection is closed */
#define CQD_HELLO_MS		10000		/* time to say Hello */
#define CQD_BURST		16		/* messages per wake-up of a connection */
#define CQD_MAX_PENDING		256		/* requests being worked on, per connection */
#define CQD_HASH		1024		/* chains of uids, and of processes */

struct cqd_server;

/*
 * struct cqd_tenant - a namespace as the sockets see it
 * @cfg:    section of the configuration in force, NULL when it is gone (then
 *          nobody enters any more)
 * @ns:     the store's
 * @idle:   sessions without a connection, oldest first
 * @inside: sessions with a connection, @sessions all
 * @connections: limit on them, 0: none
 */
struct cqd_tenant {
	struct list_head node;
	const struct cqd_ns_config *cfg;
	struct cqd_ns *ns;
	struct list_head idle;
	unsigned int inside, sessions, connections;
};

/*
 * struct cqd_listener - a listening socket
 * @path:    as bound
 * @admin:   takes administrator's requests
 * @own:     bound here, not by the service manager: unlinked at the end
 * @retry:   runs while accepting is paused for want of descriptors
 * @closing: handles still to be closed before it is freed
 */
struct cqd_listener {
	struct list_head node;
	struct cqd_server *srv;
	uv_poll_t poll;
	uv_timer_t retry;
	unsigned int closing;
	int fd;
	bool admin;
	bool own;
	char path[108];
};

/* A reply that the socket had no room for; descriptors are duplicates. */
struct cqd_reply {
	struct list_head node;
	size_t len;
	unsigned int n_fds;
	int fds[2];
	uint8_t buf[];
};

/*
 * struct cqd_uid - what one uid has
 * @idle: sessions without a connection, oldest first
 */
struct cqd_uid {
	struct list_head node;
	struct list_head idle;
	uid_t uid;
	unsigned int conns, sessions;
};

/*
 * struct cqd_conn - one connection
 * @ref:      one while open, one per pending request
 * @wait:     on the server's list while a deadline runs
 * @deadline: loop time at which it is closed
 * @queue:    replies, oldest first, @queued bytes of them with overhead
 * @events:   what the poll handle waits for
 * @pending:  requests whose reply comes later
 * @in_flight: descriptors sent since the socket was last seen empty
 * @listener: where it came from
 * @session:  NULL before Hello, after Bye, and on admin sockets
 * @greeted:  Hello was answered
 * @stalled:  over the limit of the queue, not read from
 * @sub:      it has subscribed to events
 * @transfer: save or restore that it waits for, or NULL
 * @look:     it looks at a GPU's pages
 * @want_write: cqd_conn_try() found the socket full
 * @starved:  the kernel has no room for descriptors in flight: tried again
 *            by the timer
 * @closed:   on its way out
 */
struct cqd_conn {
	struct kref ref;
	struct list_head node, wait;
	struct cqd_server *srv;
	struct cqd_listener *listener;
	struct cqd_session *session;
	struct cqd_uid *uid;
	struct cqd_sub *sub;
	const struct cqd_pending *transfer;
	struct cqd_look *look;
	uv_poll_t poll;
	uint64_t deadline;
	struct list_head queue;
	size_t queued;
	unsigned int pending, in_flight;
	int events;
	int fd;
	bool admin, greeted, stalled, starved, want_write, closed;
	struct ucred cred;
};

enum {
	CQD_OF_UID,
	CQD_OF_TENANT,
	CQD_N_CROWDS,
};

struct cqd_process;

/*
 * struct cqd_session - a client of the store and the process behind it
 * @process_node: on its process's list
 * @idle:   on the lists of its uid and its tenant while orphaned
 * @conn:   NULL while orphaned
 * @tenant: NULL if the configuration has none of its namespace
 */
struct cqd_session {
	struct list_head node, process_node;
	struct list_head idle[CQD_N_CROWDS];
	struct cqd_server *srv;
	struct cqd_client *client;
	struct cqd_conn *conn;
	struct cqd_tenant *tenant;
	struct cqd_uid *uid;
	struct cqd_process *process;
};

/*
 * struct cqd_server - the daemon less its store
 * @config_path: file read at start and at SIGHUP, NULL: none
 * @uids, @processes: hash chains, by number
 * @unwatched:   processes to be found again, by @watching
 * @born_us:     its start by the clock on the wall
 * @http:        metrics over HTTP: listeners and connections, @n of these
 * @loading:     model files of the configuration still being loaded
 * @draining:    no new session is admitted
 * @tick:        runs while @waiting is not empty
 * @frame, @tx:  the one datagram being read, the one being written
 */
struct cqd_server {
	uv_loop_t *loop;
	struct cqd_store *store;
	struct cqd_config *config;
	const char *config_path;
	struct list_head tenants, listeners, conns, waiting, sessions;
	struct list_head uids[CQD_HASH], processes[CQD_HASH], unwatched;
	uv_idle_t watching;
	unsigned int n_conns;
	unsigned int loading;
	uint64_t started_us, born_us;
	struct cqd_events events;
	struct cqd_meter meter;
	struct {
		struct list_head listeners, conns;
		unsigned int n;
		uv_timer_t tick;
	} http;
	uv_timer_t tick;
	bool ticking, stopping, draining;
	struct cqp_frame frame;
	uint8_t tx[CQP_MAX_MSG];
};

/* --- listen.c --- */

/* Binds @path with @mode. A socket that nobody answers on is replaced; a live
 * one is -EADDRINUSE. */
int cqd_listen(struct cqd_server *srv, const char *path, uint32_t mode, bool admin,
	       struct cq_err *err);
/* Takes over a listening socket from the service manager. */
int cqd_listen_fd(struct cqd_server *srv, int fd, bool admin, struct cq_err *err);
void cqd_listen_close_all(struct cqd_server *srv);

/* --- fds.c --- */

/* As cqp_recv() and cqp_frame_close(), for what strangers send. */
int cqd_recv(int sock, struct cqp_frame *f);
void cqd_frame_drop(struct cqp_frame *f);
/* Closes a connection and all that is unread in it. */
void cqd_sock_close(int sock);

/* --- conn.c --- */

/* Takes over @fd, a connected socket. NULL: refused, @fd is closed. */
struct cqd_conn *cqd_conn_new(struct cqd_listener *l, int fd);
void cqd_conn_close(struct cqd_conn *conn);	/* its session becomes an orphan */
void cqd_conn_close_all(struct cqd_server *srv);
/* Sends or queues; closes the connection when neither is possible. */
void cqd_conn_send(struct cqd_conn *conn, const Cqp__Msg *msg, const int *fds,
		   unsigned int n_fds);
/* Sends, but queues nothing: -EAGAIN, then cqd_events_writable() follows. */
int cqd_conn_try(struct cqd_conn *conn, const Cqp__Msg *msg);
void cqd_conn_error(struct cqd_conn *conn, uint64_t id, int code, const char *text);
void cqd_conn_ok(struct cqd_conn *conn, uint64_t id);
/* Deadline of @ms from now, replacing an earlier one; 0: none. */
void cqd_conn_deadline(struct cqd_conn *conn, uint64_t ms);
/* Recompute what the poll handle waits for. */
void cqd_conn_update(struct cqd_conn *conn);

/* A request whose reply comes later: keeps the connection's memory. */
struct cqd_pending {
	struct cqd_conn *conn;
	uint64_t id;
	uint64_t started_us, started_ns;
	unsigned int body;
};
/* NULL: no memory. */
struct cqd_pending *cqd_pending_new(struct cqd_conn *conn, uint64_t id);
/* After the reply, or instead of it; @ret is for the figures: 0 or the error. */
void cqd_pending_end(struct cqd_pending *p, int ret);

/* --- peer.c --- */

/* pidfd of the process that connected @fd, and its start time. */
int cqd_peer_open(int fd, pid_t pid, int *pidfd, uint64_t *start_time,
		  struct cq_err *err);
/* pidfd of @pid if it is still the process that started then; -ESRCH if not. */
int cqd_process_open(pid_t pid, uint64_t start_time, int *pidfd);
/* Field 22 of /proc/<pid>/stat. */
int cqd_start_time(pid_t pid, uint64_t *start_time);

/* --- process.c --- */

void cqd_processes_init(struct cqd_server *srv);
void cqd_processes_close(struct cqd_server *srv);
/* In turns of the loop, until each is watched or found gone. */
void cqd_processes_watch(struct cqd_server *srv);
/* -ENOMEM; @pidfd is taken over on success, -1: the process must be found again. */
int cqd_process_join(struct cqd_session *s, pid_t pid, uint64_t start_time, int pidfd);
void cqd_process_seen(struct cqd_session *s, int pidfd);
void cqd_process_leave(struct cqd_session *s);

/* --- crowd.c --- */

/* Found or made. The caller counts up, or puts. NULL: no memory. */
struct cqd_uid *cqd_uid_get(struct cqd_server *srv, uid_t uid);
void cqd_uid_put(struct cqd_uid *u);
void cqd_crowd_idle(struct cqd_session *s, bool idle);
/* Ends a session that nobody uses if one more would be too many. -EUSERS. */
int cqd_crowd_room(const struct cqd_conn *conn, struct cqd_tenant *t, struct cq_err *err);

/* --- session.c --- */

/* Tenants, and sessions of the clients that the store has found. */
int cqd_tenants_apply(struct cqd_server *srv, const struct cqd_config *cfg,
		      struct cq_err *err);
/* NULL if there is none of that name. */
struct cqd_tenant *cqd_tenant_find(struct cqd_server *srv, const char *name);
void cqd_sessions_adopt(struct cqd_server *srv);
void cqd_sessions_close_all(struct cqd_server *srv);
void cqd_tenants_free(struct cqd_server *srv);
int cqd_session_hello(struct cqd_conn *conn, const Cqp__Msg *msg, struct cq_err *err);
/* The connection is gone: keep the pins until the process is gone too. */
void cqd_session_orphan(struct cqd_session *s);
/* The process is gone, or there is nothing to wait for it. */
void cqd_session_end(struct cqd_session *s);
/* Clean end, though slots that it leased may have to wait for its process. */
void cqd_session_bye(struct cqd_session *s);
/* May this session open that model? */
bool cqd_session_model_ok(const struct cqd_session *s, const char *model);

/* --- handlers.c --- */

/*
 * struct cqd_req - a request being handled
 * @frame: its descriptors; those not taken are closed afterwards
 */
struct cqd_req {
	struct cqd_conn *conn;
	const Cqp__Msg *msg;
	struct cqp_frame *frame;
	struct cq_err *err;
};

/* Parses and answers @srv->frame. -errno: the connection must be closed. */
int cqd_dispatch(struct cqd_conn *conn, struct cqp_frame *frame);
/* Name of a request by number of its body; NULL: there is none. */
const char *cqd_request_name(unsigned int body);
/* It serves: models are loaded, nobody told it to stop. */
bool cqd_server_ready(const struct cqd_server *srv);

/* --- admin.c --- */

int cqd_admin_status(struct cqd_req *req);
int cqd_admin_list(struct cqd_req *req);
int cqd_admin_load(struct cqd_req *req);
int cqd_admin_unload(struct cqd_req *req);
int cqd_admin_verify(struct cqd_req *req);
int cqd_admin_metrics(struct cqd_req *req);

/* --- look_req.c --- */

int cqd_admin_look(struct cqd_req *req);

/* --- admin_room.c --- */

int cqd_admin_evict(struct cqd_req *req);
int cqd_admin_quota(struct cqd_req *req);

/* --- pressure.c --- */

struct cqd_pressure;
/* Watches for tasks being stalled for @us in 2 s for want of memory. NULL: cannot,
 * and was logged, or @us is 0. */
struct cqd_pressure *cqd_pressure_new(struct cqd_server *srv, uint32_t us);
void cqd_pressure_close(struct cqd_pressure *p);

/* --- names_req.c --- */

int cqd_req_publish(struct cqd_req *req);
int cqd_req_attach(struct cqd_req *req);
int cqd_req_unpublish(struct cqd_req *req);
int cqd_admin_pin(struct cqd_req *req);

/* --- lease_req.c --- */

int cqd_req_checked(struct cqd_req *req);
int cqd_req_lease(struct cqd_req *req);
int cqd_req_lease_return(struct cqd_req *req);
/* Slots and checks of a Seal that names leased ones; @slots is their memory. */
int cqd_req_seal_slots(const Cqp__Seal *seal, struct cqp_page slots[2],
		       struct cqd_seal_req *out, struct cq_err *err);

/* --- admin_save.c --- */

int cqd_admin_save(struct cqd_req *req);
int cqd_admin_restore(struct cqd_req *req);
int cqd_admin_drain(struct cqd_req *req);

/* --- autoload.c --- */

/* Starts loading the files of @cfg that are not loaded; calls @done when all
 * have been tried, possibly before return. */
void cqd_models_load(struct cqd_server *srv, const struct cqd_config *cfg,
		     void (*done)(struct cqd_server *srv));

/* --- notify.c --- */

struct cqd_notify;
/* Starts the watchdog's timer if the service manager wants one. NULL: no memory. */
struct cqd_notify *cqd_notify_new(struct cqd_server *srv);
void cqd_notify_close(struct cqd_notify *n);
void cqd_notify_ready(struct cqd_notify *n);
void cqd_notify_reloading(struct cqd_notify *n);
void cqd_notify_stopping(struct cqd_notify *n);

/* Microseconds of CLOCK_MONOTONIC. */
uint64_t cqd_clock_us(void);

#endif /* CQD_SERVER_H */
