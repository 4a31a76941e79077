/* SPDX-License-Identifier: MIT */
/*
 * Bad days of a worker: no daemon, a full pool, a quota, a page found damaged.
 * Each gets an error that says what and where, and loses nothing.
 */
#include "tests/system/work.h"

#define TEXT	71

static struct sys s;
static const struct synth small = SYNTH_SMALL;

static int open_at(const char *path, struct cq_ctx **ctx)
{
	struct cq_open_opts o = { .sz = sizeof(o), .socket = path };

	return cq_open(&o, ctx);
}

TEST(daemon_absent)
{
	struct cq_ctx *ctx = NULL;
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "%s/none.sock", test_dir());
	ASSERT_EQ(open_at(path, &ctx), -ENOENT);
	ASSERT_STRHAS(cq_last_error(), path);
	/* a socket that nobody listens on any more */
	memcpy(a.sun_path, path, MIN(strlen(path), sizeof(a.sun_path) - 1));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ASSERT_SYS(bind(fd, (struct sockaddr *)&a, sizeof(a)));
	close(fd);
	ASSERT_EQ(open_at(path, &ctx), -ECONNREFUSED);
	ASSERT_STRHAS(cq_last_error(), path);
	/* one that accepts and never answers */
	unlink(path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ASSERT_SYS(bind(fd, (struct sockaddr *)&a, sizeof(a)));
	ASSERT_SYS(listen(fd, 4));
	{
		struct cq_open_opts o = { .sz = sizeof(o), .socket = path,
					  .timeout_ms = 200 };

		ASSERT_EQ(cq_open(&o, &ctx), -ETIMEDOUT);
		ASSERT_STRHAS(cq_last_error(), path);
	}
	close(fd);
	ASSERT(!ctx);
	/* the environment names it too */
	setenv("CQ_SOCKET", "/nowhere/at/all.sock", 1);
	ASSERT_EQ(open_at(NULL, &ctx), -ENOENT);
	ASSERT_STRHAS(cq_last_error(), "/nowhere/at/all.sock");
}

/* Refused before it could say a word, or after: it hears why. */
TEST(a_connection_too_many)
{
	static const struct sys_opts one = { .daemon = "max_connections = 1\n" };
	struct cq_ctx *first = NULL, *ctx = NULL;
	int i;

	sys_start(&s, &one);
	WORK_OK(open_at(s.sock, &first));
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(open_at(s.sock, &ctx), -EUSERS);
		ASSERT_STRHAS(cq_last_error(), "max_connections");
	}
	cq_close(first);
	sys_stop(&s);
}

TEST(no_such_model_and_unknown_options)
{
	struct cq_model_opts mo = { .sz = sizeof(mo), .device = CQ_DEVICE_HOST };
	struct cq_open_opts oo = { .sz = sizeof(oo) };
	struct cq_model *model = NULL;
	struct cq_ctx *ctx = NULL;
	struct {
		struct cq_open_opts o;
		uint64_t tail;
	} newer = { .o = { .sz = sizeof(newer) }, .tail = 1 };

	sys_start(&s, NULL);
	oo.socket = s.sock;
	oo.flags = 1u << 31;
	ASSERT_EQ(cq_open(&oo, &ctx), -EINVAL);
	newer.o.socket = s.sock;
	ASSERT_EQ(cq_open(&newer.o, &ctx), -E2BIG);
	newer.tail = 0;
	WORK_OK(cq_open(&newer.o, &ctx));
	ASSERT_EQ(cq_model_open(ctx, "nothing", &mo, &model), -ENOENT);
	ASSERT_STRHAS(cq_last_error(), "nothing");
	mo.layer_begin = 1;
	mo.layer_end = 9;
	ASSERT_EQ(cq_model_open(ctx, "tiny", &mo, &model), -EINVAL);
	cq_close(ctx);
	oo.flags = 0;
	oo.tenant = "blue";
	ASSERT_EQ(cq_open(&oo, &ctx), -EACCES);
	ASSERT_STRHAS(cq_last_error(), "blue");
	sys_stop(&s);
}

/* Fill the pool with pinned pages; what does not fit stays private and usable. */
static void fill(struct work *w, int want)
{
	float *before = malloc(work_row(w)), *after = malloc(work_row(w));
	struct cq_seq *seq[80];
	int n = 0, ret = 0;

	ASSERT(before && after);
	while (!ret && n < 80) {
		seq[n] = work_seq(w, TEXT + (uint32_t)n, 0);
		work_feed(w, seq[n], TEXT + (uint32_t)n, 64 * 8);
		ret = cq_seal(seq[n], 5000);
		n++;
	}
	ASSERT_EQ(ret, want);
	ASSERT(cq_last_error()[0]);
	printf("# %d sequences, then: %s\n", n, cq_last_error());
	/* the sequence that found no room goes on */
	n--;
	WORK_OK(work_attend(w, seq[n], TEXT + (uint32_t)n, before));
	work_feed(w, seq[n], TEXT + (uint32_t)n, 64 * 8 + 3);
	WORK_OK(cq_truncate(seq[n], 64 * 8));
	WORK_OK(work_attend(w, seq[n], TEXT + (uint32_t)n, after));
	ASSERT_MEMEQ(after, before, work_row(w));
	/* room comes back with what others let go */
	while (n-- > 0)
		cq_seq_close(seq[n]);
	work_publish(w, TEXT + 900, 64 * 8);
	ASSERT_EQ(work_matched(w, TEXT + 900, 64 * 8 + 1), 64 * 8);
	free(before);
	free(after);
}

TEST(pool_full)
{
	static const struct sys_opts o = { .daemon = "pool_bytes = 4M\n",
					   .red = "quota_bytes = 64M" };
	struct work w;

	sys_start(&s, &o);
	work_open(&w, &s, &small, 0, 0);
	fill(&w, -ENOSPC);
	work_close(&w);
	sys_stop(&s);
}

TEST(quota)
{
	static const struct sys_opts o = { .red = "quota_bytes = 18M" };
	struct work w;

	sys_start(&s, &o);
	work_open(&w, &s, &small, 0, 256);	/* 16 MiB */
	fill(&w, -EDQUOT);
	work_close(&w);
	sys_stop(&s);
}

/* --- a damaged page --- */

/* As root, behind cqd's back: flip a bit in the first page of codes. */
static void damage(void)
{
	char path[64], name[256];
	struct cq_page_hdr h;
	struct stat st;
	uint8_t b;
	ssize_t n;
	off_t at;
	int fd, i;

	for (i = 3; i < 256; i++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)s.cqd, i);
		n = readlink(path, name, sizeof(name) - 1);
		name[MAX(n, 0)] = 0;
		if (n <= 0 || !strstr(name, "/memfd:cq-seg") || stat(path, &st))
			continue;
		fd = open(path, O_RDWR | O_CLOEXEC);
		ASSERT_SYS(fd);
		for (at = 0; at < st.st_size; at += CQ_SLOT_ALIGN) {
			ASSERT_EQ(pread(fd, &h, sizeof(h), at), sizeof(h));
			if (h.magic != CQ_PAGE_MAGIC || h.kind != CQ_PAGE_CODES)
				continue;
			at += sizeof(h) + 1000;
			ASSERT_EQ(pread(fd, &b, 1, at), 1);
			b ^= 4;
			ASSERT_EQ(pwrite(fd, &b, 1, at), 1);
			close(fd);
			return;
		}
		close(fd);
	}
	FAIL("no page found in cqd's segments");
}

static void verify(uint64_t failed)
{
	Cqp__Verify body = CQP__VERIFY__INIT;
	DECLARE_MSG(msg, VERIFY, verify, body);
	int fd = wire_open(s.admin);
	Cqp__Msg *r;

	ASSERT_OK(fd);
	r = wire_call(fd, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_VERIFY_OK);
	ASSERT_EQ(r->verify_ok->failed, failed);
	cqp_free(r);
	close(fd);
}

TEST(a_damaged_page_is_never_used_unnoticed)
{
	struct cq_seq *seq;
	struct work w;
	float *o;

	if (!sys_root())
		SKIP("not root: nobody but cqd can damage a page");
	sys_start(&s, NULL);
	work_open(&w, &s, &small, 0, 0);
	o = malloc(work_row(&w));
	ASSERT(o);
	work_publish(&w, TEXT, 64 * 8);
	seq = work_seq(&w, TEXT, 64 * 8 + 1);
	ASSERT_EQ(cq_seq_length(seq), 64 * 8);
	WORK_OK(work_attend(&w, seq, TEXT, o));
	verify(0);
	damage();
	verify(1);
	/* it and all behind it are gone, and whoever has it open is told */
	ASSERT_EQ(work_attend(&w, seq, TEXT, w.o), -ESTALE);
	ASSERT_EQ(cq_read(seq, 0, 0, 64, &(struct cq_view){ w.k, CQ_F16, 0, 128, 64 }, NULL),
		  -ESTALE);
	cq_seq_close(seq);
	ASSERT_LT(work_matched(&w, TEXT, 64 * 8 + 1), 64 * 8);
	work_publish(&w, TEXT, 64 * 8);
	seq = work_seq(&w, TEXT, 64 * 8 + 1);
	ASSERT_EQ(cq_seq_length(seq), 64 * 8);
	WORK_OK(work_attend(&w, seq, TEXT, w.o));
	ASSERT_MEMEQ(w.o, o, work_row(&w));
	cq_seq_close(seq);
	free(o);
	work_close(&w);
	sys_stop(&s);
}

static void child_calls(struct work *w, struct cq_seq *seq)
{
	struct cq_seq *other = NULL;
	struct cq_ctx *ctx = NULL;

	ASSERT_EQ(work_attend(w, seq, TEXT, w->o), -EOWNERDEAD);
	ASSERT_EQ(work_chunk(w, seq, TEXT, 1), -EOWNERDEAD);
	ASSERT_EQ(cq_seq_open(w->model, NULL, 0, NULL, &other), -EOWNERDEAD);
	ASSERT_EQ(cq_seal(seq, 0), -EOWNERDEAD);
	/* and it may open anew */
	WORK_OK(open_at(s.sock, &ctx));
	cq_close(ctx);
}

TEST(a_forked_child_owns_nothing)
{
	struct cq_seq *seq;
	struct work w;
	int status;
	pid_t pid;

	sys_start(&s, NULL);
	work_open(&w, &s, &small, 0, 0);
	seq = work_seq(&w, TEXT, 0);
	work_feed(&w, seq, TEXT, 100);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		child_calls(&w, seq);
		fflush(stdout);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	WORK_OK(work_attend(&w, seq, TEXT, w.o));
	cq_seq_close(seq);
	work_close(&w);
	sys_stop(&s);
}
