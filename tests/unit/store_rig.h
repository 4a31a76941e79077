/* SPDX-License-Identifier: MIT */
/*
 * A store on a real loop with real memfds, driven from one thread, and a
 * listener that plays the service manager: it keeps what is pushed to
 * NOTIFY_SOCKET and answers barriers, so that a second store can be started
 * over the same descriptors as after a restart.
 */
#ifndef STORE_RIG_H
#define STORE_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "tests/harness.h"
#include "tests/kernels/image.h"
#include "daemon/store_priv.h"

#define RIG_FDS		64
#define RIG_ARENA	(1u << 20)

/* --- the service manager --- */

struct manager {
	pthread_t thread;
	pthread_mutex_t lock;
	sem_t synced;
	int sock;
	int fds[RIG_FDS];
	char *names[RIG_FDS];
	unsigned int n, pushes, removes;
	bool mute;		/* answers no barrier */
	int held;		/* the pipe of one that was not answered */
};

static struct manager mgr;

static void mgr_drop(unsigned int i)
{
	close(mgr.fds[i]);
	free(mgr.names[i]);
	mgr.n--;
	mgr.fds[i] = mgr.fds[mgr.n];
	mgr.names[i] = mgr.names[mgr.n];
}

static void mgr_message(char *text, int fd)
{
	char *name = strstr(text, "FDNAME=");
	unsigned int i;

	pthread_mutex_lock(&mgr.lock);
	if (mgr.mute && !strncmp(text, "BARRIER=1", 9)) {
		mgr.held = fd;
		fd = -1;
	}
	if (name) {
		name += 7;
		name[strcspn(name, "\n")] = '\0';
	}
	if (!strncmp(text, "FDSTORE=1", 9) && name && fd >= 0 && mgr.n < RIG_FDS) {
		mgr.fds[mgr.n] = fd;
		mgr.names[mgr.n++] = strdup(name);
		mgr.pushes++;
		fd = -1;
	} else if (!strncmp(text, "FDSTOREREMOVE=1", 15) && name) {
		for (i = mgr.n; i-- > 0;)
			if (!strcmp(mgr.names[i], name))
				mgr_drop(i);
		mgr.removes++;
	}
	pthread_mutex_unlock(&mgr.lock);
	/* The end of a barrier's pipe, or what nobody wants. */
	if (fd >= 0)
		close(fd);
}

static void *mgr_main(void *arg)
{
	char text[512], ctl[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { text, sizeof(text) - 1 };
	struct msghdr mh;
	struct cmsghdr *c;
	ssize_t n;
	int fd;

	for (;;) {
		mh = (struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1,
				      .msg_control = ctl, .msg_controllen = sizeof(ctl) };
		n = recvmsg(mgr.sock, &mh, MSG_CMSG_CLOEXEC);
		if (n < 0)
			return NULL;
		text[n] = '\0';
		if (!strcmp(text, "QUIT"))
			return NULL;
		if (!strcmp(text, "SYNC")) {
			sem_post(&mgr.synced);
			continue;
		}
		fd = -1;
		c = CMSG_FIRSTHDR(&mh);
		if (c && c->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
		mgr_message(text, fd);
	}
}

static socklen_t mgr_address(struct sockaddr_un *sa)
{
	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
			   snprintf(sa->sun_path + 1, sizeof(sa->sun_path) - 1,
				    "cq-test-%d", getpid()));
}

__attribute__((unused))
static void mgr_start(void)
{
	struct sockaddr_un sa;
	socklen_t len = mgr_address(&sa);
	char env[64];

	snprintf(env, sizeof(env), "@cq-test-%d", getpid());
	setenv("NOTIFY_SOCKET", env, 1);
	pthread_mutex_init(&mgr.lock, NULL);
	sem_init(&mgr.synced, 0, 0);
	mgr.sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ASSERT(mgr.sock >= 0);
	ASSERT_EQ(bind(mgr.sock, (struct sockaddr *)&sa, len), 0);
	ASSERT_EQ(pthread_create(&mgr.thread, NULL, mgr_main, NULL), 0);
}

/* Barriers are not answered from now on; or again, and the last one, too. */
__attribute__((unused))
static void mgr_mute(bool on)
{
	pthread_mutex_lock(&mgr.lock);
	mgr.mute = on;
	if (!on)
		close(mgr.held);
	pthread_mutex_unlock(&mgr.lock);
}

static void mgr_send(const char *text)
{
	struct sockaddr_un sa;
	socklen_t len = mgr_address(&sa);
	int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	ASSERT_EQ(sendto(s, text, strlen(text), 0, (struct sockaddr *)&sa, len),
		  strlen(text));
	close(s);
}

/* What it was sent so far has been done, and is seen by this thread. */
__attribute__((unused))
static void mgr_sync(void)
{
	mgr_send("SYNC");
	while (sem_wait(&mgr.synced))
		;
}

__attribute__((unused))
static void mgr_stop(void)
{
	mgr_send("QUIT");
	pthread_join(mgr.thread, NULL);
	close(mgr.sock);
	while (mgr.n)
		mgr_drop(0);
	unsetenv("NOTIFY_SOCKET");
}

/* --- the store --- */

struct rig {
	uv_loop_t loop;
	struct cqd_store_opts o;
	struct cqd_store *st;
	struct cqd_ns *ns;
	struct cqd_client *cl;
	struct cqd_shard *sh;
	struct cqd_shard_info info;
	struct cqp_key root;
	int arena_fd;
	uint8_t *arena;
	uint32_t arena_id;
	struct cq_err err;
};

/* Result of one asynchronous call. */
struct rig_wait {
	bool done;
	int ret;
	bool existing;
	struct cqd_seal_result res;
	uint64_t checked, failed;
	struct cq_err err;
};

__attribute__((unused))
static void rig_run(struct rig *r, const bool *until)
{
	while (!*until)
		uv_run(&r->loop, UV_RUN_ONCE);
}

static void rig_closed(void *arg)
{
	*(bool *)arg = true;
}

__attribute__((unused))
static void rig_close(struct rig *r)
{
	bool closed = false;

	cqd_store_close(r->st, rig_closed, &closed);
	rig_run(r, &closed);
	r->st = NULL;
	ASSERT_EQ(uv_run(&r->loop, UV_RUN_NOWAIT), 0);
}

/* Loop, store over the manager's descriptors; no client yet. 0 or -errno. */
__attribute__((unused))
static int rig_open(struct rig *r)
{
	int fds[RIG_FDS], ret;
	char *names[RIG_FDS];
	unsigned int i, n;

	pthread_mutex_lock(&mgr.lock);
	for (i = 0; i < mgr.n; i++) {
		fds[i] = fcntl(mgr.fds[i], F_DUPFD_CLOEXEC, 3);
		names[i] = strdup(mgr.names[i]);
	}
	n = mgr.n;
	pthread_mutex_unlock(&mgr.lock);
	r->o.fds = fds;
	r->o.names = names;
	r->o.n_fds = n;
	ret = cqd_store_new(&r->loop, &r->o, &r->st, &r->err);
	for (i = 0; i < n; i++)
		free(names[i]);
	r->o.fds = NULL;
	r->o.names = NULL;
	r->o.n_fds = 0;
	return ret;
}

static void rig_on_load(void *arg, int ret, const uint8_t hash[32], bool existing,
			const struct cq_err *err)
{
	struct rig_wait *w = arg;

	w->done = true;
	w->ret = ret;
	w->existing = existing;
	w->err = *err;
}

__attribute__((unused))
static struct rig_wait rig_load(struct rig *r, const char *name, const void *image,
				size_t size)
{
	int fd = memfd_create("model", MFD_CLOEXEC);
	struct rig_wait w = { 0 };

	ASSERT_EQ(write(fd, image, size), (ssize_t)size);
	ASSERT_EQ(cqd_model_load(r->st, name, fd, rig_on_load, &w, &r->err), 0);
	close(fd);
	rig_run(r, &w.done);
	return w;
}

__attribute__((unused))
static struct image rig_model(void)
{
	return image_model(small_geom(64), "4c8b", "4c8b", CQK_CENTROIDS_F16);
}

static int rig_memfd(uint64_t bytes)
{
	int fd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ASSERT_EQ(ftruncate(fd, (off_t)bytes), 0);
	ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	return fd;
}

/* A session with the model open; its arena is the rig's memory. */
__attribute__((unused))
static struct cqd_client *rig_client(struct rig *r, pid_t pid, uint32_t *arena)
{
	static const struct cqp_shard all;
	struct cqd_client *cl;

	ASSERT_EQ(cqd_client_new(r->st, r->ns, pid, 7, 0, "test", &cl, &r->err), 0);
	ASSERT_EQ(cqd_shard_get(cl, "m", &all, &r->sh, &r->info, &r->err), 0);
	r->root = r->info.root;
	ASSERT_EQ(cqd_arena_offer(cl, r->sh, r->arena_fd, RIG_ARENA, arena, &r->err), 0);
	return cl;
}

__attribute__((unused))
static void rig_ns(struct rig *r)
{
	static const struct cqd_ns_opts wide = { .quota_bytes = 1 << 30 };

	ASSERT_EQ(cqd_ns_get(r->st, "tenant", &wide, &r->ns, &r->err), 0);
}

__attribute__((unused))
static void rig_defaults(struct rig *r)
{
	*r = (struct rig){ .o = {
		.pool_bytes = 64 << 20, .max_pages = 4096, .max_clients = 64,
		.max_pins = 4096, .segment_min = 1 << 20, .segment_max = 8 << 20,
		.low = 100, .high = 100, .verify_rate = 1 << 30, .backend = "memfd",
	} };
}

/* Everything: loop, store, model "m", namespace, client, arena. */
__attribute__((unused))
static void rig_start(struct rig *r)
{
	struct image im = rig_model();

	ASSERT_EQ(uv_loop_init(&r->loop), 0);
	if (rig_open(r))
		FAIL("%s", r->err.text);
	ASSERT_EQ(rig_load(r, "m", im.buf, im.size).ret, 0);
	free(im.buf);
	r->arena_fd = rig_memfd(RIG_ARENA);
	r->arena = mmap(NULL, RIG_ARENA, PROT_READ | PROT_WRITE, MAP_SHARED,
			r->arena_fd, 0);
	ASSERT(r->arena != MAP_FAILED);
	rig_ns(r);
	r->cl = rig_client(r, 100, &r->arena_id);
}

__attribute__((unused))
static void rig_stop(struct rig *r)
{
	if (r->st)
		rig_close(r);
	ASSERT_EQ(uv_loop_close(&r->loop), 0);
	munmap(r->arena, RIG_ARENA);
	close(r->arena_fd);
	/* Threads and descriptors that libuv made for itself. */
	uv_library_shutdown();
}

/* --- seals --- */

static void rig_on_seal(void *arg, int ret, const struct cqd_seal_result *res,
			const struct cq_err *err)
{
	struct rig_wait *w = arg;

	ASSERT(!w->done);
	w->done = true;
	w->ret = ret;
	if (!ret) {
		w->res = *res;
		w->existing = res->existing;
	}
	w->err = *err;
}

/* Page whose 64 tokens are all @token; payload byte i = token + i. */
__attribute__((unused))
static int rig_seal_start(struct rig *r, struct cqd_client *cl, uint32_t arena,
			  const struct cqp_key *parent, uint32_t token,
			  struct rig_wait *w)
{
	struct cqd_seal_req q = { .arena = arena, .parent = *parent,
				  .sink_offset = UINT64_MAX };
	uint64_t len = r->sh->kind[CQD_CODES].payload, i;

	for (i = 0; i < CQ_PAGE_TOKENS; i++)
		q.tokens[i] = token;
	/* Several may be under way: each has its own place in the arena. */
	q.offset = token % 64 * 16384;
	for (i = 0; i < len; i++)
		r->arena[q.offset + i] = (uint8_t)(token + i);
	if (!memcmp(parent, &r->root, sizeof(*parent)))
		q.sink_offset = q.offset;
	*w = (struct rig_wait){ 0 };
	return cqd_seal(cl, r->sh, &q, rig_on_seal, w, &r->err);
}

__attribute__((unused))
static struct rig_wait rig_seal(struct rig *r, struct cqd_client *cl, uint32_t arena,
				const struct cqp_key *parent, uint32_t token)
{
	struct rig_wait w;

	ASSERT_EQ(rig_seal_start(r, cl, arena, parent, token, &w), 0);
	rig_run(r, &w.done);
	return w;
}

/* Chain of @n pages from the root: tokens first, first + 1, ... */
__attribute__((unused))
static void rig_chain(struct rig *r, uint32_t first, unsigned int n,
		      struct cqp_key *keys, struct cqp_page *pages)
{
	struct cqp_key parent = r->root;
	struct rig_wait w;
	unsigned int i;

	for (i = 0; i < n; i++) {
		w = rig_seal(r, r->cl, r->arena_id, &parent, first + i);
		if (w.ret)
			FAIL("page %u: %d %s", i, w.ret, w.err.text);
		keys[i] = w.res.key;
		pages[i] = w.res.page;
		parent = w.res.key;
	}
}

/* Where nobody reads another namespace, and so nothing is ever split. */
__attribute__((unused))
static int cqd_lookup(struct cqd_client *cl, struct cqd_shard *sh, const struct cqp_key *keys,
		      unsigned int n, bool pin, struct cqp_page *pages,
		      struct cqp_page *sink, bool *filling, struct cq_err *err)
{
	struct cqd_found found;
	int ret = cqd_match(cl, sh, keys, n, pin, pages, sink, &found, err);

	ASSERT(ret < 0 || !found.split);
	*filling = ret >= 0 && found.filling;
	return ret;
}

/* Pages of @keys that are resident. */
__attribute__((unused))
static int rig_resident(struct rig *r, const struct cqp_key *keys, unsigned int n)
{
	struct cqp_page pages[256], sink;
	bool filling;

	return cqd_lookup(r->cl, r->sh, keys, n, false, pages, &sink, &filling, &r->err);
}

#endif /* STORE_RIG_H */
