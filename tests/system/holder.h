/* SPDX-License-Identifier: MIT */
/*
 * A cq-holder of the test's own, on the fake driver, under cqd's uid, and its protocol
 * spoken by hand. The test's process runs under that uid as well, once it has become
 * one: the fake driver's memory is a user's.
 */
#ifndef TESTS_SYSTEM_HOLDER_H
#define TESTS_SYSTEM_HOLDER_H

#include "tests/system/sys.h"
#include "tests/fdmsg.h"
#include "kernels/cuda/driver.h"
#include "proto/holder.h"

#define HOLDER_UUID "GPU-c9e00000-6661-6b65-8000-646576696300"

static struct {
	char dir[280], sock[300], conf[300];
	pid_t pid;
	bool managed;	/* it finds the NOTIFY_SOCKET of the environment */
	int log;	/* its stderr, if not 0 */
} hold;

/* An answer of any length. */
struct hold_ans {
	struct cqp_holder_ans a;
	struct cqp_holder_block block[CQP_HOLDER_LIST];
};

/* Its section, which cqd's file has too. */
static inline const char *hold_section(void)
{
	static char text[600];

	snprintf(text, sizeof(text), "[namespace own]\nuid = %d\n[gpu g0]\nuuid = " HOLDER_UUID
		 "\npool_bytes = 16M\nsharing = ipc\nholder = %s\n", SYS_CQD_UID, hold.sock);
	return text;
}

/* The driver, its memory apart from other tests', and where the holder's files are. */
static inline void hold_setup(void)
{
	char text[512];
	FILE *f;

	snprintf(text, sizeof(text), "%s/tests/emu", sys_build());
	ASSERT_SYS(setenv("LD_LIBRARY_PATH", text, 1));
	ASSERT_SYS(setenv("CQ_EMU_DEVICES", "1", 1));
	ASSERT_SYS(setenv("CQ_EMU_MEMORY", "67108864", 1));
	snprintf(text, sizeof(text), "holder%d", getpid());
	ASSERT_SYS(setenv("CQ_EMU_STATE", text, 1));
	ASSERT_SYS(chmod(test_dir(), 0755));
	snprintf(hold.dir, sizeof(hold.dir), "%s/holder", test_dir());
	snprintf(hold.sock, sizeof(hold.sock), "%s/g0.sock", hold.dir);
	snprintf(hold.conf, sizeof(hold.conf), "%s/holder.conf", test_dir());
	ASSERT_SYS(mkdir(hold.dir, 0700));
	if (sys_root())
		ASSERT_SYS(chown(hold.dir, SYS_CQD_UID, SYS_CQD_UID));
	f = fopen(hold.conf, "we");
	ASSERT(f);
	fputs(hold_section(), f);
	fclose(f);
}

static inline int hold_connect(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	ASSERT_SYS(fd);
	ASSERT_LT(strlen(hold.sock), sizeof(sa.sun_path));
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.*s", (int)sizeof(sa.sun_path) - 1,
		 hold.sock);
	if (!connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		return fd;
	close(fd);
	return -1;
}

/* It listens when it is ready. */
static inline void hold_start(void)
{
	long long end = test_now_ms() + SYS_DEADLINE;
	char prog[512];
	int fd;

	snprintf(prog, sizeof(prog), "%s/cq-holder", sys_build());
	fflush(stdout);
	hold.pid = fork();
	ASSERT_SYS(hold.pid);
	if (!hold.pid) {
		sys_become(SYS_CQD_UID);
		if (!hold.managed)
			unsetenv("NOTIFY_SOCKET");
		if (hold.log && dup2(hold.log, STDERR_FILENO) < 0)
			_exit(127);
		execl(prog, "cq-holder", "-c", hold.conf, "g0", (char *)NULL);
		_exit(127);
	}
	while ((fd = hold_connect()) < 0) {
		if (test_now_ms() > end)
			FAIL("cq-holder does not listen");
		usleep(1000);
	}
	close(fd);
}

/* Its exit status, or -signal. */
static inline int hold_wait(void)
{
	int status;

	ASSERT_EQ(waitpid(hold.pid, &status, 0), hold.pid);
	hold.pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static inline void hold_kill(void)
{
	ASSERT_SYS(kill(hold.pid, SIGKILL));
	ASSERT_EQ(hold_wait(), -SIGKILL);
}

static inline void hold_stop(void)
{
	ASSERT_SYS(kill(hold.pid, SIGTERM));
	ASSERT_EQ(hold_wait(), 0);
	ASSERT_EQ(access(hold.sock, F_OK), -1);
}

/* --- by hand --- */

static inline struct cqp_holder_req hold_req(uint16_t op, uint64_t block, uint64_t bytes)
{
	static uint64_t seq;

	return (struct cqp_holder_req){
		.magic = CQP_HOLDER_MAGIC, .version = CQP_HOLDER_VERSION, .op = op,
		.seq = ++seq, .block = block, .bytes = bytes,
	};
}

/* The answer's error, or 1: it hung up. */
static inline int hold_call(int fd, const struct cqp_holder_req *r, struct hold_ans *out)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	ssize_t n;

	if (send(fd, r, sizeof(*r), MSG_NOSIGNAL) != (ssize_t)sizeof(*r))
		return 1;
	if (poll(&p, 1, SYS_DEADLINE) <= 0)
		FAIL("no answer of the holder");
	n = recv(fd, out, sizeof(*out), 0);
	if (n <= 0)
		return 1;
	ASSERT_EQ(n, sizeof(out->a) + out->a.n * sizeof(out->block[0]));
	ASSERT_EQ(out->a.magic, CQP_HOLDER_MAGIC);
	ASSERT_EQ(out->a.version, CQP_HOLDER_VERSION);
	ASSERT_EQ(out->a.seq, r->seq);
	ASSERT_EQ(out->a.op, r->op);
	return out->a.error;
}

static inline int hold_ask(int fd, uint16_t op, uint64_t block, uint64_t bytes,
			   struct hold_ans *out)
{
	const struct cqp_holder_req r = hold_req(op, block, bytes);

	return hold_call(fd, &r, out);
}

/* Connected, and Hello said. */
static inline int hold_open(struct hold_ans *out)
{
	int fd = hold_connect();

	ASSERT_LE(0, fd);
	ASSERT_EQ(hold_ask(fd, CQP_HOLDER_HELLO, 0, 0, out), 0);
	return fd;
}

static inline void hold_free(int fd, uint64_t block)
{
	const struct cqp_holder_req r = hold_req(CQP_HOLDER_FREE, block, 0);

	ASSERT_EQ(send(fd, &r, sizeof(r), MSG_NOSIGNAL), sizeof(r));
}

/* --- a process that opens blocks --- */

/* The driver with a context; not in a process that forks others later. */
static inline const struct cqk_cuda *hold_cuda(void)
{
	const struct cqk_cuda *cu;
	struct cqcu_ctx *ctx;
	struct cq_err err;

	if (cqk_cuda_get(&cu, &err))
		FAIL("%s", err.text);
	ASSERT_OK(cu->cuDevicePrimaryCtxRetain(&ctx, 0));
	ASSERT_OK(cu->cuCtxSetCurrent(ctx));
	return cu;
}

/* The driver's result. */
static inline int hold_import(const struct cqk_cuda *cu, const uint8_t *handle, cqcu_ptr *p)
{
	struct cqcu_ipc_handle h;

	memcpy(&h, handle, sizeof(h));
	return cu->cuIpcOpenMemHandle(p, h, CQCU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
}

#endif /* TESTS_SYSTEM_HOLDER_H */
