// SPDX-License-Identifier: MIT
/*
 * How a seal comes in, from a worker's arena or from a file, and how it is
 * cancelled. What becomes of it in between is daemon/seal.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/save.h"
#include "daemon/seal.h"

static bool outside(const struct cqd_arena *a, uint64_t off, uint64_t len)
{
	return off > a->bytes || len > a->bytes - off;
}

static int check_arena(const struct cqd_shard *sh, const struct cqd_arena *a,
		       const struct cqd_seal_req *req, struct cq_err *err)
{
	bool sink = req->sink_offset != UINT64_MAX;

	if (sh->pool->mem->remote)
		return cq_err_set(err, -EINVAL, "pages of this shard are sealed from leased "
				  "slots, see Lease");
	if (!a)
		return cq_err_set(err, -EINVAL, "arena %u was not offered by this session",
				  req->arena);
	if (outside(a, req->offset, sh->kind[CQD_CODES].payload) ||
	    (sink && outside(a, req->sink_offset, sh->kind[CQD_SINKS].payload)))
		return cq_err_set(err, -EINVAL,
				  "page of %llu bytes at %llu lies outside arena %u of %llu bytes",
				  (unsigned long long)sh->kind[CQD_CODES].payload,
				  (unsigned long long)req->offset, a->id,
				  (unsigned long long)a->bytes);
	return 0;
}

static int check_req(const struct cqd_shard *sh, const struct cqd_seal_req *req,
		     struct cq_err *err)
{
	bool first = !memcmp(&req->parent, &sh->root, sizeof(sh->root));
	bool sink = req->slot ? req->sink_slot != NULL : req->sink_offset != UINT64_MAX;
	uint64_t sink_len = sh->kind[CQD_SINKS].payload;

	if (req->extra_len > CQP_MAX_EXTRA)
		return cq_err_set(err, -EINVAL, "extra key bytes: %zu, at most %d",
				  req->extra_len, CQP_MAX_EXTRA);
	if (sink != (first && sink_len))
		return cq_err_set(err, -EINVAL, sink ?
				  "only page 0 of a model with sinks has a sink object" :
				  "page 0 of this model needs its sink object");
	return 0;
}

static void start(struct cqd_seal_op *op, struct cqd_client *client,
		  struct cqd_shard *shard, struct cqd_arena *a, cqd_seal_cb done, void *arg)
{
	op->st = client->st;
	op->client = client;
	op->shard = shard;
	op->arena = a;
	if (a)
		kref_get(&a->ref);
	op->page = CQP_NONE;
	op->done = done;
	op->arg = arg;
	list_init(&op->wait_node);
	list_init(&op->waiters);
	list_add_tail(&op->client_node, &client->seals);
	client->n_seals++;
	shard->ns->counts.sealing++;
	cqd_seal_step(op);
}

/**
 * cqd_seal() - copy into a free slot, checksum the copy, publish; or publish what a
 * leased slot holds
 * @client: publisher; the page is pinned for it
 * @shard:  one that it opened
 * @req:    what to seal; nothing of it is kept
 * @done:   called on the loop, exactly once and possibly before return, also
 *          when the client ended meanwhile (-ECANCELED); not called when an
 *          error is returned
 * @arg:    passed to @done
 * @err:    text of the failure
 *
 * Return: 0; -EINVAL; -EBUSY the slot is being sealed; -EDQUOT too many are open;
 * -ENOMEM.
 */
int cqd_seal(struct cqd_client *client, struct cqd_shard *shard,
	     const struct cqd_seal_req *req, cqd_seal_cb done, void *arg,
	     struct cq_err *err)
{
	struct cqd_arena *a = req->slot ? NULL : cqd_arena_find(client, req->arena);
	struct cqd_lease *lease[CQD_N_KINDS] = { NULL };
	struct cqd_seal_op *op;
	unsigned int k;
	int ret;

	if (req->slot)
		ret = cqd_lease_check(client, shard, req, lease, err);
	else
		ret = check_arena(shard, a, req, err);
	if (!ret)
		ret = check_req(shard, req, err);
	if (ret)
		return ret;
	if (client->n_seals >= CQD_SEALS_PER_CLIENT)
		return cq_err_set(err, -EDQUOT, "a session may have %d seals open",
				  CQD_SEALS_PER_CLIENT);
	op = calloc(1, sizeof(*op));
	if (!op)
		return cq_err_set(err, -ENOMEM, "no memory for a seal");
	ret = cqp_key_page(&op->key, &req->parent, req->tokens, req->extra,
			   req->extra_len);
	if (ret) {
		free(op);
		return cq_err_set(err, ret, "no memory for a key");
	}
	op->parent_key = req->parent;
	op->offset = req->offset;
	op->sink_offset = req->slot ? UINT64_MAX : req->sink_offset;
	op->lo = req->check_lo;
	op->hi = req->check_hi;
	for (k = 0; k < CQD_N_KINDS; k++) {
		op->lease[k] = lease[k];
		if (lease[k])
			lease[k]->op = op;
	}
	op->ttl_s = req->ttl_s;
	op->priority = req->priority;
	start(op, client, shard, a, done, arg);
	return 0;
}

/**
 * cqd_seal_saved() - copy a page from a file and publish it
 * @client: session that holds it; the page is pinned for it
 * @shard:  to which it belongs; root is set
 * @req:    what; @req->meta->key is taken as it is
 * @done:   as for cqd_seal(); -EBADMSG: the copy has another checksum
 * @arg:    passed to @done
 * @err:    text of the failure
 *
 * Return: 0; -ENOMEM.
 */
int cqd_seal_saved(struct cqd_client *client, struct cqd_shard *shard,
		   const struct cqd_seal_saved *req, cqd_seal_cb done, void *arg,
		   struct cq_err *err)
{
	const struct cqp_save_page *m = req->meta;
	struct cqd_seal_op *op = calloc(1, sizeof(*op));

	if (!op)
		return cq_err_set(err, -ENOMEM, "no memory for a seal");
	memcpy(op->key.b, m->key, sizeof(op->key.b));
	memcpy(op->parent_key.b, m->parent, sizeof(op->parent_key.b));
	op->saved = true;
	op->depth = m->depth;	/* counts if it lay behind another namespace's */
	op->offset = req->offset;
	op->sink_offset = m->sink ? req->offset + ALIGN_UP(m->payload, CQP_SAVE_BLOCK) :
			  UINT64_MAX;
	op->want[CQD_CODES][0] = m->check_lo;
	op->want[CQD_CODES][1] = m->check_hi;
	op->want[CQD_SINKS][0] = m->sink_lo;
	op->want[CQD_SINKS][1] = m->sink_hi;
	op->ttl_s = m->ttl_s;
	/* As of a worker: its namespace may allow less by now, or be another one's. */
	op->priority = MIN(m->priority, shard->ns->priority_max);
	start(op, client, shard, req->file, done, arg);
	return 0;
}

/* --- cancelling --- */

static void cancel(struct cqd_client *cl, struct cqd_seal_op *op)
{
	list_del(&op->wait_node);
	if (op->where == CQD_SEAL_COPY) {
		/* The thread is writing: the completion undoes the rest. */
		cqd_unpin(cl, op->page);
		list_del(&op->client_node);
		cl->n_seals--;
		op->client = NULL;
		return;
	}
	cqd_seal_fail(op, cq_err_set(&op->err, -ECANCELED, "the session ended"));
}

/**
 * cqd_seal_cancel_client() - end a client's seals
 * @cl: client
 *
 * While it lasts, those of them that are woken end too.
 */
void cqd_seal_cancel_client(struct cqd_client *cl)
{
	struct cqd_seal_op *op;

	cl->cancelling = true;
	while ((op = cqd_client_seal(cl)) != NULL)
		cancel(cl, op);
	cl->cancelling = false;
}

/**
 * cqd_seal_cancel_waiting() - end every seal that no thread works on
 * @st: store that closes
 */
void cqd_seal_cancel_waiting(struct cqd_store *st)
{
	struct list_head *pos;

	list_for_each(pos, &st->clients)
		cqd_seal_cancel_client(list_entry(pos, struct cqd_client, node));
}
