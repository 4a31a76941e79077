// SPDX-License-Identifier: MIT
/*
 * The whole daemon but main(), in this process, and each call that can fail
 * fails once: the first, the second, ... until a run gets through. Whatever
 * failed: nothing is left open or allocated, it is said at most once, in a reply
 * or in the log, and the daemon serves the next client.
 *
 * Calls count while the loop runs or the daemon starts, not those of the test's
 * own side of the sockets. They are wrapped by the linker (tests/unit/Build).
 */
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <systemd/sd-daemon.h>
#include "cq/log.h"
#include "daemon/server.h"
#include "tests/unit/store_rig.h"
#include "tests/system/synth.h"
#include "tests/system/wire.h"

#define LAST 2000	/* more calls than a run makes */

static bool armed;
static long countdown, blocks;
static const char *failed_call;
static unsigned int lines;

/* The service manager is played by a thread of this process. */
static bool of_manager(void)
{
	return mgr.thread && pthread_equal(pthread_self(), mgr.thread);
}

static bool fault(const char *call)
{
	if (!__atomic_load_n(&armed, __ATOMIC_RELAXED) || of_manager() ||
	    __atomic_sub_fetch(&countdown, 1, __ATOMIC_RELAXED))
		return false;
	failed_call = call;
	return true;
}

/* int-like calls that return -1 and set errno */
#define WRAP(type, name, code, params, args)				\
	type __real_##name params;					\
	type __wrap_##name params;					\
	type __wrap_##name params					\
	{								\
		if (fault(#name)) {					\
			errno = code;					\
			return (type)-1;				\
		}							\
		return __real_##name args;				\
	}
/* libuv's and libsystemd's: the code is returned */
#define WRAP_RET(name, code, params, args)				\
	int __real_##name params;					\
	int __wrap_##name params;					\
	int __wrap_##name params					\
	{								\
		return fault(#name) ? -(code) : __real_##name args;	\
	}

WRAP(int, memfd_create, EMFILE, (const char *name, unsigned int flags), (name, flags))
WRAP(void *, mmap, ENOMEM, (void *at, size_t n, int prot, int flags, int fd, off_t off),
	(at, n, prot, flags, fd, off))
WRAP(int, fallocate, ENOSPC, (int fd, int mode, off_t off, off_t n), (fd, mode, off, n))
WRAP(int, ftruncate, ENOSPC, (int fd, off_t n), (fd, n))
WRAP(int, fchmod, EPERM, (int fd, mode_t mode), (fd, mode))
WRAP(int, accept4, EMFILE, (int fd, struct sockaddr *a, socklen_t *n, int flags),
	(fd, a, n, flags))
WRAP(int, socket, EMFILE, (int domain, int type, int proto), (domain, type, proto))
WRAP(int, bind, EACCES, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
WRAP(int, listen, EADDRINUSE, (int fd, int n), (fd, n))
WRAP(int, getsockopt, ENOBUFS, (int fd, int level, int name, void *p, socklen_t *n),
	(fd, level, name, p, n))
WRAP(ssize_t, sendto, ENOBUFS, (int fd, const void *p, size_t n, int flags,
				const struct sockaddr *a, socklen_t len),
	(fd, p, n, flags, a, len))
WRAP(ssize_t, sendmsg, ENOBUFS, (int fd, const struct msghdr *h, int flags), (fd, h, flags))
WRAP(ssize_t, recvmsg, ENOMEM, (int fd, struct msghdr *h, int flags), (fd, h, flags))
WRAP(ssize_t, pread, EIO, (int fd, void *p, size_t n, off_t at), (fd, p, n, at))
WRAP_RET(uv_poll_init, EMFILE, (uv_loop_t *loop, uv_poll_t *poll, int fd), (loop, poll, fd))
WRAP_RET(sd_pid_notify_with_fds, ENOBUFS,
	 (pid_t pid, int unset, const char *state, const int *fds, unsigned int n),
	 (pid, unset, state, fds, n))
WRAP_RET(sd_notify_barrier, ETIMEDOUT, (int unset, uint64_t timeout), (unset, timeout))
WRAP_RET(sd_notify, ENOBUFS, (int unset, const char *state), (unset, state))

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
	if (fault("open")) {
		errno = EMFILE;
		return -1;
	}
	return __real_open(path, flags, 0600);
}

int __real_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	if (fault("fcntl")) {
		errno = EMFILE;
		return -1;
	}
	return __real_fcntl(fd, cmd, arg);
}

/* pidfd_open(2) and the like, which libc does not know */
long __real_syscall(long nr, ...);
long __wrap_syscall(long nr, ...);
long __wrap_syscall(long nr, ...)
{
	long a[6];
	va_list ap;
	int i;

	va_start(ap, nr);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (fault("syscall")) {
		errno = EMFILE;
		return -1;
	}
	return __real_syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* --- memory: pointers that the daemon got, and has not given back --- */

#define TRACK (1u << 16)

static void *track[TRACK];
static pthread_mutex_t track_lock = PTHREAD_MUTEX_INITIALIZER;
static bool tracking;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);
void __wrap_free(void *p);

static void *got(void *p)
{
	unsigned int i = (unsigned int)((uintptr_t)p >> 4) % TRACK;

	if (!p || !tracking || of_manager())
		return p;
	pthread_mutex_lock(&track_lock);
	while (track[i] && track[i] != (void *)1)
		i = (i + 1) % TRACK;
	track[i] = p;
	blocks++;
	pthread_mutex_unlock(&track_lock);
	return p;
}

static void gone(const void *p)
{
	unsigned int i = (unsigned int)((uintptr_t)p >> 4) % TRACK;

	if (!p || !tracking)
		return;
	pthread_mutex_lock(&track_lock);
	while (track[i] && track[i] != p)
		i = (i + 1) % TRACK;
	if (track[i]) {
		track[i] = (void *)1;
		blocks--;
	}
	pthread_mutex_unlock(&track_lock);
}

void *__wrap_malloc(size_t n)
{
	return fault("malloc") ? NULL : got(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fault("calloc") ? NULL : got(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n)
{
	if (fault("realloc"))
		return NULL;
	gone(p);
	return got(__real_realloc(p, n));
}

char *__wrap_strdup(const char *s)
{
	return fault("strdup") ? NULL : got(__real_strdup(s));
}

void __wrap_free(void *p)
{
	gone(p);
	__real_free(p);
}

/* --- the log --- */

void __wrap_cq_log(int prio, const char *fmt, ...);
void __wrap_cq_log(int prio, const char *fmt, ...)
{
	if (prio <= LOG_WARNING)
		__atomic_fetch_add(&lines, 1, __ATOMIC_RELAXED);
}

/* --- the daemon, as main.c puts it together --- */

static struct daemon_run {
	uv_loop_t loop;
	struct cqd_server srv;
	struct cqd_notify *notify;
	bool ready, closed;
} d;

static char sock[300], admin[300], conf[300], model[300];

static void on_ready(struct cqd_server *srv)
{
	d.ready = true;
	if (d.notify)
		cqd_notify_ready(d.notify);
}

static int open_store(struct cq_err *err)
{
	const struct cqd_config *cfg = d.srv.config;
	struct cqd_store_opts opts = {
		.pool_bytes = cfg->pool_bytes.bytes, .max_pages = cfg->max_pages,
		.max_clients = cfg->max_clients, .max_pins = cfg->max_pins,
		.segment_min = cfg->segment_min, .segment_max = cfg->segment_max,
		.low = cfg->low, .high = cfg->high, .verify_rate = cfg->verify_rate,
		.backend = cfg->backend, .push_fds = true,
	};
	int ret = cqd_store_new(&d.loop, &opts, &d.srv.store, err);

	return ret ? ret : cqd_tenants_apply(&d.srv, cfg, err);
}

static int daemon_start(struct cq_err *err)
{
	struct cqd_server *srv = &d.srv;
	unsigned int i;
	int ret;

	memset(&d, 0, sizeof(d));
	ASSERT_EQ(uv_loop_init(&d.loop), 0);
	srv->loop = &d.loop;
	list_init(&srv->tenants);
	list_init(&srv->listeners);
	list_init(&srv->conns);
	list_init(&srv->waiting);
	list_init(&srv->sessions);
	for (i = 0; i < CQD_HASH; i++)
		list_init(&srv->uids[i]);
	cqd_processes_init(srv);
	list_init(&srv->http.listeners);
	list_init(&srv->http.conns);
	cqd_events_init(srv);
	uv_timer_init(srv->loop, &srv->tick);
	armed = true;
	ret = cqd_config_load(conf, &srv->config, err);
	if (!ret)
		ret = cqd_listen(srv, sock, 0600, false, err);
	if (!ret)
		ret = cqd_listen(srv, admin, 0600, true, err);
	if (!ret)
		ret = open_store(err);
	if (!ret) {
		cqd_sessions_adopt(srv);
		d.notify = cqd_notify_new(srv);
		ret = d.notify ? 0 : -ENOMEM;
	}
	if (!ret)
		cqd_models_load(srv, srv->config, on_ready);
	armed = false;
	return ret;
}

static void on_store_closed(void *arg)
{
	d.closed = true;
}

static void daemon_stop(void)
{
	struct cqd_server *srv = &d.srv;

	cqd_conn_close_all(srv);
	cqd_sessions_close_all(srv);
	cqd_events_close(srv);
	cqd_processes_close(srv);
	cqd_listen_close_all(srv);
	cqd_notify_close(d.notify);
	uv_close((uv_handle_t *)&srv->tick, NULL);
	if (srv->store)
		cqd_store_close(srv->store, on_store_closed, NULL);
	uv_run(&d.loop, UV_RUN_DEFAULT);
	ASSERT_EQ(uv_loop_close(&d.loop), 0);
	cqd_tenants_free(srv);
	cqd_config_free(srv->config);
}

/* --- the client's side --- */

static struct cqp_frame frame;
static unsigned int errors;	/* replies that are one */

/* One turn, calls of which may fail. */
static void turn(void)
{
	armed = true;
	uv_run(&d.loop, UV_RUN_NOWAIT);
	armed = false;
}

/* The answer; NULL: the connection ended, or none came. Free with cqp_free(). */
static Cqp__Msg *ask(int fd, Cqp__Msg *msg, const int *fds, unsigned int n)
{
	long long end = test_now_ms() + 3000;
	Cqp__Msg *r = NULL;
	int ret = -EAGAIN;

	msg->id = 7;
	if (fd < 0 || cqp_send(fd, msg, fds, n, MSG_DONTWAIT))
		return NULL;
	while (ret == -EAGAIN && test_now_ms() < end) {
		turn();
		ret = cqp_recv(fd, &frame, MSG_DONTWAIT);
	}
	if (ret == 1)
		r = cqp_unpack(frame.buf, frame.len, NULL);
	if (r && r->body_case == CQP__MSG__BODY_ERROR)
		errors++;
	cqp_frame_close(&frame);
	return r;
}

static bool fine(Cqp__Msg *r)
{
	bool ok = r && r->body_case != CQP__MSG__BODY_ERROR;

	cqp_free(r);
	return ok;
}

static int greet(const char *path)
{
	Cqp__Hello body = CQP__HELLO__INIT;
	DECLARE_MSG(msg, HELLO, hello, body);
	int fd = wire_connect(path);

	body.protocol = CQP_VERSION;
	if (fine(ask(fd, &msg, NULL, 0)))
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

/* A page from the arena. False: some step failed. */
static bool publish(int fd, int arena_fd)
{
	static uint8_t tokens[CQ_PAGE_TOKENS * 4], page[sizeof(struct cqp_page)];
	Cqp__ModelOpen open_body = CQP__MODEL_OPEN__INIT;
	Cqp__ArenaOffer arena_body = CQP__ARENA_OFFER__INIT;
	Cqp__Seal seal_body = CQP__SEAL__INIT;
	Cqp__Release release_body = CQP__RELEASE__INIT;
	DECLARE_MSG(open_msg, MODEL_OPEN, model_open, open_body);
	DECLARE_MSG(arena, ARENA_OFFER, arena_offer, arena_body);
	DECLARE_MSG(seal, SEAL, seal, seal_body);
	DECLARE_MSG(release, RELEASE, release, release_body);
	struct cqp_key root;
	char name[] = "tiny";
	Cqp__Msg *r;

	open_body.name = name;
	r = ask(fd, &open_msg, NULL, 0);
	if (!r || r->body_case != CQP__MSG__BODY_MODEL_OK)
		return fine(r);
	memcpy(&root, r->model_ok->root_key.data, sizeof(root));
	arena_body.shard = r->model_ok->shard;
	seal_body.shard = arena_body.shard;
	cqp_free(r);
	arena_body.bytes = RIG_ARENA;
	r = ask(fd, &arena, &arena_fd, 1);
	if (!r || r->body_case != CQP__MSG__BODY_ARENA_OK)
		return fine(r) && false;
	seal_body.arena = r->arena_ok->arena;
	cqp_free(r);
	seal_body.parent = (ProtobufCBinaryData){ sizeof(root), root.b };
	seal_body.tokens = (ProtobufCBinaryData){ sizeof(tokens), tokens };
	seal_body.has_sink_offset = true;
	r = ask(fd, &seal, NULL, 0);
	if (!r || r->body_case != CQP__MSG__BODY_SEAL_OK)
		return fine(r) && false;
	memcpy(page, r->seal_ok->page.data, sizeof(page));
	cqp_free(r);
	release_body.pages = (ProtobufCBinaryData){ sizeof(page), page };
	return fine(ask(fd, &release, NULL, 0));
}

static bool administer(void)
{
	Cqp__Status status = CQP__STATUS__INIT;
	Cqp__Verify verify = CQP__VERIFY__INIT;
	Cqp__List list = CQP__LIST__INIT;
	Cqp__Load load = CQP__LOAD__INIT;
	Cqp__Unload unload = CQP__UNLOAD__INIT;
	DECLARE_MSG(a, STATUS, status, status);
	DECLARE_MSG(b, VERIFY, verify, verify);
	DECLARE_MSG(c, LIST, list, list);
	DECLARE_MSG(e, LOAD, load, load);
	DECLARE_MSG(f, UNLOAD, unload, unload);
	int fd = greet(admin), file = open(model, O_RDONLY | O_CLOEXEC);
	char name[] = "again";
	bool ok;

	load.name = name;
	unload.name = name;
	list.kind = CQP__KIND__PAGES;
	ok = fd >= 0 && fine(ask(fd, &a, NULL, 0)) && fine(ask(fd, &b, NULL, 0)) &&
	     fine(ask(fd, &c, NULL, 0)) && fine(ask(fd, &e, &file, 1)) &&
	     fine(ask(fd, &f, NULL, 0));
	close(file);
	if (fd >= 0)
		close(fd);
	return ok;
}

static bool work(int arena_fd)
{
	Cqp__Bye body = CQP__BYE__INIT;
	DECLARE_MSG(bye, BYE, bye, body);
	int fd = greet(sock);
	bool ok = fd >= 0 && publish(fd, arena_fd) && fine(ask(fd, &bye, NULL, 0));

	if (fd >= 0)
		close(fd);
	ok = administer() && ok;
	turn();
	return ok;
}

static void settle(void)
{
	long long end = test_now_ms() + 8000;

	while ((!d.ready || (d.srv.store && d.srv.store->jobs)) && test_now_ms() < end)
		turn();
	ASSERT(d.ready);
}

/* --- a run, and all runs --- */

struct outcome {
	bool started, worked;
};

static struct outcome whole(int arena_fd, long n)
{
	struct cq_err err = { "" };
	struct outcome o = { false, false };
	bool model_there;

	countdown = n;
	lines = 0;
	errors = 0;
	failed_call = "none";
	tracking = true;
	if (daemon_start(&err)) {
		if (!err.text[0] && d.notify)
			FAIL("call %ld (%s) failed, and no word says so", n, failed_call);
		daemon_stop();
		return o;
	}
	o.started = true;
	settle();
	o.worked = work(arena_fd);
	countdown = 0;
	model_there = cqd_model_find(d.srv.store, "tiny") != NULL;
	/* A load whose asker was cut off goes on; while it does, it is the only one. */
	settle();
	/* the same again, without a fault: as if nothing had been */
	if (model_there && !work(arena_fd))
		FAIL("call %ld (%s) failed, and cqd serves no more", n, failed_call);
	daemon_stop();
	if (lines > 1)
		FAIL("call %ld (%s) failed, and %u lines say so", n, failed_call, lines);
	return o;
}

static void prepare(void)
{
	static const struct synth tiny = { .layers = 1, .heads = 1, .kv_heads = 1, .dim = 64,
					   .sinks = 4, .window = 64, .max_position = 4096,
					   .code = "4c8b", .seed = 1 };
	const char *dir = test_dir();
	FILE *f;

	snprintf(sock, sizeof(sock), "%s/s", dir);
	snprintf(admin, sizeof(admin), "%s/a", dir);
	snprintf(conf, sizeof(conf), "%s/c", dir);
	snprintf(model, sizeof(model), "%s/m", dir);
	ASSERT_OK(synth_model(&tiny, model, NULL));
	f = fopen(conf, "we");
	ASSERT(f);
	fprintf(f, "[daemon]\nsocket = %s\nadmin_socket = %s\npool_bytes = 4M\n"
		"segment_min = 64K\nsegment_max = 64K\nmax_pages = 64\nmax_pins = 64\n"
		"[model tiny]\npath = %s\n", sock, admin, model);
	fclose(f);
}

/* What the manager was given and has not been told to close. */
static void forget_pushes(void)
{
	mgr_sync();
	pthread_mutex_lock(&mgr.lock);
	while (mgr.n)
		mgr_drop(0);
	pthread_mutex_unlock(&mgr.lock);
}

/*
 * What the daemon was sent and does not want is closed by a thread of its own,
 * some time. So more than @want is a leak when it stays, and less means that
 * @want was counted too early: from then on the lower number counts.
 */
static int fds_at_rest(int want)
{
	long long end = test_now_ms() + 5000;
	int n = test_count_fds();

	while (n > want && test_now_ms() < end) {
		usleep(500);
		n = test_count_fds();
	}
	return n;
}

/* The least within a while: the thread is through with what the first run left. */
static int fds_to_begin_with(void)
{
	long long end = test_now_ms() + 200;
	int n = test_count_fds();

	while (test_now_ms() < end) {
		usleep(2000);
		n = MIN(n, test_count_fds());
	}
	return n;
}

TEST_LIMIT(every_call_fails_once, 200)
{
	long n, ended = 0, hindered = 0;
	struct outcome o;
	int arena_fd, fds, now;

	signal(SIGPIPE, SIG_IGN);
	prepare();
	mgr_start();
	arena_fd = rig_memfd(RIG_ARENA);
	/* Once without a fault: libraries have what they keep. */
	o = whole(arena_fd, 0);
	ASSERT(o.started && o.worked);
	forget_pushes();
	fds = fds_to_begin_with();
	for (n = 1; n < LAST; n++) {
		blocks = 0;
		memset(track, 0, sizeof(track));
		o = whole(arena_fd, n);
		forget_pushes();
		now = fds_at_rest(fds);
		if (now > fds)
			FAIL("call %ld (%s) failed: %d descriptors, %d before", n, failed_call,
			     now, fds);
		fds = now;
		if (blocks)
			FAIL("call %ld (%s) failed: %ld allocations left", n, failed_call, blocks);
		if (!strcmp(failed_call, "none"))
			break;
		ended += !o.started;
		hindered += o.started && !o.worked;
	}
	ASSERT(o.started && o.worked);
	printf("# %ld calls, %ld ended the start, %ld a request\n", n - 1, ended, hindered);
	ASSERT_GT(ended, 10);
	ASSERT_GT(hindered, 30);
	close(arena_fd);
	mgr_stop();
	uv_library_shutdown();
}
