// SPDX-License-Identifier: MIT
/*
 * Copies and fills, as a stream carries them out: rights are those of the
 * moment, the bytes go through the driver's own mapping. Host memory that is
 * not there is the caller's fault as much as device memory: ILLEGAL_ADDRESS.
 */
#include "tests/emu/fake.hpp"

namespace fake {

/* A stretch of device memory as the driver sees it; keeps it from going. */
struct piece {
	phys_ptr phys;
	char *p;
	size_t n;
};

static bool look_up(cqcu_ptr p, size_t n, bool write, struct piece *out)
{
	std::lock_guard<std::mutex> hold(space_lock);
	struct region *r = space_find(p);

	if (!r || !(r->rights & CQCU_MEM_ACCESS_FLAGS_PROT_READ) ||
	    (write && r->rights != CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE))
		return false;
	out->phys = r->phys;
	out->n = std::min<size_t>(n, r->base + r->size - p);
	out->p = r->phys ? r->phys->alias + r->offset + (p - r->base) :
		 static_cast<char *>(at(p));
	return true;
}

int copy_in(cqcu_ptr to, const void *from, size_t n)
{
	const char *src = static_cast<const char *>(from);
	struct piece d;

	for (; n; n -= d.n, to += d.n, src += d.n)
		if (!look_up(to, n, true, &d) || !safe_copy(d.p, src, d.n))
			return CQCU_ERROR_ILLEGAL_ADDRESS;
	return CQCU_SUCCESS;
}

int copy_out(void *to, cqcu_ptr from, size_t n)
{
	char *dst = static_cast<char *>(to);
	struct piece s;

	for (; n; n -= s.n, from += s.n, dst += s.n)
		if (!look_up(from, n, false, &s) || !safe_copy(dst, s.p, s.n))
			return CQCU_ERROR_ILLEGAL_ADDRESS;
	return CQCU_SUCCESS;
}

int copy_within(cqcu_ptr to, cqcu_ptr from, size_t n)
{
	struct piece s, d;

	for (; n; n -= d.n, to += d.n, from += d.n)
		if (!look_up(from, n, false, &s) || !look_up(to, s.n, true, &d) ||
		    !safe_copy(d.p, s.p, d.n))
			return CQCU_ERROR_ILLEGAL_ADDRESS;
	return CQCU_SUCCESS;
}

/* @n times the @width bytes of @pattern. */
int fill(cqcu_ptr p, const void *pattern, size_t width, size_t n)
{
	char some[1024];
	size_t i, bytes = n * width;
	struct piece d;

	for (i = 0; i < sizeof(some); i++)
		some[i] = static_cast<const char *>(pattern)[i % width];
	for (; bytes; bytes -= d.n, p += d.n)
		if (!look_up(p, std::min(bytes, sizeof(some)), true, &d) ||
		    !safe_copy(d.p, some, d.n))
			return CQCU_ERROR_ILLEGAL_ADDRESS;
	return CQCU_SUCCESS;
}

} /* namespace fake */
