// SPDX-License-Identifier: MIT
/*
 * The fake driver's streams: order within and between them, events, values in
 * memory, and launches that really are asynchronous. A gate (a host function
 * that waits) shows what has not run yet; nothing here depends on time.
 */
#include "tests/harness.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include "tests/emu/fake_rig.h"

struct gate {
	sem_t closed, reached;
};

static void pass_gate(void *arg)
{
	struct gate *g = arg;

	sem_post(&g->reached);
	while (sem_wait(&g->closed) < 0)
		;
}

static void gate_in(struct gate *g, struct cqcu_stream *s)
{
	sem_init(&g->closed, 0, 0);
	sem_init(&g->reached, 0, 0);
	CU(cuLaunchHostFunc(s, pass_gate, g));
}

static void open_gate(struct gate *g)
{
	ASSERT_SYS(sem_post(&g->closed));
}

/* That a gate is not reached takes a while to see; a slow machine only misses it. */
static bool is_reached(struct gate *g)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_nsec += 50000000;
	if (ts.tv_nsec >= 1000000000) {
		ts.tv_sec++;
		ts.tv_nsec -= 1000000000;
	}
	return sem_timedwait(&g->reached, &ts) == 0;
}

static struct cqcu_stream *stream_new(unsigned int flags)
{
	struct cqcu_stream *s;

	CU(cuStreamCreate(&s, flags));
	return s;
}

TEST(a_launch_copies_its_parameters_and_returns)
{
	struct cqcu_stream *s;
	uint32_t v = 7, n = 4;
	struct gate g;
	cqcu_ptr p, q;
	void *params[] = { &p, &v, &n };

	start();
	s = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 64));
	CU(cuMemAlloc(&q, 64));
	gate_in(&g, s);
	CU(cuLaunchKernel(kernel("demo_fill"), 1, 1, 1, 32, 1, 1, 0, s, params, NULL));
	/* all of them change before the kernel runs */
	memset(params, 0xff, sizeof(params));
	v = 8;
	n = 0;
	CU_FAILS(CQCU_ERROR_NOT_READY, cuStreamQuery(s));
	open_gate(&g);
	CU(cuStreamSynchronize(s));
	CU(cuStreamQuery(s));
	ASSERT_EQ(peek(p + 12), 7);
	CU(cuStreamDestroy(s));
}

/* x = 3 x + v: only one order gives the right result. */
TEST(steps_of_a_stream_keep_their_order)
{
	struct cqcu_stream *s;
	uint32_t want = 1;
	cqcu_ptr p;

	knob("CQ_EMU_DELAY_US", "200");
	knob("CQ_EMU_ORDER", "random");
	start();
	s = stream_new(0);
	CU(cuMemAlloc(&p, 64));
	poke(p, 1);
	for (uint32_t i = 0; i < 50; i++) {
		ASSERT_EQ(launch_step(p, p, i, s), 0);
		want = want * 3 + i;
	}
	CU(cuMemcpyDtoDAsync(p + 4, p, 4, s));
	CU(cuStreamSynchronize(s));
	ASSERT_EQ(peek(p + 4), want);
}

TEST(streams_are_independent_without_an_event)
{
	struct cqcu_stream *a, *b;
	struct gate g;
	cqcu_ptr p;

	start();
	a = stream_new(CQCU_STREAM_NON_BLOCKING);
	b = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 64));
	gate_in(&g, a);
	ASSERT_EQ(launch_fill(p, 5, 1, b), 0);
	CU(cuStreamSynchronize(b));
	CU_FAILS(CQCU_ERROR_NOT_READY, cuStreamQuery(a));
	open_gate(&g);
	CU(cuStreamSynchronize(a));
	ASSERT_EQ(peek(p), 5);
}

TEST(an_event_orders_two_streams)
{
	struct cqcu_stream *a, *b;
	struct cqcu_event *e;
	struct gate g;
	cqcu_ptr p;
	float ms;

	start();
	a = stream_new(CQCU_STREAM_NON_BLOCKING);
	b = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 64));
	CU(cuEventCreate(&e, 0));
	CU(cuEventQuery(e));		/* not recorded: nothing to wait for */
	CU(cuStreamWaitEvent(b, e, 0));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuEventElapsedTime(&ms, e, e));
	gate_in(&g, a);
	ASSERT_EQ(launch_fill(p, 5, 1, a), 0);
	CU(cuEventRecord(e, a));
	CU(cuStreamWaitEvent(b, e, 0));
	ASSERT_EQ(launch_step(p + 4, p, 2, b), 0);
	CU_FAILS(CQCU_ERROR_NOT_READY, cuEventQuery(e));
	CU_FAILS(CQCU_ERROR_NOT_READY, cuStreamQuery(b));
	open_gate(&g);
	CU(cuStreamSynchronize(b));
	CU(cuEventSynchronize(e));
	ASSERT_EQ(peek(p + 4), 17);
	CU(cuEventElapsedTime(&ms, e, e));
	CU(cuEventDestroy(e));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuEventDestroy(e));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuEventRecord(e, a));
}

/* Recording again does not change what somebody already waits for. */
TEST(an_event_recorded_twice)
{
	struct cqcu_stream *a, *b;
	struct cqcu_event *e;
	struct gate g;

	start();
	a = stream_new(CQCU_STREAM_NON_BLOCKING);
	b = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuEventCreate(&e, CQCU_EVENT_DISABLE_TIMING));
	CU(cuEventRecord(e, a));
	CU(cuStreamWaitEvent(b, e, 0));
	gate_in(&g, a);
	CU(cuEventRecord(e, a));
	CU(cuStreamSynchronize(b));
	CU_FAILS(CQCU_ERROR_NOT_READY, cuEventQuery(e));
	/* its record goes on without it */
	CU(cuStreamWaitEvent(b, e, 0));
	CU(cuEventDestroy(e));
	open_gate(&g);
	CU(cuStreamSynchronize(b));
}

/* NULL waits for blocking streams and they for it; others it leaves alone. */
TEST(the_legacy_stream)
{
	struct cqcu_stream *blocking, *free_one;
	struct gate g, h, k;
	cqcu_ptr p;

	start();
	blocking = stream_new(CQCU_STREAM_DEFAULT);
	free_one = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 64));
	gate_in(&g, blocking);
	gate_in(&h, free_one);
	gate_in(&k, NULL);
	ASSERT(!is_reached(&k));
	open_gate(&k);
	ASSERT_EQ(launch_fill(p, 5, 1, NULL), 0);
	ASSERT_EQ(launch_step(p + 4, p, 1, blocking), 0);
	CU_FAILS(CQCU_ERROR_NOT_READY, cuStreamQuery(NULL));
	open_gate(&g);
	CU(cuStreamSynchronize(blocking));
	ASSERT_EQ(peek(p + 4), 16);
	CU_FAILS(CQCU_ERROR_NOT_READY, cuStreamQuery(free_one));
	open_gate(&h);
	CU(cuCtxSynchronize());
	CU(cuStreamQuery(free_one));
}

/* The other way round: a blocking stream's step waits for an earlier one in NULL. */
TEST(a_blocking_stream_waits_for_the_legacy_one)
{
	struct cqcu_stream *s;
	struct gate g;
	cqcu_ptr p;

	start();
	s = stream_new(CQCU_STREAM_DEFAULT);
	CU(cuMemAlloc(&p, 64));
	gate_in(&g, CQCU_STREAM_LEGACY);
	ASSERT_EQ(launch_fill(p, 5, 1, s), 0);
	ASSERT_SYS(sem_wait(&g.reached));
	CU_FAILS(CQCU_ERROR_NOT_READY, cuStreamQuery(s));
	open_gate(&g);
	CU(cuStreamSynchronize(s));
	ASSERT_EQ(launch_fill(p, 6, 1, CQCU_STREAM_PER_THREAD), 0);
	CU(cuStreamSynchronize(CQCU_STREAM_PER_THREAD));
	ASSERT_EQ(peek(p), 6);
}

TEST(values_in_memory_order_streams)
{
	struct cqcu_stream *a, *b;
	uint64_t word;
	cqcu_ptr p;

	start();
	a = stream_new(CQCU_STREAM_NON_BLOCKING);
	b = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 64));
	CU(cuMemsetD8(p, 0, 64));
	CU(cuCtxSynchronize());		/* the other streams do not wait for it */
	CU(cuStreamWaitValue64(b, p, 5, CQCU_STREAM_WAIT_VALUE_GEQ));
	ASSERT_EQ(launch_step(p + 16, p + 8, 1, b), 0);
	CU(cuStreamWriteValue64(a, p, 4, 0));
	CU(cuStreamSynchronize(a));
	CU_FAILS(CQCU_ERROR_NOT_READY, cuStreamQuery(b));
	ASSERT_EQ(launch_fill(p + 8, 9, 1, a), 0);
	CU(cuStreamWriteValue64(a, p, 6, 0));
	CU(cuStreamSynchronize(b));
	ASSERT_EQ(peek(p + 16), 28);
	CU(cuMemcpyDtoH(&word, p, 8));
	ASSERT_EQ(word, 6);
	CU(cuStreamWaitValue64(b, p, 6, CQCU_STREAM_WAIT_VALUE_EQ));
	CU(cuStreamWaitValue64(b, p, 2, CQCU_STREAM_WAIT_VALUE_AND));
	CU(cuStreamSynchronize(b));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuStreamWaitValue64(b, p + 4, 6, 0));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuStreamWriteValue64(b, p + 64, 6, 0));
}

/* A wait that nobody ends must not keep a process from ending. */
TEST(a_process_may_end_while_a_stream_waits)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		struct cqcu_stream *s;
		cqcu_ptr p;

		start();
		s = stream_new(0);
		CU(cuMemAlloc(&p, 64));
		CU(cuStreamWaitValue64(s, p, 1, 0));
		exit(0);
	}
	reap(pid);
}

TEST(a_lost_context_lets_nobody_wait_forever)
{
	struct cqcu_stream *a, *b;
	struct cqcu_event *e;
	cqcu_ptr p;

	start();
	a = stream_new(CQCU_STREAM_NON_BLOCKING);
	b = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuEventCreate(&e, 0));
	CU(cuMemAlloc(&p, 4096));
	CU(cuStreamWaitValue64(a, p, 1, 0));
	CU(cuEventRecord(e, a));
	CU(cuStreamWaitEvent(b, e, 0));
	ASSERT_EQ(launch_fill(p + 4096, 1, 1, NULL), 0);
	CU_FAILS(CQCU_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(NULL));
	CU_FAILS(CQCU_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(b));
	CU_FAILS(CQCU_ERROR_ILLEGAL_ADDRESS, cuEventSynchronize(e));
}

struct waiter {
	struct cqcu_ctx *ctx;
	struct cqcu_event *e;
	sem_t begins;
	int res;
};

static void *wait_for_event(void *arg)
{
	struct waiter *w = arg;

	cu->cuCtxSetCurrent(w->ctx);
	sem_post(&w->begins);
	w->res = cu->cuEventSynchronize(w->e);
	return NULL;
}

/* It may wait already when the context is lost. */
TEST(a_thread_that_waits_when_the_context_is_lost)
{
	struct cqcu_stream *s;
	struct waiter w = { .res = -1 };
	pthread_t id;
	cqcu_ptr p;

	start();
	s = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuCtxGetCurrent(&w.ctx));
	CU(cuEventCreate(&w.e, 0));
	CU(cuMemAlloc(&p, 4096));
	CU(cuStreamWaitValue64(s, p, 1, 0));
	CU(cuEventRecord(w.e, s));
	sem_init(&w.begins, 0, 0);
	ASSERT_EQ(pthread_create(&id, NULL, wait_for_event, &w), 0);
	ASSERT_SYS(sem_wait(&w.begins));
	ASSERT_EQ(launch_fill(p + 4096, 1, 1, NULL), 0);
	ASSERT_EQ(pthread_join(id, NULL), 0);
	ASSERT_EQ(w.res, CQCU_ERROR_ILLEGAL_ADDRESS);
}

TEST(stale_handles)
{
	struct cqcu_stream *s, *wild = (struct cqcu_stream *)(uintptr_t)0x123450;
	struct cqcu_func *f;
	cqcu_ptr p;
	void *params[] = { &p, &p, &p };

	start();
	s = stream_new(0);
	f = kernel("demo_fill");
	CU(cuStreamDestroy(s));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuStreamDestroy(s));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuStreamSynchronize(s));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuStreamQuery(wild));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, wild, params,
							   NULL));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuLaunchKernel((void *)wild, 1, 1, 1, 1, 1, 1, 0,
							   NULL, params, NULL));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuLaunchKernel(f, 0, 1, 1, 1, 1, 1, 0, NULL, params,
							  NULL));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 49153, NULL,
							  params, NULL));
	CU(cuFuncSetAttribute(f, CQCU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 100000));
	CU_FAILS(CQCU_ERROR_LAUNCH_OUT_OF_RESOURCES, cuLaunchKernel(f, 1, 1, 1, 512, 1, 1, 0,
								    NULL, params, NULL));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, NULL,
							  NULL));
	CU_FAILS(CQCU_ERROR_INVALID_HANDLE, cuModuleGetFunction(&f, (void *)wild, "demo_fill"));
}
