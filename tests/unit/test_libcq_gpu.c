// SPDX-License-Identifier: MIT
/* libcq on the emulated GPU: the same calls, the same results as on the host. */
#include <endian.h>
#include <sys/socket.h>
#include <xxhash.h>
#include "tests/unit/test_libcq_gpu.h"
#include "client/gpu.h"

static struct rig r;
static const struct shape small = GPU_SHAPE;
static uint32_t ids[5000];

static void begin_as(const struct shape *shape)
{
	gpu_env();
	rig_ids(ids, 5000, 1);
	rig_start(&r, shape, GPU_CONF);
}

static void begin(void)
{
	begin_as(&small);
}

/* What @seq of @w reads is what @host of @h does. */
static void same_attention(const struct worker *w, struct cq_seq *seq, const struct worker *h,
			   struct cq_seq *host, uint32_t rows)
{
	size_t n = (size_t)rows * w->m.heads * w->m.dim, i;
	float *a = calloc(n, 4), *b = calloc(n, 4), *la = calloc(n, 4), *lb = calloc(n, 4);
	struct cq_batch *bw, *bh;

	ASSERT(a && b && la && lb);
	ASSERT_EQ(cq_seq_length(seq), cq_seq_length(host));
	CQ_OK(cq_batch_new(w->model, 2, rows, 0, &bw));
	CQ_OK(cq_batch_new(h->model, 2, rows, 0, &bh));
	CQ_OK(attend(w, bw, seq, ids, rows, true, a, la));
	CQ_OK(attend(h, bh, host, ids, rows, false, b, lb));
	for (i = 0; i < n; i++)
		ASSERT_NEAR(a[i], b[i], 2e-3);
	for (i = 0; i < (size_t)rows * w->m.heads; i++)
		ASSERT_NEAR(la[i], lb[i], 2e-3);
	cq_batch_free(bw);
	cq_batch_free(bh);
	free(a);
	free(b);
	free(la);
	free(lb);
}

/* Both on the text's first @n tokens, and compared. */
static void both(const struct worker *w, const struct worker *h, size_t n, uint32_t rows)
{
	struct cq_seq *a = worker_seq(w, ids, n), *b = worker_seq(h, ids, n);

	gpu_grow(w, a, ids, n);
	worker_grow(h, b, ids, n);
	same_attention(w, a, h, b, rows);
	CQ_OK(cq_seal(a, 5000));
	CQ_OK(cq_seal(b, 5000));
	same_attention(w, a, h, b, rows);
	cq_seq_close(a);
	cq_seq_close(b);
}

TEST(own_pages)
{
	struct worker w, h;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	worker_open(&h, &small, r.sock, 0, 32);
	both(&w, &h, 200, 1);
	ASSERT_EQ(worker_model(&w).arena_free, worker_model(&w).arena_bytes);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* The device's kernels read keys and queries in the model's order of channels. */
TEST(scaling_and_interleaved_pairs)
{
	struct shape s = small;
	struct worker w, h;

	s.pairs = CQK_PAIRS_INTERLEAVED;
	s.rope_dim = 48;
	s.scaling = ref_scaling(CQK_SCALING_YARN, 100);
	begin_as(&s);
	worker_gpu_open(&w, &s, r.sock, 0, 32);
	worker_open(&h, &s, r.sock, 0, 32);
	both(&w, &h, 200, 3);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* As many rows as attn_books.cu computes at once, and more: pages, sinks and what is not sealed. */
TEST_LIMIT(many_rows_by_books, 60)
{
	static const uint32_t rows[] = { 5, 33, 64, 150 };
	struct shape s = small;
	struct worker w, h;
	uint32_t i;

	s.dim = 128;
	s.heads = 4;
	s.kv_heads = 2;
	s.v = "8c8b";
	ASSERT_SYS(setenv("CQ_CUDA_VARIANT", "books", 1));
	begin_as(&s);
	worker_gpu_open(&w, &s, r.sock, 0, 32);
	worker_open(&h, &s, r.sock, 0, 32);
	for (i = 0; i < ARRAY_SIZE(rows); i++)
		both(&w, &h, 330 + 17 * i, rows[i]);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* --- two GPUs in one worker --- */

#define GPU_UUID_1 "GPU-c9e00000-6661-6b65-8000-646576696301"

/* The test's calls and buffers are those of the other device from now on. */
static void other_gpu(void)
{
	static typeof(gpu) away = { .dev = 1 };
	typeof(gpu) was = gpu;

	gpu = away;
	away = was;
	gpu_start();
	CU(cuCtxSetCurrent(gpu.ctx));
}

/* A model on each, in one context: pages of one are not found on the other. */
TEST_LIMIT(two_gpus, 60)
{
	struct cq_model_opts o = { .sz = sizeof(o), .gpu = GPU_UUID_1,
				   .arena_bytes = 32 * rig_block(&small) };
	struct worker w, v, h;
	struct cq_seq *a, *b;

	gpu_env();
	ASSERT_SYS(setenv("CQ_EMU_DEVICES", "2", 1));
	rig_ids(ids, 5000, 1);
	rig_start(&r, &small, GPU_CONF "[gpu g1]\nuuid = " GPU_UUID_1 "\npool_bytes = 64M\n");
	worker_open(&h, &small, r.sock, 0, 32);
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	other_gpu();
	v = w;
	o.stream = gpu.stream;
	CQ_OK(cq_model_open(v.ctx, "toy", &o, &v.model));
	ASSERT_EQ(v.model->device, 1);
	other_gpu();
	both(&w, &h, 200, 2);
	a = worker_seq(&w, ids, 200);
	b = worker_seq(&v, ids, 200);
	ASSERT_EQ(cq_seq_length(a), 192);
	ASSERT_EQ(cq_seq_length(b), 0);
	/* another text, which the host's worker has not published either */
	rig_ids(ids, 5000, 2);
	other_gpu();
	both(&v, &h, 200, 2);
	cq_seq_close(a);
	cq_seq_close(b);
	a = worker_seq(&w, ids, 200);
	b = worker_seq(&v, ids, 200);
	ASSERT_EQ(cq_seq_length(a), 0);
	ASSERT_EQ(cq_seq_length(b), 192);
	cq_close(v.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* --- several processes --- */

struct peer {
	pid_t pid;
	int fd;
};

static void say(int fd, char c)
{
	ASSERT_EQ(write(fd, &c, 1), 1);
}

static void hear(int fd, char c)
{
	char got = 0;

	ASSERT_EQ(read(fd, &got, 1), 1);
	ASSERT_EQ(got, c);
}

/* A process of its own that runs @fn; forked before this one knows the driver. */
static struct peer spawn(void (*fn)(int fd))
{
	struct peer p;
	int s[2];

	ASSERT(!gpu.cu);
	ASSERT_SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s));
	fflush(stdout);
	p.pid = fork();
	ASSERT_SYS(p.pid);
	if (!p.pid) {
		close(s[0]);
		fn(s[1]);
		fflush(stdout);
		_exit(0);
	}
	close(s[1]);
	p.fd = s[0];
	return p;
}

static void join(struct peer *p)
{
	int status;

	close(p->fd);
	ASSERT_EQ(waitpid(p->pid, &status, 0), p->pid);
	ASSERT_EQ(status, 0);
}

/* Publishes the text's first 320 tokens on the GPU, waits for 'e'. */
static void publisher(int fd)
{
	struct cq_seq *seq;
	struct worker w;

	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 330);
	gpu_grow(&w, seq, ids, 330);
	CQ_OK(cq_seal(seq, 10000));
	ASSERT_EQ(worker_info(seq).sealed, 320);
	say(fd, 'p');
	hear(fd, 'e');
	cq_close(w.ctx);
}

/* What one process published is read in place by another, also when it is gone. */
static void prefix_is_shared(bool gone)
{
	struct peer p;
	struct cq_seq *seq, *host;
	struct worker w, h;

	p = spawn(publisher);
	hear(p.fd, 'p');
	if (gone) {
		say(p.fd, 'e');
		join(&p);
	}
	rig_publish(&r, ids, 330);
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	worker_open(&h, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 330);
	host = worker_seq(&h, ids, 330);
	ASSERT_EQ(cq_seq_length(seq), 320);
	same_attention(&w, seq, &h, host, 3);
	gpu_grow(&w, seq, ids, 420);
	worker_grow(&h, host, ids, 420);
	same_attention(&w, seq, &h, host, 1);
	cq_close(w.ctx);
	cq_close(h.ctx);
	if (!gone) {
		say(p.fd, 'e');
		join(&p);
	}
}

TEST(two_processes)
{
	begin();
	prefix_is_shared(false);
	rig_stop(&r);
}

TEST(publisher_gone)
{
	begin();
	prefix_is_shared(true);
	rig_stop(&r);
}

/* Streams that hesitate: nothing is named before the device has written it. */
TEST(slow_streams)
{
	gpu_env();
	ASSERT_SYS(setenv("CQ_EMU_DELAY_US", "3000", 1));
	begin();
	prefix_is_shared(false);
	rig_stop(&r);
}

/* Has appended and launched, but not sealed, when it is killed. */
static void victim(int fd)
{
	struct cq_seq *seq;
	struct worker w;

	worker_gpu_open(&w, &small, r.sock, CQ_OPEN_POLL, 32);
	seq = worker_seq(&w, ids, 200);
	gpu_grow(&w, seq, ids, 200);
	say(fd, 'k');
	for (;;)
		pause();
}

TEST(killed_before_seal)
{
	struct worker w, h;
	struct cq_seq *seq;
	struct peer p;

	begin();
	p = spawn(victim);
	hear(p.fd, 'k');
	ASSERT_SYS(kill(p.pid, SIGKILL));
	ASSERT_EQ(waitpid(p.pid, NULL, 0), p.pid);
	close(p.fd);
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	worker_open(&h, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 200);
	ASSERT_EQ(cq_seq_length(seq), 0);
	cq_seq_close(seq);
	both(&w, &h, 200, 2);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

static void header_fits(const uint8_t *at, uint32_t kind, const struct cqp_key *key)
{
	struct cq_page_hdr h;
	uint64_t sums[64], n;
	uint8_t *slot;
	uint32_t i;
	XXH128_hash_t x;

	CU(cuMemcpyDtoH(&h, (uintptr_t)at - sizeof(h), sizeof(h)));
	ASSERT_EQ(h.magic, CQ_PAGE_MAGIC);
	ASSERT_EQ(h.version, CQ_PAGE_VERSION);
	ASSERT_EQ(h.kind, kind);
	ASSERT_MEMEQ(h.key, key->b, sizeof(h.key));
	slot = malloc(h.payload);
	ASSERT(slot);
	CU(cuMemcpyDtoH(slot, (uintptr_t)at, h.payload));
	n = (h.payload + CQ_CHECK_CHUNK - 1) / CQ_CHECK_CHUNK;
	ASSERT_LE(n, ARRAY_SIZE(sums));
	for (i = 0; i < n; i++)
		sums[i] = htole64(XXH3_64bits(slot + i * CQ_CHECK_CHUNK,
					      MIN(h.payload - i * CQ_CHECK_CHUNK,
						  (uint64_t)CQ_CHECK_CHUNK)));
	x = XXH3_128bits(sums, n * 8);
	ASSERT_EQ(h.check_lo, x.low64);
	ASSERT_EQ(h.check_hi, x.high64);
	free(slot);
}

/* Every page is complete when it can be found, and its header says what is in it. */
TEST(headers)
{
	struct cq_seq *seq;
	struct worker w;
	uint32_t i;

	begin();
	ASSERT_SYS(setenv("CQ_EMU_DELAY_US", "5000", 1));
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 1);
	gpu_grow(&w, seq, ids, 500);
	CQ_OK(cq_seal(seq, 10000));
	for (i = 0; i < 7; i++)
		header_fits(seq->ents[i].pg->codes, CQ_PAGE_CODES, &seq->ents[i].pg->key);
	header_fits(seq->ents[0].pg->sink.data, CQ_PAGE_SINK, &seq->ents[0].pg->key);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- what is refused --- */

TEST(no_such_device)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST };
	struct cq_model *model;
	struct worker w;

	begin();
	worker_connect(&w, &small, r.sock, 0);
	o.gpu = "GPU-0";
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -EINVAL);
	o.gpu = "GPU-00000000-0000-0000-0000-000000000000";
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -ENODEV);
	ASSERT_STRHAS(cq_last_error(), GPU_UUID);
	o.gpu = NULL;
	o.device = 7;
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -ENODEV);
	o.device = -2;
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -EINVAL);
	o.device = 0;
	CQ_OK(cq_model_open(w.ctx, "toy", &o, &model));
	cq_close(w.ctx);
	rig_stop(&r);
}

TEST(no_device_at_all)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = 0 };
	struct cq_model *model;
	struct worker w;

	gpu_env();
	rig_start(&r, &small, NULL);
	ASSERT_SYS(setenv("CQ_EMU_DEVICES", "0", 1));
	worker_connect(&w, &small, r.sock, 0);
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -ENODEV);
	ASSERT_STRHAS(cq_last_error(), "no GPU");
	o.device = CQ_DEVICE_HOST;
	CQ_OK(cq_model_open(w.ctx, "toy", &o, &model));
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Which one is needed is said; the context goes on, here with a newer one. */
TEST(old_driver)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = CQ_DEVICE_HOST, .gpu = GPU_UUID };
	struct cq_model *model, *host;
	struct worker w;

	begin();
	ASSERT_SYS(setenv("CQ_EMU_VERSION", "11080", 1));
	worker_connect(&w, &small, r.sock, 0);
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -ENOSYS);
	ASSERT_STRHAS(cq_last_error(), "it is for CUDA 11.8, 12.0 or newer is needed");
	o.gpu = NULL;
	CQ_OK(cq_model_open(w.ctx, "toy", &o, &host));
	ASSERT_SYS(unsetenv("CQ_EMU_VERSION"));
	o.device = 0;
	CQ_OK(cq_model_open(w.ctx, "toy", &o, &model));
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Layers and heads that the model has not, sequences of another model. */
TEST(wrong_geometry)
{
	struct cq_model_opts o = { .sz = sizeof(o), .device = 0 };
	struct cq_attn_opts to = { .sz = sizeof(to), .device = 0, .head_end = 3 };
	struct cq_seq *seq, *theirs;
	struct cq_model *model;
	struct worker w, h;
	struct cq_view v;
	struct cq_batch *b;
	uint32_t one = 1;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	worker_open(&h, &small, r.sock, 0, 32);
	o.layer_end = small.layers + 1;
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -EINVAL);
	o.layer_end = 0;
	o.head_begin = small.kv_heads;
	CQ_FAILS(cq_model_open(w.ctx, "toy", &o, &model), -EINVAL);
	seq = worker_seq(&w, ids, 64);
	theirs = worker_seq(&h, ids, 64);
	CQ_OK(cq_batch_new(w.model, 1, 4, 0, &b));
	CQ_FAILS(cq_step(b, &theirs, &one, 1), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "of another model");
	CQ_OK(cq_step(b, &seq, &one, 1));
	v = gpu_view(&w, gpu.q, small.heads);
	CQ_FAILS(cq_attention(b, small.layers, &v, &v, NULL), -EINVAL);
	CQ_FAILS(cq_attention(b, 0, &v, &v, &to), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "head");
	CQ_FAILS(cq_append_rows(b, small.layers, &v, &v, NULL), -EINVAL);
	cq_seq_close(seq);
	both(&w, &h, 130, 1);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* Views of the host, of another shape or alignment: refused, and the next call is fine. */
TEST(wrong_views)
{
	static float host[64 * 2 * 64];
	struct cq_append_opts ao = { .sz = sizeof(ao), .device = CQ_DEVICE_HOST };
	struct cq_attn_opts to = { .sz = sizeof(to), .device = CQ_DEVICE_HOST };
	struct cq_view v, good;
	struct cq_batch *b;
	uint32_t one = 1;
	struct cq_seq *seq;
	struct worker w, h;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	worker_open(&h, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 64);
	good = gpu_view(&w, gpu.k, small.kv_heads);
	v = rig_view(&w, host, small.kv_heads);
	CQ_FAILS(cq_append(seq, 0, &v, &good, 1, NULL), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "device memory");
	CQ_FAILS(cq_append(seq, 0, &good, &v, 1, NULL), -EINVAL);
	v = good;
	v.data = (char *)v.data + 2;
	CQ_FAILS(cq_append(seq, 0, &v, &good, 1, NULL), -EINVAL);
	CQ_FAILS(cq_append(seq, 0, &good, &good, 1, &ao), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), GPU_UUID);
	CQ_FAILS(cq_append(seq, 5, &good, &good, 1, NULL), -EINVAL);
	CQ_OK(cq_batch_new(w.model, 1, 4, 0, &b));
	CQ_OK(cq_step(b, &seq, &one, 1));
	v = rig_view(&w, host, small.heads);
	good = gpu_view(&w, gpu.q, small.heads);
	CQ_FAILS(cq_attention(b, 0, &v, &good, NULL), -EINVAL);
	CQ_FAILS(cq_attention(b, 0, &good, &v, NULL), -EINVAL);
	CQ_FAILS(cq_attention(b, 0, &good, &good, &to), -EINVAL);
	to.device = 0;
	to.lse = host;
	CQ_FAILS(cq_attention(b, 0, &good, &good, &to), -EINVAL);
	cq_seq_close(seq);
	both(&w, &h, 130, 1);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* Two GPUs here, of which cqd and the model use the first. */
TEST(views_of_another_gpu)
{
	struct cq_attn_opts to = { .sz = sizeof(to), .device = 0 };
	struct cq_view k, q, far_k, far_q;
	struct cq_batch *b;
	struct worker w, h;
	uint32_t one = 1;
	struct cq_seq *seq;

	ASSERT_SYS(setenv("CQ_EMU_DEVICES", "2", 1));
	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	worker_open(&h, &small, r.sock, 0, 32);
	k = gpu_view(&w, gpu.k, small.kv_heads);
	q = gpu_view(&w, gpu.q, small.heads);
	other_gpu();
	far_k = gpu_view(&w, gpu.k, small.kv_heads);
	far_q = gpu_view(&w, gpu.q, small.heads);
	to.lse = (float *)(uintptr_t)gpu.lse;
	other_gpu();
	seq = worker_seq(&w, ids, 64);
	CQ_FAILS(cq_append(seq, 0, &far_k, &k, 1, NULL), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "k at 0x");
	ASSERT_STRHAS(cq_last_error(), "in the memory of device 1; device 0 computes");
	CQ_FAILS(cq_append(seq, 0, &k, &far_k, 1, NULL), -EINVAL);
	CQ_OK(cq_append(seq, 0, &k, &k, 1, NULL));
	CQ_OK(cq_truncate(seq, 0));
	CQ_OK(cq_batch_new(w.model, 1, 4, 0, &b));
	CQ_OK(cq_step(b, &seq, &one, 1));
	CQ_FAILS(cq_append_rows(b, 0, &far_k, &k, NULL), -EINVAL);
	CQ_FAILS(cq_attention(b, 0, &far_q, &q, NULL), -EINVAL);
	CQ_FAILS(cq_attention(b, 0, &q, &far_q, NULL), -EINVAL);
	CQ_FAILS(cq_attention(b, 0, &q, &q, &to), -EINVAL);
	ASSERT_STRHAS(cq_last_error(), "lse at 0x");
	cq_seq_close(seq);
	both(&w, &h, 130, 1);
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* --- sequences --- */

/* Forks and truncation, inside pages and at their ends, against the same on the host. */
TEST(fork_and_truncate)
{
	static const size_t keep[] = { 200, 192, 150, 129, 70, 64, 63, 3 };
	struct cq_seq *a, *b, *fa, *fb;
	struct worker w, h;
	size_t i;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 64);
	worker_open(&h, &small, r.sock, 0, 64);
	for (i = 0; i < ARRAY_SIZE(keep); i++) {
		a = worker_seq(&w, ids, 1);
		b = worker_seq(&h, ids, 1);
		gpu_grow(&w, a, ids, 210);
		worker_grow(&h, b, ids, 210);
		CQ_OK(cq_fork(a, NULL, &fa));
		CQ_OK(cq_fork(b, NULL, &fb));
		CQ_OK(cq_truncate(a, keep[i]));
		CQ_OK(cq_truncate(b, keep[i]));
		same_attention(&w, a, &h, b, 2);
		gpu_grow(&w, a, ids, 230);
		worker_grow(&h, b, ids, 230);
		same_attention(&w, a, &h, b, 2);
		gpu_grow(&w, fa, ids, 260);
		worker_grow(&h, fb, ids, 260);
		same_attention(&w, fa, &h, fb, 1);
		cq_seq_close(a);
		cq_seq_close(b);
		CQ_OK(cq_seal(fa, 5000));
		CQ_OK(cq_seal(fb, 5000));
		cq_seq_close(fa);
		cq_seq_close(fb);
	}
	cq_close(w.ctx);
	cq_close(h.ctx);
	rig_stop(&r);
}

/* Published twice: the second reads the first's page, and its slots serve again. */
TEST(existing_pages)
{
	struct cq_seq_opts o = { .sz = sizeof(o), .flags = CQ_SEQ_NOMATCH };
	struct cq_seq *a, *b;
	struct worker w;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	CQ_OK(cq_seq_open(w.model, NULL, 0, &o, &a));
	CQ_OK(cq_seq_open(w.model, NULL, 0, &o, &b));
	gpu_grow(&w, a, ids, 200);
	gpu_grow(&w, b, ids, 200);
	CQ_OK(cq_seal(a, 5000));
	CQ_OK(cq_seal(b, 5000));
	ASSERT_EQ(worker_info(a).sealed, 192);
	ASSERT_EQ(worker_info(b).sealed, 192);
	ASSERT(a->ents[0].pg->codes == b->ents[0].pg->codes);
	ASSERT(a->ents[0].pg->sink.data == b->ents[0].pg->sink.data);
	ASSERT(a->ents[2].pg->codes == b->ents[2].pg->codes);
	ASSERT_GE(w.model->gpu->pool[0].n, 3);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* A layer of @n tokens, of which number @at has a value that no fp16 can hold. */
static void bad_layer(struct worker *w, struct cq_seq *seq, uint32_t n, uint32_t at)
{
	struct cq_view v = gpu_view(w, gpu.v, small.kv_heads);
	float nan = NAN;

	CQ_OK(gpu_append_layer(w, seq, ids, n, 0));
	CU(cuStreamSynchronize(gpu.stream));
	CU(cuMemcpyHtoD(gpu.v + 4 * (at * 128 + 64 + 9), &nan, 4));
	CQ_OK(cq_append(seq, 1, &v, &v, n, NULL));
}

/* It is found on the device; its page is not published, nor one that began as it. */
TEST(bad_values)
{
	struct cq_seq *seq, *fork;
	struct worker w;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 64);
	bad_layer(&w, seq, 30, 5);
	CQ_OK(cq_commit(seq, ids, 30));
	CQ_OK(cq_fork(seq, NULL, &fork));
	gpu_grow(&w, seq, ids, 64);
	gpu_grow(&w, fork, ids, 64);
	CQ_FAILS(cq_seal(seq, 5000), -EINVAL);
	CQ_FAILS(cq_seal(fork, 5000), -EINVAL);
	cq_seq_close(seq);
	cq_seq_close(fork);
	seq = worker_seq(&w, ids, 65);
	ASSERT_EQ(cq_seq_length(seq), 0);
	gpu_grow(&w, seq, ids, 64);
	CQ_OK(cq_seal(seq, 5000));
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Nor is one spoilt that another began as, or that moved away from its slot. */
TEST(bad_values_of_a_fork)
{
	struct cq_seq *seq, *fork, *again;
	struct worker w;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, NULL, 0);
	gpu_grow(&w, seq, ids, 30);
	CQ_OK(cq_fork(seq, NULL, &fork));
	bad_layer(&w, fork, 10, 5);
	CQ_OK(cq_commit(fork, ids + 30, 10));
	/* a fork of the fork has what was refused there */
	CQ_OK(cq_fork(fork, NULL, &again));
	gpu_grow(&w, seq, ids, 64);
	CQ_OK(cq_seal(seq, 5000));
	gpu_grow(&w, fork, ids + 1, 64);
	CQ_FAILS(cq_seal(fork, 5000), -EINVAL);
	cq_seq_close(fork);
	gpu_grow(&w, again, ids + 2, 64);
	CQ_FAILS(cq_seal(again, 5000), -EINVAL);
	cq_seq_close(again);
	cq_seq_close(seq);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Pages of other sequences, and those before it, are published all the same. */
TEST(bad_values_of_one_page)
{
	struct cq_seq *bad, *good;
	struct worker w;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	bad = worker_seq(&w, NULL, 0);
	good = worker_seq(&w, NULL, 0);
	gpu_grow(&w, good, ids + 1000, 40);
	bad_layer(&w, bad, 200, 100);
	CQ_OK(cq_commit(bad, ids, 200));
	gpu_grow(&w, good, ids + 1000, 130);
	CQ_OK(cq_seal(good, 5000));
	ASSERT_EQ(worker_info(good).sealed, 128);
	CQ_FAILS(cq_seal(bad, 5000), -EINVAL);
	ASSERT_EQ(worker_info(bad).sealed, 64);
	CQ_OK(cq_truncate(bad, 64));
	gpu_grow(&w, bad, ids, 200);
	CQ_OK(cq_seal(bad, 5000));
	ASSERT_EQ(worker_info(bad).sealed, 192);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* --- calls of the driver while a sequence is opened --- */

static struct {
	struct cqk_cuda table;
	const struct cqk_cuda *real;
	uint32_t copies, waits;
} count;

static int count_in(cqcu_ptr to, const void *from, size_t n, struct cqcu_stream *s)
{
	count.copies++;
	return count.real->cuMemcpyHtoDAsync(to, from, n, s);
}

static int count_out(void *to, cqcu_ptr from, size_t n, struct cqcu_stream *s)
{
	count.copies++;
	return count.real->cuMemcpyDtoHAsync(to, from, n, s);
}

static int count_wait(struct cqcu_stream *s)
{
	count.waits++;
	return count.real->cuStreamSynchronize(s);
}

static void count_calls(const struct worker *w)
{
	struct cqc_gpu *g = w->model->gpu;

	count.real = g->cu;
	count.table = *g->cu;
	count.table.cuMemcpyHtoDAsync = count_in;
	count.table.cuMemcpyDtoHAsync = count_out;
	count.table.cuStreamSynchronize = count_wait;
	g->cu = &count.table;
}

/* As gpu_grow(), but waits for slots. */
static void gpu_grow_wait(const struct worker *w, struct cq_seq *seq, size_t to)
{
	int ret = -ENOBUFS, i;

	for (i = 0; i < 1000 && ret == -ENOBUFS; i++) {
		ret = gpu_try_grow(w, seq, ids, to, 64);
		if (ret == -ENOBUFS)
			usleep(5000);
	}
	CQ_OK(ret);
}

/* Headers of all pages that a lookup finds are read at once. */
TEST(attaching_reads_once)
{
	static const size_t tokens[] = { 64, 640, 4990 };
	struct cq_seq *seq;
	struct worker w, v;
	unsigned int i;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 128);
	seq = worker_seq(&w, NULL, 0);
	gpu_grow_wait(&w, seq, 4995);
	CQ_OK(cq_seal(seq, 10000));
	worker_gpu_open(&v, &small, r.sock, CQ_OPEN_POLL, 32);
	count_calls(&v);
	for (i = 0; i < ARRAY_SIZE(tokens); i++) {
		count.copies = count.waits = 0;
		seq = worker_seq(&v, ids, tokens[i] + 1);
		ASSERT_EQ(cq_seq_length(seq), tokens[i] / 64 * 64);
		ASSERT_EQ(count.copies, 2);
		ASSERT_EQ(count.waits, 1);
		cq_seq_close(seq);
	}
	cq_close(v.ctx);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* Nobody but this context has a word of a page: what it says is met by the next step. */
TEST(page_taken_back)
{
	uint64_t other = CQP_WORD(77, CQP_SEALED);
	struct cq_batch *b;
	struct cq_seq *seq;
	struct worker w;
	uint32_t one = 1;
	float *o = calloc(1024, 4);

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 32);
	seq = worker_seq(&w, ids, 130);
	gpu_grow(&w, seq, ids, 330);
	CQ_OK(cq_seal(seq, 5000));
	CQ_OK(cq_batch_new(w.model, 1, 4, 0, &b));
	CQ_OK(attend(&w, b, seq, ids, 1, true, o, o + 512));
	CQ_OK(cq_step(b, NULL, NULL, 0));
	CQ_OK(cq_step(b, &seq, &one, 1));
	seq->ents[0].pg->slot.word = &other;
	CQ_OK(cq_step(b, &seq, &one, 1));
	CQ_FAILS(cq_step(b, NULL, NULL, 0), -ESTALE);
	CQ_OK(cq_step(b, NULL, NULL, 0));
	free(o);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* More leases than there are at first, in one call: refused whole, then had. */
TEST(more_leases)
{
	struct cq_seq *seq;
	struct worker w;
	int ret = -ENOBUFS, i;

	begin();
	worker_gpu_open(&w, &small, r.sock, 0, 64);
	seq = worker_seq(&w, ids, 1);
	for (i = 0; i < 500; i++) {
		ret = gpu_append_layer(&w, seq, ids, 63 * 64, 0);
		if (ret != -ENOBUFS)
			break;
		ASSERT_EQ(seq->n_ents, 0);
		usleep(10000);
	}
	CQ_OK(ret);
	CQ_OK(gpu_append_layer(&w, seq, ids, 63 * 64, 1));
	ASSERT_EQ(seq->appended[1], 63 * 64);
	cq_close(w.ctx);
	rig_stop(&r);
}

/* What a context leased goes back with it, but for what it published. */
TEST(leases_return)
{
	struct worker w[3];
	int i, n;

	gpu_env();
	rig_start(&r, &small, "pool_bytes = 64M\n[gpu g0]\nuuid = " GPU_UUID
		  "\npool_bytes = 8M\n");
	/* Three times what the pool holds. */
	for (n = 0; n < 10; n++) {
		for (i = 0; i < 3; i++)
			worker_gpu_open(&w[i], &small, r.sock, 0, 64);
		ASSERT_GT(w[2].model->gpu->pool[0].ring.head, 0);
		for (i = 0; i < 3; i++)
			cq_close(w[i].ctx);
	}
	rig_stop(&r);
}
