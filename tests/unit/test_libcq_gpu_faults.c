// SPDX-License-Identifier: MIT
/*
 * What libcq makes of a driver that fails, of memory that is short, and of a cqd
 * that forgets: a text, no leak, and a context that goes on where it can.
 */
#include "tests/unit/test_libcq_gpu.h"
#include "client/gpu.h"

static struct rig r;
static const struct shape small = GPU_SHAPE;
static uint32_t ids[1000];

static void begin(void)
{
	gpu_env();
	rig_ids(ids, 1000, 1);
	rig_start(&r, &small, GPU_CONF);
}

/* The driver of this process, but not cqd's, fails as told. */
static void begin_failing(const char *what)
{
	begin();
	ASSERT_SYS(setenv("CQ_EMU_FAIL", what, 1));
}

static void publish(const struct worker *w, size_t n)
{
	struct cq_seq *seq = worker_seq(w, ids, n);

	gpu_grow(w, seq, ids, n);
	CQ_OK(cq_seal(seq, 5000));
	cq_seq_close(seq);
}

/* Calls of cq_model_open(): the nth of each kind fails, for n = 1, 2, ... */
static void open_fails(const char *call)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST, .gpu = GPU_UUID,
				   .arena_bytes = 8 * rig_block(&small) };
	struct cq_model *model;
	struct worker w;
	char what[80];
	pid_t pid;
	int n, status;

	begin();
	/* A process for each: failures are counted from the start of the driver. */
	for (n = 1; n < 200; n++) {
		fflush(stdout);
		pid = fork();
		ASSERT_SYS(pid);
		if (!pid) {
			snprintf(what, sizeof(what), "%s:%d", call, n);
			setenv("CQ_EMU_FAIL", what, 1);
			worker_connect(&w, &small, r.sock, 0);
			status = cq_model_open(w.ctx, "toy", &o, &model);
			if (status && !strlen(cq_last_error()))
				_exit(2);
			if (status)	/* the next one has all it needs */
				CQ_OK(cq_model_open(w.ctx, "toy", &o, &model));
			cq_close(w.ctx);
			fflush(stdout);
			_exit(status ? 1 : 0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
		if (!WEXITSTATUS(status))
			break;
	}
	ASSERT_GT(n, 1);
	ASSERT_LT(n, 200);
	rig_stop(&r);
}

#define OPEN_FAILS(call) TEST_LIMIT(open_##call, 60) { open_fails(#call); }
OPEN_FAILS(cuMemAlloc)
OPEN_FAILS(cuMemHostAlloc)
OPEN_FAILS(cuMemcpyHtoD)
OPEN_FAILS(cuCtxSynchronize)
OPEN_FAILS(cuEventCreate)
OPEN_FAILS(cuStreamCreate)
OPEN_FAILS(cuModuleLoadData)
OPEN_FAILS(cuDevicePrimaryCtxRetain)
OPEN_FAILS(cuMemAddressReserve)
OPEN_FAILS(cuMemMap)
OPEN_FAILS(cuMemSetAccess)
OPEN_FAILS(cuMemImportFromShareableHandle)

/* A launch that fails: nothing counts, and it can be tried again. */
TEST(launch_fails)
{
	struct cq_seq *seq;
	struct worker w;

	begin_failing("cuLaunchKernel:2,cuMemcpyHtoDAsync:1");
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 200);
	ASSERT(gpu_append_layer(&w, seq, ids, 100, 0));
	ASSERT_EQ(seq->appended[0], 0);
	CQ_OK(gpu_append_layer(&w, seq, ids, 100, 0));
	ASSERT(gpu_append_layer(&w, seq, ids, 100, 1));
	ASSERT_STRHAS(cq_last_error(), "cqk_append");
	ASSERT_EQ(seq->appended[1], 0);
	CQ_OK(gpu_append_layer(&w, seq, ids, 100, 1));
	CQ_OK(cq_commit(seq, ids, 100));
	gpu_grow(&w, seq, ids, 200);
	CQ_OK(cq_seal(seq, 5000));
	ASSERT_EQ(worker_info(seq).sealed, 192);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Slots of a segment that cannot be written go back: as many can be leased again. */
TEST(segment_not_writable)
{
	struct cqc_gpu *g;
	struct worker w;
	uint32_t i, n = 0;

	begin_failing("cuMemRetainAllocationHandle:1");
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	g = w.model->gpu;
	publish(&w, 64);
	pthread_mutex_lock(&w.ctx->lock);
	/* asked for once more, and not at once */
	ASSERT(g->pool[0].retry_at || g->pool[1].retry_at);
	for (i = 0; i < CQC_LEASES; i++)
		n += !!g->leases[i].state;
	pthread_mutex_unlock(&w.ctx->lock);
	ASSERT_GT(n, 0);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Hashing that fails is done again. */
TEST(hash_fails)
{
	struct worker w;

	begin_failing("cuLaunchKernel:3,cuMemcpyHtoDAsync:4");
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	publish(&w, 64);
	publish(&w, 300);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Without events nothing can be known to be done: the model is over, the rest is not. */
TEST(events_fail)
{
	struct worker w, h;
	struct cq_seq *seq;

	begin_failing("cuEventRecord:1+");
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 64);
	gpu_grow(&w, seq, ids, 64);
	CQ_FAILS(cq_seal(seq, 5000), -EIO);
	CQ_FAILS(gpu_append_layer(&w, seq, ids, 1, 0), -EIO);
	ASSERT_STRHAS(cq_last_error(), "new process");
	worker_open(&h, &small, r.sock, 0, 32);
	seq = worker_seq(&h, ids, 64);
	worker_grow(&h, seq, ids, 64);
	CQ_OK(cq_seal(seq, 5000));
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* A context that is lost: no call hangs, and what was published stays. */
TEST(context_lost)
{
	struct cq_batch *b;
	struct cq_view v;
	struct cq_seq *seq;
	struct worker w;
	int i;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	publish(&w, 130);
	seq = worker_seq(&w, ids, 130);
	ASSERT_EQ(cq_seq_length(seq), 128);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	/* Beyond the end of a buffer: the kernel faults. */
	v = gpu_view(&w, gpu.k, small.kv_heads);
	v.stride_token = (int64_t)1 << 30;
	CQ_OK(cq_append(seq, 0, &v, &v, 2, NULL));
	for (i = 0; i < 1000 && !cq_step(b, NULL, NULL, 0); i++)
		usleep(1000);
	ASSERT(cq_step(b, NULL, NULL, 0));
	ASSERT(cq_append(seq, 0, &v, &v, 1, NULL));
	cq_close(w.ctx);
	rig_stop(&r);
}

/* The device is short of memory: what that means is said. */
TEST(no_device_memory)
{
	struct worker w;

	begin();
	ASSERT_SYS(setenv("CQ_EMU_MEMORY", "25000000", 1));
	ASSERT_EQ(worker_gpu_try(&w, &small, r.sock, 0, 2048), -ENOMEM);
	ASSERT_STRHAS(cq_last_error(), "arena");
	cq_close(w.ctx);
	rig_stop(&r);
}

/* cqd has lost everything: slots are not written any more, and what is here goes on. */
TEST(cqd_forgets)
{
	float *o = calloc(2048, 4), *p = calloc(2048, 4);
	struct cq_batch *b, *bh;
	struct cq_seq *seq, *host;
	struct worker w, h;
	const uint8_t *was;
	uint32_t i;
	int ret;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	seq = worker_seq(&w, ids, 200);
	gpu_grow(&w, seq, ids, 200);
	CQ_OK(cq_seal(seq, 5000));
	CQ_OK(attend(&w, b, seq, ids, 1, true, o, o + 1024));
	rig_kill(&r);
	rig_run(&r);
	while (!READ_ONCE(w.model->gpu->epoch))
		usleep(1000);
	/* The page that is being filled goes on, in another slot. */
	was = seq->ents[3].pg->codes;
	while ((ret = gpu_try_grow(&w, seq, ids, 300, 100)) == -ENOBUFS)
		usleep(1000);
	CQ_OK(ret);
	ASSERT(seq->ents[3].pg->codes != was);
	worker_open(&h, &small, r.sock, 0, 32);
	CQ_OK(cq_batch_new(h.model, 1, 1, 0, &bh));
	host = worker_seq(&h, ids, 300);
	worker_grow(&h, host, ids, 300);
	CQ_OK(attend(&w, b, seq, ids, 1, true, o, o + 1024));
	CQ_OK(attend(&h, bh, host, ids, 1, false, p, p + 1024));
	for (i = 0; i < small.heads * small.dim; i++)
		ASSERT_NEAR(o[i], p[i], 2e-3);
	CQ_FAILS(cq_seal(seq, 5000), -ENOENT);
	cq_seq_close(seq);
	while (gpu_try_grow(&w, seq = worker_seq(&w, ids, 200), ids, 200, 100)) {
		cq_seq_close(seq);
		usleep(10000);
	}
	CQ_OK(cq_seal(seq, 5000));
	ASSERT_EQ(worker_info(seq).sealed, 192);
	CQ_OK(attend(&w, b, seq, ids, 1, true, o, o + 1024));
	free(o);
	free(p);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* Full pages that were not sealed when cqd forgot: private, and sealed when asked again. */
TEST(cqd_forgets_before_seal)
{
	float *o = calloc(2048, 4), *p = calloc(2048, 4);
	struct cq_batch *b;
	struct cq_seq *seq;
	struct worker w;
	int ret;

	begin();
	worker_gpu_open(&w, &small, r.sock, CQ_OPEN_POLL, 32);
	CQ_OK(cq_batch_new(w.model, 1, 1, 0, &b));
	seq = worker_seq(&w, ids, 128);
	gpu_grow(&w, seq, ids, 128);
	CQ_OK(attend(&w, b, seq, ids, 1, true, o, o + 1024));
	rig_kill(&r);
	rig_run(&r);
	while (!w.model->gpu->epoch)
		cq_poll(w.ctx, 10);
	CQ_FAILS(cq_seal(seq, 5000), -ESTALE);
	while (attend(&w, b, seq, ids, 1, true, p, p + 1024) == -ENOBUFS)
		cq_poll(w.ctx, 10);
	ASSERT_MEMEQ(o, p, 2048 * 4);
	/* Until there is a slot for each of them. */
	while ((ret = cq_seal(seq, 5000)) == -ESTALE)
		cq_poll(w.ctx, 10);
	CQ_OK(ret);
	ASSERT_EQ(worker_info(seq).sealed, 128);
	CQ_OK(attend(&w, b, seq, ids, 1, true, p, p + 1024));
	ASSERT_MEMEQ(o, p, 2048 * 4);
	cq_seq_close(seq);
	cq_close(w.ctx);
	free(o);
	free(p);
	rig_stop(&r);
}
