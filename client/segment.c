// SPDX-License-Identifier: MIT
/*
 * Segments and state words: asked for once per connection, checked, mapped
 * read-only and kept until the model is closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "client/gpu.h"

#define HUGE_BYTES (2u << 20)

/**
 * cqc_memfd_check() - may a descriptor be mapped without fear of SIGBUS
 * @fd:    from the daemon
 * @bytes: what must be there
 * @what:  for the text
 * @err:   text, may be NULL
 *
 * Return: 0 or -EPROTO.
 */
int cqc_memfd_check(int fd, uint64_t bytes, const char *what, struct cq_err *err)
{
	struct stat st;
	int seals;

	seals = fcntl(fd, F_GET_SEALS);
	if (fstat(fd, &st) < 0 || seals < 0 || !(seals & F_SEAL_SHRINK))
		return cq_err_set(err, -EPROTO, "%s: cqd sent no memfd sealed against "
						"shrinking", what);
	if (!bytes || bytes > INT64_MAX || (uint64_t)st.st_size < bytes)
		return cq_err_set(err, -EPROTO, "%s: cqd says %llu bytes, its memfd has %lld",
				  what, (unsigned long long)bytes, (long long)st.st_size);
	return 0;
}

/**
 * cqc_state_map() - map state words
 * @model: model, lock held
 * @fd:    from the daemon, not taken
 * @n:     words
 * @out:   set on success; the model's until it is closed
 * @err:   text, may be NULL
 *
 * Return: 0; -EPROTO; -ENOMEM.
 */
int cqc_state_map(struct cq_model *model, int fd, uint64_t n, struct cqc_state_map **out,
		  struct cq_err *err)
{
	struct cqc_state_map *map;
	struct list_head *pos;
	struct stat st;
	void *p;
	int ret;

	if (n > UINT64_MAX / 8)
		return cq_err_set(err, -EPROTO, "state words: impossible number");
	ret = cqc_memfd_check(fd, n * 8, "state words", err);
	if (ret)
		return ret;
	if (fstat(fd, &st) < 0)
		return -errno;
	list_for_each(pos, &model->maps) {
		map = list_entry(pos, struct cqc_state_map, link);
		if (map->dev == st.st_dev && map->ino == st.st_ino && map->n == n) {
			*out = map;
			return 0;
		}
	}
	map = calloc(1, sizeof(*map));
	if (!map)
		return cq_err_set(err, -ENOMEM, "out of memory");
	p = mmap(NULL, n * 8, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		free(map);
		return cq_err_set(err, -ENOMEM, "cannot map %llu state words: %s",
				  (unsigned long long)n, strerror(errno));
	}
	map->words = p;
	map->n = n;
	map->dev = st.st_dev;
	map->ino = st.st_ino;
	list_add(&map->link, &model->maps);
	*out = map;
	return 0;
}

/**
 * cqc_seg_find() - segment of this boot of the daemon
 * @model: model, lock held
 * @id:    segment
 *
 * Return: it, mapped or not; NULL.
 */
struct cqc_seg *cqc_seg_find(struct cq_model *model, uint32_t id)
{
	struct list_head *pos;

	list_for_each(pos, &model->segs) {
		struct cqc_seg *seg = list_entry(pos, struct cqc_seg, link);

		if (seg->id == id && seg->epoch == model->ctx->boot_epoch)
			return seg;
	}
	return NULL;
}

/*
 * At a multiple of 2 MiB: only there can the kernel map the huge pages that cqd
 * may have put the segment into.
 */
static void *map_aligned(int fd, uint64_t bytes)
{
	char *area, *base;
	uint64_t pad;
	void *p;

	if (bytes < HUGE_BYTES)
		return mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	area = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return MAP_FAILED;
	pad = ALIGN_UP((uintptr_t)area, HUGE_BYTES) - (uintptr_t)area;
	base = area + pad;
	p = mmap(base, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	if (p == MAP_FAILED) {
		munmap(area, bytes + HUGE_BYTES);
		return p;
	}
	bytes = ALIGN_UP(bytes, CQ_SLOT_ALIGN);
	if (pad)
		munmap(area, pad);
	if (pad < HUGE_BYTES)
		munmap(base + bytes, HUGE_BYTES - pad);
	return p;
}

/**
 * cqc_host_seg_map() - map a memfd
 * @seg:   segment
 * @fd:    from the daemon, not taken
 * @handle: unused: the host's segments have descriptors
 *
 * Return: 0; -EPROTO; other -errno of mmap().
 */
int cqc_host_seg_map(struct cqc_seg *seg, int fd, const uint8_t *handle)
{
	int ret = cqc_memfd_check(fd, seg->bytes, "segment", NULL);
	void *p;

	if (ret)
		return ret;
	p = map_aligned(fd, seg->bytes);
	if (p == MAP_FAILED)
		return -errno;
	seg->base = p;
	return 0;
}

static int seg_map(struct cqc_seg *seg, const Cqp__SegmentOk *ok, struct cqp_frame *f)
{
	bool ipc = ok->has_backend && ok->backend == CQP__BACKEND__CUDA_IPC;
	struct cqc_state_map *state = seg->model->state;
	int ret;

	/* A segment of another namespace comes with that one's state words. */
	if (f->n_fds != !ipc + (ok->has_state_words ? 1u : 0u) ||
	    (ipc && (!seg->model->gpu || ok->handle.len != CQC_IPC_HANDLE)))
		return -EPROTO;
	if (ok->has_state_words) {
		ret = cqc_state_map(seg->model, f->fds[!ipc], ok->state_words, &state, NULL);
		if (ret)
			return ret;
	}
	if (ok->segment != seg->id || !ok->slots ||
	    ok->slot_bytes < sizeof(struct cq_page_hdr) ||
	    ok->slot_bytes % CQ_SLOT_ALIGN || ok->bytes / ok->slots < ok->slot_bytes)
		return -EPROTO;
	if (ok->word_base > state->n || ok->slots > state->n - ok->word_base)
		return -EPROTO;
	seg->bytes = ok->bytes;
	seg->slot_bytes = ok->slot_bytes;
	seg->slots = ok->slots;
	seg->words = state->words + ok->word_base;
	return seg->model->be->seg_map(seg, ipc ? -1 : f->fds[0], ok->handle.data);
}

static void seg_done(struct cq_ctx *ctx, struct cqc_req *req, int ret,
		     const Cqp__Msg *msg, struct cqp_frame *f)
{
	struct cqc_seg *seg = container_of(req, struct cqc_seg, req);

	if (!ret)
		ret = seg_map(seg, msg->segment_ok, f);
	if (ret && ret != -ENOTCONN && seg->model->gpu && seg->model->gpu->leases)
		cqc_gpu_seg_gone(seg->model, seg->id);
	if (ret) {
		list_del(&seg->link);	/* asked again by whoever still needs it */
		free(seg);
	}
	/* A daemon that lies about its segments is met again from the start. */
	if (ret && ret != -ENOTCONN && ret != -ENOENT && ret != -ENOMEM && ret != -ENODATA)
		cqc_conn_drop(ctx, ret);
}

/**
 * cqc_seg_want() - segment, asked for if need be
 * @model: model, lock held
 * @id:    segment
 *
 * Return: it, base NULL until it has arrived; NULL: cannot be asked now.
 */
struct cqc_seg *cqc_seg_want(struct cq_model *model, uint32_t id)
{
	Cqp__SegmentGet get = CQP__SEGMENT_GET__INIT;
	struct cqc_seg *seg = cqc_seg_find(model, id);
	Cqp__Msg msg = CQP__MSG__INIT;

	if (seg)
		return seg;
	seg = calloc(1, sizeof(*seg));
	if (!seg)
		return NULL;
	seg->model = model;
	seg->id = id;
	seg->epoch = model->ctx->boot_epoch;
	seg->req.want = CQP__MSG__BODY_SEGMENT_OK;
	seg->req.done = seg_done;
	get.segment = id;
	msg.body_case = CQP__MSG__BODY_SEGMENT_GET;
	msg.segment_get = &get;
	if (cqc_send(model->ctx, &seg->req, &msg, NULL, 0)) {
		free(seg);
		return NULL;
	}
	list_add(&seg->link, &model->segs);
	return seg;
}

/**
 * cqc_seg_get() - segment, waiting until it is mapped
 * @model: model, lock held
 * @id:    segment
 * @out:   set on success
 *
 * Return: 0; -ENOTCONN; -ENOENT; -ETIMEDOUT.
 */
int cqc_seg_get(struct cq_model *model, uint32_t id, struct cqc_seg **out)
{
	struct cq_ctx *ctx = model->ctx;
	int64_t deadline = cqc_now_ms() + ctx->timeout_ms;
	uint64_t conn = ctx->conn_no;
	struct cqc_seg *seg;
	bool asked = false;
	int ret;

	for (;;) {
		if (ctx->conn_no != conn || ctx->link != CQC_READY)
			return -ENOTCONN;
		seg = cqc_seg_find(model, id);
		if (seg && seg->base) {
			*out = seg;
			return 0;
		}
		if (!seg && asked)
			return -ENOENT;
		if (!seg)
			asked = cqc_seg_want(model, id);
		ret = cqc_wait(ctx, deadline);
		if (ret)
			return ret;
	}
}

/**
 * cqc_segs_lost() - forget questions of a lost connection
 * @model: model, lock held
 */
void cqc_segs_lost(struct cq_model *model)
{
	struct list_head *pos, *tmp;

	/* Requests are over already; only mapped segments are left. */
	list_for_each_safe(pos, tmp, &model->segs) {
		struct cqc_seg *seg = list_entry(pos, struct cqc_seg, link);

		if (seg->base)
			continue;
		list_del(&seg->link);
		free(seg);
	}
}

/**
 * cqc_segs_free() - unmap everything
 * @model: about to be freed
 */
void cqc_segs_free(struct cq_model *model)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &model->segs) {
		struct cqc_seg *seg = list_entry(pos, struct cqc_seg, link);

		if (seg->base)
			model->be->seg_unmap(seg);
		free(seg);
	}
	list_for_each_safe(pos, tmp, &model->maps) {
		struct cqc_state_map *map = list_entry(pos, struct cqc_state_map, link);

		munmap((void *)(uintptr_t)map->words, map->n * 8);
		free(map);
	}
}

/**
 * cqc_slot_at() - where the header of a page would be
 * @model: model
 * @seg:   mapped segment
 * @page:  the daemon's words
 * @kind:  enum cq_page_kind
 *
 * Return: address for the model's backend; NULL: not in the segment.
 */
const uint8_t *cqc_slot_at(const struct cq_model *model, const struct cqc_seg *seg,
			   const struct cqp_page *page, uint32_t kind)
{
	uint64_t payload = kind == CQ_PAGE_SINK ? model->m.sink_payload : model->m.payload;

	if (CQP_WORD_STATE(page->word) != CQP_SEALED || page->slot >= seg->slots ||
	    seg->slot_bytes < sizeof(struct cq_page_hdr) + payload)
		return NULL;
	return seg->base + page->slot * seg->slot_bytes;
}

/**
 * cqc_slot_is() - is a page what the daemon says?
 * @model: model
 * @seg:   mapped segment
 * @page:  the daemon's words, with a place in @seg
 * @kind:  enum cq_page_kind
 * @key:   key wanted
 * @hdr:   header, as read since @page was given
 * @out:   filled on success
 *
 * Return: 0; -EPROTO it is not; -ESTALE it has gone meanwhile.
 */
int cqc_slot_is(const struct cq_model *model, const struct cqc_seg *seg,
		const struct cqp_page *page, uint32_t kind, const struct cqp_key *key,
		const struct cq_page_hdr *hdr, struct cqc_slot *out)
{
	uint64_t payload = kind == CQ_PAGE_SINK ? model->m.sink_payload : model->m.payload;
	const uint64_t *word = seg->words + page->slot;

	/* Pairs with the store of the word after the slot was filled: a header
	 * read while the word was right is the page's own. */
	smp_rmb();
	if (smp_load_acquire(word) != page->word)
		return -ESTALE;
	if (hdr->magic != CQ_PAGE_MAGIC || hdr->version != CQ_PAGE_VERSION ||
	    hdr->kind != kind || hdr->incompat || hdr->payload != payload ||
	    memcmp(hdr->model_tag, model->m.hash, sizeof(hdr->model_tag)) ||
	    memcmp(hdr->key, key->b, sizeof(hdr->key)))
		return -EPROTO;
	out->data = seg->base + page->slot * seg->slot_bytes + sizeof(*hdr);
	out->word = word;
	out->expect = page->word;
	out->mask = ~0ull;
	out->check[0] = hdr->check_lo;
	out->check[1] = hdr->check_hi;
	return 0;
}

/**
 * cqc_slot_check() - is a page where the daemon says, and what it says
 * @model: model, lock held
 * @seg:   mapped segment
 * @page:  the daemon's words
 * @kind:  enum cq_page_kind
 * @key:   key wanted
 * @out:   filled on success
 *
 * Return: 0; -EPROTO it is not; -ESTALE it has gone meanwhile; -errno of the device.
 */
int cqc_slot_check(struct cq_model *model, const struct cqc_seg *seg,
		   const struct cqp_page *page, uint32_t kind,
		   const struct cqp_key *key, struct cqc_slot *out)
{
	const uint8_t *slot = cqc_slot_at(model, seg, page, kind);
	struct cq_page_hdr hdr;
	int ret;

	if (!slot)
		return -EPROTO;
	ret = model->be->headers(model, &slot, 1, &hdr);
	return ret ? ret : cqc_slot_is(model, seg, page, kind, key, &hdr, out);
}
