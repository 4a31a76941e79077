// SPDX-License-Identifier: MIT
/* Requests about slots that workers write, and read for cqd, themselves. */
#include <endian.h>
#include <errno.h>
#include <string.h>
#include "daemon/server.h"

static void on_leased(void *arg, int ret, const struct cqp_page *slots, unsigned int n,
		      const struct cq_err *err)
{
	/* Static, since the loop has one thread. */
	static struct cqp_page copy[CQD_MAX_LEASE];
	struct cqd_pending *p = arg;
	Cqp__LeaseOk ok = CQP__LEASE_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;

	if (ret) {
		cqd_conn_error(p->conn, p->id, ret, err->text[0] ? err->text : strerror(-ret));
	} else {
		memcpy(copy, slots, n * sizeof(*slots));
		ok.slots.data = (uint8_t *)copy;
		ok.slots.len = n * sizeof(*copy);
		msg.id = p->id;
		msg.body_case = CQP__MSG__BODY_LEASE_OK;
		msg.lease_ok = &ok;
		cqd_conn_send(p->conn, &msg, NULL, 0);
	}
	cqd_pending_end(p, ret);
}

/**
 * cqd_req_lease() - Lease
 * @req: request
 *
 * Return: 0, answered now or later; -EINVAL; -ENOMEM.
 */
int cqd_req_lease(struct cqd_req *req)
{
	struct cqd_client *client = req->conn->session->client;
	const Cqp__Lease *lease = req->msg->lease;
	struct cqd_shard *shard = cqd_shard_find(client, lease->shard);
	struct cqd_pending *p;
	int ret;

	if (!shard)
		return cq_err_set(req->err, -EINVAL, "shard %u was not opened by this client",
				  lease->shard);
	p = cqd_pending_new(req->conn, req->msg->id);
	if (!p)
		return cq_err_set(req->err, -ENOMEM, "cqd is out of memory");
	ret = cqd_lease(client, shard, lease->slots, lease->has_sinks && lease->sinks,
			on_leased, p, req->err);
	if (ret)
		cqd_pending_end(p, ret);
	return ret;
}

/**
 * cqd_req_lease_return() - LeaseReturn
 * @req: request
 *
 * Return: 0, answered; -EINVAL; -EBUSY.
 */
int cqd_req_lease_return(struct cqd_req *req)
{
	static struct cqp_page slots[CQP_MAX_MSG / sizeof(struct cqp_page)];
	const Cqp__LeaseReturn *back = req->msg->lease_return;
	struct cqd_client *client = req->conn->session->client;
	size_t n = back->slots.len / sizeof(*slots);
	bool others = back->has_others && back->others;
	int ret;

	if ((!n && !others) || back->slots.len % sizeof(*slots) || n > ARRAY_SIZE(slots))
		return cq_err_set(req->err, -EINVAL, "LeaseReturn: %zu bytes of slots; an entry "
				  "has %zu", back->slots.len, sizeof(*slots));
	if (n)
		memcpy(slots, back->slots.data, back->slots.len);
	if (others)
		ret = cqd_lease_keep(client, slots, (unsigned int)n, req->err);
	else
		ret = cqd_lease_return(client, slots, (unsigned int)n, req->err);
	if (!ret)
		cqd_conn_ok(req->conn, req->msg->id);
	return ret;
}

/**
 * cqd_req_seal_slots() - slots and checks of a Seal that names leased ones
 * @seal:  with a slot
 * @slots: memory for them
 * @out:   filled in
 * @err:   text of the failure
 *
 * Return: 0; -EINVAL.
 */
int cqd_req_seal_slots(const Cqp__Seal *seal, struct cqp_page slots[2],
		       struct cqd_seal_req *out, struct cq_err *err)
{
	size_t want = seal->has_sink_slot ? 32 : 16;
	uint64_t check[2];

	if (seal->slot.len != sizeof(slots[0]) ||
	    (seal->has_sink_slot && seal->sink_slot.len != sizeof(slots[1])))
		return cq_err_set(err, -EINVAL, "Seal: slot and sink_slot have %zu bytes each",
				  sizeof(slots[0]));
	if (!seal->has_checks || seal->checks.len != want)
		return cq_err_set(err, -EINVAL, "Seal: checks has %zu bytes, there must be %zu",
				  seal->has_checks ? seal->checks.len : 0, want);
	memcpy(&slots[0], seal->slot.data, sizeof(slots[0]));
	if (seal->has_sink_slot)
		memcpy(&slots[1], seal->sink_slot.data, sizeof(slots[1]));
	memcpy(check, seal->checks.data, sizeof(check));
	out->slot = &slots[0];
	out->sink_slot = seal->has_sink_slot ? &slots[1] : NULL;
	out->check_lo = le64toh(check[0]);
	out->check_hi = le64toh(check[1]);
	return 0;
}

/**
 * cqd_req_checked() - Checked
 * @req: request
 *
 * Return: 0, answered; -EINVAL.
 */
int cqd_req_checked(struct cqd_req *req)
{
	static struct cqp_page pages[CQP_MAX_KEYS];
	static struct cqd_check checks[CQP_MAX_KEYS];
	const Cqp__Checked *said = req->msg->checked;
	size_t i, n = said->pages.len / sizeof(*pages);
	Cqp__CheckedOk ok = CQP__CHECKED_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint8_t gone[CQP_MAX_KEYS / 8];

	if (!n || n > ARRAY_SIZE(pages) || said->pages.len != n * sizeof(*pages) ||
	    said->checks.len != n * sizeof(*checks))
		return cq_err_set(req->err, -EINVAL, "Checked: %zu bytes of pages and %zu of "
				  "checks; there must be 1 to %d entries of %zu and %zu",
				  said->pages.len, said->checks.len, CQP_MAX_KEYS, sizeof(*pages),
				  sizeof(*checks));
	memcpy(pages, said->pages.data, said->pages.len);
	memcpy(checks, said->checks.data, said->checks.len);
	for (i = 0; i < n; i++) {
		checks[i].lo = le64toh(checks[i].lo);
		checks[i].hi = le64toh(checks[i].hi);
	}
	cqd_checked(req->conn->session->client, pages, checks, (unsigned int)n, gone);
	ok.gone.data = gone;
	ok.gone.len = (n + 7) / 8;
	msg.id = req->msg->id;
	msg.body_case = CQP__MSG__BODY_CHECKED_OK;
	msg.checked_ok = &ok;
	cqd_conn_send(req->conn, &msg, NULL, 0);
	return 0;
}
