// SPDX-License-Identifier: MIT
/*
 * Where the pages of host memory come from: huge pages and NUMA nodes.
 *
 * A node policy belongs to the file (mbind() of a shared mapping), so it is
 * set once, before the first page is there, holds for everybody who maps it and
 * survives a restart of cqd. Huge pages of two kinds: those reserved by the
 * administrator (hugetlbfs), and transparent ones of shared memory, as far as
 * shmem_enabled lets them be had; "always" collapses what it does not.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "daemon/store_priv.h"

/* Linux 5.14 and 6.1; older headers lack them, older kernels refuse them. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* --- mappings at a multiple of the huge page --- */

struct window {
	char *area, *base;
	uint64_t area_bytes, bytes;
};

static int window_open(struct window *w, int fd, uint64_t bytes)
{
	char *at;
	int ret;

	w->bytes = bytes;
	w->area_bytes = bytes + CQD_HUGE_BYTES;
	w->area = mmap(NULL, w->area_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
		       MAP_NORESERVE, -1, 0);
	if (w->area == MAP_FAILED)
		return -errno;
	at = w->area + (ALIGN_UP((uintptr_t)w->area, CQD_HUGE_BYTES) - (uintptr_t)w->area);
	w->base = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (w->base != MAP_FAILED)
		return 0;
	ret = -errno;
	munmap(w->area, w->area_bytes);
	return ret;
}

static void window_close(const struct window *w)
{
	munmap(w->area, w->area_bytes);
}

/* --- nodes --- */

/* Nodes that cqd may use, by bit; 0 if the kernel does not tell. */
static uint64_t nodes_allowed(void)
{
	unsigned long mask[1024 / (8 * sizeof(long))] = { 0 };

	if (syscall(SYS_get_mempolicy, NULL, mask, 8 * sizeof(mask), NULL,
		    MPOL_F_MEMS_ALLOWED) < 0)
		return 0;
	return mask[0];
}

static int bind_nodes(const struct window *w, const struct cqd_mem_policy *p,
		      struct cq_err *err)
{
	static const int modes[] = {
		[CQD_NUMA_INTERLEAVE] = MPOL_INTERLEAVE, [CQD_NUMA_BIND] = MPOL_BIND,
		[CQD_NUMA_PREFERRED] = MPOL_PREFERRED,
	};
	uint64_t allowed = nodes_allowed();
	unsigned long nodes = p->numa == CQD_NUMA_INTERLEAVE ? (allowed ? allowed : 1) :
								 p->nodes;

	if (p->numa == CQD_NUMA_DEFAULT)
		return 0;
	if (allowed && (nodes & ~allowed))
		return cq_err_set(err, -EINVAL, "numa: nodes by bit 0x%lx, cqd may use 0x%llx",
				  nodes, (unsigned long long)allowed);
	/* The kernel reads one bit less than it is told. */
	if (syscall(SYS_mbind, w->base, w->bytes, modes[p->numa], &nodes,
		    8 * sizeof(nodes) + 1, 0) < 0)
		return cq_err_set(err, -errno, "numa: mbind: %s", strerror(errno));
	return 0;
}

/* --- transparent huge pages --- */

/* Does the kernel give huge pages to shared memory that asks for them? */
static bool shmem_huge(void)
{
	FILE *f = fopen(SHMEM_ENABLED, "re");
	char line[128] = "";
	bool on;

	if (!f)
		return false;
	on = fgets(line, sizeof(line), f) && !strstr(line, "[never]") &&
	     !strstr(line, "[deny]");
	fclose(f);
	return on;
}

/**
 * cqd_mem_prepare() - before the memory of a file is reserved
 * @fd:     memfd that has its size and no page yet
 * @bytes:  its size
 * @policy: what is wanted, NULL: nothing
 * @err:    text of the failure
 *
 * Sets the nodes, and takes transparent huge pages where they can be had: not
 * getting them is no failure. Blocks.
 *
 * Return: 0; -EINVAL nodes that are not there; other -errno.
 */
int cqd_mem_prepare(int fd, uint64_t bytes, const struct cqd_mem_policy *policy,
		    struct cq_err *err)
{
	bool huge = policy && policy->huge != CQD_HUGE_NEVER && bytes >= CQD_HUGE_BYTES;
	struct window w;
	int ret;

	if (!policy || (!huge && policy->numa == CQD_NUMA_DEFAULT))
		return 0;
	ret = window_open(&w, fd, bytes);
	if (ret)
		return cq_err_set(err, ret, "mapping %llu bytes: %s",
				  (unsigned long long)bytes, strerror(-ret));
	ret = bind_nodes(&w, policy, err);
	/* Faults take huge pages and fallocate() does not: it fills up what is left. */
	if (!ret && huge && shmem_huge() && !madvise(w.base, bytes, MADV_HUGEPAGE))
		(void)madvise(w.base, bytes, MADV_POPULATE_WRITE);
	window_close(&w);
	return ret;
}

/**
 * cqd_mem_collapse() - make huge pages of what is reserved
 * @fd:     memfd, reserved
 * @bytes:  its size
 * @policy: what is wanted, NULL: nothing; CQD_HUGE_ALWAYS does it
 *
 * Whatever shmem_enabled says; a kernel that cannot leaves small pages. Blocks.
 */
void cqd_mem_collapse(int fd, uint64_t bytes, const struct cqd_mem_policy *policy)
{
	struct window w;

	if (!policy || policy->huge != CQD_HUGE_ALWAYS || bytes < CQD_HUGE_BYTES ||
	    shmem_huge() || window_open(&w, fd, bytes))
		return;
	(void)madvise(w.base, bytes / CQD_HUGE_BYTES * CQD_HUGE_BYTES, MADV_COLLAPSE);
	window_close(&w);
}

/* --- what was got --- */

/* Bytes of the mapping at @base that the kernel maps by huge pages. */
static bool mapped_huge(const void *base)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long from, kb = 0;
	bool mine = false;
	char line[512];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-", &from) == 1 && strchr(line, '-') &&
		    strchr(line, '-') < strchr(line, ' '))
			mine = from == (uintptr_t)base;
		else if (mine && sscanf(line, "ShmemPmdMapped: %lu", &kb) == 1)
			break;
	}
	if (f)
		fclose(f);
	return kb > 0;
}

static bool is_huge(int fd, uint64_t bytes)
{
	struct window w = { 0 };
	struct stat sb;
	bool huge;

	if (!fstat(fd, &sb) && sb.st_blksize >= CQD_HUGE_BYTES)
		return true;
	if (window_open(&w, fd, bytes) || !w.base)
		return false;
	*(volatile char *)w.base = 0;
	huge = mapped_huge(w.base);
	window_close(&w);
	return huge;
}

/**
 * cqd_mem_probe() - try a policy on a small segment
 * @ops:    backend
 * @policy: wanted; its nodes are forgotten if this process may not choose any
 * @text:   [@size] what segments will be made of, for the log
 * @size:   of @text
 * @err:    text of the failure
 *
 * Return: 0; -EINVAL nodes that are not there; other -errno.
 */
int cqd_mem_probe(const struct cqd_mem_ops *ops, struct cqd_mem_policy *policy, char *text,
		  size_t size, struct cq_err *err)
{
	struct cqd_mem mem = { .bytes = CQD_HUGE_BYTES, .fd = -1, .ro_fd = -1,
			       .policy = policy };
	const char *pages = "4 KiB pages", *nodes = "";
	int ret = ops->create(&mem, err);
	struct stat sb;

	if (ret == -EPERM || ret == -ENOSYS) {
		policy->numa = CQD_NUMA_DEFAULT;
		nodes = "; numa is not in effect: this process may not call mbind()";
		ret = ops->create(&mem, err);
	}
	if (ret)
		return ret;
	if (!fstat(mem.fd, &sb) && sb.st_blksize >= CQD_HUGE_BYTES)
		pages = "reserved huge pages of 2 MiB, as long as there are free ones";
	else if (policy->huge != CQD_HUGE_NEVER && is_huge(mem.fd, mem.bytes))
		pages = "transparent huge pages of 2 MiB";
	snprintf(text, size, "%s%s", pages, nodes);
	ops->destroy(&mem);
	return 0;
}
