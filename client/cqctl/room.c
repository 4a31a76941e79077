// SPDX-License-Identifier: MIT
/* evict, quota: making room, and limits of namespaces. */
#include <inttypes.h>
#include <string.h>
#include "client/cqctl/cqctl.h"

static int done(struct ctl *c, int ret)
{
	return ret ? ctl_fail(c, ret, "%s", c->err.text) : CTL_OK;
}

/* A name for a message, which takes no constant; NULL stays NULL. */
static char *copy(const char *name, char buf[256])
{
	if (!name)
		return NULL;
	snprintf(buf, 256, "%s", name);
	return buf;
}

static int evict_print(struct ctl *c, const Cqp__RoomOk *ok)
{
	char bytes[24];

	if (c->json)
		return ctl_print_json(json_pack("{s:I, s:I}", "pages", (json_int_t)ok->pages,
						"bytes", (json_int_t)ok->bytes));
	printf("%" PRIu64 " pages evicted, %s\n", ok->pages, ctl_bytes(ok->bytes, bytes));
	return CTL_OK;
}

int ctl_cmd_evict(struct ctl *c, int argc, char **argv)
{
	const char *ns = NULL, *model = NULL, *older = NULL, *bytes = NULL;
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Evict evict = CQP__EVICT__INIT;
	char names[2][256];
	bool all = false;
	const struct ctl_opt opts[] = {
		{ "namespace", 0, &ns, NULL },
		{ "model", 0, &model, NULL },
		{ "older", 0, &older, NULL },
		{ "bytes", 0, &bytes, NULL },
		{ "all", 0, NULL, &all },
		{ NULL, 0, NULL, NULL },
	};
	int ret = ctl_parse(c, argc, argv, opts, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	if (all && bytes)
		return ctl_usage(c, "--all and --bytes exclude each other");
	if (!all && !bytes && !older)
		return ctl_usage(c, "say how much: --all, --bytes N or --older TIME");
	if (older && ctl_duration(older, &evict.older_us))
		return ctl_usage(c, "--older %s: a number with ms, s, m, h or d", older);
	if (bytes && (ctl_size(bytes, &evict.bytes) || !evict.bytes))
		return ctl_usage(c, "--bytes %s: a number of bytes, or with k, M, G or T", bytes);
	evict.tenant = copy(ns, names[0]);
	evict.model = copy(model, names[1]);
	evict.has_older_us = older != NULL;
	evict.has_bytes = bytes != NULL;
	msg.body_case = CQP__MSG__BODY_EVICT;
	msg.evict = &evict;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_ROOM_OK, &ret);
	if (!reply)
		return done(c, ret);
	ret = evict_print(c, reply->room_ok);
	cqp_free(reply);
	return ret;
}

/* --- quota --- */

/* A limit that is not there is null. */
static void limit_json(json_t *o, const char *name, uint64_t used, bool has, uint64_t max)
{
	json_object_set_new(o, name, json_pack("{s:o, s:o}", "used", ctl_json_u64(used),
					       "limit", has ? ctl_json_u64(max) : json_null()));
}

static int quota_json(const char *name, bool changed, const Cqp__RoomOk *ok)
{
	json_t *o = json_pack("{s:s, s:b}", "namespace", name, "until_reload", changed);

	limit_json(o, "bytes", ok->bytes, ok->has_max_bytes, ok->max_bytes);
	limit_json(o, "pages", ok->pages, ok->has_max_pages, ok->max_pages);
	limit_json(o, "pins", ok->pins, ok->has_max_pins, ok->max_pins);
	limit_json(o, "connections", ok->connections, ok->has_max_connections,
		   ok->max_connections);
	return ctl_print_json(o);
}

static void limit_text(const char *name, uint64_t used, bool has, uint64_t max)
{
	printf("%-12s %" PRIu64, name, used);
	if (has)
		printf(" of %" PRIu64 "\n", max);
	else
		printf(", no limit\n");
}

static int quota_text(bool changed, const Cqp__RoomOk *ok)
{
	char used[24], max[24];

	printf("%-12s %s of %s\n", "bytes", ctl_bytes(ok->bytes, used),
	       ctl_bytes(ok->max_bytes, max));
	limit_text("pages", ok->pages, ok->has_max_pages, ok->max_pages);
	limit_text("pins", ok->pins, ok->has_max_pins, ok->max_pins);
	limit_text("connections", ok->connections, ok->has_max_connections,
		   ok->max_connections);
	if (changed)
		puts("In force until the next reload or restart of cqd; to keep it, change "
		     "cqd.conf.");
	return CTL_OK;
}

int ctl_cmd_quota(struct ctl *c, int argc, char **argv)
{
	const char *bytes = NULL, *pages = NULL, *pins = NULL, *conns = NULL, *name;
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Quota quota = CQP__QUOTA__INIT;
	const struct ctl_opt opts[] = {
		{ "bytes", 0, &bytes, NULL },
		{ "pages", 0, &pages, NULL },
		{ "pins", 0, &pins, NULL },
		{ "connections", 0, &conns, NULL },
		{ NULL, 0, NULL, NULL },
	};
	char buf[256];
	bool changed;
	uint64_t n = 0;
	int ret = ctl_parse(c, argc, argv, opts, &name, 1, 1);

	if (ret != CTL_GO_ON)
		return ret;
	if (bytes && ctl_size(bytes, &quota.bytes))
		return ctl_usage(c, "--bytes %s: a number of bytes, or with k, M, G or T", bytes);
	if ((pages && ctl_number(pages, 0, 1ull << 40, &quota.pages)) ||
	    (pins && ctl_number(pins, 0, 1ull << 40, &quota.pins)) ||
	    (conns && ctl_number(conns, 0, 1u << 20, &n)))
		return ctl_usage(c, "--pages, --pins and --connections take a number, 0: no limit");
	quota.tenant = copy(name, buf);
	quota.connections = (uint32_t)n;
	quota.has_bytes = bytes != NULL;
	quota.has_pages = pages != NULL;
	quota.has_pins = pins != NULL;
	quota.has_connections = conns != NULL;
	changed = bytes || pages || pins || conns;
	msg.body_case = CQP__MSG__BODY_QUOTA;
	msg.quota = &quota;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_ROOM_OK, &ret);
	if (!reply)
		return done(c, ret);
	ret = c->json ? quota_json(name, changed, reply->room_ok) :
			quota_text(changed, reply->room_ok);
	cqp_free(reply);
	return ret;
}
