// SPDX-License-Identifier: MIT
/*
 * The C interface: kernels by name, launches, and what went wrong.
 */
#include <cerrno>
#include <cstdarg>
#include <pthread.h>
#include <signal.h>

#include "tests/emu/job.hpp"
#include "tests/emu/kernel.hpp"

namespace cuemu {

/* Set by constructors of static objects, in no order: so without one itself. */
static const struct cuemu_kernel *kernels;

void add_kernel(struct cuemu_kernel *kernel)
{
	if (cuemu_find(kernel->name)) {
		fprintf(stderr, "cuemu: two kernels are named %s\n", kernel->name);
		abort();
	}
	kernel->next = kernels;
	kernels = kernel;
}

/* Per thread, but not thread_local: those are filled with NaN for each block. */
static pthread_key_t error_key;
static pthread_once_t error_once = PTHREAD_ONCE_INIT;

static void error_init()
{
	pthread_key_create(&error_key, free);
}

static void set_error(const char *text)
{
	char *copy = text ? strdup(text) : nullptr;

	pthread_once(&error_once, error_init);
	free(pthread_getspecific(error_key));
	pthread_setspecific(error_key, copy);
}

static int fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int fail(int err, const char *fmt, ...)
{
	char text[sizeof(job::error)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "cuemu: %s\n", text);
	set_error(text);
	return err;
}

static void set_block(struct engine *eng, uint64_t i)
{
	const struct job *j = eng->job;

	eng->block_idx.x = (unsigned int)(i % j->grid.x);
	eng->block_idx.y = (unsigned int)(i / j->grid.x % j->grid.y);
	eng->block_idx.z = (unsigned int)(i / j->grid.x / j->grid.y);
	eng->random = j->seed + i * 0xd1342543de82ef95u;
}

/* What is the same for all blocks of a launch. */
static void set_job(struct engine *eng, struct job *j)
{
	eng->job = j;
	eng->block_dim = j->block;
	eng->grid_dim = j->grid;
	eng->threads = j->block.x * j->block.y * j->block.z;
	eng->warps = (eng->threads + 31) / 32;
}

/* What a cluster left behind. */
static void check_shared(const struct cluster *c)
{
	for (uint32_t i = 0; i < c->n; i++)
		if (!shared_intact(c->at[i]))
			report_fault(fiber_at(c->at[i], 0), nullptr,
				     "the block wrote beside its dynamic shared memory");
	if (c->n > 1 && !static_untouched(c->at[0]))
		report_fault(fiber_at(c->at[0], 0), nullptr,
			     "static shared memory in a kernel of clusters");
}

/* Run clusters of blocks until there are none left. */
static void work(struct job *j, struct engine *eng)
{
	uint64_t blocks = (uint64_t)j->grid.x * j->grid.y * j->grid.z, i;
	struct cluster *c = eng->cluster;

	for (uint32_t r = 0; r < c->n; r++)
		set_job(c->at[r], j);
	trap_begin(eng);
	while (!j->failed && (i = j->next_block.fetch_add(c->n)) < blocks) {
		for (uint32_t r = 0; r < c->n; r++) {
			set_block(c->at[r], i + r);
			shared_start(c->at[r], j->shared_bytes);
		}
		run_cluster(eng);
		if (!eng->failed)
			check_shared(c);
	}
	trap_end(eng);
}

static void cluster_put(struct engine *eng)
{
	for (uint32_t r = eng->own.n; r; r--)
		engine_put(eng->own.at[r - 1]);
}

/* The engines of a cluster: the first of them, or NULL without memory. */
static struct engine *cluster_get(const struct job *j)
{
	uint32_t threads = j->block.x * j->block.y * j->block.z;
	struct engine *first = engine_get(threads), *eng = first;

	if (!first)
		return nullptr;
	for (first->own.n = 0; eng; eng = engine_get(threads)) {
		eng->rank = first->own.n++;
		eng->cluster = &first->own;
		first->own.at[eng->rank] = eng;
		if (first->own.n == j->kernel->cluster)
			return first;
	}
	cluster_put(first);
	return nullptr;
}

static void *work_thread(void *arg)
{
	struct job *j = static_cast<struct job *>(arg);
	struct engine *eng = cluster_get(j);

	/* without memory the others do it alone */
	if (eng) {
		work(j, eng);
		cluster_put(eng);
	}
	return nullptr;
}

static int run_job(struct job *j, uint32_t threads)
{
	struct engine *eng = cluster_get(j);
	std::vector<pthread_t> helpers;
	sigset_t all, before;
	pthread_t id;

	if (!eng)
		return fail(-ENOMEM, "kernel %s: no memory for the stacks", j->kernel->name);
	/* the signals of the process are for its own threads */
	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (uint32_t i = 1; i < threads; i++)
		if (!pthread_create(&id, nullptr, work_thread, j))
			helpers.push_back(id);
	pthread_sigmask(SIG_SETMASK, &before, nullptr);
	work(j, eng);
	for (pthread_t helper : helpers)
		pthread_join(helper, nullptr);
	cluster_put(eng);
	if (!j->failed)
		return 0;
	return fail(j->trapped ? -EACCES : -EFAULT, "%s", j->error);
}

static int check_launch(const struct cuemu_kernel *k, const struct cuemu_launch_args *l)
{
	const uint32_t *g = l->grid, *b = l->block;
	uint64_t threads = (uint64_t)b[0] * b[1];

	if (!g[0] || !g[1] || !g[2] || g[0] > INT32_MAX || g[1] > 65535 || g[2] > 65535)
		return fail(-EINVAL, "kernel %s: a grid of (%u,%u,%u) blocks", k->name,
			    g[0], g[1], g[2]);
	if (g[0] % k->cluster)
		return fail(-EINVAL, "kernel %s: %u blocks in x, not a multiple of clusters of %u",
			    k->name, g[0], k->cluster);
	if (threads <= CUEMU_MAX_THREADS)
		threads *= b[2];
	if (!threads || threads > CUEMU_MAX_THREADS || b[2] > 64)
		return fail(-EINVAL, "kernel %s: blocks of (%u,%u,%u) threads, at most %d",
			    k->name, b[0], b[1], b[2], CUEMU_MAX_THREADS);
	if (threads > k->max_threads)
		return fail(-EINVAL, "kernel %s: blocks of %u threads, but launch bounds of %u",
			    k->name, (unsigned int)threads, k->max_threads);
	if (l->shared_bytes > CUEMU_MAX_SHARED)
		return fail(-EINVAL, "kernel %s: %u bytes of dynamic shared memory, at most %d",
			    k->name, l->shared_bytes, CUEMU_MAX_SHARED);
	if (l->order > CUEMU_RANDOM)
		return fail(-EINVAL, "kernel %s: no order %u of threads", k->name, l->order);
	for (uint32_t i = 0; i < k->num_params; i++)
		if (!l->params || !l->params[i])
			return fail(-EINVAL, "kernel %s: parameter %u is missing", k->name, i);
	return 0;
}

} /* namespace cuemu */

const struct cuemu_kernel *cuemu_first(void)
{
	return cuemu::kernels;
}

const struct cuemu_kernel *cuemu_find(const char *name)
{
	const struct cuemu_kernel *k = cuemu::kernels;

	while (k && strcmp(k->name, name))
		k = k->next;
	return k;
}

int cuemu_launch(const struct cuemu_kernel *kernel, const struct cuemu_launch_args *launch)
{
	struct cuemu::job j = {};
	uint64_t blocks;
	int ret;

	cuemu::set_error(nullptr);
	if (!kernel || !launch)
		return cuemu::fail(-EINVAL, "no kernel, or no launch");
	ret = cuemu::check_launch(kernel, launch);
	if (ret)
		return ret;
	j.kernel = kernel;
	j.grid = dim3(launch->grid[0], launch->grid[1], launch->grid[2]);
	j.block = dim3(launch->block[0], launch->block[1], launch->block[2]);
	j.shared_bytes = launch->shared_bytes;
	j.order = static_cast<enum cuemu_order>(launch->order);
	j.seed = launch->seed;
	j.params = launch->params;
	blocks = (uint64_t)j.grid.x * j.grid.y * j.grid.z / kernel->cluster;
	return cuemu::run_job(&j, (uint32_t)std::min<uint64_t>(launch->threads, blocks));
}

const char *cuemu_error(void)
{
	pthread_once(&cuemu::error_once, cuemu::error_init);
	const char *text = static_cast<const char *>(pthread_getspecific(cuemu::error_key));

	return text ? text : "";
}
