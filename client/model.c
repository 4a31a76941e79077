// SPDX-License-Identifier: MIT
/* Models: the file from cqd, the shard of it, tables, the arena. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "client/gpu.h"

#define ORDERS_SLACK 4096

struct open_reply {
	struct cq_model *model;
	uint32_t shard;
	uint64_t conn_no;
};

/* The image: mapped where nobody can change it, else copied. */
static int image_take(struct cq_model *model, int fd, uint64_t bytes, struct cq_err *err)
{
	int seals = fcntl(fd, F_GET_SEALS);
	int ret = cqc_memfd_check(fd, bytes, "model file", err);
	void *p;

	if (ret)
		return ret;
	p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return cq_err_set(err, -ENOMEM, "cannot map the model file: %s",
				  strerror(errno));
	model->image_bytes = bytes;
	model->image_mapped = seals & F_SEAL_WRITE;
	model->image = p;
	if (model->image_mapped)
		return 0;
	model->image = malloc(bytes);
	if (model->image)
		memcpy(model->image, p, bytes);
	munmap(p, bytes);
	return model->image ? 0 : cq_err_set(err, -ENOMEM, "out of memory for the model file");
}

static bool backend_known(const struct cq_model *model, const Cqp__ModelOk *ok)
{
	Cqp__Backend b = ok->has_backend ? ok->backend : CQP__BACKEND__MEMFD;

	if (model->gpu)
		return b == CQP__BACKEND__CUDA_VMM || b == CQP__BACKEND__CUDA_IPC;
	return b == CQP__BACKEND__MEMFD;
}

static int open_take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	const Cqp__ModelOk *ok = msg->model_ok;
	struct open_reply *r = call->arg;
	struct cq_model *model = r->model;
	int ret;

	if (ok->model_hash.len != 32 || ok->root_key.len != CQ_KEY_BYTES || f->n_fds != 2)
		return cq_err_set(&call->err, -EPROTO, "cqd gave a malformed answer to ModelOpen");
	ret = image_take(model, f->fds[0], ok->model_bytes, &call->err);
	if (!ret)
		ret = cqc_state_map(model, f->fds[1], ok->state_words, &model->state,
				    &call->err);
	if (ret)
		return ret;
	if (!backend_known(model, ok))
		return cq_err_set(&call->err, -EOPNOTSUPP, "cqd shares this shard's memory in a "
				  "way that this library lacks (backend %d)",
				  ok->has_backend ? (int)ok->backend : 0);
	memcpy(model->root.b, ok->root_key.data, CQ_KEY_BYTES);
	memcpy(model->m.hash, ok->model_hash.data, 32);
	r->shard = ok->shard;
	r->conn_no = model->ctx->conn_no;
	return 0;
}

static int ask_open(struct cq_model *model, struct open_reply *r)
{
	struct cqc_call call = {
		.req.want = CQP__MSG__BODY_MODEL_OK,
		.take = open_take,
		.arg = r,
	};
	Cqp__ModelOpen mo = CQP__MODEL_OPEN__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	cqc_model_open_fill(model, &msg, &mo);
	return cqc_call(model->ctx, &call, &msg, NULL, 0, 0);
}

static int arena_take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	uint32_t *id = call->arg;

	*id = msg->arena_ok->arena;
	return 0;
}

/**
 * cqc_arena_offer() - let cqd copy out of a memfd
 * @ctx:     context, lock held
 * @shard:   number of a shard
 * @a:       mapped
 * @conn_no: connection that the number is of
 * @id:      of the arena, set on success
 *
 * Return: 0 or -errno with text.
 */
int cqc_arena_offer(struct cq_ctx *ctx, uint32_t shard, const struct cqc_arena *a,
		    uint64_t conn_no, uint32_t *id)
{
	struct cqc_call call = {
		.req.want = CQP__MSG__BODY_ARENA_OK,
		.take = arena_take,
		.arg = id,
	};
	Cqp__ArenaOffer offer = CQP__ARENA_OFFER__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	offer.shard = shard;
	offer.bytes = a->bytes;
	msg.body_case = CQP__MSG__BODY_ARENA_OFFER;
	msg.arena_offer = &offer;
	return cqc_call(ctx, &call, &msg, &a->fd, 1, conn_no);
}

/**
 * cqc_host_join() - offer the arena
 * @model:   model, its context's lock is held
 * @shard:   as answered
 * @conn_no: connection that it was answered on
 *
 * Return: 0 or -errno with text.
 */
int cqc_host_join(struct cq_model *model, uint32_t shard, uint64_t conn_no)
{
	return cqc_arena_offer(model->ctx, shard, &model->arena, conn_no, &model->arena_id);
}

static int model_shard(struct cq_model *model)
{
	const struct cqk_geom *g = &model->whole->geom;
	struct cqp_shard range = model->range;

	if (!range.layer_end)
		range.layer_end = g->n_layers;
	if (!range.head_end)
		range.head_end = g->n_kv_heads;
	return cqc_shard_make(model->whole, &range, &model->m);
}

/**
 * cqc_kernels() - what computes in this process
 * @out: set on success
 *
 * Return: 0 or -EINVAL with text: $CQ_KERNELS names none that can run.
 */
int cqc_kernels(const struct cqk_ops **out)
{
	const char *want = secure_getenv("CQ_KERNELS");

	*out = cqk_select(want);
	if (*out)
		return 0;
	return cqc_fail(-EINVAL, "CQ_KERNELS=%.32s: no such kernels, or this CPU cannot run them",
			want ? want : "");
}

static int model_tables(struct cq_model *model)
{
	const struct cqk_geom *g = &model->m.geom;
	int ret = cqc_kernels(&model->ops);

	if (ret)
		return ret;
	model->rope_mem = malloc(cqk_rope_bytes(g, g->max_position));
	if (!model->rope_mem)
		return cqc_fail(-ENOMEM, "out of memory for the RoPE tables");
	cqk_rope_init(&model->rope, g, g->max_position, model->rope_mem);
	return 0;
}

/**
 * cqc_rings_init() - rings between the threads, and page objects for them
 * @model: model
 * @pages: that may be on their way to cqd at once
 *
 * Return: 0 or -ENOMEM with text.
 */
int cqc_rings_init(struct cq_model *model, uint32_t pages)
{
	int ret = cqc_ring_init(&model->orders, pages + ORDERS_SLACK);

	if (!ret)
		ret = cqc_ring_init(&model->results, pages + 1);
	/* Pages of closed sequences that the engine still holds. */
	if (!ret)
		ret = cqc_pg_reserve(model, pages);
	return ret ? cqc_fail(ret, "out of memory for the rings") : 0;
}

/**
 * cqc_host_memory() - reserve the arena
 * @model: parsed model
 * @bytes: wanted, 0: the default
 *
 * Return: 0 or -errno with text.
 */
int cqc_host_memory(struct cq_model *model, uint64_t bytes)
{
	const struct cqk_model *m = &model->m;
	uint64_t block = ALIGN_UP(m->f16_block, 64);
	int ret;

	ret = cqc_arena_init(&model->arena, bytes ? bytes : CQC_ARENA_BLOCKS * block, block,
			     MAX(m->payload, m->sink_payload), cqc_err());
	return ret ? ret : cqc_rings_init(model, cqc_arena_chunks(&model->arena));
}

static int model_build(struct cq_model *model, const struct cq_model_opts *o)
{
	uint8_t hash[32];
	int ret;

	memcpy(hash, model->m.hash, 32);
	ret = cqk_model_parse(model->image, model->image_bytes, &model->whole, cqc_err());
	if (ret)
		return ret;
	if (memcmp(hash, model->whole->hash, 32))
		return cqc_fail(-EPROTO, "model %s: cqd's hash is not that of the file it sent",
				model->name);
	ret = model_shard(model);
	if (!ret)
		ret = model_tables(model);
	return ret ? ret : model->be->memory(model, o->arena_bytes);
}

static void model_free(struct cq_model *model)
{
	struct cq_pg *slab;

	cqc_segs_free(model);
	model->be->fini(model);
	cqc_ring_free(&model->orders);
	cqc_ring_free(&model->results);
	while ((slab = model->slabs)) {
		model->slabs = slab->next;
		free(slab);
	}
	free(model->rope_mem);
	cqc_shard_free(&model->m);
	cqk_model_free(model->whole);
	if (model->image_mapped)
		munmap(model->image, model->image_bytes);
	else
		free(model->image);
	free(model->name);
	free(model);
}

static int opts_check(const char *name, const struct cq_model_opts *o)
{
	if (!name || !*name || strlen(name) >= CQP_MAX_NAME)
		return cqc_fail(-EINVAL, "model name: 1 to %d bytes", CQP_MAX_NAME - 1);
	if (o->pad)
		return cqc_fail(-EINVAL, "cq_model_opts: pad is not 0");
	if (o->device < CQ_DEVICE_HOST)
		return cqc_fail(-EINVAL, "cq_model_opts: device %d; %d is the host, GPUs count "
					 "from 0", o->device, CQ_DEVICE_HOST);
	if (o->stream && o->device == CQ_DEVICE_HOST && !o->gpu)
		return cqc_fail(-EINVAL, "cq_model_opts: a stream, but no GPU");
	return 0;
}

static struct cq_model *model_alloc(struct cq_ctx *ctx, const char *name,
				    const struct cq_model_opts *o)
{
	/* Its rings stand on cache lines of their own. */
	struct cq_model *model = aligned_alloc(_Alignof(struct cq_model), sizeof(*model));

	if (!model)
		return NULL;
	memset(model, 0, sizeof(*model));
	model->name = strdup(name);
	if (!model->name) {
		free(model);
		return NULL;
	}
	model->magic = CQC_MODEL_MAGIC;
	model->ctx = ctx;
	model->be = &cqc_host;
	model->device = CQ_DEVICE_HOST;
	model->arena.fd = -1;
	list_init(&model->seqs);
	list_init(&model->batches);
	list_init(&model->segs);
	list_init(&model->maps);
	list_init(&model->open_req.link);
	list_init(&model->arena_req.link);
	model->range.layer_begin = o->layer_begin;
	model->range.layer_end = o->layer_end;
	model->range.head_begin = o->head_begin;
	model->range.head_end = o->head_end;
	return model;
}

static int model_setup(struct cq_model *model, const struct cq_model_opts *o)
{
	struct open_reply r = { .model = model };
	struct cq_ctx *ctx = model->ctx;
	int ret = 0;

	if (o->gpu || o->device != CQ_DEVICE_HOST)
		ret = cqc_gpu_new(model, o);
	if (ret)
		return ret;
	pthread_mutex_lock(&ctx->lock);
	ret = ask_open(model, &r);
	pthread_mutex_unlock(&ctx->lock);
	if (!ret)
		ret = model_build(model, o);
	if (ret)
		return ret;
	pthread_mutex_lock(&ctx->lock);
	ret = model->be->join(model, r.shard, r.conn_no);
	/* It may have gone together with the answer. */
	if (!ret && (ctx->conn_no != r.conn_no || ctx->link != CQC_READY))
		ret = cqc_fail(-ENOTCONN, "the connection to cqd was lost");
	if (!ret) {
		model->shard = r.shard;
		model->ready = true;
		list_add_tail(&model->link, &ctx->models);
	}
	pthread_mutex_unlock(&ctx->lock);
	return ret;
}

CQ_API int cq_model_open(struct cq_ctx *ctx, const char *name,
			 const struct cq_model_opts *opts, struct cq_model **out)
{
	struct cq_model *model;
	struct cq_model_opts o;
	int ret;

	if (!ctx || !out)
		return cqc_fail(-EINVAL, "cq_model_open: no context or no place for the result");
	ret = cqc_alive(ctx);
	if (!ret)
		ret = cqc_opts_in(&o, sizeof(o), opts, "cq_model_opts");
	if (ret)
		return ret;
	if (!opts)
		o.device = CQ_DEVICE_HOST;
	ret = opts_check(name, &o);
	if (ret)
		return ret;
	model = model_alloc(ctx, name, &o);
	if (!model)
		return cqc_fail(-ENOMEM, "out of memory");
	ret = model_setup(model, &o);
	if (ret) {
		model_free(model);
		return ret;
	}
	*out = model;
	return 0;
}

CQ_API void cq_model_close(struct cq_model *model)
{
	struct cq_ctx *ctx;

	if (!model || model->magic != CQC_MODEL_MAGIC || cqc_alive(model->ctx))
		return;
	ctx = model->ctx;
	while (!list_empty(&model->batches))
		cq_batch_free(list_first(&model->batches, struct cq_batch, link));
	while (!list_empty(&model->seqs))
		cq_seq_close(list_first(&model->seqs, struct cq_seq, link));
	cqc_results_apply(model);
	pthread_mutex_lock(&ctx->lock);
	model->be->quiet(model);
	cqc_jobs_forget(model);
	model->be->leave(model);
	list_del(&model->link);
	pthread_mutex_unlock(&ctx->lock);
	cqc_wake(ctx);
	model->magic = 0;
	model_free(model);
}

/**
 * cqc_model_check() - is it a model of this process
 * @model: the caller's
 *
 * Return: 0; -EINVAL; -EOWNERDEAD.
 */
int cqc_model_check(const struct cq_model *model)
{
	if (!model || model->magic != CQC_MODEL_MAGIC)
		return cqc_fail(-EINVAL, "not an open model");
	return cqc_alive(model->ctx);
}

CQ_API int cq_model_get_info(struct cq_model *model, struct cq_model_info *info)
{
	struct cq_model_info i;
	const struct cqk_model *m;
	int ret = cqc_model_check(model);

	if (ret)
		return ret;
	cqc_results_apply(model);
	m = &model->m;
	memset(&i, 0, sizeof(i));
	i.n_layers = m->geom.n_layers;
	i.n_heads = m->geom.n_heads;
	i.n_kv_heads = m->geom.n_kv_heads;
	i.head_dim = m->geom.head_dim;
	i.max_position = m->geom.max_position;
	i.sinks = m->sinks;
	i.window = m->window;
	i.slot_bytes = m->slot_bytes;
	i.file_bytes = model->image_bytes;
	i.arena_bytes = model->arena.bytes;
	i.arena_free = model->arena.free_bytes;
	memcpy(i.hash, m->hash, sizeof(i.hash));
	cqk_code_name(m->layers[0].k.code, i.k);
	cqk_code_name(m->layers[0].v.code, i.v);
	snprintf(i.kernels, sizeof(i.kernels), "%s", model->ops->name);
	return cqc_opts_out(info, &i, sizeof(i), "cq_model_info");
}
