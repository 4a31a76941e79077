// SPDX-License-Identifier: MIT
/* Histograms, and the words for reasons: what figures need besides the store. */
#include "daemon/count.h"

#define SEC 1000000ull

const uint64_t cqd_age_bounds_us[CQD_AGE_BOUNDS] = {
	1 * SEC, 10 * SEC, 60 * SEC, 600 * SEC, 3600 * SEC, 21600 * SEC, 86400 * SEC,
	604800 * SEC,
};

/**
 * cqd_hist_add() - count a value
 * @h:      histogram
 * @bounds: [@n] upper bounds, ascending, each included in its bucket
 * @n:      at most CQD_HIST_MAX
 * @value:  in the unit of the bounds
 */
void cqd_hist_add(struct cqd_hist *h, const uint64_t *bounds, unsigned int n,
		  uint64_t value)
{
	unsigned int i;

	for (i = 0; i < n && value > bounds[i]; i++)
		;
	h->n[i]++;
	h->sum += value;
}

/**
 * cqd_evict_reason_name() - as metrics and events name it
 * @reason: enum cqd_evict_reason
 *
 * Return: a word.
 */
const char *cqd_evict_reason_name(unsigned int reason)
{
	static const char *const names[CQD_N_EVICT] = {
		[CQD_EVICT_WATERMARK] = "watermark",
		[CQD_EVICT_ROOM] = "room",
		[CQD_EVICT_SEGMENT] = "segment",
		[CQD_EVICT_TTL] = "ttl",
		[CQD_EVICT_ADMIN] = "admin",
		[CQD_EVICT_PRESSURE] = "pressure",
		[CQD_EVICT_QUOTA] = "quota",
		[CQD_EVICT_DROPPED] = "dropped",
	};

	return reason < CQD_N_EVICT ? names[reason] : "?";
}
