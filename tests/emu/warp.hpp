/* SPDX-License-Identifier: MIT */
/*
 * What lanes of a warp do together. To read a lane that does not take part is
 * undefined on a device and stops the launch here.
 */
#ifndef CUEMU_WARP_HPP
#define CUEMU_WARP_HPP

#include "tests/emu/engine.hpp"

namespace cuemu {

/* The value that lane @src brought. */
template <typename T>
static inline T exchange(const char *op, uint32_t mask, T v, uint32_t src, struct place at)
{
	struct fiber *f = self();
	union operand *mine = operand_of(f);
	uint64_t raw = 0;
	T r;

	static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value,
		      "a shuffle moves at most eight bytes");
	memcpy(&raw, &v, sizeof(v));
	mine->r[0] = (uint32_t)raw;
	mine->r[1] = (uint32_t)(raw >> 32);
	mine->r[2] = src;
	collective(op, mask, at, [&](struct warp *w, uint32_t group) {
		uint32_t got[32][2];

		for (uint32_t i = 0; i < 32; i++) {
			uint32_t from = w->lanes[i].r[2] & 31;

			if (!(group >> i & 1))
				continue;
			if (!(group >> from & 1))
				fault(&at, "%s: lane %u reads lane %u, which takes no part",
				      op, i, from);
			memcpy(got[i], w->lanes[from].r, sizeof(got[i]));
		}
		for (uint32_t i = 0; i < 32; i++)
			if (group >> i & 1)
				memcpy(w->lanes[i].r, got[i], sizeof(got[i]));
	});
	raw = mine->r[0] | (uint64_t)mine->r[1] << 32;
	memcpy(&r, &raw, sizeof(r));
	return r;
}

/* Each lane of the group gets what @fold makes of the values of all. */
template <typename T, typename Fold>
static inline T fold(const char *op, uint32_t mask, T v, struct place at, Fold combine)
{
	union operand *mine = operand_of(self());
	T r;

	static_assert(sizeof(T) <= 8, "at most eight bytes");
	memcpy(&mine->u, &v, sizeof(v));
	collective(op, mask, at, [&](struct warp *w, uint32_t group) {
		bool first = true;
		T all = T(), one;

		for (uint32_t i = 0; i < 32; i++) {
			if (!(group >> i & 1))
				continue;
			memcpy(&one, &w->lanes[i].u, sizeof(one));
			all = first ? one : combine(all, one);
			first = false;
		}
		for (uint32_t i = 0; i < 32; i++)
			if (group >> i & 1)
				memcpy(&w->lanes[i].u, &all, sizeof(all));
	});
	memcpy(&r, &mine->u, sizeof(r));
	return r;
}

} /* namespace cuemu */

template <typename T>
CUEMU_FN T __shfl_sync(unsigned int mask, T v, int src, int width = 32, CUEMU_AT)
{
	unsigned int lane = cuemu::self()->lane, w = (unsigned int)width - 1;

	return cuemu::exchange("__shfl_sync", mask, v, (lane & ~w) | ((unsigned int)src & w),
			       CUEMU_HERE);
}

template <typename T>
CUEMU_FN T __shfl_xor_sync(unsigned int mask, T v, int flip, int width = 32, CUEMU_AT)
{
	unsigned int lane = cuemu::self()->lane, src = lane ^ (unsigned int)flip;

	/* a lane of a segment further on keeps its own value */
	if (src / (unsigned int)width > lane / (unsigned int)width)
		src = lane;
	return cuemu::exchange("__shfl_xor_sync", mask, v, src, CUEMU_HERE);
}

template <typename T>
CUEMU_FN T __shfl_down_sync(unsigned int mask, T v, unsigned int by, int width = 32, CUEMU_AT)
{
	unsigned int lane = cuemu::self()->lane, in = lane & ((unsigned int)width - 1);

	return cuemu::exchange("__shfl_down_sync", mask, v,
			       in + by < (unsigned int)width ? lane + by : lane, CUEMU_HERE);
}

template <typename T>
CUEMU_FN T __shfl_up_sync(unsigned int mask, T v, unsigned int by, int width = 32, CUEMU_AT)
{
	unsigned int lane = cuemu::self()->lane, in = lane & ((unsigned int)width - 1);

	return cuemu::exchange("__shfl_up_sync", mask, v, in >= by ? lane - by : lane, CUEMU_HERE);
}

CUEMU_FN unsigned int __ballot_sync(unsigned int mask, int pred, CUEMU_AT)
{
	unsigned int bit = 1u << cuemu::self()->lane;

	return cuemu::fold("__ballot_sync", mask, pred ? bit : 0u, CUEMU_HERE,
			   [](unsigned int a, unsigned int b) { return a | b; });
}

CUEMU_FN int __any_sync(unsigned int mask, int pred, CUEMU_AT)
{
	return cuemu::fold("__any_sync", mask, (int)!!pred, CUEMU_HERE,
			   [](int a, int b) { return a | b; });
}

CUEMU_FN int __all_sync(unsigned int mask, int pred, CUEMU_AT)
{
	return cuemu::fold("__all_sync", mask, (int)!!pred, CUEMU_HERE,
			   [](int a, int b) { return a & b; });
}

/* The lanes whose value is that of the calling lane. */
template <typename T>
CUEMU_FN unsigned int __match_any_sync(unsigned int mask, T v, CUEMU_AT)
{
	union cuemu::operand *mine = cuemu::operand_of(cuemu::self());

	static_assert(sizeof(T) == 4 || sizeof(T) == 8, "32 or 64 bits");
	mine->u = 0;
	memcpy(&mine->u, &v, sizeof(v));
	cuemu::collective("__match_any_sync", mask, CUEMU_HERE,
			  [](struct cuemu::warp *w, uint32_t group) {
		uint32_t same[32] = {};

		for (int i = 0; i < 32; i++)
			for (int j = 0; j < 32; j++)
				if ((group >> i & group >> j & 1) &&
				    w->lanes[i].u == w->lanes[j].u)
					same[i] |= 1u << j;
		for (int i = 0; i < 32; i++)
			if (group >> i & 1)
				w->lanes[i].u = same[i];
	});
	return (unsigned int)mine->u;
}

template <typename T>
CUEMU_FN unsigned int __match_all_sync(unsigned int mask, T v, int *pred, CUEMU_AT)
{
	unsigned int same = __match_any_sync(mask, v, file, line);

	*pred = same == (mask & cuemu::warp_of(cuemu::self())->live);
	return *pred ? same : 0;
}

/* On a device from sm_80 on, for 32 bits of integer. */
#define CUEMU_REDUCE(name, type, expr) \
CUEMU_FN type name(unsigned int mask, type v, CUEMU_AT) \
{ \
	return cuemu::fold(#name, mask, v, CUEMU_HERE, \
			   [](type a, type b) { return (type)(expr); }); \
}
CUEMU_REDUCE(__reduce_add_sync, unsigned int, a + b)
CUEMU_REDUCE(__reduce_add_sync, int, (unsigned int)a + (unsigned int)b)
CUEMU_REDUCE(__reduce_min_sync, unsigned int, a < b ? a : b)
CUEMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CUEMU_REDUCE(__reduce_max_sync, unsigned int, a > b ? a : b)
CUEMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
CUEMU_REDUCE(__reduce_and_sync, unsigned int, a & b)
CUEMU_REDUCE(__reduce_or_sync, unsigned int, a | b)
CUEMU_REDUCE(__reduce_xor_sync, unsigned int, a ^ b)
#undef CUEMU_REDUCE

/* Lanes that have not left: the emulation lets them run one by one. */
CUEMU_FN unsigned int __activemask() { return 1u << cuemu::self()->lane; }

#endif /* CUEMU_WARP_HPP */
