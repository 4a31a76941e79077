// SPDX-License-Identifier: MIT
/* Segments in huge pages and on chosen nodes, and where there are none. */
#include <errno.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "tests/harness.h"
#include "daemon/config.h"
#include "daemon/store_priv.h"

#define BYTES (8ull << 20)

static struct cqd_mem make(const struct cqd_mem_policy *policy, uint64_t bytes)
{
	struct cqd_mem m = { .bytes = bytes, .fd = -1, .ro_fd = -1, .policy = policy };
	struct cq_err err = { "" };

	if (cqd_mem_memfd.create(&m, &err))
		FAIL("%s", err.text);
	return m;
}

/* Every byte is there, can be written and read, and goes again. */
static void use(struct cqd_mem *m)
{
	uint8_t in[4096], out[4096];
	const uint8_t *p;
	struct stat sb;
	uint64_t off;

	ASSERT_SYS(fstat(m->fd, &sb));
	ASSERT_EQ(sb.st_size, m->bytes);
	ASSERT_EQ(sb.st_blocks * 512, m->bytes);
	memset(in, 0x5a, sizeof(in));
	for (off = 0; off < m->bytes; off += 1 << 20) {
		in[0] = (uint8_t)(off >> 20);
		ASSERT_EQ(cqd_mem_memfd.fill(m, off + 4096, in, sizeof(in)), 0);
		ASSERT_EQ(cqd_mem_memfd.read(m, off + 4096, out, sizeof(out)), 0);
		ASSERT_MEMEQ(in, out, sizeof(in));
	}
	p = mmap(NULL, m->bytes, PROT_READ, MAP_SHARED, m->ro_fd, 0);
	ASSERT(p != MAP_FAILED);
	ASSERT_EQ(p[(7 << 20) + 4096], 7);
	cqd_mem_memfd.discard(m);
	ASSERT_EQ(p[(7 << 20) + 4096], 0);
	munmap((void *)(uintptr_t)p, m->bytes);
	cqd_mem_memfd.destroy(m);
}

/* Policy of the first page, as the kernel has it. */
static int policy_of(const struct cqd_mem *m)
{
	int mode = -1;

	if (syscall(SYS_get_mempolicy, &mode, NULL, 0, m->base, MPOL_F_ADDR) < 0)
		return -errno;
	return mode;
}

static bool may_bind(void)
{
	struct cqd_mem_policy p = { .numa = CQD_NUMA_INTERLEAVE };
	struct cqd_mem m = { .bytes = 4096, .fd = -1, .ro_fd = -1, .policy = &p };
	int ret = cqd_mem_memfd.create(&m, NULL);

	cqd_mem_memfd.destroy(&m);
	return !ret;
}

TEST(nodes)
{
	static const struct {
		const char *value;
		int mode;
	} t[] = {
		{ "default", MPOL_DEFAULT }, { "interleave", MPOL_INTERLEAVE },
		{ "bind:0", MPOL_BIND }, { "preferred:0", MPOL_PREFERRED },
	};
	unsigned int i;

	if (!may_bind())
		SKIP("mbind() is not allowed here");
	for (i = 0; i < ARRAY_SIZE(t); i++) {
		struct cqd_mem_policy p = { 0 };
		struct cqd_mem m;

		ASSERT_EQ(cqd_value_numa(t[i].value, &p, NULL), 0);
		m = make(&p, BYTES);
		ASSERT_EQ(policy_of(&m), t[i].mode);
		use(&m);
	}
}

TEST(a_node_that_is_not_there)
{
	struct cqd_mem_policy p = { .numa = CQD_NUMA_BIND, .nodes = 1ull << 63 };
	struct cqd_mem m = { .bytes = BYTES, .fd = -1, .ro_fd = -1, .policy = &p };
	struct cq_err err = { "" };
	char text[160];

	if (!may_bind())
		SKIP("mbind() is not allowed here");
	ASSERT_EQ(cqd_mem_memfd.create(&m, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "numa");
	ASSERT_EQ(cqd_mem_probe(&cqd_mem_memfd, &p, text, sizeof(text), &err), -EINVAL);
}

TEST(values)
{
	struct cqd_mem_policy p = { 0 };

	ASSERT_EQ(cqd_value_numa("bind:0,2-4,63", &p, NULL), 0);
	ASSERT_EQ(p.numa, CQD_NUMA_BIND);
	ASSERT_EQ(p.nodes, 1ull << 63 | 0x1d);
	ASSERT_EQ(cqd_value_numa("bind:0-63", &p, NULL), 0);
	ASSERT_EQ(p.nodes, UINT64_MAX);
	ASSERT_EQ(cqd_value_huge("always", &p, NULL), 0);
	ASSERT_EQ(p.huge, CQD_HUGE_ALWAYS);
	ASSERT_EQ(p.nodes, UINT64_MAX);
	ASSERT_EQ(cqd_value_huge("yes", &p, NULL), -EINVAL);
	ASSERT_EQ(cqd_value_numa("bind", &p, NULL), -EINVAL);
	ASSERT_EQ(cqd_value_numa("bind:", &p, NULL), -EINVAL);
	ASSERT_EQ(cqd_value_numa("bind:1,", &p, NULL), -EINVAL);
	ASSERT_EQ(cqd_value_numa("bind:3-1", &p, NULL), -EINVAL);
	ASSERT_EQ(cqd_value_numa("bind:64", &p, NULL), -EINVAL);
	ASSERT_EQ(cqd_value_numa("preferred:0-1", &p, NULL), -EINVAL);
	ASSERT_EQ(cqd_value_numa("near", &p, NULL), -EINVAL);
}

/* Whatever this machine gives, it is whole, and the probe says which. */
TEST(pages_of_any_size)
{
	static const uint32_t huge[] = { CQD_HUGE_NEVER, CQD_HUGE_AUTO, CQD_HUGE_ALWAYS };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(huge); i++) {
		struct cqd_mem_policy p = { .huge = huge[i] };
		struct cq_err err = { "" };
		struct cqd_mem m;
		char text[160];

		ASSERT_EQ(cqd_mem_probe(&cqd_mem_memfd, &p, text, sizeof(text), &err), 0);
		printf("# hugepages %u: %s\n", huge[i], text);
		if (huge[i] == CQD_HUGE_NEVER)
			ASSERT_STREQ(text, "4 KiB pages");
		m = make(&p, BYTES);
		use(&m);
		m = make(&p, BYTES + 4096 * 3);	/* no whole huge pages */
		use(&m);
	}
}

static uint64_t free_huge(void)
{
	unsigned long long n = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "HugePages_Free: %llu", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

/* Reserved ones while they last; kept over a restart as any memfd. */
TEST(reserved_huge_pages)
{
	struct cqd_mem_policy p = { .huge = CQD_HUGE_AUTO };
	struct cqd_mem m, again;
	struct cq_err err = { "" };
	struct stat sb;

	if (free_huge() < BYTES / CQD_HUGE_BYTES)
		SKIP("no reserved huge pages: vm.nr_hugepages");
	m = make(&p, BYTES);
	ASSERT_SYS(fstat(m.fd, &sb));
	ASSERT_EQ(sb.st_blksize, CQD_HUGE_BYTES);
	again = (struct cqd_mem){ .bytes = BYTES, .fd = dup(m.fd), .ro_fd = -1 };
	if (cqd_mem_memfd.adopt(&again, &err))
		FAIL("%s", err.text);
	cqd_mem_memfd.destroy(&again);
	use(&m);
	/* more than there are: small ones */
	m = make(&p, (free_huge() + 1) * CQD_HUGE_BYTES);
	ASSERT_SYS(fstat(m.fd, &sb));
	ASSERT_NE(sb.st_blksize, CQD_HUGE_BYTES);
	cqd_mem_memfd.destroy(&m);
}
