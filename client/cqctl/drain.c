// SPDX-License-Identifier: MIT
/* drain: no new sessions, and wait until those there are gone. */
#include <inttypes.h>
#include <time.h>
#include "client/cqctl/cqctl.h"

#define POLL_MS		100
#define MAX_SECONDS	(7 * 86400)

static int ask(struct ctl *c, bool undo, uint64_t *clients, uint64_t *orphans)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Drain drain = CQP__DRAIN__INIT;
	int ret;

	drain.has_undo = true;
	drain.undo = undo;
	msg.body_case = CQP__MSG__BODY_DRAIN;
	msg.drain = &drain;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_DRAIN_OK, &ret);
	if (!reply)
		return ret;
	*clients = reply->drain_ok->clients;
	*orphans = reply->drain_ok->orphans;
	cqp_free(reply);
	return 0;
}

static int report(struct ctl *c, bool undo, uint64_t clients, uint64_t orphans)
{
	bool left = !undo && clients;
	int ret = CTL_OK;

	if (c->json)
		ret = ctl_print_json(json_pack("{s:b, s:I, s:I}", "draining", !undo, "clients",
					       (json_int_t)clients, "orphans",
					       (json_int_t)orphans));
	else if (undo)
		puts("new sessions are admitted again");
	else if (left)
		printf("%" PRIu64 " clients are left, %" PRIu64 " of them without a "
		       "connection; no new ones are admitted\n", clients, orphans);
	else
		puts("no client is left; no new ones are admitted");
	return !ret && left ? CTL_FAILED : ret;
}

int ctl_cmd_drain(struct ctl *c, int argc, char **argv)
{
	const struct timespec pause = { 0, POLL_MS * 1000000 };
	uint64_t seconds = MAX_SECONDS, left, clients = 0, orphans = 0;
	const char *timeout = NULL;
	bool undo = false;
	const struct ctl_opt opts[] = {
		{ "timeout", 0, &timeout, NULL },
		{ "undo", 0, NULL, &undo },
		{ NULL, 0, NULL, NULL },
	};
	int ret = ctl_parse(c, argc, argv, opts, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	if (timeout && ctl_number(timeout, 0, MAX_SECONDS, &seconds))
		return ctl_usage(c, "--timeout %s: seconds, 0 to %d", timeout, MAX_SECONDS);
	ret = ask(c, undo, &clients, &orphans);
	for (left = seconds * 1000 / POLL_MS; !ret && !undo && clients && left; left--) {
		nanosleep(&pause, NULL);
		ret = ask(c, false, &clients, &orphans);
	}
	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	return report(c, undo, clients, orphans);
}
