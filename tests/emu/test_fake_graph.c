// SPDX-License-Identifier: MIT
/*
 * The fake driver's stream capture: nothing runs while it lasts, what was
 * captured runs at each launch, and what no capture survives is refused.
 */
#include "tests/harness.h"
#include "tests/emu/fake_rig.h"

static struct cqcu_stream *stream_new(unsigned int flags)
{
	struct cqcu_stream *s;

	CU(cuStreamCreate(&s, flags));
	return s;
}

static struct cqcu_exec *end_capture(struct cqcu_stream *s)
{
	struct cqcu_graph *g;
	struct cqcu_exec *x;

	CU(cuStreamEndCapture(s, &g));
	CU(cuGraphInstantiateWithFlags(&x, g, 0));
	CU(cuGraphDestroy(g));
	return x;
}

static void count(void *arg)
{
	(*(int *)arg)++;
}

TEST(what_is_captured_runs_when_launched)
{
	uint32_t in = 10, out = 0;
	struct cqcu_exec *x;
	struct cqcu_stream *s;
	int status, calls = 0;
	cqcu_ptr p;

	start();
	s = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 64));
	poke(p, 1);
	CU(cuStreamBeginCapture(s, CQCU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	CU(cuStreamIsCapturing(s, &status));
	ASSERT_EQ(status, CQCU_STREAM_CAPTURE_STATUS_ACTIVE);
	CU(cuMemcpyHtoDAsync(p, &in, 4, s));
	ASSERT_EQ(launch_step(p, p, 2, s), 0);
	CU(cuMemsetD32Async(p + 8, 4, 1, s));
	CU(cuMemcpyDtoHAsync(&out, p, 4, s));
	CU(cuLaunchHostFunc(s, count, &calls));
	CU(cuStreamWriteValue64(s, p + 16, 99, 0));
	x = end_capture(s);
	CU(cuStreamSynchronize(s));
	ASSERT_EQ(out, 0);
	ASSERT_EQ(calls, 0);
	for (uint32_t i = 1; i <= 5; i++) {
		in = i;		/* read at each launch, not when captured */
		CU(cuGraphLaunch(x, s));
		CU(cuStreamSynchronize(s));
		ASSERT_EQ(out, i * 3 + 2);
		ASSERT_EQ(calls, (int)i);
	}
	ASSERT_EQ(peek(p + 8), 4);
	ASSERT_EQ(peek(p + 16), 99);
	CU(cuGraphExecDestroy(x));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuGraphLaunch(x, s));
}

/* Two branches in any order, but both after the first, one before the last. */
TEST(branches_in_every_order)
{
	struct cqcu_event *fork_at, *join_at;
	struct cqcu_stream *a, *b;
	struct cqcu_exec *x;
	cqcu_ptr p;

	start();
	a = stream_new(CQCU_STREAM_NON_BLOCKING);
	b = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuEventCreate(&fork_at, CQCU_EVENT_DISABLE_TIMING));
	CU(cuEventCreate(&join_at, CQCU_EVENT_DISABLE_TIMING));
	CU(cuMemAlloc(&p, 64));
	CU(cuStreamBeginCapture(a, CQCU_STREAM_CAPTURE_MODE_RELAXED));
	ASSERT_EQ(launch_fill(p, 5, 1, a), 0);
	CU(cuEventRecord(fork_at, a));
	CU(cuStreamWaitEvent(b, fork_at, 0));
	ASSERT_EQ(launch_step(p + 4, p, 1, b), 0);
	ASSERT_EQ(launch_step(p + 8, p, 2, a), 0);
	CU(cuEventRecord(join_at, b));
	CU(cuStreamWaitEvent(a, join_at, 0));
	ASSERT_EQ(launch_step(p + 12, p + 4, 0, a), 0);
	x = end_capture(a);
	CU_FAILS(CQCU_ERROR_CAPTURED_EVENT, cuEventQuery(join_at));
	for (int i = 0; i < 20; i++) {
		CU(cuMemsetD8(p, 0, 64));
		CU(cuCtxSynchronize());
		CU(cuGraphLaunch(x, b));
		CU(cuStreamSynchronize(b));
		ASSERT_EQ(peek(p + 8), 17);
		ASSERT_EQ(peek(p + 12), 48);
	}
	/* both streams are free again */
	ASSERT_EQ(launch_fill(p, 6, 1, a), 0);
	ASSERT_EQ(launch_fill(p + 4, 7, 1, b), 0);
	CU(cuCtxSynchronize());
	ASSERT_EQ(peek(p), 6);
	ASSERT_EQ(peek(p + 4), 7);
}

TEST(a_branch_that_is_left_open)
{
	struct cqcu_graph *g = (void *)1;
	struct cqcu_stream *a, *b;
	struct cqcu_event *e;
	cqcu_ptr p;

	start();
	a = stream_new(CQCU_STREAM_NON_BLOCKING);
	b = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuEventCreate(&e, CQCU_EVENT_DISABLE_TIMING));
	CU(cuMemAlloc(&p, 64));
	CU(cuStreamBeginCapture(a, CQCU_STREAM_CAPTURE_MODE_RELAXED));
	CU(cuEventRecord(e, a));
	CU(cuStreamWaitEvent(b, e, 0));
	ASSERT_EQ(launch_fill(p, 1, 1, b), 0);
	CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNMATCHED, cuStreamEndCapture(b, &g));
	CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(a, &g));
	ASSERT(!g);
	ASSERT_EQ(launch_fill(p, 2, 1, b), 0);
	CU(cuStreamSynchronize(b));
	ASSERT_EQ(peek(p), 2);
}

/* Calls that wait, or free, end the capture, and that is said at its end too. */
TEST(calls_that_no_capture_survives)
{
	struct cqcu_graph *g;
	struct cqcu_stream *s;
	int status, mode;
	cqcu_ptr p, q;

	start();
	s = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 64));
	for (int i = 0; i < 5; i++) {
		CU(cuStreamBeginCapture(s, CQCU_STREAM_CAPTURE_MODE_GLOBAL));
		switch (i) {
		case 0:
			CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc(&q, 64));
			break;
		case 1:
			CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuCtxSynchronize());
			break;
		case 2:
			CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(s));
			break;
		case 3:
			CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamQuery(s));
			break;
		case 4:
			CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemFree(p));
			break;
		}
		CU(cuStreamIsCapturing(s, &status));
		ASSERT_EQ(status, CQCU_STREAM_CAPTURE_STATUS_INVALIDATED);
		ASSERT_EQ(launch_fill(p, 1, 1, s), CQCU_ERROR_STREAM_CAPTURE_INVALIDATED);
		CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(s, &g));
		CU(cuStreamIsCapturing(s, &status));
		ASSERT_EQ(status, CQCU_STREAM_CAPTURE_STATUS_NONE);
	}
	/* a thread in relaxed mode takes it on itself */
	mode = CQCU_STREAM_CAPTURE_MODE_RELAXED;
	CU(cuThreadExchangeStreamCaptureMode(&mode));
	ASSERT_EQ(mode, CQCU_STREAM_CAPTURE_MODE_GLOBAL);
	CU(cuStreamBeginCapture(s, CQCU_STREAM_CAPTURE_MODE_GLOBAL));
	CU(cuMemAlloc(&q, 64));
	CU(cuStreamEndCapture(s, &g));
	CU(cuGraphDestroy(g));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuGraphDestroy(g));
}

TEST(the_legacy_stream_and_captures)
{
	struct cqcu_stream *s;
	struct cqcu_graph *g;
	cqcu_ptr p;

	start();
	s = stream_new(CQCU_STREAM_DEFAULT);
	CU(cuMemAlloc(&p, 64));
	CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamBeginCapture(NULL, 0));
	CU(cuStreamBeginCapture(s, CQCU_STREAM_CAPTURE_MODE_RELAXED));
	CU_FAILS(CQCU_ERROR_ILLEGAL_STATE, cuStreamBeginCapture(s, 0));
	ASSERT_EQ(launch_fill(p, 1, 1, NULL), CQCU_ERROR_STREAM_CAPTURE_IMPLICIT);
	CU_FAILS(CQCU_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(s, &g));
	/* one that does not block does not mind */
	s = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuStreamBeginCapture(s, CQCU_STREAM_CAPTURE_MODE_RELAXED));
	ASSERT_EQ(launch_fill(p, 1, 1, NULL), 0);
	CU(cuStreamEndCapture(s, &g));
	CU_FAILS(CQCU_ERROR_ILLEGAL_STATE, cuStreamEndCapture(s, &g));
}

/* A fault in a graph is a fault of its launch. */
TEST(a_graph_that_faults)
{
	struct cqcu_stream *s;
	struct cqcu_exec *x;
	cqcu_ptr p;

	start();
	s = stream_new(CQCU_STREAM_NON_BLOCKING);
	CU(cuMemAlloc(&p, 4096));
	CU(cuStreamBeginCapture(s, CQCU_STREAM_CAPTURE_MODE_RELAXED));
	ASSERT_EQ(launch_fill(p + 4096, 1, 1, s), 0);
	x = end_capture(s);
	CU(cuGraphLaunch(x, s));
	CU_FAILS(CQCU_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(s));
}
