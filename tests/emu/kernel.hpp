/* SPDX-License-Identifier: MIT */
/*
 * Kernels by name, with the sizes of their parameters.
 */
#ifndef CUEMU_KERNEL_HPP
#define CUEMU_KERNEL_HPP

#include <utility>

#include "tests/emu/engine.hpp"

namespace cuemu {

void add_kernel(struct cuemu_kernel *kernel);

template <typename F> struct signature;

template <typename... A> struct signature<void (*)(A...)> {
	static constexpr uint32_t count = sizeof...(A);
	struct table { struct cuemu_param at[count + 1]; };

	/* In the last place, the size of them all. */
	static constexpr struct table layout()
	{
		constexpr size_t sizes[] = { sizeof(A)..., 0 };
		constexpr size_t aligns[] = { alignof(A)..., 1 };
		struct table t = {};
		size_t at = 0;

		for (uint32_t i = 0; i <= count; i++) {
			at = (at + aligns[i] - 1) / aligns[i] * aligns[i];
			t.at[i] = { (uint32_t)at, (uint32_t)sizes[i] };
			at += sizes[i];
		}
		return t;
	}
	static constexpr struct table params = layout();
	static_assert((std::is_trivially_copyable<A>::value && ...),
		      "parameters of a kernel are copied byte by byte");

	template <void (*kernel)(A...), size_t... i>
	static void spread(void *const *p, std::index_sequence<i...>)
	{
		kernel(*static_cast<std::remove_reference_t<A> *>(p[i])...);
	}

	template <void (*kernel)(A...)>
	static void call([[maybe_unused]] void *const *p)
	{
		spread<kernel>(p, std::index_sequence_for<A...>{});
	}
};

template <typename F, F kernel> struct entry : cuemu_kernel {
	entry(const char *kernel_name, uint32_t threads, uint32_t blocks = 1)
	{
		name = kernel_name;
		max_threads = threads;
		cluster = blocks;
		num_params = signature<F>::count;
		params = signature<F>::params.at;
		param_bytes = params[num_params].offset;
		call = &signature<F>::template call<kernel>;
		add_kernel(this);
	}
};

} /* namespace cuemu */

#define CQ_CLUSTERS 1
#define CQ_KERNEL_CLUSTER(threads, cluster, name, params) \
	extern "C" void name params; \
	static cuemu::entry<decltype(&name), &name> cuemu_entry_##name(#name, threads, cluster); \
	extern "C" void name params
#define CQ_KERNEL(threads, name, params) CQ_KERNEL_CLUSTER(threads, 1, name, params)
#define CQ_KERNEL_BLOCKS(threads, blocks, name, params) CQ_KERNEL(threads, name, params)

#define CQ_DYN_SHARED(type, name) \
	type *const name = reinterpret_cast<type *>(cuemu::self()->eng->dyn)
/* It ends at a page's end, so it is aligned if its size is. */
#define CQ_DYN_SHARED_ALIGNED(align, type, name) \
	CQ_DYN_SHARED(type, name); \
	cuemu::check_dyn_alignment(align, { __FILE__, __LINE__ })

#endif /* CUEMU_KERNEL_HPP */
