/* SPDX-License-Identifier: MIT */
/* Shared by adopt.c (descriptors, tables) and adopt_pages.c. */
#ifndef CQD_ADOPT_H
#define CQD_ADOPT_H

#include "daemon/store_priv.h"

#define CQD_MAX_WORDS	(1ull << 32)	/* state words of a namespace */
#define CQD_ADOPT_AHEAD	16u		/* pages, a power of 2 */

/**
 * struct cqd_adopt - a restart under way
 * @taken: [n] descriptor belongs to a record
 * @order: [n] their numbers, sorted by name
 * @now:   us, no use is later
 * @hash:  of the pages that come next, by their number
 * @later: chain of pages, by lru_next, whose parent was not there yet
 * @index: number of the index taken over
 */
struct cqd_adopt {
	struct cqd_store *st;
	const int *fds;
	char *const *names;
	unsigned int n;
	bool *taken;
	unsigned int *order;
	uint64_t now;
	uint64_t hash[CQD_ADOPT_AHEAD];
	uint32_t later;
	unsigned int index;
	unsigned int lost_records, lost_fds;
};

struct cqd_model *cqd_model_by_rec(struct cqd_store *st, uint32_t rec);
int cqd_adopt_take(struct cqd_adopt *ad, const char *name);
void cqd_adopt_kill(struct cqd_adopt *ad, uint64_t *word);
/* True if record @i holds and is in memory now. */
bool cqd_adopt_segment(struct cqd_adopt *ad, uint32_t i);
bool cqd_adopt_page(struct cqd_adopt *ad, uint32_t i);
/* The turn of page @i comes in CQD_ADOPT_AHEAD records, or there is none. */
void cqd_adopt_page_soon(struct cqd_adopt *ad, uint32_t i);
/* After the tree. */
bool cqd_adopt_name(struct cqd_adopt *ad, uint32_t i);
/* Parents that were missing, then what nobody owns; after all pages. */
void cqd_adopt_tree(struct cqd_adopt *ad);
/* A slot of a device that somebody may be writing; a lease's record, after the clients;
 * what is left then. (lease.c) */
bool cqd_adopt_lost(struct cqd_segment *seg, uint32_t slot);
bool cqd_adopt_lease(struct cqd_adopt *ad, uint32_t i);
void cqd_adopt_leases(struct cqd_adopt *ad);
/* LRU lists; after the pins. */
int cqd_adopt_order(struct cqd_adopt *ad);

#endif /* CQD_ADOPT_H */
