// SPDX-License-Identifier: MIT
/*
 * Every allocation of parser, writer and calibration fails once: the first,
 * the second, ... until a run gets through. Each failure is -ENOMEM with a
 * text, and no memory is left behind.
 *
 * Counted are calls from the program itself and from jansson; what libcrypto
 * and libc take for themselves is theirs.
 */
#include <jansson.h>
#include <malloc.h>
#include <pthread.h>
#include "tests/harness.h"
#include "kernels/calibrate.h"
#include "tests/kernels/image.h"
#include "tests/own_malloc.h"

static bool armed;
static long countdown;
static long live;

static bool fault(void)
{
	return __atomic_load_n(&armed, __ATOMIC_RELAXED) &&
	       __atomic_sub_fetch(&countdown, 1, __ATOMIC_RELAXED) == 0;
}

/*
 * Blocks given to the program or jansson and not back yet. By address: a
 * library's free may come from one of its own functions or, by a tail call,
 * seem to come from the program.
 */
#define SLOTS 4096u
static void *held[SLOTS];
static pthread_mutex_t held_lock = PTHREAD_MUTEX_INITIALIZER;

static void replace(void *from, void *to)
{
	uint32_t i, n;

	if (!__atomic_load_n(&armed, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&held_lock);
	i = (uint32_t)((uintptr_t)(from ? from : to) >> 4) % SLOTS;
	for (n = 0; n < SLOTS && held[i] != from; n++)
		i = (i + 1) % SLOTS;
	if (n < SLOTS) {
		held[i] = to;
		live += to ? 1 : -1;
	}
	pthread_mutex_unlock(&held_lock);
}

static void *note(void *p)
{
	if (p)
		replace(NULL, p);
	return p;
}

#if OWN_MALLOC
extern const char __executable_start[], etext[];
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static bool ours(const void *caller)
{
	return (const char *)caller >= __executable_start && (const char *)caller < etext;
}

void *malloc(size_t n)
{
	if (!ours(__builtin_return_address(0)))
		return __libc_malloc(n);
	return fault() ? NULL : note(__libc_malloc(n));
}

void *calloc(size_t n, size_t size)
{
	if (!ours(__builtin_return_address(0)))
		return __libc_calloc(n, size);
	return fault() ? NULL : note(__libc_calloc(n, size));
}

void *aligned_alloc(size_t align, size_t n)
{
	if (!ours(__builtin_return_address(0)))
		return __libc_memalign(align, n);
	return fault() ? NULL : note(__libc_memalign(align, n));
}

void *realloc(void *p, size_t n)
{
	void *q;

	if (!ours(__builtin_return_address(0)))
		return __libc_realloc(p, n);
	if (fault())
		return NULL;
	q = __libc_realloc(p, n);
	if (q && p)
		replace(p, NULL);
	return note(q);
}

void free(void *p)
{
	if (p)
		replace(p, NULL);
	__libc_free(p);
}
#else
#define __libc_malloc malloc
#define __libc_free free
#endif

static void *json_alloc(size_t n)
{
	return fault() ? NULL : note(__libc_malloc(n));
}

static void json_release(void *p)
{
	if (p)
		replace(p, NULL);
	__libc_free(p);
}

/* @run returns 0 or -errno; it frees what it made. */
static void fail_each(int (*run)(struct cq_err *err), long at_least)
{
	struct cq_err err = { "" };
	long n;
	int ret;

	json_set_alloc_funcs(json_alloc, json_release);
	ASSERT_OK(run(&err));		/* libraries set themselves up */
	for (n = 1; ; n++) {
		live = 0;
		memset(held, 0, sizeof(held));
		countdown = n;
		err.text[0] = '\0';
		armed = true;
		ret = run(&err);
		armed = false;
		if (OWN_MALLOC && live)
			FAIL("%ld blocks left after failure of allocation %ld", live, n);
		if (!ret)
			break;
		/* jansson takes some of its own for errors of syntax */
		if (ret == -EINVAL && strstr(err.text, "safetensors header"))
			continue;
		if (ret != -ENOMEM || !err.text[0])
			FAIL("allocation %ld: %d \"%s\"", n, ret, err.text);
	}
	if (countdown < 1)
		FAIL("allocation %ld failed and nobody noticed", n);
	ASSERT_GT(n, at_least);
}

static struct image im;

static int parse(struct cq_err *err)
{
	struct cqk_model *m;
	int ret = cqk_model_parse(im.buf, im.size, &m, err);

	if (!ret)
		cqk_model_free(m);
	return ret;
}

TEST(parsing)
{
	im = image_metric(small_geom(64), "4c8b", "8c8b", CQK_CENTROIDS_I8, true);
	fail_each(parse, 20);
	free(im.buf);
}

/* 300 tokens of one layer and head, as a dump with gradients */
static void make_dump(void)
{
	struct st_tensor t[4] = { { 0 } };
	static const char *const name[] = { "layers.0.k", "layers.0.v",
					    "layers.0.k.fisher", "layers.0.v.fisher" };
	const char *meta[] = {
		"format", "cq-activations-1", "n_layers", "1", "n_heads", "1",
		"n_kv_heads", "1", "head_dim", "8", "max_position", "64",
		"keys", "none", "rope", "none", "rope_dim", "0", "rope_theta", "0",
		"sequence_tokens", "300", "fingerprint",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
	};
	uint64_t rng = 4;
	void *header;
	size_t at, i;

	for (i = 0; i < 4; i++)
		t[i] = (struct st_tensor){ .name = name[i], .dtype = ST_F32, .n_dims = 3,
					   .shape = { 1, 300, 8 }, .bytes = 9600 };
	at = st_header(t, 4, meta, ARRAY_SIZE(meta) / 2, &header);
	ASSERT(at);
	im.size = at + sizeof(float) * 9600;
	im.buf = realloc(header, im.size);
	for (i = 0; i < 9600; i++)
		((float *)(void *)(im.buf + at))[i] = (float)uniform(&rng);
}

static uint32_t threads;

static int learn(struct cq_err *err)
{
	static const struct cq_code k = { CQ_CODE_CQ, 4, 8, 0 }, v = { CQ_CODE_CQ, 8, 8, 0 };
	struct cqk_calib_opts o = { .k = &k, .v = &v, .centroids = CQK_CENTROIDS_I8,
				    .fisher = CQK_FISHER_BOTH, .clip = 0.999, .iterations = 2,
				    .starts = 1, .threads = threads };
	void *image = NULL;
	size_t size;
	int ret = cqk_dump_geom(im.buf, im.size, &o.geom, err);

	if (!ret)
		ret = cqk_calibrate(im.buf, im.size, &o, NULL, &image, &size, err);
	if (!ret)
		free(image);
	return ret;
}

TEST(calibrating)
{
	make_dump();
	threads = 1;
	fail_each(learn, 40);
	free(im.buf);
}

static int choose(struct cq_err *err)
{
	struct cq_code k, v;
	static const struct cq_code choices[] = {
		{ CQ_CODE_CQ, 8, 8, 0 }, { CQ_CODE_CQ, 4, 8, 0 },
	};
	double loss[2][CQK_MAX_CHOICES];
	struct cqk_budget b = { .bits = 2, .k = &k, .v = &v, .loss = loss,
				.choices = choices, .n_choices = 2 };
	struct cqk_calib_opts o = { .clip = 0.99, .iterations = 2, .starts = 1, .threads = 2 };
	int ret = cqk_dump_geom(im.buf, im.size, &o.geom, err);

	return ret ? ret : cqk_calib_budget(im.buf, im.size, &o, &b, err);
}

TEST(choosing_codings)
{
	make_dump();
	fail_each(choose, 40);
	free(im.buf);
}

TEST(calibrating_with_threads)
{
	make_dump();
	threads = 3;
	fail_each(learn, 40);
	free(im.buf);
}
