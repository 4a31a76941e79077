// SPDX-License-Identifier: MIT
/*
 * Start, devices and their primary contexts.
 */
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/emu/fake.hpp"

namespace fake {

std::mutex big;
std::atomic<bool> started;

/* One for each device; never freed, so that a stale handle is only that. */
static struct cqcu_ctx *const contexts = new struct cqcu_ctx[MAX_DEVICES]();
static thread_local std::vector<struct cqcu_ctx *> stack;

struct cqcu_ctx *current()
{
	struct cqcu_ctx *c = stack.empty() ? nullptr : stack.back();

	return c && c->refs ? c : nullptr;
}

int ctx_device(const struct cqcu_ctx *c)
{
	return c->dev;
}

int device_of(int ordinal)
{
	return ordinal < 0 || ordinal >= knobs.num_visible ? -1 : knobs.visible[ordinal];
}

int ordinal_of(int dev)
{
	for (int i = 0; i < knobs.num_visible; i++)
		if (knobs.visible[i] == dev)
			return i;
	return 0;
}

static bool is_context(const struct cqcu_ctx *c)
{
	return std::any_of(contexts, contexts + MAX_DEVICES,
			   [c](const struct cqcu_ctx &x) { return &x == c && x.refs; });
}

static void at_exit()
{
	streams_quiesce();
	state_sweep();
}

namespace calls {

int cuInit(unsigned int flags)
{
	std::lock_guard<std::mutex> hold(big);

	if (flags)
		return CQCU_ERROR_INVALID_VALUE;
	if (started)
		return CQCU_SUCCESS;
	knobs_read();
	int failed = inject(0, "cuInit");
	if (failed)
		return failed;
	if (!knobs.num_visible)
		return CQCU_ERROR_NO_DEVICE;
	for (int i = 0; i < MAX_DEVICES; i++)
		contexts[i].dev = i;
	space_start();
	atexit(at_exit);
	started = true;
	return CQCU_SUCCESS;
}

int cuDriverGetVersion(int *version)
{
	const char *text = getenv("CQ_EMU_VERSION");

	if (!version)
		return CQCU_ERROR_INVALID_VALUE;
	*version = text ? (int)strtol(text, nullptr, 10) : 13000;
	return CQCU_SUCCESS;
}

int cuDeviceGetCount(int *n)
{
	if (!n)
		return CQCU_ERROR_INVALID_VALUE;
	*n = knobs.num_visible;
	return CQCU_SUCCESS;
}

int cuDeviceGet(cqcu_device *dev, int i)
{
	if (!dev)
		return CQCU_ERROR_INVALID_VALUE;
	if (device_of(i) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	*dev = i;
	return CQCU_SUCCESS;
}

int cuDeviceGetName(char *name, int size, cqcu_device dev)
{
	if (!name || size < 1)
		return CQCU_ERROR_INVALID_VALUE;
	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	snprintf(name, (size_t)size, "emulated device %d (no GPU)", device_of(dev));
	return CQCU_SUCCESS;
}

int cuDeviceGetUuid(struct cqcu_uuid *uuid, cqcu_device dev)
{
	if (!uuid)
		return CQCU_ERROR_INVALID_VALUE;
	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	device_uuid(device_of(dev), uuid);
	return CQCU_SUCCESS;
}

int cuDeviceGetPCIBusId(char *id, int size, cqcu_device dev)
{
	if (!id || size < 13)
		return CQCU_ERROR_INVALID_VALUE;
	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	snprintf(id, (size_t)size, "0000:%02X:00.0", (unsigned int)device_of(dev) + 1);
	return CQCU_SUCCESS;
}

int cuDeviceTotalMem(size_t *bytes, cqcu_device dev)
{
	if (!bytes)
		return CQCU_ERROR_INVALID_VALUE;
	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	*bytes = knobs.memory;
	return CQCU_SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attr, cqcu_device dev)
{
	static const struct {
		int attr, value;
	} map[] = {
		{ CQCU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 0x7fffffff },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 << 10 },
		{ CQCU_DEVICE_ATTRIBUTE_WARP_SIZE, 32 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536 },
		{ CQCU_DEVICE_ATTRIBUTE_CLOCK_RATE, 10000 },
		{ CQCU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 4 },
		{ CQCU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 4 << 20 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048 },
		{ CQCU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1 },
		{ CQCU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, (int)knobs.arch / 10 },
		{ CQCU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, (int)knobs.arch % 10 },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
		  shared_of_block() + (1 << 10) },
		{ CQCU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, shared_of_block() },
		{ CQCU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1 },
		{ CQCU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 1 },
		{ CQCU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, 1 },
	};

	if (!value || attr < 1 || attr > 200)
		return CQCU_ERROR_INVALID_VALUE;
	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	*value = 0;
	for (auto &m : map)
		if (m.attr == attr)
			*value = m.value;
	return CQCU_SUCCESS;
}

int cuDevicePrimaryCtxRetain(struct cqcu_ctx **ctx, cqcu_device dev)
{
	std::lock_guard<std::mutex> hold(big);

	if (!ctx)
		return CQCU_ERROR_INVALID_VALUE;
	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	*ctx = &contexts[device_of(dev)];
	(*ctx)->refs++;
	return CQCU_SUCCESS;
}

/* What was made in it stays until the process ends; handles stay handles. */
int cuDevicePrimaryCtxRelease(cqcu_device dev)
{
	std::lock_guard<std::mutex> hold(big);

	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	if (!contexts[device_of(dev)].refs)
		return CQCU_ERROR_INVALID_CONTEXT;
	contexts[device_of(dev)].refs--;
	return CQCU_SUCCESS;
}

int cuDevicePrimaryCtxSetFlags(cqcu_device dev, unsigned int flags)
{
	std::lock_guard<std::mutex> hold(big);

	if (device_of(dev) < 0)
		return CQCU_ERROR_INVALID_DEVICE;
	if (flags & ~0x1fu)
		return CQCU_ERROR_INVALID_VALUE;
	contexts[device_of(dev)].flags = flags;
	return CQCU_SUCCESS;
}

int cuCtxSetCurrent(struct cqcu_ctx *ctx)
{
	std::lock_guard<std::mutex> hold(big);

	if (ctx && !is_context(ctx))
		return CQCU_ERROR_INVALID_CONTEXT;
	if (!stack.empty())
		stack.pop_back();
	if (ctx)
		stack.push_back(ctx);
	return CQCU_SUCCESS;
}

int cuCtxGetCurrent(struct cqcu_ctx **ctx)
{
	if (!ctx)
		return CQCU_ERROR_INVALID_VALUE;
	*ctx = stack.empty() ? nullptr : stack.back();
	return CQCU_SUCCESS;
}

int cuCtxPushCurrent(struct cqcu_ctx *ctx)
{
	std::lock_guard<std::mutex> hold(big);

	if (!is_context(ctx))
		return CQCU_ERROR_INVALID_CONTEXT;
	stack.push_back(ctx);
	return CQCU_SUCCESS;
}

int cuCtxPopCurrent(struct cqcu_ctx **ctx)
{
	if (stack.empty())
		return CQCU_ERROR_INVALID_CONTEXT;
	if (ctx)
		*ctx = stack.back();
	stack.pop_back();
	return CQCU_SUCCESS;
}

int cuCtxGetDevice(cqcu_device *dev)
{
	if (!dev)
		return CQCU_ERROR_INVALID_VALUE;
	*dev = ordinal_of(current()->dev);
	return CQCU_SUCCESS;
}

int cuCtxSynchronize(void)
{
	return sync_all(current());
}

} /* namespace calls */
} /* namespace fake */
