// SPDX-License-Identifier: MIT
/* ping, status, verify: the daemon as a whole. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include "client/cqctl/cqctl.h"

/* Status of a command without arguments whose answer is @reply. */
static int done(struct ctl *c, int ret)
{
	return ret ? ctl_fail(c, ret, "%s", c->err.text) : CTL_OK;
}

/* Exit status of a probe, for orchestrators. */
static int ping_failed(struct ctl *c, int ret)
{
	done(c, ret);
	switch (ret) {
	case -ENOENT:
	case -ECONNREFUSED:
	case -ENOTDIR:
		return CTL_ABSENT;
	case -ETIMEDOUT:
	case -EAGAIN:
		return CTL_TIMEOUT;
	default:
		return CTL_FAILED;
	}
}

int ctl_cmd_ping(struct ctl *c, int argc, char **argv)
{
	const char *timeout = NULL;
	const struct ctl_opt opts[] = {
		{ "timeout", 0, &timeout, NULL }, { NULL, 0, NULL, NULL },
	};
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Ping ping = CQP__PING__INIT;
	char boot[65], up[24], took[24];
	const Cqp__Pong *p;
	uint64_t start;
	bool ready, draining;
	int ret = ctl_parse(c, argc, argv, opts, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	if (timeout && ctl_number(timeout, 1, 3600000, &c->timeout_ms))
		return ctl_usage(c, "--timeout %s: milliseconds from 1 to 3600000", timeout);
	ret = ctl_connect(c);
	if (ret)
		return ping_failed(c, ret);
	msg.body_case = CQP__MSG__BODY_PING;
	msg.ping = &ping;
	start = ctl_now_us();
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_PONG, &ret);
	if (!reply)
		return ping_failed(c, ret);
	start = ctl_now_us() - start;
	p = reply->pong;
	ready = !p->has_ready || p->ready;
	draining = p->has_draining && p->draining;
	ctl_hex(p->boot_id.data, p->boot_id.len, boot);
	if (c->json) {
		ret = ctl_print_json(json_pack("{s:s, s:b, s:b, s:s, s:I, s:I}", "version",
					       p->version, "ready", (int)ready, "draining",
					       (int)draining, "boot_id", boot, "uptime_us",
					       (json_int_t)p->uptime_us, "round_trip_us",
					       (json_int_t)start));
	} else {
		printf("cqd ");
		ctl_put_text(stdout, p->version);
		printf(", up %s, answered in %s%s%s\n", ctl_time(p->uptime_us, up),
		       ctl_time(start, took), ready ? "" : "; not ready",
		       draining ? "; draining" : "");
		ret = CTL_OK;
	}
	cqp_free(reply);
	return ret || (ready && !draining) ? ret : CTL_NOT_READY;
}

/* Counters of StatusOk: JSON carries them as they are. */
#define C(field) { #field, offsetof(Cqp__StatusOk, field) }
static const struct {
	const char *name;
	size_t at;
} counters[] = {
	C(uptime_us), C(pool_limit), C(pool_reserved),
	C(pool_used), C(index_used), C(codebook_bytes),
	C(arena_bytes), C(pages_sealed), C(pages_filling),
	C(pages_pinned), C(clients), C(orphans),
	C(hits), C(misses), C(seals),
	C(evictions), C(checksum_failures), C(verify_pending),
};

static void set_number(json_t *o, const char *name, bool there, uint64_t n)
{
	if (there)
		json_object_set_new(o, name, json_integer((json_int_t)n));
}

static json_t *pools_json(const Cqp__StatusOk *s)
{
	json_t *list = json_array(), *o;
	const Cqp__Pool *p;
	size_t i;

	for (i = 0; i < s->n_pools; i++) {
		p = s->pools[i];
		o = json_pack("{s:s, s:s}", "name", p->name, "backend", p->backend);
		if (p->device)
			json_object_set_new(o, "device", json_string(p->device));
		if (p->why)
			json_object_set_new(o, "why", json_string(p->why));
		json_object_set_new(o, "limit", ctl_json_u64(p->limit));
		json_object_set_new(o, "reserved", ctl_json_u64(p->reserved));
		json_object_set_new(o, "used", ctl_json_u64(p->used));
		json_array_append_new(list, o);
	}
	return list;
}

static int status_json(const Cqp__StatusOk *s, const char *boot)
{
	json_t *o = json_pack("{s:s, s:s, s:s}", "version", s->version, "boot_id", boot,
			      "kernels", s->kernels);
	uint64_t x;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		memcpy(&x, (const char *)s + counters[i].at, sizeof(x));
		json_object_set_new(o, counters[i].name, ctl_json_u64(x));
	}
	set_number(o, "fdstore", s->has_fdstore, s->fdstore);
	set_number(o, "restored", s->has_restored, s->restored);
	set_number(o, "persist_bytes", s->has_persist_bytes, s->persist_bytes);
	set_number(o, "transfer_done", s->has_transfer_done, s->transfer_done);
	set_number(o, "transfer_total", s->has_transfer_total, s->transfer_total);
	if (s->has_draining)
		json_object_set_new(o, "draining", json_boolean(s->draining));
	json_object_set_new(o, "pools", pools_json(s));
	return ctl_print_json(o);
}

/* Each pool but the host's. */
static void pools_text(const Cqp__StatusOk *s)
{
	char a[24], b[24], d[24];
	size_t i;

	for (i = 1; i < s->n_pools; i++) {
		printf("pool       ");
		ctl_put_text(stdout, s->pools[i]->name);
		printf(" (");
		ctl_put_text(stdout, s->pools[i]->backend);
		printf("): %s in use, %s reserved, limit %s",
		       ctl_bytes(s->pools[i]->used, a), ctl_bytes(s->pools[i]->reserved, b),
		       ctl_bytes(s->pools[i]->limit, d));
		if (s->pools[i]->why) {
			printf("; ");
			ctl_put_text(stdout, s->pools[i]->why);
		}
		printf("\n");
	}
}

static void status_text(const Cqp__StatusOk *s, const char *boot)
{
	char a[24], b[24], d[24];

	printf("cqd        ");
	ctl_put_text(stdout, s->version);
	printf(", up %s, kernels ", ctl_time(s->uptime_us, a));
	ctl_put_text(stdout, s->kernels);
	printf("\nindex      %s since boot id %.16s\n", ctl_bytes(s->index_used, a), boot);
	printf("pool       %s in use, %s reserved, limit %s\n", ctl_bytes(s->pool_used, a),
	       ctl_bytes(s->pool_reserved, b), ctl_bytes(s->pool_limit, d));
	pools_text(s);
	printf("codebooks  %s\narenas     %s\n", ctl_bytes(s->codebook_bytes, a),
	       ctl_bytes(s->arena_bytes, b));
	printf("pages      %" PRIu64 " sealed, %" PRIu64 " filling, %" PRIu64 " pinned\n",
	       s->pages_sealed, s->pages_filling, s->pages_pinned);
	printf("clients    %" PRIu64 ", %" PRIu64 " orphaned\n", s->clients, s->orphans);
	printf("lookups    %" PRIu64 " pages found, %" PRIu64 " missed\n", s->hits,
	       s->misses);
	printf("seals      %" PRIu64 ", ", s->seals);
	if (s->has_restored && s->restored)
		printf("pages from files %" PRIu64 ", ", s->restored);
	printf("evictions %" PRIu64 "\n", s->evictions);
	printf("checksums  %" PRIu64 " wrong, %" PRIu64 " pages still to verify\n",
	       s->checksum_failures, s->verify_pending);
	if (s->has_fdstore)
		printf("fd store   %" PRIu64 " descriptors\n", s->fdstore);
	if (s->has_persist_bytes)
		printf("persist    %s in files\n", ctl_bytes(s->persist_bytes, a));
	if (s->draining)
		puts("draining   no new sessions are admitted");
}

int ctl_cmd_status(struct ctl *c, int argc, char **argv)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Status status = CQP__STATUS__INIT;
	char boot[65];
	int ret = ctl_parse(c, argc, argv, NULL, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	msg.body_case = CQP__MSG__BODY_STATUS;
	msg.status = &status;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_STATUS_OK, &ret);
	if (!reply)
		return done(c, ret);
	ctl_hex(reply->status_ok->boot_id.data, reply->status_ok->boot_id.len, boot);
	if (c->json)
		ret = status_json(reply->status_ok, boot);
	else
		status_text(reply->status_ok, boot);
	cqp_free(reply);
	return ret;
}

int ctl_cmd_verify(struct ctl *c, int argc, char **argv)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Verify verify = CQP__VERIFY__INIT;
	const Cqp__VerifyOk *v;
	const char *gpu = NULL;
	bool pending = false;
	const struct ctl_opt opts[] = {
		{ "gpu", 0, &gpu, NULL },
		{ "pending", 0, NULL, &pending },
		{ NULL, 0, NULL, NULL },
	};
	char a[24], b[24];
	int ret = ctl_parse(c, argc, argv, opts, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	if (gpu)
		return ctl_look(c, gpu, pending);
	if (pending)
		return ctl_usage(c, "--pending goes with --gpu: of the host cqd sees to it itself");
	msg.body_case = CQP__MSG__BODY_VERIFY;
	msg.verify = &verify;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_VERIFY_OK, &ret);
	if (!reply)
		return done(c, ret);
	v = reply->verify_ok;
	if (c->json)
		ret = ctl_print_json(json_pack("{s:I, s:I, s:I, s:I, s:I}",
					       "skipped", (json_int_t)v->skipped,
					       "checked", (json_int_t)v->checked,
					       "failed", (json_int_t)v->failed,
					       "bytes", (json_int_t)v->bytes,
					       "us", (json_int_t)v->us));
	else
		printf("%" PRIu64 " pages, %s checked in %s: %" PRIu64 " wrong%s\n",
		       v->checked, ctl_bytes(v->bytes, a), ctl_time(v->us, b), v->failed,
		       v->failed ? " (dropped, with all that follow them)" : "");
	if (!c->json && v->has_skipped)
		printf("%" PRIu64 " pages are in the memory of GPUs, which cqd cannot read: "
		       "verify --gpu NAME\n", v->skipped);
	if (!ret && v->failed)
		ret = CTL_FAILED;
	cqp_free(reply);
	return ret;
}
