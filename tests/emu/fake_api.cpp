// SPDX-License-Identifier: MIT
/*
 * The face of the fake driver. Each call goes through one wrapper, which
 * refuses what any call may be refused for: no cuInit(), a fork since then, no
 * context, a context that is lost, a capture that the call would break, or a
 * failure that was asked for.
 */
#include <string_view>
#include <unistd.h>

#include "tests/emu/fake.hpp"

namespace fake {

enum need { NOTHING, INIT, CONTEXT };

static constexpr bool any_of(std::string_view name, const char *list)
{
	std::string_view all(list);

	for (size_t from = 0; from < all.size();) {
		size_t end = all.find(' ', from);

		if (end == std::string_view::npos)
			end = all.size();
		if (all.substr(from, end - from) == name)
			return true;
		from = end + 1;
	}
	return false;
}

static constexpr enum need need_of(std::string_view name)
{
	if (any_of(name, "cuInit cuDriverGetVersion cuGetErrorName cuGetErrorString"))
		return NOTHING;
	if (name.substr(0, 8) == "cuDevice" || any_of(name,
	    "cuCtxSetCurrent cuCtxGetCurrent cuCtxPushCurrent cuCtxPopCurrent "
	    "cuMemCreate cuMemRelease cuMemExportToShareableHandle "
	    "cuMemImportFromShareableHandle cuMemGetAllocationGranularity "
	    "cuMemGetAllocationPropertiesFromHandle cuMemAddressReserve cuMemAddressFree "
	    "cuMemUnmap cuThreadExchangeStreamCaptureMode"))
		return INIT;
	return CONTEXT;
}

/* What may wait, or free what a graph uses. */
static constexpr bool breaks_capture(std::string_view name)
{
	return any_of(name, "cuMemAlloc cuMemFree cuMemHostAlloc cuMemFreeHost cuMemHostRegister "
		      "cuMemHostUnregister cuMemcpyHtoD cuMemcpyDtoH cuMemcpyDtoD cuMemsetD8 "
		      "cuCtxSynchronize cuIpcOpenMemHandle cuIpcCloseMemHandle "
		      "cuModuleUnload cuEventQuery cuEventSynchronize");
}

/* The process that called cuInit(); a child of it has no driver. */
static std::atomic<pid_t> owner;

static int enter(size_t index, const char *name, enum need need, bool breaks)
{
	int res;

	if (need != NOTHING && (!started || owner != getpid()))
		return CQCU_ERROR_NOT_INITIALIZED;
	if (need != NOTHING) {
		res = inject(index, name);
		if (res)
			return res;
	}
	if (need != CONTEXT)
		return CQCU_SUCCESS;
	if (!current())
		return CQCU_ERROR_INVALID_CONTEXT;
	if (current()->sticky)
		return current()->sticky;
	if (breaks) {
		std::lock_guard<std::mutex> hold(big);

		if (capture_blocks())
			return CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	return CQCU_SUCCESS;
}

/* One of these for each call: F does it, T knows what it is called. */
template<class T, class F> struct wrapper;
template<class T, class... A> struct wrapper<T, int (*)(A...)> {
	static int call(A... args)
	{
		int res = enter(T::index, T::name, need_of(T::name), breaks_capture(T::name));

		return res ? res : T::function()(args...);
	}
};

enum {
#define INDEX(name, version, params) index_##name,
	CQCU_CALLS(INDEX)
#undef INDEX
};

#define TRAITS(call, version, params)						\
	struct traits_##call {							\
		static constexpr const char *name = #call;			\
		static constexpr size_t index = index_##call;			\
		static constexpr auto function() { return &calls::call; }	\
	};
CQCU_CALLS(TRAITS)
#undef TRAITS

static const struct {
	const char *name;
	int version;
	void *fn;
} table[] = {
#define ROW(name, version, params)						\
	{ #name, version, reinterpret_cast<void *>(				\
		&wrapper<traits_##name, decltype(&calls::name)>::call) },
	CQCU_CALLS(ROW)
#undef ROW
};

} /* namespace fake */

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int cuInit(unsigned int flags)
{
	int res = fake::calls::cuInit(flags);

	if (!res && !fake::owner)
		fake::owner = getpid();
	return fake::owner && fake::owner != getpid() ? (int)CQCU_ERROR_NOT_INITIALIZED : res;
}

EXPORT int cuDriverGetVersion(int *version)
{
	return fake::calls::cuDriverGetVersion(version);
}

EXPORT int cuGetProcAddress_v2(const char *name, void **fn, int version, uint64_t flags,
			       int *status)
{
	if (!name || !fn || flags > 2)
		return CQCU_ERROR_INVALID_VALUE;
	*fn = nullptr;
	for (auto &row : fake::table) {
		if (strcmp(row.name, name))
			continue;
		if (version < row.version) {
			if (status)
				*status = 2;
			return CQCU_ERROR_NOT_FOUND;
		}
		*fn = !strcmp(name, "cuInit") ? reinterpret_cast<void *>(&cuInit) : row.fn;
		if (status)
			*status = 0;
		return CQCU_SUCCESS;
	}
	if (status)
		*status = 1;
	return CQCU_ERROR_NOT_FOUND;
}
