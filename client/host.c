// SPDX-License-Identifier: MIT
/* The backend of host memory: mapped segments, an arena that cqd copies from. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "client/tail.h"

static void nothing(struct cq_model *model)
{
}

static void leave(struct cq_model *model)
{
	if (model->ready)
		cqc_arena_drop(model->ctx, model->arena_id);
}

static void fini(struct cq_model *model)
{
	cqc_arena_fini(&model->arena);
}

static int call(const struct cq_model *model, int32_t device, void *stream, const char *what)
{
	if (device == CQ_DEVICE_HOST && !stream)
		return 0;
	return cqc_fail(-EINVAL, "%s: device %d; this is in host memory (%d, no stream)", what,
			device, CQ_DEVICE_HOST);
}

static void seg_unmap(struct cqc_seg *seg)
{
	munmap((void *)(uintptr_t)seg->base, seg->bytes);
}

static int headers(struct cq_model *model, const uint8_t *const *at, uint32_t n,
		   struct cq_page_hdr *hdr)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		memcpy(&hdr[i], at[i], sizeof(*hdr));
	return 0;
}

static bool pg_take(struct cq_pg *pg, bool sink)
{
	struct cqc_arena *a = &pg->model->arena;

	pg->chunk = cqc_chunk_new(a);
	if (sink)
		pg->sink_chunk = cqc_chunk_new(a);
	if (pg->chunk == CQC_NONE || (sink && pg->sink_chunk == CQC_NONE))
		return false;
	pg->codes = cqc_chunk_ptr(a, pg->chunk);
	return true;
}

static void pg_give(struct cq_pg *pg)
{
	struct cqc_arena *a = &pg->model->arena;

	if (pg->chunk != CQC_NONE)
		cqc_chunk_free(a, pg->chunk);
	if (pg->sink_chunk != CQC_NONE)
		cqc_chunk_free(a, pg->sink_chunk);
	pg->chunk = CQC_NONE;
	pg->sink_chunk = CQC_NONE;
}

static bool same(const struct cq_pg *pg)
{
	const struct cqk_model *m = &pg->model->m;

	if (memcmp(pg->codes, pg->res.slot.data, m->payload))
		return false;
	return !pg->res.has_sink ||
	       !memcmp(pg->sink.data, pg->res.sink.data, m->sink_payload);
}

static void place(struct cq_pg *pg)
{
}

static uint64_t fence(struct cq_model *model)
{
	return 0;
}

static void batch_free(struct cq_batch *b)
{
	free(b->scratch);
}

static int step_begin(struct cq_batch *b, bool wait)
{
	return 0;
}

static int step(struct cq_batch *b)
{
	return 0;
}

static bool hold(struct cq_model *model, const struct cqc_order *o)
{
	return false;
}

static int ready(struct cq_pg *pg)
{
	return 1;
}

/* What the host holds cqd reads itself: one that says otherwise is wrong. */
static int verify(struct cq_model *model, const struct cqc_unchecked *f)
{
	return -EPROTO;
}

static void seal(struct cq_pg *pg, Cqp__Seal *msg, struct cqc_seal_buf *buf)
{
	struct cq_model *model = pg->model;

	msg->arena = model->arena_id;
	msg->offset = cqc_chunk_offset(&model->arena, pg->chunk);
	if (pg->sink_chunk == CQC_NONE)
		return;
	msg->has_sink_offset = 1;
	msg->sink_offset = cqc_chunk_offset(&model->arena, pg->sink_chunk);
}

static int sealed(struct cq_pg *pg, int ret)
{
	return ret;
}

static int idle_ms(const struct cq_model *model)
{
	return -1;
}

static void resume(struct cq_model *model, bool resumed)
{
}

const struct cqc_backend cqc_host = {
	.memory = cqc_host_memory,
	.join = cqc_host_join,
	.rejoin = cqc_host_rejoin,
	.quiet = nothing,
	.leave = leave,
	.fini = fini,
	.call = call,
	.seg_map = cqc_host_seg_map,
	.seg_unmap = seg_unmap,
	.headers = headers,
	.verify = verify,
	.pg_take = pg_take,
	.pg_give = pg_give,
	.same = same,
	.append = cqc_host_append,
	.fill = cqc_host_fill,
	.part = cqc_host_part,
	.fetch = cqc_host_fetch,
	.tail_put = cqc_host_tail_put,
	.tail_take = cqc_host_tail_take,
	.place = place,
	.fence = fence,
	.batch_new = cqc_host_batch_new,
	.batch_free = batch_free,
	.batch_split = cqc_host_batch_split,
	.step_begin = step_begin,
	.step = step,
	.append_rows = cqc_host_append_rows,
	.attention = cqc_host_attention,
	.merge = cqc_host_merge,
	.hold = hold,
	.ready = ready,
	.seal = seal,
	.sealed = sealed,
	.run = nothing,
	.idle_ms = idle_ms,
	.resume = resume,
};
