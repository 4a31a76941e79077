/* SPDX-License-Identifier: MIT */
/*
 * Memory that cqd may not touch, played with memfds that it does not map: what a GPU is
 * to the store. The test maps them itself.
 */
#ifndef TESTS_REMOTE_MEM_H
#define TESTS_REMOTE_MEM_H

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/mem.h"

#define REMOTE_UUID "GPU-00112233-4455-6677-8899-aabbccddeeff"
#define REMOTE_GRAIN (64u << 10)

/* What happens next. */
static struct {
	int usable, create;
	unsigned int creates, adopts, now;
	bool together;
} remote;

__attribute__((unused))
static int remote_usable(struct cq_err *err)
{
	return remote.usable ? cq_err_set(err, remote.usable, "no driver today") : 0;
}

__attribute__((unused))
static int remote_probe(struct cqd_mem_device *dev, struct cq_err *err)
{
	dev->bytes = 64 << 20;
	dev->granularity = REMOTE_GRAIN;
	return 0;
}

__attribute__((unused))
static int remote_make(struct cqd_mem *mem, struct cq_err *err)
{
	if (remote.create)
		return cq_err_set(err, remote.create, "the device is full");
	if (!mem->dev || mem->bytes % mem->dev->granularity)
		return cq_err_set(err, -EINVAL, "no multiple of the granularity");
	mem->fd = memfd_create("remote", MFD_CLOEXEC);
	if (mem->fd < 0 || ftruncate(mem->fd, (off_t)mem->bytes) < 0)
		return cq_err_set(err, -errno, "memfd");
	mem->ro_fd = fcntl(mem->fd, F_DUPFD_CLOEXEC, 3);
	return 0;
}

__attribute__((unused))
static int remote_create(struct cqd_mem *mem, struct cq_err *err)
{
	int ret;

	/* on worker threads */
	__atomic_fetch_add(&remote.creates, 1, __ATOMIC_RELAXED);
	if (__atomic_fetch_add(&remote.now, 1, __ATOMIC_RELAXED))
		__atomic_store_n(&remote.together, true, __ATOMIC_RELAXED);
	ret = remote_make(mem, err);
	__atomic_fetch_sub(&remote.now, 1, __ATOMIC_RELAXED);
	return ret;
}

__attribute__((unused))
static int remote_adopt(struct cqd_mem *mem, struct cq_err *err)
{
	struct stat sb;

	remote.adopts++;
	if (fstat(mem->fd, &sb) < 0 || (uint64_t)sb.st_size != mem->bytes)
		return cq_err_set(err, -EINVAL, "another size");
	mem->ro_fd = fcntl(mem->fd, F_DUPFD_CLOEXEC, 3);
	return 0;
}

__attribute__((unused))
static void remote_discard(struct cqd_mem *mem)
{
}

__attribute__((unused))
static void remote_destroy(struct cqd_mem *mem)
{
	if (mem->ro_fd >= 0)
		close(mem->ro_fd);
	if (mem->fd >= 0)
		close(mem->fd);
	mem->fd = -1;
	mem->ro_fd = -1;
}

__attribute__((unused))
static const struct cqd_mem_ops remote_ops = {
	.name = "remote",
	.kind = CQD_MEM_CUDA_VMM,
	.remote = true,
	.usable = remote_usable,
	.probe = remote_probe,
	.create = remote_create,
	.adopt = remote_adopt,
	.discard = remote_discard,
	.destroy = remote_destroy,
};

#endif /* TESTS_REMOTE_MEM_H */
