// SPDX-License-Identifier: MIT
/*
 * The cache that cqd shares, through cq.h: how an engine uses libcq. Queries,
 * keys and values are views into the engine's own buffers; nothing is copied
 * or transposed for the library. With a GPU the buffers are there, and this
 * engine, which computes all else on the host, copies them (device.c).
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>
#include "client/worker/worker.h"
#include "cq.h"

#define ARENA_WAIT_MS 10000	/* for the daemon to seal what fills the arena */

static struct wk_shared *to_shared(const struct wk_cache *cache)
{
	return (struct wk_shared *)(uintptr_t)cache;	/* its first member */
}

/* Wait until something was sealed, so that arena memory came free. */
static int wait_room(struct wk_shared *sh, double until)
{
	struct pollfd p = { .fd = cq_event_fd(sh->ctx), .events = POLLIN };
	double left = until - wk_now_ms();
	uint64_t count;

	if (left <= 0)
		return -ENOBUFS;
	if (poll(&p, 1, (int)left + 1) > 0 &&
	    read(p.fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

static int shared_begin(struct wk_cache *cache, size_t n)
{
	struct wk_shared *sh = to_shared(cache);
	double until = wk_now_ms() + ARENA_WAIT_MS;
	uint32_t rows = (uint32_t)n;
	int ret;

	while ((ret = cq_step(sh->batch, &sh->seq, &rows, 1)) == -ENOBUFS)
		if (wait_room(sh, until))
			break;
	return ret ? wk_cq_error(ret, "step") : 0;
}

static struct cq_view view(float *data, size_t stride, size_t head_dim)
{
	return (struct cq_view){
		.data = data, .dtype = CQ_F32, .stride_token = (int64_t)stride,
		.stride_head = (int64_t)head_dim,
	};
}

static int attend(struct wk_shared *sh, uint32_t layer, const struct wk_rows *rows)
{
	size_t d = sh->cfg->head_dim;
	struct cq_view q = view(rows->q, rows->stride, d);
	struct cq_view k = view(rows->k, rows->stride, d);
	struct cq_view v = view(rows->v, rows->stride, d);
	struct cq_view o = view(rows->o, sh->cfg->n_heads * d, d);
	int ret;

	ret = cq_append(sh->seq, layer, &k, &v, rows->n, NULL);
	if (ret)
		return wk_cq_error(ret, "append");
	ret = cq_attention(sh->batch, layer, &q, &o, NULL);
	return ret ? wk_cq_error(ret, "attention") : 0;
}

static int shared_attend(struct wk_cache *cache, uint32_t layer,
			 const struct wk_rows *rows)
{
	struct wk_shared *sh = to_shared(cache);
	struct wk_rows on;
	int ret;

	if (!sh->dev)
		return attend(sh, layer, rows);
	ret = wk_device_in(sh->dev, rows, &on);
	if (!ret)
		ret = attend(sh, layer, &on);
	if (ret)
		return ret;
	return wk_device_out(sh->dev, rows->o, rows->n * sh->cfg->n_heads * sh->cfg->head_dim);
}

static int shared_commit(struct wk_cache *cache, const uint32_t *ids, size_t n)
{
	struct wk_shared *sh = to_shared(cache);
	double until = wk_now_ms() + ARENA_WAIT_MS;
	int ret;

	while ((ret = cq_commit(sh->seq, ids, n)) == -ENOBUFS)
		if (wait_room(sh, until))
			break;
	return ret ? wk_cq_error(ret, "commit") : 0;
}

static size_t shared_length(const struct wk_cache *cache)
{
	return cq_seq_length(to_shared(cache)->seq);
}

static const struct wk_cache_ops shared_ops = {
	.begin = shared_begin,
	.attend = shared_attend,
	.commit = shared_commit,
	.length = shared_length,
};

int wk_shared_open(struct wk_shared *sh, struct cq_ctx *ctx, const char *name, const char *gpu,
		   const struct wk_config *cfg, size_t max_rows)
{
	struct cq_model_info info = { .sz = sizeof(info) };
	struct cq_model_opts opts = { .sz = sizeof(opts), .device = CQ_DEVICE_HOST };
	int ret;

	/* A full context in fp16, its pages once more until they are sealed. */
	opts.arena_bytes = (uint64_t)(cfg->max_position + 8 * WK_PAGE) * 2 *
			   cfg->n_layers * cfg->n_kv_heads * cfg->head_dim * 4;
	memset(sh, 0, sizeof(*sh));
	sh->cache.ops = &shared_ops;
	sh->cfg = cfg;
	sh->ctx = ctx;
	if (gpu) {
		ret = wk_device_new(gpu, cfg, max_rows, &sh->dev);
		if (ret)
			return ret;
		opts.gpu = gpu;
		opts.stream = wk_device_stream(sh->dev);
	}
	ret = cq_model_open(ctx, name, &opts, &sh->model);
	if (ret) {
		wk_cq_error(ret, name);
		goto err;
	}
	ret = cq_model_get_info(sh->model, &info);
	if (!ret && (info.n_layers != cfg->n_layers || info.n_heads != cfg->n_heads ||
		     info.n_kv_heads != cfg->n_kv_heads ||
		     info.head_dim != cfg->head_dim)) {
		wk_error(-EINVAL, "model %s has another shape than the language model",
			 name);
		ret = -EINVAL;
		goto err;
	}
	if (!ret)
		ret = cq_batch_new(sh->model, 1, (uint32_t)max_rows, 0, &sh->batch);
	if (ret) {
		wk_cq_error(ret, name);
		goto err;
	}
	return 0;
err:
	wk_shared_close(sh);
	return ret;
}

void wk_shared_close(struct wk_shared *sh)
{
	wk_shared_end(sh);
	if (sh->batch)
		cq_batch_free(sh->batch);
	if (sh->model)
		cq_model_close(sh->model);
	wk_device_free(sh->dev);
	sh->batch = NULL;
	sh->model = NULL;
	sh->dev = NULL;
}

int wk_shared_start(struct wk_shared *sh, const uint32_t *ids, size_t n,
		    uint32_t flags, size_t *matched)
{
	struct cq_seq_opts opts = { .sz = sizeof(opts), .flags = flags };
	int ret;

	wk_shared_end(sh);
	ret = cq_seq_open(sh->model, ids, n, &opts, &sh->seq);
	if (ret)
		return wk_cq_error(ret, "sequence");
	*matched = cq_seq_length(sh->seq);
	return 0;
}

void wk_shared_end(struct wk_shared *sh)
{
	cq_seq_close(sh->seq);
	sh->seq = NULL;
}
