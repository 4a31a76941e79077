/* SPDX-License-Identifier: MIT */
/* What test_crash and the cqd that it kills tell each other. */
#ifndef TESTS_STORES_CTL_H
#define TESTS_STORES_CTL_H

#include <stdint.h>

#define STORES_STARTS 512

/**
 * struct stores_ctl - in a file that both map
 * @starts: of cqd so far
 * @stores: of all of them together
 * @die_at: store that the start of that number does not survive; 0: none
 */
struct stores_ctl {
	uint64_t starts, stores;
	uint64_t die_at[STORES_STARTS];
};

#endif /* TESTS_STORES_CTL_H */
