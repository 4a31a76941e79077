// SPDX-License-Identifier: MIT
/*
 * persist=: a folder that follows the store, read by a store that knows nothing.
 */
#include <sys/resource.h>
#include "tests/unit/store_rig.h"
#include "daemon/persist.h"

#define PAGES 6

/* Loop until @cond, with a deadline; timers of the store wake it. */
#define RUN_UNTIL(r, cond) do {							\
	long long _end = test_now_ms() + 10000;					\
	while (!(cond)) {							\
		if (test_now_ms() > _end)					\
			FAIL("never: %s", #cond);				\
		uv_run(&(r)->loop, UV_RUN_ONCE);				\
	}									\
} while (0)

static bool push;	/* the service manager has an fd store */

static void start(struct rig *r)
{
	rig_defaults(r);
	r->o.push_fds = push;
	rig_start(r);
	if (cqd_persist_start(r->st, test_dir(), 0, &r->err))
		FAIL("%s", r->err.text);
	RUN_UNTIL(r, r->st->persist->state != CQD_PERSIST_LIST);
}

static bool clean(const struct rig *r)
{
	const struct cqd_persist *p = r->st->persist;

	return p->state == CQD_PERSIST_IDLE && !p->dirty && p->seen == r->st->published;
}

static void on_flushed(void *arg)
{
	*(bool *)arg = true;
}

/* rig_stop() without the end of libuv's threads: another rig follows. */
static void stop(struct rig *r, bool flush)
{
	bool done = false;

	if (flush) {
		cqd_persist_flush(r->st, on_flushed, &done);
		rig_run(r, &done);
	}
	rig_close(r);
	ASSERT_EQ(uv_loop_close(&r->loop), 0);
	munmap(r->arena, RIG_ARENA);
	close(r->arena_fd);
}

static unsigned int files(char name[64])
{
	DIR *d = opendir(test_dir());
	struct dirent *e;
	unsigned int n = 0;

	ASSERT(d);
	while ((e = readdir(d)))
		if (!strncmp(e->d_name, "pages-", 6)) {
			snprintf(name, 64, "%.63s", e->d_name);
			n++;
		}
	closedir(d);
	return n;
}

/* Written behind, or by the flush: a new store has them. */
static void there_and_back(bool behind)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct rig r;

	start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	if (behind)
		RUN_UNTIL(&r, clean(&r));
	stop(&r, !behind);
	start(&r);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	ASSERT_EQ(r.st->pages_pinned, 0);
	/* They are in the files: nothing is written again. */
	RUN_UNTIL(&r, clean(&r));
	ASSERT_EQ(r.st->persist->save.pos, 0);
	stop(&r, true);
	uv_library_shutdown();
}

TEST(written_behind)
{
	there_and_back(false);
}

TEST(written_at_the_end)
{
	there_and_back(true);
}

/* Chains that begin in one file and go on in another; children before parents. */
TEST(over_several_files)
{
	struct cqp_key keys[PAGES];
	struct rig_wait w;
	char name[64];
	unsigned int i;
	struct rig r;

	for (i = 0; i < PAGES; i++) {
		start(&r);
		ASSERT_EQ(rig_resident(&r, keys, i), i);
		w = rig_seal(&r, r.cl, r.arena_id, i ? &keys[i - 1] : &r.root, 1 + i);
		ASSERT_EQ(w.ret, 0);
		keys[i] = w.res.key;
		stop(&r, true);
	}
	ASSERT_EQ(files(name), PAGES);
	uv_library_shutdown();
}

/* Power lost at any moment: what is whole comes back, and it goes on. */
TEST(torn_anywhere)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	char name[64], path[400];
	struct stat sb;
	uint8_t *image;
	off_t at;
	int n, fd, last = PAGES;
	struct rig r;

	start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	stop(&r, true);
	ASSERT_EQ(files(name), 1);
	snprintf(path, sizeof(path), "%s/%s", test_dir(), name);
	ASSERT_EQ(stat(path, &sb), 0);
	image = malloc((size_t)sb.st_size);
	fd = open(path, O_RDWR | O_CLOEXEC);
	ASSERT_EQ(pread(fd, image, (size_t)sb.st_size, 0), sb.st_size);
	close(fd);
	for (at = sb.st_size - 512; at >= 0; at -= 2048) {
		while (files(name)) {
			snprintf(path, sizeof(path), "%s/%s", test_dir(), name);
			unlink(path);
		}
		snprintf(path, sizeof(path), "%s/pages-00000005.cq", test_dir());
		fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
		ASSERT_EQ(write(fd, image, (size_t)at), at);
		close(fd);
		start(&r);
		n = rig_resident(&r, keys, PAGES);
		ASSERT(n <= last);
		ASSERT(at > 1024 || !n);
		last = n;
		stop(&r, false);
	}
	/* The damage goes with the file: the next start has nothing to say. */
	start(&r);
	RUN_UNTIL(&r, clean(&r));
	ASSERT(!r.st->persist->damaged);
	stop(&r, true);
	free(image);
	ASSERT_EQ(last, 0);
	uv_library_shutdown();
}

/* Evicted pages make the files no larger than promised. */
TEST(bounded)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	uint64_t bytes, most = 0;
	unsigned int round;
	char name[64];
	struct rig r;

	start(&r);
	r.st->persist->slack = 65536;
	for (round = 0; round < 12; round++) {
		rig_chain(&r, 1 + round * 100, PAGES, keys, pages);
		ASSERT_EQ(cqd_release(r.cl, pages, PAGES, &r.err), 0);
		RUN_UNTIL(&r, clean(&r));
		bytes = cqd_persist_bytes(r.st);
		most = MAX(most, bytes);
		ASSERT(bytes <= 2 * r.st->pool[0].used + 65536 + 6 * 65536);
		if (round < 11)
			cqd_page_drop(r.st, cqd_page_find(r.st, r.sh, &keys[0]));
	}
	ASSERT(most > 65536);
	ASSERT_EQ(files(name), 1);
	stop(&r, true);
	start(&r);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	stop(&r, true);
	uv_library_shutdown();
}

/* Said once, nothing lost in memory, and written when there is room again. */
TEST(disk_full)
{
	struct rlimit lim = { 1 << 20, RLIM_INFINITY };	/* segments are no larger */
	struct cqp_key keys[PAGES], first;
	struct cqp_page pages[PAGES];
	struct rig r;

	signal(SIGXFSZ, SIG_IGN);
	start(&r);
	rig_chain(&r, 50, 1, &first, pages);	/* segments are there */
	RUN_UNTIL(&r, clean(&r));
	r.st->persist->save.pos = (1 << 20) - 1024;
	setrlimit(RLIMIT_FSIZE, &lim);
	rig_chain(&r, 1, PAGES, keys, pages);
	RUN_UNTIL(&r, r.st->persist->failing);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	lim.rlim_cur = RLIM_INFINITY;
	setrlimit(RLIMIT_FSIZE, &lim);
	stop(&r, true);
	start(&r);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	ASSERT_EQ(rig_resident(&r, &first, 1), 1);
	stop(&r, true);
	uv_library_shutdown();
}

/* What the fd store kept is the truth: it is looked at, and not written again. */
TEST(kept_by_the_fd_store)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	char name[64];
	struct rig r;

	mgr_start();
	push = true;
	start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	RUN_UNTIL(&r, clean(&r));
	/* Gone from memory, still in the file: it must not come back. */
	ASSERT_EQ(cqd_release(r.cl, pages, PAGES, &r.err), 0);
	cqd_page_drop(r.st, cqd_page_find(r.st, r.sh, &keys[PAGES - 1]));
	stop(&r, false);
	mgr_sync();
	start(&r);
	ASSERT(r.st->adopted);
	RUN_UNTIL(&r, clean(&r));
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES - 1);
	ASSERT_EQ(r.st->persist->save.pos, 0);
	ASSERT_EQ(files(name), 1);
	stop(&r, true);
	mgr_stop();
	uv_library_shutdown();
}

/* No folder, or another cqd's: an error that says so; junk in it is put aside. */
TEST(folders)
{
	char path[400], name[64];
	struct rig r, other;
	int fd;

	rig_defaults(&other);
	snprintf(path, sizeof(path), "%s/pages-00000003.cq", test_dir());
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	ASSERT_EQ(ftruncate(fd, 100000), 0);
	close(fd);
	start(&r);
	RUN_UNTIL(&r, clean(&r));
	ASSERT_EQ(files(name), 1);
	ASSERT(!strcmp(name, "pages-00000003.bad"));
	ASSERT_EQ(uv_loop_init(&other.loop), 0);
	ASSERT_EQ(rig_open(&other), 0);
	ASSERT_EQ(cqd_persist_start(other.st, test_dir(), 0, &other.err), -EBUSY);
	ASSERT(strstr(other.err.text, "another cqd"));
	ASSERT_EQ(cqd_persist_start(other.st, "/nonexistent", 0, &other.err), -ENOENT);
	rig_close(&other);
	ASSERT_EQ(uv_loop_close(&other.loop), 0);
	stop(&r, true);
	uv_library_shutdown();
}

/* A pause of persist_rate is over at once when cqd stops. */
TEST(paused)
{
	struct cqp_key keys[4 * PAGES];
	struct cqp_page pages[4 * PAGES];
	long long began;
	struct rig r;

	start(&r);
	RUN_UNTIL(&r, clean(&r));
	r.st->persist->rate = 10000;
	rig_chain(&r, 1, 4 * PAGES, keys, pages);
	RUN_UNTIL(&r, r.st->persist->save.paused);
	began = test_now_ms();
	stop(&r, true);
	ASSERT(test_now_ms() - began < 5000);
	start(&r);
	ASSERT_EQ(rig_resident(&r, keys, 4 * PAGES), 4 * PAGES);
	RUN_UNTIL(&r, clean(&r));
	r.st->persist->rate = 10000;
	rig_chain(&r, 1000, 4 * PAGES, keys, pages);
	RUN_UNTIL(&r, r.st->persist->save.paused);
	stop(&r, false);
	uv_library_shutdown();
}
