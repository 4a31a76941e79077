// SPDX-License-Identifier: MIT
/*
 * Namespaces: limits, and the memfd of state words that its workers map.
 *
 * The words are a map of ranges: a segment owns [word_base, word_base + slots)
 * while it lives. Words of a dead segment keep their generation, so whoever
 * gets the range next goes on counting and no old word comes back.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

/* Room for segments that are far from full; only what is used is reserved. */
static uint64_t words_for(const struct cqd_store *st)
{
	return ALIGN_UP(4 * (uint64_t)st->ix.t_pages.n + 65536, 512);
}

/**
 * cqd_ns_by_rec() - namespace of a record
 * @st:  store
 * @rec: record number, any value
 *
 * Return: the namespace or NULL.
 */
struct cqd_ns *cqd_ns_by_rec(struct cqd_store *st, uint32_t rec)
{
	struct list_head *pos;

	list_for_each(pos, &st->namespaces)
		if (list_entry(pos, struct cqd_ns, node)->rec == rec)
			return list_entry(pos, struct cqd_ns, node);
	return NULL;
}

/**
 * cqd_ns_find() - namespace by name
 * @st:   store
 * @name: any text
 *
 * Return: the namespace or NULL.
 */
struct cqd_ns *cqd_ns_find(struct cqd_store *st, const char *name)
{
	struct list_head *pos;

	list_for_each(pos, &st->namespaces)
		if (!strcmp(list_entry(pos, struct cqd_ns, node)->name, name))
			return list_entry(pos, struct cqd_ns, node);
	return NULL;
}

/**
 * cqd_ns_attach() - the object beside a namespace record
 * @st:  store
 * @rec: record; name and state_words are filled
 * @fd:  its state memfd from the fd store, owned by the namespace on success;
 *       -1: a new one is made
 * @out: set on success
 * @err: text of the failure
 *
 * Return: 0 or -errno.
 */
int cqd_ns_attach(struct cqd_store *st, uint32_t rec, int fd, struct cqd_ns **out,
		  struct cq_err *err)
{
	const struct cqp_rec_namespace *r = &st->ix.ns[rec];
	struct cqd_ns *ns = calloc(1, sizeof(*ns));
	int ret;

	if (!ns)
		return cq_err_set(err, -ENOMEM, "no memory for a namespace");
	ns->st = st;
	ns->rec = rec;
	snprintf(ns->name, sizeof(ns->name), "%s", r->name);
	ns->quota_bytes = cqd_pools_limit(st);
	ns->quota_pages = UINT64_MAX;
	ns->quota_pins = UINT64_MAX;
	ns->priority_max = UINT8_MAX;
	ns->n_words = r->state_words;
	ns->mem = (struct cqd_mem){ .bytes = r->state_words * 8, .fd = fd, .ro_fd = -1 };
	list_init(&ns->segs);
	list_init(&ns->leafy);
	if (fd < 0)
		ret = cqd_memfd_make("cq-state", ns->mem.bytes, false, &ns->mem, err);
	else
		ret = cqd_memfd_adopt(&ns->mem, err);
	if (ret) {
		free(ns);
		return ret;
	}
	ns->words = ns->mem.base;
	list_add_tail(&ns->node, &st->namespaces);
	*out = ns;
	return 0;
}

/**
 * cqd_ns_free() - free the object; its record and stored fd stay
 * @ns: namespace without shards
 */
void cqd_ns_free(struct cqd_ns *ns)
{
	list_del(&ns->node);
	cqd_memfd_free(&ns->mem);
	free(ns->salt);
	free(ns);
}

static int ns_make(struct cqd_store *st, const char *name, struct cqd_ns **out,
		   struct cq_err *err)
{
	uint32_t rec = cqd_tab_get(&st->ix.t_ns);
	struct cqp_rec_namespace *r;
	struct cqd_ns *ns = NULL;
	char fdname[32];
	int ret;

	if (rec == CQP_NONE)
		return cq_err_set(err, -ENOSPC, "no room for namespace '%s': %u exist",
				  name, st->ix.t_ns.n);
	r = &st->ix.ns[rec];
	memset(r->name, 0, sizeof(r->name));
	snprintf(r->name, sizeof(r->name), "%s", name);
	r->state_words = words_for(st);
	ret = cqd_ns_attach(st, rec, -1, &ns, err);
	if (!ns)
		goto err_rec;
	snprintf(fdname, sizeof(fdname), "cq-state-%u", rec);
	/* No barrier: the one of the first segment comes later and covers it. */
	ret = cqd_fdstore_push(st, fdname, ns->mem.fd, CQD_FD_LATER, err);
	if (ret)
		goto err_ns;
	cqd_word_born(&r->word, CQP_SEALED);
	*out = ns;
	return 0;

err_ns:
	cqd_ns_free(ns);
err_rec:
	cqd_tab_put(&st->ix.t_ns, rec);
	return ret;
}

/**
 * cqd_ns_get() - find or make a namespace and set its limits
 * @st:   store
 * @name: of the tenant, as in cqd.conf
 * @opts: limits; the salt is that of the first call, given or not: root keys made
 *        with it are in use
 * @out:  set on success
 * @err:  text of the failure
 *
 * Return: 0; -EINVAL name; -ENOSPC; -ENOMEM; other -errno.
 */
int cqd_ns_get(struct cqd_store *st, const char *name,
	       const struct cqd_ns_opts *opts, struct cqd_ns **out,
	       struct cq_err *err)
{
	struct cqd_ns *ns;
	char *salt = NULL;
	int ret;

	if (!cqd_name_good(name))
		return cq_err_set(err, -EINVAL,
				  "namespace name must be 1 to %d printable characters",
				  CQP_MAX_NAME - 1);
	if (opts->salt) {
		salt = strdup(opts->salt);
		if (!salt)
			return cq_err_set(err, -ENOMEM, "no memory for a namespace");
	}
	ns = cqd_ns_find(st, name);
	if (!ns) {
		ret = ns_make(st, name, &ns, err);
		if (!ns) {
			free(salt);
			return ret;
		}
	}
	if (!ns->salted)
		ns->salt = salt;
	else
		free(salt);
	ns->salted = true;
	cqd_ns_limit(ns, opts->quota_bytes, opts->quota_pages, opts->quota_pins);
	ns->priority = opts->priority;
	ns->priority_max = opts->priority_max;
	ns->ttl_s = opts->ttl_s;
	*out = ns;
	return 0;
}

/**
 * cqd_ns_limit() - limits of a namespace from now on
 * @ns:    namespace
 * @bytes: of slots, sinks and arenas, 0: the limit of all pools
 * @pages: 0: no limit
 * @pins:  0: no limit
 *
 * What the namespace has above them goes turn by turn, unless it is in use;
 * nothing more gets in before.
 */
void cqd_ns_limit(struct cqd_ns *ns, uint64_t bytes, uint64_t pages, uint64_t pins)
{
	ns->quota_bytes = bytes ? bytes : cqd_pools_limit(ns->st);
	ns->quota_pages = pages ? pages : UINT64_MAX;
	ns->quota_pins = pins ? pins : UINT64_MAX;
	if (ns->used_bytes <= ns->quota_bytes && ns->pages <= ns->quota_pages)
		return;
	ns->shrinking = true;
	cqd_evict_start(ns->st);
}

/**
 * cqd_ns_room_get() - what a namespace may use, and uses
 * @ns:  namespace
 * @out: filled
 */
void cqd_ns_room_get(const struct cqd_ns *ns, struct cqd_ns_room *out)
{
	*out = (struct cqd_ns_room){
		.max_bytes = ns->quota_bytes,
		.max_pages = ns->quota_pages,
		.max_pins = ns->quota_pins,
		.bytes = ns->used_bytes,
		.pages = ns->pages,
		.pins = ns->pins,
	};
}

/**
 * cqd_ns_terms() - priority and time to live of a seal
 * @ns:       namespace of the publisher
 * @priority: asked for, NULL: the namespace's
 * @ttl_s:    asked for, NULL: the namespace's
 * @req:      filled in
 */
void cqd_ns_terms(const struct cqd_ns *ns, const uint32_t *priority,
		  const uint32_t *ttl_s, struct cqd_seal_req *req)
{
	req->priority = (uint8_t)MIN(priority ? *priority : ns->priority, ns->priority_max);
	req->ttl_s = ttl_s ? *ttl_s : ns->ttl_s;
}

/**
 * cqd_ns_name() - name of a namespace
 * @ns: namespace
 *
 * Return: its name; lives as long as the store.
 */
const char *cqd_ns_name(const struct cqd_ns *ns)
{
	return ns->name;
}

/**
 * cqd_ns_figures() - a namespace at this moment
 * @st:  store
 * @i:   number, from 0 on; one keeps its number while the store lives
 * @out: filled on success
 *
 * Return: false if there are not so many.
 */
bool cqd_ns_figures(const struct cqd_store *st, uint32_t i, struct cqd_ns_figures *out)
{
	const struct cqd_ns *ns;
	struct list_head *pos;

	list_for_each(pos, &st->namespaces) {
		if (i--)
			continue;
		ns = list_entry(pos, struct cqd_ns, node);
		*out = (struct cqd_ns_figures){
			.name = ns->name,
			.bytes = ns->used_bytes,
			.arena_bytes = ns->arena_bytes,
			.pages = ns->pages,
			.pins = ns->pins,
			.leases = ns->leases,
			.quota_bytes = ns->quota_bytes,
			.quota_pages = ns->quota_pages,
			.quota_pins = ns->quota_pins,
			.counts = &ns->counts,
		};
		return true;
	}
	return false;
}

/**
 * cqd_ns_words_get() - a range of state words for a new segment
 * @ns:  namespace
 * @seg: put on the namespace's map at the range found
 * @n:   words
 *
 * Return: 0 with seg->word_base set; -ENOSPC.
 */
int cqd_ns_words_get(struct cqd_ns *ns, struct cqd_segment *seg, uint32_t n)
{
	struct list_head *pos;
	uint64_t base = 0;

	list_for_each(pos, &ns->segs) {
		const struct cqd_segment *s = list_entry(pos, struct cqd_segment, ns_node);

		if (s->word_base - base >= n)
			break;
		base = s->word_base + s->slots;
	}
	if (pos == &ns->segs && ns->n_words - base < n)
		return -ENOSPC;
	seg->word_base = base;
	list_add_tail(&seg->ns_node, pos);
	return 0;
}

/**
 * cqd_ns_fits() - does more fit into the namespace's limits as it is?
 * @ns:    namespace
 * @bytes: more bytes
 * @pages: more pages
 *
 * Return: true if it does.
 */
bool cqd_ns_fits(const struct cqd_ns *ns, uint64_t bytes, uint64_t pages)
{
	return bytes <= ns->quota_bytes && ns->used_bytes <= ns->quota_bytes - bytes &&
	       pages <= ns->quota_pages && ns->pages <= ns->quota_pages - pages;
}

/**
 * cqd_ns_room() - does more fit into the namespace's limits?
 * @ns:    namespace
 * @bytes: more bytes
 * @pages: more pages
 *
 * Makes room by evicting the namespace's own leaves.
 *
 * Return: true if it fits now.
 */
bool cqd_ns_room(struct cqd_ns *ns, uint64_t bytes, uint64_t pages)
{
	/* Arenas and tails do not make room: then no page need go in vain. */
	if (ns->arena_bytes + ns->tail_bytes > ns->quota_bytes ||
	    bytes > ns->quota_bytes - ns->arena_bytes - ns->tail_bytes)
		return false;
	while (!cqd_ns_fits(ns, bytes, pages))
		if (!cqd_evict_one(ns->st, NULL, ns))
			return false;
	return true;
}
