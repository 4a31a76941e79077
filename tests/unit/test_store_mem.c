// SPDX-License-Identifier: MIT
/* Memory of segments: what a reader can do with the fd it gets, and short sources. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>
#include "tests/harness.h"
#include "daemon/store_priv.h"
#include "tests/unit/remote_mem.h"

#define BYTES (64u << 10)

static struct cqd_mem make(void)
{
	struct cqd_mem m = { .bytes = BYTES, .fd = -1, .ro_fd = -1 };
	struct cq_err err;

	if (cqd_mem_memfd.create(&m, &err))
		FAIL("%s", err.text);
	return m;
}

/* Every way to a writable mapping that a holder of @fd could try. */
static void try_to_write(int fd)
{
	char path[32];
	void *p;

	ASSERT(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) ==
	       MAP_FAILED);
	p = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT(p != MAP_FAILED);
	ASSERT_EQ(mprotect(p, BYTES, PROT_READ | PROT_WRITE), -1);
	munmap(p, BYTES);
	ASSERT_EQ(write(fd, "x", 1), -1);
	ASSERT_EQ(ftruncate(fd, 0), -1);
	ASSERT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
	ASSERT_EQ(fchmod(fd, 0666), -1);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ASSERT_EQ(open(path, O_RDWR | O_CLOEXEC), -1);
	ASSERT_EQ(open(path, O_WRONLY | O_CLOEXEC), -1);
	ASSERT_EQ(chmod(path, 0666), -1);
}

TEST(reader_cannot_write)
{
	struct cqd_mem m = make();
	struct stat sb;
	int seals;

	ASSERT_EQ(fstat(m.ro_fd, &sb), 0);
	ASSERT_EQ(sb.st_mode & 0777, 0444);
	ASSERT_EQ(sb.st_blocks * 512, BYTES);
	seals = fcntl(m.fd, F_GET_SEALS);
	ASSERT_EQ(seals, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	if (geteuid() != 0)
		SKIP("needs root to become another uid");
	ASSERT_EQ(setgid(12345), 0);
	ASSERT_EQ(setuid(12345), 0);
	try_to_write(m.ro_fd);
	cqd_mem_memfd.destroy(&m);
}

TEST(short_source)
{
	struct cqd_mem m = make();
	int src = memfd_create("src", MFD_CLOEXEC);
	char got[4] = "";

	ASSERT_EQ(ftruncate(src, 5000), 0);
	ASSERT_EQ(cqd_mem_memfd.write(&m, 64, src, 0, 5000), 0);
	ASSERT_EQ(cqd_mem_memfd.write(&m, 64, src, 0, 5001), -EFAULT);
	ASSERT_EQ(cqd_mem_memfd.write(&m, 64, src, 9000, 1), -EFAULT);
	ASSERT_EQ(cqd_mem_memfd.write(&m, BYTES - 10, src, 0, 11), -EINVAL);
	ASSERT_EQ(cqd_mem_memfd.write(&m, 0, src, UINT64_MAX, 2), -EINVAL);
	ASSERT_EQ(cqd_mem_memfd.fill(&m, BYTES, "x", 1), -EINVAL);
	ASSERT_EQ(cqd_mem_memfd.fill(&m, BYTES - 3, "abc", 3), 0);
	ASSERT_EQ(cqd_mem_memfd.read(&m, BYTES - 3, got, 3), 0);
	ASSERT_STREQ(got, "abc");
	ASSERT_EQ(cqd_mem_memfd.read(&m, BYTES - 3, got, 4), -EINVAL);
	close(src);
	cqd_mem_memfd.destroy(&m);
}

/* The definition, spelled out: XXH3-128 over the XXH3-64 of each 4 KiB. */
TEST(checksum)
{
	struct cqd_mem m = make();
	uint64_t sums[3], lo, hi;
	XXH128_hash_t h;
	uint8_t *p = m.base;
	unsigned int i;

	for (i = 0; i < BYTES; i++)
		p[i] = (uint8_t)(i * 7 + (i >> 8));
	for (i = 0; i < 2; i++)
		sums[i] = XXH3_64bits(p + 64 + i * 4096, 4096);
	sums[2] = XXH3_64bits(p + 64 + 8192, 100);
	h = XXH3_128bits(sums, sizeof(sums));
	ASSERT_EQ(cqd_mem_memfd.check(&m, 64, 8292, &lo, &hi), 0);
	ASSERT(lo == h.low64 && hi == h.high64);
	p[64 + 8192 + 99] ^= 1;
	ASSERT_EQ(cqd_mem_memfd.check(&m, 64, 8292, &lo, &hi), 0);
	ASSERT(lo != h.low64 || hi != h.high64);
	ASSERT_EQ(cqd_mem_memfd.check(&m, BYTES - 4, 5, &lo, &hi), -EINVAL);
	cqd_mem_memfd.destroy(&m);
}

static int adopt(int fd, uint64_t bytes)
{
	struct cqd_mem m = { .bytes = bytes, .fd = fd, .ro_fd = -1 };
	struct cq_err err;
	int ret = cqd_mem_memfd.adopt(&m, &err);

	if (!ret) {
		munmap(m.base, m.bytes);
		close(m.ro_fd);
	}
	return ret;
}

TEST(adoption_is_picky)
{
	struct cqd_mem m = make();
	int fd = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ASSERT_EQ(adopt(m.fd, BYTES), 0);
	ASSERT_EQ(adopt(m.fd, BYTES + 4096), -EINVAL);
	ASSERT_EQ(ftruncate(fd, BYTES), 0);
	ASSERT_EQ(adopt(fd, BYTES), -EINVAL);
	ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE |
			F_SEAL_SEAL), 0);
	ASSERT_EQ(adopt(fd, BYTES), -EINVAL);
	close(fd);
	ASSERT_EQ(adopt(fd, BYTES), -EINVAL);
	cqd_mem_memfd.destroy(&m);
}

TEST(registration_refuses_holes)
{
	struct cqd_mem_ops o = cqd_mem_memfd;

	ASSERT_EQ(cqd_mem_register(&cqd_mem_memfd), -EINVAL);
	o.name = "other";
	o.check = NULL;
	ASSERT_EQ(cqd_mem_register(&o), -EINVAL);
	o = cqd_mem_memfd;
	o.name = "";
	ASSERT_EQ(cqd_mem_register(&o), -EINVAL);
	o.name = "other";
	ASSERT_EQ(cqd_mem_register(&o), 0);
	ASSERT(cqd_mem_find("other") == &o);
	ASSERT_EQ(cqd_mem_register(&o), -EINVAL);
	ASSERT(!cqd_mem_find("cuda"));
}

/* Of memory that cqd cannot reach there is nothing to be called for payloads. */
TEST(registration_of_remote_memory)
{
	struct cqd_mem_ops o = remote_ops;

	o.read = cqd_mem_memfd.read;
	ASSERT_EQ(cqd_mem_register(&o), -EINVAL);
	o = remote_ops;
	o.probe = NULL;
	ASSERT_EQ(cqd_mem_register(&o), -EINVAL);
	o = remote_ops;
	o.remote = false;
	ASSERT_EQ(cqd_mem_register(&o), -EINVAL);
	ASSERT_EQ(cqd_mem_register(&remote_ops), 0);
}
