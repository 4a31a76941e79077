// SPDX-License-Identifier: MIT
/*
 * The engine's work on a device: pages whose fence has been passed are hashed
 * there, a few at a time, get their headers, and may then be named in a Seal.
 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>
#include "client/gpu.h"

#define POLL_MS 1
#define JOBS (2 * CQC_HASHES)	/* codes and sinks */
#define HDRS_AT ALIGN_UP(CQC_HEADERS * 8, 16)	/* behind their addresses */

_Static_assert(sizeof(struct cq_page_hdr) == CQKD_HEADER, "one thing");

/**
 * cqc_gpu_hashing_new() - the engine's stream and memory
 * @model: model, the context is current
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_hashing_new(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_hashing *h = &g->hashing;
	void *p = NULL;
	int r;

	h->out = 16 + JOBS * sizeof(struct cqkd_check);
	h->out_bytes = 8 * (cqc_gpu_sums(model->m.payload) + cqc_gpu_sums(model->m.sink_payload));
	h->hdrs = h->out + CQC_HASHES * h->out_bytes;
	h->list_at = ALIGN_UP(h->hdrs + JOBS * sizeof(struct cq_page_hdr), 16);
	h->bytes = h->list_at + HDRS_AT + CQC_HEADERS * sizeof(struct cq_page_hdr);
	r = g->cu->cuStreamCreate(&h->stream, CQCU_STREAM_NON_BLOCKING);
	if (!r)
		r = g->cu->cuEventCreate(&h->event, CQCU_EVENT_DISABLE_TIMING);
	if (!r)
		r = g->cu->cuMemAlloc(&h->dev, h->bytes);
	if (!r)
		r = g->cu->cuMemHostAlloc(&p, h->bytes, CQCU_MEMHOSTALLOC_PORTABLE);
	h->host = p;
	return r ? cqc_gpu_fail(g, r, "making a stream for sealing") : 0;
}

/**
 * cqc_gpu_hashing_free() - undo that
 * @g: device, its context is current
 */
void cqc_gpu_hashing_free(struct cqc_gpu *g)
{
	struct cqc_hashing *h = &g->hashing;

	if (h->host)
		g->cu->cuMemFreeHost(h->host);
	g->cu->cuMemFree(h->dev);
	if (h->event)
		g->cu->cuEventDestroy(h->event);
	if (h->stream)
		g->cu->cuStreamDestroy(h->stream);
}

static bool current(const struct cqc_gpu *g, uint32_t lease)
{
	return lease == CQC_NONE || g->leases[lease].epoch == g->epoch;
}

/* A value was refused while @pg was filled: was it one of this page's? */
static int bad_look(const struct cq_pg *pg)
{
	struct cqc_gpu *g = pg->model->gpu;
	struct cqc_hashing *h = &g->hashing;
	uint8_t *host = h->host + h->list_at;
	uint32_t word = 0;
	int mode, r, ret = cqc_gpu_eng_in(g, &mode);

	if (ret)
		return ret;
	r = g->cu->cuMemcpyDtoHAsync(host, g->bads + 4ull * pg->bad, sizeof(word), h->stream);
	if (!r)
		r = g->cu->cuStreamSynchronize(h->stream);
	if (r)
		ret = cqc_gpu_fail(g, r, "looking for refused values");
	memcpy(&word, host, sizeof(word));
	if (!ret && word >= pg->tag)
		ret = -EINVAL;
	cqc_gpu_eng_out(g, &mode);
	return ret;
}

/**
 * cqc_gpu_ready() - may a page be sealed?
 * @pg: ordered; lock held
 *
 * Return: 1; 0 not yet; -EINVAL a value that no fp16 can hold was appended;
 * -ESTALE cqd has forgotten the slot; -errno of a lost context.
 */
int cqc_gpu_ready(struct cq_pg *pg)
{
	struct cqc_gpu *g = pg->model->gpu;
	int ret;

	if (READ_ONCE(g->lost))
		return READ_ONCE(g->lost);
	if (pg->hash == CQC_HASH_RUN || pg->fence > g->done)
		return 0;
	if (!current(g, pg->chunk) || !current(g, pg->sink_chunk))
		return -ESTALE;
	if (g->bad && g->bad >= pg->born && !pg->looked) {
		ret = bad_look(pg);
		if (ret)
			return ret;
		pg->looked = true;
	}
	return pg->hash == CQC_HASH_DONE;
}

/* --- checksums --- */

static void job_add(struct cqc_hashing *h, uint32_t *n, const uint8_t *data, uint64_t bytes,
		    uint64_t out)
{
	struct cqkd_check job = {
		.data = (uintptr_t)data, .bytes = bytes, .out = h->dev + out,
	};

	memcpy(h->host + 16 + *n * sizeof(job), &job, sizeof(job));
	++*n;
}

static int check_launch(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_hashing *h = &g->hashing;
	const struct cqk_model *m = &model->m;
	uint32_t i, n = 0;
	int ret, r;

	for (i = 0; i < h->n; i++) {
		uint64_t out = h->out + i * h->out_bytes;

		job_add(h, &n, cqc_lease_ro(g, h->pg[i]->chunk), m->payload, out);
		if (h->pg[i]->sink_chunk != CQC_NONE)
			job_add(h, &n, cqc_lease_ro(g, h->pg[i]->sink_chunk), m->sink_payload,
				out + 8 * cqc_gpu_sums(m->payload));
	}
	memcpy(h->host, &n, sizeof(n));
	r = g->cu->cuMemcpyHtoDAsync(h->dev, h->host, h->out, h->stream);
	if (r)
		return cqc_gpu_fail(g, r, "copying checks");
	ret = cqk_cuda_check(g->kernels, h->dev + 16, h->dev, n, MAX(m->payload, m->sink_payload),
			     h->stream, cqc_err());
	if (ret)
		return ret;
	r = g->cu->cuMemcpyDtoHAsync(h->host + h->out, h->dev + h->out, h->n * h->out_bytes,
				     h->stream);
	if (!r)
		r = g->cu->cuEventRecord(h->event, h->stream);
	return r ? cqc_gpu_fail(g, r, "reading checks") : 0;
}

/**
 * cqc_gpu_fold() - checksum of a payload from what the kernel makes of it
 * @sums:    XXH3-64 of each 4 KiB, unaligned
 * @payload: bytes
 * @out:     low and high half of the XXH3-128 over them
 */
void cqc_gpu_fold(const uint8_t *sums, uint64_t payload, uint64_t out[2])
{
	XXH128_hash_t x = XXH3_128bits(sums, cqc_gpu_sums(payload) * 8);

	out[0] = x.low64;
	out[1] = x.high64;
}

static int header_put(struct cq_model *model, const struct cq_pg *pg, uint32_t kind,
		      uint32_t at)
{
	uint32_t lease = kind == CQ_PAGE_SINK ? pg->sink_chunk : pg->chunk;
	const uint64_t *sums = pg->sums + (kind == CQ_PAGE_SINK ? 2 : 0);
	struct cqc_gpu *g = model->gpu;
	struct cq_page_hdr hdr = {
		.magic = CQ_PAGE_MAGIC, .version = CQ_PAGE_VERSION, .kind = (uint16_t)kind,
		.payload = kind == CQ_PAGE_SINK ? model->m.sink_payload : model->m.payload,
		.check_lo = sums[0], .check_hi = sums[1],
	};
	uint8_t *host = g->hashing.host + g->hashing.hdrs + at * sizeof(hdr);

	memcpy(hdr.model_tag, model->m.hash, sizeof(hdr.model_tag));
	memcpy(hdr.key, pg->key.b, sizeof(hdr.key));
	memcpy(host, &hdr, sizeof(hdr));
	return g->cu->cuMemcpyHtoDAsync(cqc_lease_rw(g, lease) - sizeof(hdr), host, sizeof(hdr),
					g->hashing.stream);
}

static int headers_put(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_hashing *h = &g->hashing;
	uint64_t n = cqc_gpu_sums(model->m.payload);
	uint32_t i;
	int r = 0;

	for (i = 0; i < h->n && !r; i++) {
		const uint8_t *sums = h->host + h->out + i * h->out_bytes;
		struct cq_pg *pg = h->pg[i];

		cqc_gpu_fold(sums, model->m.payload, pg->sums);
		r = header_put(model, pg, CQ_PAGE_CODES, 2 * i);
		if (r || pg->sink_chunk == CQC_NONE)
			continue;
		cqc_gpu_fold(sums + 8 * n, model->m.sink_payload, pg->sums + 2);
		r = header_put(model, pg, CQ_PAGE_SINK, 2 * i + 1);
	}
	if (!r)
		r = g->cu->cuEventRecord(h->event, h->stream);
	return r ? cqc_gpu_fail(g, r, "writing headers") : 0;
}

/* Pages that wait for it, as many as fit. */
static void pages_pick(struct cq_model *model)
{
	struct cqc_hashing *h = &model->gpu->hashing;
	struct list_head *pos;

	h->n = 0;
	list_for_each(pos, &model->ctx->jobs) {
		struct cq_pg *pg = list_entry(pos, struct cq_pg, job);

		if (h->n == CQC_HASHES)
			return;
		if (pg->model != model || pg->hash != CQC_HASH_NONE || cqc_gpu_ready(pg) < 0 ||
		    pg->fence > model->gpu->done)
			continue;
		pg->hash = CQC_HASH_RUN;
		h->pg[h->n++] = pg;
	}
}

static void hashing_end(struct cqc_hashing *h, uint32_t how)
{
	uint32_t i;

	for (i = 0; i < h->n; i++)
		h->pg[i]->hash = how;
	h->n = 0;
	h->stage = 0;
}

static void hashing_run(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_hashing *h = &g->hashing;
	int ret = 0, r;

	if (h->stage) {
		r = g->cu->cuEventQuery(h->event);
		if (r == CQCU_ERROR_NOT_READY)
			return;
		ret = r ? cqc_gpu_fail(g, r, "sealing") : 0;
	}
	if (!ret && h->stage == 2)
		hashing_end(h, CQC_HASH_DONE);
	if (!ret && !h->stage)
		pages_pick(model);
	if (ret || !h->n)
		goto out;
	ret = h->stage ? headers_put(model) : check_launch(model);
	h->stage++;
out:
	if (!ret)
		return;
	/* Tried again; what was queued may still write headers, so it is waited for. */
	if (g->cu->cuStreamSynchronize(h->stream))
		WRITE_ONCE(g->lost, ret);
	hashing_end(h, CQC_HASH_NONE);
}

/**
 * cqc_gpu_run() - whatever can be done without waiting
 * @model: model, lock held
 */
void cqc_gpu_run(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;
	int mode;

	if (!cqc_gpu_eng_in(g, &mode)) {
		cqc_gpu_fences_poll(g);
		if (!READ_ONCE(g->lost))
			hashing_run(model);
		cqc_gpu_leases_pump(model);
		cqc_gpu_eng_out(g, &mode);
	}
	cqc_gpu_held_pump(model);
}

/**
 * cqc_gpu_idle_ms() - when to look again
 * @model: model, lock held
 *
 * Return: milliseconds while the device owes something; -1 else.
 */
int cqc_gpu_idle_ms(const struct cq_model *model)
{
	const struct cqc_gpu *g = model->gpu;
	bool owes = g->hashing.stage || g->held_n || g->done < smp_load_acquire(&g->recorded);

	if (!READ_ONCE(g->lost) && owes)
		return POLL_MS;
	return cqc_gpu_leases_idle_ms(model);
}

/**
 * cqc_gpu_quiet() - nothing of a model is running any more
 * @model: about to be closed, lock held
 */
void cqc_gpu_quiet(struct cq_model *model)
{
	struct cqc_gpu *g = model->gpu;

	if (!g->leases)
		return;
	g->cu->cuCtxPushCurrent(g->ctx);
	if (g->cu->cuCtxSynchronize())
		WRITE_ONCE(g->lost, -EIO);
	cqc_gpu_fences_poll(g);
	cqc_gpu_out(g);
	hashing_end(&g->hashing, CQC_HASH_NONE);
}

/* --- Seal --- */

/**
 * cqc_gpu_seal() - name the slots of a page
 * @pg:   hashed; lock held
 * @seal: request
 * @buf:  bytes that it points to
 */
void cqc_gpu_seal(struct cq_pg *pg, Cqp__Seal *seal, struct cqc_seal_buf *buf)
{
	struct cqc_gpu *g = pg->model->gpu;
	uint32_t i;

	for (i = 0; i < 4; i++)
		buf->checks[i] = htole64(pg->sums[i]);
	buf->slot = g->leases[pg->chunk].page;
	g->leases[pg->chunk].sealing = true;
	seal->has_slot = 1;
	seal->slot.data = (uint8_t *)&buf->slot;
	seal->slot.len = sizeof(buf->slot);
	seal->has_checks = 1;
	seal->checks.data = (uint8_t *)buf->checks;
	seal->checks.len = 16;
	if (pg->sink_chunk == CQC_NONE)
		return;
	buf->sink = g->leases[pg->sink_chunk].page;
	g->leases[pg->sink_chunk].sealing = true;
	seal->has_sink_slot = 1;
	seal->sink_slot.data = (uint8_t *)&buf->sink;
	seal->sink_slot.len = sizeof(buf->sink);
	seal->checks.len = 32;
}

static void lease_answered(struct cqc_gpu *g, uint32_t lease, bool used)
{
	if (lease == CQC_NONE)
		return;
	g->leases[lease].sealing = false;
	if (used)
		g->leases[lease].used = true;
}

/*
 * An answer that was lost with its connection: the slot's word says that it was
 * published. The session has its pin.
 */
static bool was_published(struct cq_pg *pg)
{
	const struct cqc_gpu *g = pg->model->gpu;
	const struct cqc_lease *l = &g->leases[pg->chunk];
	uint64_t word = smp_load_acquire(&l->seg->words[l->page.slot]);

	if (CQP_WORD_GEN(word) != CQP_WORD_GEN(l->page.word) || CQP_WORD_STATE(word) != CQP_SEALED)
		return false;
	pg->res.page = l->page;
	pg->res.page.word = word;
	pg->res.existing = false;
	pg->res.has_sink = pg->sink_chunk != CQC_NONE;
	pg->res.pin_epoch = pg->model->ctx->pin_epoch;
	if (pg->res.has_sink) {
		l = &g->leases[pg->sink_chunk];
		pg->res.sink_page = l->page;
		pg->res.sink_page.word = smp_load_acquire(&l->seg->words[l->page.slot]);
	}
	return true;
}

/**
 * cqc_gpu_sealed() - a Seal was answered
 * @pg:  its page; lock held
 * @ret: 0, @pg->res says how; or the daemon's error
 *
 * Return: @ret; 0 if an earlier Seal, whose answer was lost, had published it.
 */
int cqc_gpu_sealed(struct cq_pg *pg, int ret)
{
	bool used = !ret && !pg->res.existing;

	if (ret == -EINVAL && was_published(pg)) {
		used = true;
		ret = 0;
	}
	if (ret == -ENODATA && !pg->model->gone)
		cqc_gpu_gone(pg->model, pg->model->gpu->leases[pg->chunk].epoch);
	lease_answered(pg->model->gpu, pg->chunk, used);
	lease_answered(pg->model->gpu, pg->sink_chunk, used);
	return ret;
}

static int headers_read(struct cqc_gpu *g, uint32_t n)
{
	struct cqc_hashing *h = &g->hashing;
	cqcu_ptr list = h->dev + h->list_at, to = list + HDRS_AT;
	uint8_t *host = h->host + h->list_at;
	int ret, r;

	r = g->cu->cuMemcpyHtoDAsync(list, host, n * 8, h->stream);
	if (r)
		return cqc_gpu_fail(g, r, "copying addresses of headers");
	ret = cqk_cuda_gather(g->kernels, list, to, n, h->stream, cqc_err());
	if (!ret)
		r = g->cu->cuMemcpyDtoHAsync(host + HDRS_AT, to, n * sizeof(struct cq_page_hdr),
					     h->stream);
	if (r)
		ret = cqc_gpu_fail(g, r, "reading headers of pages");
	return cqc_gpu_finish(g, h->stream, ret, "reading headers of pages");
}

/**
 * cqc_gpu_headers() - copy headers of slots, in one launch
 * @model: model, lock held
 * @at:    [@n] slots, as read on the device
 * @n:     at most CQC_HEADERS
 * @hdr:   [@n] filled
 *
 * Waits for the engine's stream, which has nothing long.
 *
 * Return: 0 or -errno with text.
 */
int cqc_gpu_headers(struct cq_model *model, const uint8_t *const *at, uint32_t n,
		    struct cq_page_hdr *hdr)
{
	struct cqc_gpu *g = model->gpu;
	struct cqc_hashing *h = &g->hashing;
	int mode, ret;
	uint32_t i;

	if (!n)
		return 0;
	ret = cqc_gpu_eng_in(g, &mode);
	if (ret)
		return ret;
	for (i = 0; i < n; i++)
		memcpy(h->host + h->list_at + 8 * i, &(uint64_t){ (uintptr_t)at[i] }, 8);
	ret = headers_read(g, n);
	if (!ret)
		memcpy(hdr, h->host + h->list_at + HDRS_AT, n * sizeof(*hdr));
	cqc_gpu_eng_out(g, &mode);
	return ret;
}

/**
 * cqc_gpu_same() - has a published page the bytes of ours?
 * @pg: with a result
 *
 * Return: true if the checksums say so.
 */
bool cqc_gpu_same(const struct cq_pg *pg)
{
	return !memcmp(pg->res.slot.check, pg->sums, 16) &&
	       (!pg->res.has_sink || !memcmp(pg->res.sink.check, pg->sums + 2, 16));
}
