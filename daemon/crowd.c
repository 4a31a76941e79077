// SPDX-License-Identifier: MIT
/*
 * How many connections and sessions a uid and a namespace have, counted as they
 * come and go: nothing here looks at all of them.
 */
#include <errno.h>
#include <stdlib.h>
#include "daemon/server.h"

#define LOOK 64		/* sessions looked at for one that may go */

/**
 * cqd_uid_get() - what a uid has
 * @srv: server
 * @uid: any
 *
 * Return: its counts, which the caller raises, or calls cqd_uid_put(); NULL:
 * no memory.
 */
struct cqd_uid *cqd_uid_get(struct cqd_server *srv, uid_t uid)
{
	struct list_head *chain = &srv->uids[uid % CQD_HASH], *pos;
	struct cqd_uid *u;

	list_for_each(pos, chain) {
		u = list_entry(pos, struct cqd_uid, node);
		if (u->uid == uid)
			return u;
	}
	u = calloc(1, sizeof(*u));
	if (!u)
		return NULL;
	u->uid = uid;
	list_init(&u->idle);
	list_add(&u->node, chain);
	return u;
}

/**
 * cqd_uid_put() - a count has gone down
 * @u: freed if it has nothing left
 */
void cqd_uid_put(struct cqd_uid *u)
{
	if (u->conns || u->sessions)
		return;
	list_del(&u->node);
	free(u);
}

/**
 * cqd_crowd_idle() - a session has lost its connection, or has one again
 * @s:    session
 * @idle: it has none
 */
void cqd_crowd_idle(struct cqd_session *s, bool idle)
{
	list_del(&s->idle[CQD_OF_UID]);
	list_del(&s->idle[CQD_OF_TENANT]);
	if (!idle)
		return;
	list_add_tail(&s->idle[CQD_OF_UID], &s->uid->idle);
	if (s->tenant)
		list_add_tail(&s->idle[CQD_OF_TENANT], &s->tenant->idle);
}

/*
 * The oldest that pins nothing. Those that do go to the end of the line: a long
 * one is gone through over several calls.
 */
static struct cqd_session *oldest(struct list_head *idle, unsigned int of)
{
	struct cqd_session *s;
	struct list_head *pos;
	unsigned int i;

	for (i = 0; i < LOOK && !list_empty(idle); i++) {
		pos = idle->next;
		s = container_of(pos - of, struct cqd_session, idle[0]);
		if (!cqd_client_pins(s->client))
			return s;
		list_del(pos);
		list_add_tail(pos, idle);
	}
	return NULL;
}

/**
 * cqd_crowd_room() - may a uid have one more session in a namespace?
 * @conn: who asks
 * @t:    namespace
 * @err:  text of the failure
 *
 * A process may lose one connection after the other and never come back to the
 * sessions: they count like connections until it ends, or make room if they
 * pin nothing.
 *
 * Return: 0; -EUSERS.
 */
int cqd_crowd_room(const struct cqd_conn *conn, struct cqd_tenant *t, struct cq_err *err)
{
	struct cqd_uid *u = conn->uid;
	bool uid_full = u->sessions >= conn->srv->config->uid_connections;
	bool ns_full = t->connections && t->sessions >= t->connections;
	struct cqd_session *a = NULL, *b = NULL;

	if (uid_full)
		a = oldest(&u->idle, CQD_OF_UID);
	if (uid_full && !a)
		return cq_err_set(err, -EUSERS, "uid %u has %u sessions, its uid_connections: "
				  "some lost their connection and still pin pages",
				  (unsigned int)u->uid, u->sessions);
	if (ns_full)
		b = oldest(&t->idle, CQD_OF_TENANT);
	if (ns_full && !b)
		return cq_err_set(err, -EUSERS, "namespace \"%s\" has %u sessions, its limit of "
				  "connections: some lost theirs and still pin pages",
				  t->cfg->name, t->sessions);
	if (b && b != a)
		cqd_session_end(b);
	if (a)
		cqd_session_end(a);
	return 0;
}
