/* SPDX-License-Identifier: MIT */
/*
 * T9: two workers attend over one prefix, which neither of them owns, where it
 * lies. Each has queries and a tail of its own; what each of them gets must be,
 * bit by bit, what a process gets that has a copy of the prefix to itself.
 * Include it once, after life.h.
 */
#ifndef GPU_ATTEND_H
#define GPU_ATTEND_H

#define ASSERT(c) do { if (!(c)) broken("%s", #c); } while (0)
#define FAIL(...) broken(__VA_ARGS__)
#include "tests/kernels/gpu_scene.h"

#define PREFIX	24		/* pages */
#define ROUNDS	20		/* that both attend at the same time */
#define WORKERS	2

/* Bytes from one page of the prefix to the next. */
static size_t page_stride(const struct scene *s)
{
	return ALIGN_UP(s->toy.m.payload, 256);
}

static size_t prefix_bytes(const struct scene *s)
{
	return ALIGN_UP(PREFIX * page_stride(s), GRAN);
}

/* Model and prefix are the same in every process, the queries are those of @who. */
static struct scene *attend_scene(uint32_t who)
{
	const struct scene_opts o = {
		.toy = { .n_layers = 2, .n_heads = 8, .n_kv_heads = 2, .d = 128,
			 .rope_dim = 128, .ck = 4, .cv = 8 },
		.shared = PREFIX, .tail = 21, .rows = 2, .layer = 1,
	};
	struct scene *s;
	float *q;

	toy_state = 9;
	s = scene_new(&o);
	toy_state = 1000 + who;
	q = (float *)(void *)s->q;
	for (size_t i = 0; i < s->out_bytes / sizeof(*q); i++)
		q[i] = toy_normal();
	return s;
}

static void own_prefix(int sock)
{
	struct scene *s = attend_scene(0);
	size_t n = prefix_bytes(s);
	cqcu_ptr p;
	cqcu_mem h;

	start();
	h = mem_new(n);
	p = mem_map(h, n, READWRITE);
	for (size_t i = 0; i < PREFIX; i++)
		CALL(cuMemcpyHtoD(p + i * page_stride(s), s->blocks[i].base, s->toy.m.payload));
	CALL(cuCtxSynchronize());
	send_fd(sock, mem_export(h), "", 1);
	recv_byte(sock);
}

/* The pages of the prefix are those behind @fd; nothing is left of the own ones. */
static void use_prefix(struct gpu *g, struct scene *s, struct run *r, int fd)
{
	cqcu_ptr p = mem_map(mem_import(fd), prefix_bytes(s), READ);

	for (size_t i = 0; i < PREFIX; i++) {
		CALL(cuMemsetD8((uintptr_t)r->blocks[i].base, 0xff, s->toy.m.payload));
		r->blocks[i].base = (const uint8_t *)(uintptr_t)(p + i * page_stride(s));
	}
	put_plan(g, s, r);
}

/* What a worker got: the results and, behind them, the lse. */
struct got {
	double error;		/* against double precision; 0: not computed */
	uint32_t bytes;
	uint8_t data[32768];
};

static void attend_once(struct gpu *g, struct scene *s, const struct run *r, struct got *out)
{
	CALL(cuMemsetD8Async(r->o, 0xff, s->out_bytes, g->stream));
	CALL(cuMemsetD8Async(r->lse, 0xff, r->lse_bytes, g->stream));
	run_launch(g, r);
	run_get(g, s, r);
	memset(out, 0, sizeof(*out));
	out->bytes = (uint32_t)(s->out_bytes + r->lse_bytes);
	if (out->bytes > sizeof(out->data))
		broken("results of %u bytes", out->bytes);
	memcpy(out->data, s->out, s->out_bytes);
	memcpy(out->data + s->out_bytes, s->lse, r->lse_bytes);
}

/* Worker @who; with a descriptor the prefix is behind it, else it has a copy. */
static void attend(int sock)
{
	static struct got first, again;
	struct scene *s;
	uint32_t who;
	struct gpu g;
	struct run r;
	int fd, ret;

	fd = recv_fd(sock, &who, sizeof(who));
	start_driver();
	ret = gpu_open_on(&g, dev);
	if (ret && ret != -EOPNOTSUPP)
		broken("%s", g.err.text);
	if (ret) {
		conclude(SKIPPED, "%s", g.err.text);
		send_byte(sock, 'n');
		return;
	}
	s = attend_scene(who);
	run_new(&g, s, &r);
	if (fd >= 0)
		use_prefix(&g, s, &r, fd);
	send_byte(sock, 'r');
	recv_byte(sock);
	attend_once(&g, s, &r, &first);
	for (int i = 1; i < ROUNDS; i++) {
		attend_once(&g, s, &r, &again);
		if (memcmp(&first, &again, sizeof(first)))
			broken("round %d of worker %u differs from the first", i, who);
	}
	if (fd < 0)
		first.error = scene_error(s);
	send_fd(sock, -1, &first, sizeof(first));
}

static struct role worker_start(uint32_t who, int fd)
{
	struct role r = role_start(attend);

	send_fd(r.sock, fd, &who, sizeof(who));
	return r;
}

static void worker_take(struct role *r, struct got *got)
{
	recv_fd(r->sock, got, sizeof(*got));
	role_must_end(r);
}

/* Each worker with a process and a prefix to itself. False: there are no kernels. */
static bool attend_alone(struct got *got)
{
	struct role r;

	for (uint32_t i = 0; i < WORKERS; i++) {
		r = worker_start(i, -1);
		if (recv_byte(r.sock) != 'r') {
			role_must_end(&r);
			return false;
		}
		send_byte(r.sock, 'g');
		worker_take(&r, &got[i]);
		if (!(got[i].error <= 2e-3))
			broken("one process alone has an error of %.1e", got[i].error);
	}
	return true;
}

static void attend_together(struct got *got)
{
	struct role r[WORKERS];
	int fd = orphan_of(own_prefix);
	uint32_t i;

	for (i = 0; i < WORKERS; i++)
		r[i] = worker_start(i, fd);
	close(fd);
	for (i = 0; i < WORKERS; i++)
		recv_byte(r[i].sock);
	for (i = 0; i < WORKERS; i++)
		send_byte(r[i].sock, 'g');
	for (i = 0; i < WORKERS; i++)
		worker_take(&r[i], &got[i]);
}

static void t9_two_workers_attend(void)
{
	static struct got want[WORKERS], got[WORKERS];
	uint32_t i;

	if (!attend_alone(want))
		return;
	attend_together(got);
	if (!memcmp(want[0].data, want[1].data, want[0].bytes))
		broken("both workers have the same queries");
	for (i = 0; i < WORKERS; i++)
		if (got[i].bytes != want[i].bytes ||
		    memcmp(got[i].data, want[i].data, got[i].bytes))
			broken("worker %u gets something else than a process alone", i);
	conclude(PASSED, "%d workers attended %d tokens in place, %d times: bit by bit what one "
		 "process gets; error %.1e", WORKERS, PREFIX * 64, ROUNDS,
		 fmax(want[0].error, want[1].error));
}

#endif /* GPU_ATTEND_H */
