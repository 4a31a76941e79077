// SPDX-License-Identifier: MIT
/* Memory of another process: imported, opened, mapped. */
#include <errno.h>
#include <string.h>
#include "kernels/cuda/map.h"

int cqk_cuda_map(const struct cqk_cuda *cu, cqcu_device dev, cqcu_mem h, uint64_t bytes,
		 int rights, cqcu_ptr *out, const char **what)
{
	struct cqcu_access access = {
		.location = { CQCU_MEM_LOCATION_TYPE_DEVICE, dev }, .flags = rights,
	};
	cqcu_ptr p;
	int r;

	*what = "addresses for a segment";
	r = cu->cuMemAddressReserve(&p, bytes, 0, 0, 0);
	if (r)
		return r;
	*what = "mapping a segment";
	r = cu->cuMemMap(p, bytes, 0, h, 0);
	if (r)
		goto err_free;
	r = cu->cuMemSetAccess(p, bytes, &access, 1);
	if (r)
		goto err_unmap;
	*out = p;
	return 0;

err_unmap:
	cu->cuMemUnmap(p, bytes);
err_free:
	cu->cuMemAddressFree(p, bytes);
	return r;
}

int cqk_cuda_map_fd(const struct cqk_cuda *cu, cqcu_device dev, int fd, uint64_t bytes,
		    cqcu_ptr *out, const char **what)
{
	cqcu_mem h;
	int r;

	*what = "importing a segment";
	r = cu->cuMemImportFromShareableHandle(&h, (void *)(intptr_t)fd,
					       CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (r)
		return r;
	r = cqk_cuda_map(cu, dev, h, bytes, CQCU_MEM_ACCESS_FLAGS_PROT_READ, out, what);
	cu->cuMemRelease(h);
	return r;
}

void cqk_cuda_unmap(const struct cqk_cuda *cu, cqcu_ptr p, uint64_t bytes)
{
	if (!p)
		return;
	cu->cuMemUnmap(p, bytes);
	cu->cuMemAddressFree(p, bytes);
}

int cqk_cuda_open_handle(const struct cqk_cuda *cu, const uint8_t *handle, uint64_t bytes,
			 cqcu_ptr *out)
{
	struct cqcu_ipc_handle h;
	size_t size = 0;
	cqcu_ptr p, low;
	int r;

	memcpy(&h, handle, sizeof(h));
	r = cu->cuIpcOpenMemHandle(&p, h, CQCU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
	if (r)
		return r;
	r = cu->cuMemGetAddressRange(&low, &size, p);
	if (r || low != p || size < bytes) {
		cu->cuIpcCloseMemHandle(p);
		return -EPROTO;
	}
	*out = p;
	return 0;
}
