// SPDX-License-Identifier: MIT
/*
 * libcq when the Nth allocation or system call fails, N = 1, 2, ... until the
 * whole life of a worker goes through: an error or a success each time, never
 * a crash, nothing left open, and what was committed is right.
 */
#include <poll.h>
#include <sys/socket.h>
#include "tests/unit/test_libcq.h"

#define TOKENS 200

static struct rig r;
static const struct shape small = SHAPE_SMALL;
static uint32_t ids[TOKENS];

/* --- calls that fail; the linker's --wrap leads here --- */

static int left;		/* calls until one fails; 0: none does */
static bool failed;

static bool fail_now(void)
{
	if (__atomic_load_n(&left, __ATOMIC_RELAXED) <= 0 ||
	    __atomic_sub_fetch(&left, 1, __ATOMIC_RELAXED))
		return false;
	failed = true;
	errno = ENOMEM;
	return true;
}

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
	return fail_now() ? NULL : __real_malloc(n);
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return fail_now() ? NULL : __real_calloc(n, size);
}

void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n)
{
	return fail_now() ? NULL : __real_realloc(p, n);
}

void *__real_aligned_alloc(size_t align, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n)
{
	return fail_now() ? NULL : __real_aligned_alloc(align, n);
}

char *__real_strdup(const char *s);
char *__wrap_strdup(const char *s);
char *__wrap_strdup(const char *s)
{
	return fail_now() ? NULL : __real_strdup(s);
}

void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
	return fail_now() ? MAP_FAILED : __real_mmap(at, n, prot, flags, fd, off);
}

int __real_madvise(void *at, size_t n, int advice);
int __wrap_madvise(void *at, size_t n, int advice);
int __wrap_madvise(void *at, size_t n, int advice)
{
	return fail_now() ? -1 : __real_madvise(at, n, advice);
}

int __real_memfd_create(const char *name, unsigned int flags);
int __wrap_memfd_create(const char *name, unsigned int flags);
int __wrap_memfd_create(const char *name, unsigned int flags)
{
	return fail_now() ? -1 : __real_memfd_create(name, flags);
}

int __real_posix_fallocate(int fd, off_t off, off_t n);
int __wrap_posix_fallocate(int fd, off_t off, off_t n);
int __wrap_posix_fallocate(int fd, off_t off, off_t n)
{
	return fail_now() ? ENOSPC : __real_posix_fallocate(fd, off, n);
}

int __real_eventfd(unsigned int n, int flags);
int __wrap_eventfd(unsigned int n, int flags);
int __wrap_eventfd(unsigned int n, int flags)
{
	return fail_now() ? -1 : __real_eventfd(n, flags);
}

ssize_t __real_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags)
{
	return fail_now() ? -1 : __real_sendmsg(fd, m, flags);
}

int __real_connect(int fd, const struct sockaddr *a, socklen_t n);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t n);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t n)
{
	return fail_now() ? -1 : __real_connect(fd, a, n);
}

int __real_poll(struct pollfd *p, nfds_t n, int ms);
int __wrap_poll(struct pollfd *p, nfds_t n, int ms);
int __wrap_poll(struct pollfd *p, nfds_t n, int ms)
{
	return fail_now() ? -1 : __real_poll(p, n, ms);
}

/* Not write(): libcq writes to eventfds only, which fails only when they are full. */
ssize_t __real_recvmsg(int fd, struct msghdr *m, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *m, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *m, int flags)
{
	return fail_now() ? -1 : __real_recvmsg(fd, m, flags);
}

/* --- the life of a worker --- */

static float rows[TOKENS * 2 * 32];	/* the test itself allocates nothing */

static int append(const struct worker *w, struct cq_seq *seq, size_t to)
{
	struct cq_view v = rig_view(w, rows, w->m.kv_heads);
	uint32_t l, n;
	size_t from;
	int ret = 0;

	while (!ret && (from = cq_seq_length(seq)) < to) {
		n = (uint32_t)MIN(to - from, (size_t)50);
		v.data = rows + from * w->m.kv_heads * w->m.dim;
		for (l = 0; l < w->m.layers && !ret; l++)
			ret = cq_append(seq, l, &v, &v, n, NULL);
		if (!ret)
			ret = cq_commit(seq, ids + from, n);
	}
	return ret;
}

static int sequences(const struct worker *w)
{
	struct cq_seq *x = NULL, *y = NULL;
	uint32_t one = 1;
	struct cq_batch *b = NULL;
	int ret;

	ret = cq_seq_open(w->model, ids, TOKENS, NULL, &x);
	if (!ret)
		ret = cq_batch_new(w->model, 1, 1, 0, &b);
	if (!ret)
		ret = append(w, x, TOKENS);
	if (!ret)
		ret = cq_step(b, &x, &one, 1);
	if (!ret)
		ret = cq_seal(x, 2000);
	if (!ret)
		ret = cq_fork(x, NULL, &y);
	if (!ret)
		ret = cq_truncate(y, 70);
	if (!ret)
		ret = append(w, y, 150);
	cq_seq_close(y);
	cq_seq_close(x);
	cq_batch_free(b);
	return ret;
}

/* Hand a sequence over, to ourselves. */
static int names(const struct worker *w)
{
	struct cq_publish_opts o = { .sz = sizeof(o), .flags = CQ_PUBLISH_REPLACE };
	struct cq_seq *x = NULL, *y = NULL;
	int ret;

	ret = cq_seq_open(w->model, ids, TOKENS, NULL, &x);
	if (!ret)
		ret = append(w, x, TOKENS);
	if (!ret)
		ret = cq_publish(x, "s", &o);
	if (!ret)
		ret = cq_attach(w->model, "s", NULL, &y);
	if (!ret)
		ret = append(w, y, TOKENS);
	cq_seq_close(y);
	cq_seq_close(x);
	return ret ? ret : cq_unpublish(w->ctx, "s");
}

static int life(uint32_t flags)
{
	struct cq_open_opts o = { .sz = sizeof(o), .socket = r.sock, .flags = flags,
				  .timeout_ms = 2000 };
	struct cq_model_opts m = { .sz = sizeof(m), .device = CQ_DEVICE_HOST,
				   .arena_bytes = 16 * rig_block(&small) };
	struct worker w = { .whole = small, .m = small };
	int ret;

	ret = cq_open(&o, &w.ctx);
	if (ret)
		return ret;
	ret = cq_model_open(w.ctx, "toy", &m, &w.model);
	if (!ret)
		ret = sequences(&w);
	if (!ret)
		ret = names(&w);
	cq_close(w.ctx);
	return ret;
}

static int fds(void)
{
	struct dirent *e;
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	ASSERT(d);
	while ((e = readdir(d)))
		n++;
	closedir(d);
	return n;
}

static void every_failure(uint32_t flags)
{
	int before = fds(), n, ret = -1, ok = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(rows); i++)
		rows[i] = rig_value(i);
	for (n = 1; n < 4000; n++) {
		/* Another text each time: there is something to publish. */
		rig_ids(ids, TOKENS, (uint32_t)n + (flags ? 100000 : 0));
		failed = false;
		left = n;
		ret = life(flags);
		left = 0;
		ASSERT_EQ(fds(), before);
		if (!failed)
			break;
		ok += !ret;
		if (ret && !*cq_last_error())
			FAIL("call %d failed with %d and no text", n, ret);
	}
	printf("# %d calls failed in turn, %d of them were got over\n", n - 1, ok);
	ASSERT_EQ(ret, 0);
	ASSERT_GT(n, 40);
}

TEST_LIMIT(every_call_fails_once_with_a_thread, 120)
{
	rig_start(&r, &small, NULL);
	every_failure(0);
	rig_stop(&r);
}

TEST_LIMIT(every_call_fails_once_in_poll_mode, 120)
{
	rig_start(&r, &small, NULL);
	every_failure(CQ_OPEN_POLL);
	rig_stop(&r);
}
