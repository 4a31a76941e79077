/* SPDX-License-Identifier: MIT */
/*
 * What a worker of one tenant ever has in its hands: every descriptor that cqd
 * gave it is kept and mapped, over eviction, reuse and a restart, and searched
 * each time for the bytes and keys of the others. And none of it can be written.
 *
 *	red	the one with secrets: chosen bytes in codes and sinks
 *	green	another one, which names blue in its readable_by
 *	blue	the worker that is searched: it may read green's, and not red's
 */
#include <sys/syscall.h>
#include <sys/uio.h>
#include "proto/index.h"
#include "tests/system/search.h"
#include "tests/system/work.h"

#define SYS_UID_D	64104		/* green's worker */
#define TEXT		77		/* of green and, later, blue */
#define RED_TEXT	1000
#define PAGES		3u
#define FLOOD		900u		/* pages of 8 KiB and more: twice the pool */
#define MAX_KEPT	96
#define SINK_AT		(1u << 19)

static struct sys s;

static const struct sys_opts three = {
	.daemon = "pool_bytes = 6M\nlow = 80\nhigh = 90\n",
	.blue = "[namespace green]\nuid = 64104\nreadable_by = blue\n",
};

/* --- secrets: the same in every process that asks, and in no other --- */

static void secret(uint8_t out[MARK_BYTES], unsigned int which)
{
	uint64_t x;
	unsigned int i;

	for (i = 0; i < MARK_BYTES; i += 8) {
		x = synth_mix(0x5ec2e7ull * 1000003 + which * 64 + i);
		memcpy(out + i, &x, 8);
	}
}

/* The arena full of it: whatever cqd copies from there holds it. */
static void fill_arena(struct wire_shard *w, unsigned int which)
{
	uint8_t mark[MARK_BYTES];
	uint64_t at;

	secret(mark, which);
	for (at = 0; at + MARK_BYTES <= w->bytes; at += MARK_BYTES)
		memcpy((uint8_t *)w->base + at, mark, MARK_BYTES);
}

/* --- publishers, by hand --- */

struct publisher {
	int sock;
	struct wire_shard w;
};

static int release(int sock, const struct cqp_page *page)
{
	Cqp__Release body = CQP__RELEASE__INIT;
	DECLARE_MSG(msg, RELEASE, release, body);
	struct cqp_page copy = *page;

	body.pages = (ProtobufCBinaryData){ sizeof(copy), (uint8_t *)&copy };
	return wire_code(wire_call(sock, &msg, NULL, 0, NULL));
}

static void publisher_open(struct publisher *p)
{
	memset(p, 0, sizeof(*p));
	p->sock = wire_open(s.sock);
	ASSERT_OK(p->sock);
	ASSERT_OK(wire_model_open(p->sock, "tiny", &p->w));
	ASSERT_OK(wire_arena(p->sock, &p->w, 1 << 20));
}

/* A chain of @n pages on @text, not pinned. Keys go to @keys, if not NULL. */
static void publish(struct publisher *p, uint32_t text, unsigned int n,
		    struct cqp_key *keys)
{
	struct cqp_key parent = p->w.root, key;
	uint32_t ids[CQ_PAGE_TOKENS];
	struct cqp_page page;
	unsigned int i;

	for (i = 0; i < n; i++) {
		synth_ids(ids, CQ_PAGE_TOKENS, text + i);
		ASSERT_OK(wire_seal(p->sock, &p->w, parent, ids, 0, i ? UINT64_MAX : SINK_AT,
				    &key, &page));
		ASSERT_OK(release(p->sock, &page));
		if (keys)
			keys[i] = key;
		parent = key;
	}
}

/* --- keeping all that one is given --- */

struct kept {
	int fd;
	size_t bytes;
	void *map;
};

static struct kept kept[MAX_KEPT];
static unsigned int n_kept;

static void keep_fd(int fd)
{
	struct kept *k = &kept[n_kept];
	struct stat st;

	ASSERT_LT(n_kept, MAX_KEPT);
	ASSERT_SYS(fstat(fd, &st));
	*k = (struct kept){ .fd = fd, .bytes = (size_t)st.st_size };
	k->map = mmap(NULL, k->bytes, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT(k->map != MAP_FAILED);
	n_kept++;
}

static void keep_all(struct cqp_frame *f)
{
	unsigned int i;

	for (i = 0; i < f->n_fds; i++)
		keep_fd(f->fds[i]);
	f->n_fds = 0;
}

static void keep_model(int sock)
{
	static struct cqp_frame f;
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	char name[] = "tiny";
	Cqp__Msg *r;

	body.name = name;
	r = wire_call(sock, &msg, NULL, 0, &f);
	ASSERT(r && r->body_case == CQP__MSG__BODY_MODEL_OK);
	ASSERT_EQ(f.n_fds, 2);
	cqp_free(r);
	keep_all(&f);
}

/* Number of descriptors that came with the segment, 0 if it is refused. */
static unsigned int keep_segment(int sock, uint32_t segment)
{
	static struct cqp_frame f;
	Cqp__SegmentGet body = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(msg, SEGMENT_GET, segment_get, body);
	unsigned int n;
	Cqp__Msg *r;

	body.segment = segment;
	r = wire_call(sock, &msg, NULL, 0, &f);
	ASSERT(r);
	n = f.n_fds;
	ASSERT_EQ(n != 0, r->body_case == CQP__MSG__BODY_SEGMENT_OK);
	cqp_free(r);
	keep_all(&f);
	return n;
}

/* Keys of a chain on @text, and what a lookup finds of it. Free with cqp_free(). */
static Cqp__Msg *look_chain(int sock, const struct wire_shard *w, uint32_t text)
{
	Cqp__Lookup body = CQP__LOOKUP__INIT;
	DECLARE_MSG(msg, LOOKUP, lookup, body);
	struct cqp_key keys[PAGES], parent = w->root;
	uint32_t ids[CQ_PAGE_TOKENS];
	struct cqp_page page;
	unsigned int i;
	Cqp__Msg *r;

	for (i = 0; i < PAGES; i++) {
		synth_ids(ids, CQ_PAGE_TOKENS, text + i);
		ASSERT_EQ(cqp_key_page(&keys[i], &parent, ids, NULL, 0), 0);
		parent = keys[i];
	}
	body.shard = w->shard;
	body.keys = (ProtobufCBinaryData){ sizeof(keys), keys[0].b };
	r = wire_call(sock, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_LOOKUP_OK);
	if (r->lookup_ok->matched) {
		memcpy(&page, r->lookup_ok->pages.data +
		       (r->lookup_ok->matched - 1) * sizeof(page), sizeof(page));
		ASSERT_OK(release(sock, &page));
	}
	return r;
}

/* How many pages of the chain are found; their segments are kept. */
static unsigned int keep_chain(int sock, const struct wire_shard *w, uint32_t text)
{
	Cqp__Msg *r = look_chain(sock, w, text);
	unsigned int i, n = r->lookup_ok->matched;
	struct cqp_page page;

	for (i = 0; i < n; i++) {
		memcpy(&page, r->lookup_ok->pages.data + i * sizeof(page), sizeof(page));
		ASSERT_GT(keep_segment(sock, page.segment), 0);
	}
	if (r->lookup_ok->has_sink) {
		memcpy(&page, r->lookup_ok->sink.data, sizeof(page));
		ASSERT_GT(keep_segment(sock, page.segment), 0);
	}
	cqp_free(r);
	return n;
}

/* The same, nothing kept: what is found may be withdrawn at any moment. */
static unsigned int see_chain(int sock, const struct wire_shard *w, uint32_t text)
{
	Cqp__Msg *r = look_chain(sock, w, text);
	unsigned int n = r->lookup_ok->matched;

	cqp_free(r);
	return n;
}

static void forget_all(void)
{
	unsigned int i;

	for (i = 0; i < n_kept; i++) {
		munmap(kept[i].map, kept[i].bytes);
		close(kept[i].fd);
	}
}

/* --- red and green --- */

static void send_keys(int fd, const struct cqp_key *keys, unsigned int n)
{
	ASSERT_EQ(write(fd, keys, n * sizeof(*keys)), (ssize_t)(n * sizeof(*keys)));
}

/* Publishes secret @arg, tells the keys, and then does what it is told. */
static void keeper(int fd, void *arg)
{
	unsigned int which = *(unsigned int *)arg, round = 0, i;
	uint32_t text = which == 1 ? RED_TEXT : TEXT;
	struct cqp_key keys[PAGES];
	struct publisher p;
	char c;

	publisher_open(&p);
	fill_arena(&p.w, which);
	publish(&p, text, PAGES, keys);
	ASSERT_EQ(keep_chain(p.sock, &p.w, text), PAGES);
	send_keys(fd, keys, PAGES);
	while (read(fd, &c, 1) == 1 && c != 'q') {
		if (c == 'r') {			/* cqd was restarted */
			close(p.sock);
			wire_arena_close(&p.w);
			publisher_open(&p);
			fill_arena(&p.w, which);
			publish(&p, 500000, PAGES, NULL);
		}
		for (i = 0; c == 'f' && i < FLOOD; i++)
			publish(&p, 2000 + FLOOD * round + i, 1, NULL);
		if (c == 's') {			/* another secret */
			which += 2;
			fill_arena(&p.w, which);
			publish(&p, 9000 + which * PAGES, PAGES, NULL);
		}
		round++;
		sys_say(fd, 'd');
	}
	forget_all();
	wire_arena_close(&p.w);
	close(p.sock);
}

/* --- blue --- */

/* Whatever is asked for one's own writing of what is only to be read. */
static void write_through(const struct kept *k)
{
	char path[64];
	int fd = k->fd;
	char c = 'x';
	void *p;

	p = mmap(NULL, k->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT(p == MAP_FAILED && (errno == EACCES || errno == EPERM));
	ASSERT(mprotect(k->map, k->bytes, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ASSERT(open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
	ASSERT(open(path, O_WRONLY | O_CLOEXEC) < 0 && errno == EACCES);
	ASSERT(open(path, O_RDONLY | O_TRUNC | O_CLOEXEC) < 0 && errno == EACCES);
	ASSERT(fchmod(fd, 0666) < 0 && errno == EPERM);
	ASSERT(chmod(path, 0666) < 0 && errno == EPERM);
	ASSERT(truncate(path, 0) < 0 && errno == EACCES);
	ASSERT(ftruncate(fd, 0) < 0);
	ASSERT(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0);
	ASSERT(write(fd, &c, 1) < 0 && pwrite(fd, &c, 1, 0) < 0);
	ASSERT(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0);
	ASSERT(madvise(k->map, 4096, MADV_REMOVE) < 0);
}

/* The kernel's own doors to memory that may not be written. */
static void write_around(const struct kept *k)
{
	char x[8] = "xxxxxxx";
	struct iovec here = { x, sizeof(x) }, there = { k->map, sizeof(x) };
	int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC), in[2];
	off_t off = 0;

	ASSERT_SYS(mem);
	ASSERT(pwrite(mem, "xxxxxxxx", 8, (off_t)(uintptr_t)k->map) < 0);
	ASSERT(process_vm_writev(getpid(), &here, 1, &there, 1, 0) < 0);
	close(mem);
	ASSERT_SYS(pipe2(in, O_CLOEXEC));
	ASSERT_EQ(write(in[1], "xxxxxxxx", 8), 8);
	ASSERT(splice(in[0], NULL, k->fd, &off, 8, 0) < 0);
	ASSERT(read(in[0], k->map, 8) < 0 && errno == EFAULT);
	close(in[0]);
	close(in[1]);
}

static void try_to_write(void)
{
	unsigned int i;

	for (i = 0; i < n_kept; i++) {
		write_through(&kept[i]);
		write_around(&kept[i]);
	}
}

/* Everything that a session of blue can get hold of. */
static void collect(struct publisher *p, uint32_t text)
{
	uint32_t i;

	publisher_open(p);
	keep_model(p->sock);
	ASSERT_EQ(keep_chain(p->sock, &p->w, RED_TEXT), 0);
	publish(p, text, PAGES, NULL);
	ASSERT_EQ(keep_chain(p->sock, &p->w, text), PAGES);
	for (i = 0; i < 64; i++)
		ASSERT_EQ(keep_segment(p->sock, i), 0);
}

static void blue(int fd, void *arg)
{
	static struct publisher p[4];
	unsigned int n = 0, i;
	char c;

	collect(&p[n++], 200);
	/* green's pages, by keys of its own making, segments and words */
	ASSERT_EQ(keep_chain(p[0].sock, &p[0].w, TEXT), PAGES);
	sys_say(fd, 'd');
	while (read(fd, &c, 1) == 1 && c != 'q') {
		if (c == 'm') {
			collect(&p[n], 300 + 100 * n);
			n++;
		}
		if (c == 'w')
			try_to_write();
		while (c == 'n' && see_chain(p[0].sock, &p[0].w, TEXT))
			usleep(1000);		/* until the reload is through */
		sys_say(fd, 'd');
	}
	for (i = 0; i < n; i++) {
		wire_arena_close(&p[i].w);
		close(p[i].sock);
	}
	forget_all();
}

/* --- the search --- */

static void told(struct sys_peer *p, char c)
{
	sys_say(p->fd, c);
	sys_hear_ms(p->fd, 'd', 30000);
}

/* As much of each as a page's header has. */
static void take_keys(struct sys_peer *p)
{
	struct cqp_key keys[PAGES];
	unsigned int i;

	ASSERT_EQ(recv(p->fd, keys, sizeof(keys), MSG_WAITALL), sizeof(keys));
	for (i = 0; i < PAGES; i++)
		add_mark(keys[i].b, sizeof(((struct cq_page_hdr *)NULL)->key));
}

static void take_secret(unsigned int which)
{
	uint8_t mark[MARK_BYTES];

	secret(mark, which);
	add_mark(mark, sizeof(mark));
}

/* Every memory and file of a process: how many hits, in segments too. */
static size_t hits(pid_t pid, const char *when)
{
	size_t bytes;

	n_found = 0;
	n_found_seg = 0;
	bytes = each_byte(pid, search);
	bytes += each_file(pid, search);
	ASSERT_GT(bytes, 2 << 20);
	printf("# %s: %zu MiB searched, %zu hits, %zu of them in segments\n", when,
	       bytes >> 20, n_found, n_found_seg);
	return n_found;
}

static uint64_t evictions(void)
{
	Cqp__StatusOk st;

	sys_status(&s, &st);
	return st.evictions;
}

static uint64_t damaged(void)
{
	Cqp__Verify body = CQP__VERIFY__INIT;
	DECLARE_MSG(msg, VERIFY, verify, body);
	int fd = wire_open(s.admin);
	Cqp__Msg *r;
	uint64_t n;

	ASSERT_OK(fd);
	r = wire_call(fd, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_VERIFY_OK);
	ASSERT_GT(r->verify_ok->checked, 0);
	n = r->verify_ok->failed;
	cqp_free(r);
	close(fd);
	return n;
}

static struct sys_peer a, b, g;

static void readers_start(void)
{
	static unsigned int green_is = 2;

	sys_spawn(&g, SYS_UID_D, keeper, &green_is);
	n_marks = 0;
	take_keys(&g);
	sys_spawn(&b, SYS_UID_C, blue, NULL);	/* knows no secret, and no key of red's */
	sys_hear(b.fd, 'd');
}

static void readers_stop(void)
{
	sys_say(b.fd, 'q');
	sys_say(g.fd, 'q');
	sys_join(&b);
	sys_join(&g);
	sys_stop(&s);
}

TEST_LIMIT(nothing_of_red_ever_and_no_write, 120)
{
	static unsigned int red_is = 1;
	uint64_t before;

	if (!sys_root())
		SKIP("not root: namespaces are told apart by uid");
	/* Its stacks outlive functions and forks: the secret is in every child. */
	if (getenv("SANITIZE") && getenv("SANITIZE")[0])
		SKIP("a sanitizer's own memory holds what is searched for");
	sys_start(&s, &three);
	readers_start();
	sys_spawn(&a, SYS_UID_A, keeper, &red_is);
	/* the search finds what is there: what green lets blue read */
	ASSERT_GT(hits(b.pid, "green's, which blue may read"), PAGES);
	ASSERT_GE(n_found_seg, 2 * PAGES);	/* as memory and as file */
	n_marks = 0;
	take_secret(2);
	ASSERT_GT(hits(b.pid, "the same, its bytes"), 0);
	ASSERT_GE(n_found_seg, 4);		/* codes and sinks */
	n_marks = 0;
	take_keys(&a);
	take_secret(1);
	ASSERT_GT(hits(a.pid, "red's, where it is"), PAGES);
	ASSERT_GE(n_found_seg, 2 * PAGES + 4);
	ASSERT_EQ(hits(b.pid, "live"), 0);
	ASSERT_EQ(hits(g.pid, "green's worker"), 0);
	told(&b, 'w');
	before = evictions();
	told(&a, 'f');
	ASSERT_GT(evictions(), before);
	ASSERT_EQ(hits(b.pid, "after eviction"), 0);
	told(&b, 'm');
	told(&a, 'f');
	told(&b, 'm');
	ASSERT_EQ(hits(b.pid, "after reuse"), 0);
	sys_restart(&s);
	told(&a, 'r');
	told(&b, 'm');
	told(&a, 'f');
	ASSERT_EQ(hits(b.pid, "after a restart"), 0);
	told(&b, 'w');
	ASSERT_EQ(damaged(), 0);
	sys_say(a.fd, 'q');
	sys_join(&a);
	readers_stop();
}

/* Withdrawn by a reload: what blue has mapped gets nothing new to read. */
TEST_LIMIT(nothing_new_for_a_former_reader, 60)
{
	struct sys_opts none = three;

	if (!sys_root())
		SKIP("not root: namespaces are told apart by uid");
	sys_start(&s, &three);
	readers_start();
	told(&g, 's');
	n_marks = 0;
	take_secret(4);
	ASSERT_GT(hits(b.pid, "sealed later, while blue may read"), 0);
	none.blue = "[namespace green]\nuid = 64104\n";
	sys_write_conf(&s, &none);
	ASSERT_SYS(kill(s.cqd, SIGHUP));
	told(&b, 'n');
	told(&g, 's');
	n_marks = 0;
	take_secret(6);
	ASSERT_EQ(hits(b.pid, "after the reload"), 0);
	sys_restart(&s);
	told(&g, 'r');
	told(&g, 's');
	n_marks = 0;
	take_secret(8);
	ASSERT_EQ(hits(b.pid, "after a restart"), 0);
	readers_stop();
}
