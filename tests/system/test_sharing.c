/* SPDX-License-Identifier: MIT */
/*
 * One copy for all, and nobody but cqd can write it: two workers of two uids
 * map the same physical pages, and every way to a writable byte is closed.
 */
#include <sys/file.h>
#include "tests/system/work.h"

#define TEXT	7
#define TOKENS	1025	/* 16 pages */

static struct sys s;
static const struct synth small = SYNTH_SMALL;

/**
 * struct region - mapping of a file
 * @ino:  of the file
 * @write: mapped writable
 */
struct region {
	unsigned long start, end, offset, ino;
	char perms[8], name[128];
};

static bool next_region(FILE *f, struct region *r)
{
	char line[512];
	int got;

	if (!fgets(line, sizeof(line), f))
		return false;
	r->name[0] = 0;
	got = sscanf(line, "%lx-%lx %7s %lx %*s %lu %127[^\n]", &r->start, &r->end,
		     r->perms, &r->offset, &r->ino, r->name);
	ASSERT_GE(got, 5);
	return true;
}

static FILE *open_maps(pid_t pid)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	ASSERT(f);
	return f;
}

/* Physical page of @addr, 0 if it is not there or not to be told. */
static uint64_t frame_of(int pagemap, unsigned long addr)
{
	uint64_t e = 0;
	off_t at = (off_t)(addr / 4096 * sizeof(e));

	ASSERT_EQ(pread(pagemap, &e, sizeof(e), at), sizeof(e));
	return e >> 63 ? e & ((1ull << 55) - 1) : 0;
}

/*
 * For each page of memory of segments: (inode, page in the file) -> physical page.
 * @seen collects them; returns how many agree with what is there already.
 */
struct frames {
	unsigned long ino[8192], page[8192];
	uint64_t frame[8192];
	size_t n;
};

static bool is_segment(const struct region *r)
{
	return strstr(r->name, "/memfd:") && !strchr(r->perms, 'w');
}

static size_t collect(struct frames *all, pid_t pid, bool compare)
{
	char path[64];
	FILE *f = open_maps(pid);
	struct region r;
	size_t same = 0, i;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT_SYS(fd);
	while (next_region(f, &r)) {
		if (!is_segment(&r))
			continue;
		for (; r.start < r.end; r.start += 4096, r.offset += 4096) {
			uint64_t frame = frame_of(fd, r.start);

			for (i = 0; i < all->n; i++)
				if (all->ino[i] == r.ino && all->page[i] == r.offset)
					break;
			if (compare && frame && i < all->n) {
				ASSERT_EQ(all->frame[i], frame);
				same++;
			}
			if (compare || !frame)
				continue;
			ASSERT_LT(all->n, ARRAY_SIZE(all->frame));
			all->ino[all->n] = r.ino;
			all->page[all->n] = r.offset;
			all->frame[all->n++] = frame;
		}
	}
	close(fd);
	fclose(f);
	return same;
}

/* Touch every byte of the sequence, so that it is mapped. */
static void read_all(struct work *w, struct cq_seq *seq)
{
	size_t n = cq_seq_length(seq) / CQ_PAGE_TOKENS, i;
	struct cq_view k = synth_view(&w->m, w->k, w->m.kv_heads);
	struct cq_view v = synth_view(&w->m, w->v, w->m.kv_heads);
	uint32_t l;

	for (l = 0; l < w->m.layers; l++)
		for (i = 0; i < n; i++)
			WORK_OK(cq_read(seq, l, i * CQ_PAGE_TOKENS, CQ_PAGE_TOKENS, &k, &v));
}

/* The publisher reads its pages as others do: through an attached sequence. */
static void publisher(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	work_publish(&w, TEXT, TOKENS);
	seq = work_seq(&w, TEXT, TOKENS);
	ASSERT_EQ(cq_seq_length(seq), TOKENS - 1);
	read_all(&w, seq);
	sys_say(fd, 'p');
	sys_hear(fd, 'q');
	cq_seq_close(seq);
	work_close(&w);
}

static void reader(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	seq = work_seq(&w, TEXT, TOKENS);
	ASSERT_EQ(cq_seq_length(seq), TOKENS - 1);
	read_all(&w, seq);
	sys_say(fd, 'r');
	sys_hear(fd, 'q');
	cq_seq_close(seq);
	work_close(&w);
}

TEST(same_physical_pages)
{
	static struct frames all;
	uint64_t slots = (TOKENS - 1) / CQ_PAGE_TOKENS;
	struct sys_peer a, b;
	size_t same;

	if (!sys_root())
		SKIP("not root: /proc/pid/pagemap shows no page frames");
	sys_start(&s, NULL);
	sys_spawn(&a, SYS_UID_A, publisher, NULL);
	sys_hear(a.fd, 'p');
	sys_spawn(&b, SYS_UID_B, reader, NULL);
	sys_hear(b.fd, 'r');
	collect(&all, a.pid, false);
	if (!all.n)
		SKIP("/proc/pid/pagemap shows no page frames here");
	same = collect(&all, b.pid, true);
	/* a slot of this model is three 4 KiB pages, of which two hold codes */
	ASSERT_GE(same, slots * 2);
	sys_say(a.fd, 'q');
	sys_say(b.fd, 'q');
	sys_join(&a);
	sys_join(&b);
	sys_stop(&s);
}

/* --- writing --- */

/* Every door of descriptor @fd, which is not ours. */
static void cannot_write_fd(int fd, uint64_t size)
{
	char path[64], byte = 0;
	int again;

	ASSERT(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	ASSERT_EQ(pwrite(fd, &byte, 1, 0), -1);
	ASSERT_NE(ftruncate(fd, (off_t)size / 2), 0);
	ASSERT_NE(ftruncate(fd, (off_t)size * 2), 0);
	ASSERT_NE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
	ASSERT_NE(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	ASSERT_NE(fchmod(fd, 0666), 0);
	ASSERT_NE(fchown(fd, getuid(), getgid()), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT_SYS(again);	/* the path works: what follows fails for the right reason */
	close(again);
	ASSERT_EQ(open(path, O_RDWR | O_CLOEXEC), -1);
	ASSERT_EQ(errno, EACCES);
	ASSERT_EQ(open(path, O_WRONLY | O_CLOEXEC), -1);
	ASSERT_EQ(open(path, O_RDWR | O_TRUNC | O_CLOEXEC), -1);
	ASSERT_NE(chmod(path, 0666), 0);
	ASSERT_NE(truncate(path, 0), 0);
	ASSERT_EQ(open(path, O_RDWR | O_CLOEXEC), -1);
}

/* A descriptor of cqd's: read-only memory of cqd's uid, all doors shut. */
static void try_descriptor(int fd)
{
	struct stat st;
	void *p;

	ASSERT_SYS(fd);
	ASSERT_SYS(fstat(fd, &st));
	ASSERT_EQ(st.st_uid, SYS_CQD_UID);
	ASSERT_EQ(st.st_mode & 0777, 0444);
	cannot_write_fd(fd, (uint64_t)st.st_size);
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT(p != MAP_FAILED);
	ASSERT_NE(mprotect(p, (size_t)st.st_size, PROT_READ | PROT_WRITE), 0);
	munmap(p, (size_t)st.st_size);
}

static void try_segment(int sock, uint32_t id)
{
	static struct cqp_frame f;
	Cqp__SegmentGet get = CQP__SEGMENT_GET__INIT;
	DECLARE_MSG(msg, SEGMENT_GET, segment_get, get);
	Cqp__Msg *r;

	get.segment = id;
	r = wire_call(sock, &msg, NULL, 0, &f);
	ASSERT(r && r->body_case == CQP__MSG__BODY_SEGMENT_OK && f.n_fds == 1);
	cqp_free(r);
	try_descriptor(f.fds[0]);
	cqp_frame_close(&f);
}

/* The segments of the page under @key and of its sink object. */
static void try_segments(int sock, uint32_t shard, struct cqp_key key)
{
	Cqp__Lookup body = CQP__LOOKUP__INIT;
	DECLARE_MSG(msg, LOOKUP, lookup, body);
	struct cqp_page page, sink;
	Cqp__Msg *r;

	body.shard = shard;
	body.keys = (ProtobufCBinaryData){ sizeof(key.b), key.b };
	r = wire_call(sock, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_LOOKUP_OK);
	ASSERT_EQ(r->lookup_ok->matched, 1);
	ASSERT_EQ(r->lookup_ok->sink.len, sizeof(sink));
	memcpy(&page, r->lookup_ok->pages.data, sizeof(page));
	memcpy(&sink, r->lookup_ok->sink.data, sizeof(sink));
	cqp_free(r);
	try_segment(sock, page.segment);
	try_segment(sock, sink.segment);
}

/*
 * Every descriptor that cqd gives out, taken by hand, since libcq maps and
 * closes them: model file, state words, segment of codes, segment of sinks.
 */
static void try_descriptors(void)
{
	static struct cqp_frame f;
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	struct wire_shard w = { 0 };
	uint32_t ids[CQ_PAGE_TOKENS];
	struct cqp_page page;
	struct cqp_key key;
	char name[] = "tiny";
	int sock = wire_open(s.sock);
	Cqp__Msg *r;

	ASSERT_OK(sock);
	ASSERT_OK(wire_model_open(sock, "tiny", &w));
	ASSERT_OK(wire_arena(sock, &w, 1 << 20));
	synth_ids(ids, CQ_PAGE_TOKENS, 77);
	ASSERT_OK(wire_seal(sock, &w, w.root, ids, 0, 1 << 19, &key, &page));
	body.name = name;
	r = wire_call(sock, &msg, NULL, 0, &f);
	ASSERT(r && f.n_fds == 2);
	cqp_free(r);
	try_descriptor(f.fds[0]);
	try_descriptor(f.fds[1]);
	cqp_frame_close(&f);
	try_segments(sock, w.shard, key);
	wire_arena_close(&w);
	close(sock);
}

/* Mappings: not writable, and not to be made so; map_files neither. */
static int try_mappings(void)
{
	FILE *f = open_maps(getpid());
	struct region r;
	char path[96];
	struct stat st;
	void *p;
	int tried = 0;

	while (next_region(f, &r)) {
		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", r.start, r.end);
		if (!strstr(r.name, "/memfd:"))
			continue;
		if (strchr(r.perms, 'w')) {
			/* only what is our own, if it can be told */
			if (stat(path, &st) == 0)
				ASSERT_EQ(st.st_uid, getuid());
			continue;
		}
		memcpy(&p, &r.start, sizeof(p));
		ASSERT_NE(mprotect(p, r.end - r.start, PROT_READ | PROT_WRITE), 0);
		ASSERT_EQ(errno, EACCES);
		ASSERT_EQ(open(path, O_RDWR | O_CLOEXEC), -1);
		tried++;
	}
	fclose(f);
	return tried;
}

static void attacker(int fd, void *arg)
{
	bool publishes = arg != NULL;
	struct cq_seq *seq;
	struct work w;
	char path[64];

	work_open(&w, &s, &small, 0, 0);
	if (publishes)
		work_publish(&w, TEXT, TOKENS);
	seq = work_seq(&w, TEXT, TOKENS);
	ASSERT_EQ(cq_seq_length(seq), TOKENS - 1);
	read_all(&w, seq);
	/* segments of codes, of sinks, and the state words */
	ASSERT_GE(try_mappings(), 3);
	try_descriptors();
	snprintf(path, sizeof(path), "/proc/%d/fd/3", (int)s.cqd);
	ASSERT_EQ(open(path, O_RDWR | O_CLOEXEC), -1);
	ASSERT_NE(kill(s.cqd, 0), 0);
	cq_seq_close(seq);
	work_close(&w);
	sys_say(fd, 'd');
	sys_hear(fd, 'q');
}

TEST(no_way_to_write)
{
	static const char yes[] = "";
	struct sys_peer a, b;
	char *arg;

	if (!sys_root())
		SKIP("not root: cqd and workers share one uid");
	memcpy(&arg, &(const char *){ yes }, sizeof(arg));
	sys_start(&s, NULL);
	sys_spawn(&a, SYS_UID_A, attacker, arg);
	sys_hear(a.fd, 'd');
	sys_spawn(&b, SYS_UID_B, attacker, NULL);
	sys_hear(b.fd, 'd');
	sys_say(a.fd, 'q');
	sys_say(b.fd, 'q');
	sys_join(&a);
	sys_join(&b);
	sys_stop(&s);
}
