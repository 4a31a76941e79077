// SPDX-License-Identifier: MIT
/*
 * Attention over codes against the same over fp16, and against the memory's
 * read bandwidth; one JSON object per line.
 *
 * 8 kv heads; 4 query heads each and 128 channels, unless CQ_BENCH_KV=,
 * CQ_BENCH_GQA= and CQ_BENCH_DIM= say otherwise. A sample is one call (several for
 * short contexts) over data not touched for at least 4 times the last-level cache,
 * or, with CQ_BENCH_CACHED=, over the same data as before; samples of the coded
 * kernel, of the fp16 kernel and of a plain read are taken in turn, so that only
 * times of one run are divided by each other; so are those of one thread where
 * there are two.
 * The fp16 baseline has keys that need no turning, whatever the coded ones need.
 *
 * CQ_BENCH_ONLY= is a shell pattern for the cases to run, whose names are like
 * "k8c8b-v8c8b none avx512 1x2 16384" (rows x threads, context). Two threads have
 * half the kv heads each, or, "1x2p", half the pages, and merge; or, "1x2c", a call
 * each, which have nothing to do with each other: what the machine has for two.
 */
#include <fnmatch.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "tests/kernels/toy.h"

#define MAX_KV 8
#define N_LAYERS 32
#define MAX_GQA 16
#define MAX_D 256
#define MAX_CONTEXT 262144
#define MAX_ROWS 16
#define MAX_THREADS 2
#define SAMPLES 17
#define SAMPLE_TOKENS 131072u	/* of all kv heads, at least */
#define READ_BYTES ((size_t)48 << 20)
#define AMPLE ((size_t)4 << 30)	/* free memory from which the longest context is run */

/* What two threads share. */
enum split {
	SPLIT_HEADS = 0,
	SPLIT_PAGES = 1,
	SPLIT_CALLS = 2,	/* nothing */
	N_SPLITS = 3,
};

static const char *const split_names[] = { "heads", "pages", "calls" };

struct data {
	uint8_t *mem;
	size_t bytes;
	uint32_t set;		/* next to be read */
};

struct job {
	const struct cqk_ops *ops;
	uint32_t threads;
	enum split split;
	struct cqk_attn a[MAX_THREADS];
	struct cq_part parts[MAX_THREADS];
	float lse[MAX_THREADS][MAX_ROWS * MAX_GQA * MAX_KV];
	float part_o[MAX_THREADS][MAX_ROWS * MAX_GQA * MAX_KV * MAX_D];
	struct cqk_block blocks[MAX_THREADS][MAX_CONTEXT / 64];
	struct cqk_span span[MAX_CONTEXT / 64];
	uint32_t row_pos[MAX_ROWS];
	uint32_t calls;		/* of one sample */
	struct toy *toy;
	struct data *data;
	uint32_t context;
	const char *config;
	float q[MAX_ROWS * MAX_GQA * MAX_KV * MAX_D];
	float o[MAX_ROWS * MAX_GQA * MAX_KV * MAX_D];
};

struct times {
	double ns[SAMPLES];
};

static uint32_t dim, n_kv, n_heads, max_context = MAX_CONTEXT;
static bool cached;
static struct data coded, halves;
static uint64_t *read_mem;
static volatile uint64_t read_sink[MAX_THREADS];

/*
 * One helper thread, spinning between the calls of a sample: a wake-up costs
 * more than a short call. Samples of one thread run without it.
 */
static atomic_uint turn_no, turn_done;
static atomic_bool helper_spins;
static pthread_t helper_thread;
static double turn_ns[MAX_THREADS];
static void (*turn_fn)(void *arg, uint32_t thread);
static void *turn_arg;

/*
 * Time of this thread on a CPU: on an idle machine the same as wall time, on a
 * busy one what the work took, not what others took in between.
 */
static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void do_part(uint32_t thread)
{
	double start = now_ns();

	turn_fn(turn_arg, thread);
	turn_ns[thread] = now_ns() - start;
}

static void *helper(void *arg)
{
	unsigned int seen = *(unsigned int *)arg;

	atomic_store(&helper_spins, true);
	for (;;) {
		while (atomic_load_explicit(&turn_no, memory_order_acquire) == seen)
			__builtin_ia32_pause();
		seen++;
		if (!turn_fn)
			return NULL;
		do_part(1);
		atomic_store_explicit(&turn_done, seen, memory_order_release);
	}
}

static void helper_start(void)
{
	static unsigned int seen;

	seen = atomic_load(&turn_no);
	atomic_store(&turn_done, seen);
	atomic_store(&helper_spins, false);
	if (pthread_create(&helper_thread, NULL, helper, &seen))
		abort();
	while (!atomic_load(&helper_spins))
		__builtin_ia32_pause();
}

static void helper_stop(void)
{
	turn_fn = NULL;
	atomic_fetch_add_explicit(&turn_no, 1, memory_order_release);
	pthread_join(helper_thread, NULL);
}

/* The slower thread's time. */
static double timed(void (*fn)(void *, uint32_t), void *arg, uint32_t threads)
{
	turn_fn = fn;
	turn_arg = arg;
	turn_ns[1] = 0;
	if (threads > 1)
		atomic_fetch_add_explicit(&turn_no, 1, memory_order_release);
	do_part(0);
	while (threads > 1 && atomic_load_explicit(&turn_done, memory_order_acquire) !=
	       atomic_load_explicit(&turn_no, memory_order_relaxed))
		__builtin_ia32_pause();
	return MAX(turn_ns[0], turn_ns[1]);
}

struct read_job {
	uint32_t threads;
	size_t at;
};

static void read_part(void *arg, uint32_t thread)
{
	const struct read_job *job = arg;
	size_t n = READ_BYTES / 8 / job->threads, i;
	const uint64_t *p = read_mem + job->at + thread * n;
	uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;

	for (i = 0; i < n; i += 32) {	/* vectorised: 32-byte loads or wider */
		int j;

		for (j = 0; j < 32; j += 4) {
			s0 ^= p[i + j];
			s1 ^= p[i + j + 1];
			s2 ^= p[i + j + 2];
			s3 ^= p[i + j + 3];
		}
	}
	read_sink[thread] = s0 ^ s1 ^ s2 ^ s3;
}

static void attend(void *arg, uint32_t thread)
{
	struct job *j = arg;
	struct cqk_attn a = j->a[thread];

	if (j->split == SPLIT_PAGES)
		cqk_attn_part(&a, thread, j->threads);
	j->ops->attention(&a);
}

/* One result of what the threads have; CPU time of this one. */
static double merge(struct job *j)
{
	struct cqk_merge m = {
		.geom = &j->toy->m.geom, .parts = j->parts, .n_parts = j->threads,
		.n_rows = j->a[0].n_rows, .head_end = n_kv,
		.o = { j->o, CQ_F32, 0, n_heads * dim, dim },
	};
	double start = now_ns();

	cqk_merge(&m);
	return now_ns() - start;
}

/* Which share of the work a thread has. */
static void job_share(struct job *j, uint32_t t)
{
	struct cqk_attn *a = &j->a[t];

	a->blocks = j->blocks[j->split == SPLIT_CALLS ? t : 0];
	if (j->split == SPLIT_HEADS) {
		a->head_begin = n_kv * t / j->threads;
		a->head_end = n_kv * (t + 1) / j->threads;
		return;
	}
	a->head_end = n_kv;
	if (j->split == SPLIT_CALLS && !t)
		return;
	a->o.data = j->part_o[t];
	a->lse = j->lse[t];
	a->lse_stride = n_heads;
	j->parts[t] = (struct cq_part){ .o = a->o, .lse = a->lse };
}

/* Sets are interleaved page by page, as the layers of real pages are. */
static void next_blocks(struct job *j, uint32_t t)
{
	size_t payload = j->toy->m.payload / N_LAYERS;
	uint32_t pages = j->context / 64, p;
	uint32_t sets = (uint32_t)(j->data->bytes / (pages * payload));
	uint32_t set = (cached ? t : j->data->set++) % sets;

	for (p = 0; p < pages; p++)
		j->blocks[t][p].base = j->data->mem + ((size_t)p * sets + set) * payload;
	j->a[t].layer = set % N_LAYERS;
}

static void next_set(struct job *j)
{
	uint32_t t;

	next_blocks(j, 0);
	for (t = 1; t < j->threads; t++)
		if (j->split == SPLIT_CALLS)
			next_blocks(j, t);
		else
			j->a[t].layer = j->a[0].layer;
}

/* A call before it is timed: a thread that has just begun knows neither code nor scratch. */
static double sample(struct job *j)
{
	double ns = 0;
	uint32_t i;

	next_set(j);
	timed(attend, j, j->threads);
	for (i = 0; i < j->calls; i++) {
		next_set(j);
		ns += timed(attend, j, j->threads);
		if (j->split == SPLIT_PAGES)
			ns += merge(j);
	}
	return ns / j->calls / j->context / n_kv;
}

static void job_init(struct job *j, const struct cqk_ops *ops, struct toy *toy,
		     struct data *data, uint32_t context, uint32_t rows,
		     uint32_t threads, enum split split)
{
	uint32_t p, t, i;

	j->ops = ops;
	j->threads = threads;
	j->split = split;
	j->toy = toy;
	j->data = data;
	j->context = context;
	j->calls = MAX(1u, SAMPLE_TOKENS / context / n_kv);
	for (p = 0; p < context / 64; p++) {
		for (t = 0; t < MAX_THREADS; t++)
			j->blocks[t][p] = (struct cqk_block){ .kind = CQK_BLOCK_CODES,
				.tokens = 64, .span_first = p, .n_spans = 1 };
		j->span[p] = (struct cqk_span){ .mask = ~0ull, .n_rows = rows,
						.pos = p * 64 };
	}
	for (i = 0; i < rows; i++)
		j->row_pos[i] = context + i;
	for (i = 0; i < rows * n_heads * dim; i++)
		j->q[i] = toy_normal();
	for (t = 0; t < threads; t++) {
		j->a[t] = (struct cqk_attn){
			.model = &toy->m, .rope = &toy->rope,
			.n_blocks = context / 64,
			.spans = j->span, .row_pos = j->row_pos, .n_rows = rows,
			.q = { j->q, CQ_F32, 0, n_heads * dim, dim },
			.o = { j->o, CQ_F32, 0, n_heads * dim, dim },
			.scale = 1.0f / sqrtf((float)dim),
			.scratch = aligned_alloc(64, ALIGN_UP(
				ops->scratch_bytes(&toy->m, rows), 64)),
		};
		if (!j->a[t].scratch)
			abort();
		job_share(j, t);
	}
}

static void job_exit(struct job *j)
{
	while (j->threads)
		free(j->a[--j->threads].scratch);
}

/* Relative error of one row and head, in double over the same codes. */
static double error_of(struct job *j)
{
	uint32_t row = j->a[0].n_rows - 1, head = MIN(5u, n_heads - 1), ch;
	double ref[MAX_D], err = 0, norm = 0;

	toy_reference(&j->a[0], row, head, ref);
	for (ch = 0; ch < dim; ch++) {
		double e = (double)j->o[((size_t)row * n_heads + head) * dim + ch] - ref[ch];

		err += e * e;
		norm += ref[ch] * ref[ch];
	}
	return sqrt(err / norm);
}

static int by_value(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static double quantile(struct times *t, double q)
{
	qsort(t->ns, SAMPLES, sizeof(double), by_value);
	return t->ns[(int)(q * (SAMPLES - 1) + 0.5)];
}

static const char *keys_name(const struct toy *t)
{
	static const char *const names[] = { "pre-rope", "rotated", "none" };

	return names[t->m.geom.keys];
}

static void print(struct job *j, struct times *own, struct times *one, struct times *fp16,
		  struct times *read)
{
	double median = quantile(own, 0.5);
	uint32_t calls = j->split == SPLIT_CALLS ? j->threads : 1;

	printf("{\"bench\": \"attention\", \"config\": \"%s\", \"keys\": \"%s\", "
	       "\"impl\": \"%s\", \"rows\": %u, \"threads\": %u, \"split\": \"%s\", "
	       "\"context\": %u, \"head_dim\": %u, \"gqa\": %u, \"kv_heads\": %u, "
	       "\"ns_per_token_head\": %.2f, \"vs_fp16\": %.2f, "
	       "\"vs_bandwidth\": %.2f, \"rel_err\": %.2e, "
	       "\"p10\": %.2f, \"p90\": %.2f",
	       j->config, keys_name(j->toy), j->ops->name, j->a[0].n_rows,
	       j->threads, split_names[j->split], j->context, dim, n_heads / n_kv, n_kv,
	       median, quantile(fp16, 0.5) / median,
	       quantile(read, 0.5) * 4 * dim * calls / median, error_of(j),
	       quantile(own, 0.1), quantile(own, 0.9));
	if (j->threads > 1)
		printf(", \"vs_one_thread\": %.3f", quantile(one, 0.5) * calls / median);
	printf("}\n");
	fflush(stdout);
}

static bool wanted(const struct cqk_ops *ops, const struct toy *toy,
		   const char *config, uint32_t context, uint32_t rows,
		   uint32_t threads, enum split split)
{
	static const char *const suffix[] = { "", "p", "c" };
	const char *only = getenv("CQ_BENCH_ONLY");
	char name[128];

	snprintf(name, sizeof(name), "%s %s %s %ux%u%s %u", config, keys_name(toy),
		 ops->name, rows, threads, suffix[split], context);
	return !only || !fnmatch(only, name, 0);
}

static void run_case(const struct cqk_ops *ops, struct toy *toy, struct data *data,
		     struct toy *base, const char *config, uint32_t context,
		     uint32_t rows, uint32_t threads, enum split split)
{
	static struct job own, one, fp16;
	struct read_job read = { .threads = threads };
	struct times t_own, t_one, t_fp16, t_read;
	uint32_t i;

	if (!wanted(ops, toy, config, context, rows, threads, split))
		return;
	job_init(&own, ops, toy, data, context, rows, threads, split);
	job_init(&one, ops, toy, data, context, rows, 1, SPLIT_HEADS);
	job_init(&fp16, ops, base, &halves, context, rows, threads, split);
	own.config = config;
	for (i = 0; i < SAMPLES; i++) {
		if (threads > 1) {
			t_one.ns[i] = sample(&one);
			helper_start();
		}
		t_fp16.ns[i] = sample(&fp16);
		t_own.ns[i] = sample(&own);
		read.at = i % 4 * READ_BYTES / 8;
		t_read.ns[i] = timed(read_part, &read, threads) / READ_BYTES;
		if (threads > 1)
			helper_stop();
	}
	print(&own, &t_own, &t_one, &t_fp16, &t_read);
	job_exit(&own);
	job_exit(&one);
	job_exit(&fp16);
}

/* In huge pages with CQ_BENCH_PAGES=huge, as cqd's segments may be. */
static uint8_t *data_alloc(size_t bytes)
{
	const char *pages = getenv("CQ_BENCH_PAGES");
	size_t huge = (size_t)2 << 20;
	uint8_t *p = aligned_alloc(huge, ALIGN_UP(bytes, huge));

	if (!p || (pages && !strcmp(pages, "huge") &&
		   madvise(p, ALIGN_UP(bytes, huge), MADV_HUGEPAGE))) {
		perror("memory for pages");
		exit(1);
	}
	memset(p, 0, ALIGN_UP(bytes, huge));
	return p;
}

static void data_init(struct data *d, size_t bytes, bool f16)
{
	size_t one = 1 << 20, i;

	d->mem = data_alloc(bytes);
	d->bytes = bytes;
	if (f16)
		toy_halves(d->mem, one / 2, 1.0f);
	for (i = 0; !f16 && i < one; i++)
		d->mem[i] = (uint8_t)(toy_u32() >> 11);
	for (i = one; i < bytes; i += one)
		memcpy(d->mem + i, d->mem, one);
}

static void toy_of(struct toy *t, uint32_t c, uint32_t keys)
{
	const char *type = getenv("CQ_BENCH_CENTROIDS");
	struct toy_opts o = {
		.n_layers = N_LAYERS, .n_heads = n_heads, .n_kv_heads = n_kv,
		.d = dim, .keys = keys, .rope_dim = dim, .ck = c, .cv = c,
		.i8 = !type || strcmp(type, "f16"), .theta = 5e5,
	};
	uint32_t l;

	toy_init(t, &o, MAX_CONTEXT + MAX_ROWS);
	for (l = 0; l < N_LAYERS; l++)	/* next_set() moves the base instead */
		t->m.layers[l].offset = 0;
}

/* Implementations of lower rank beside @ops, the portable one in a short context. */
static void run_others(const struct cqk_ops *ops, struct toy *toy, struct data *data,
		       struct toy *base, const char *name)
{
	const struct cqk_ops *other;
	uint32_t rows;
	unsigned int i;

	for (i = 0; (other = cqk_nth(i)); i++)
		if (other->priority < ops->priority && other != &cqk_portable &&
		    other->usable()) {
			run_case(other, toy, data, base, name, 16384, 1, 1, SPLIT_HEADS);
			run_case(other, toy, data, base, name, 4096, MAX_ROWS, 1, SPLIT_HEADS);
		}
	for (rows = 1; ops != &cqk_portable && rows <= MAX_ROWS; rows += MAX_ROWS - 1)
		run_case(&cqk_portable, toy, data, base, name, 1024, rows, 1, SPLIT_HEADS);
}

/* One number of threads, which share kv heads or pages: every context, many rows in one. */
static void run_threads(const struct cqk_ops *ops, struct toy *toy, struct toy *base,
			struct data *data, const char *name, uint32_t threads,
			enum split split)
{
	static const uint32_t contexts[] = { 1024, 4096, 16384, 65536, MAX_CONTEXT };
	uint32_t rows, i;

	for (rows = 1; rows <= MAX_ROWS; rows += MAX_ROWS - 1)
		for (i = 0; i < ARRAY_SIZE(contexts) && contexts[i] <= max_context; i++)
			if (rows == 1 || contexts[i] == 4096)
				run_case(ops, toy, data, base, name, contexts[i], rows, threads,
					 split);
}

static void run_coding(const struct cqk_ops *ops, struct toy *base, uint32_t c,
		       uint32_t keys)
{
	struct data *data = c ? &coded : &halves;
	enum split split;
	char name[32];
	struct toy t;

	if (c)
		snprintf(name, sizeof(name), "k%uc8b-v%uc8b", c, c);
	else
		snprintf(name, sizeof(name), "kfp16-vfp16");
	toy_of(&t, c, keys);
	run_threads(ops, &t, base, data, name, 1, SPLIT_HEADS);
	for (split = n_kv < MAX_THREADS; split < N_SPLITS; split++)
		run_threads(ops, &t, base, data, name, MAX_THREADS, split);
	run_others(ops, &t, data, base, name);
	toy_free(&t);
}

/* A number from the environment, at most @most. */
static uint32_t env_number(const char *name, uint32_t normal, uint32_t most)
{
	const char *text = getenv(name);
	long n = text ? strtol(text, NULL, 10) : normal;

	if (n < 1 || n > (long)most) {
		fprintf(stderr, "%s=%s: not from 1 to %u\n", name, text, most);
		exit(1);
	}
	return (uint32_t)n;
}

int main(void)
{
	static const uint32_t codings[] = { 0, 8, 4, 2 };
	const struct cqk_ops *ops = cqk_select(getenv("CQ_KERNELS"));
	struct toy base;
	uint32_t i;

	if (!ops) {
		fprintf(stderr, "CQ_KERNELS=%s: no such implementation here\n",
			getenv("CQ_KERNELS"));
		return 1;
	}
	dim = env_number("CQ_BENCH_DIM", 128, MAX_D);
	n_kv = env_number("CQ_BENCH_KV", MAX_KV, MAX_KV);
	cached = getenv("CQ_BENCH_CACHED");
	n_heads = n_kv * env_number("CQ_BENCH_GQA", 4, MAX_GQA);
	if (dim % 8) {
		fprintf(stderr, "CQ_BENCH_DIM=%u: not a multiple of 8\n", dim);
		return 1;
	}
	if ((size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) < AMPLE)
		max_context /= 4;
	/* one set at least of the longest context; 2c8b takes a byte per token and channel */
	data_init(&coded, MAX((size_t)160 << 20, (size_t)max_context * MAX_KV * dim), false);
	data_init(&halves, MAX((size_t)256 << 20,
			       (size_t)max_context * MAX_KV * dim * 4), true);
	read_mem = (uint64_t *)(void *)data_alloc(4 * READ_BYTES);
	memset(read_mem, 1, 4 * READ_BYTES);
	toy_of(&base, 0, CQK_KEYS_NONE);
	for (i = 0; i < ARRAY_SIZE(codings); i++) {
		run_coding(ops, &base, codings[i], CQK_KEYS_NONE);
		run_coding(ops, &base, codings[i], CQK_KEYS_PRE_ROPE);
	}
	toy_free(&base);
	free(coded.mem);
	free(halves.mem);
	free(read_mem);
	return 0;
}
