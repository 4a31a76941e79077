// SPDX-License-Identifier: MIT
/*
 * Namespaces that others may read (readable_by in cqd.conf).
 *
 * A reader's lookups go on into the namespaces that name it, and it is handed
 * their segments and state words, read-only. What it was handed it keeps: a
 * mapping cannot be taken back. So each segment's record remembers to whom it
 * was given, and when one of those may read no longer, the segment is closed:
 * the pages in it live on as before, but no new one goes there.
 */
#include <errno.h>
#include <string.h>
#include "daemon/store_priv.h"

/**
 * cqd_ns_reads() - may members of a namespace attach to another's pages?
 * @ns:    who
 * @owner: whose; also its own
 *
 * Return: true if so.
 */
bool cqd_ns_reads(const struct cqd_ns *ns, const struct cqd_ns *owner)
{
	unsigned int i;

	for (i = 0; i < ns->n_reads && ns->reads[i] != owner; i++)
		;
	return ns == owner || i < ns->n_reads;
}

/**
 * cqd_readers_begin() - nobody reads anybody
 * @st: store; until cqd_readers_end() nothing may be asked of it
 */
void cqd_readers_begin(struct cqd_store *st)
{
	struct list_head *pos;

	list_for_each(pos, &st->namespaces)
		list_entry(pos, struct cqd_ns, node)->n_reads = 0;
}

/**
 * cqd_readers_add() - one namespace reads another
 * @owner:  whose pages
 * @reader: who may attach to them
 * @err:    text of the failure
 *
 * Return: 0; -ENOSPC.
 */
int cqd_readers_add(struct cqd_ns *owner, struct cqd_ns *reader, struct cq_err *err)
{
	if (cqd_ns_reads(reader, owner))
		return 0;
	if (reader->n_reads == CQD_MAX_READS)
		return cq_err_set(err, -ENOSPC, "namespace \"%s\" may read %d others, no more",
				  reader->name, CQD_MAX_READS);
	reader->reads[reader->n_reads++] = owner;
	return 0;
}

/* Has somebody its descriptor who may not read it (any more)? */
static bool exposed(const struct cqd_segment *seg)
{
	const uint8_t *given = seg->st->ix.segs[seg->rec].given;
	const struct cqd_ns *ns;
	uint32_t i;

	for (i = 0; i < CQD_MAX_NS; i++) {
		if (!(given[i / 8] & 1u << i % 8))
			continue;
		ns = cqd_ns_by_rec(seg->st, i);
		if (!ns || !cqd_ns_reads(ns, seg->shard->ns))
			return true;
	}
	return false;
}

/**
 * cqd_readers_end() - the permissions hold from now on
 * @st: store
 *
 * A closed segment stays closed, also when the permission comes back.
 */
void cqd_readers_end(struct cqd_store *st)
{
	struct cqd_segment *seg;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (!seg || seg->closed || !exposed(seg))
			continue;
		seg->closed = true;
		st->n_closed++;
		list_del(&seg->partial_node);
	}
	cqd_closed_retire(st);
}

/**
 * cqd_closed_retire() - empty segments that nothing will ever fill
 * @st: store
 *
 * Return: true if at least one is being destroyed.
 */
bool cqd_closed_retire(struct cqd_store *st)
{
	bool any = false;
	uint32_t i;

	for (i = 0; st->n_closed && i < CQD_MAX_SEGMENTS; i++)
		if (st->segs[i] && st->segs[i]->closed && cqd_segment_retire(st->segs[i]))
			any = true;
	return any;
}

/**
 * cqd_page_foreign() - the same page in namespaces that may be read
 * @st:  store
 * @ns:  reader
 * @sh:  its shard
 * @key: key
 * @p:   CQP_NONE: from the first on; else go on behind this one
 *
 * Return: page record in state FILLING, SEALED or EVICTING; CQP_NONE.
 */
uint32_t cqd_page_foreign(struct cqd_store *st, const struct cqd_ns *ns,
			  const struct cqd_shard *sh, const struct cqp_key *key, uint32_t p)
{
	const struct cqd_shard *of;

	if (!ns->n_reads || !cqd_pool_readable(sh->pool))
		return CQP_NONE;
	p = p == CQP_NONE ? cqd_page_chain(st, key) : st->pages[p].hash_next;
	for (; p != CQP_NONE; p = st->pages[p].hash_next) {
		of = st->pages[p].shard;
		if (of->ns != ns && of->model == sh->model && of->pool == sh->pool &&
		    !memcmp(&of->range, &sh->range, sizeof(of->range)) &&
		    !memcmp(st->ix.pages[p].key, key->b, CQ_KEY_BYTES) &&
		    cqd_ns_reads(ns, of->ns))
			return p;
	}
	return CQP_NONE;
}
