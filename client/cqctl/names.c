// SPDX-License-Identifier: MIT
/* pin, unpin: names that keep pages resident. */
#include <errno.h>
#include <string.h>
#include "client/cqctl/cqctl.h"
#include "cq/page.h"

/* A message carries char *, which nobody writes to. */
static char *text(const char *s)
{
	return (char *)(uintptr_t)s;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A key of 64 digits, as "list pages" prints it. */
static int key_parse(const char *s, uint8_t key[CQ_KEY_BYTES])
{
	int i, hi, lo;

	if (strlen(s) != 2 * CQ_KEY_BYTES)
		return -EINVAL;
	for (i = 0; i < CQ_KEY_BYTES; i++) {
		hi = hex_digit(s[2 * i]);
		lo = hex_digit(s[2 * i + 1]);
		if (hi < 0 || lo < 0)
			return -EINVAL;
		key[i] = (uint8_t)(hi << 4 | lo);
	}
	return 0;
}

/* The answer is Ok: says what was done. */
static int finish(struct ctl *c, Cqp__Msg *msg, const char *what, const char *tenant,
		  const char *name)
{
	int ret;
	Cqp__Msg *reply = ctl_call(c, msg, -1, CQP__MSG__BODY_OK, &ret);

	if (!reply)
		return ctl_fail(c, ret, "%s", c->err.text);
	cqp_free(reply);
	if (c->json)
		return ctl_print_json(json_pack("{s:s, s:s}", what, name, "namespace", tenant));
	printf("%s %s in namespace %s\n", name, what, tenant);
	return CTL_OK;
}

int ctl_cmd_pin(struct ctl *c, int argc, char **argv)
{
	const char *pos[3], *ttl = NULL;
	bool replace = false;
	const struct ctl_opt opts[] = {
		{ "ttl", 0, &ttl, NULL },
		{ "replace", 0, NULL, &replace },
		{ NULL, 0, NULL, NULL },
	};
	Cqp__Msg msg = CQP__MSG__INIT;
	Cqp__Pin pin = CQP__PIN__INIT;
	uint8_t key[CQ_KEY_BYTES];
	uint64_t us = 0;
	int ret = ctl_parse(c, argc, argv, opts, pos, 3, 3);

	if (ret != CTL_GO_ON)
		return ret;
	if (key_parse(pos[2], key))
		return ctl_usage(c, "%s is no key: 64 hexadecimal digits, see \"cqctl list "
				 "pages\"", pos[2]);
	if (ttl && (ctl_duration(ttl, &us) || !us || us % 1000000 ||
		    us / 1000000 > UINT32_MAX))
		return ctl_usage(c, "--ttl %s: whole seconds, or a number with s, m, h or d",
				 ttl);
	pin.tenant = text(pos[0]);
	pin.name = text(pos[1]);
	pin.key.data = key;
	pin.key.len = sizeof(key);
	pin.has_ttl_s = !!ttl;
	pin.ttl_s = (uint32_t)(us / 1000000);
	pin.has_replace = replace;
	pin.replace = replace;
	msg.body_case = CQP__MSG__BODY_PIN;
	msg.pin = &pin;
	return finish(c, &msg, "pinned", pos[0], pos[1]);
}

int ctl_cmd_unpin(struct ctl *c, int argc, char **argv)
{
	Cqp__Unpublish un = CQP__UNPUBLISH__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	const char *pos[2];
	int ret = ctl_parse(c, argc, argv, NULL, pos, 2, 2);

	if (ret != CTL_GO_ON)
		return ret;
	un.tenant = text(pos[0]);
	un.name = text(pos[1]);
	msg.body_case = CQP__MSG__BODY_UNPUBLISH;
	msg.unpublish = &un;
	return finish(c, &msg, "unpinned", pos[0], pos[1]);
}
