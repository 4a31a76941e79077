// SPDX-License-Identifier: MIT
/*
 * Plain allocations, host memory the device may use, attributes of pointers.
 *
 * A block ends where its last page ends (short of 256 bytes, which is how they
 * are aligned), and a page that nobody may touch follows.
 */
#include <cerrno>
#include <sys/mman.h>

#include "tests/emu/fake.hpp"

namespace fake {

static const size_t ALIGN = 256;

/* Large blocks are of 2 MiB, as a driver makes them. */
static size_t block_size(size_t n)
{
	return round_up(n, n >= GRAN / 2 ? GRAN : PAGE);
}

static int block_new(cqcu_ptr *p, size_t n)
{
	size_t size = block_size(n), need = round_up(n, ALIGN);
	struct region r = {};
	cqcu_ptr where;
	int res;

	res = phys_create(&r.phys, current()->dev, size, round_up(n, PAGE) - need, false);
	if (res)
		return res;
	std::lock_guard<std::mutex> hold(space_lock);
	where = space_reserve(round_up(n, PAGE), PAGE, PAGE);
	if (!where)
		return CQCU_ERROR_OUT_OF_MEMORY;
	r.size = n;
	r.kind = BLOCK;
	r.dev = r.phys->dev;
	r.rights = CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	r.offset = r.phys->pad;
	res = space_map(&r, where);
	if (!res)
		*p = r.base;
	phys_close(r.phys.get());
	return res;
}

/* Forget a region that begins at @p. What it kept goes outside the lock. */
static bool region_end(cqcu_ptr p, enum kind kind, phys_ptr *phys)
{
	std::lock_guard<std::mutex> hold(space_lock);
	auto i = regions.find(p);
	struct region r;

	if (i == regions.end() || i->second.kind != kind)
		return false;
	r = i->second;
	*phys = r.phys;
	if (kind == REGISTERED || kind == PINNED) {
		regions.erase(i);
	} else {
		space_unmap(&r);
		space_retire(r.map - PAGE, r.map_size + 2 * PAGE);
	}
	return true;
}

static bool is_block(cqcu_ptr p)
{
	std::lock_guard<std::mutex> hold(space_lock);
	auto i = regions.find(p);

	return i != regions.end() && i->second.kind == BLOCK;
}

static void add_host(void *p, size_t size, enum kind kind)
{
	struct region r = {};

	r.base = reinterpret_cast<cqcu_ptr>(p);
	r.size = size;
	r.kind = kind;
	r.dev = current()->dev;
	r.rights = CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	regions[r.base] = r;
}

namespace calls {

int cuMemGetInfo(size_t *free_bytes, size_t *total)
{
	size_t used = state_used(current()->dev);

	if (!free_bytes || !total)
		return CQCU_ERROR_INVALID_VALUE;
	*total = knobs.memory;
	*free_bytes = used < knobs.memory ? knobs.memory - used : 0;
	return CQCU_SUCCESS;
}

int cuMemAlloc(cqcu_ptr *p, size_t size)
{
	if (!p || !size)
		return CQCU_ERROR_INVALID_VALUE;
	if (size > MAX_SIZE)
		return CQCU_ERROR_OUT_OF_MEMORY;
	return block_new(p, size);
}

int cuMemFree(cqcu_ptr p)
{
	phys_ptr phys;
	int res;

	if (!p)
		return CQCU_SUCCESS;
	if (!is_block(p))
		return CQCU_ERROR_INVALID_VALUE;
	res = sync_all(current());
	if (res)
		return res;
	if (!region_end(p, BLOCK, &phys))
		return CQCU_ERROR_INVALID_VALUE;
	phys_retire(phys.get());
	return CQCU_SUCCESS;
}

int cuMemGetAddressRange(cqcu_ptr *base, size_t *size, cqcu_ptr p)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(p);

	if (!r)
		return CQCU_ERROR_NOT_FOUND;
	if (base)
		*base = r->base;
	if (size)
		*size = r->size;
	return CQCU_SUCCESS;
}

int cuMemHostAlloc(void **p, size_t size, unsigned int flags)
{
	void *m;

	if (!p || !size || flags & ~7u)
		return CQCU_ERROR_INVALID_VALUE;
	if (size > MAX_SIZE)
		return CQCU_ERROR_OUT_OF_MEMORY;
	m = mmap(nullptr, round_up(size, PAGE), PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (m == MAP_FAILED)
		return CQCU_ERROR_OUT_OF_MEMORY;
	std::lock_guard<std::mutex> hold(space_lock);
	add_host(m, size, PINNED);
	*p = m;
	return CQCU_SUCCESS;
}

int cuMemFreeHost(void *p)
{
	cqcu_ptr addr = reinterpret_cast<cqcu_ptr>(p);
	size_t size = 0;
	phys_ptr phys;
	int res;

	if (!p)
		return CQCU_SUCCESS;
	{
		std::lock_guard<std::mutex> hold(space_lock);
		auto i = regions.find(addr);

		if (i == regions.end() || i->second.kind != PINNED)
			return CQCU_ERROR_INVALID_VALUE;
		size = i->second.size;
	}
	res = sync_all(current());
	if (!region_end(addr, PINNED, &phys))
		return CQCU_ERROR_INVALID_VALUE;
	munmap(p, round_up(size, PAGE));
	return res;
}

/* Is there any memory at all of this process? */
static bool is_mapped(void *p, size_t size)
{
	uintptr_t low = reinterpret_cast<uintptr_t>(p) / PAGE * PAGE;
	uintptr_t high = round_up(reinterpret_cast<uintptr_t>(p) + size, PAGE);
	std::vector<unsigned char> in((high - low) / PAGE);

	return !mincore(reinterpret_cast<void *>(low), high - low, in.data());
}

int cuMemHostRegister(void *p, size_t size, unsigned int flags)
{
	cqcu_ptr addr = reinterpret_cast<cqcu_ptr>(p);

	if (!p || !size || flags & ~15u || size > MAX_SIZE / 1024 || addr + size < addr ||
	    !is_mapped(p, size))
		return CQCU_ERROR_INVALID_VALUE;
	std::lock_guard<std::mutex> hold(space_lock);
	auto next = regions.lower_bound(addr);

	if (space_find(addr) || (next != regions.end() && next->first < addr + size))
		return CQCU_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	add_host(p, size, REGISTERED);
	return CQCU_SUCCESS;
}

int cuMemHostUnregister(void *p)
{
	phys_ptr phys;

	return region_end(reinterpret_cast<cqcu_ptr>(p), REGISTERED, &phys) ? CQCU_SUCCESS :
		CQCU_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

int cuMemHostGetDevicePointer(cqcu_ptr *dp, void *p, unsigned int flags)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(reinterpret_cast<cqcu_ptr>(p));

	if (!dp || flags || !r || (r->kind != PINNED && r->kind != REGISTERED))
		return CQCU_ERROR_INVALID_VALUE;
	*dp = reinterpret_cast<cqcu_ptr>(p);
	return CQCU_SUCCESS;
}

template<typename T> static int give(void *value, T v)
{
	memcpy(value, &v, sizeof(v));
	return CQCU_SUCCESS;
}

int cuPointerGetAttribute(void *value, int attr, cqcu_ptr p)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(p);
	bool host = r && (r->kind == PINNED || r->kind == REGISTERED);

	if (!value || !r)
		return CQCU_ERROR_INVALID_VALUE;
	switch (attr) {
	case CQCU_POINTER_ATTRIBUTE_CONTEXT:
		/* VMM memory belongs to no context */
		return r->kind == MAPPED ? give<void *>(value, nullptr) :
			give(value, current());
	case CQCU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		return give<unsigned int>(value, host ? CQCU_MEMORYTYPE_HOST :
					  CQCU_MEMORYTYPE_DEVICE);
	case CQCU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		return give(value, p);
	case CQCU_POINTER_ATTRIBUTE_HOST_POINTER:
		return host ? give(value, p) : CQCU_ERROR_INVALID_VALUE;
	case CQCU_POINTER_ATTRIBUTE_IS_MANAGED:
		return give<unsigned int>(value, 0);
	case CQCU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		return give<int>(value, ordinal_of(r->dev));
	case CQCU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
		return give<unsigned int>(value, r->kind == BLOCK);
	case CQCU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		return give(value, r->base);
	case CQCU_POINTER_ATTRIBUTE_RANGE_SIZE:
		return give(value, r->size);
	case CQCU_POINTER_ATTRIBUTE_MAPPED:
		return give<unsigned int>(value, 1);
	case CQCU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		return give<unsigned int>(value, (unsigned int)r->rights);
	default:
		return CQCU_ERROR_INVALID_VALUE;
	}
}

/* Where a host pointer is due, a device's is a mistake, and the other way round. */
static bool is_device(cqcu_ptr p, size_t n)
{
	return n && space_has(p, n, false);
}

static bool is_host(const void *p, size_t n)
{
	return p && !space_has(reinterpret_cast<cqcu_ptr>(p), 1, true) && n <= MAX_SIZE;
}

static stream_ptr stream_of(struct cqcu_stream *s)
{
	return stream_get(s);
}

static int queue(struct cqcu_stream *s, std::function<int()> run)
{
	std::lock_guard<std::mutex> hold(big);
	stream_ptr st = stream_of(s);

	return st ? enqueue(st, std::move(run)) : CQCU_ERROR_INVALID_HANDLE;
}

int cuMemcpyHtoDAsync(cqcu_ptr to, const void *from, size_t n, struct cqcu_stream *s)
{
	if (!n)
		return CQCU_SUCCESS;
	if (!is_device(to, n) || !is_host(from, n))
		return CQCU_ERROR_INVALID_VALUE;
	return queue(s, [=]() { return copy_in(to, from, n); });
}

int cuMemcpyDtoHAsync(void *to, cqcu_ptr from, size_t n, struct cqcu_stream *s)
{
	if (!n)
		return CQCU_SUCCESS;
	if (!is_device(from, n) || !is_host(to, n))
		return CQCU_ERROR_INVALID_VALUE;
	return queue(s, [=]() { return copy_out(to, from, n); });
}

int cuMemcpyDtoDAsync(cqcu_ptr to, cqcu_ptr from, size_t n, struct cqcu_stream *s)
{
	if (!n)
		return CQCU_SUCCESS;
	if (!is_device(from, n) || !is_device(to, n))
		return CQCU_ERROR_INVALID_VALUE;
	return queue(s, [=]() { return copy_within(to, from, n); });
}

int cuMemcpyHtoD(cqcu_ptr to, const void *from, size_t n)
{
	if (!n)
		return CQCU_SUCCESS;
	if (!is_device(to, n) || !is_host(from, n))
		return CQCU_ERROR_INVALID_VALUE;
	return run_sync([=]() { return copy_in(to, from, n); });
}

int cuMemcpyDtoH(void *to, cqcu_ptr from, size_t n)
{
	if (!n)
		return CQCU_SUCCESS;
	if (!is_device(from, n) || !is_host(to, n))
		return CQCU_ERROR_INVALID_VALUE;
	return run_sync([=]() { return copy_out(to, from, n); });
}

int cuMemcpyDtoD(cqcu_ptr to, cqcu_ptr from, size_t n)
{
	return cuMemcpyDtoDAsync(to, from, n, nullptr);
}

int cuMemsetD8Async(cqcu_ptr p, unsigned char value, size_t n, struct cqcu_stream *s)
{
	if (!n)
		return CQCU_SUCCESS;
	if (!is_device(p, n))
		return CQCU_ERROR_INVALID_VALUE;
	return queue(s, [=]() { return fill(p, &value, 1, n); });
}

int cuMemsetD8(cqcu_ptr p, unsigned char value, size_t n)
{
	return cuMemsetD8Async(p, value, n, nullptr);
}

int cuMemsetD32Async(cqcu_ptr p, unsigned int value, size_t n, struct cqcu_stream *s)
{
	if (!n)
		return CQCU_SUCCESS;
	if (n > MAX_SIZE || p % 4 || !is_device(p, n * 4))
		return CQCU_ERROR_INVALID_VALUE;
	return queue(s, [=]() { return fill(p, &value, 4, n); });
}

} /* namespace calls */
} /* namespace fake */
