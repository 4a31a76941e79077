/* SPDX-License-Identifier: MIT */
/*
 * The CUDA driver's binary interface, as far as cq uses it: no header of
 * NVIDIA is needed to build. Every CU and CUDA of their names is CQCU or cqcu
 * here; calls keep their names, so that NVIDIA's manual can be searched for
 * them. tests/emu/abi_check.cpp compares all of this with cuda.h where one is
 * installed.
 *
 * Driver calls return enum cqcu_result, declared as int: a newer driver knows
 * more results than are listed. Enumerations passed by value are int or
 * unsigned int, which is what the calling convention makes of an enum.
 */
#ifndef CQK_CUDA_ABI_H
#define CQK_CUDA_ABI_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t cqcu_ptr;	/* an address on the device */
typedef uint64_t cqcu_mem;	/* memory of cuMemCreate, not yet an address */
typedef int cqcu_device;	/* an ordinal: differs between processes */

struct cqcu_ctx;
struct cqcu_stream;
struct cqcu_event;
struct cqcu_module;
struct cqcu_func;
struct cqcu_graph;
struct cqcu_exec;		/* a graph made ready to be launched */

typedef void (*cqcu_host_fn)(void *arg);

/* X(name, value): CUDA_name; MAP_FAILED alone is a macro of <sys/mman.h> */
#define CQCU_RESULTS(X)								\
	X(ERROR_INVALID_VALUE, 1)						\
	X(ERROR_OUT_OF_MEMORY, 2)						\
	X(ERROR_NOT_INITIALIZED, 3)						\
	X(ERROR_DEINITIALIZED, 4)						\
	X(ERROR_STUB_LIBRARY, 34)						\
	X(ERROR_CALL_REQUIRES_NEWER_DRIVER, 36)					\
	X(ERROR_DEVICE_UNAVAILABLE, 46)						\
	X(ERROR_NO_DEVICE, 100)							\
	X(ERROR_INVALID_DEVICE, 101)						\
	X(ERROR_DEVICE_NOT_LICENSED, 102)					\
	X(ERROR_INVALID_IMAGE, 200)						\
	X(ERROR_INVALID_CONTEXT, 201)						\
	X(ERROR_MAP_FAILED, 205)						\
	X(ERROR_UNMAP_FAILED, 206)						\
	X(ERROR_ALREADY_MAPPED, 208)						\
	X(ERROR_NO_BINARY_FOR_GPU, 209)						\
	X(ERROR_NOT_MAPPED, 211)						\
	X(ERROR_ECC_UNCORRECTABLE, 214)						\
	X(ERROR_PEER_ACCESS_UNSUPPORTED, 217)					\
	X(ERROR_INVALID_PTX, 218)						\
	X(ERROR_NVLINK_UNCORRECTABLE, 220)					\
	X(ERROR_JIT_COMPILER_NOT_FOUND, 221)					\
	X(ERROR_UNSUPPORTED_PTX_VERSION, 222)					\
	X(ERROR_JIT_COMPILATION_DISABLED, 223)					\
	X(ERROR_CONTAINED, 226)							\
	X(ERROR_FILE_NOT_FOUND, 301)						\
	X(ERROR_OPERATING_SYSTEM, 304)						\
	X(ERROR_INVALID_HANDLE, 400)						\
	X(ERROR_ILLEGAL_STATE, 401)						\
	X(ERROR_NOT_FOUND, 500)							\
	X(ERROR_NOT_READY, 600)							\
	X(ERROR_ILLEGAL_ADDRESS, 700)						\
	X(ERROR_LAUNCH_OUT_OF_RESOURCES, 701)					\
	X(ERROR_LAUNCH_TIMEOUT, 702)						\
	X(ERROR_PRIMARY_CONTEXT_ACTIVE, 708)					\
	X(ERROR_CONTEXT_IS_DESTROYED, 709)					\
	X(ERROR_ASSERT, 710)							\
	X(ERROR_HOST_MEMORY_ALREADY_REGISTERED, 712)				\
	X(ERROR_HOST_MEMORY_NOT_REGISTERED, 713)				\
	X(ERROR_HARDWARE_STACK_ERROR, 714)					\
	X(ERROR_ILLEGAL_INSTRUCTION, 715)					\
	X(ERROR_MISALIGNED_ADDRESS, 716)					\
	X(ERROR_INVALID_ADDRESS_SPACE, 717)					\
	X(ERROR_INVALID_PC, 718)						\
	X(ERROR_LAUNCH_FAILED, 719)						\
	X(ERROR_NOT_PERMITTED, 800)						\
	X(ERROR_NOT_SUPPORTED, 801)						\
	X(ERROR_SYSTEM_NOT_READY, 802)						\
	X(ERROR_SYSTEM_DRIVER_MISMATCH, 803)					\
	X(ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, 804)				\
	X(ERROR_MPS_CONNECTION_FAILED, 805)					\
	X(ERROR_MPS_RPC_FAILURE, 806)						\
	X(ERROR_MPS_SERVER_NOT_READY, 807)					\
	X(ERROR_MPS_MAX_CLIENTS_REACHED, 808)					\
	X(ERROR_MPS_MAX_CONNECTIONS_REACHED, 809)				\
	X(ERROR_MPS_CLIENT_TERMINATED, 810)					\
	X(ERROR_STREAM_CAPTURE_UNSUPPORTED, 900)				\
	X(ERROR_STREAM_CAPTURE_INVALIDATED, 901)				\
	X(ERROR_STREAM_CAPTURE_MERGE, 902)					\
	X(ERROR_STREAM_CAPTURE_UNMATCHED, 903)					\
	X(ERROR_STREAM_CAPTURE_UNJOINED, 904)					\
	X(ERROR_STREAM_CAPTURE_ISOLATION, 905)					\
	X(ERROR_STREAM_CAPTURE_IMPLICIT, 906)					\
	X(ERROR_CAPTURED_EVENT, 907)						\
	X(ERROR_STREAM_CAPTURE_WRONG_THREAD, 908)				\
	X(ERROR_TIMEOUT, 909)							\
	X(ERROR_UNKNOWN, 999)

#define CQCU_RESULT(name, value) CQCU_##name = (value),
enum cqcu_result {
	CQCU_SUCCESS = 0,
	CQCU_RESULTS(CQCU_RESULT)
};
#undef CQCU_RESULT

/* X(name, value): CU_name, of several enumerations and macros */
#define CQCU_CONSTANTS(X)							\
	X(DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1)				\
	X(DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 2)					\
	X(DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 3)					\
	X(DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 4)					\
	X(DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 5)					\
	X(DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 6)					\
	X(DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 7)					\
	X(DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 8)			\
	X(DEVICE_ATTRIBUTE_WARP_SIZE, 10)					\
	X(DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 12)				\
	X(DEVICE_ATTRIBUTE_CLOCK_RATE, 13)					\
	X(DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 16)				\
	X(DEVICE_ATTRIBUTE_INTEGRATED, 18)					\
	X(DEVICE_ATTRIBUTE_COMPUTE_MODE, 20)					\
	X(DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 36)				\
	X(DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 37)				\
	X(DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 38)					\
	X(DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 39)			\
	X(DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 41)				\
	X(DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 75)			\
	X(DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 76)			\
	X(DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 81)		\
	X(DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 97)		\
	X(DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 102)		\
	X(DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 103)	\
	X(DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, 122)			\
	X(FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 0)				\
	X(FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 1)					\
	X(FUNC_ATTRIBUTE_CONST_SIZE_BYTES, 2)					\
	X(FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, 3)					\
	X(FUNC_ATTRIBUTE_NUM_REGS, 4)						\
	X(FUNC_ATTRIBUTE_PTX_VERSION, 5)					\
	X(FUNC_ATTRIBUTE_BINARY_VERSION, 6)					\
	X(FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 8)			\
	X(FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 9)			\
	X(POINTER_ATTRIBUTE_CONTEXT, 1)						\
	X(POINTER_ATTRIBUTE_MEMORY_TYPE, 2)					\
	X(POINTER_ATTRIBUTE_DEVICE_POINTER, 3)					\
	X(POINTER_ATTRIBUTE_HOST_POINTER, 4)					\
	X(POINTER_ATTRIBUTE_IS_MANAGED, 8)					\
	X(POINTER_ATTRIBUTE_DEVICE_ORDINAL, 9)					\
	X(POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, 10)			\
	X(POINTER_ATTRIBUTE_RANGE_START_ADDR, 11)				\
	X(POINTER_ATTRIBUTE_RANGE_SIZE, 12)					\
	X(POINTER_ATTRIBUTE_MAPPED, 13)						\
	X(POINTER_ATTRIBUTE_ACCESS_FLAGS, 16)					\
	X(MEMORYTYPE_HOST, 1)							\
	X(MEMORYTYPE_DEVICE, 2)							\
	X(IPC_MEM_LAZY_ENABLE_PEER_ACCESS, 1)					\
	X(CTX_SCHED_AUTO, 0)							\
	X(CTX_SCHED_SPIN, 1)							\
	X(CTX_SCHED_YIELD, 2)							\
	X(CTX_SCHED_BLOCKING_SYNC, 4)						\
	X(STREAM_DEFAULT, 0)							\
	X(STREAM_NON_BLOCKING, 1)						\
	X(EVENT_DEFAULT, 0)							\
	X(EVENT_BLOCKING_SYNC, 1)						\
	X(EVENT_DISABLE_TIMING, 2)						\
	X(EVENT_INTERPROCESS, 4)						\
	X(STREAM_WAIT_VALUE_GEQ, 0)						\
	X(STREAM_WAIT_VALUE_EQ, 1)						\
	X(STREAM_WAIT_VALUE_AND, 2)						\
	X(STREAM_WRITE_VALUE_DEFAULT, 0)					\
	X(STREAM_CAPTURE_MODE_GLOBAL, 0)					\
	X(STREAM_CAPTURE_MODE_THREAD_LOCAL, 1)					\
	X(STREAM_CAPTURE_MODE_RELAXED, 2)					\
	X(STREAM_CAPTURE_STATUS_NONE, 0)					\
	X(STREAM_CAPTURE_STATUS_ACTIVE, 1)					\
	X(STREAM_CAPTURE_STATUS_INVALIDATED, 2)					\
	X(MEM_ALLOCATION_TYPE_PINNED, 1)					\
	X(MEM_HANDLE_TYPE_NONE, 0)						\
	X(MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 1)				\
	X(MEM_LOCATION_TYPE_DEVICE, 1)						\
	X(MEM_ACCESS_FLAGS_PROT_NONE, 0)					\
	X(MEM_ACCESS_FLAGS_PROT_READ, 1)					\
	X(MEM_ACCESS_FLAGS_PROT_READWRITE, 3)					\
	X(MEM_ALLOC_GRANULARITY_MINIMUM, 0)					\
	X(MEM_ALLOC_GRANULARITY_RECOMMENDED, 1)					\
	X(MEMHOSTALLOC_PORTABLE, 1)						\
	X(MEMHOSTALLOC_DEVICEMAP, 2)						\
	X(MEMHOSTALLOC_WRITECOMBINED, 4)					\
	X(MEMHOSTREGISTER_PORTABLE, 1)						\
	X(MEMHOSTREGISTER_DEVICEMAP, 2)						\
	X(MEMHOSTREGISTER_READ_ONLY, 8)

#define CQCU_CONSTANT(name, value) CQCU_##name = (value),
enum cqcu_constant {
	CQCU_CONSTANTS(CQCU_CONSTANT)
};
#undef CQCU_CONSTANT

/* Streams that need not be created, besides NULL, which is the first of them. */
#define CQCU_STREAM_LEGACY	((struct cqcu_stream *)1)
#define CQCU_STREAM_PER_THREAD	((struct cqcu_stream *)2)

struct cqcu_uuid {
	unsigned char bytes[16];
};

struct cqcu_ipc_handle {
	char reserved[64];
};

struct cqcu_location {
	int type;		/* CQCU_MEM_LOCATION_TYPE_* */
	int id;			/* cqcu_device */
};

struct cqcu_mem_prop {
	int type;		/* CQCU_MEM_ALLOCATION_TYPE_PINNED */
	int handle_types;	/* CQCU_MEM_HANDLE_TYPE_* */
	struct cqcu_location location;
	void *windows;		/* NULL */
	struct {
		unsigned char compression;
		unsigned char gpudirect_rdma;
		unsigned short usage;
		unsigned char reserved[4];
	} flags;
};

struct cqcu_access {
	struct cqcu_location location;
	int flags;		/* CQCU_MEM_ACCESS_FLAGS_PROT_* */
};

/*
 * X(name, version, parameters): every call that cq makes, and the version of
 * CUDA whose variant of it is asked for (11040 = 11.4).
 */
#define CQCU_CALLS_DEVICE(X)							\
	X(cuInit, 2000, (unsigned int flags))					\
	X(cuDriverGetVersion, 2020, (int *version))				\
	X(cuGetErrorName, 6000, (int result, const char **text))		\
	X(cuGetErrorString, 6000, (int result, const char **text))		\
	X(cuDeviceGetCount, 2000, (int *n))					\
	X(cuDeviceGet, 2000, (cqcu_device *dev, int i))				\
	X(cuDeviceGetName, 2000, (char *name, int size, cqcu_device dev))	\
	X(cuDeviceGetUuid, 11040, (struct cqcu_uuid *uuid, cqcu_device dev))	\
	X(cuDeviceGetPCIBusId, 4010, (char *id, int size, cqcu_device dev))	\
	X(cuDeviceTotalMem, 3020, (size_t *bytes, cqcu_device dev))		\
	X(cuDeviceGetAttribute, 2000, (int *value, int attr, cqcu_device dev))	\
	X(cuDevicePrimaryCtxRetain, 7000, (struct cqcu_ctx **ctx, cqcu_device dev)) \
	X(cuDevicePrimaryCtxRelease, 11000, (cqcu_device dev))			\
	X(cuDevicePrimaryCtxSetFlags, 11000, (cqcu_device dev, unsigned int flags)) \
	X(cuCtxSetCurrent, 4000, (struct cqcu_ctx *ctx))			\
	X(cuCtxGetCurrent, 4000, (struct cqcu_ctx **ctx))			\
	X(cuCtxPushCurrent, 4000, (struct cqcu_ctx *ctx))			\
	X(cuCtxPopCurrent, 4000, (struct cqcu_ctx **ctx))			\
	X(cuCtxGetDevice, 2000, (cqcu_device *dev))				\
	X(cuCtxSynchronize, 2000, (void))

#define CQCU_CALLS_MEMORY(X)							\
	X(cuMemGetInfo, 3020, (size_t *free_bytes, size_t *total))		\
	X(cuMemAlloc, 3020, (cqcu_ptr *p, size_t size))				\
	X(cuMemFree, 3020, (cqcu_ptr p))					\
	X(cuMemGetAddressRange, 3020, (cqcu_ptr *base, size_t *size, cqcu_ptr p)) \
	X(cuMemHostAlloc, 2020, (void **p, size_t size, unsigned int flags))	\
	X(cuMemFreeHost, 2000, (void *p))					\
	X(cuMemHostRegister, 6050, (void *p, size_t size, unsigned int flags))	\
	X(cuMemHostUnregister, 4000, (void *p))					\
	X(cuMemHostGetDevicePointer, 3020, (cqcu_ptr *dp, void *p, unsigned int flags)) \
	X(cuPointerGetAttribute, 4000, (void *value, int attr, cqcu_ptr p))	\
	X(cuMemcpyHtoD, 3020, (cqcu_ptr to, const void *from, size_t size))	\
	X(cuMemcpyDtoH, 3020, (void *to, cqcu_ptr from, size_t size))		\
	X(cuMemcpyDtoD, 3020, (cqcu_ptr to, cqcu_ptr from, size_t size))	\
	X(cuMemcpyHtoDAsync, 3020, (cqcu_ptr to, const void *from, size_t size,	\
				    struct cqcu_stream *s))			\
	X(cuMemcpyDtoHAsync, 3020, (void *to, cqcu_ptr from, size_t size,	\
				    struct cqcu_stream *s))			\
	X(cuMemcpyDtoDAsync, 3020, (cqcu_ptr to, cqcu_ptr from, size_t size,	\
				    struct cqcu_stream *s))			\
	X(cuMemsetD8, 3020, (cqcu_ptr p, unsigned char value, size_t n))	\
	X(cuMemsetD8Async, 3020, (cqcu_ptr p, unsigned char value, size_t n,	\
				  struct cqcu_stream *s))			\
	X(cuMemsetD32Async, 3020, (cqcu_ptr p, unsigned int value, size_t n,	\
				   struct cqcu_stream *s))

#define CQCU_CALLS_SHARING(X)							\
	X(cuIpcGetMemHandle, 4010, (struct cqcu_ipc_handle *h, cqcu_ptr p))	\
	X(cuIpcOpenMemHandle, 11000, (cqcu_ptr *p, struct cqcu_ipc_handle h,	\
				      unsigned int flags))			\
	X(cuIpcCloseMemHandle, 4010, (cqcu_ptr p))				\
	X(cuMemGetAllocationGranularity, 10020, (size_t *size,			\
		const struct cqcu_mem_prop *prop, int option))			\
	X(cuMemCreate, 10020, (cqcu_mem *h, size_t size,			\
		const struct cqcu_mem_prop *prop, unsigned long long flags))	\
	X(cuMemRelease, 10020, (cqcu_mem h))					\
	X(cuMemRetainAllocationHandle, 11000, (cqcu_mem *h, void *addr))	\
	X(cuMemGetAllocationPropertiesFromHandle, 10020,			\
	  (struct cqcu_mem_prop *prop, cqcu_mem h))				\
	X(cuMemExportToShareableHandle, 10020, (void *handle, cqcu_mem h,	\
		int type, unsigned long long flags))				\
	X(cuMemImportFromShareableHandle, 10020, (cqcu_mem *h, void *handle, int type)) \
	X(cuMemAddressReserve, 10020, (cqcu_ptr *p, size_t size, size_t align,	\
		cqcu_ptr wish, unsigned long long flags))			\
	X(cuMemAddressFree, 10020, (cqcu_ptr p, size_t size))			\
	X(cuMemMap, 10020, (cqcu_ptr p, size_t size, size_t offset, cqcu_mem h,	\
			    unsigned long long flags))				\
	X(cuMemUnmap, 10020, (cqcu_ptr p, size_t size))				\
	X(cuMemSetAccess, 10020, (cqcu_ptr p, size_t size,			\
				  const struct cqcu_access *desc, size_t n))	\
	X(cuMemGetAccess, 10020, (unsigned long long *flags,			\
				  const struct cqcu_location *location, cqcu_ptr p))

#define CQCU_CALLS_STREAM(X)							\
	X(cuStreamCreate, 2000, (struct cqcu_stream **s, unsigned int flags))	\
	X(cuStreamCreateWithPriority, 5050, (struct cqcu_stream **s,		\
					     unsigned int flags, int priority))	\
	X(cuStreamDestroy, 4000, (struct cqcu_stream *s))			\
	X(cuStreamSynchronize, 2000, (struct cqcu_stream *s))			\
	X(cuStreamQuery, 2000, (struct cqcu_stream *s))				\
	X(cuStreamGetCtx, 9020, (struct cqcu_stream *s, struct cqcu_ctx **ctx))	\
	X(cuStreamWaitEvent, 3020, (struct cqcu_stream *s, struct cqcu_event *e, \
				    unsigned int flags))			\
	X(cuStreamWaitValue64, 11070, (struct cqcu_stream *s, cqcu_ptr p,	\
				       uint64_t value, unsigned int flags))	\
	X(cuStreamWriteValue64, 11070, (struct cqcu_stream *s, cqcu_ptr p,	\
					uint64_t value, unsigned int flags))	\
	X(cuLaunchHostFunc, 10000, (struct cqcu_stream *s, cqcu_host_fn fn, void *arg)) \
	X(cuEventCreate, 2000, (struct cqcu_event **e, unsigned int flags))	\
	X(cuEventDestroy, 4000, (struct cqcu_event *e))				\
	X(cuEventRecord, 2000, (struct cqcu_event *e, struct cqcu_stream *s))	\
	X(cuEventQuery, 2000, (struct cqcu_event *e))				\
	X(cuEventSynchronize, 2000, (struct cqcu_event *e))			\
	X(cuEventElapsedTime, 2000, (float *ms, struct cqcu_event *from,	\
				     struct cqcu_event *to))

#define CQCU_CALLS_GRAPH(X)							\
	X(cuStreamBeginCapture, 10010, (struct cqcu_stream *s, int mode))	\
	X(cuStreamEndCapture, 10000, (struct cqcu_stream *s, struct cqcu_graph **g)) \
	X(cuStreamIsCapturing, 10000, (struct cqcu_stream *s, int *status))	\
	X(cuThreadExchangeStreamCaptureMode, 10010, (int *mode))		\
	X(cuGraphInstantiateWithFlags, 11040, (struct cqcu_exec **x,		\
		struct cqcu_graph *g, unsigned long long flags))		\
	X(cuGraphLaunch, 10000, (struct cqcu_exec *x, struct cqcu_stream *s))	\
	X(cuGraphExecDestroy, 10000, (struct cqcu_exec *x))			\
	X(cuGraphDestroy, 10000, (struct cqcu_graph *g))

#define CQCU_CALLS_KERNEL(X)							\
	X(cuModuleLoadData, 2000, (struct cqcu_module **m, const void *image))	\
	X(cuModuleUnload, 2000, (struct cqcu_module *m))			\
	X(cuModuleGetFunction, 2000, (struct cqcu_func **f,			\
				      struct cqcu_module *m, const char *name)) \
	X(cuFuncGetAttribute, 2020, (int *value, int attr, struct cqcu_func *f)) \
	X(cuFuncSetAttribute, 9000, (struct cqcu_func *f, int attr, int value))	\
	X(cuLaunchKernel, 4000, (struct cqcu_func *f, unsigned int grid_x,	\
		unsigned int grid_y, unsigned int grid_z, unsigned int block_x,	\
		unsigned int block_y, unsigned int block_z, unsigned int shared, \
		struct cqcu_stream *s, void **params, void **extra))		\
	X(cuOccupancyMaxActiveBlocksPerMultiprocessor, 6050, (int *blocks,	\
		struct cqcu_func *f, int threads, size_t shared))

#define CQCU_CALLS(X)								\
	CQCU_CALLS_DEVICE(X)							\
	CQCU_CALLS_MEMORY(X)							\
	CQCU_CALLS_SHARING(X)							\
	CQCU_CALLS_STREAM(X)							\
	CQCU_CALLS_GRAPH(X)							\
	CQCU_CALLS_KERNEL(X)

/* The one symbol looked up by name; the other calls come from it. */
typedef int (*cqcu_get_proc_fn)(const char *name, void **fn, int version,
				uint64_t flags, int *status);

/*
 * The driver's calls, all of them there (struct cqk_cuda, of cqk_cuda_get()).
 * Members have the names of NVIDIA's manual: cu->cuMemAlloc(&p, size). Each
 * returns enum cqcu_result.
 */
#define CQCU_MEMBER(name, version, params) int (*name)params;
struct cqk_cuda {
	CQCU_CALLS(CQCU_MEMBER)
};
#undef CQCU_MEMBER

#endif /* CQK_CUDA_ABI_H */
