// SPDX-License-Identifier: MIT
/*
 * Who is behind a connection: its namespace, decided from the socket reached
 * and the peer's uid, and its client record, which holds pins until the process
 * is gone.
 *
 *	Hello    a client is made or, after a broken connection, taken up again
 *	EOF      the client becomes an orphan: its pins stay
 *	pidfd    the process is gone: everything it held is free in the same turn
 *	         of the loop, if its sessions are not very many
 *	Bye      the same, at once, but for slots of a GPU that it may be writing
 */
#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/server.h"

/* --- tenants --- */

static struct cqd_tenant *tenant_of(struct cqd_server *srv, const struct cqd_ns *ns)
{
	struct list_head *pos;
	struct cqd_tenant *t;

	list_for_each(pos, &srv->tenants) {
		t = list_entry(pos, struct cqd_tenant, node);
		if (t->ns == ns)
			return t;
	}
	return NULL;
}

static struct cqd_tenant *tenant_named(struct cqd_server *srv, const char *name)
{
	struct list_head *pos;
	struct cqd_tenant *t;

	list_for_each(pos, &srv->tenants) {
		t = list_entry(pos, struct cqd_tenant, node);
		if (t->cfg && !strcmp(t->cfg->name, name))
			return t;
	}
	return NULL;
}

/* Who reads whom. A namespace that could not be made reads nothing. */
static int readers_apply(struct cqd_server *srv, const struct cqd_config *cfg,
			 struct cq_err *err)
{
	struct cqd_tenant *owner, *reader;
	unsigned int i, j;
	int ret = 0;

	cqd_readers_begin(srv->store);
	for (i = 0; i < cfg->n_ns; i++) {
		owner = tenant_named(srv, cfg->ns[i].name);
		for (j = 0; owner && j < cfg->ns[i].readable_by.n; j++) {
			reader = tenant_named(srv, cfg->ns[i].readable_by.name[j]);
			if (reader && !ret)
				ret = cqd_readers_add(owner->ns, reader->ns, err);
		}
	}
	cqd_readers_end(srv->store);
	return ret;
}

static int tenant_apply(struct cqd_server *srv, const struct cqd_ns_config *cfg,
			struct cq_err *err)
{
	struct cqd_ns_opts opts = {
		.quota_bytes = cfg->quota_bytes.bytes,
		.quota_pages = cfg->quota_pages,
		.quota_pins = cfg->quota_pins,
		.salt = cfg->salt,
		.priority = (uint8_t)cfg->priority,
		.priority_max = (uint8_t)cfg->priority_max,
		.ttl_s = cfg->ttl_s,
	};
	struct cqd_tenant *t;
	struct cqd_ns *ns;
	int ret;

	ret = cqd_ns_get(srv->store, cfg->name, &opts, &ns, err);
	if (ret)
		return ret;
	t = tenant_of(srv, ns);
	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t)
			return cq_err_set(err, -ENOMEM, "out of memory");
		t->ns = ns;
		list_init(&t->node);
		list_init(&t->idle);
	}
	/* In the order of the file: pick() takes the first. */
	list_del(&t->node);
	list_add_tail(&t->node, &srv->tenants);
	t->cfg = cfg;
	t->connections = cfg->connections;
	return 0;
}

/**
 * cqd_tenants_apply() - take over the namespaces of a configuration
 * @srv: server
 * @cfg: stays alive until the next call
 * @err: text of the failure
 *
 * Sessions inside stay, whatever the new file says; it decides who enters.
 *
 * Return: 0, or -errno of the first section that failed; the others are taken.
 */
int cqd_tenants_apply(struct cqd_server *srv, const struct cqd_config *cfg,
		      struct cq_err *err)
{
	struct list_head *pos;
	unsigned int i;
	int ret = 0, one;

	list_for_each(pos, &srv->tenants)
		list_entry(pos, struct cqd_tenant, node)->cfg = NULL;
	for (i = 0; i < cfg->n_ns; i++) {
		one = tenant_apply(srv, &cfg->ns[i], ret ? NULL : err);
		if (one && !ret)
			ret = one;
	}
	one = readers_apply(srv, cfg, ret ? NULL : err);
	return ret ? ret : one;
}

/**
 * cqd_tenant_find() - namespace of the configuration in force
 * @srv:  server
 * @name: any text
 *
 * Return: the tenant or NULL.
 */
struct cqd_tenant *cqd_tenant_find(struct cqd_server *srv, const char *name)
{
	struct cqd_ns *ns = cqd_ns_find(srv->store, name);

	return ns ? tenant_of(srv, ns) : NULL;
}

/**
 * cqd_tenants_free() - forget every namespace
 * @srv: server, with no session left
 */
void cqd_tenants_free(struct cqd_server *srv)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &srv->tenants)
		free(list_entry(pos, struct cqd_tenant, node));
	list_init(&srv->tenants);
}

/* Does this socket belong to one namespace? */
static bool own_socket(const struct cqd_config *cfg, const char *path)
{
	unsigned int i;

	for (i = 0; i < cfg->n_ns; i++)
		if (cfg->ns[i].socket && !strcmp(cfg->ns[i].socket, path))
			return true;
	return false;
}

static bool permitted(const struct cqd_conn *conn, const struct cqd_ns_config *ns)
{
	const char *path = conn->listener->path;

	if (ns->socket ? strcmp(ns->socket, path) != 0 :
			 own_socket(conn->srv->config, path))
		return false;
	return cqd_uids_match(&ns->uid, conn->cred.uid);
}

/*
 * The namespace asked for by name; without a name the first that names the
 * uid, else the first that admits everybody. What a peer may not enter and
 * what does not exist look the same to it.
 */
static struct cqd_tenant *pick(struct cqd_conn *conn, const char *name)
{
	struct cqd_tenant *t, *found = NULL;
	struct list_head *pos;

	list_for_each(pos, &conn->srv->tenants) {
		t = list_entry(pos, struct cqd_tenant, node);
		if (!t->cfg || !permitted(conn, t->cfg))
			continue;
		if (name && strcmp(t->cfg->name, name))
			continue;
		if (name || !t->cfg->uid.any)
			return t;
		if (!found)
			found = t;
	}
	return found;
}

static int enter(struct cqd_conn *conn, const char *name, struct cqd_tenant **out,
		 struct cq_err *err)
{
	struct cqd_tenant *t;

	if (name && !cqd_name_ok(name))
		return cq_err_set(err, -EINVAL, "Hello: bad namespace name");
	t = pick(conn, name);
	if (!t && name)
		return cq_err_set(err, -EACCES, "uid %u is no member of namespace \"%s\" on "
				  "this socket; see uid and socket in cqd.conf",
				  (unsigned int)conn->cred.uid, name);
	if (!t)
		return cq_err_set(err, -EACCES, "uid %u belongs to no namespace on this socket; "
				  "see uid and socket in cqd.conf",
				  (unsigned int)conn->cred.uid);
	if (t->connections && t->inside >= t->connections)
		return cq_err_set(err, -EUSERS, "namespace \"%s\" has %u connections, its limit",
				  t->cfg->name, t->inside);
	*out = t;
	return 0;
}

/**
 * cqd_session_model_ok() - may this session open that model?
 * @s:     session
 * @model: name
 *
 * Return: false if its namespace has a list without it, or is gone.
 */
bool cqd_session_model_ok(const struct cqd_session *s, const char *model)
{
	const struct cqd_ns_config *cfg = s->tenant ? s->tenant->cfg : NULL;
	unsigned int i;

	if (!cfg)
		return false;
	for (i = 0; i < cfg->models.n; i++)
		if (!strcmp(cfg->models.name[i], model))
			return true;
	return cfg->models.n == 0;
}

/* --- sessions --- */

/* The record in the store lives on; only the watching ends. */
static void forget(struct cqd_session *s)
{
	list_del(&s->node);
	cqd_client_set_data(s->client, NULL);
	cqd_crowd_idle(s, false);
	if (s->tenant)
		s->tenant->sessions--;
	s->uid->sessions--;
	cqd_uid_put(s->uid);
	cqd_process_leave(s);
	free(s);
}

static void detach(struct cqd_session *s)
{
	if (!s->conn)
		return;
	s->conn->session = NULL;
	s->conn = NULL;
	if (s->tenant)
		s->tenant->inside--;
	cqd_crowd_idle(s, true);
}

static void attach(struct cqd_session *s, struct cqd_conn *conn, struct cqd_tenant *t)
{
	/* Had none if the configuration before did not know its namespace. */
	if (!s->tenant)
		t->sessions++;
	s->tenant = t;
	s->conn = conn;
	conn->session = s;
	t->inside++;
	cqd_crowd_idle(s, false);
}

/* A session of @client; @pidfd of its process is taken over on success. */
static struct cqd_session *session_new(struct cqd_server *srv, struct cqd_client *client,
				       int pidfd)
{
	struct cqd_session *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->srv = srv;
	s->client = client;
	list_init(&s->idle[CQD_OF_UID]);
	list_init(&s->idle[CQD_OF_TENANT]);
	s->uid = cqd_uid_get(srv, cqd_client_uid(client));
	if (!s->uid)
		goto err_free;
	s->uid->sessions++;
	if (cqd_process_join(s, cqd_client_pid(client), cqd_client_start_time(client), pidfd))
		goto err_uid;
	s->tenant = tenant_of(srv, cqd_client_ns(client));
	if (s->tenant)
		s->tenant->sessions++;
	cqd_client_set_data(client, s);
	list_add_tail(&s->node, &srv->sessions);
	cqd_crowd_idle(s, true);
	return s;

err_uid:
	s->uid->sessions--;
	cqd_uid_put(s->uid);
err_free:
	free(s);
	return NULL;
}

/**
 * cqd_session_orphan() - its connection is gone, its process may not be
 * @s: session
 */
void cqd_session_orphan(struct cqd_session *s)
{
	detach(s);
	cqd_client_set_orphan(s->client, true);
}

/**
 * cqd_session_end() - give back everything the client holds
 * @s: session, freed; its connection stays open
 *
 * Seals under way are answered with -ECANCELED on that connection.
 */
void cqd_session_end(struct cqd_session *s)
{
	struct cqd_client *client = s->client;

	detach(s);
	forget(s);
	cqd_client_end(client);
}

/**
 * cqd_session_bye() - the client said Bye
 * @s: session; its connection stays open
 *
 * It ends, or lasts without a connection until its process is gone.
 */
void cqd_session_bye(struct cqd_session *s)
{
	if (cqd_client_bye(s->client))
		cqd_session_end(s);
	else
		cqd_session_orphan(s);
}

static void adopt(struct cqd_client *client, void *arg)
{
	/* Its pins must stay: it may be reading. */
	if (!session_new(arg, client, -1))
		cq_err("out of memory: what process %d of an earlier session holds stays "
		       "until cqd is restarted", (int)cqd_client_pid(client));
}

/**
 * cqd_sessions_adopt() - sessions of the clients found after a restart
 * @srv: server, with its tenants
 *
 * Their processes are looked for while the loop runs.
 */
void cqd_sessions_adopt(struct cqd_server *srv)
{
	cqd_client_for_each(srv->store, adopt, srv);
}

/**
 * cqd_sessions_close_all() - stop watching; the records stay for the next cqd
 * @srv: server, with its connections closed
 */
void cqd_sessions_close_all(struct cqd_server *srv)
{
	struct list_head *pos, *tmp;

	list_for_each_safe(pos, tmp, &srv->sessions)
		forget(list_entry(pos, struct cqd_session, node));
}

/* --- Hello --- */

static bool hung_up(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

/*
 * A client that reconnects may be read before the end of its old connection:
 * close that one first, if its other end is closed.
 */
static void close_old(struct cqd_server *srv, uint64_t id, pid_t pid)
{
	struct cqd_client *client = cqd_client_find(srv->store, id);
	struct cqd_session *s = client ? cqd_client_data(client) : NULL;

	if (s && s->conn && cqd_client_pid(client) == pid && hung_up(s->conn->fd))
		cqd_conn_close(s->conn);
}

/* What cqctl shows: no surprises for terminals, any program may connect. */
static void clean_name(char out[CQP_MAX_NAME], const char *name)
{
	size_t i;

	if (!name || !name[0])
		name = "unnamed";
	for (i = 0; i < CQP_MAX_NAME - 1 && name[i]; i++)
		out[i] = isalnum((unsigned char)name[i]) || strchr("._-", name[i]) ?
			 name[i] : '_';
	out[i] = '\0';
}

static struct cqd_session *resume(struct cqd_conn *conn, const Cqp__Hello *hello,
				  struct cqd_tenant *t, uint64_t start_time)
{
	struct cqd_server *srv = conn->srv;
	struct cqd_client *client;

	if (!hello->has_session)
		return NULL;
	close_old(srv, hello->session, conn->cred.pid);
	client = cqd_client_resume(srv->store, t->ns, hello->session, conn->cred.pid,
				   start_time);
	if (!client || !cqd_client_data(client))
		return NULL;
	cqd_client_set_orphan(client, false);
	return cqd_client_data(client);
}

static int begin(struct cqd_conn *conn, const Cqp__Hello *hello, struct cqd_tenant *t,
		 bool *resumed, struct cq_err *err)
{
	struct cqd_server *srv = conn->srv;
	struct cqd_session *s;
	struct cqd_client *client;
	char name[CQP_MAX_NAME];
	uint64_t start_time;
	int pidfd, ret;

	ret = cqd_peer_open(conn->fd, conn->cred.pid, &pidfd, &start_time, err);
	if (ret)
		return ret;
	s = resume(conn, hello, t, start_time);
	*resumed = s != NULL;
	if (s) {
		cqd_process_seen(s, pidfd);
		attach(s, conn, t);
		return 0;
	}
	if (srv->draining)
		ret = cq_err_set(err, -ESHUTDOWN, "cqd is draining and admits no new session: "
				 "use another one, or undo it with cqctl drain --undo");
	else
		ret = cqd_crowd_room(conn, t, err);
	if (ret)
		goto err_close;
	clean_name(name, hello->client);
	ret = cqd_client_new(srv->store, t->ns, conn->cred.pid, start_time, conn->cred.uid,
			     name, &client, err);
	if (ret)
		goto err_close;
	s = session_new(srv, client, pidfd);
	if (!s) {
		ret = cq_err_set(err, -ENOMEM, "cqd is out of memory");
		goto err_end;
	}
	attach(s, conn, t);
	return 0;

err_end:
	cqd_client_end(client);
err_close:
	close(pidfd);
	return ret;
}

static void hello_ok(struct cqd_conn *conn, uint64_t id, bool resumed)
{
	Cqp__HelloOk ok = CQP__HELLO_OK__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	char tenant[CQP_MAX_NAME] = "";
	uint8_t boot_id[16];

	memcpy(boot_id, cqd_store_boot_id(conn->srv->store), sizeof(boot_id));
	if (conn->session)
		snprintf(tenant, sizeof(tenant), "%s", cqd_ns_name(conn->session->tenant->ns));
	ok.protocol = CQP_VERSION;
	ok.incompat = CQP_INCOMPAT_KNOWN;
	ok.compat = CQP_COMPAT_KNOWN;
	ok.boot_id.data = boot_id;
	ok.boot_id.len = sizeof(boot_id);
	ok.session = conn->session ? cqd_client_session(conn->session->client) : 0;
	ok.tenant = tenant;
	ok.resumed = resumed;
	msg.id = id;
	msg.body_case = CQP__MSG__BODY_HELLO_OK;
	msg.hello_ok = &ok;
	cqd_conn_send(conn, &msg, NULL, 0);
}

static int check_version(const Cqp__Hello *hello, struct cq_err *err)
{
	if (hello->protocol != CQP_VERSION)
		return cq_err_set(err, -EPROTO, "the client speaks protocol %u, cqd " CQ_VERSION
				  " speaks %d: use libcq and cqd of one version",
				  hello->protocol, CQP_VERSION);
	if (hello->incompat & ~CQP_INCOMPAT_KNOWN)
		return cq_err_set(err, -EPROTO, "the client needs features 0x%llx, cqd "
				  CQ_VERSION " knows 0x%llx: use libcq and cqd of one version",
				  (unsigned long long)hello->incompat,
				  (unsigned long long)CQP_INCOMPAT_KNOWN);
	return 0;
}

/**
 * cqd_session_hello() - first message of a connection
 * @conn: connection, not greeted yet
 * @msg:  with a Hello
 * @err:  text of the failure
 *
 * Answers it. Return: 0; -EPROTO other version or feature; -EACCES no member
 * of the namespace; -ESHUTDOWN; -EUSERS; -ENOSPC; -ENOMEM; -ESRCH.
 */
int cqd_session_hello(struct cqd_conn *conn, const Cqp__Msg *msg, struct cq_err *err)
{
	const Cqp__Hello *hello = msg->hello;
	struct cqd_tenant *t;
	bool resumed = false;
	int ret;

	ret = check_version(hello, err);
	if (ret)
		return ret;
	if (!conn->admin) {
		ret = enter(conn, hello->tenant, &t, err);
		if (!ret)
			ret = begin(conn, hello, t, &resumed, err);
		if (ret)
			return ret;
	}
	conn->greeted = true;
	cqd_conn_deadline(conn, 0);
	hello_ok(conn, msg->id, resumed);
	return 0;
}
