/* SPDX-License-Identifier: MIT */
/*
 * T1 to T3 and T6 to T8: who keeps memory that processes share, for how long,
 * and what its descriptor is good for. Include it once, after rig.h.
 */
#ifndef GPU_LIFE_H
#define GPU_LIFE_H

#define SETTLE_MS	10000	/* for memory to be given back, which is asynchronous */

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void role_kill(struct role *r)
{
	int status;

	SYS(kill(r->pid, SIGKILL));
	SYS(waitpid(r->pid, &status, 0));
	close(r->sock);
}

/* The owner of @mem_size bytes: 'c' has it compare them, anything else ends it. */
static void own(int sock)
{
	cqcu_ptr p;
	cqcu_mem h;
	int fd;

	start();
	h = mem_new(mem_size);
	p = mem_map(h, mem_size, READWRITE);
	fill(p, mem_size);
	fd = mem_export(h);
	send_fd(sock, fd, "", 1);
	close(fd);
	while (recv_byte(sock) == 'c') {
		compare(p, mem_size);
		send_byte(sock, 'c');
	}
}

static void import_and_compare(int sock)
{
	int fd = take_fd(sock);

	start();
	compare(mem_map(mem_import(fd), mem_size, READ), mem_size);
}

/* Somebody else who uses the GPU meanwhile. */
static void stand_by(int sock)
{
	start();
	send_byte(sock, 0);
	recv_byte(sock);
}

/* The memory of an owner that is dead, all that is left being its descriptor. */
static int orphan_of(void (*fn)(int sock))
{
	struct role owner = role_start(fn);
	int fd = take_fd(owner.sock);

	role_kill(&owner);
	return fd;
}

static int orphan(void)
{
	return orphan_of(own);
}

static void t1_fd_outlives_owner(void)
{
	struct role other = role_start(stand_by);
	int fd;

	recv_byte(other.sock);
	fd = orphan();
	if (!role_try(import_and_compare, fd))
		return;
	close(fd);
	send_byte(other.sock, 0);
	role_must_end(&other);
	conclude(PASSED, "%zu MiB the same after the owner was killed", mem_size >> 20);
}

/* Without another client and, the first time, without an open device node. */
static void t2_fd_alone(void)
{
	const char *node = found->gpu.node;
	char lost[sizeof(found->value)] = "";
	int fd, held;

	fd = orphan();
	if (!role_try(import_and_compare, fd))
		memcpy(lost, found->value, sizeof(lost));
	found->value[0] = '\0';
	close(fd);
	if (!node[0]) {
		if (lost[0])
			conclude(FAILED, "descriptor alone: lost (%s)", lost);
		else
			conclude(PASSED, "descriptor alone: kept; no device node to hold");
		return;
	}
	held = open(node, O_RDWR | O_CLOEXEC);
	if (held < 0)
		broken("%s: %s", node, strerror(errno));
	fd = orphan();
	if (!role_try(import_and_compare, fd))
		return;
	conclude(PASSED, "with %s held: kept; descriptor alone: %s%s", node,
		 lost[0] ? "lost: " : "kept", lost);
}

static void own_without_context(int sock)
{
	struct cqcu_ctx *ctx = NULL;
	cqcu_mem h;
	int fd;

	start_driver();
	h = mem_new(mem_size);
	fd = mem_export(h);
	CALL(cuMemRelease(h));
	CALL(cuCtxGetCurrent(&ctx));
	if (ctx)
		broken("there is a context that nobody made");
	send_fd(sock, fd, "", 1);
	recv_byte(sock);
}

static void import_and_fill(int sock)
{
	int fd = take_fd(sock);

	start();
	fill(mem_map(mem_import(fd), mem_size, READWRITE), mem_size);
}

static void t3_owner_without_context(void)
{
	struct role owner = role_start(own_without_context);
	int fd = take_fd(owner.sock);

	if (!role_try(import_and_fill, fd) || !role_try(import_and_compare, fd))
		return;
	send_byte(owner.sock, 0);
	role_must_end(&owner);
	conclude(PASSED, "one worker wrote, another read; the owner had only cuInit()");
}

/* Somebody who looks: what is free, whenever asked. */
static void meter(int sock)
{
	size_t left, total;

	start();
	do {
		CALL(cuMemGetInfo(&left, &total));
		send_fd(sock, -1, &left, sizeof(left));
	} while (recv_byte(sock) == 'm');
}

static size_t read_meter(int sock)
{
	size_t left;

	send_byte(sock, 'm');
	recv_fd(sock, &left, sizeof(left));
	return left;
}

/* Ask until @want bytes are free again but for a quarter of @mem_size; ms, or -1. */
static double settle(int sock, size_t want, size_t *left)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	double began = now_ms();

	for (;;) {
		*left = read_meter(sock);
		if (*left + mem_size / 4 >= want)
			return now_ms() - began;
		if (now_ms() - began > SETTLE_MS)
			return -1;
		nanosleep(&pause, NULL);
	}
}

static void t6_memory_comes_back(void)
{
	struct role m = role_start(meter);
	size_t before, held, after;
	double ms;
	int fd;

	recv_fd(m.sock, &before, sizeof(before));
	fd = orphan();
	if (settle(m.sock, before - mem_size, &held) < 0)
		broken("the dead owner still has %zu MiB more than what it shared",
		       (before - mem_size - held) >> 20);
	if (held > before - mem_size + mem_size / 4)
		broken("%zu MiB were shared, but %zu MiB more are free than must be",
		       mem_size >> 20, (held - (before - mem_size)) >> 20);
	close(fd);
	ms = settle(m.sock, before, &after);
	if (ms < 0)
		broken("%zu MiB are not given back after the last descriptor was closed",
		       (before - after) >> 20);
	send_byte(m.sock, 'q');
	role_must_end(&m);
	conclude(PASSED, "%zu MiB free, %zu with the owner dead, %zu in %.1f ms after the last "
		 "close", before >> 20, held >> 20, after >> 20, ms);
}

static void export_again(int sock)
{
	int fd = take_fd(sock), again = -1, res;
	cqcu_mem h;

	start();
	h = mem_import(fd);
	res = cu->cuMemExportToShareableHandle(&again, h,
					       CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	send_fd(sock, res ? -1 : again, &res, sizeof(res));
	recv_byte(sock);
}

static void t7_dup_and_export_again(void)
{
	struct role r = role_start(export_again);
	int fd = orphan(), copy, again, res;
	char how[CQK_CUDA_TEXT], lost[64] = "";

	send_fd(r.sock, fd, "", 1);
	again = recv_fd(r.sock, &res, sizeof(res));
	role_kill(&r);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		broken("dup: %s", strerror(errno));
	close(fd);
	if (!role_try(import_and_compare, copy))
		return;
	/* The first memory goes with its last copy, unless the second export keeps it. */
	close(copy);
	if (!res && !role_try(import_and_compare, again))
		snprintf(lost, sizeof(lost), ", but not the memory");
	found->value[0] = '\0';
	conclude(PASSED, "dup() serves; exported again by an importer: %s%s",
		 res ? cqk_cuda_text(res, how) : "works", lost);
}

static unsigned int poll_flags(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT | POLLPRI };

	SYS(poll(&p, 1, 0));
	return (unsigned short)p.revents;
}

/* Says what is; systemd drops a descriptor with POLLERR or POLLHUP, but for FDPOLL=0. */
static void t8_poll_flags(void)
{
	struct role owner = role_start(own);
	int fd = take_fd(owner.sock);
	unsigned int alive, dead;

	alive = poll_flags(fd);
	role_kill(&owner);
	dead = poll_flags(fd);
	conclude(PASSED, "0x%x with the owner alive, 0x%x after its death: FDPOLL=0 is %s", alive,
		 dead, (alive | dead) & (POLLERR | POLLHUP) ? "needed" : "not needed");
}

#endif /* GPU_LIFE_H */
