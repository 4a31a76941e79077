// SPDX-License-Identifier: MIT
/*
 * Shards: namespace x model x range of layers and kv heads x pool. A shard owns
 * the segments of its pages and the LRU list of its leaves.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

/* Sizes of a page and of a sink object of a part of the model. */
static void sizes(struct cqd_shard *sh)
{
	const struct cqk_model *h = sh->model->head;
	const struct cqp_shard *r = &sh->range;
	uint64_t heads = r->head_end - r->head_begin, payload = 0;
	uint32_t l;

	for (l = r->layer_begin; l < r->layer_end; l++)
		payload += heads * (h->layers[l].k_bytes + h->layers[l].v_bytes);
	sh->kind[CQD_CODES].payload = payload;
	sh->kind[CQD_CODES].slot_bytes = cq_slot_bytes(payload);
	if (!h->sinks)
		return;
	payload = cq_f16_block_bytes(r->layer_end - r->layer_begin, (uint32_t)heads,
				     h->geom.head_dim, h->sinks);
	sh->kind[CQD_SINKS].payload = payload;
	sh->kind[CQD_SINKS].slot_bytes = cq_slot_bytes(payload);
}

static struct cqd_shard *find(struct cqd_ns *ns, const struct cqd_model *m,
			      const struct cqd_pool *pool, const struct cqp_shard *range)
{
	struct list_head *pos;

	list_for_each(pos, &ns->st->shards) {
		struct cqd_shard *sh = list_entry(pos, struct cqd_shard, node);

		if (sh->ns == ns && sh->model == m && sh->pool == pool &&
		    !memcmp(&sh->range, range, sizeof(*range)))
			return sh;
	}
	return NULL;
}

/**
 * cqd_shard_make() - find or make a shard
 * @ns:    namespace
 * @m:     model
 * @pool:  where its segments are
 * @range: resolved range
 * @out:   set on success
 * @err:   text of the failure
 *
 * Return: 0; -EINVAL range; -ENOMEM.
 */
int cqd_shard_make(struct cqd_ns *ns, struct cqd_model *m, struct cqd_pool *pool,
		   const struct cqp_shard *range, struct cqd_shard **out,
		   struct cq_err *err)
{
	const struct cqk_geom *g = &m->head->geom;
	struct cqd_shard *sh;
	unsigned int k;

	if (range->layer_begin >= range->layer_end || range->layer_end > g->n_layers ||
	    range->head_begin >= range->head_end || range->head_end > g->n_kv_heads)
		return cq_err_set(err, -EINVAL,
				  "layers %u-%u, kv heads %u-%u: '%s' has %u and %u",
				  range->layer_begin, range->layer_end, range->head_begin,
				  range->head_end, m->name, g->n_layers, g->n_kv_heads);
	sh = find(ns, m, pool, range);
	if (sh) {
		*out = sh;
		return 0;
	}
	sh = calloc(1, sizeof(*sh));
	if (!sh)
		return cq_err_set(err, -ENOMEM, "no memory for a shard");
	sh->st = ns->st;
	sh->ns = ns;
	sh->model = m;
	sh->pool = pool;
	sh->range = *range;
	list_init(&sh->leafy);
	list_init(&sh->ns_leafy);
	list_init(&sh->waiting);
	list_init(&sh->leasing);
	for (k = 0; k < CQD_N_KINDS; k++)
		list_init(&sh->kind[k].partial);
	sizes(sh);
	m->shards++;
	list_add_tail(&sh->node, &ns->st->shards);
	*out = sh;
	return 0;
}

/**
 * cqd_shard_free() - free the object
 * @sh: without segments, pages or seals
 */
void cqd_shard_free(struct cqd_shard *sh)
{
	list_del(&sh->node);
	list_del(&sh->leafy);
	list_del(&sh->ns_leafy);
	cqd_model_put(sh->model);
	free(sh->lru);
	free(sh);
}

/**
 * cqd_shard_put() - forget a shard in which nothing is left
 * @sh: shard; freed unless it is open, has pages, names or segments
 */
void cqd_shard_put(struct cqd_shard *sh)
{
	if (!sh->opens && !sh->pages && !sh->names && !sh->leases &&
	    list_empty(&sh->waiting) && list_empty(&sh->leasing) &&
	    !sh->kind[0].segments && !sh->kind[1].segments &&
	    !sh->kind[0].creating && !sh->kind[1].creating)
		cqd_shard_free(sh);
}

/* Number by which the client's messages name the shard: its own counting, so
 * that it tells nothing about other tenants. */
static uint32_t open_in(struct cqd_client *cl, struct cqd_shard *sh)
{
	uint32_t i;

	for (i = 0; i < cl->n_shards; i++)
		if (cl->shards[i] == sh)
			return i + 1;
	if (cl->n_shards == CQD_SHARDS_PER_CLIENT)
		return 0;
	cl->shards[cl->n_shards++] = sh;
	sh->opens++;
	sh->model->opens++;
	return cl->n_shards;
}

/**
 * cqd_shard_root() - key(-1) of a shard
 * @sh:  shard; its root is set from now on
 * @err: text of the failure
 *
 * Return: 0; -ENOENT the namespace was taken over from the daemon before and is not
 * in cqd.conf, so nobody knows its salt; -ENOMEM.
 */
int cqd_shard_root(struct cqd_shard *sh, struct cq_err *err)
{
	const struct cqk_model *h = sh->model->head;
	const char *salt = sh->ns->salt;

	if (sh->has_root)
		return 0;
	if (!sh->ns->salted)
		return cq_err_set(err, -ENOENT, "namespace '%s' is not in cqd.conf",
				  sh->ns->name);
	if (cqp_key_root(&sh->root, h->hash, h->fingerprint, &sh->range, NULL, 0,
			 salt, salt ? strlen(salt) : 0))
		return cq_err_set(err, -ENOMEM, "no memory for a key");
	sh->has_root = true;
	return 0;
}

static int pool_for(struct cqd_store *st, const char *device, struct cqd_pool **out,
		    struct cq_err *err)
{
	*out = device ? cqd_pool_find(st, device) : st->pool;
	if (!*out)
		return cq_err_set(err, -ENODEV, "cqd has no memory on %.63s: no [gpu] section "
				  "of its cqd.conf names it", device);
	return (*out)->ready ? 0 : cqd_pool_unready(*out, err);
}

/**
 * cqd_shard_get_on() - a client opens a shard in some memory
 * @client: who
 * @model:  name
 * @range:  ends 0 = up to the model's end
 * @device: UUID, any text; NULL: the host's memory
 * @out:    set on success
 * @info:   filled on success
 * @err:    text of the failure
 *
 * Return: 0; -ENOENT no such model; -EINVAL range; -ENODEV no such device, or it
 * cannot be used; -ENODATA the holder of its memory is not there; -ENOSPC too many
 * shards open in this client; -ENOMEM.
 */
int cqd_shard_get_on(struct cqd_client *client, const char *model,
		     const struct cqp_shard *range, const char *device,
		     struct cqd_shard **out, struct cqd_shard_info *info,
		     struct cq_err *err)
{
	struct cqd_model *m = cqd_model_find(client->st, model);
	struct cqp_shard r = *range;
	struct cqd_pool *pool;
	struct cqd_shard *sh;
	int ret;

	if (!m || !m->ready)
		return cq_err_set(err, -ENOENT,
				  "no model '%s' is loaded: cqctl load it first", model);
	if (!r.layer_end)
		r.layer_end = m->head->geom.n_layers;
	if (!r.head_end)
		r.head_end = m->head->geom.n_kv_heads;
	ret = pool_for(client->st, device, &pool, err);
	if (ret)
		return ret;
	ret = cqd_shard_make(client->ns, m, pool, &r, &sh, err);
	if (ret)
		return ret;
	ret = cqd_shard_root(sh, err);
	if (ret)
		goto err_put;
	info->id = open_in(client, sh);
	if (!info->id) {
		ret = cq_err_set(err, -ENOSPC, "a session may open %d shards",
				 CQD_SHARDS_PER_CLIENT);
		goto err_put;
	}
	info->kind = pool->mem->kind;
	memcpy(info->hash, m->head->hash, sizeof(info->hash));
	info->root = sh->root;
	info->model_bytes = m->bytes;
	info->state_words = client->ns->n_words;
	info->model_fd = m->fd;
	info->state_fd = client->ns->mem.ro_fd;
	*out = sh;
	return 0;

err_put:
	cqd_shard_put(sh);
	return ret;
}

/**
 * cqd_shard_get() - a client opens a shard in the host's memory
 * @client: who
 * @model:  name
 * @range:  ends 0 = up to the model's end
 * @out:    set on success
 * @info:   filled on success
 * @err:    text of the failure
 *
 * Return: as cqd_shard_get_on().
 */
int cqd_shard_get(struct cqd_client *client, const char *model,
		  const struct cqp_shard *range, struct cqd_shard **out,
		  struct cqd_shard_info *info, struct cq_err *err)
{
	return cqd_shard_get_on(client, model, range, NULL, out, info, err);
}

/**
 * cqd_shard_find() - shard of a message
 * @client: sender
 * @id:     as given by cqd_shard_get()
 *
 * Return: the shard; NULL unless this client opened it.
 */
struct cqd_shard *cqd_shard_find(struct cqd_client *client, uint32_t id)
{
	return id && id <= client->n_shards ? client->shards[id - 1] : NULL;
}
