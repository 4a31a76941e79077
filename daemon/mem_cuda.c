// SPDX-License-Identifier: MIT
/*
 * Memory of segments on a GPU (sharing = vmm): allocations of the driver that lie behind
 * descriptors. Workers import those and map them; cqd maps nothing and has no context, so
 * that no fault of a kernel can reach it. Making and exporting are all that it asks of the
 * driver, which keeps the memory until the last descriptor and the last mapping are gone:
 * a descriptor of an earlier cqd is only looked at and duplicated.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cq/util.h"
#include "daemon/mem.h"
#include "kernels/cuda/driver.h"

static int cuda_usable(struct cq_err *err)
{
	const struct cqk_cuda *cu;

	return cqk_cuda_get(&cu, err);
}

static struct cqcu_mem_prop prop_of(int ordinal)
{
	return (struct cqcu_mem_prop){
		.type = CQCU_MEM_ALLOCATION_TYPE_PINNED,
		.handle_types = CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = { CQCU_MEM_LOCATION_TYPE_DEVICE, ordinal },
	};
}

/* Can its memory be shared by descriptors? */
static int supported(const struct cqk_cuda *cu, const struct cqd_mem_device *dev,
		     struct cq_err *err)
{
	static const int attr[] = {
		CQCU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
		CQCU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
	};
	unsigned int i;
	int value, res;

	for (i = 0; i < ARRAY_SIZE(attr); i++) {
		value = 0;
		res = cu->cuDeviceGetAttribute(&value, attr[i], dev->ordinal);
		if (res)
			return cqk_cuda_fail(err, res, "asking what the GPU can do");
		if (!value)
			return cq_err_set(err, -EOPNOTSUPP, "%s cannot share memory by "
					  "descriptors: set sharing = ipc", dev->uuid);
	}
	return 0;
}

/* "Device Minor: 0" of a device's page in /proc; -1: not there. */
static int minor_of(const char *pci)
{
	char path[96], line[128];
	unsigned int n;
	int found = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/driver/nvidia/gpus/%.32s/information", pci);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Device Minor: %u", &n) == 1 && n < 4096)
			found = (int)n;
	if (f)
		fclose(f);
	return found;
}

/* An emulated device has no node. */
static void find_node(const struct cqk_cuda *cu, struct cqd_mem_device *dev)
{
	char pci[32] = "";
	unsigned int i;
	int minor;

	dev->node[0] = '\0';
	if (cu->cuDeviceGetPCIBusId(pci, sizeof(pci), dev->ordinal))
		return;
	pci[sizeof(pci) - 1] = '\0';
	for (i = 0; pci[i]; i++)
		pci[i] = (char)tolower((unsigned char)pci[i]);
	if (strchr(pci, '/'))
		return;
	minor = minor_of(pci);
	if (minor >= 0)
		snprintf(dev->node, sizeof(dev->node), "/dev/nvidia%d", minor);
}

static int cuda_probe(struct cqd_mem_device *dev, struct cq_err *err)
{
	const struct cqk_cuda *cu;
	struct cqcu_mem_prop prop;
	size_t grain = 0, bytes = 0;
	int ret, res;

	ret = cqk_cuda_get(&cu, err);
	if (!ret)
		ret = cqk_cuda_find(&dev->ordinal, dev->uuid, err);
	if (!ret)
		ret = supported(cu, dev, err);
	if (ret)
		return ret;
	prop = prop_of(dev->ordinal);
	res = cu->cuMemGetAllocationGranularity(&grain, &prop,
						CQCU_MEM_ALLOC_GRANULARITY_MINIMUM);
	if (!res)
		res = cu->cuDeviceTotalMem(&bytes, dev->ordinal);
	if (res)
		return cqk_cuda_fail(err, res, "asking for the GPU's memory");
	if (!grain || grain & (grain - 1))
		return cq_err_set(err, -EIO, "%s: the driver names a granularity of %zu bytes",
				  dev->uuid, grain);
	dev->granularity = MAX(grain, (size_t)CQD_HUGE_BYTES);
	dev->bytes = bytes;
	find_node(cu, dev);
	return 0;
}

struct making {
	const struct cqk_cuda *cu;
	cqcu_mem h;
};

static int attempt(struct cqd_mem *mem, void *arg, struct cq_err *err)
{
	const struct cqcu_mem_prop prop = prop_of(mem->dev->ordinal);
	struct making *m = arg;
	char what[64];
	int res;

	res = m->cu->cuMemCreate(&m->h, mem->bytes, &prop, 0);
	if (res == CQCU_ERROR_OUT_OF_MEMORY)
		return -ENOMEM;
	if (!res)
		return 0;
	snprintf(what, sizeof(what), "making a segment of %llu MiB",
		 (unsigned long long)(mem->bytes >> 20));
	return cqk_cuda_fail(err, res, what);
}

/* A descriptor of our own for who asks: what is sent is never what the store keeps. */
static int second(struct cqd_mem *mem, struct cq_err *err)
{
	mem->ro_fd = fcntl(mem->fd, F_DUPFD_CLOEXEC, 3);
	if (mem->ro_fd < 0)
		return cq_err_set(err, -errno, "no descriptor for a segment: %s",
				  strerror(errno));
	return 0;
}

static int export(const struct cqk_cuda *cu, cqcu_mem h, struct cqd_mem *mem,
		  struct cq_err *err)
{
	int fd = -1, ret, res;

	res = cu->cuMemExportToShareableHandle(&fd, h,
					       CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	if (res)
		return cqk_cuda_fail(err, res, "exporting a segment");
	if (fd < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return cq_err_set(err, -EIO, "the driver gave no descriptor of a segment");
	mem->fd = fd;
	ret = second(mem, err);
	if (ret) {
		close(fd);
		mem->fd = -1;
	}
	return ret;
}

static int cuda_create(struct cqd_mem *mem, struct cq_err *err)
{
	struct making m = { .h = 0 };
	int ret;

	ret = cqk_cuda_get(&m.cu, err);
	if (!ret)
		ret = cqd_mem_patient(mem, attempt, &m, err);
	if (ret)
		return ret;
	ret = export(m.cu, m.h, mem, err);
	/* The descriptor keeps it from now on; without one it is gone. */
	m.cu->cuMemRelease(m.h);
	return ret;
}

/*
 * What the driver exports leads to its character device. The emulation has files of memory
 * and sockets; only a file's size can be looked at without a context.
 */
static int cuda_adopt(struct cqd_mem *mem, struct cq_err *err)
{
	struct stat sb;

	if (fstat(mem->fd, &sb) < 0 || S_ISDIR(sb.st_mode) ||
	    (S_ISREG(sb.st_mode) && (uint64_t)sb.st_size < mem->bytes))
		return cq_err_set(err, -EINVAL, "fd %d is not memory of a GPU", mem->fd);
	return second(mem, err);
}

/* It goes with the last importer: there is no other way to take it back. */
static void cuda_discard(struct cqd_mem *mem)
{
}

static void cuda_destroy(struct cqd_mem *mem)
{
	if (mem->ro_fd >= 0)
		close(mem->ro_fd);
	if (mem->fd >= 0)
		close(mem->fd);
	mem->ro_fd = -1;
	mem->fd = -1;
}

const struct cqd_mem_ops cqd_mem_cuda = {
	.name = "cuda-vmm",
	.kind = CQD_MEM_CUDA_VMM,
	.remote = true,
	.usable = cuda_usable,
	.probe = cuda_probe,
	.create = cuda_create,
	.adopt = cuda_adopt,
	.discard = cuda_discard,
	.destroy = cuda_destroy,
};
