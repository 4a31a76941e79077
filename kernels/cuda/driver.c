// SPDX-License-Identifier: MIT
/*
 * Loading of libcuda.so.1, and what its results mean.
 *
 * A driver that was started does not survive fork(): its threads are gone and
 * its files are the parent's. The process that starts it is written down
 * before anything is loaded, and every other process is refused. That check
 * takes no lock, since a child may have been born while another thread held it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include "cq/util.h"
#include "kernels/cuda/driver.h"

#define LIBRARY	"libcuda.so.1"

static struct {
	pthread_mutex_t lock;
	_Atomic(pid_t) owner;	/* process that loads or has loaded; 0 = none */
	atomic_bool ready;	/* release: calls is complete, cuInit() was done */
	void *lib;
	struct cqk_cuda calls;
} drv = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* A function pointer out of dlsym(), which ISO C has no cast for. */
#define SYMBOL(lib, name, fn) ({						\
	void *_p = dlsym(lib, name);						\
	memcpy(&(fn), &_p, sizeof(fn));						\
	_p != NULL;								\
})

static int check_version(void *lib, struct cq_err *err)
{
	int (*get_version)(int *version), version = 0, res;

	if (!SYMBOL(lib, "cuDriverGetVersion", get_version))
		return cq_err_set(err, -ENOSYS, LIBRARY " is no CUDA driver: it has no "
				  "cuDriverGetVersion");
	res = get_version(&version);
	if (res)
		return cqk_cuda_fail(err, res, "cuDriverGetVersion");
	if (version < CQK_CUDA_NEED)
		return cq_err_set(err, -ENOSYS, "the NVIDIA driver is too old: it is for CUDA "
				  "%d.%d, 12.0 or newer is needed", version / 1000,
				  version % 1000 / 10);
	return 0;
}

static int get_calls(void *lib, struct cqk_cuda *calls, struct cq_err *err)
{
	static const struct {
		const char *name;
		int version;
		size_t at;
	} want[] = {
#define CALL(name, version, params) { #name, version, offsetof(struct cqk_cuda, name) },
		CQCU_CALLS(CALL)
#undef CALL
	};
	cqcu_get_proc_fn get_proc;
	void *fn;
	int status;

	if (!SYMBOL(lib, "cuGetProcAddress_v2", get_proc))
		return cq_err_set(err, -ENOSYS, "the NVIDIA driver has no cuGetProcAddress_v2: "
				  "one for CUDA 12.0 or newer is needed");
	for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
		fn = NULL;
		status = 0;
		if (get_proc(want[i].name, &fn, want[i].version, 0, &status) || !fn)
			return cq_err_set(err, -ENOSYS, "the NVIDIA driver has no %s of CUDA "
					  "%d.%d", want[i].name, want[i].version / 1000,
					  want[i].version % 1000 / 10);
		memcpy((char *)calls + want[i].at, &fn, sizeof(fn));
	}
	return 0;
}

static int start(const struct cqk_cuda *calls, struct cq_err *err)
{
	int n = 0, res;

	res = calls->cuInit(0);
	if (!res)
		res = calls->cuDeviceGetCount(&n);
	if (res == CQCU_ERROR_NO_DEVICE || (!res && !n))
		return cq_err_set(err, -ENODEV, "the NVIDIA driver finds no GPU: see nvidia-smi "
				  "and CUDA_VISIBLE_DEVICES");
	if (res == CQCU_ERROR_STUB_LIBRARY)
		return cq_err_set(err, -ENODEV, LIBRARY " is the toolkit's stub, not a driver: "
				  "take its folder out of LD_LIBRARY_PATH");
	if (res == CQCU_ERROR_SYSTEM_DRIVER_MISMATCH)
		return cq_err_set(err, -ENOSYS, LIBRARY " and the NVIDIA kernel module are of "
				  "different versions: reboot, or load the module again");
	if (res)
		return cqk_cuda_fail(err, res, "cuInit");
	return 0;
}

static int load(struct cq_err *err)
{
	struct cqk_cuda calls = { 0 };
	void *lib = drv.lib;
	int ret;

	if (!lib)
		lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	if (!lib)
		return cq_err_set(err, -ENODEV, "no NVIDIA driver (" LIBRARY " was not found): "
				  "host memory is used");
	ret = check_version(lib, err);
	if (!ret)
		ret = get_calls(lib, &calls, err);
	if (ret) {
		dlclose(lib);
		drv.lib = NULL;
		return ret;
	}
	/* From here on it stays: threads of a started driver run its code. */
	drv.lib = lib;
	ret = start(&calls, err);
	if (ret)
		return ret;
	drv.calls = calls;
	/* Pairs with the acquire in make_ready(). */
	atomic_store_explicit(&drv.ready, true, memory_order_release);
	return 0;
}

static bool is_owner(void)
{
	pid_t self = getpid(), owner = 0;

	return atomic_compare_exchange_strong(&drv.owner, &owner, self) || owner == self;
}

static int make_ready(struct cq_err *err)
{
	int ret = 0;

	if (!is_owner())
		return cq_err_set(err, -EOWNERDEAD, "process %d was forked from one that uses "
				  "CUDA: exec first, or fork before CUDA is used", getpid());
	if (atomic_load_explicit(&drv.ready, memory_order_acquire))
		return 0;
	pthread_mutex_lock(&drv.lock);
	/* Another thread's failure may have taken it back. */
	atomic_store(&drv.owner, getpid());
	if (!atomic_load_explicit(&drv.ready, memory_order_relaxed))
		ret = load(err);
	/* With nothing loaded a child may try for itself. */
	if (!drv.lib)
		atomic_store(&drv.owner, 0);
	pthread_mutex_unlock(&drv.lock);
	return ret;
}

int cqk_cuda_get(const struct cqk_cuda **cu, struct cq_err *err)
{
	int ret = make_ready(err);

	if (!ret)
		*cu = &drv.calls;
	return ret;
}

int cqk_cuda_errno(int result)
{
	static const struct {
		short result, code;
	} map[] = {
		{ CQCU_SUCCESS, 0 },
		{ CQCU_ERROR_INVALID_VALUE, EINVAL },
		{ CQCU_ERROR_OUT_OF_MEMORY, ENOMEM },
		{ CQCU_ERROR_NOT_INITIALIZED, ESHUTDOWN },
		{ CQCU_ERROR_DEINITIALIZED, ESHUTDOWN },
		{ CQCU_ERROR_STUB_LIBRARY, ENODEV },
		{ CQCU_ERROR_CALL_REQUIRES_NEWER_DRIVER, ENOSYS },
		{ CQCU_ERROR_DEVICE_UNAVAILABLE, EBUSY },
		{ CQCU_ERROR_NO_DEVICE, ENODEV },
		{ CQCU_ERROR_INVALID_DEVICE, ENODEV },
		{ CQCU_ERROR_INVALID_IMAGE, ENOEXEC },
		{ CQCU_ERROR_INVALID_CONTEXT, EINVAL },
		{ CQCU_ERROR_ALREADY_MAPPED, EEXIST },
		{ CQCU_ERROR_NO_BINARY_FOR_GPU, ENOEXEC },
		{ CQCU_ERROR_NOT_MAPPED, ENXIO },
		{ CQCU_ERROR_PEER_ACCESS_UNSUPPORTED, EOPNOTSUPP },
		{ CQCU_ERROR_INVALID_PTX, ENOEXEC },
		{ CQCU_ERROR_UNSUPPORTED_PTX_VERSION, ENOEXEC },
		{ CQCU_ERROR_JIT_COMPILER_NOT_FOUND, ENOEXEC },
		{ CQCU_ERROR_JIT_COMPILATION_DISABLED, ENOEXEC },
		{ CQCU_ERROR_FILE_NOT_FOUND, ENOENT },
		{ CQCU_ERROR_INVALID_HANDLE, EBADF },
		{ CQCU_ERROR_ILLEGAL_STATE, EBUSY },
		{ CQCU_ERROR_NOT_FOUND, ENOENT },
		{ CQCU_ERROR_NOT_READY, EAGAIN },
		{ CQCU_ERROR_ILLEGAL_ADDRESS, EFAULT },
		{ CQCU_ERROR_LAUNCH_OUT_OF_RESOURCES, E2BIG },
		{ CQCU_ERROR_LAUNCH_TIMEOUT, ETIMEDOUT },
		{ CQCU_ERROR_CONTEXT_IS_DESTROYED, ESHUTDOWN },
		{ CQCU_ERROR_HOST_MEMORY_ALREADY_REGISTERED, EEXIST },
		{ CQCU_ERROR_HOST_MEMORY_NOT_REGISTERED, ENXIO },
		{ CQCU_ERROR_NOT_PERMITTED, EPERM },
		{ CQCU_ERROR_NOT_SUPPORTED, EOPNOTSUPP },
		{ CQCU_ERROR_SYSTEM_NOT_READY, EAGAIN },
		{ CQCU_ERROR_SYSTEM_DRIVER_MISMATCH, ENOSYS },
		{ CQCU_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, ENOSYS },
		{ CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED, EBUSY },
		{ CQCU_ERROR_STREAM_CAPTURE_INVALIDATED, EBUSY },
		{ CQCU_ERROR_STREAM_CAPTURE_IMPLICIT, EBUSY },
		{ CQCU_ERROR_TIMEOUT, ETIMEDOUT },
	};

	for (size_t i = 0; i < ARRAY_SIZE(map); i++)
		if (map[i].result == result)
			return -map[i].code;
	return -EIO;
}

bool cqk_cuda_fatal(int result)
{
	static const short fatal[] = {
		CQCU_ERROR_DEINITIALIZED,
		CQCU_ERROR_ECC_UNCORRECTABLE,
		CQCU_ERROR_NVLINK_UNCORRECTABLE,
		CQCU_ERROR_CONTAINED,
		CQCU_ERROR_ILLEGAL_ADDRESS,
		CQCU_ERROR_LAUNCH_TIMEOUT,
		CQCU_ERROR_CONTEXT_IS_DESTROYED,
		CQCU_ERROR_ASSERT,
		CQCU_ERROR_HARDWARE_STACK_ERROR,
		CQCU_ERROR_ILLEGAL_INSTRUCTION,
		CQCU_ERROR_MISALIGNED_ADDRESS,
		CQCU_ERROR_INVALID_ADDRESS_SPACE,
		CQCU_ERROR_INVALID_PC,
		CQCU_ERROR_LAUNCH_FAILED,
		CQCU_ERROR_MPS_RPC_FAILURE,
		CQCU_ERROR_MPS_CLIENT_TERMINATED,
	};

	for (size_t i = 0; i < ARRAY_SIZE(fatal); i++)
		if (fatal[i] == result)
			return true;
	return false;
}

/* Results that can be met before the driver's own words are at hand are named here. */
static const char *result_name(int result)
{
	static const struct {
		int result;
		const char *name;
	} names[] = {
		{ CQCU_SUCCESS, "CUDA_SUCCESS" },
#define NAME(name, value) { value, "CUDA_" #name },
		CQCU_RESULTS(NAME)
#undef NAME
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].result == result)
			return names[i].name;
	return NULL;
}

const char *cqk_cuda_text(int result, char text[CQK_CUDA_TEXT])
{
	const char *name = result_name(result), *words = NULL;

	if (atomic_load_explicit(&drv.ready, memory_order_acquire)) {
		if (!name && drv.calls.cuGetErrorName(result, &name))
			name = NULL;
		if (drv.calls.cuGetErrorString(result, &words))
			words = NULL;
	}
	if (name && words)
		snprintf(text, CQK_CUDA_TEXT, "%s (%s)", words, name);
	else if (name)
		snprintf(text, CQK_CUDA_TEXT, "%s", name);
	else
		snprintf(text, CQK_CUDA_TEXT, "CUDA error %d", result);
	return text;
}

int cqk_cuda_fail(struct cq_err *err, int result, const char *what)
{
	char text[CQK_CUDA_TEXT];

	return cq_err_set(err, cqk_cuda_errno(result), "%s: %s", what,
			  cqk_cuda_text(result, text));
}

static void uuid_text(const struct cqcu_uuid *u, char text[CQK_CUDA_UUID])
{
	const unsigned char *b = u->bytes;

	snprintf(text, CQK_CUDA_UUID,
		 "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12],
		 b[13], b[14], b[15]);
}

int cqk_cuda_uuid(cqcu_device dev, char text[CQK_CUDA_UUID], struct cq_err *err)
{
	struct cqcu_uuid uuid;
	int ret, res;

	ret = make_ready(err);
	if (ret)
		return ret;
	res = drv.calls.cuDeviceGetUuid(&uuid, dev);
	if (res)
		return cqk_cuda_fail(err, res, "cuDeviceGetUuid");
	uuid_text(&uuid, text);
	return 0;
}

/* "GPU-" or "MIG-", then 8-4-4-4-12 hexadecimal digits. */
static bool is_uuid(const char *text)
{
	static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

	if (!text || (strncasecmp(text, "GPU-", 4) && strncasecmp(text, "MIG-", 4)))
		return false;
	text += 4;
	for (size_t i = 0; i < sizeof(form); i++)
		if (form[i] == 'x' ? !strchr("0123456789abcdefABCDEF", text[i]) || !text[i] :
		    text[i] != form[i])
			return false;
	return true;
}

static int unknown_uuid(const char *uuid, int n, struct cq_err *err)
{
	char there[CQ_ERR_TEXT] = "", name[CQK_CUDA_UUID];
	cqcu_device dev;
	size_t len = 0;

	for (int i = 0; i < n; i++) {
		if (drv.calls.cuDeviceGet(&dev, i) || cqk_cuda_uuid(dev, name, NULL))
			continue;
		/* Of many GPUs the first are named, as far as the text has room. */
		if (len > CQ_ERR_TEXT - 120) {
			snprintf(there + len, sizeof(there) - len, ", ...");
			break;
		}
		len += (size_t)snprintf(there + len, sizeof(there) - len, "%s%s",
					len ? ", " : "", name);
	}
	return cq_err_set(err, -ENODEV, "no GPU %s here, but %s", uuid, there);
}

int cqk_cuda_find(cqcu_device *dev, const char *uuid, struct cq_err *err)
{
	char name[CQK_CUDA_UUID];
	int n = 0, ret, res;
	cqcu_device d;

	if (!is_uuid(uuid))
		return cq_err_set(err, -EINVAL, "\"%.60s\" is no UUID of a GPU such as "
				  "GPU-01234567-89ab-cdef-0123-456789abcdef: see nvidia-smi -L",
				  uuid ? uuid : "");
	ret = make_ready(err);
	if (ret)
		return ret;
	res = drv.calls.cuDeviceGetCount(&n);
	if (res)
		return cqk_cuda_fail(err, res, "cuDeviceGetCount");
	for (int i = 0; i < n; i++) {
		if (drv.calls.cuDeviceGet(&d, i) || cqk_cuda_uuid(d, name, NULL))
			continue;
		if (!strcasecmp(name + 4, uuid + 4)) {
			*dev = d;
			return 0;
		}
	}
	return unknown_uuid(uuid, n, err);
}
