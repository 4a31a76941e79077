// SPDX-License-Identifier: MIT
/* Listings for cqctl: one record at a time, the cursor is its number. */
#include <stdio.h>
#include <string.h>
#include "daemon/store_priv.h"
#include "kernels/meta.h"

static const char *shown_code(const struct cqk_model *h, bool v, char buf[16])
{
	struct cq_code first = v ? h->layers[0].v.code : h->layers[0].k.code;
	uint32_t l;

	for (l = 1; l < h->geom.n_layers; l++) {
		struct cq_code c = v ? h->layers[l].v.code : h->layers[l].k.code;

		if (memcmp(&c, &first, sizeof(c))) {
			snprintf(buf, 16, "mixed");
			return buf;
		}
	}
	return cqk_code_name(first, buf);
}

static bool model_item(struct cqd_store *st, uint32_t i, struct cqd_item *out)
{
	struct list_head *pos;
	struct cqd_model *m = NULL;

	list_for_each(pos, &st->models) {
		struct cqd_model *it = list_entry(pos, struct cqd_model, node);

		if (it->rec == i && it->ready)
			m = it;
	}
	if (!m)
		return false;
	out->name = m->name;
	out->hash = m->head->hash;
	out->bytes = m->bytes;
	out->layers = m->head->geom.n_layers;
	out->heads = m->head->geom.n_heads;
	out->kv_heads = m->head->geom.n_kv_heads;
	out->head_dim = m->head->geom.head_dim;
	out->sinks = m->head->sinks;
	out->window = m->head->window;
	out->slot_bytes = m->head->slot_bytes;
	shown_code(m->head, false, out->k);
	shown_code(m->head, true, out->v);
	cqk_rope_text(&m->head->geom, out->rope, sizeof(out->rope));
	list_for_each(pos, &st->shards) {
		const struct cqd_shard *sh = list_entry(pos, struct cqd_shard, node);

		if (sh->model == m)
			out->pages += sh->pages;
	}
	return true;
}

static bool ns_item(struct cqd_store *st, uint32_t i, struct cqd_item *out)
{
	const struct cqd_ns *ns = cqd_ns_by_rec(st, i);
	const struct cqd_ns_counts *c;
	unsigned int k;

	if (!ns)
		return false;
	c = &ns->counts;
	out->name = ns->name;
	out->bytes = ns->used_bytes;
	out->limit = ns->quota_bytes;
	out->pages = ns->pages;
	out->pins = ns->pins;
	out->lookups = c->lookups;
	out->hits = c->hits;
	out->misses = c->misses;
	out->seals = c->seals;
	out->restored = c->restored;
	for (k = 0; k < CQD_EVICT_DROPPED; k++)
		out->evictions += c->gone[k];
	return true;
}

static bool segment_item(struct cqd_store *st, uint32_t i, struct cqd_item *out)
{
	const struct cqd_segment *seg = st->segs[i];

	if (!seg)
		return false;
	snprintf(out->text, sizeof(out->text), "cq-seg-%u", seg->id);
	out->name = out->text;
	out->id = seg->id;
	out->tenant = seg->shard->ns->name;
	out->model = seg->shard->model->name;
	out->state = seg->kind == CQD_SINKS ? "sinks" : "codes";
	out->backend = cqd_pool_of(seg)->mem->name;
	out->pool = cqd_pool_of(seg)->name;
	out->bytes = seg->mem.bytes;
	out->slots = seg->slots;
	out->pages = seg->used;
	out->slot_bytes = seg->slot_bytes;
	return true;
}

static bool client_item(struct cqd_store *st, uint32_t i, struct cqd_item *out)
{
	const struct cqp_rec_client *r = &st->ix.clients[i];
	const struct cqd_client *cl = st->client_at[i];
	struct list_head *pos;

	if (!cl)
		return false;
	out->name = r->name;
	out->id = r->session;
	out->tenant = cl->ns->name;
	out->state = cl->orphan ? "orphaned" : "connected";
	out->pid = r->pid;
	out->uid = r->uid;
	out->pins = cl->n_pins;
	out->lookups = cl->lookups;
	out->hits = cl->hits;
	out->misses = cl->misses;
	out->seals = cl->sealed;
	list_for_each(pos, &cl->arenas)
		out->bytes += list_entry(pos, struct cqd_arena, node)->bytes;
	return true;
}

static bool page_item(struct cqd_store *st, uint32_t i, struct cqd_item *out)
{
	const struct cqp_rec_page *r = &st->ix.pages[i];
	const struct cqd_page *pg = &st->pages[i];
	struct cqp_key key;

	if (!pg->shard)
		return false;
	memcpy(key.b, r->key, sizeof(key.b));
	out->name = cqp_key_hex(&key, out->text);
	out->tenant = pg->shard->ns->name;
	out->model = pg->shard->model->name;
	out->state = cqd_state_name(pg->state);
	out->bytes = cqd_page_bytes(pg->shard, pg->flags & CQD_PG_SINK);
	out->pins = pg->pins;
	if (pg->state != CQP_FILLING) {
		out->depth = r->depth;
		out->age_us = cqd_now_us() - r->last_use_us;
	}
	return true;
}

static bool name_item(struct cqd_store *st, uint32_t i, struct cqd_item *out)
{
	const struct cqp_rec_name *r = &st->ix.names[i];
	const struct cqd_name *nm = &st->names[i];
	uint64_t now = cqd_now_us();

	if (!nm->shard)
		return false;
	out->name = r->name;
	out->tenant = nm->shard->ns->name;
	out->model = nm->shard->model->name;
	out->state = nm->fd < 0 ? "pin" : r->flags & CQP_NAME_ONCE ? "once" : "sequence";
	out->tokens = r->tokens;
	out->bytes = r->tail_bytes;
	if (r->page != CQP_NONE)
		out->pages = st->ix.pages[r->page].depth + 1ull;
	out->age_us = now - r->created_us;
	if (r->expires_us)
		out->left_us = r->expires_us > now ? r->expires_us - now : 1;
	return true;
}

/**
 * cqd_store_item() - one line of a listing
 * @st:     store
 * @kind:   Cqp__Kind: 0 models, 1 namespaces, 2 segments, 3 clients, 4 pages
 * @cursor: 0 = from the first; moved past the item
 * @out:    filled on success; strings hold until the loop runs on
 *
 * Return: true; false at the end or for an unknown kind.
 */
bool cqd_store_item(struct cqd_store *st, unsigned int kind, uint64_t *cursor,
		    struct cqd_item *out)
{
	static bool (*const get[])(struct cqd_store *, uint32_t, struct cqd_item *) = {
		model_item, ns_item, segment_item, client_item, page_item,
		name_item,
	};
	const uint32_t n[] = { st->ix.t_models.n, st->ix.t_ns.n, CQD_MAX_SEGMENTS,
			       st->ix.t_clients.high, st->ix.t_pages.high,
			       st->ix.t_names.high };
	uint64_t i;

	if (kind >= ARRAY_SIZE(get))
		return false;
	for (i = *cursor; i < n[kind]; i++) {
		memset(out, 0, sizeof(*out));
		if (!get[kind](st, (uint32_t)i, out))
			continue;
		*cursor = i + 1;
		return true;
	}
	return false;
}
