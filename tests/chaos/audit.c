// SPDX-License-Identifier: MIT
/*
 * What must hold when every worker has gone: nothing is pinned, filling or
 * counted as a client; every page that is left is attached to, read and right;
 * the manager keeps the descriptors that the index names and no other; cqd has
 * as many open as one that was just started over the same store; memory is
 * what the index says; the log has no line that nobody can explain.
 */
#include "tests/chaos/driver.h"

#define SETTLE_MS 15000

static void leak(struct audit *a, uint64_t n, const char *what)
{
	if (!n)
		return;
	fprintf(stderr, "chaos: leaked: %llu %s\n", (unsigned long long)n, what);
	a->leaked += n;
}

/* --- by what cqd says --- */

static bool settled(const Cqp__StatusOk *st)
{
	return !st->clients && !st->orphans && !st->pages_pinned && !st->pages_filling &&
	       !st->arena_bytes;
}

static void status(struct driver *d, Cqp__StatusOk *st)
{
	int fd = wire_open(d->s.admin);

	ASSERT_OK(fd);
	sys_status_on(fd, st);
	close(fd);
}

static void wait_settled(struct driver *d, struct audit *a)
{
	long long end = test_now_ms() + SETTLE_MS;
	Cqp__StatusOk st;

	do {
		inject_pump(d, 10);
		status(d, &st);
	} while (!settled(&st) && test_now_ms() < end);
	leak(a, st.clients, "clients in the index");
	leak(a, st.orphans, "orphans");
	leak(a, st.pages_pinned, "pinned pages");
	leak(a, st.pages_filling, "filling pages");
	leak(a, st.arena_bytes, "bytes of arenas");
}

static void verify(struct driver *d, struct audit *a)
{
	Cqp__Verify body = CQP__VERIFY__INIT;
	DECLARE_MSG(msg, VERIFY, verify, body);
	int fd = wire_open(d->s.admin);
	Cqp__Msg *r;

	ASSERT_OK(fd);
	r = wire_call(fd, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_VERIFY_OK);
	a->verified = r->verify_ok->checked;
	if (r->verify_ok->failed)
		FAIL("%llu pages have a wrong checksum",
		     (unsigned long long)r->verify_ok->failed);
	cqp_free(r);
	close(fd);
}

/**
 * struct sums - over one kind of listed items
 */
struct sums {
	uint64_t items, pages[NAMESPACES], bytes;
};

static void item_add(struct sums *s, const Cqp__Item *it)
{
	s->items++;
	s->bytes += it->bytes;
	if (!strcmp(it->name, "red"))
		s->pages[0] = it->pages;
	else if (!strcmp(it->name, "blue"))
		s->pages[1] = it->pages;
}

static void list(struct driver *d, Cqp__Kind kind, struct sums *s)
{
	Cqp__List body = CQP__LIST__INIT;
	DECLARE_MSG(msg, LIST, list, body);
	int fd = wire_open(d->s.admin);
	Cqp__Msg *r;
	size_t i;

	ASSERT_OK(fd);
	memset(s, 0, sizeof(*s));
	body.kind = kind;
	do {
		r = wire_call(fd, &msg, NULL, 0, NULL);
		ASSERT(r && r->body_case == CQP__MSG__BODY_LIST_OK);
		for (i = 0; i < r->list_ok->n_items; i++)
			item_add(s, r->list_ok->items[i]);
		body.has_cursor = r->list_ok->has_cursor;
		body.cursor = r->list_ok->cursor;
		cqp_free(r);
	} while (body.has_cursor);
	close(fd);
}

/* A worker of @ns that finds and reads all there is. */
static uint64_t read_all(struct driver *d, unsigned int ns, bool names)
{
	struct chaos_worker *w = &chaos->w[ns];
	struct chaos_job job = { .sock = d->s.sock, .seed = 1 };
	int status = 0;
	pid_t pid;

	w->ns = ns;
	w->uid = ns ? SYS_UID_C : SYS_UID_A;
	pid = inject_fork(d, w->uid);
	if (!pid) {
		chaos_me = w;
		atomic_store(&chaos->found[ns], worker_audit(&job, names));
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	if (status)
		FAIL("audit of namespace %u: status %#x, %s", ns, (unsigned int)status, w->why);
	return atomic_load(&chaos->found[ns]);
}

/* Every page of every namespace is found from the start of some text. */
static void check_pages(struct driver *d, struct audit *a)
{
	struct sums ns;
	unsigned int i;
	uint64_t found;

	list(d, CQP__KIND__NAMESPACES, &ns);
	for (i = 0; i < NAMESPACES; i++) {
		if (!sys_root() && i)
			continue;
		found = read_all(d, i, false);
		a->pages += found;
		if (found < ns.pages[i])
			leak(a, ns.pages[i] - found, "pages that no text leads to");
		if (found > ns.pages[i])
			FAIL("namespace %u has %llu pages, %llu were read", i,
			     (unsigned long long)ns.pages[i], (unsigned long long)found);
	}
}

/* --- by what the kernel says --- */

/**
 * struct fds - descriptors of a process, by kind
 * @seg_bytes: memory of its segments
 */
struct fds {
	uint64_t seg, index, model, state, arena, memfd, socket, pidfd, other, seg_bytes;
};

static void fd_add(struct fds *f, const char *link, const struct stat *sb)
{
	if (!strncmp(link, "/memfd:cq-seg", 13)) {
		f->seg++;
		f->seg_bytes += (uint64_t)sb->st_blocks * 512;
	} else if (!strncmp(link, "/memfd:cq-index", 15)) {
		f->index++;
	} else if (!strncmp(link, "/memfd:cq-model", 15)) {
		f->model++;
	} else if (!strncmp(link, "/memfd:cq-state", 15)) {
		f->state++;
	} else if (!strncmp(link, "/memfd:cq-arena", 15)) {
		f->arena++;
	} else if (!strncmp(link, "/memfd:", 7)) {
		f->memfd++;
	} else if (!strncmp(link, "socket:", 7)) {
		f->socket++;
	} else if (strstr(link, "pidfd")) {
		f->pidfd++;
	} else {
		f->other++;
	}
}

static void fds_of(pid_t pid, struct fds *f)
{
	char path[300], link[256];
	struct dirent *e;
	struct stat sb;
	ssize_t n;
	DIR *dir;

	memset(f, 0, sizeof(*f));
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	ASSERT(dir);
	while ((e = readdir(dir))) {
		n = readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1);
		if (n <= 0 || fstatat(dirfd(dir), e->d_name, &sb, 0))
			continue;
		link[n] = 0;
		fd_add(f, link, &sb);
	}
	closedir(dir);
}

static uint64_t beyond(uint64_t have, uint64_t want)
{
	return have > want ? have - want : 0;
}

/* Against @fresh, which a cqd has that was started a moment ago. */
static void check_cqd_fds(struct audit *a, const struct fds *old, const struct fds *fresh)
{
	leak(a, old->arena, "arenas' descriptors in cqd");
	leak(a, old->pidfd, "pidfds in cqd");
	leak(a, beyond(old->socket, fresh->socket), "sockets in cqd");
	leak(a, beyond(old->seg, fresh->seg), "segments' descriptors in cqd");
	leak(a, beyond(old->model, fresh->model), "models' descriptors in cqd");
	leak(a, beyond(old->state, fresh->state), "states' descriptors in cqd");
	leak(a, beyond(old->memfd, fresh->memfd), "memfds in cqd");
	leak(a, beyond(old->other, fresh->other), "other descriptors in cqd");
}

static void check_store(struct driver *d, struct audit *a)
{
	struct sums seg, model, ns;
	Cqp__StatusOk st;
	struct fds f;

	list(d, CQP__KIND__SEGMENTS, &seg);
	list(d, CQP__KIND__MODELS, &model);
	list(d, CQP__KIND__NAMESPACES, &ns);
	status(d, &st);
	fds_of(d->s.manager, &f);
	a->segments = seg.items;
	leak(a, beyond(f.seg, seg.items), "segments in the fd store");
	leak(a, beyond(f.model, model.items), "models in the fd store");
	leak(a, beyond(f.state, ns.items), "states in the fd store");
	leak(a, beyond(f.index, 1), "indexes in the fd store");
	leak(a, f.arena + f.memfd + f.pidfd, "strangers in the fd store");
	leak(a, beyond(st.pool_reserved, seg.bytes), "reserved bytes of no segment");
	leak(a, beyond(f.seg_bytes, st.pool_reserved), "bytes of segments beyond the pool");
	if (f.seg < seg.items || st.pool_used > st.pool_reserved ||
	    st.pool_reserved > st.pool_limit)
		FAIL("%llu of %llu segments in the fd store, %llu of %llu bytes used, limit %llu",
		     (unsigned long long)f.seg, (unsigned long long)seg.items,
		     (unsigned long long)st.pool_used, (unsigned long long)st.pool_reserved,
		     (unsigned long long)st.pool_limit);
}

/* SIGTERM, and the next one. */
static void restart(struct driver *d)
{
	d->asked |= ASKED_TERM;
	ASSERT_SYS(kill(d->s.cqd, SIGTERM));
	while (d->asked)
		inject_pump(d, 1);
	inject_until_ready(d);
}

/* Every name that was acknowledged is attached to, and taken away. */
static void settle_names(struct driver *d, struct audit *a)
{
	struct sums names;
	unsigned int i;

	for (i = 0; i < NAMESPACES; i++)
		if (sys_root() || !i)
			read_all(d, i, true);
	list(d, CQP__KIND__NAMES, &names);
	leak(a, names.items, "names that nobody made");
}

/**
 * audit_run() - everything that can be asked of a quiet cqd
 * @d: driver; all workers have ended
 * @a: filled
 */
void audit_run(struct driver *d, struct audit *a)
{
	struct fds old, fresh;

	settle_names(d, a);
	/* pages that go by themselves go now, not between two looks */
	inject_pump(d, (PAGE_TTL_S + 2) * 1000);
	wait_settled(d, a);
	verify(d, a);
	check_pages(d, a);
	wait_settled(d, a);
	check_store(d, a);
	/* cqd has yet to hear that the connections of these questions are closed */
	inject_pump(d, 1000);
	fds_of(d->s.cqd, &old);
	restart(d);
	wait_settled(d, a);
	fds_of(d->s.cqd, &fresh);
	check_cqd_fds(a, &old, &fresh);
	check_store(d, a);
	verify(d, a);
	a->pages = 0;
	check_pages(d, a);
}

/* --- the log --- */

/* Lines of a warning or worse that faults of this run account for. */
static const char *const log_explained[] = {
	"the configuration in force stays",
};

static bool line_explained(const char *line)
{
	size_t i;

	/* a kill leaves no record that contradicts another */
	if (strstr(line, "restart: dropped ") && !strstr(line, "dropped 0 records"))
		return false;
	if (line[0] == '<' && line[1] >= '5' && line[1] <= '7')
		return true;
	for (i = 0; i < ARRAY_SIZE(log_explained); i++)
		if (strstr(line, log_explained[i]))
			return true;
	return false;
}

/**
 * audit_log() - every line is known
 * @d: driver
 * @a: filled
 */
void audit_log(const struct driver *d, struct audit *a)
{
	FILE *f = fopen(d->s.log, "re");
	char line[1200], first[1200] = "";
	unsigned int odd = 0;

	ASSERT(f);
	while (fgets(line, sizeof(line), f)) {
		a->log_lines++;
		if (line_explained(line))
			continue;
		if (!odd++)
			snprintf(first, sizeof(first), "%s", line);
	}
	fclose(f);
	if (odd)
		FAIL("%u lines in cqd's log that no fault explains; the first: %s", odd, first);
}
