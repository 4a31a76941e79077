// SPDX-License-Identifier: MIT
/* What a reload of cqd's configuration takes, and what it does not. */
#include "tests/system/sys.h"

static struct sys s;

/* Quota in force of namespace @name. */
static uint64_t quota(const char *name)
{
	Cqp__List body = CQP__LIST__INIT;
	DECLARE_MSG(msg, LIST, list, body);
	int fd = wire_open(s.admin);
	uint64_t limit = 0;
	Cqp__Msg *r;
	size_t i;

	ASSERT_OK(fd);
	body.kind = CQP__KIND__NAMESPACES;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	ASSERT(r && r->body_case == CQP__MSG__BODY_LIST_OK);
	for (i = 0; i < r->list_ok->n_items; i++)
		if (!strcmp(r->list_ok->items[i]->name, name))
			limit = r->list_ok->items[i]->limit;
	cqp_free(r);
	close(fd);
	ASSERT(limit);
	return limit;
}

static void reload(const struct sys_opts *o)
{
	sys_write_conf(&s, o);
	ASSERT_SYS(kill(s.cqd, SIGHUP));
	sys_expect(&s, "reloading ");
	sys_expect(&s, "ready ");
}

/* The pool stays as it is until cqd is restarted, and shares are of that. */
TEST_LIMIT(share_of_the_pool_in_force, 60)
{
	static const struct sys_opts small = { .daemon = "pool_bytes = 100M",
					       .red = "quota_bytes = 50%" };
	static const struct sys_opts large = { .daemon = "pool_bytes = 200M",
					       .red = "quota_bytes = 50%" };
	static const struct sys_opts share = { .daemon = "pool_bytes = 200M",
					       .red = "quota_bytes = 10%" };

	sys_start(&s, &small);
	ASSERT_EQ(quota("red"), 50 << 20);
	reload(&large);
	ASSERT_EQ(quota("red"), 50 << 20);
	ASSERT_EQ(quota("blue"), 100 << 20);
	reload(&share);
	ASSERT_EQ(quota("red"), 10 << 20);
	sys_restart(&s);
	ASSERT_EQ(quota("red"), 20 << 20);
	ASSERT_EQ(quota("blue"), 200 << 20);
	sys_stop(&s);
}
