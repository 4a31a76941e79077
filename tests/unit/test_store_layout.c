// SPDX-License-Identifier: MIT
/*
 * Indexes of other layouts in the fd store: older ones and those with tables of
 * other sizes are taken over by copying, whatever moment the daemon dies at;
 * newer ones are kept if they say that they may be, else dropped with one line.
 */
#include "tests/unit/store_rig.h"

#define PAGES 5
#define KILLED 99

static struct rig r;
static struct cqp_key keys[PAGES];
static struct cqp_page pages[PAGES];
static uint8_t boot_id[16];
static uint64_t session;

/* --- dying at the Nth call that others can see --- */

static int until_death;		/* 0: never */

static void fault_point(void)
{
	if (until_death && !--until_death)
		_exit(KILLED);
}

int __real_memfd_create(const char *name, unsigned int flags);
int __wrap_memfd_create(const char *name, unsigned int flags);
int __wrap_memfd_create(const char *name, unsigned int flags)
{
	fault_point();
	return __real_memfd_create(name, flags);
}

int __real_sd_notify(int unset, const char *state);
int __wrap_sd_notify(int unset, const char *state);
int __wrap_sd_notify(int unset, const char *state)
{
	int ret;

	fault_point();
	ret = __real_sd_notify(unset, state);
	fault_point();
	return ret;
}

ssize_t __real_sendmsg(int fd, const struct msghdr *mh, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *mh, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *mh, int flags)
{
	ssize_t ret;

	fault_point();
	ret = __real_sendmsg(fd, mh, flags);
	fault_point();
	return ret;
}

int __real_sd_notify_barrier(int unset, uint64_t timeout);
int __wrap_sd_notify_barrier(int unset, uint64_t timeout);
int __wrap_sd_notify_barrier(int unset, uint64_t timeout)
{
	int ret;

	fault_point();
	ret = __real_sd_notify_barrier(unset, mgr.mute ? 100000 : timeout);
	fault_point();
	return ret;
}

int __real_sd_pid_notify_with_fds(pid_t pid, int unset, const char *state, const int *fds,
				  unsigned int n);
int __wrap_sd_pid_notify_with_fds(pid_t pid, int unset, const char *state, const int *fds,
				  unsigned int n);
int __wrap_sd_pid_notify_with_fds(pid_t pid, int unset, const char *state, const int *fds,
				  unsigned int n)
{
	int ret;

	fault_point();
	ret = __real_sd_pid_notify_with_fds(pid, unset, state, fds, n);
	fault_point();
	return ret;
}

/* --- before and after --- */

static struct cqd_stats stats(void)
{
	struct cqd_stats s;

	cqd_store_stats(r.st, &s);
	return s;
}

static unsigned int kept(const char *start)
{
	unsigned int i, n = 0;

	mgr_sync();
	for (i = 0; i < mgr.n; i++)
		n += !strncmp(mgr.names[i], start, strlen(start));
	return n;
}

static bool is_kept(const char *name)
{
	unsigned int i;

	mgr_sync();
	for (i = 0; i < mgr.n; i++)
		if (!strcmp(mgr.names[i], name))
			return true;
	return false;
}

/* A chain of five below nothing else's: records 0 to 2 are free again. */
static void run_before(void)
{
	struct cqp_key other[3];
	struct cqp_page gone[3];
	unsigned int i;

	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	rig_start(&r);
	rig_chain(&r, 40, 3, other, gone);
	ASSERT_EQ(cqd_release(r.cl, gone, 3, &r.err), 0);
	rig_chain(&r, 1, PAGES, keys, pages);
	for (i = 0; i < 3; i++)
		ASSERT(cqd_evict_one(r.st, NULL, NULL));
	ASSERT_EQ(cqd_release(r.cl, pages, 4, &r.err), 0);
	memcpy(boot_id, cqd_store_boot_id(r.st), 16);
	session = cqd_client_session(r.cl);
	rig_close(&r);
	mgr_sync();
}

static void run_after(void)
{
	if (rig_open(&r))
		FAIL("%s", r.err.text);
	r.cl = NULL;
}

/* All of it is there: pages in their chain, the pin, the session. */
static void check_all(void)
{
	static const struct cqp_shard all;

	ASSERT_STREQ(r.err.text, "");
	ASSERT_EQ(stats().pages_sealed, PAGES);
	ASSERT_EQ(stats().pages_pinned, 1);
	ASSERT_MEMEQ(cqd_store_boot_id(r.st), boot_id, 16);
	ASSERT_EQ(kept("cq-index"), 1);
	rig_ns(&r);
	r.cl = cqd_client_resume(r.st, r.ns, session, 100, 7);
	ASSERT(r.cl);
	ASSERT_EQ(cqd_shard_get(r.cl, "m", &all, &r.sh, &r.info, &r.err), 0);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	/* nothing but the pin holds them, and it does */
	ASSERT(!cqd_evict_one(r.st, NULL, NULL));
	ASSERT_EQ(cqd_release(r.cl, &pages[4], 1, &r.err), 0);
	ASSERT(cqd_evict_one(r.st, NULL, NULL));
	cqd_client_end(r.cl);
}

static void run_end(void)
{
	rig_stop(&r);
	mgr_stop();
}

static unsigned int index_at(void)
{
	unsigned int i;

	for (i = 0; i < mgr.n; i++)
		if (!strncmp(mgr.names[i], "cq-index", 8))
			return i;
	FAIL("no index");
	return 0;
}

/* --- images --- */

/* The head that version 1 wrote, frozen here. */
struct head_v1 {
	uint64_t magic;
	uint32_t version, pad0;
	uint64_t incompat, compat;
	uint8_t boot_id[16];
	uint64_t bytes;
	uint32_t high_clients, high_pages, high_pins, pad1;
	uint32_t n_namespaces, n_models, n_segments, n_clients, n_pages, n_pins;
	uint64_t off_namespaces, off_models, off_segments, off_clients, off_pages, off_pins;
};

static int image_fd(const void *image, uint64_t bytes)
{
	int fd = memfd_create("cq-index", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ASSERT_EQ(pwrite(fd, image, bytes, 0), (ssize_t)bytes);
	ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	return fd;
}

static void *image_of(uint64_t *bytes)
{
	int fd = mgr.fds[index_at()];
	struct cqp_index_hdr h;
	void *image;

	ASSERT_EQ(pread(fd, &h, sizeof(h), 0), (ssize_t)sizeof(h));
	image = malloc(h.bytes + 4096);
	ASSERT(image);
	ASSERT_EQ(pread(fd, image, h.bytes, 0), (ssize_t)h.bytes);
	*bytes = h.bytes;
	return image;
}

static void image_put(const void *image, uint64_t bytes)
{
	unsigned int i = index_at();

	close(mgr.fds[i]);
	mgr.fds[i] = image_fd(image, bytes);
}

/* What the cqd before names would have left behind. */
static void make_v1(void)
{
	struct cqp_index_hdr *h;
	struct head_v1 *old;
	uint64_t bytes;
	void *image = image_of(&bytes);

	h = image;
	old = image;
	ASSERT_EQ(sizeof(*old), 144);
	ASSERT_EQ(h->off_names, ALIGN_UP(h->off_pins + h->n_pins * 32, 4096));
	bytes = h->off_names;
	memset((uint8_t *)image + sizeof(*old), 0, 4096 - sizeof(*old));
	old->version = 1;
	old->bytes = bytes;
	image_put(image, bytes);
	free(image);
}

/* --- older --- */

TEST(older_layout_is_taken_over)
{
	run_before();
	make_v1();
	run_after();
	ASSERT(is_kept("cq-index-2"));
	ASSERT_EQ(r.st->ix.hdr->version, 2);
	ASSERT_EQ(r.st->ix.t_names.n, CQD_MAX_NAMES);
	check_all();
	run_end();
}

/* Garbage behind the head of version 1 is no field of it. */
TEST(older_layout_ends_where_it_ends)
{
	uint64_t bytes;
	uint8_t *image;

	run_before();
	make_v1();
	image = image_of(&bytes);
	memset(image + 144, 0xa5, 64);
	image_put(image, bytes);
	free(image);
	run_after();
	check_all();
	run_end();
}

static void damaged_v1(void (*hurt)(struct cqp_index_hdr *h))
{
	struct cqp_index_hdr *h;
	uint64_t bytes;

	run_before();
	make_v1();
	h = image_of(&bytes);
	hurt(h);
	image_put(h, bytes);
	free(h);
	run_after();
	ASSERT_STRHAS(r.err.text, "is dropped");
	ASSERT(!strchr(r.err.text, '\n'));
	ASSERT_EQ(stats().pages_sealed, 0);
	ASSERT_EQ(kept("cq-"), 1);
	run_end();
}

static void bad_offset(struct cqp_index_hdr *h)
{
	h->off_pins += 4096;
}

static void older_feature(struct cqp_index_hdr *h)
{
	h->incompat = 1;
}

TEST(older_but_damaged)
{
	damaged_v1(bad_offset);
}

TEST(older_with_an_unknown_feature)
{
	damaged_v1(older_feature);
}

/* --- newer --- */

/* A feature that may be ignored, with a table of its own behind ours. */
TEST(newer_and_compatible)
{
	struct cqp_index_hdr *h;
	uint64_t bytes;

	run_before();
	h = image_of(&bytes);
	h->compat = 1ull << 40;
	h->bytes = bytes + 4096;
	image_put(h, bytes + 4096);
	free(h);
	run_after();
	ASSERT(is_kept("cq-index"));
	ASSERT_EQ(r.st->ix.hdr->compat, 1ull << 40);
	check_all();
	run_end();
}

/* The same without the feature is an index that lies about its size. */
TEST(longer_without_a_reason)
{
	struct cqp_index_hdr *h;
	uint64_t bytes;

	run_before();
	h = image_of(&bytes);
	h->bytes = bytes + 4096;
	image_put(h, bytes + 4096);
	free(h);
	run_after();
	ASSERT_STRHAS(r.err.text, "is damaged");
	run_end();
}

TEST(newer_and_incompatible)
{
	struct cqp_index_hdr *h;
	uint64_t bytes;

	run_before();
	h = image_of(&bytes);
	h->version = 3;
	image_put(h, bytes);
	free(h);
	run_after();
	ASSERT_STRHAS(r.err.text, "has version 3");
	ASSERT_STRHAS(r.err.text, "every cached page of the cqd before is dropped");
	ASSERT_EQ(stats().pages_sealed, 0);
	ASSERT_EQ(kept("cq-"), 1);
	rig_close(&r);
	run_after();
	ASSERT_STREQ(r.err.text, "");
	run_end();
}

/* --- other sizes --- */

static void resized(uint32_t n_pages, uint32_t n_clients, uint32_t n_pins)
{
	r.o.max_pages = n_pages;
	r.o.max_clients = n_clients;
	r.o.max_pins = n_pins;
}

static void check_sizes(uint32_t n_pages, uint32_t n_clients, uint32_t n_pins)
{
	ASSERT_EQ(r.st->ix.t_pages.n, n_pages);
	ASSERT_EQ(r.st->ix.t_clients.n, n_clients);
	ASSERT_EQ(r.st->ix.t_pins.n, n_pins);
}

TEST(larger_tables)
{
	run_before();
	resized(100000, 500, 200000);
	run_after();
	check_sizes(100000, 500, 200000);
	/* and again: one number more, the one before is gone */
	rig_close(&r);
	resized(50000, 500, 200000);
	run_after();
	check_sizes(50000, 500, 200000);
	ASSERT(is_kept("cq-index-3"));
	/* nothing to do: the same one */
	rig_close(&r);
	run_after();
	ASSERT(is_kept("cq-index-3"));
	check_all();
	run_end();
}

/* Records beyond the new ends move to the front. */
TEST(smaller_tables)
{
	run_before();
	resized(PAGES, 1, 2);
	run_after();
	check_sizes(PAGES, 1, 2);
	check_all();
	run_end();
}

TEST(too_small_for_what_is_there)
{
	run_before();
	resized(PAGES - 1, 8, 16);
	run_after();
	check_sizes(4096, 8, 16);
	ASSERT_STRHAS(r.err.text, "until a restart with less");
	r.err.text[0] = '\0';
	check_all();
	/* check_all() let a page go: now it fits */
	rig_close(&r);
	run_after();
	check_sizes(PAGES - 1, 8, 16);
	ASSERT_STREQ(r.err.text, "");
	ASSERT_EQ(stats().pages_sealed, PAGES - 1);
	run_end();
}

/* A page that points nowhere does not come to point somewhere. */
TEST(bad_references_stay_bad)
{
	struct cqp_index_hdr *h;
	struct cqp_rec_page *p;
	uint64_t bytes;
	uint32_t i;

	run_before();
	h = image_of(&bytes);
	p = (void *)((uint8_t *)h + h->off_pages);
	for (i = 0; i < h->high_pages; i++)
		if (CQP_WORD_STATE(p[i].word) == CQP_SEALED && !p[i].depth)
			p[i].parent = 4000;	/* free, and page 0 has none */
	image_put(h, bytes);
	free(h);
	resized(PAGES, 1, 2);
	run_after();
	ASSERT_EQ(stats().pages_sealed, 0);
	run_end();
}

/* --- the manager is away --- */

TEST(unconfirmed_is_not_used)
{
	run_before();
	resized(100000, 500, 200000);
	mgr_mute(true);
	run_after();
	/* the old one goes on, and what may have arrived is gone */
	check_sizes(4096, 64, 4096);
	ASSERT_STRHAS(r.err.text, "cq-index-2");
	mgr_mute(false);
	r.err.text[0] = '\0';
	ASSERT(is_kept("cq-index"));
	check_all();
	run_end();
}

/* --- killed at every step --- */

/* A start that dies at its @n-th step. False: it got through. */
static bool dies_at(int n)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		until_death = n;
		_exit(rig_open(&r) ? 1 : 0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT(WIFEXITED(status));
	if (WEXITSTATUS(status) && WEXITSTATUS(status) != KILLED)
		FAIL("step %d: exit status %d", n, WEXITSTATUS(status));
	mgr_sync();
	return WEXITSTATUS(status) == KILLED;
}

/* The second start may die as well, right after the first. */
static void killed_once(void (*prepare)(void), int n, bool twice)
{
	run_before();
	prepare();
	ASSERT(dies_at(n));
	if (twice)
		dies_at(n);
	run_after();
	ASSERT_EQ(r.st->ix.hdr->version, 2);
	check_all();
	run_end();
}

/* In a process of its own: libuv is wound down at the end of each run. */
static void killed_in_child(void (*prepare)(void), int n, bool twice)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		killed_once(prepare, n, twice);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	if (status)
		FAIL("killed at step %d%s: status %#x", n, twice ? " twice" : "",
		     (unsigned int)status);
}

static void killed_everywhere(void (*prepare)(void), int steps)
{
	int n;

	for (n = 1; n <= steps; n++) {
		killed_in_child(prepare, n, false);
		killed_in_child(prepare, n, true);
	}
	run_before();
	prepare();
	ASSERT(!dies_at(steps + 1));
	run_end();
}

static void other_sizes(void)
{
	resized(PAGES, 100, 100);
}

/* probe, memfd, push, barrier, removal of the old one: before and after each */
TEST_LIMIT(killed_while_an_older_one_is_taken_over, 60)
{
	killed_everywhere(make_v1, 8);
}

TEST_LIMIT(killed_while_sizes_change, 60)
{
	killed_everywhere(other_sizes, 8);
}
