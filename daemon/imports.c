// SPDX-License-Identifier: MIT
/*
 * Who may have memory open that its holder must not free meanwhile: what a GPU's driver
 * shares by legacy handles. Nobody says when he has closed it, so a client counts from
 * when it was given the handle until its process is gone.
 *
 * An empty segment that is open somewhere stays, for pages of its own shard.
 */
#include <errno.h>
#include <stdlib.h>
#include "daemon/store_priv.h"

static uint64_t bit(const struct cqd_segment *seg)
{
	return 1ull << seg->rec % 64;
}

/**
 * cqd_import() - a client is given a segment's handle
 * @cl:  client
 * @seg: segment of a pool with a holder
 *
 * Return: 0; -ENOMEM.
 */
int cqd_import(struct cqd_client *cl, struct cqd_segment *seg)
{
	if (!cl->imports)
		cl->imports = calloc(CQD_MAX_SEGMENTS / 64, sizeof(*cl->imports));
	if (!cl->imports)
		return -ENOMEM;
	if (cl->imports[seg->rec / 64] & bit(seg))
		return 0;
	cl->imports[seg->rec / 64] |= bit(seg);
	cl->n_imports++;
	seg->importers++;
	return 0;
}

static void drop(struct cqd_client *cl, struct cqd_segment *seg)
{
	if (!cl->imports || !(cl->imports[seg->rec / 64] & bit(seg)))
		return;
	cl->imports[seg->rec / 64] &= ~bit(seg);
	cl->n_imports--;
	seg->importers--;
}

/**
 * cqd_imports_drop() - a client has nothing open any more
 * @cl: client
 */
void cqd_imports_drop(struct cqd_client *cl)
{
	uint32_t i;

	for (i = 0; cl->n_imports && i < CQD_MAX_SEGMENTS; i++)
		if (cl->st->segs[i])
			drop(cl, cl->st->segs[i]);
	free(cl->imports);
	cl->imports = NULL;
}

/**
 * cqd_imports_forget() - a segment ends
 * @seg: segment
 */
void cqd_imports_forget(struct cqd_segment *seg)
{
	struct list_head *pos;

	if (!seg->importers)
		return;
	list_for_each(pos, &seg->st->clients)
		drop(list_entry(pos, struct cqd_client, node), seg);
}

/* Members of the client's namespace were given it, or may have been. */
static bool may_have(const struct cqd_client *cl, const struct cqd_segment *seg)
{
	const uint8_t *given = cl->st->ix.segs[seg->rec].given;

	return seg->shard->ns == cl->ns || given[cl->ns->rec / 8] & 1u << cl->ns->rec % 8;
}

/**
 * cqd_adopt_imports() - whoever was there before the restart may have it open
 * @st: store with its clients and segments
 */
void cqd_adopt_imports(struct cqd_store *st)
{
	struct cqd_segment *seg;
	struct list_head *pos;
	uint32_t i;

	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = st->segs[i];
		if (!seg || !cqd_pool_of(seg)->ipc)
			continue;
		list_for_each(pos, &st->clients) {
			struct cqd_client *cl = list_entry(pos, struct cqd_client, node);

			/* Without memory for it the segment stays, until a restart. */
			if (may_have(cl, seg) && cqd_import(cl, seg))
				seg->importers++;
		}
	}
}
