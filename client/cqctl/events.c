// SPDX-License-Identifier: MIT
/* events: what happens in cqd, a line each, as it happens. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"

static const char *kind_name(unsigned int kind)
{
	static const char *const names[] = {
		"start", "page_sealed", "page_evicted", "page_resident", "snapshot_end",
		"model_loaded", "model_unloaded", "client_joined", "client_left",
		"checksum_failed", "config_reloaded", "lost",
	};

	return kind < ARRAY_SIZE(names) ? names[kind] : "unknown";
}

static void put_text(json_t *o, const char *key, const char *text)
{
	if (text)
		json_object_set_new(o, key, ctl_json_text(text));
}

static void put_number(json_t *o, const char *key, bool there, uint64_t n)
{
	if (there)
		json_object_set_new(o, key, ctl_json_u64(n));
}

static void put_hex(json_t *o, const char *key, bool there, const ProtobufCBinaryData *b)
{
	char hex[65];

	if (there)
		json_object_set_new(o, key, json_string(ctl_hex(b->data, b->len, hex)));
}

static int print_json(const Cqp__Event *e)
{
	json_t *o = json_object();

	put_number(o, "seq", true, e->seq);
	put_text(o, "event", kind_name((unsigned int)e->kind));
	put_text(o, "namespace", e->tenant);
	put_text(o, "model", e->model);
	put_hex(o, "key", e->has_key, &e->key);
	put_hex(o, "parent", e->has_parent, &e->parent);
	put_number(o, "depth", e->has_depth, e->depth);
	put_number(o, "bytes", e->has_bytes, e->bytes);
	put_text(o, "reason", e->reason);
	put_text(o, "device", e->device);
	put_number(o, "layer_begin", e->has_layer_begin, e->layer_begin);
	put_number(o, "layer_end", e->has_layer_end, e->layer_end);
	put_number(o, "head_begin", e->has_head_begin, e->head_begin);
	put_number(o, "head_end", e->has_head_end, e->head_end);
	put_text(o, "client", e->client);
	put_number(o, "pid", e->has_pid, e->pid);
	put_number(o, "uid", e->has_uid, e->uid);
	put_number(o, "lost", e->has_lost, e->lost);
	return ctl_print_json(o);
}

static void print_word(const char *what, const char *text)
{
	if (!text)
		return;
	printf(" %s=", what);
	ctl_put_text(stdout, text);
}

static void print_line(const Cqp__Event *e)
{
	char hex[65];

	printf("%" PRIu64 " %s", e->seq, kind_name((unsigned int)e->kind));
	if (e->has_key)
		printf(" %s", ctl_hex(e->key.data, e->key.len, hex));
	print_word("namespace", e->tenant);
	print_word("model", e->model);
	print_word("client", e->client);
	if (e->has_pid)
		printf(" pid=%" PRIu32 " uid=%" PRIu32, e->pid, e->uid);
	if (e->has_depth)
		printf(" depth=%" PRIu32, e->depth);
	if (e->has_bytes)
		printf(" bytes=%" PRIu64, e->bytes);
	print_word("reason", e->reason);
	if (e->has_lost)
		printf(" %" PRIu64 " events: take a new snapshot", e->lost);
	putchar('\n');
}

/* Each line at once. False: nobody reads any more. */
static bool print_event(const struct ctl *c, const Cqp__Event *e)
{
	if (c->json)
		print_json(e);
	else
		print_line(e);
	if (!fflush(stdout))
		return true;
	if (errno == EPIPE)	/* a reader that has enough is no failure */
		clearerr(stdout);
	return false;
}

/* A pipe that nobody reads any more is noticed before there is something to write. */
static bool wait_for(const struct ctl *c)
{
	struct pollfd p[2] = { { .fd = c->sock, .events = POLLIN },
			       { .fd = STDOUT_FILENO } };

	return ctl_wait(p, 2, 0) >= 0 && !(p[1].revents & POLLERR);
}

static int failed(struct ctl *c, int ret)
{
	return ctl_stopped() ? CTL_OK : ctl_fail(c, ret, "%s", c->err.text);
}

/* Prints until @count (0: for ever) or a signal; takes @msg over. */
static int follow(struct ctl *c, uint64_t id, Cqp__Msg *msg, uint64_t count)
{
	uint64_t shown = 0;
	size_t i;
	int ret = 0;

	while (msg) {
		for (i = 0; i < msg->events->n_events; i++) {
			if (print_event(c, msg->events->events[i]) &&
			    (!count || ++shown < count))
				continue;
			cqp_free(msg);
			return CTL_OK;
		}
		cqp_free(msg);
		if (!wait_for(c))
			return CTL_OK;
		msg = ctl_next(c, id, CQP__MSG__BODY_EVENTS, &ret);
	}
	return failed(c, ret);
}

int ctl_cmd_events(struct ctl *c, int argc, char **argv)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Subscribe subscribe = CQP__SUBSCRIBE__INIT;
	const char *tenant = NULL, *count = NULL;
	bool snapshot = false;
	const struct ctl_opt opts[] = {
		{ "namespace", 'n', &tenant, NULL }, { "snapshot", 0, NULL, &snapshot },
		{ "count", 0, &count, NULL }, { NULL, 0, NULL, NULL },
	};
	char name[CQP_MAX_NAME];
	uint64_t n = 0;
	int ret = ctl_parse(c, argc, argv, opts, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	if (count && ctl_number(count, 1, UINT64_MAX, &n))
		return ctl_usage(c, "--count %s: a number from 1 on is wanted", count);
	if (tenant && (size_t)snprintf(name, sizeof(name), "%s", tenant) >= sizeof(name))
		return ctl_usage(c, "the name has more than %d bytes", CQP_MAX_NAME - 1);
	ctl_watch(c);
	subscribe.tenant = tenant ? name : NULL;
	subscribe.has_snapshot = true;
	subscribe.snapshot = snapshot;
	msg.body_case = CQP__MSG__BODY_SUBSCRIBE;
	msg.subscribe = &subscribe;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_EVENTS, &ret);
	if (!reply)
		return failed(c, ret);
	return follow(c, msg.id, reply, n);
}
