// SPDX-License-Identifier: MIT
/* Look: pages of a GPU for a process that can read them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "daemon/server.h"

static void look_ok(struct cqd_req *req, struct cqd_look_batch *b, uint64_t wrong)
{
	Cqp__LookSegment seg[CQP_LOOK_SEGMENTS], *list[CQP_LOOK_SEGMENTS];
	Cqp__LookOk ok = CQP__LOOK_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	uint8_t handle[CQP_LOOK_SEGMENTS][CQD_HANDLE];
	int fds[CQP_LOOK_SEGMENTS];
	unsigned int i, n_fds = 0;
	char device[64];

	for (i = 0; i < b->n_segs; i++) {
		cqp__look_segment__init(&seg[i]);
		seg[i].bytes = b->seg[i].bytes;
		list[i] = &seg[i];
		if (!b->seg[i].handle) {
			fds[n_fds++] = b->seg[i].fd;
			continue;
		}
		memcpy(handle[i], b->seg[i].handle, CQD_HANDLE);
		seg[i].has_handle = true;
		seg[i].handle = (ProtobufCBinaryData){ CQD_HANDLE, handle[i] };
	}
	snprintf(device, sizeof(device), "%s", b->device);
	ok.device = device;
	ok.rate = b->rate;
	ok.wrong = wrong;
	ok.slots = (ProtobufCBinaryData){ b->n_slots * sizeof(b->slots[0]), (uint8_t *)b->slots };
	ok.n_segments = b->n_segs;
	ok.segments = list;
	msg.id = req->msg->id;
	msg.body_case = CQP__MSG__BODY_LOOK_OK;
	msg.look_ok = &ok;
	cqd_conn_send(req->conn, &msg, fds, n_fds);
}

/**
 * cqd_admin_look() - Look
 * @req: request
 *
 * Return: 0, answered; -ENODEV; -EINVAL; -ENOMEM.
 */
int cqd_admin_look(struct cqd_req *req)
{
	/* Static, since the loop has one thread. */
	static struct cqp_seen seen[CQP_LOOK_SLOTS];
	static struct cqd_look_batch batch;
	const Cqp__Look *look = req->msg->look;
	size_t n = look->has_seen ? look->seen.len / sizeof(*seen) : 0;
	struct cqd_conn *conn = req->conn;
	uint64_t wrong = 0;
	int ret = 0;

	if (n > ARRAY_SIZE(seen) || (n && look->seen.len % sizeof(*seen)))
		return cq_err_set(req->err, -EINVAL, "Look: %zu bytes were seen; an entry has %zu",
				  look->seen.len, sizeof(*seen));
	if (!conn->look)
		ret = cqd_look_new(conn->srv->store, look->pool, look->all, &conn->look,
				   req->err);
	if (!ret && n)
		memcpy(seen, look->seen.data, n * sizeof(*seen));
	if (!ret)
		ret = cqd_look_seen(conn->look, seen, (uint32_t)n, &wrong, req->err);
	if (ret)
		return ret;
	cqd_look_next(conn->look, &batch);
	look_ok(req, &batch, wrong);
	/* Over: the next one begins anew. */
	if (!batch.n_slots) {
		cqd_look_free(conn->look);
		conn->look = NULL;
	}
	return 0;
}
