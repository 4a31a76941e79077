// SPDX-License-Identifier: MIT
/*
 * Leases: slots of a device, which cqd cannot write. A worker is given some, fills
 * them with work of its own on the device, and names them when it seals.
 *
 *	FREE -> FILLING		leased: a record among the pins says to whom
 *	     -> SEALED		a seal that named the slot was published
 *	     -> FREE		given back, or the worker's process is gone
 *	     -> QUARANTINED	the worker said Bye: work that it began may still
 *				write; free when its process is gone
 *
 * The record comes before the slot's word and goes after it, so that a new daemon finds
 * every slot that somebody may be writing. One whose record or client was lost is
 * nobody's to free: it stays until every client of its namespace that was there before
 * is gone.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/adopt.h"

struct cqd_lease_op {
	struct list_head client_node, wait_node;
	struct cqd_client *client;
	struct cqd_shard *shard;
	unsigned int kind, want;
	struct cq_err err;
	cqd_lease_cb done;
	void *arg;
};

/* --- one lease --- */

/* A broken invariant: better a restart than a slot that two write. */
static void slot_event(struct cqd_place at, enum cqd_event ev)
{
	uint64_t *word = cqd_segment_word(at.seg, at.slot);
	int next = cqd_state_next(CQP_WORD_STATE(*word), ev);

	if (next < 0)
		abort();
	cqd_word_state(word, (unsigned int)next);
}

static void count(struct cqd_shard *sh, int n)
{
	sh->leases += (uint32_t)n;
	sh->ns->leases += (uint32_t)n;
}

static void attach(struct cqd_client *cl, struct cqd_lease *l)
{
	l->client = cl;
	l->at.seg->lease[l->at.slot] = l;
	list_add_tail(&l->node, &cl->leases);
	cl->n_leases++;
	count(l->at.seg->shard, 1);
}

/* The record and the object; what becomes of the slot is the caller's. */
static void detach(struct cqd_lease *l)
{
	struct cqd_store *st = l->client->st;

	cqd_word_state(&st->ix.pins[l->rec].word, CQP_FREE);
	cqd_tab_put(&st->ix.t_pins, l->rec);
	l->at.seg->lease[l->at.slot] = NULL;
	list_del(&l->node);
	l->client->n_leases--;
	count(l->at.seg->shard, -1);
	free(l);
}

/* The slot first: see above. */
static void end(struct cqd_lease *l, enum cqd_event ev)
{
	struct cqd_place at = l->at;

	slot_event(at, ev);
	at.seg->shard->ns->used_bytes -= at.seg->slot_bytes;
	detach(l);
	cqd_slot_free(at);
}

static int record(struct cqd_client *cl, struct cqd_lease *l, struct cq_err *err)
{
	struct cqd_store *st = cl->st;
	struct cqp_rec_pin *r;

	l->rec = cqd_tab_get(&st->ix.t_pins);
	if (l->rec == CQP_NONE)
		return cq_err_set(err, -ENOSPC, "max_pins = %u are all in use", st->ix.t_pins.n);
	r = &st->ix.pins[l->rec];
	r->client = cl->rec;
	r->page = CQP_NONE;
	r->count = (uint64_t)l->at.seg->rec << 32 | l->at.slot;
	r->slot_gen = CQP_WORD_GEN(*cqd_segment_word(l->at.seg, l->at.slot)) + 1;
	cqd_word_born(&r->word, CQP_SEALED);
	return 0;
}

static int room(const struct cqd_lease_op *op, struct cq_err *err)
{
	struct cqd_ns *ns = op->client->ns;

	if (op->client->n_leases >= CQD_LEASES_PER_CLIENT)
		return cq_err_set(err, -EDQUOT, "a session may lease %d slots: seal or return "
				  "some", CQD_LEASES_PER_CLIENT);
	if (ns->leases >= CQD_LEASES_PER_NS)
		return cq_err_set(err, -EDQUOT, "namespace '%s' has leased %d slots, all that it "
				  "may", ns->name, CQD_LEASES_PER_NS);
	if (!cqd_ns_room(ns, op->shard->kind[op->kind].slot_bytes, 0))
		return cq_err_set(err, -EDQUOT, "quota of '%s' is in use (%llu of %llu bytes): "
				  "raise it", ns->name, (unsigned long long)ns->used_bytes,
				  (unsigned long long)ns->quota_bytes);
	return 0;
}

static int lease_one(struct cqd_lease_op *op, struct cqp_page *out, struct cq_err *err)
{
	struct cqd_lease *l;
	int ret = room(op, err);

	if (ret)
		return ret;
	l = calloc(1, sizeof(*l));
	if (!l)
		return cq_err_set(err, -ENOMEM, "no memory for a lease");
	ret = cqd_slot_get(op->shard, op->kind, CQD_OWNER_LEASE, true, &l->at, err);
	if (ret)
		goto err_free;
	ret = record(op->client, l, err);
	if (ret)
		goto err_slot;
	if (cqd_state_next(CQP_WORD_STATE(*cqd_segment_word(l->at.seg, l->at.slot)),
			   CQD_EV_LEASE) != CQP_FILLING)
		abort();
	cqd_slot_begin(l->at);
	attach(op->client, l);
	op->shard->ns->used_bytes += l->at.seg->slot_bytes;
	*out = cqd_place_page(l->at.seg, l->at.slot);
	return 0;

err_slot:
	cqd_slot_free(l->at);
err_free:
	free(l);
	return ret;
}

/* --- requests --- */

static void op_end(struct cqd_lease_op *op, int ret, const struct cqp_page *slots,
		   unsigned int n)
{
	list_del(&op->client_node);
	list_del(&op->wait_node);
	op->done(op->arg, ret, slots, n, &op->err);
	free(op);
}

/* What there is at once, at least one. */
static void serve(struct cqd_lease_op *op)
{
	/* Static, since the loop has one thread; the callback copies. */
	static struct cqp_page slots[CQD_MAX_LEASE];
	unsigned int n = 0;
	int ret = 0;

	while (n < op->want && !ret) {
		ret = lease_one(op, &slots[n], n ? NULL : &op->err);
		n += !ret;
	}
	if (n)
		op_end(op, 0, slots, n);
	else if (ret == -EAGAIN)
		list_add_tail(&op->wait_node, &op->shard->leasing);
	else
		op_end(op, ret, NULL, 0);
}

/**
 * cqd_lease_kick() - try the requests again that wait for a slot
 * @sh: shard
 */
void cqd_lease_kick(struct cqd_shard *sh)
{
	struct cqd_lease_op *op;
	struct list_head again;

	list_take(&again, &sh->leasing);
	while (!list_empty(&again)) {
		op = list_first(&again, struct cqd_lease_op, wait_node);
		list_del(&op->wait_node);
		serve(op);
	}
}

/**
 * cqd_lease() - slots of a device that the client writes itself
 * @client: who
 * @shard:  one that it opened
 * @n:      slots wanted
 * @sink:   for sink objects
 * @done:   called on the loop, exactly once and possibly before return, with at
 *          least one slot or the failure; not called when an error is returned
 * @arg:    passed to @done
 * @err:    text of the failure
 *
 * Return: 0; -EINVAL; -ENOMEM.
 */
int cqd_lease(struct cqd_client *client, struct cqd_shard *shard, unsigned int n, bool sink,
	      cqd_lease_cb done, void *arg, struct cq_err *err)
{
	unsigned int kind = sink ? CQD_SINKS : CQD_CODES;
	struct cqd_lease_op *op;

	if (!shard->pool->mem->remote)
		return cq_err_set(err, -EINVAL, "this shard is in the host's memory: seal from "
				  "an arena");
	if (!n || n > CQD_MAX_LEASE)
		return cq_err_set(err, -EINVAL, "%u slots: 1 to %d can be leased at a time", n,
				  CQD_MAX_LEASE);
	if (!shard->kind[kind].slot_bytes)
		return cq_err_set(err, -EINVAL, "model '%s' has no sinks", shard->model->name);
	op = calloc(1, sizeof(*op));
	if (!op)
		return cq_err_set(err, -ENOMEM, "no memory for a request");
	op->client = client;
	op->shard = shard;
	op->kind = kind;
	op->want = n;
	op->done = done;
	op->arg = arg;
	list_init(&op->wait_node);
	list_add_tail(&op->client_node, &client->leasing);
	serve(op);
	return 0;
}

/**
 * cqd_lease_cancel_client() - end a client's requests
 * @cl: client
 */
void cqd_lease_cancel_client(struct cqd_client *cl)
{
	struct list_head ending, *pos, *tmp;
	struct cqd_lease_op *op;

	/* Should an answer end the client: there is nothing left to cancel then. */
	list_take(&ending, &cl->leasing);
	list_for_each_safe(pos, tmp, &ending) {
		op = list_entry(pos, struct cqd_lease_op, client_node);
		cq_err_set(&op->err, -ECANCELED, "the session ended");
		op_end(op, -ECANCELED, NULL, 0);
	}
}

/* The lease that an entry of @cl names; NULL: it names none, or one in quarantine. */
static struct cqd_lease *named(struct cqd_client *cl, const struct cqp_page *slot)
{
	struct cqd_segment *seg = cqd_segment_find(cl->st, slot->segment);
	struct cqd_lease *l;

	if (!seg || !seg->lease || slot->slot >= seg->slots)
		return NULL;
	l = seg->lease[slot->slot];
	if (!l || l->client != cl || CQP_WORD_STATE(slot->word) != CQP_FILLING ||
	    *cqd_segment_word(seg, slot->slot) != slot->word)
		return NULL;
	return l;
}

/* Why an entry names no lease of @cl: it lies, or the memory was lost with its holder. */
static int not_leased(const struct cqd_client *cl, const struct cqp_page *slot,
		      struct cq_err *err)
{
	const struct cqd_segment *seg = cqd_segment_find(cl->st, slot->segment);

	if (seg ? seg->lost : cqd_client_lost(cl))
		return cq_err_set(err, -ENODATA, "slot %u of segment %u: its memory is lost, "
				  "compute again", slot->slot, slot->segment);
	return cq_err_set(err, -EINVAL, "slot %u of segment %u: not leased by this session",
			  slot->slot, slot->segment);
}

/**
 * cqd_lease_return() - slots go back unsealed
 * @client: who leased them
 * @slots:  [n] as answered
 * @n:      entries
 * @err:    text of the failure
 *
 * Return: 0; -EINVAL an entry names no slot leased by this client; -ENODATA it is lost;
 * -EBUSY it is being sealed (entries before it are done).
 */
int cqd_lease_return(struct cqd_client *client, const struct cqp_page *slots,
		     unsigned int n, struct cq_err *err)
{
	struct cqd_lease *l;
	unsigned int i;
	int ret = 0;

	for (i = 0; i < n && !ret; i++) {
		l = named(client, &slots[i]);
		if (!l)
			ret = not_leased(client, &slots[i], err);
		else if (l->op)
			ret = cq_err_set(err, -EBUSY, "entry %u (segment %u, slot %u): is being "
					 "sealed", i, slots[i].segment, slots[i].slot);
		else
			end(l, CQD_EV_RETURN);
	}
	cqd_seal_kick_all(client->st);
	return ret;
}

static bool distrusted(const struct cqd_lease *l)
{
	return CQP_WORD_STATE(*cqd_segment_word(l->at.seg, l->at.slot)) == CQP_QUARANTINED;
}

/**
 * cqd_lease_keep() - every slot goes back but some
 * @client: who knows of these only: answers to it may have been lost
 * @slots:  [n] as answered
 * @n:      entries, may be 0
 * @err:    text of the failure
 *
 * Those that a seal names stay as well.
 *
 * Return: 0; -EINVAL an entry names no slot leased by this client, -ENODATA it is lost
 * (nothing is done).
 */
int cqd_lease_keep(struct cqd_client *client, const struct cqp_page *slots,
		   unsigned int n, struct cq_err *err)
{
	struct list_head *pos, *tmp;
	struct cqd_lease *l;
	unsigned int i;

	list_for_each(pos, &client->leases)
		list_entry(pos, struct cqd_lease, node)->kept = false;
	for (i = 0; i < n; i++) {
		l = named(client, &slots[i]);
		if (!l)
			return not_leased(client, &slots[i], err);
		l->kept = true;
	}
	list_for_each_safe(pos, tmp, &client->leases) {
		l = list_entry(pos, struct cqd_lease, node);
		if (!l->kept && !l->op && !distrusted(l))
			end(l, CQD_EV_RETURN);
	}
	cqd_seal_kick_all(client->st);
	return 0;
}

/* --- seals --- */

static int find(struct cqd_client *cl, const struct cqd_shard *sh, unsigned int kind,
		const struct cqp_page *slot, struct cqd_lease **out, struct cq_err *err)
{
	struct cqd_lease *l = named(cl, slot);

	if (!l)
		return not_leased(cl, slot, err);
	if (l->at.seg->shard != sh || l->at.seg->kind != kind)
		return cq_err_set(err, -EINVAL, "slot %u of segment %u: not %s of this shard",
				  slot->slot, slot->segment,
				  kind == CQD_SINKS ? "for sinks" : "for codes");
	if (l->op)
		return cq_err_set(err, -EBUSY, "slot %u of segment %u: is being sealed already",
				  slot->slot, slot->segment);
	*out = l;
	return 0;
}

/**
 * cqd_lease_check() - the leases that a seal names
 * @cl:    publisher
 * @sh:    shard
 * @req:   with a slot
 * @lease: filled on success
 * @err:   text of the failure
 *
 * Return: 0; -EINVAL not leased, or not for this; -ENODATA lost; -EBUSY.
 */
int cqd_lease_check(struct cqd_client *cl, const struct cqd_shard *sh,
		    const struct cqd_seal_req *req, struct cqd_lease *lease[CQD_N_KINDS],
		    struct cq_err *err)
{
	int ret = find(cl, sh, CQD_CODES, req->slot, &lease[CQD_CODES], err);

	if (!ret && req->sink_slot)
		ret = find(cl, sh, CQD_SINKS, req->sink_slot, &lease[CQD_SINKS], err);
	return ret;
}

/**
 * cqd_lease_lend() - whose bytes a seal's leases are
 * @op:   seal from leases
 * @lent: they count as the page's that is being made; else as leases
 */
void cqd_lease_lend(struct cqd_seal_op *op, bool lent)
{
	uint64_t bytes = 0;
	unsigned int k;

	if (op->lent == lent)
		return;
	op->lent = lent;
	for (k = 0; k < CQD_N_KINDS; k++)
		if (op->lease[k])
			bytes += op->lease[k]->at.seg->slot_bytes;
	if (lent)
		op->shard->ns->used_bytes -= bytes;
	else
		op->shard->ns->used_bytes += bytes;
}

/**
 * cqd_lease_unbusy() - a seal ends, and its leases stay
 * @op: seal, of any kind
 */
void cqd_lease_unbusy(struct cqd_seal_op *op)
{
	unsigned int k;

	for (k = 0; k < CQD_N_KINDS; k++)
		if (op->lease[k])
			op->lease[k]->op = NULL;
}

/**
 * cqd_lease_place() - the page is where its leases are
 * @op: seal from leases, about to be published
 */
void cqd_lease_place(struct cqd_seal_op *op)
{
	struct cqp_rec_page *r = &op->st->ix.pages[op->page];
	struct cqd_place at = op->lease[CQD_CODES]->at;

	r->segment = at.seg->rec;
	r->slot = at.slot;
	r->slot_gen = CQP_WORD_GEN(*cqd_segment_word(at.seg, at.slot));
	at.seg->owner[at.slot] = op->page;
	if (!op->lease[CQD_SINKS])
		return;
	at = op->lease[CQD_SINKS]->at;
	r->sink_segment = at.seg->rec;
	r->sink_slot = at.slot;
	r->sink_gen = CQP_WORD_GEN(*cqd_segment_word(at.seg, at.slot));
	at.seg->owner[at.slot] = op->page;
}

/**
 * cqd_lease_used() - the page has its slots, the leases are over
 * @op: seal from leases, published
 */
void cqd_lease_used(struct cqd_seal_op *op)
{
	unsigned int k;

	for (k = 0; k < CQD_N_KINDS; k++) {
		if (op->lease[k])
			detach(op->lease[k]);
		op->lease[k] = NULL;
	}
}

/* --- the end of a client --- */

/**
 * cqd_leases_drop() - the process that had leases is gone
 * @cl: client without open seals
 */
void cqd_leases_drop(struct cqd_client *cl)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &cl->leases)
		end(list_entry(pos, struct cqd_lease, node), CQD_EV_GONE);
}

/**
 * cqd_leases_distrust() - nobody will say when the process has stopped writing
 * @cl: client without open seals
 */
void cqd_leases_distrust(struct cqd_client *cl)
{
	struct list_head *pos;

	list_for_each(pos, &cl->leases)
		slot_event(list_entry(pos, struct cqd_lease, node)->at, CQD_EV_DISTRUST);
}

/**
 * cqd_leases_free() - free the objects; records and words stay
 * @cl: client of a store that closes
 */
void cqd_leases_free(struct cqd_client *cl)
{
	struct list_head *pos, *tmp;
	struct cqd_lease *l;

	list_for_each_safe(pos, tmp, &cl->leases) {
		l = list_entry(pos, struct cqd_lease, node);
		l->at.seg->lease[l->at.slot] = NULL;
		count(l->at.seg->shard, -1);
		list_del(&l->node);
		free(l);
	}
	cl->n_leases = 0;
}

/* --- restart --- */

/**
 * cqd_adopt_lost() - a slot that somebody may be writing
 * @seg:  adopted segment
 * @slot: that no page owns
 *
 * Return: false if nobody may.
 */
bool cqd_adopt_lost(struct cqd_segment *seg, uint32_t slot)
{
	unsigned int state = CQP_WORD_STATE(*cqd_segment_word(seg, slot));

	if (!seg->lease || (state != CQP_FILLING && state != CQP_QUARANTINED))
		return false;
	cqd_slot_adopt(seg, slot, CQD_OWNER_LOST);
	count(seg->shard, 1);
	seg->shard->ns->lost++;
	seg->shard->ns->used_bytes += seg->slot_bytes;
	return true;
}

/**
 * cqd_adopt_lease() - a lease's record
 * @ad: restart; slots were looked at
 * @i:  pin record without a page, SEALED
 *
 * Return: true if it holds, or was on its way in or out.
 */
bool cqd_adopt_lease(struct cqd_adopt *ad, uint32_t i)
{
	struct cqd_store *st = ad->st;
	struct cqp_rec_pin *r = &st->ix.pins[i];
	uint32_t seg_rec = (uint32_t)(r->count >> 32), slot = (uint32_t)r->count;
	struct cqd_client *cl = r->client < st->ix.t_clients.n ? st->client_at[r->client] : NULL;
	struct cqd_segment *seg = seg_rec < CQD_MAX_SEGMENTS ? st->segs[seg_rec] : NULL;
	struct cqd_lease *l;

	if (!cl || !seg || !seg->lease || slot >= seg->slots || seg->shard->ns != cl->ns)
		return false;
	if (seg->owner[slot] != CQD_OWNER_LOST ||
	    CQP_WORD_GEN(*cqd_segment_word(seg, slot)) != r->slot_gen) {
		/* Died between this and the slot's word. */
		cqd_word_state(&r->word, CQP_FREE);
		return true;
	}
	l = calloc(1, sizeof(*l));
	if (!l)
		return false;	/* stays lost */
	l->rec = i;
	l->at = (struct cqd_place){ seg, slot };
	seg->owner[slot] = CQD_OWNER_LEASE;
	cl->ns->lost--;
	count(seg->shard, -1);
	attach(cl, l);
	return true;
}

/* Leased to nobody that is known, and nobody can write it any more. */
static void free_lost_slot(struct cqd_place at)
{
	struct cqd_shard *sh = at.seg->shard;

	slot_event(at, CQD_EV_GONE);
	sh->ns->used_bytes -= at.seg->slot_bytes;
	sh->ns->lost--;
	count(sh, -1);
	cqd_slot_free(at);
}

static void free_lost(struct cqd_ns *ns)
{
	struct list_head *pos;
	struct cqd_place at;

	list_for_each(pos, &ns->segs) {
		at.seg = list_entry(pos, struct cqd_segment, ns_node);
		for (at.slot = 0; at.seg->live && at.seg->lease && at.slot < at.seg->slots;
		     at.slot++)
			if (at.seg->owner[at.slot] == CQD_OWNER_LOST)
				free_lost_slot(at);
	}
}

/**
 * cqd_leases_lose() - the memory of a segment is gone
 * @seg: segment; its leases end, but those that a seal under way names
 */
void cqd_leases_lose(struct cqd_segment *seg)
{
	struct cqd_place at = { .seg = seg };
	struct cqd_lease *l;

	for (; seg->lease && at.slot < seg->slots; at.slot++) {
		l = seg->lease[at.slot];
		if (seg->owner[at.slot] == CQD_OWNER_LOST)
			free_lost_slot(at);
		else if (l && !l->op)
			end(l, CQD_EV_GONE);
	}
}

/**
 * cqd_leases_client_gone() - a client is gone
 * @cl: client; with the last one of before the restart go lost slots
 */
void cqd_leases_client_gone(struct cqd_client *cl)
{
	if (!cl->adopted)
		return;
	cl->adopted = false;
	if (!--cl->ns->adopted && cl->ns->lost)
		free_lost(cl->ns);
}

/**
 * cqd_adopt_leases() - slots that nobody has said anything about
 * @ad: restart; every record was looked at
 */
void cqd_adopt_leases(struct cqd_adopt *ad)
{
	struct list_head *pos;
	struct cqd_segment *seg;
	struct cqd_place at;
	uint32_t i;

	list_for_each(pos, &ad->st->namespaces) {
		struct cqd_ns *ns = list_entry(pos, struct cqd_ns, node);

		if (ns->lost && !ns->adopted)
			free_lost(ns);
	}
	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		seg = ad->st->segs[i];
		for (at.slot = 0; seg && seg->lease && at.slot < seg->slots; at.slot++) {
			at.seg = seg;
			if (seg->owner[at.slot] == CQD_OWNER_LOST)
				slot_event(at, CQD_EV_DISTRUST);
		}
	}
}
