// SPDX-License-Identifier: MIT
/*
 * kernels/cuda/abi.h against NVIDIA's cuda.h: compiling this file is the test.
 * Built only where the toolkit's headers are. Every value, every structure,
 * and for every call the parameters of the variant of the version that is asked
 * for, one by one: same size, same kind.
 */
#include "kernels/cuda/abi.h"

/* Before cuda.h, which makes macros of many calls' names. */
#define ABI(name, version, params) typedef int (*abi_##name) params;
CQCU_CALLS(ABI)

#include <cuda.h>
#include <cudaTypedefs.h>
#include <type_traits>

/* Enumerations are int here; pointers are opaque; 64 bits are 64 bits. */
template<class A, class B> constexpr bool same_kind()
{
	if (sizeof(A) != sizeof(B) || alignof(A) != alignof(B))
		return false;
	if (std::is_pointer_v<A> != std::is_pointer_v<B>)
		return false;
	if (std::is_floating_point_v<A> != std::is_floating_point_v<B>)
		return false;
	return std::is_class_v<A> == std::is_class_v<B>;
}

/* What a pointer points to must be of the same size, where both are known. */
template<class T, class = void> struct size_of { static constexpr size_t value = 0; };
template<class T> struct size_of<T, std::enable_if_t<(sizeof(T) > 0) && !std::is_void_v<T>>> {
	static constexpr size_t value = sizeof(T);
};

template<class A, class B> constexpr bool same_param()
{
	if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
		using X = std::remove_pointer_t<A>;
		using Y = std::remove_pointer_t<B>;

		if constexpr (std::is_function_v<X> || std::is_function_v<Y> ||
			      std::is_void_v<X> || std::is_void_v<Y>)
			return true;
		else
			return !size_of<X>::value || !size_of<Y>::value ||
			       size_of<X>::value == size_of<Y>::value;
	} else {
		return same_kind<A, B>();
	}
}

template<class A, class B> struct same_call : std::false_type {};
template<class R, class... A, class S, class... B>
struct same_call<R (*)(A...), S (*)(B...)> {
	static constexpr bool check()
	{
		if constexpr (sizeof...(A) != sizeof...(B))
			return false;
		else
			return sizeof(R) == sizeof(S) && (same_param<A, B>() && ...);
	}
	static constexpr bool value = check();
};

#define CALL(name, version, params)							\
	static_assert(same_call<abi_##name, PFN_##name##_v##version>::value, #name);
CQCU_CALLS(CALL)
static_assert(same_call<cqcu_get_proc_fn, PFN_cuGetProcAddress_v12000>::value, "get_proc");

#define RESULT(name, value) \
	static_assert(CQCU_##name == (int)CUDA_##name, #name);
CQCU_RESULTS(RESULT)
static_assert(CQCU_SUCCESS == (int)CUDA_SUCCESS, "success");

#define CONSTANT(name, value) \
	static_assert(CQCU_##name == (int)CU_##name, #name);
CQCU_CONSTANTS(CONSTANT)

#define SIZE(a, b) static_assert(sizeof(a) == sizeof(b) && alignof(a) == alignof(b), #b)
SIZE(cqcu_ptr, CUdeviceptr);
SIZE(cqcu_mem, CUmemGenericAllocationHandle);
SIZE(cqcu_device, CUdevice);
SIZE(cqcu_uuid, CUuuid);
SIZE(cqcu_ipc_handle, CUipcMemHandle);
SIZE(cqcu_location, CUmemLocation);
SIZE(cqcu_mem_prop, CUmemAllocationProp);
SIZE(cqcu_access, CUmemAccessDesc);

#define FIELD(a, f, b, g)									\
	static_assert(offsetof(a, f) == offsetof(b, g) && sizeof(a::f) == sizeof(b::g), #b "." #g)
FIELD(cqcu_location, type, CUmemLocation, type);
FIELD(cqcu_location, id, CUmemLocation, id);
FIELD(cqcu_mem_prop, type, CUmemAllocationProp, type);
FIELD(cqcu_mem_prop, handle_types, CUmemAllocationProp, requestedHandleTypes);
FIELD(cqcu_mem_prop, location, CUmemAllocationProp, location);
FIELD(cqcu_mem_prop, windows, CUmemAllocationProp, win32HandleMetaData);
FIELD(cqcu_mem_prop, flags, CUmemAllocationProp, allocFlags);
FIELD(cqcu_mem_prop, flags.compression, CUmemAllocationProp, allocFlags.compressionType);
FIELD(cqcu_mem_prop, flags.gpudirect_rdma, CUmemAllocationProp, allocFlags.gpuDirectRDMACapable);
FIELD(cqcu_mem_prop, flags.usage, CUmemAllocationProp, allocFlags.usage);
FIELD(cqcu_access, location, CUmemAccessDesc, location);
FIELD(cqcu_access, flags, CUmemAccessDesc, flags);
