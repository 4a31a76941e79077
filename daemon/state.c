// SPDX-License-Identifier: MIT
/* States of a page or leased slot and what may happen in each: one table, no other
 * place. */
#include <errno.h>
#include "cq/util.h"
#include "daemon/store_priv.h"

#define NO (-EINVAL)
#define N_STATES 5

static const int8_t table[N_STATES][CQD_N_EVENTS] = {
	[CQP_FREE] = {
		[CQD_EV_FILL] = CQP_FILLING, [CQD_EV_PUBLISH] = NO,
		[CQD_EV_ABORT] = NO, [CQD_EV_EVICT] = NO,
		[CQD_EV_TAKE_BACK] = NO, [CQD_EV_RECLAIM] = NO,
		[CQD_EV_QUARANTINE] = NO, [CQD_EV_UNUSED] = NO,
		[CQD_EV_DROP] = NO, [CQD_EV_RESTART] = CQP_FREE,
		[CQD_EV_LEASE] = CQP_FILLING, [CQD_EV_RETURN] = NO,
		[CQD_EV_DISTRUST] = NO, [CQD_EV_GONE] = NO,
	},
	[CQP_FILLING] = {
		[CQD_EV_FILL] = NO, [CQD_EV_PUBLISH] = CQP_SEALED,
		[CQD_EV_ABORT] = CQP_FREE, [CQD_EV_EVICT] = NO,
		[CQD_EV_TAKE_BACK] = NO, [CQD_EV_RECLAIM] = NO,
		[CQD_EV_QUARANTINE] = NO, [CQD_EV_UNUSED] = NO,
		[CQD_EV_DROP] = NO, [CQD_EV_RESTART] = CQP_FREE,
		[CQD_EV_LEASE] = NO, [CQD_EV_RETURN] = CQP_FREE,
		[CQD_EV_DISTRUST] = CQP_QUARANTINED, [CQD_EV_GONE] = CQP_FREE,
	},
	[CQP_SEALED] = {
		[CQD_EV_FILL] = NO, [CQD_EV_PUBLISH] = NO,
		[CQD_EV_ABORT] = NO, [CQD_EV_EVICT] = CQP_EVICTING,
		[CQD_EV_TAKE_BACK] = NO, [CQD_EV_RECLAIM] = NO,
		[CQD_EV_QUARANTINE] = CQP_QUARANTINED, [CQD_EV_UNUSED] = NO,
		[CQD_EV_DROP] = CQP_FREE, [CQD_EV_RESTART] = CQP_SEALED,
		[CQD_EV_LEASE] = NO, [CQD_EV_RETURN] = NO,
		[CQD_EV_DISTRUST] = NO, [CQD_EV_GONE] = NO,
	},
	[CQP_EVICTING] = {
		[CQD_EV_FILL] = NO, [CQD_EV_PUBLISH] = NO,
		[CQD_EV_ABORT] = NO, [CQD_EV_EVICT] = NO,
		[CQD_EV_TAKE_BACK] = CQP_SEALED, [CQD_EV_RECLAIM] = CQP_FREE,
		[CQD_EV_QUARANTINE] = NO, [CQD_EV_UNUSED] = NO,
		[CQD_EV_DROP] = NO, [CQD_EV_RESTART] = CQP_FREE,
		[CQD_EV_LEASE] = NO, [CQD_EV_RETURN] = NO,
		[CQD_EV_DISTRUST] = NO, [CQD_EV_GONE] = NO,
	},
	[CQP_QUARANTINED] = {
		[CQD_EV_FILL] = NO, [CQD_EV_PUBLISH] = NO,
		[CQD_EV_ABORT] = NO, [CQD_EV_EVICT] = NO,
		[CQD_EV_TAKE_BACK] = NO, [CQD_EV_RECLAIM] = NO,
		[CQD_EV_QUARANTINE] = NO, [CQD_EV_UNUSED] = CQP_FREE,
		[CQD_EV_DROP] = NO, [CQD_EV_RESTART] = CQP_FREE,
		[CQD_EV_LEASE] = NO, [CQD_EV_RETURN] = NO,
		[CQD_EV_DISTRUST] = CQP_QUARANTINED, [CQD_EV_GONE] = CQP_FREE,
	},
};

/**
 * cqd_state_next() - the transition table
 * @state: enum cqp_state
 * @event: enum cqd_event
 *
 * Return: the new state; -EINVAL if @event cannot happen in @state.
 */
int cqd_state_next(unsigned int state, unsigned int event)
{
	if (state >= N_STATES || event >= CQD_N_EVENTS)
		return -EINVAL;
	return table[state][event];
}

/**
 * cqd_state_name() - as shown by cqctl
 * @state: enum cqp_state
 *
 * Return: a word, "?" for a state that does not exist.
 */
const char *cqd_state_name(unsigned int state)
{
	static const char *const names[N_STATES] = {
		"free", "filling", "sealed", "evicting", "quarantined",
	};

	return state < N_STATES ? names[state] : "?";
}
