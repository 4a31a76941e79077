// SPDX-License-Identifier: MIT
/* Every pair of (state, event), against a list written down by hand. */
#include <errno.h>
#include "tests/harness.h"
#include "daemon/store_priv.h"

static const struct {
	unsigned int state, event, next;
} legal[] = {
	{ CQP_FREE, CQD_EV_FILL, CQP_FILLING },
	{ CQP_FREE, CQD_EV_RESTART, CQP_FREE },
	{ CQP_FREE, CQD_EV_LEASE, CQP_FILLING },
	{ CQP_FILLING, CQD_EV_PUBLISH, CQP_SEALED },
	{ CQP_FILLING, CQD_EV_ABORT, CQP_FREE },
	{ CQP_FILLING, CQD_EV_RESTART, CQP_FREE },
	{ CQP_FILLING, CQD_EV_RETURN, CQP_FREE },
	{ CQP_FILLING, CQD_EV_DISTRUST, CQP_QUARANTINED },
	{ CQP_FILLING, CQD_EV_GONE, CQP_FREE },
	{ CQP_SEALED, CQD_EV_EVICT, CQP_EVICTING },
	{ CQP_SEALED, CQD_EV_QUARANTINE, CQP_QUARANTINED },
	{ CQP_SEALED, CQD_EV_DROP, CQP_FREE },
	{ CQP_SEALED, CQD_EV_RESTART, CQP_SEALED },
	{ CQP_EVICTING, CQD_EV_TAKE_BACK, CQP_SEALED },
	{ CQP_EVICTING, CQD_EV_RECLAIM, CQP_FREE },
	{ CQP_EVICTING, CQD_EV_RESTART, CQP_FREE },
	{ CQP_QUARANTINED, CQD_EV_UNUSED, CQP_FREE },
	{ CQP_QUARANTINED, CQD_EV_RESTART, CQP_FREE },
	{ CQP_QUARANTINED, CQD_EV_DISTRUST, CQP_QUARANTINED },
	{ CQP_QUARANTINED, CQD_EV_GONE, CQP_FREE },
};

static int want(unsigned int state, unsigned int event)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(legal); i++)
		if (legal[i].state == state && legal[i].event == event)
			return (int)legal[i].next;
	return -EINVAL;
}

TEST(every_pair)
{
	unsigned int s, e;

	for (s = 0; s <= CQP_QUARANTINED; s++)
		for (e = 0; e < CQD_N_EVENTS; e++)
			if (cqd_state_next(s, e) != want(s, e))
				FAIL("state %u event %u: %d, want %d", s, e,
				     cqd_state_next(s, e), want(s, e));
}

TEST(outside)
{
	ASSERT_EQ(cqd_state_next(CQP_QUARANTINED + 1, CQD_EV_FILL), -EINVAL);
	ASSERT_EQ(cqd_state_next(CQP_FREE, CQD_N_EVENTS), -EINVAL);
	ASSERT_EQ(cqd_state_next(0xff, 0xffffffff), -EINVAL);
	ASSERT_STREQ(cqd_state_name(CQP_SEALED), "sealed");
	ASSERT_STREQ(cqd_state_name(77), "?");
}
