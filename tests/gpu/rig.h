/* SPDX-License-Identifier: MIT */
/*
 * What the sharing tests of a GPU are made of. A test runs in a conductor, a
 * process that never starts CUDA; its roles are children that do. What they
 * find goes to a page that all of them map. Include it once.
 */
#ifndef GPU_RIG_H
#define GPU_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cq/util.h"
#include "kernels/cuda/driver.h"
#include "tests/fdmsg.h"

#define READ		CQCU_MEM_ACCESS_FLAGS_PROT_READ
#define READWRITE	CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE
#define GRAN	((size_t)2 << 20)
#define CHUNK	((size_t)4 << 20)	/* of what is copied at a time */
#define LIMIT_S	60			/* of a test */

enum { FAILED, PASSED, SKIPPED };

/* Filled by a child, before anything else: the GPU that is tested. */
struct tested {
	char name[128];
	char uuid[CQK_CUDA_UUID];
	char driver[64];
	char node[32];		/* /dev/nvidiaN, or "" */
	int status;		/* 0 or -errno of the driver */
	int timeline;		/* has 64-bit stream memory operations */
	bool emulated;
	struct cq_err err;
};

static struct shared {
	struct tested gpu;
	int result;
	char value[256];	/* what was found; of a failure: why */
} *found;

static const struct cqk_cuda *cu;
static cqcu_device dev;
static size_t mem_size;		/* of the memory that is shared */

/* A process that cannot go on; the first to say why is the one that counts. */
__attribute__((noreturn, format(printf, 1, 2)))
static void broken(const char *fmt, ...)
{
	va_list ap;

	if (!found->value[0]) {
		va_start(ap, fmt);
		vsnprintf(found->value, sizeof(found->value), fmt, ap);
		va_end(ap);
	}
	_exit(1);
}

#define CALL(call) do {								\
	int _res = cu->call;							\
	char _text[CQK_CUDA_TEXT];						\
	if (_res)								\
		broken("%s: %s", #call, cqk_cuda_text(_res, _text));		\
} while (0)
#define SYS(call) do {								\
	if ((long)(call) < 0)							\
		broken("%s: %s", #call, strerror(errno));			\
} while (0)

__attribute__((format(printf, 2, 3)))
static void conclude(int result, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(found->value, sizeof(found->value), fmt, ap);
	va_end(ap);
	found->result = result;
}

static void send_fd(int sock, int fd, const void *data, size_t n)
{
	if (fdmsg_send(sock, fd, data, n) != (ssize_t)n)
		broken("a process of the test ended before its time");
}

/* The descriptor that came along, or -1. */
static int recv_fd(int sock, void *data, size_t n)
{
	int fd;

	if (fdmsg_recv(sock, &fd, data, n) != (ssize_t)n)
		broken("a process of the test ended before its time");
	return fd;
}

static void send_byte(int sock, char c)
{
	send_fd(sock, -1, &c, 1);
}

static char recv_byte(int sock)
{
	char c;

	recv_fd(sock, &c, 1);
	return c;
}

/* A descriptor that must be there. */
static int take_fd(int sock)
{
	char c;
	int fd = recv_fd(sock, &c, 1);

	if (fd < 0)
		broken("a message has no descriptor");
	return fd;
}

struct role {
	pid_t pid;
	int sock;
};

/* Its conductor's death ends it, whatever it waits for. */
static struct role role_start(void (*fn)(int sock))
{
	struct role r;
	int s[2];

	SYS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s));
	SYS(r.pid = fork());
	if (!r.pid) {
		SYS(prctl(PR_SET_PDEATHSIG, SIGKILL));
		close(s[0]);
		fn(s[1]);
		_exit(0);
	}
	close(s[1]);
	r.sock = s[0];
	return r;
}

/* Whether it ended well; why not is in found->value. */
static bool role_end(struct role *r)
{
	int status;

	SYS(waitpid(r->pid, &status, 0));
	close(r->sock);
	if (WIFSIGNALED(status) && !found->value[0])
		broken("a process of the test was killed by signal %d", WTERMSIG(status));
	return status == 0;
}

static void role_must_end(struct role *r)
{
	if (!role_end(r))
		broken("a process of the test failed");
}

/* Hand a descriptor to a new role and say whether it ended well. */
static bool role_try(void (*fn)(int sock), int fd)
{
	struct role r = role_start(fn);

	send_fd(r.sock, fd, "", 1);
	return role_end(&r);
}

/* The driver without a context, as the daemon has it. */
static void start_driver(void)
{
	struct cq_err err;

	if (cqk_cuda_get(&cu, &err) || cqk_cuda_find(&dev, found->gpu.uuid, &err))
		broken("%s", err.text);
}

static void start(void)
{
	struct cqcu_ctx *ctx;

	start_driver();
	CALL(cuDevicePrimaryCtxRetain(&ctx, dev));
	CALL(cuCtxSetCurrent(ctx));
}

static cqcu_mem mem_new(size_t n)
{
	struct cqcu_mem_prop prop = {
		.type = CQCU_MEM_ALLOCATION_TYPE_PINNED,
		.handle_types = CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = { CQCU_MEM_LOCATION_TYPE_DEVICE, dev },
	};
	cqcu_mem h;

	CALL(cuMemCreate(&h, n, &prop, 0));
	return h;
}

static cqcu_ptr mem_map(cqcu_mem h, size_t n, int rights)
{
	struct cqcu_access access = { { CQCU_MEM_LOCATION_TYPE_DEVICE, dev }, rights };
	cqcu_ptr p;

	CALL(cuMemAddressReserve(&p, n, 0, 0, 0));
	CALL(cuMemMap(p, n, 0, h, 0));
	CALL(cuMemSetAccess(p, n, &access, 1));
	return p;
}

static int mem_export(cqcu_mem h)
{
	int fd;

	CALL(cuMemExportToShareableHandle(&fd, h, CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	return fd;
}

static cqcu_mem mem_import(int fd)
{
	cqcu_mem h;

	CALL(cuMemImportFromShareableHandle(&h, (void *)(intptr_t)fd,
					  CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	return h;
}

/* Every word of the pattern says where it stands, so that moved data is seen. */
static uint64_t word_at(uint64_t i)
{
	i = (i + 1) * 0x9e3779b97f4a7c15u;
	return i ^ (i >> 29);
}

static uint64_t *chunk_new(void)
{
	uint64_t *words = malloc(CHUNK);

	if (!words)
		broken("out of host memory");
	return words;
}

static void fill(cqcu_ptr p, size_t n)
{
	uint64_t *words = chunk_new();
	size_t part;

	for (size_t at = 0; at < n; at += part) {
		part = MIN(CHUNK, n - at);
		for (size_t i = 0; i < part / 8; i++)
			words[i] = word_at(at / 8 + i);
		CALL(cuMemcpyHtoD(p + at, words, part));
	}
	/* A copy from pageable memory may return before it is done. */
	CALL(cuCtxSynchronize());
	free(words);
}

static void compare(cqcu_ptr p, size_t n)
{
	uint64_t *words = chunk_new();
	size_t part;

	for (size_t at = 0; at < n; at += part) {
		part = MIN(CHUNK, n - at);
		CALL(cuMemcpyDtoH(words, p + at, part));
		for (size_t i = 0; i < part / 8; i++)
			if (words[i] != word_at(at / 8 + i))
				broken("the memory differs at byte %zu", at + 8 * i);
	}
	free(words);
}

#endif /* GPU_RIG_H */
