// SPDX-License-Identifier: MIT
/*
 * cq-holder alone, on the fake driver: what it answers, what it survives, and what its
 * handles are good for.
 */
#include "tests/harness.h"
#include "tests/system/holder.h"

#define MIB	(1ull << 20)
#define BYTES	(4 * MIB)

static struct hold_ans got;	/* large: not on the stack */

/* A new connection is served, and the block that was made is there. */
static void still_has_one(void)
{
	int fd = hold_open(&got);

	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_LIST_FROM, 0, 0, &got), 0);
	ASSERT_EQ(got.a.n, 1);
	close(fd);
}

static void begin(void)
{
	hold_setup();
	hold_start();
	sys_become(SYS_CQD_UID);
}

/* What is listed is what was asked for; a Hello of another finds it. */
TEST(blocks)
{
	uint64_t boot;
	int fd, other;

	begin();
	fd = hold_open(&got);
	boot = got.a.boot;
	ASSERT_NE(boot, 0);
	ASSERT_STREQ(got.a.uuid, HOLDER_UUID);
	ASSERT_EQ(got.a.bytes, 64 * MIB);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 7, BYTES, &got), 0);
	ASSERT_EQ(got.a.n, 1);
	ASSERT_EQ(got.block[0].block, 7);
	ASSERT_EQ(got.block[0].bytes, BYTES);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 3, 2 * MIB, &got), 0);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, UINT64_MAX, 2 * MIB, &got), 0);
	other = hold_open(&got);
	ASSERT_EQ(got.a.boot, boot);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_LIST_FROM, 0, 0, &got), 1);
	ASSERT_EQ(hold_ask(other, CQP_HOLDER_LIST_FROM, 0, 0, &got), 0);
	ASSERT_EQ(got.a.n, 3);
	ASSERT_EQ(got.block[0].block, 3);
	ASSERT_EQ(got.block[1].block, 7);
	ASSERT_EQ(got.block[2].block, UINT64_MAX);
	hold_free(other, 7);
	hold_free(other, 7);
	hold_free(other, 99);
	ASSERT_EQ(hold_ask(other, CQP_HOLDER_LIST_FROM, 4, 0, &got), 0);
	ASSERT_EQ(got.a.n, 1);
	ASSERT_EQ(hold_ask(other, CQP_HOLDER_ALLOC, 7, 32 * MIB, &got), 0);
	close(fd);
	close(other);
	hold_stop();
}

TEST(refused)
{
	int fd;

	begin();
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 0, BYTES, &got), -EINVAL);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, 0, &got), -EINVAL);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES + 4096, &got), -EINVAL);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, 66 * MIB, &got), -EINVAL);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, UINT64_MAX & ~(2 * MIB - 1), &got), -EINVAL);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES, &got), 0);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES, &got), -EEXIST);
	/* It is there, and the rest is not enough. */
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 2, 62 * MIB, &got), -ENOMEM);
	ASSERT_EQ(got.a.n, 0);
	ASSERT_NE(strlen(got.a.text), 0);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_LIST_FROM, 0, 0, &got), 0);
	ASSERT_EQ(got.a.n, 1);
	close(fd);
	hold_stop();
}

/* Whatever is sent instead of a request ends the connection, and nothing else. */
static void ends(const void *data, size_t n, int with, bool greeted)
{
	struct pollfd p = { .events = POLLIN };
	char buf[512];
	ssize_t len;
	int fd = greeted ? hold_open(&got) : hold_connect();

	ASSERT_LE(0, fd);
	ASSERT_EQ(fdmsg_send(fd, with, data, n), n);
	p.fd = fd;
	do {
		ASSERT_EQ(poll(&p, 1, SYS_DEADLINE), 1);
		len = recv(fd, buf, sizeof(buf), 0);
	} while (len > 0);
	close(fd);
}

TEST(garbage)
{
	struct cqp_holder_req r = hold_req(CQP_HOLDER_ALLOC, 5, BYTES), bad;
	uint8_t noise[4096];
	size_t n;
	int fd;

	begin();
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES, &got), 0);
	memset(noise, 0x5a, sizeof(noise));
	for (n = 1; n < sizeof(noise); n = n * 3 + 1)
		ends(noise, n, -1, true);
	ends(&r, sizeof(r) - 1, -1, true);
	memcpy(noise, &r, sizeof(r));
	ends(noise, sizeof(r) + 1, -1, true);
	ends(&r, sizeof(r), 0, true);		/* a descriptor along with it */
	ends(&r, sizeof(r), -1, false);		/* before Hello */
	bad = r;
	bad.op = 99;
	ends(&bad, sizeof(bad), -1, true);
	bad = r;
	bad.op = 0;
	ends(&bad, sizeof(bad), -1, true);
	bad = r;
	bad.magic++;
	ends(&bad, sizeof(bad), -1, true);
	close(fd);
	still_has_one();
	hold_stop();
}

/* A peer of another version is told so before it is hung up on. */
TEST(versions)
{
	struct cqp_holder_req r = hold_req(CQP_HOLDER_HELLO, 0, 0);
	int fd;

	begin();
	r.version++;
	fd = hold_connect();
	ASSERT_LE(0, fd);
	ASSERT_EQ(hold_call(fd, &r, &got), -EPROTO);
	ASSERT_EQ(recv(fd, &got, sizeof(got), 0), 0);
	close(fd);
	hold_stop();
}

/* Neither who says nothing nor who reads nothing keeps the one that is served. */
TEST(crowd)
{
	const struct cqp_holder_req r = hold_req(CQP_HOLDER_LIST_FROM, 0, 0);
	int fd, idle[16], i;

	begin();
	fd = hold_open(&got);
	for (i = 0; i < 16; i++)
		idle[i] = hold_connect();
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES, &got), 0);
	for (i = 0; i < 16; i++)
		if (idle[i] >= 0)
			close(idle[i]);
	/* Requests without end, no answer read: it is cut off. */
	while (send(fd, &r, sizeof(r), MSG_NOSIGNAL) > 0)
		;
	close(fd);
	still_has_one();
	hold_stop();
}

/* More blocks than one answer lists. */
TEST(long_list)
{
	unsigned int i;
	int fd;

	hold_setup();
	ASSERT_SYS(setenv("CQ_EMU_MEMORY", "4294967296", 1));
	hold_start();
	sys_become(SYS_CQD_UID);
	fd = hold_open(&got);
	for (i = 1; i <= 600; i++)
		ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, i, 2 * MIB, &got), 0);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_LIST_FROM, 0, 0, &got), 0);
	ASSERT_EQ(got.a.n, CQP_HOLDER_LIST);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_LIST_FROM, CQP_HOLDER_LIST + 1, 0, &got), 0);
	ASSERT_EQ(got.a.n, 600 - CQP_HOLDER_LIST);
	ASSERT_EQ(got.block[got.a.n - 1].block, 600);
	close(fd);
	hold_stop();
}

static void stranger(int fd, void *arg)
{
	char c;
	int sock;

	sock = hold_connect();
	ASSERT_LE(0, sock);
	ASSERT_EQ(read(sock, &c, 1), 0);
	close(sock);
}

TEST(strangers)
{
	struct sys_peer p;
	int fd;

	if (!sys_root())
		SKIP("needs root to become another uid");
	hold_setup();
	hold_start();
	/* Modes keep them out; this is the second door. */
	ASSERT_SYS(chmod(hold.dir, 0755));
	ASSERT_SYS(chmod(hold.sock, 0666));
	sys_spawn(&p, SYS_UID_A, stranger, NULL);
	sys_join(&p);
	fd = hold_connect();	/* not even root: it is not cqd */
	ASSERT_LE(0, fd);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_HELLO, 0, 0, &got), 1);
	close(fd);
	hold_stop();
}

/* Opens the handle, waits to be told, compares. */
static void reader(int fd, void *arg)
{
	const struct cqk_cuda *cu = hold_cuda();
	uint8_t byte = 1;
	cqcu_ptr p;

	ASSERT_OK(hold_import(cu, arg, &p));
	ASSERT_OK(cu->cuMemcpyDtoH(&byte, p + BYTES - 1, 1));
	ASSERT_EQ(byte, 0);
	sys_say(fd, 'o');
	sys_hear(fd, 'w');
	ASSERT_OK(cu->cuMemcpyDtoH(&byte, p + BYTES - 1, 1));
	ASSERT_EQ(byte, 0xab);
	sys_say(fd, 'r');
	sys_hear(fd, 'e');
	ASSERT_OK(cu->cuIpcCloseMemHandle(p));
}

static void writer(int fd, void *arg)
{
	const struct cqk_cuda *cu = hold_cuda();
	cqcu_ptr p;

	ASSERT_OK(hold_import(cu, arg, &p));
	ASSERT_OK(cu->cuMemsetD8(p, 0xab, BYTES));
	ASSERT_OK(cu->cuCtxSynchronize());
	ASSERT_OK(cu->cuIpcCloseMemHandle(p));
}

static void late(int fd, void *arg)
{
	cqcu_ptr p;

	ASSERT_EQ(hold_import(hold_cuda(), arg, &p), CQCU_ERROR_MAP_FAILED);
}

/* What one process writes another reads; after the holder's death nobody new comes in. */
TEST(handles)
{
	uint8_t handle[CQP_HOLDER_HANDLE];
	struct sys_peer r, w;
	int fd;

	/* Of another tenant: nobody may see that. */
	ASSERT_SYS(setenv("CQ_EMU_GARBAGE", "1", 1));
	begin();
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES, &got), 0);
	memcpy(handle, got.block[0].handle, sizeof(handle));
	sys_spawn(&r, SYS_CQD_UID, reader, handle);
	sys_hear(r.fd, 'o');
	sys_spawn(&w, SYS_CQD_UID, writer, handle);
	sys_join(&w);
	sys_say(r.fd, 'w');
	sys_hear(r.fd, 'r');
	hold_kill();
	sys_spawn(&w, SYS_CQD_UID, late, handle);
	sys_join(&w);
	sys_say(r.fd, 'e');
	sys_join(&r);
	close(fd);
	hold_start();	/* over the socket that was left behind */
	hold_stop();
}

/* What the service manager was told last. */
static void told(int fd, const char *want)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char text[200];
	ssize_t n;

	ASSERT_EQ(poll(&p, 1, SYS_DEADLINE), 1);
	n = recv(fd, text, sizeof(text) - 1, 0);
	ASSERT_GT(n, 0);
	text[n] = '\0';
	ASSERT_STREQ(text, want);
}

static int manager(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	ASSERT_SYS(fd);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.90s/notify", test_dir());
	ASSERT_SYS(bind(fd, (struct sockaddr *)&sa, sizeof(sa)));
	ASSERT_SYS(chmod(sa.sun_path, 0666));
	ASSERT_SYS(setenv("NOTIFY_SOCKET", sa.sun_path, 1));
	return fd;
}

/*
 * Stopped with memory: it ends at once, since only its end frees what cqd may never give
 * back, says how much goes with it, and who has it open reads on.
 */
TEST(stopped_with_memory)
{
	uint8_t handle[CQP_HOLDER_HANDLE];
	struct sys_peer r, w;
	char log[2000];
	ssize_t n;
	int fd, notify;

	hold_setup();
	notify = manager();
	hold.managed = true;
	hold.log = memfd_create("log", MFD_CLOEXEC);
	hold_start();
	sys_become(SYS_CQD_UID);
	told(notify, "READY=1");
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES, &got), 0);
	memcpy(handle, got.block[0].handle, sizeof(handle));
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 2, BYTES, &got), 0);
	sys_spawn(&r, SYS_CQD_UID, reader, handle);
	sys_hear(r.fd, 'o');
	sys_spawn(&w, SYS_CQD_UID, writer, handle);
	sys_join(&w);
	hold_stop();
	told(notify, "STOPPING=1");
	sys_say(r.fd, 'w');
	sys_hear(r.fd, 'r');
	sys_say(r.fd, 'e');
	sys_join(&r);
	n = pread(hold.log, log, sizeof(log) - 1, 0);
	ASSERT_GT(n, 0);
	log[n] = '\0';
	ASSERT_STRHAS(log, "<4>[gpu g0] ends with 2 blocks, 8 MiB: the pages in them are lost");
	close(fd);
	close(notify);
	close(hold.log);
}

/* A context that is lost is the end: a new process can go on. */
TEST(context_lost)
{
	int fd;

	ASSERT_SYS(setenv("CQ_EMU_FAIL", "cuMemAlloc:2:719", 1));
	begin();
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, BYTES, &got), 0);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 2, BYTES, &got), -EOWNERDEAD);
	ASSERT_EQ(hold_wait(), 1);
	close(fd);
}

/* Nothing is left of a block that could not be shared. */
TEST(half_made)
{
	int fd;

	ASSERT_SYS(setenv("CQ_EMU_FAIL", "cuIpcGetMemHandle:1:801", 1));
	begin();
	fd = hold_open(&got);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, 60 * MIB, &got), -EOPNOTSUPP);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_ALLOC, 1, 60 * MIB, &got), 0);
	close(fd);
	hold_stop();
}

static int run(const char *conf, const char *name)
{
	char prog[512];
	int status;
	pid_t pid;

	snprintf(prog, sizeof(prog), "%s/cq-holder", sys_build());
	pid = fork();
	ASSERT_SYS(pid);
	if (!pid) {
		execl(prog, "cq-holder", "-c", conf, name, (char *)NULL);
		_exit(127);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(does_not_start)
{
	char path[300];
	FILE *f;

	hold_setup();
	ASSERT_EQ(run("/nonexistent", "g0"), 78);
	ASSERT_EQ(run(hold.conf, "g1"), 78);
	ASSERT_EQ(run(hold.conf, NULL), 64);
	snprintf(path, sizeof(path), "%s/vmm.conf", test_dir());
	f = fopen(path, "we");
	ASSERT(f);
	fputs("[gpu g0]\nuuid = " HOLDER_UUID "\npool_bytes = 16M\n", f);
	fclose(f);
	ASSERT_EQ(run(path, "g0"), 78);
	ASSERT_SYS(setenv("CQ_EMU_DEVICES", "0", 1));
	ASSERT_EQ(run(hold.conf, "g0"), 1);
	ASSERT_SYS(setenv("CQ_EMU_DEVICES", "1", 1));
	hold_start();
	ASSERT_EQ(run(hold.conf, "g0"), 1);	/* one is there */
	hold_stop();
}
