/* SPDX-License-Identifier: MIT */
/*
 * What happens, counted where it happens: figures of a namespace, and notices
 * of single events for whoever watches the store.
 */
#ifndef CQD_COUNT_H
#define CQD_COUNT_H

#include <stdbool.h>
#include <stdint.h>
#include "proto/key.h"
#include "proto/proto.h"

struct cqd_store;
struct cqd_ns;
struct cqd_shard;
struct cqd_model;
struct cqd_client;

/* Why a sealed page went. */
enum cqd_evict_reason {
	CQD_EVICT_WATERMARK,	/* the pool was above its high watermark */
	CQD_EVICT_ROOM,		/* a seal needed its slot or its record */
	CQD_EVICT_SEGMENT,	/* its segment was given back whole */
	CQD_EVICT_TTL,		/* unused for longer than its time to live */
	CQD_EVICT_ADMIN,	/* asked for by the administrator */
	CQD_EVICT_PRESSURE,	/* the machine was short of memory */
	CQD_EVICT_QUOTA,	/* its namespace needed room within its quota */
	CQD_EVICT_DROPPED,	/* no eviction: bad checksum, lost parent, model unloaded */
	CQD_N_EVICT
};

#define CQD_HIST_MAX 16

/**
 * struct cqd_hist - values counted by size
 * @n:   per bucket: values up to its bound that fit no bucket before; the last
 *       one has no bound
 * @sum: of all values, in the unit of the bounds
 */
struct cqd_hist {
	uint64_t n[CQD_HIST_MAX + 1];
	uint64_t sum;
};

/* Counts @value by @bounds [@n, at most CQD_HIST_MAX], ascending. */
void cqd_hist_add(struct cqd_hist *h, const uint64_t *bounds, unsigned int n,
		  uint64_t value);

/* Seconds without use at which pages were evicted. */
#define CQD_AGE_BOUNDS 8
extern const uint64_t cqd_age_bounds_us[CQD_AGE_BOUNDS];

/**
 * struct cqd_ns_counts - of one namespace since cqd started, or at this moment
 * @hits, @misses: pages found and not found by lookups
 * @lookups:   requests
 * @seals:     pages sealed, @seals_existing of them were there already
 * @seals_failed: seals answered with an error
 * @restored:  pages published from files; they are no seals
 * @gone:      sealed pages that went, by enum cqd_evict_reason
 * @age:       microseconds since the last use of evicted pages
 * @checksum_failures: pages dropped for a wrong checksum
 * @resumed:   sessions taken up again after a broken connection
 * @sealing:   seals under way now
 * @clients, @orphans: sessions now, those without a connection among them
 * @state:     pages now, by enum cqp_state; free ones belong to nobody
 */
struct cqd_ns_counts {
	uint64_t hits, misses, lookups;
	uint64_t seals, seals_existing, seals_failed, restored;
	uint64_t gone[CQD_N_EVICT];
	struct cqd_hist age;
	uint64_t checksum_failures, resumed;
	uint64_t sealing, clients, orphans;
	uint64_t state[5];
};

/* "watermark", "room" ... */
const char *cqd_evict_reason_name(unsigned int reason);

/* --- notices --- */

enum cqd_notice_kind {
	CQD_NOTICE_SEALED,
	CQD_NOTICE_GONE,
	CQD_NOTICE_LOADED,
	CQD_NOTICE_UNLOADED,
	CQD_NOTICE_JOINED,
	CQD_NOTICE_LEFT,
	CQD_NOTICE_CHECKSUM,
	CQD_NOTICE_RELOADED,
	CQD_NOTICE_RESIDENT,	/* of a snapshot */
	CQD_N_NOTICES
};

/**
 * struct cqd_notice - one event, with copies of what it names
 * @kind:   enum cqd_notice_kind
 * @reason: enum cqd_evict_reason of a page that went
 * @depth:  page number in its chain
 * @pid, @uid: of a client
 * @bytes:  of a page's slots, of a model's file
 * @key, @parent: of a page; the parent of page 0 is the root key of its shard
 * @range:  of a page's shard
 * @pool:   number of the pool that it is in, 0: the host's
 * @tenant: namespace, "" for events of the whole daemon
 * @name:   of the model, or of a client
 */
struct cqd_notice {
	uint8_t kind, reason, pool;
	bool has_parent;
	uint32_t depth, pid, uid;
	uint64_t bytes;
	struct cqp_key key, parent;
	struct cqp_shard range;
	char tenant[CQP_MAX_NAME], name[CQP_MAX_NAME];
};

typedef void (*cqd_watch_fn)(void *arg, const struct cqd_notice *notice);

/* @fn is called on the loop for every event, and must not touch the store.
 * NULL: nobody watches, which costs nothing. */
void cqd_store_watch(struct cqd_store *st, cqd_watch_fn fn, void *arg);

/* Resident page at or after record *@cursor. True and *@cursor moved past it;
 * false: none among @max records looked at, or the end (*@cursor UINT32_MAX). */
bool cqd_store_resident(struct cqd_store *st, const struct cqd_ns *ns,
			uint32_t *cursor, uint32_t max, struct cqd_notice *out);

/* --- where it happens --- */

/*
 * Page @p is going to be freed or dropped, for @reason; call it right before.
 * A page that goes without was CQD_EVICT_DROPPED.
 */
void cqd_evicted(struct cqd_store *st, uint32_t p, enum cqd_evict_reason reason);
/* By page.c alone: a sealed page cannot be found any more. */
void cqd_page_gone(struct cqd_store *st, uint32_t p);
void cqd_looked_up(struct cqd_client *cl, struct cqd_shard *sh, unsigned int hits,
		   unsigned int misses);
void cqd_page_sealed(struct cqd_store *st, uint32_t p, struct cqd_client *cl, bool saved);
void cqd_checksum_failed(struct cqd_store *st, uint32_t p);
void cqd_model_changed(struct cqd_model *m, bool loaded);
void cqd_client_changed(struct cqd_client *cl, bool joined);

#endif /* CQD_COUNT_H */
