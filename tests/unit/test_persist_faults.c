// SPDX-License-Identifier: MIT
/*
 * Each call that can fail, fails once while pages are saved, restored, or follow
 * into the folder of persist=: allocation, descriptor, read, write, sync, rename.
 * Nothing in memory is lost, nothing that was on the disk either, and neither a
 * descriptor nor an allocation is left.
 */
#include <dirent.h>
#include <stdarg.h>
#include <syslog.h>
#include "tests/unit/store_rig.h"
#include "daemon/persist.h"

#define PAGES 20	/* more than a batch */

static long countdown, live;
static int lines;
static bool armed;

/* What fdatasync() fails with; all of them, if @sync_fails. */
static int sync_error = EIO;
static bool sync_fails;

/* Files are read and synced by worker threads: disks are slow. */
static pthread_t loop_thread;
static int waits_on_loop;

static bool fault(int err)
{
	if (err == sync_error && sync_fails) {
		errno = err;
		return true;
	}
	if (__atomic_load_n(&armed, __ATOMIC_RELAXED) && err == EIO)
		waits_on_loop += pthread_equal(pthread_self(), loop_thread) != 0;
	if (!__atomic_load_n(&armed, __ATOMIC_RELAXED) ||
	    __atomic_sub_fetch(&countdown, 1, __ATOMIC_RELAXED))
		return false;
	errno = err;
	return true;
}

static void *counted(void *p)
{
	if (p)
		__atomic_add_fetch(&live, 1, __ATOMIC_RELAXED);
	return p;
}

/* The linker's names for a call of the daemon's, and for the one behind it. */
#define CALL(type, name, args, pass, err, failed)				\
	type __real_##name args;						\
	type __wrap_##name args;						\
	type __wrap_##name args							\
	{									\
		return fault(err) ? (failed) : __real_##name pass;		\
	}
#define ALLOC(name, args, pass)							\
	void *__real_##name args;						\
	void *__wrap_##name args;						\
	void *__wrap_##name args						\
	{									\
		return fault(ENOMEM) ? NULL : counted(__real_##name pass);	\
	}

ALLOC(malloc, (size_t n), (n))
ALLOC(calloc, (size_t n, size_t size), (n, size))
ALLOC(aligned_alloc, (size_t align, size_t n), (align, n))
ALLOC(json_dumps, (const void *json, size_t flags), (json, flags))
ALLOC(strdup, (const char *s), (s))
CALL(ssize_t, pread, (int fd, void *p, size_t n, off_t at), (fd, p, n, at), EIO, -1)
CALL(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at), ENOSPC, -1)
CALL(int, fdatasync, (int fd), (fd), sync_error, -1)
CALL(int, fsync, (int fd), (fd), EIO, -1)
CALL(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), EIO, -1)
CALL(int, memfd_create, (const char *name, unsigned int flags), (name, flags), EMFILE, -1)
CALL(int, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), ENOSPC, -1)
CALL(DIR *, fdopendir, (int fd), (fd), ENOMEM, NULL)

void *__real_realloc(void *old, size_t n);
void *__wrap_realloc(void *old, size_t n);
void *__wrap_realloc(void *old, size_t n)
{
	void *p = fault(ENOMEM) ? NULL : __real_realloc(old, n);

	return old ? p : counted(p);
}

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p)
{
	if (p)
		__atomic_sub_fetch(&live, 1, __ATOMIC_RELAXED);
	__real_free(p);
}

int __real_openat(int dir, const char *name, int flags, ...);
int __wrap_openat(int dir, const char *name, int flags, ...);
int __wrap_openat(int dir, const char *name, int flags, ...)
{
	va_list ap;
	int mode;

	va_start(ap, flags);
	mode = flags & O_CREAT ? va_arg(ap, int) : 0;
	va_end(ap);
	return fault(EMFILE) ? -1 : __real_openat(dir, name, flags, mode);
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
	return fault(EMFILE) ? -1 : __real_fcntl(fd, cmd, arg);
}

void __wrap_cq_log(int prio, const char *fmt, ...);
void __wrap_cq_log(int prio, const char *fmt, ...)
{
	lines += prio <= LOG_WARNING;
}

static void arm(long n)
{
	lines = 0;
	countdown = n;
	__atomic_store_n(&armed, true, __ATOMIC_SEQ_CST);
}

/* False: the call that should have failed was never reached. */
static bool disarm(void)
{
	__atomic_store_n(&armed, false, __ATOMIC_SEQ_CST);
	return countdown <= 0;
}

/* --- the parts of a run --- */

struct outcome {
	bool done;
	int ret;
	uint64_t pages;
	struct cqd_restore_result res;
};

static void on_save(void *arg, int ret, uint64_t pages, uint64_t bytes,
		    const struct cq_err *err)
{
	*(struct outcome *)arg = (struct outcome){ .done = true, .ret = ret, .pages = pages };
}

static void on_restore(void *arg, int ret, const struct cqd_restore_result *res,
		       const struct cq_err *err)
{
	*(struct outcome *)arg = (struct outcome){ .done = true, .ret = ret, .res = *res };
}

static struct outcome save(struct rig *r, int fd)
{
	struct outcome o = { 0 };

	o.ret = cqd_save(r->st, fd, on_save, &o, &r->err);
	if (!o.ret)
		rig_run(r, &o.done);
	return o;
}

static struct outcome restore(struct rig *r, int fd)
{
	struct outcome o = { 0 };

	o.ret = cqd_restore(r->st, fd, on_restore, &o, &r->err);
	if (!o.ret)
		rig_run(r, &o.done);
	return o;
}

static int file(void)
{
	char path[400];
	int fd;

	snprintf(path, sizeof(path), "%s/file", test_dir());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ASSERT(fd >= 0);
	unlink(path);
	return fd;
}

static void start(struct rig *r)
{
	rig_defaults(r);
	rig_start(r);
}

/* rig_stop() without the end of libuv's threads: another rig follows. */
static void stop(struct rig *r)
{
	rig_close(r);
	ASSERT_EQ(uv_loop_close(&r->loop), 0);
	munmap(r->arena, RIG_ARENA);
	close(r->arena_fd);
}

/* What is there once all is closed, the first time and ever after. */
struct rest {
	int fds;
	long live;
};

static void compare(struct rest *rest, long n)
{
	if (!rest->fds)
		*rest = (struct rest){ test_count_fds(), live };
	if (test_count_fds() != rest->fds)
		FAIL("call %ld failed: %d descriptors, %d before", n, test_count_fds(),
		     rest->fds);
	if (live != rest->live)
		FAIL("call %ld failed: %ld allocations left", n, live - rest->live);
}

/* --- cqctl save and restore --- */

TEST_LIMIT(saving, 60)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct rest rest = { 0 };
	struct outcome o;
	struct rig r;
	bool hit = true;
	long n;
	int fd;

	start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	for (n = 0; hit; n++) {
		fd = file();
		arm(n ? n : 100000);
		o = save(&r, fd);
		hit = disarm() || !n;
		ASSERT_EQ(o.ret != 0, n && hit);
		ASSERT(!r.st->transfer);
		ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
		if (!o.ret)
			ASSERT_EQ(restore(&r, fd).res.existing, PAGES);
		close(fd);
		while (r.st->jobs)	/* of the restore's session */
			uv_run(&r.loop, UV_RUN_ONCE);
		compare(&rest, n);
	}
	printf("# %ld calls\n", n - 2);
	ASSERT_GT(n, 6);
	rig_stop(&r);
}

TEST_LIMIT(restoring, 60)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct rest rest = { 0 };
	struct outcome o;
	struct rig r;
	bool hit = true;
	int fd = file();
	long n;

	loop_thread = pthread_self();
	start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	ASSERT_EQ(save(&r, fd).ret, 0);
	stop(&r);
	for (n = 0; hit; n++) {
		start(&r);
		arm(n ? n : 100000);
		o = restore(&r, fd);
		hit = disarm() || !n;
		/* What did not come back is told. */
		if (!o.ret && o.res.restored < PAGES)
			ASSERT_GT(o.res.lost + o.res.bad + o.res.no_parent + o.res.no_room, 0);
		ASSERT(!r.st->transfer);
		ASSERT_EQ(waits_on_loop, 0);
		ASSERT_EQ(r.st->pages_pinned, 0);
		ASSERT_EQ(restore(&r, fd).ret, 0);
		ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
		stop(&r);
		compare(&rest, n);
	}
	printf("# %ld calls\n", n - 2);
	ASSERT_GT(n, PAGES);
	close(fd);
	uv_library_shutdown();
}

/* --- persist= --- */

static void on_flushed(void *arg)
{
	*(bool *)arg = true;
}

static bool settled(const struct cqd_store *st)
{
	const struct cqd_persist *p = st->persist;

	return p->state == CQD_PERSIST_IDLE &&
	       (p->failing || (!p->dirty && p->seen == st->published));
}

static void follow(struct rig *r)
{
	long long end = test_now_ms() + 10000;

	while (r->st->persist && !settled(r->st)) {
		if (test_now_ms() > end)
			FAIL("persist= comes to no rest");
		uv_run(&r->loop, UV_RUN_ONCE);
	}
}

static void persist_stop(struct rig *r)
{
	bool done = false;

	cqd_persist_flush(r->st, on_flushed, &done);
	rig_run(r, &done);
	stop(r);
}

static void empty_folder(void)
{
	DIR *d = opendir(test_dir());
	struct dirent *e;

	ASSERT(d);
	while ((e = readdir(d)))
		if (!strncmp(e->d_name, "pages-", 6))
			unlinkat(dirfd(d), e->d_name, 0);
	closedir(d);
}

static unsigned int logs(void)
{
	DIR *d = opendir(test_dir());
	unsigned int n = 0;
	struct dirent *e;

	ASSERT(d);
	while ((e = readdir(d)))
		n += !strncmp(e->d_name, "pages-", 6);
	closedir(d);
	return n;
}

/* A folder with pages of a daemon before. */
static void before(struct cqp_key *keys)
{
	struct cqp_page pages[PAGES / 2];
	struct rig r;

	empty_folder();
	start(&r);
	ASSERT_EQ(cqd_persist_start(r.st, test_dir(), 0, &r.err), 0);
	rig_chain(&r, 1, PAGES / 2, keys, pages);
	persist_stop(&r);
}

/* Everything once more into a new file, as after an error of the disk. */
static void write_anew(struct rig *r)
{
	struct cqd_persist *p = r->st->persist;

	p->distrust = true;
	p->dirty = true;
	uv_timer_start(&p->timer, p->timer.timer_cb, 0, 0);
	follow(r);
}

static void next_daemon(struct rig *r, const struct cqp_key *old, const struct cqp_key *keys,
			long n)
{
	start(r);
	ASSERT_EQ(cqd_persist_start(r->st, test_dir(), 0, &r->err), 0);
	follow(r);
	if (rig_resident(r, keys, PAGES) != PAGES)
		FAIL("call %ld failed: new pages are lost", n);
	if (rig_resident(r, old, PAGES / 2) != PAGES / 2)
		FAIL("call %ld failed: old pages are lost", n);
	persist_stop(r);
}

/*
 * Old pages are found, new ones written, then all of them anew: whichever call
 * failed, the next daemon has all of it.
 */
TEST_LIMIT(following, 100)
{
	struct cqp_key old[PAGES / 2], keys[PAGES];
	struct cqp_page pages[PAGES];
	struct rest rest = { 0 };
	struct rig r;
	bool hit = true;
	long n;

	for (n = 0; hit; n++) {
		before(old);
		start(&r);
		rig_chain(&r, 1000, PAGES, keys, pages);
		arm(n ? n : 100000);
		if (cqd_persist_start(r.st, test_dir(), 0, &r.err))
			ASSERT(r.err.text[0]);
		follow(&r);
		if (r.st->persist && !r.st->persist->failing &&
		    rig_resident(&r, old, PAGES / 2) == PAGES / 2)
			write_anew(&r);
		hit = disarm() || !n;
		/* No file in the folder that nobody knows of: it would stay. */
		if (r.st->persist && rig_resident(&r, old, PAGES / 2) == PAGES / 2)
			ASSERT_EQ(logs(), r.st->persist->n_files + (r.st->persist->save.fd >= 0));
		ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
		if (lines > 1)
			FAIL("call %ld failed: %d lines in the log", n, lines);
		if (!r.st->persist)
			ASSERT_EQ(cqd_persist_start(r.st, test_dir(), 0, &r.err), 0);
		persist_stop(&r);
		next_daemon(&r, old, keys, n);
		compare(&rest, n);
	}
	printf("# %ld calls\n", n - 2);
	ASSERT_GT(n, PAGES);
	uv_library_shutdown();
}

/* Room that is found missing when the disk is asked: what was written is in doubt. */
TEST(full_at_the_sync)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct rig r;

	empty_folder();
	start(&r);
	ASSERT_EQ(cqd_persist_start(r.st, test_dir(), 0, &r.err), 0);
	follow(&r);
	sync_error = EDQUOT;
	sync_fails = true;
	rig_chain(&r, 1, PAGES, keys, pages);
	follow(&r);
	ASSERT(r.st->persist->failing);
	ASSERT(r.st->persist->distrust);
	sync_fails = false;
	persist_stop(&r);
	uv_library_shutdown();
}
