// SPDX-License-Identifier: MIT
/*
 * Memory of segments on the host: memfds.
 *
 * Every byte is reserved by fallocate() before the fd leaves this file, and
 * the size is sealed: nobody who maps it meets a SIGBUS. Clients get an
 * O_RDONLY reopen of a file with mode 0444, so neither mmap(PROT_WRITE) nor a
 * reopen through /proc gives them a writable mapping. F_SEAL_FUTURE_WRITE is
 * not used: it would bar a restarted daemon from mapping its own pages.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cq/page.h"
#include "daemon/store_priv.h"
#include "proto/sum.h"

_Static_assert((1 << 16) % CQ_CHECK_CHUNK == 0, "whole chunks in a buffer");

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)	/* log2 of the size, above MFD_HUGE_SHIFT */
#endif

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Read-only reopen and mapping of mem->fd. */
static int map_both(struct cqd_mem *mem, struct cq_err *err)
{
	char path[32];
	void *base;
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", mem->fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	if (ro < 0)
		return cq_err_set(err, -errno, "reopening %s read-only: %s (is /proc mounted?)",
				  path, strerror(errno));
	base = mmap(NULL, mem->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mem->fd, 0);
	if (base == MAP_FAILED) {
		int ret = cq_err_set(err, -errno, "mapping %llu bytes: %s",
				     (unsigned long long)mem->bytes, strerror(errno));
		close(ro);
		return ret;
	}
	mem->ro_fd = ro;
	mem->base = base;
	return 0;
}

/**
 * cqd_fallocate() - fallocate(), again after a signal
 * @fd:    memfd
 * @off:   first byte
 * @bytes: bytes to reserve
 *
 * Return: 0 or -errno.
 */
int cqd_fallocate(int fd, uint64_t off, uint64_t bytes)
{
	int ret;

	do {
		ret = fallocate(fd, 0, (off_t)off, (off_t)bytes);
	} while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

static int reserve_all(int fd, uint64_t bytes, const struct cqd_mem_policy *policy,
		       struct cq_err *err)
{
	int ret = 0;

	if (policy && ftruncate(fd, (off_t)bytes) < 0)
		return -errno;
	ret = cqd_mem_prepare(fd, bytes, policy, err);
	if (!ret)
		ret = cqd_fallocate(fd, 0, bytes);
	if (!ret)
		cqd_mem_collapse(fd, bytes, policy);
	return ret;
}

/* Size first, then seals, then mode: only then may anybody else see it. */
static int size_and_seal(int fd, uint64_t bytes, bool reserve,
			 const struct cqd_mem_policy *policy, struct cq_err *err)
{
	struct cq_err why = { "" };
	int ret = 0;

	if (reserve)
		ret = reserve_all(fd, bytes, policy, &why);
	else if (ftruncate(fd, (off_t)bytes) < 0)
		ret = -errno;
	if (ret && why.text[0])
		return cq_err_set(err, ret, "%s", why.text);
	if (ret)
		return cq_err_set(err, ret, "reserving %llu bytes of memory: %s "
				  "(lower pool_bytes, or raise the memory limit of cqd)",
				  (unsigned long long)bytes, strerror(-ret));
	if (fcntl(fd, F_ADD_SEALS, SEALS) < 0 || fchmod(fd, 0444) < 0)
		return cq_err_set(err, -errno, "sealing a memfd: %s", strerror(errno));
	return 0;
}

static int make(const char *name, unsigned int flags, bool reserve, struct cqd_mem *mem,
		struct cq_err *err)
{
	struct cqd_mem m = { .bytes = mem->bytes, .fd = -1, .ro_fd = -1,
			     .policy = mem->policy };
	int ret;

	m.fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
	if (m.fd < 0)
		return cq_err_set(err, -errno, "memfd_create(%s): %s", name,
				  strerror(errno));
	ret = size_and_seal(m.fd, m.bytes, reserve, m.policy, err);
	if (!ret)
		ret = map_both(&m, err);
	if (ret) {
		close(m.fd);
		return ret;
	}
	*mem = m;
	return 0;
}

/**
 * cqd_memfd_make() - memfd of fixed size, mapped for cqd, readable for others
 * @name:    shown in /proc/<pid>/maps
 * @bytes:   size
 * @reserve: reserve every byte now (else the caller does before use)
 * @mem:     filled on success
 * @err:     text of the failure
 *
 * Return: 0 or -errno.
 */
int cqd_memfd_make(const char *name, uint64_t bytes, bool reserve, struct cqd_mem *mem,
		   struct cq_err *err)
{
	struct cqd_mem m = { .bytes = bytes };
	int ret = make(name, 0, reserve, &m, err);

	if (!ret)
		*mem = m;
	return ret;
}

/**
 * cqd_memfd_adopt() - map a memfd that came back from the fd store
 * @mem: fd and bytes set; the rest is filled on success
 * @err: text of the failure
 *
 * Return: 0; -EINVAL not a memfd of that size with our seals; other -errno.
 */
int cqd_memfd_adopt(struct cqd_mem *mem, struct cq_err *err)
{
	struct stat sb;
	int seals = fcntl(mem->fd, F_GET_SEALS);

	if (seals < 0 || (seals & SEALS) != SEALS ||
	    (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
		return cq_err_set(err, -EINVAL, "fd %d is not a sealed memfd", mem->fd);
	if (fstat(mem->fd, &sb) < 0 || (uint64_t)sb.st_size != mem->bytes)
		return cq_err_set(err, -EINVAL, "fd %d has another size than recorded",
				  mem->fd);
	if (fchmod(mem->fd, 0444) < 0)
		return cq_err_set(err, -errno, "fchmod: %s", strerror(errno));
	return map_both(mem, err);
}

/**
 * cqd_memfd_free() - unmap and close
 * @mem: may be half made; the memory lives on while others hold fds
 */
void cqd_memfd_free(struct cqd_mem *mem)
{
	if (mem->base)
		munmap(mem->base, mem->bytes);
	if (mem->ro_fd >= 0)
		close(mem->ro_fd);
	if (mem->fd >= 0)
		close(mem->fd);
	mem->base = NULL;
	mem->fd = -1;
	mem->ro_fd = -1;
}

static int memfd_usable(struct cq_err *err)
{
	int fd = memfd_create("cq-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return cq_err_set(err, -errno, "memfd_create: %s", strerror(errno));
	close(fd);
	return 0;
}

static int memfd_probe(struct cqd_mem_device *dev, struct cq_err *err)
{
	if (dev->uuid[0])
		return cq_err_set(err, -ENODEV, "%s: memfds are on the host", dev->uuid);
	dev->granularity = CQ_SLOT_ALIGN;
	return 0;
}

/* Reserved huge pages first: they are nobody else's if they are free. */
static int memfd_create_seg(struct cqd_mem *mem, struct cq_err *err)
{
	const struct cqd_mem_policy *p = mem->policy;

	if (p && p->huge != CQD_HUGE_NEVER && mem->bytes % CQD_HUGE_BYTES == 0 &&
	    !make("cq-seg", MFD_HUGETLB | MFD_HUGE_2MB, true, mem, NULL))
		return 0;
	return make("cq-seg", 0, true, mem, err);
}

/*
 * What is read there later is zeros, in memory of who reads it. A failure only
 * leaves the memory to those who keep the descriptor.
 */
static void memfd_discard(struct cqd_mem *mem)
{
	(void)fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			(off_t)mem->bytes);
}

static bool outside(const struct cqd_mem *mem, uint64_t off, uint64_t len)
{
	return off > mem->bytes || len > mem->bytes - off;
}

/*
 * Payloads are copied with pread() and pwrite(), through a buffer of the thread,
 * and never touched where they are mapped. Of a worker's arena because its owner
 * may shrink or punch it meanwhile, which is a short read or zeros here and
 * would be a SIGBUS there. Of a segment because every page touched costs a fault
 * now, and time when cqd is killed: 50 ms per GiB until its successor starts.
 */
static _Thread_local uint8_t bounce[1 << 16];

static int get(int fd, void *dst, uint64_t len, uint64_t off)
{
	uint8_t *p = dst;
	ssize_t n;

	while (len) {
		n = pread(fd, p, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EFAULT;
		p += n;
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static int put(const struct cqd_mem *mem, const void *src, uint64_t len, uint64_t off)
{
	const uint8_t *p = src;
	ssize_t n;

	while (len) {
		n = pwrite(mem->fd, p, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EINVAL) {
			/* hugetlbfs has no write(); its faults are few. */
			memcpy((uint8_t *)mem->base + off, p, len);
			return 0;
		}
		if (n < 0)
			return -errno;
		p += n;
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static int memfd_write(struct cqd_mem *mem, uint64_t dst_off, int src_fd,
		       uint64_t src_off, uint64_t len)
{
	uint64_t n;
	int ret;

	if (outside(mem, dst_off, len) || src_off > INT64_MAX - len)
		return -EINVAL;
	for (; len; len -= n, dst_off += n, src_off += n) {
		n = MIN(len, (uint64_t)sizeof(bounce));
		ret = get(src_fd, bounce, n, src_off);
		if (!ret)
			ret = put(mem, bounce, n, dst_off);
		if (ret)
			return ret;
	}
	return 0;
}

static int memfd_fill(struct cqd_mem *mem, uint64_t dst_off, const void *src,
		      uint64_t len)
{
	return outside(mem, dst_off, len) ? -EINVAL : put(mem, src, len, dst_off);
}

static int memfd_read(struct cqd_mem *mem, uint64_t off, void *dst, uint64_t len)
{
	return outside(mem, off, len) ? -EINVAL : get(mem->fd, dst, len, off);
}

static int memfd_check(struct cqd_mem *mem, uint64_t off, uint64_t len,
		       uint64_t *lo, uint64_t *hi)
{
	struct cqp_sum sum;
	uint64_t n;
	int ret;

	if (outside(mem, off, len))
		return -EINVAL;
	cqp_sum_begin(&sum);
	for (; len; len -= n, off += n) {
		n = MIN(len, (uint64_t)sizeof(bounce));
		ret = get(mem->fd, bounce, n, off);
		if (ret)
			return ret;
		cqp_sum_add(&sum, bounce, n);
	}
	cqp_sum_end(&sum, lo, hi);
	return 0;
}

const struct cqd_mem_ops cqd_mem_memfd = {
	.name = "memfd",
	.kind = CQD_MEM_MEMFD,
	.usable = memfd_usable,
	.probe = memfd_probe,
	.create = memfd_create_seg,
	.adopt = cqd_memfd_adopt,
	.discard = memfd_discard,
	.destroy = cqd_memfd_free,
	.write = memfd_write,
	.fill = memfd_fill,
	.read = memfd_read,
	.check = memfd_check,
};
