// SPDX-License-Identifier: MIT
/*
 * Clients: sessions of processes. The record in the index carries what makes
 * the process unmistakable (pid and start time), so pins outlive the daemon
 * and end with the process. Arenas and open shards live only in memory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

/* Ids are random: their low bits are a hash. */
static uint32_t *bucket(struct cqd_store *st, uint64_t session)
{
	return &st->session_hash[session & st->session_mask];
}

/**
 * cqd_client_find() - session by id
 * @st:      store
 * @session: any value
 *
 * Return: the session, connected or not; NULL if there is none.
 */
struct cqd_client *cqd_client_find(struct cqd_store *st, uint64_t session)
{
	uint32_t i = *bucket(st, session);

	while (i != CQP_NONE && st->ix.clients[i].session != session)
		i = st->client_at[i]->hash_next;
	return i == CQP_NONE ? NULL : st->client_at[i];
}

static void unhash(struct cqd_client *cl)
{
	struct cqd_store *st = cl->st;
	uint32_t *b = bucket(st, cqd_client_session(cl));

	while (*b != cl->rec)
		b = &st->client_at[*b]->hash_next;
	*b = cl->hash_next;
}

static void orphan(struct cqd_client *cl, bool is_orphan)
{
	cl->st->orphans -= cl->orphan;
	cl->st->orphans += is_orphan;
	cl->ns->counts.orphans -= cl->orphan;
	cl->ns->counts.orphans += is_orphan;
	cl->orphan = is_orphan;
}

/**
 * cqd_client_attach() - the object beside a client record
 * @st:        store
 * @ns:        its namespace
 * @rec:       filled record, its session id is nobody else's
 * @is_orphan: nobody is connected to it
 *
 * Return: a client; NULL without memory.
 */
struct cqd_client *cqd_client_attach(struct cqd_store *st, struct cqd_ns *ns,
				     uint32_t rec, bool is_orphan)
{
	struct cqd_client *cl = calloc(1, sizeof(*cl));
	uint32_t *b = bucket(st, st->ix.clients[rec].session);

	if (!cl)
		return NULL;
	cl->st = st;
	cl->ns = ns;
	cl->rec = rec;
	cl->pins = CQP_NONE;
	list_init(&cl->seals);
	list_init(&cl->arenas);
	list_init(&cl->publishes);
	list_init(&cl->leases);
	list_init(&cl->leasing);
	list_add_tail(&cl->node, &st->clients);
	st->client_at[rec] = cl;
	cl->hash_next = *b;
	*b = rec;
	orphan(cl, is_orphan);
	ns->counts.clients++;
	return cl;
}

static uint64_t new_session(struct cqd_store *st)
{
	uint64_t id;

	/* Random: tells nothing about other tenants, and cannot be guessed. */
	do {
		id = cqd_random();
	} while (!id || cqd_client_find(st, id));
	return id;
}

/**
 * cqd_client_new() - record of a process; pins are counted on it
 * @st:         store
 * @ns:         namespace it belongs to
 * @pid:        of the process
 * @start_time: of the process (with pid: its identity across restarts)
 * @uid:        of the process
 * @name:       shown by cqctl, cut to 63 bytes; NULL: none
 * @out:        set on success
 * @err:        text of the failure
 *
 * Return: 0; -ENOSPC; -ENOMEM.
 */
int cqd_client_new(struct cqd_store *st, struct cqd_ns *ns, pid_t pid,
		   uint64_t start_time, uid_t uid, const char *name,
		   struct cqd_client **out, struct cq_err *err)
{
	uint32_t rec = cqd_tab_get(&st->ix.t_clients);
	struct cqp_rec_client *r;
	struct cqd_client *cl;

	if (rec == CQP_NONE)
		return cq_err_set(err, -ENOSPC, "max_clients = %u sessions exist",
				  st->ix.t_clients.n);
	r = &st->ix.clients[rec];
	r->session = new_session(st);
	r->start_time = start_time;
	r->pid = (uint32_t)pid;
	r->uid = uid;
	r->ns = ns->rec;
	memset(r->name, 0, sizeof(r->name));
	snprintf(r->name, sizeof(r->name), "%s", name ? name : "");
	cl = cqd_client_attach(st, ns, rec, false);
	if (!cl) {
		cqd_tab_put(&st->ix.t_clients, rec);
		return cq_err_set(err, -ENOMEM, "no memory for a session");
	}
	cqd_word_born(&r->word, CQP_SEALED);
	cqd_client_changed(cl, true);
	*out = cl;
	return 0;
}

/**
 * cqd_client_resume() - session of an orphan
 * @st:         store
 * @ns:         namespace of the connection
 * @session:    as given when it was made
 * @pid:        of the peer
 * @start_time: of the peer
 *
 * Return: the session, connected again; NULL if there is none of that
 * namespace, pid and start time, or it is connected.
 */
struct cqd_client *cqd_client_resume(struct cqd_store *st, struct cqd_ns *ns,
				     uint64_t session, pid_t pid,
				     uint64_t start_time)
{
	struct cqd_client *cl = cqd_client_find(st, session);
	const struct cqp_rec_client *r;

	if (!cl || !cl->orphan || cl->ns != ns)
		return NULL;
	r = &st->ix.clients[cl->rec];
	if (r->pid != (uint32_t)pid || r->start_time != start_time)
		return NULL;
	orphan(cl, false);
	ns->counts.resumed++;
	return cl;
}

/**
 * cqd_client_set_orphan() - connected or orphaned
 * @client:    session
 * @is_orphan: the connection is gone, the process perhaps not: pins and open
 *          shards and leases stay; arenas are dropped and open seals end with
 *          -ECANCELED, since both are offered again after a reconnect
 */
void cqd_client_set_orphan(struct cqd_client *client, bool is_orphan)
{
	orphan(client, is_orphan);
	if (!is_orphan)
		return;
	cqd_seal_cancel_client(client);
	cqd_lease_cancel_client(client);
	cqd_publish_cancel_client(client);
	cqd_arena_drop_all(client);
}

/**
 * cqd_client_free() - free the object; its record stays
 * @cl: session without open seals and arenas
 */
void cqd_client_free(struct cqd_client *cl)
{
	uint32_t i;

	orphan(cl, false);
	cqd_leases_free(cl);
	cqd_imports_drop(cl);
	list_del(&cl->node);
	unhash(cl);
	cl->ns->counts.clients--;
	cl->st->client_at[cl->rec] = NULL;
	for (i = 0; i < cl->n_shards; i++) {
		cl->shards[i]->opens--;
		cl->shards[i]->model->opens--;
		cqd_shard_put(cl->shards[i]);
	}
	free(cl);
}

/**
 * cqd_client_seal() - an open seal of a session
 * @cl: session
 *
 * Return: the oldest one; NULL if none is open.
 */
struct cqd_seal_op *cqd_client_seal(struct cqd_client *cl)
{
	if (list_empty(&cl->seals))
		return NULL;
	return list_first(&cl->seals, struct cqd_seal_op, client_node);
}

/**
 * cqd_client_bye() - the process said Bye
 * @client: session
 *
 * Return: true if nothing is left of it but the record. False: work that it began may
 * still write into slots that it leased, or it may have memory open that must not be
 * freed meanwhile: all else is dropped, and the session lasts until the process is gone.
 */
bool cqd_client_bye(struct cqd_client *client)
{
	cqd_seal_cancel_client(client);
	cqd_lease_cancel_client(client);
	if (list_empty(&client->leases) && !client->n_imports)
		return true;
	cqd_leases_distrust(client);
	cqd_publish_cancel_client(client);
	cqd_pins_drop(client);
	cqd_arena_drop_all(client);
	cqd_seal_kick_all(client->st);
	return false;
}

/**
 * cqd_client_end() - the process is gone, or said Bye and has no lease
 * @client: freed; every pin, lease, arena and open seal is dropped
 */
void cqd_client_end(struct cqd_client *client)
{
	struct cqd_store *st = client->st;
	uint32_t rec = client->rec;

	/* Record first: its pins mean nothing without it. */
	cqd_word_state(&st->ix.clients[rec].word, CQP_FREE);
	cqd_seal_cancel_client(client);
	cqd_lease_cancel_client(client);
	cqd_publish_cancel_client(client);
	cqd_pins_drop(client);
	cqd_leases_drop(client);
	cqd_leases_client_gone(client);
	cqd_arena_drop_all(client);
	cqd_client_changed(client, false);
	cqd_client_free(client);
	cqd_tab_put(&st->ix.t_clients, rec);
	cqd_seal_kick_all(st);
}

/**
 * cqd_client_session() - what the client resumes with
 * @client: session
 *
 * Return: its id.
 */
uint64_t cqd_client_session(const struct cqd_client *client)
{
	return client->st->ix.clients[client->rec].session;
}

/**
 * cqd_client_ns() - namespace of a session
 * @client: session
 *
 * Return: the namespace.
 */
struct cqd_ns *cqd_client_ns(const struct cqd_client *client)
{
	return client->ns;
}

/**
 * cqd_client_pid() - process of a session
 * @client: session
 *
 * Return: its pid.
 */
pid_t cqd_client_pid(const struct cqd_client *client)
{
	return (pid_t)client->st->ix.clients[client->rec].pid;
}

/**
 * cqd_client_start_time() - of the process of a session
 * @client: session
 *
 * Return: field 22 of /proc/<pid>/stat.
 */
uint64_t cqd_client_start_time(const struct cqd_client *client)
{
	return client->st->ix.clients[client->rec].start_time;
}

/**
 * cqd_client_uid() - who a session belongs to
 * @client: session
 *
 * Return: uid of its process.
 */
uid_t cqd_client_uid(const struct cqd_client *client)
{
	return client->st->ix.clients[client->rec].uid;
}

/**
 * cqd_client_pins() - what a session holds
 * @client: session
 *
 * Return: its pins and leases.
 */
uint64_t cqd_client_pins(const struct cqd_client *client)
{
	return client->n_pins + client->n_leases;
}

/**
 * cqd_client_set_data() - connection layer's own pointer
 * @client: session
 * @data:   any
 */
void cqd_client_set_data(struct cqd_client *client, void *data)
{
	client->data = data;
}

/**
 * cqd_client_data() - connection layer's own pointer
 * @client: session
 *
 * Return: as set, NULL at first.
 */
void *cqd_client_data(const struct cqd_client *client)
{
	return client->data;
}

/**
 * cqd_client_for_each() - call a function for each session
 * @st:  store
 * @fn:  may end the one it is given, no other
 * @arg: passed to @fn
 */
void cqd_client_for_each(struct cqd_store *st,
			 void (*fn)(struct cqd_client *client, void *arg), void *arg)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &st->clients)
		fn(list_entry(pos, struct cqd_client, node), arg);
}
