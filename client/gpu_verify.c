// SPDX-License-Identifier: MIT
/*
 * Checksums of pages on a device that outlived a restart of cqd, which cannot
 * read them: computed there before the first use, judged by cqd.
 *
 * All of it waits, and only for pages that nobody has looked at since that
 * restart. Memory for it is taken for the time being.
 */
#include <errno.h>
#include <string.h>
#include "client/gpu.h"

#define AT_ONCE 32u		/* pages */

/*
 * struct look - pages being looked at
 * @pages: [@n], @sum: theirs
 * @sink:  of the first one, base NULL: not to be looked at
 * @dev, @host: number, jobs, results; sinks come last
 */
struct look {
	struct cq_model *model;
	uint32_t n;
	struct cqp_page pages[AT_ONCE];
	uint64_t sums[AT_ONCE][2];
	const uint8_t *at[AT_ONCE], *sink;
	cqcu_ptr dev;
	uint8_t *host;
	uint64_t out, each, bytes;
	uint32_t gone;		/* first that must not be used; CQC_NONE */
};

static int memory(struct look *k)
{
	const struct cqk_cuda *cu = k->model->gpu->cu;
	void *p = NULL;
	int r;

	k->each = 8 * MAX(cqc_gpu_sums(k->model->m.payload),
			  cqc_gpu_sums(k->model->m.sink_payload));
	k->out = 16 + (AT_ONCE + 1) * sizeof(struct cqkd_check);
	k->bytes = k->out + (AT_ONCE + 1) * k->each;
	r = cu->cuMemAlloc(&k->dev, k->bytes);
	if (!r)
		r = cu->cuMemHostAlloc(&p, k->bytes, 0);
	k->host = p;
	if (p)
		return 0;
	cqc_gpu_fail(k->model->gpu, r, "memory for checksums");
	return -ENOMEM;
}

static void memory_free(struct look *k)
{
	const struct cqk_cuda *cu = k->model->gpu->cu;

	if (k->host)
		cu->cuMemFreeHost(k->host);
	if (k->dev)
		cu->cuMemFree(k->dev);
}

static void job(struct look *k, uint32_t i, const uint8_t *slot, uint64_t payload)
{
	struct cqkd_check c = {
		.data = (uintptr_t)slot + sizeof(struct cq_page_hdr), .bytes = payload,
		.out = k->dev + k->out + i * k->each,
	};

	memcpy(k->host + 16 + i * sizeof(c), &c, sizeof(c));
}

/* Results of the kernel at @k->host. */
static int compute(struct look *k)
{
	const struct cqk_model *m = &k->model->m;
	struct cqc_gpu *g = k->model->gpu;
	struct cqcu_stream *stream = g->hashing.stream;
	uint32_t i, n = k->n + (k->sink != NULL);
	int ret, r;

	for (i = 0; i < k->n; i++)
		job(k, i, k->at[i], m->payload);
	if (k->sink)
		job(k, k->n, k->sink, m->sink_payload);
	memcpy(k->host, &n, sizeof(n));
	r = g->cu->cuMemcpyHtoDAsync(k->dev, k->host, k->out, stream);
	if (r)
		return cqc_gpu_fail(g, r, "copying checks");
	ret = cqk_cuda_check(g->kernels, k->dev + 16, k->dev, n,
			     MAX(m->payload, m->sink_payload), stream, cqc_err());
	if (!ret)
		r = g->cu->cuMemcpyDtoHAsync(k->host + k->out, k->dev + k->out, n * k->each,
					     stream);
	if (r)
		ret = cqc_gpu_fail(g, r, "reading checks");
	return cqc_gpu_finish(g, stream, ret, "reading checks");
}

/* Sinks have their checksum in their header alone; wrong ones spoil page 0. */
static int sums(struct look *k)
{
	const struct cqk_model *m = &k->model->m;
	struct cq_page_hdr hdr;
	uint64_t sink[2];
	uint32_t i;
	int ret;

	for (i = 0; i < k->n; i++)
		cqc_gpu_fold(k->host + k->out + i * k->each, m->payload, k->sums[i]);
	if (!k->sink)
		return 0;
	cqc_gpu_fold(k->host + k->out + k->n * k->each, m->sink_payload, sink);
	ret = cqc_gpu_headers(k->model, &k->sink, 1, &hdr);
	if (!ret && (hdr.check_lo != sink[0] || hdr.check_hi != sink[1]))
		memset(k->sums[0], 0, sizeof(k->sums[0]));
	return ret;
}

static int checked_take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	const Cqp__CheckedOk *ok = msg->checked_ok;
	struct look *k = call->arg;
	uint32_t i;

	if (ok->gone.len != (k->n + 7) / 8)
		return cq_err_set(&call->err, -EPROTO, "cqd gave a malformed answer to Checked");
	for (i = 0; i < k->n && k->gone == CQC_NONE; i++)
		if (ok->gone.data[i / 8] >> i % 8 & 1)
			k->gone = i;
	return 0;
}

static int tell(struct look *k)
{
	struct cqc_call call = {
		.req.want = CQP__MSG__BODY_CHECKED_OK,
		.take = checked_take,
		.arg = k,
	};
	Cqp__Checked body = CQP__CHECKED__INIT;
	struct cq_ctx *ctx = k->model->ctx;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint64_t said[AT_ONCE][2];
	uint32_t i;

	for (i = 0; i < k->n; i++) {
		said[i][0] = htole64(k->sums[i][0]);
		said[i][1] = htole64(k->sums[i][1]);
	}
	body.pages.data = (uint8_t *)k->pages;
	body.pages.len = k->n * sizeof(k->pages[0]);
	body.checks.data = (uint8_t *)said;
	body.checks.len = k->n * sizeof(said[0]);
	msg.body_case = CQP__MSG__BODY_CHECKED;
	msg.checked = &body;
	return cqc_call(ctx, &call, &msg, NULL, 0, ctx->conn_no);
}

static int slot_of(struct cq_model *model, const struct cqp_page *page, const uint8_t **out)
{
	struct cqc_seg *seg;
	int ret = cqc_seg_get(model, page->segment, &seg);

	if (ret)
		return ret;
	if (page->slot >= seg->slots)
		return -EPROTO;
	*out = seg->base + page->slot * seg->slot_bytes;
	return 0;
}

static int judge(struct look *k)
{
	struct cqc_gpu *g = k->model->gpu;
	int mode, ret = cqc_gpu_eng_in(g, &mode);

	if (ret)
		return ret;
	ret = k->host ? 0 : memory(k);
	if (!ret)
		ret = compute(k);
	if (!ret)
		ret = sums(k);
	cqc_gpu_eng_out(g, &mode);
	return ret ? ret : tell(k);
}

/**
 * cqc_gpu_verify() - look at pages before they are used
 * @model: model, lock held
 * @f:     what a lookup found; their pins are held
 *
 * Return: how many of them from the first on may be used; -errno with text when
 * that cannot be told.
 */
int cqc_gpu_verify(struct cq_model *model, const struct cqc_unchecked *f)
{
	struct look k = { .model = model, .gone = CQC_NONE };
	uint32_t i, at[AT_ONCE], good = f->n;
	int mode, ret = 0;

	for (i = 0; i < f->n && !ret && good == f->n; i++) {
		if (f->bits[i / 8] >> i % 8 & 1) {
			ret = slot_of(model, &f->pages[i], &k.at[k.n]);
			if (!ret && !i && f->sink)
				ret = slot_of(model, f->sink, &k.sink);
			at[k.n] = i;
			k.pages[k.n++] = f->pages[i];
		}
		if (ret || !k.n || (k.n < AT_ONCE && i + 1 < f->n))
			continue;
		ret = judge(&k);
		if (k.gone != CQC_NONE)
			good = at[k.gone];
		k.n = 0;
		k.sink = NULL;
	}
	if (k.dev && !cqc_gpu_eng_in(model->gpu, &mode)) {
		memory_free(&k);
		cqc_gpu_eng_out(model->gpu, &mode);
	}
	return ret ? ret : (int)good;
}
