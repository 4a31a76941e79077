// SPDX-License-Identifier: MIT
/*
 * Each call that can fail, fails once: allocation, memfd_create, mmap,
 * fallocate, fcntl, fchmod, the first, the second, ... until a run gets
 * through. After each run no descriptor and no allocation is left.
 *
 * Calls are counted if they come from the program itself (the daemon's and
 * kernels' code is linked in), not from libraries.
 */
#include <stdarg.h>
#include <sys/syscall.h>
#include <xxhash.h>
#include "tests/own_malloc.h"
#include "tests/unit/store_rig.h"

extern const char __executable_start[], etext[];

static bool armed;
static long countdown;
static long live_blocks;

static bool ours(const void *caller)
{
	return (const char *)caller >= __executable_start && (const char *)caller < etext;
}

static bool fault(const void *caller)
{
	return __atomic_load_n(&armed, __ATOMIC_RELAXED) && ours(caller) &&
	       __atomic_sub_fetch(&countdown, 1, __ATOMIC_RELAXED) == 0;
}

#if OWN_MALLOC
/* Pointers handed to our code: open addressing, enough for one run. */
#define TRACK (1u << 16)
static void *track[TRACK];
static pthread_mutex_t track_lock = PTHREAD_MUTEX_INITIALIZER;

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);

static void mark(void *from, void *to)
{
	unsigned int i;

	if (!armed)
		return;
	pthread_mutex_lock(&track_lock);
	for (i = (unsigned int)((uintptr_t)from >> 4) % TRACK; track[i]; i = (i + 1) % TRACK)
		if (track[i] == from) {
			track[i] = to;
			if (to == (void *)1)
				live_blocks--;
			break;
		}
	if (!track[i] && to != (void *)1) {
		track[i] = to;
		live_blocks++;
	}
	pthread_mutex_unlock(&track_lock);
}

void *malloc(size_t n)
{
	const void *who = __builtin_return_address(0);
	void *p = fault(who) ? NULL : __libc_malloc(n);

	if (p && ours(who))
		mark(p, p);
	return p;
}

void *calloc(size_t n, size_t size)
{
	const void *who = __builtin_return_address(0);
	void *p = fault(who) ? NULL : __libc_calloc(n, size);

	if (p && ours(who))
		mark(p, p);
	return p;
}

void *realloc(void *old, size_t n)
{
	const void *who = __builtin_return_address(0);
	void *p = fault(who) ? NULL : __libc_realloc(old, n);

	if (p && ours(who)) {
		mark(old, (void *)1);
		mark(p, p);
	}
	return p;
}

void free(void *p)
{
	if (p)
		mark(p, (void *)1);
	__libc_free(p);
}
#endif

int memfd_create(const char *name, unsigned int flags)
{
	if (fault(__builtin_return_address(0))) {
		errno = EMFILE;
		return -1;
	}
	return (int)syscall(SYS_memfd_create, name, flags);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
	if (fault(__builtin_return_address(0))) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, off);
}

int fallocate(int fd, int mode, off_t off, off_t n)
{
	if (fault(__builtin_return_address(0))) {
		errno = ENOSPC;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, off, n);
}

int fchmod(int fd, mode_t mode)
{
	if (fault(__builtin_return_address(0))) {
		errno = EPERM;
		return -1;
	}
	return (int)syscall(SYS_fchmod, fd, mode);
}

int fcntl(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	if (fault(__builtin_return_address(0))) {
		errno = EMFILE;
		return -1;
	}
	return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

/* --- one run: as far as it gets --- */

struct run {
	uv_loop_t loop;
	struct cqd_store *st;
	int model_fd, arena_fd;
};

static void until(struct run *r, const bool *done)
{
	while (!*done)
		uv_run(&r->loop, UV_RUN_ONCE);
}

static void verified(void *arg, uint64_t checked, uint64_t failed, uint64_t bytes)
{
	*(bool *)arg = true;
}

static int pages(struct run *r, struct cqd_client *cl, struct cqd_shard *sh,
		 const struct cqd_shard_info *info, uint32_t arena)
{
	struct cqd_seal_req q = { .arena = arena, .parent = info->root };
	struct rig_wait w = { 0 };
	bool done = false;
	uint32_t i;
	int ret;

	for (i = 0; i < 2; i++) {
		q.sink_offset = i ? UINT64_MAX : 0;
		w = (struct rig_wait){ 0 };
		ret = cqd_seal(cl, sh, &q, rig_on_seal, &w, NULL);
		if (ret)
			return ret;
		until(r, &w.done);
		if (w.ret)
			return w.ret;
		q.parent = w.res.key;
	}
	ret = cqd_verify(r->st, verified, &done);
	if (!ret)
		until(r, &done);
	return ret ? ret : cqd_release(cl, &w.res.page, 1, NULL);
}

static void published(void *arg, int ret, const struct cq_err *err)
{
	struct rig_wait *w = arg;

	w->done = true;
	w->ret = ret;
}

/* A tail of zeros, published, attached, taken away. */
static int names(struct run *r, struct cqd_client *cl, struct cqd_shard *sh, uint32_t arena)
{
	static const uint8_t tail[300];
	const struct cqp_extent all = { 4096, sizeof(tail) };
	XXH128_hash_t h = XXH3_128bits(tail, sizeof(tail));
	struct cqd_publish_req q = {
		.name = "n", .tokens = 3, .arena = arena, .extents = &all, .n_extents = 1,
		.check_lo = h.low64, .check_hi = h.high64,
	};
	struct rig_wait w = { 0 };
	struct cqd_attached a;
	int ret;

	ret = cqd_publish(cl, sh, &q, published, &w, NULL);
	if (ret)
		return ret;
	until(r, &w.done);
	ret = w.ret;
	if (!ret)
		ret = cqd_attach(cl, sh, "n", UINT64_MAX, &a, NULL);
	if (ret)
		return ret;
	close(a.fd);
	return cqd_unpublish(cqd_client_ns(cl), "n", NULL);
}

static int session(struct run *r)
{
	static const struct cqd_ns_opts opts = { .quota_bytes = 1 << 30, .salt = "s" };
	static const struct cqp_shard all;
	struct cqd_shard_info info;
	struct cqd_client *cl;
	struct cqd_shard *sh;
	struct cqd_ns *ns;
	uint32_t arena = 0;
	int ret;

	ret = cqd_ns_get(r->st, "t", &opts, &ns, NULL);
	if (ret)
		return ret;
	ret = cqd_client_new(r->st, ns, 1, 1, 1, "c", &cl, NULL);
	if (ret)
		return ret;
	ret = cqd_shard_get(cl, "m", &all, &sh, &info, NULL);
	if (!ret)
		ret = cqd_arena_offer(cl, sh, r->arena_fd, RIG_ARENA, &arena, NULL);
	if (!ret)
		ret = pages(r, cl, sh, &info, arena);
	if (!ret)
		ret = names(r, cl, sh, arena);
	cqd_client_end(cl);
	return ret;
}

static int whole(struct run *r, const struct cqd_store_opts *o)
{
	struct rig_wait w = { 0 };
	bool closed = false;
	int ret;

	ret = cqd_store_new(&r->loop, o, &r->st, NULL);
	if (ret)
		return ret;
	ret = cqd_model_load(r->st, "m", r->model_fd, rig_on_load, &w, NULL);
	if (!ret) {
		until(r, &w.done);
		ret = w.ret;
	}
	if (!ret)
		ret = session(r);
	cqd_store_close(r->st, rig_closed, &closed);
	until(r, &closed);
	return ret;
}

static void model_file(struct run *r)
{
	struct image im = rig_model();

	r->model_fd = memfd_create("model", MFD_CLOEXEC);
	ASSERT_EQ(write(r->model_fd, im.buf, im.size), (ssize_t)im.size);
	free(im.buf);
}

static int fds_now(void)
{
	return test_count_fds();
}

TEST_LIMIT(every_call_fails_once, 120)
{
	struct rig defaults;
	struct run r;
	long n, failed = 0;
	int ret = 0, fds = 0;

	rig_defaults(&defaults);
	ASSERT_EQ(uv_loop_init(&r.loop), 0);
	model_file(&r);
	r.arena_fd = rig_memfd(RIG_ARENA);
	/* Once without a fault: libraries have what they keep. */
	ASSERT_EQ(whole(&r, &defaults.o), 0);
	fds = fds_now();
	for (n = 1; n < 1000; n++) {
		countdown = n;
		live_blocks = 0;
		armed = true;
		ret = whole(&r, &defaults.o);
		armed = false;
		if (fds_now() != fds)
			FAIL("call %ld failed: %d descriptors, %d before", n, fds_now(), fds);
		if (live_blocks)
			FAIL("call %ld failed: %ld allocations left", n, live_blocks);
		if (countdown > 0)
			break;
		failed += ret != 0;
	}
	ASSERT_EQ(ret, 0);
	/* Nearly all of them are fatal to the run. */
	printf("# %ld calls, %ld ended the run\n", n - 1, failed);
	ASSERT_GT(n, 30);
	ASSERT_GT(failed, n / 2);
	close(r.model_fd);
	close(r.arena_fd);
	ASSERT_EQ(uv_loop_close(&r.loop), 0);
	uv_library_shutdown();
}
