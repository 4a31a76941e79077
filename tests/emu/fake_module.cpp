// SPDX-License-Identifier: MIT
/*
 * Modules and launches. The image must look like one, but kernels are those of
 * the emulation's library. A launch copies its parameters and returns; the
 * kernel runs on the stream's thread, and what it does wrong is found there.
 */
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <dlfcn.h>
#include <limits.h>

#include "tests/emu/cuemu_api.h"
#include "tests/emu/fake.hpp"

namespace fake {

struct function {
	const struct cuemu_kernel *kernel;
	struct cqcu_module *module;
	int max_dynamic;
};

static struct {
	void *lib;
	decltype(&cuemu_find) find;
	decltype(&cuemu_launch) launch;
} emu;
/* All under big. */
static auto &modules = *new std::map<struct cqcu_module *, std::shared_ptr<int>>;
static auto &functions = *new std::map<struct cqcu_func *, std::shared_ptr<struct function>>;

static const int STATIC_LIMIT = 48 << 10;

/* libcqk_emu.so lies beside this library. */
static std::string kernels_path()
{
	Dl_info info;

	if (!knobs.kernels.empty())
		return knobs.kernels;
	if (!dladdr(reinterpret_cast<void *>(&kernels_path), &info))
		return "libcqk_emu.so";
	std::string path = info.dli_fname;
	size_t slash = path.rfind('/');

	return (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + "libcqk_emu.so";
}

template<typename T> static void get_symbol(T *fn, const char *name)
{
	*fn = reinterpret_cast<T>(dlsym(emu.lib, name));
}

static bool load_kernels()
{
	std::string path = kernels_path();
	void (*no_handler)() = nullptr;

	if (emu.lib)
		return true;
	emu.lib = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
	if (!emu.lib) {
		fprintf(stderr, "fake driver: no kernels: %s\n", dlerror());
		return false;
	}
	get_symbol(&emu.find, "cuemu_find");
	get_symbol(&emu.launch, "cuemu_launch");
	get_symbol(&no_handler, "cuemu_no_handler");
	get_symbol(&traps.trap, "cuemu_trap");
	get_symbol(&traps.is_kernel, "cuemu_is_kernel");
	if (emu.find && emu.launch && no_handler && traps.trap && traps.is_kernel) {
		no_handler();
		return true;
	}
	fprintf(stderr, "fake driver: %s is no library of kernels\n", path.c_str());
	emu.lib = nullptr;
	return false;
}

static bool is_image(const void *image)
{
	static const unsigned char fatbin[4] = { 0x50, 0xed, 0x55, 0xba };
	char head[4];

	return image && safe_copy(head, image, sizeof(head)) &&
	       (!memcmp(head, fatbin, 4) || !memcmp(head, "\177ELF", 4) ||
		!memcmp(head, "//\n//", 4) || !memcmp(head, ".ver", 4) || !memcmp(head, "cq: ", 4));
}

static std::shared_ptr<struct function> function_get(struct cqcu_func *f)
{
	auto i = functions.find(f);

	return i == functions.end() ? nullptr : i->second;
}

/* The parameters of a launch, kept until it has run. */
struct params {
	std::vector<std::max_align_t> bytes;
	std::vector<void *> at;
};

static std::shared_ptr<struct params> copy_params(const struct cuemu_kernel *k, void **from)
{
	auto p = std::make_shared<struct params>();
	char *bytes;
	void *one;

	p->bytes.resize(k->param_bytes / sizeof(std::max_align_t) + 1);
	bytes = reinterpret_cast<char *>(p->bytes.data());
	for (uint32_t i = 0; i < k->num_params; i++) {
		if (!from || !safe_copy(&one, from + i, sizeof(one)) ||
		    !safe_copy(bytes + k->params[i].offset, one, k->params[i].size))
			return nullptr;
		p->at.push_back(bytes + k->params[i].offset);
	}
	return p;
}

static int run_kernel(const struct cuemu_kernel *k, struct cuemu_launch_args l,
		      const std::shared_ptr<struct params> &p)
{
	static std::atomic<uint64_t> launches;

	l.params = p->at.data();
	l.threads = knobs.threads;
	l.order = knobs.order;
	l.seed = knobs.seed + launches++;
	return space_run([&]() {
		switch (emu.launch(k, &l)) {
		case 0: return CQCU_SUCCESS;
		case -EACCES: return CQCU_ERROR_ILLEGAL_ADDRESS;
		case -ENOMEM: return CQCU_ERROR_LAUNCH_OUT_OF_RESOURCES;
		default: return CQCU_ERROR_LAUNCH_FAILED;
		}
	});
}

static int check_launch(const struct function *f, const uint32_t *grid, const uint32_t *block,
			unsigned int shared)
{
	for (int i = 0; i < 3; i++)
		if (!grid[i] || !block[i] || block[i] > 1024)
			return CQCU_ERROR_INVALID_VALUE;
	if (grid[0] > INT_MAX || grid[1] > 65535 || grid[2] > 65535 || block[2] > 64 ||
	    block[0] * block[1] > 1024 || block[0] * block[1] * block[2] > 1024 ||
	    shared > (unsigned int)f->max_dynamic)
		return CQCU_ERROR_INVALID_VALUE;
	if (block[0] * block[1] * block[2] > f->kernel->max_threads)
		return CQCU_ERROR_LAUNCH_OUT_OF_RESOURCES;
	return CQCU_SUCCESS;
}

namespace calls {

int cuModuleLoadData(struct cqcu_module **m, const void *image)
{
	std::lock_guard<std::mutex> hold(big);

	if (!m)
		return CQCU_ERROR_INVALID_VALUE;
	if (!is_image(image))
		return CQCU_ERROR_INVALID_IMAGE;
	if (!load_kernels())
		return CQCU_ERROR_NO_BINARY_FOR_GPU;
	auto made = std::make_shared<int>(0);

	*m = reinterpret_cast<struct cqcu_module *>(made.get());
	modules[*m] = made;
	return CQCU_SUCCESS;
}

int cuModuleUnload(struct cqcu_module *m)
{
	std::lock_guard<std::mutex> hold(big);

	if (!modules.erase(m))
		return CQCU_ERROR_INVALID_HANDLE;
	for (auto i = functions.begin(); i != functions.end();)
		i = i->second->module == m ? functions.erase(i) : std::next(i);
	return CQCU_SUCCESS;
}

int cuModuleGetFunction(struct cqcu_func **f, struct cqcu_module *m, const char *name)
{
	std::lock_guard<std::mutex> hold(big);
	const struct cuemu_kernel *k;
	std::string text;

	if (!f || !name)
		return CQCU_ERROR_INVALID_VALUE;
	if (!modules.count(m))
		return CQCU_ERROR_INVALID_HANDLE;
	if (!safe_string(&text, name, 4096))
		return CQCU_ERROR_INVALID_VALUE;
	k = emu.find(text.c_str());
	if (!k)
		return CQCU_ERROR_NOT_FOUND;
	for (auto &i : functions)
		if (i.second->kernel == k && i.second->module == m) {
			*f = i.first;
			return CQCU_SUCCESS;
		}
	auto made = std::make_shared<struct function>();

	made->kernel = k;
	made->module = m;
	made->max_dynamic = STATIC_LIMIT;
	*f = reinterpret_cast<struct cqcu_func *>(made.get());
	functions[*f] = made;
	return CQCU_SUCCESS;
}

int cuFuncGetAttribute(int *value, int attr, struct cqcu_func *f)
{
	std::lock_guard<std::mutex> hold(big);
	auto fn = function_get(f);

	if (!value)
		return CQCU_ERROR_INVALID_VALUE;
	if (!fn)
		return CQCU_ERROR_INVALID_HANDLE;
	switch (attr) {
	case CQCU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
		*value = (int)fn->kernel->max_threads;
		break;
	case CQCU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = fn->max_dynamic; break;
	case CQCU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
	case CQCU_FUNC_ATTRIBUTE_PTX_VERSION:
	case CQCU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = 80; break;
	case CQCU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
	case CQCU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
	case CQCU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
	case CQCU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = 0; break;
	default: return CQCU_ERROR_INVALID_VALUE;
	}
	return CQCU_SUCCESS;
}

int cuFuncSetAttribute(struct cqcu_func *f, int attr, int value)
{
	std::lock_guard<std::mutex> hold(big);
	auto fn = function_get(f);

	if (!fn)
		return CQCU_ERROR_INVALID_HANDLE;
	switch (attr) {
	case CQCU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
		if (value < 0 || value > shared_of_block())
			return CQCU_ERROR_INVALID_VALUE;
		fn->max_dynamic = value;
		return CQCU_SUCCESS;
	case CQCU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
		return value < -1 || value > 100 ? CQCU_ERROR_INVALID_VALUE : CQCU_SUCCESS;
	default:
		return CQCU_ERROR_INVALID_VALUE;
	}
}

int cuLaunchKernel(struct cqcu_func *f, unsigned int grid_x, unsigned int grid_y,
		   unsigned int grid_z, unsigned int block_x, unsigned int block_y,
		   unsigned int block_z, unsigned int shared, struct cqcu_stream *s, void **params,
		   void **extra)
{
	std::lock_guard<std::mutex> hold(big);
	auto fn = function_get(f);
	stream_ptr st = stream_get(s);
	struct cuemu_launch_args l = {};
	int res;

	if (!fn || !st)
		return CQCU_ERROR_INVALID_HANDLE;
	if (extra)
		return CQCU_ERROR_NOT_SUPPORTED;
	l.grid[0] = grid_x;
	l.grid[1] = grid_y;
	l.grid[2] = grid_z;
	l.block[0] = block_x;
	l.block[1] = block_y;
	l.block[2] = block_z;
	l.shared_bytes = shared;
	res = check_launch(fn.get(), l.grid, l.block, shared);
	if (res)
		return res;
	auto copy = copy_params(fn->kernel, params);

	if (!copy)
		return CQCU_ERROR_INVALID_VALUE;
	const struct cuemu_kernel *k = fn->kernel;

	return enqueue(st, [k, l, copy]() { return run_kernel(k, l, copy); });
}

/* Threads and shared memory alone; registers are not known here. */
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, struct cqcu_func *f, int threads,
						size_t shared)
{
	std::lock_guard<std::mutex> hold(big);
	auto fn = function_get(f);
	size_t n;

	if (!blocks || threads < 1)
		return CQCU_ERROR_INVALID_VALUE;
	if (!fn)
		return CQCU_ERROR_INVALID_HANDLE;
	n = std::min<size_t>(2048 / round_up((size_t)threads, 32), 32);
	if (shared > (size_t)fn->max_dynamic || threads > (int)fn->kernel->max_threads)
		n = 0;
	else
		n = std::min<size_t>(n, (164u << 10) / (shared + 1024));
	*blocks = (int)n;
	return CQCU_SUCCESS;
}

} /* namespace calls */
} /* namespace fake */
