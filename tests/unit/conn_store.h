/* SPDX-License-Identifier: MIT */
/*
 * A store that is played: it keeps what the connection layer asks for, until the
 * test answers.
 */
#ifndef CONN_STORE_H
#define CONN_STORE_H

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/server.h"
#include "tests/harness.h"

#define MAX_SEALS 1024

struct cqd_client {
	uint64_t session;
	void *data;
	bool orphan, ended;
};

struct seal {
	cqd_seal_cb done;
	void *arg;
	struct cqd_client *client;
};

static struct cqd_client the_clients[64];
static unsigned int n_clients;
static struct seal seals[MAX_SEALS];
static unsigned int n_seals, n_opens;
static int the_thing;	/* what opaque pointers point to */

static void *thing(void)
{
	return &the_thing;
}

const uint8_t *cqd_store_boot_id(const struct cqd_store *st)
{
	static const uint8_t id[16] = { 1 };

	return id;
}

int cqd_ns_get(struct cqd_store *st, const char *name, const struct cqd_ns_opts *opts,
	       struct cqd_ns **out, struct cq_err *err)
{
	*out = thing();
	return 0;
}

const char *cqd_ns_name(const struct cqd_ns *ns)
{
	return "default";
}

int cqd_client_new(struct cqd_store *st, struct cqd_ns *ns, pid_t pid, uint64_t start_time,
		   uid_t uid, const char *name, struct cqd_client **out, struct cq_err *err)
{
	struct cqd_client *c = &the_clients[n_clients++];

	ASSERT_EQ(pid, getpid());
	ASSERT_EQ(uid, getuid());
	c->session = n_clients;
	*out = c;
	return 0;
}

struct cqd_client *cqd_client_find(struct cqd_store *st, uint64_t session)
{
	return session && session <= n_clients ? &the_clients[session - 1] : NULL;
}

struct cqd_client *cqd_client_resume(struct cqd_store *st, struct cqd_ns *ns,
				     uint64_t session, pid_t pid, uint64_t start_time)
{
	struct cqd_client *c = &the_clients[session - 1];

	return session && session <= n_clients && c->orphan && !c->ended ? c : NULL;
}

uid_t cqd_client_uid(const struct cqd_client *client)
{
	return getuid();
}

uint64_t cqd_client_pins(const struct cqd_client *client)
{
	return 1;
}

static void (*on_orphan)(void);

void cqd_client_set_orphan(struct cqd_client *client, bool orphan)
{
	void (*fn)(void) = on_orphan;

	ASSERT(client->orphan != orphan);
	client->orphan = orphan;
	on_orphan = NULL;
	if (orphan && fn)
		fn();
}

__attribute__((unused))
static void answer(unsigned int i, int ret)
{
	struct cqd_seal_result res = { .key.b = { 7 }, .sink.segment = CQP_NONE };
	struct seal s = seals[i];

	seals[i].done = NULL;
	s.done(s.arg, ret, &res, NULL);
}

void cqd_client_end(struct cqd_client *client)
{
	unsigned int i;

	ASSERT(!client->ended);
	client->ended = true;
	for (i = 0; i < n_seals; i++)
		if (seals[i].done && seals[i].client == client)
			answer(i, -ECANCELED);
}

uint64_t cqd_client_session(const struct cqd_client *client)
{
	return client->session;
}

struct cqd_ns *cqd_client_ns(const struct cqd_client *client)
{
	return thing();
}

pid_t cqd_client_pid(const struct cqd_client *client)
{
	return getpid();
}

uint64_t cqd_client_start_time(const struct cqd_client *client)
{
	return 1;
}

void cqd_client_set_data(struct cqd_client *client, void *data)
{
	client->data = data;
}

void *cqd_client_data(const struct cqd_client *client)
{
	return client->data;
}

void cqd_client_for_each(struct cqd_store *st, void (*fn)(struct cqd_client *client, void *arg),
			 void *arg)
{
}

/* Descriptors that live until the next call only, each of its own length. */
int cqd_shard_get(struct cqd_client *client, const char *model, const struct cqp_shard *range,
		  struct cqd_shard **out, struct cqd_shard_info *info, struct cq_err *err)
{
	static int fds[2] = { -1, -1 };
	int i;

	n_opens++;
	memset(info, 0, sizeof(*info));
	for (i = 0; i < 2; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
		if (!model[1])
			continue;	/* "x": the test is over */
		fds[i] = memfd_create("t", MFD_CLOEXEC);
		ASSERT_SYS(ftruncate(fds[i], (off_t)(n_opens * 2 + (unsigned int)i)));
	}
	if (!model[1])
		return cq_err_set(err, -ENOENT, "over");
	info->model_fd = fds[0];
	info->state_fd = fds[1];
	*out = thing();
	return 0;
}

struct cqd_shard *cqd_shard_find(struct cqd_client *client, uint32_t id)
{
	return id == 0 ? thing() : NULL;
}

int cqd_seal(struct cqd_client *client, struct cqd_shard *shard, const struct cqd_seal_req *req,
	     cqd_seal_cb done, void *arg, struct cq_err *err)
{
	ASSERT_LT(n_seals, MAX_SEALS);
	seals[n_seals++] = (struct seal){ done, arg, client };
	return 0;
}

int cqd_arena_offer(struct cqd_client *client, struct cqd_shard *shard, int fd, uint64_t bytes,
		    uint32_t *arena, struct cq_err *err)
{
	return -EDQUOT;
}

int cqd_arena_drop(struct cqd_client *client, uint32_t arena)
{
	return -ENOENT;
}

int cqd_match(struct cqd_client *client, struct cqd_shard *shard, const struct cqp_key *keys,
	      unsigned int n, bool pin, struct cqp_page *pages, struct cqp_page *sink,
	      struct cqd_found *found, struct cq_err *err)
{
	*found = (struct cqd_found){ .filling = false };
	return 0;
}

void cqd_checked(struct cqd_client *client, const struct cqp_page *pages,
		 const struct cqd_check *checks, unsigned int n, uint8_t *gone)
{
	memset(gone, 0, (n + 7) / 8);
}

void cqd_readers_begin(struct cqd_store *st)
{
}

int cqd_readers_add(struct cqd_ns *owner, struct cqd_ns *reader, struct cq_err *err)
{
	return 0;
}

void cqd_readers_end(struct cqd_store *st)
{
}

int cqd_segment_get(struct cqd_client *client, uint32_t id, struct cqd_segment_info *info)
{
	return -ENOENT;
}

int cqd_release(struct cqd_client *client, const struct cqp_page *pages, unsigned int n,
		struct cq_err *err)
{
	return 0;
}

int cqd_shard_get_on(struct cqd_client *client, const char *model, const struct cqp_shard *range,
		     const char *device, struct cqd_shard **out, struct cqd_shard_info *info,
		     struct cq_err *err)
{
	return cqd_shard_get(client, model, range, out, info, err);
}

bool cqd_client_bye(struct cqd_client *client)
{
	return true;
}

int cqd_lease(struct cqd_client *client, struct cqd_shard *shard, unsigned int n, bool sink,
	      cqd_lease_cb done, void *arg, struct cq_err *err)
{
	return -EDQUOT;
}

int cqd_lease_return(struct cqd_client *client, const struct cqp_page *slots, unsigned int n,
		     struct cq_err *err)
{
	return -EINVAL;
}

int cqd_lease_keep(struct cqd_client *client, const struct cqp_page *slots, unsigned int n,
		   struct cq_err *err)
{
	return -EINVAL;
}

uint64_t cqd_store_unreadable(const struct cqd_store *st)
{
	return 0;
}

bool cqd_pool_figures(const struct cqd_store *st, uint32_t i, struct cqd_pool_figures *out)
{
	return false;
}

int cqd_model_load(struct cqd_store *st, const char *name, int fd, cqd_model_cb done, void *arg,
		   struct cq_err *err)
{
	return -ENOMEM;
}

int cqd_model_unload(struct cqd_store *st, const char *name, struct cq_err *err)
{
	return -ENOENT;
}

int cqd_publish(struct cqd_client *client, struct cqd_shard *shard,
		const struct cqd_publish_req *req, cqd_publish_cb done, void *arg,
		struct cq_err *err)
{
	return -EDQUOT;
}

int cqd_attach(struct cqd_client *client, struct cqd_shard *shard, const char *name,
	       uint64_t room, struct cqd_attached *out, struct cq_err *err)
{
	return -ENOENT;
}

int cqd_unpublish(struct cqd_ns *ns, const char *name, struct cq_err *err)
{
	return -ENOENT;
}

int cqd_name_pin(struct cqd_ns *ns, const char *name, const struct cqp_key *key,
		 uint32_t ttl_s, bool replace, struct cq_err *err)
{
	return -ENOENT;
}

struct cqd_ns *cqd_ns_find(struct cqd_store *st, const char *name)
{
	return NULL;
}

void cqd_ns_room_get(const struct cqd_ns *ns, struct cqd_ns_room *out)
{
	*out = (struct cqd_ns_room){ 0 };
}

void cqd_ns_limit(struct cqd_ns *ns, uint64_t bytes, uint64_t pages, uint64_t pins)
{
}

/* Of the last seal, -1: it named none. */
static int64_t seal_priority, seal_ttl_s;

void cqd_ns_terms(const struct cqd_ns *ns, const uint32_t *priority, const uint32_t *ttl_s,
		  struct cqd_seal_req *req)
{
	seal_priority = priority ? (int64_t)*priority : -1;
	seal_ttl_s = ttl_s ? (int64_t)*ttl_s : -1;
}

int cqd_evict(struct cqd_store *st, const struct cqd_evict_opts *opts, cqd_evict_cb done,
	      void *arg, struct cq_err *err)
{
	return cq_err_set(err, -ENOENT, "no model");
}

int cqd_verify(struct cqd_store *st, cqd_verify_cb done, void *arg)
{
	return -EBUSY;
}

static unsigned int n_looks;

int cqd_look_new(struct cqd_store *st, const char *pool, bool all, struct cqd_look **out,
		 struct cq_err *err)
{
	n_looks++;
	*out = thing();
	return 0;
}

int cqd_look_seen(struct cqd_look *l, const struct cqp_seen *seen, uint32_t n, uint64_t *wrong,
		  struct cq_err *err)
{
	return 0;
}

void cqd_look_next(struct cqd_look *l, struct cqd_look_batch *b)
{
	memset(b, 0, sizeof(*b));
	b->device = "GPU-1";
	b->n_slots = 1;
}

void cqd_look_free(struct cqd_look *l)
{
	n_looks -= l != NULL;
}

int cqd_save(struct cqd_store *st, int fd, cqd_save_cb done, void *arg, struct cq_err *err)
{
	return cq_err_set(err, -EBUSY, "a save or restore is running");
}

int cqd_restore(struct cqd_store *st, int fd, cqd_restore_cb done, void *arg,
		struct cq_err *err)
{
	return cq_err_set(err, -EBUSY, "a save or restore is running");
}

void cqd_transfer_gone(struct cqd_store *st, const void *arg)
{
}

void cqd_store_stats(const struct cqd_store *st, struct cqd_stats *out)
{
	memset(out, 0, sizeof(*out));
}

bool cqd_store_item(struct cqd_store *st, unsigned int kind, uint64_t *cursor,
		    struct cqd_item *out)
{
	return false;
}

static cqd_watch_fn watch;
static void *watch_arg;

void cqd_store_watch(struct cqd_store *st, cqd_watch_fn fn, void *arg)
{
	watch = fn;
	watch_arg = arg;
}

bool cqd_store_resident(struct cqd_store *st, const struct cqd_ns *ns, uint32_t *cursor,
			uint32_t max, struct cqd_notice *out)
{
	*cursor = UINT32_MAX;
	return false;
}

bool cqd_ns_figures(const struct cqd_store *st, uint32_t i, struct cqd_ns_figures *out)
{
	return false;
}

#endif /* CONN_STORE_H */
