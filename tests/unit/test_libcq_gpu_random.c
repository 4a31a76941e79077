// SPDX-License-Identifier: MIT
/*
 * The same calls at random on the host and on the emulated GPU, whose streams
 * hesitate: lengths are the same, and attention gives the same to 2e-3.
 */
#include "tests/unit/test_libcq_gpu.h"
#include "client/gpu.h"

#define SEQS 5
#define TOKENS 700

static struct rig r;
static uint64_t state;

/* A sequence of both, and its text. */
struct pair {
	struct cq_seq *a, *b;
	uint32_t ids[TOKENS + 64];
};

struct scene {
	struct shape shape;
	struct worker w, h;
	struct cq_batch *bw, *bh;
	struct pair p[SEQS];
};

static uint32_t pick(uint32_t n)
{
	return (uint32_t)(rig_mix(++state) % n);
}

static void pair_open(struct scene *s, struct pair *p)
{
	struct cq_seq_opts o = { .sz = sizeof(o) };
	size_t n = pick(2) ? 400 : 0, a, b;

	/* Texts that others have, and may have published; or one of its own. */
	rig_ids(p->ids, TOKENS + 64, pick(2) ? pick(2) : 100 + (uint32_t)state);
	CQ_OK(cq_seq_open(s->w.model, p->ids, n, &o, &p->a));
	CQ_OK(cq_seq_open(s->h.model, p->ids, n, &o, &p->b));
	a = cq_seq_length(p->a);
	b = cq_seq_length(p->b);
	/* What was sealed when a sequence was closed depends on time. */
	if (a != b) {
		CQ_OK(cq_truncate(p->a, 64 * (MIN(a, b) / 64)));
		CQ_OK(cq_truncate(p->b, 64 * (MIN(a, b) / 64)));
	}
}

static void pair_close(struct pair *p)
{
	cq_seq_close(p->a);
	cq_seq_close(p->b);
	p->a = p->b = NULL;
}

static int grow_some(struct scene *s, struct pair *p)
{
	size_t len = cq_seq_length(p->a), to = MIN(len + 1 + pick(150), (size_t)TOKENS);
	size_t step = 1 + pick(100);
	int ret;

	for (;;) {
		ret = gpu_try_grow(&s->w, p->a, p->ids, to, step);
		if (ret != -ENOBUFS)
			break;
		CQ_OK(cq_truncate(p->a, cq_seq_length(p->a)));
		usleep(1000);
	}
	CQ_OK(ret);
	while ((ret = worker_try_grow(&s->h, p->b, p->ids, to, step)) == -ENOBUFS) {
		CQ_OK(cq_truncate(p->b, cq_seq_length(p->b)));
		usleep(1000);
	}
	return ret;
}

static int attend_wait(struct scene *s, struct pair *p, uint32_t rows, float *o, float *lse)
{
	int ret;

	while ((ret = attend(&s->w, s->bw, p->a, p->ids, rows, true, o, lse)) == -ENOBUFS)
		usleep(1000);
	return ret;
}

static void compare(struct scene *s, struct pair *p)
{
	uint32_t rows = 1 + pick(4);
	size_t n = (size_t)rows * s->shape.heads * s->shape.dim, i;
	float *a = calloc(n, 4), *b = calloc(n, 4), *lse = calloc(n, 4);

	ASSERT(a && b && lse);
	ASSERT_EQ(cq_seq_length(p->a), cq_seq_length(p->b));
	CQ_OK(attend_wait(s, p, rows, a, lse));
	CQ_OK(attend(&s->h, s->bh, p->b, p->ids, rows, false, b, lse));
	for (i = 0; i < n; i++)
		ASSERT_NEAR(a[i], b[i], 2e-3);
	free(a);
	free(b);
	free(lse);
}

static void fork_to(struct scene *s, struct pair *from, struct pair *to)
{
	int ret;

	if (to->a)
		pair_close(to);
	while ((ret = cq_fork(from->a, NULL, &to->a)) == -ENOBUFS)
		usleep(1000);
	CQ_OK(ret);
	while ((ret = cq_fork(from->b, NULL, &to->b)) == -ENOBUFS)
		usleep(1000);
	CQ_OK(ret);
	memcpy(to->ids, from->ids, sizeof(to->ids));
}

static void truncate_some(struct pair *p)
{
	size_t n = pick((uint32_t)cq_seq_length(p->a) + 1);
	uint32_t other[TOKENS + 64];
	int ret;

	while ((ret = cq_truncate(p->a, n)) == -ENOBUFS)
		usleep(1000);
	CQ_OK(ret);
	while ((ret = cq_truncate(p->b, n)) == -ENOBUFS)
		usleep(1000);
	CQ_OK(ret);
	rig_ids(other, TOKENS + 64, pick(3));
	memcpy(p->ids + n, other + n, (TOKENS + 64 - n) * sizeof(*other));
}

static void one_call(struct scene *s)
{
	struct pair *p = &s->p[pick(SEQS)];

	if (!p->a) {
		pair_open(s, p);
		return;
	}
	switch (pick(12)) {
	case 0:
		pair_close(p);
		break;
	case 1:
		fork_to(s, p, &s->p[(p - s->p + 1) % SEQS]);
		break;
	case 2:
	case 3:
		truncate_some(p);
		break;
	case 4:
		CQ_OK(cq_seal(p->a, 10000));
		CQ_OK(cq_seal(p->b, 10000));
		break;
	case 5:
	case 6:
	case 7:
		compare(s, p);
		break;
	default:
		CQ_OK(grow_some(s, p));
	}
}

static void at_random(const struct shape *shape, uint64_t seed, int calls)
{
	struct scene s = { .shape = *shape };
	const char *more = getenv("SEED");
	char text[32];
	int i;

	if (more)		/* to look for more */
		seed = strtoull(more, NULL, 10);
	state = seed << 20;
	gpu_env();
	rig_start(&r, shape, GPU_CONF);
	ASSERT_SYS(setenv("CQ_EMU_DELAY_US", "300", 1));
	snprintf(text, sizeof(text), "%llu", (unsigned long long)seed);
	ASSERT_SYS(setenv("CQ_EMU_SEED", text, 1));
	worker_gpu_open(&s.w, shape, r.sock, 0, 96);
	worker_open(&s.h, shape, r.sock, 0, 160);
	CQ_OK(cq_batch_new(s.w.model, 1, 4, 0, &s.bw));
	CQ_OK(cq_batch_new(s.h.model, 1, 4, 0, &s.bh));
	for (i = 0; i < calls; i++)
		one_call(&s);
	for (i = 0; i < SEQS; i++)
		if (s.p[i].a)
			compare(&s, &s.p[i]);
	cq_close(s.w.ctx);
	cq_close(s.h.ctx);
	rig_stop(&r);
}

#define SHAPE(sinks_, window_, keys_, k_, v_) { .layers = 1, .heads = 2, .kv_heads = 1, \
	.dim = 64, .sinks = (sinks_), .window = (window_), .max_position = 2048, \
	.keys = (keys_), .k = (k_), .v = (v_) }

TEST_LIMIT(coded, 60)
{
	static const struct shape s = SHAPE(4, 128, CQK_KEYS_PRE_ROPE, "4c8b", "4c8b");

	at_random(&s, 1, 150);
}

TEST_LIMIT(no_window, 60)
{
	static const struct shape s = SHAPE(0, 0, CQK_KEYS_ROTATED, "2c8b", "8c8b");

	at_random(&s, 2, 150);
}

TEST_LIMIT(many_sinks, 60)
{
	static const struct shape s = SHAPE(64, 64, CQK_KEYS_NONE, "8c8b", "fp16");

	at_random(&s, 3, 150);
}

/* A byte has upper bits of four tokens, which come and go at other times. */
TEST_LIMIT(wide_codes, 60)
{
	static const struct shape s = SHAPE(4, 64, CQK_KEYS_PRE_ROPE, "4c8b", "8c10b");

	at_random(&s, 4, 150);
}
