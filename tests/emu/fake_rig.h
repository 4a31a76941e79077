/* SPDX-License-Identifier: MIT */
/*
 * What tests of the fake driver share. Each test is a process, so that each
 * may set knobs before it starts the driver. Include it once, after harness.h.
 */
#ifndef FAKE_RIG_H
#define FAKE_RIG_H

#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>

#include "kernels/cuda/driver.h"
#include "tests/fdmsg.h"

#define GRAN	((size_t)2 << 20)

static const struct cqk_cuda *cu;

/* A call that must succeed, and one that must fail in one way. */
#define CU(call) do {								\
	int _res = cu->call;							\
	char _text[CQK_CUDA_TEXT];						\
	if (_res)								\
		FAIL("%s: %s", #call, cqk_cuda_text(_res, _text));		\
} while (0)
#define CU_FAILS(want, call) ASSERT_EQ(cu->call, want)

__attribute__((unused))
static void knob(const char *name, const char *value)
{
	ASSERT_SYS(setenv(name, value, 1));
}

/* Beside this program, where the fake driver is too. */
static void beside(char *path, size_t size, const char *name)
{
	ssize_t n = readlink("/proc/self/exe", path, size - 1);

	ASSERT_GT(n, 0);
	path[n] = '\0';
	ASSERT_LT(strrchr(path, '/') + 1 + strlen(name) - path, (ssize_t)size);
	memcpy(strrchr(path, '/') + 1, name, strlen(name) + 1);
}

/* The driver without a context, as in a daemon. */
static void start_driver(void)
{
	char path[4096];
	struct cq_err err;

	beside(path, sizeof(path), "libcuemu_demo.so");
	setenv("CQ_EMU_KERNELS", path, 0);
	if (cqk_cuda_get(&cu, &err))
		FAIL("%s", err.text);
}

/* With the context of the first device. */
static void start(void)
{
	struct cqcu_ctx *ctx;

	start_driver();
	CU(cuDevicePrimaryCtxRetain(&ctx, 0));
	CU(cuCtxSetCurrent(ctx));
}

/* Unused in some tests. */
__attribute__((unused))
static cqcu_mem mem_new(size_t size)
{
	struct cqcu_mem_prop prop = {
		.type = CQCU_MEM_ALLOCATION_TYPE_PINNED,
		.handle_types = CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = { CQCU_MEM_LOCATION_TYPE_DEVICE, 0 },
	};
	cqcu_mem h;

	CU(cuMemCreate(&h, size, &prop, 0));
	return h;
}

__attribute__((unused))
static cqcu_ptr mem_map(cqcu_mem h, size_t size, int rights)
{
	struct cqcu_access access = { { CQCU_MEM_LOCATION_TYPE_DEVICE, 0 }, rights };
	cqcu_ptr p;

	CU(cuMemAddressReserve(&p, size, 0, 0, 0));
	CU(cuMemMap(p, size, 0, h, 0));
	CU(cuMemSetAccess(p, size, &access, 1));
	return p;
}

__attribute__((unused))
static uint32_t peek(cqcu_ptr p)
{
	uint32_t v;

	CU(cuMemcpyDtoH(&v, p, sizeof(v)));
	return v;
}

__attribute__((unused))
static void poke(cqcu_ptr p, uint32_t v)
{
	CU(cuMemcpyHtoD(p, &v, sizeof(v)));
}

__attribute__((unused))
static struct cqcu_func *kernel(const char *name)
{
	static struct cqcu_module *module;
	struct cqcu_func *f;

	if (!module)
		CU(cuModuleLoadData(&module, "cq: tests"));
	CU(cuModuleGetFunction(&f, module, name));
	return f;
}

/* p[i] = v, i < n; one block of 32 threads */
__attribute__((unused))
static int launch_fill(cqcu_ptr p, uint32_t v, uint32_t n, struct cqcu_stream *s)
{
	void *params[] = { &p, &v, &n };

	return cu->cuLaunchKernel(kernel("demo_fill"), 1, 1, 1, 32, 1, 1, 0, s, params, NULL);
}

/* *to = *from * 3 + v, by one thread */
__attribute__((unused))
static int launch_step(cqcu_ptr to, cqcu_ptr from, uint32_t v, struct cqcu_stream *s)
{
	void *params[] = { &to, &from, &v };

	return cu->cuLaunchKernel(kernel("demo_step"), 1, 1, 1, 1, 1, 1, 0, s, params, NULL);
}

/* Run @fn in a process that was never near CUDA; its exit status. */
__attribute__((unused))
static pid_t spawn(void (*fn)(int sock), int *sock)
{
	int s[2];
	pid_t pid;

	ASSERT_SYS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(s[0]);
		fn(s[1]);
		_exit(0);
	}
	close(s[1]);
	*sock = s[0];
	return pid;
}

__attribute__((unused))
static void reap(pid_t pid)
{
	int status;

	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

__attribute__((unused))
static void send_fd(int sock, int fd, const void *data, size_t size)
{
	ASSERT_EQ(fdmsg_send(sock, fd, data, size), (ssize_t)size);
}

__attribute__((unused))
static int recv_fd(int sock, void *data, size_t size)
{
	int fd;

	ASSERT_EQ(fdmsg_recv(sock, &fd, data, size), (ssize_t)size);
	return fd;
}

#endif /* FAKE_RIG_H */
