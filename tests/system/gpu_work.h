/* SPDX-License-Identifier: MIT */
/*
 * Workers of libcq on the emulated GPU, with a cqd of the test's own: one that grows a
 * sequence, one that reads what another has published.
 */
#ifndef TESTS_SYSTEM_GPU_WORK_H
#define TESTS_SYSTEM_GPU_WORK_H

#include "tests/system/sys.h"
#include "tests/unit/test_libcq_gpu.h"
#include "client/gpu.h"

static struct sys s;
static struct shape small = GPU_SHAPE;
static uint32_t ids[2000];

/* The model's file and its section, behind @text. */
static inline void work_model(char *text, size_t size)
{
	size_t bytes, n = strlen(text);
	char path[300];
	void *image;

	rig_ids(ids, ARRAY_SIZE(ids), 1);
	ASSERT_SYS(chmod(test_dir(), 0755));
	snprintf(path, sizeof(path), "%s/toy.cqm", test_dir());
	image = rig_image(&small, &bytes);
	rig_write(path, image, bytes);
	free(image);
	snprintf(text + n, size - n, "[model toy]\npath = %s\n", path);
}

/* Bytes of a page's payload. */
static inline uint64_t work_payload(void)
{
	struct cq_code k, v;

	ASSERT_OK(cqk_code_parse(small.k, small.dim, &k, NULL));
	ASSERT_OK(cqk_code_parse(small.v, small.dim, &v, NULL));
	return (uint64_t)small.layers * small.kv_heads *
	       (cq_code_block_bytes(k, small.dim) + cq_code_block_bytes(v, small.dim));
}

/* The GPU's, beside the host's. */
static inline uint64_t gpu_used(void)
{
	struct sys_pool p = sys_pool(&s, 1);

	ASSERT_EQ(p.n, 2);
	return p.used;
}

/* As gpu_try_grow(), but waits when no slot is leased at the moment. */
static inline int feed_try(const struct worker *w, struct cq_seq *seq, size_t to)
{
	long long end = test_now_ms() + 2 * SYS_DEADLINE;
	int ret;

	while ((ret = gpu_try_grow(w, seq, ids, to, 50)) == -ENOBUFS && test_now_ms() < end) {
		CQ_OK(cq_truncate(seq, cq_seq_length(seq)));
		usleep(2000);
	}
	return ret;
}

static inline void feed(const struct worker *w, struct cq_seq *seq, size_t to)
{
	CQ_OK(feed_try(w, seq, to));
}

/*
 * Finds the 14 pages of 900 tokens that another has published, and reads what a worker of
 * the host computes.
 */
static inline void reader(int fd, void *arg)
{
	size_t n = (size_t)2 * small.heads * small.dim, i;
	float *a = calloc(n, 4), *b = calloc(n, 4), *lse = calloc(n, 4);
	struct cq_batch *bw, *bh;
	struct cq_seq *seq, *host;
	struct worker w, h;

	worker_open(&h, &small, s.sock, 0, 64);
	host = worker_seq(&h, ids, 900);
	worker_grow(&h, host, ids, 900);
	CQ_OK(cq_seal(host, SYS_DEADLINE));
	cq_seq_close(host);
	worker_gpu_open(&w, &small, s.sock, 0, 64);
	host = worker_seq(&h, ids, 900);
	seq = worker_seq(&w, ids, 900);
	ASSERT_EQ(cq_seq_length(seq), 896);
	ASSERT_EQ(cq_seq_length(host), 896);
	CQ_OK(cq_batch_new(w.model, 1, 2, 0, &bw));
	CQ_OK(cq_batch_new(h.model, 1, 2, 0, &bh));
	CQ_OK(attend(&w, bw, seq, ids, 2, true, a, lse));
	CQ_OK(attend(&h, bh, host, ids, 2, false, b, lse));
	for (i = 0; i < n; i++)
		ASSERT_NEAR(a[i], b[i], 2e-3);
	cq_close(w.ctx);
	cq_close(h.ctx);
}

/* A byte of the device's memory changes, behind everybody's back. */
static inline void spoil(const struct worker *w, const uint8_t *at)
{
	struct list_head *pos;
	uint8_t byte;

	list_for_each(pos, &w->model->segs) {
		struct cqc_seg *seg = list_entry(pos, struct cqc_seg, link);

		if (!seg->rw || at < seg->base || at >= seg->base + seg->bytes)
			continue;
		CU(cuMemcpyDtoH(&byte, (uintptr_t)at, 1));
		byte ^= 1;
		CU(cuMemcpyHtoD(seg->rw + (cqcu_ptr)(at - seg->base), &byte, 1));
		return;
	}
	FAIL("no segment of this worker has %p", (const void *)at);
}

/* "cqctl verify --gpu g0": its exit status, and what it printed. */
static inline int helper(const char *how, char *out, size_t size)
{
	char cmd[1200];
	size_t n;
	FILE *f;

	snprintf(cmd, sizeof(cmd), "'%s/cqctl' --socket '%s' --json verify --gpu g0 %s 2>&1",
		 sys_build(), s.admin, how);
	fflush(stdout);
	f = popen(cmd, "re");
	ASSERT(f);
	n = fread(out, 1, size - 1, f);
	out[n] = '\0';
	return WEXITSTATUS(pclose(f));
}

/* It looks at @pages pages, and finds @wrong of them so. */
static inline void helper_finds(const char *how, unsigned int pages, unsigned int wrong)
{
	char out[600], want[64];
	int status = helper(how, out, sizeof(out));

	snprintf(want, sizeof(want), "\"checked\":%u,\"failed\":%u,", pages, wrong);
	if (!strstr(out, want))
		FAIL("not %s, but %s", want, out);
	ASSERT_EQ(status, wrong ? 1 : 0);
}

#endif /* TESTS_SYSTEM_GPU_WORK_H */
