/* SPDX-License-Identifier: MIT */
/*
 * Inside of the store: what its files share. Everything is touched on the
 * event loop's thread only, except what a job carries to a worker thread.
 *
 * Page, pin and client records are named by their number in the index; the
 * arrays beside the index (struct cqd_page, struct cqd_pin) hold what can be
 * rebuilt by a scan: hash chains, LRU, tree links, counts.
 */
#ifndef CQD_STORE_PRIV_H
#define CQD_STORE_PRIV_H

#include "cq/barrier.h"
#include "cq/kref.h"
#include "cq/list.h"
#include "cq/page.h"
#include "daemon/count.h"
#include "daemon/mem.h"
#include "daemon/store.h"
#include "kernels/model.h"

#define CQD_MAX_NS		256
#define CQD_MAX_READS		8	/* as in daemon/config.h */
#define CQD_MAX_MODELS		256
#define CQD_MAX_SEGMENTS	4096
#define CQD_MAX_NAMES		1024
#define CQD_SHARDS_PER_CLIENT	64
#define CQD_ARENAS_PER_CLIENT	64
#define CQD_SEALS_PER_CLIENT	4096	/* open at once */
#define CQD_LEASES_PER_CLIENT	4096
#define CQD_LEASES_PER_NS	16384
#define CQD_EMPTY_MS		30000	/* an empty segment is kept this long */
#define CQD_FULL_MS		1000	/* a device that has no memory is left alone so long */
#define CQD_PRIORITIES		256
#define CQD_LEVELS		8	/* of frequency, see lru.c */
#define CQD_MAX_USES		255	/* a page's counter stops there */
#define CQD_WHEEL		1024	/* seconds ahead, see ttl.c */

/* --- worker threads (job.c) --- */

/**
 * struct cqd_job - a piece of slow work, embedded in what it is about
 * @run:  on a worker thread
 * @done: on the loop, exactly once, when @run has returned
 */
struct cqd_job {
	struct cqd_job *next;
	struct cqd_store *st;
	void (*run)(struct cqd_job *job);
	void (*done)(struct cqd_job *job);
	struct list_head node;
	bool slow;
};

struct cqd_back;

int cqd_jobs_open(struct cqd_store *st);
/* After the last job; @closed is called on the loop. */
void cqd_jobs_close(struct cqd_store *st, uv_close_cb closed);
/* @slow jobs (reserving memory, service manager) leave threads to the others. */
void cqd_job_queue(struct cqd_store *st, struct cqd_job *job, bool slow);

/* --- index memfd (index.c) --- */

/*
 * Free records of one table, last freed first taken; those from @high on were
 * never used, and nothing ever looks at them.
 */
struct cqd_tab {
	uint32_t n, used, head, high;
	uint32_t last;		/* of the free list, while it is made anew */
	uint32_t *next;
	uint32_t *stored;	/* @high in the index's head, NULL for small tables */
};

struct cqd_index {
	int fd;
	uint64_t bytes;
	struct cqp_index_hdr *hdr;
	struct cqp_rec_namespace *ns;
	struct cqp_rec_model *models;
	struct cqp_rec_segment *segs;
	struct cqp_rec_client *clients;
	struct cqp_rec_page *pages;
	struct cqp_rec_pin *pins;
	struct cqp_rec_name *names;
	struct cqd_tab t_ns, t_models, t_segs, t_clients, t_pages, t_pins, t_names;
};

int cqd_index_create(struct cqd_index *ix, const struct cqd_store_opts *opts,
		     struct cq_err *err);
/* Takes @fd over on success. -EINVAL with the reason if it is no index of ours. */
int cqd_index_open(struct cqd_index *ix, int fd, struct cq_err *err);
void cqd_index_close(struct cqd_index *ix);
/* Is it of today's version, with the sizes asked for? */
bool cqd_index_current(const struct cqd_index *ix, const struct cqd_store_opts *opts);
/* The records of @from in a new index that is; @from stays as it is. (migrate.c) */
int cqd_index_migrate(const struct cqd_index *from, const struct cqd_store_opts *opts,
		      struct cqd_index *out, struct cq_err *err);
/* CQP_NONE when the table is full. */
uint32_t cqd_tab_get(struct cqd_tab *t);
void cqd_tab_put(struct cqd_tab *t, uint32_t i);
/* The free list anew: every record is in use, then those that are not, in order. */
void cqd_tab_rebuild(struct cqd_tab *t);
void cqd_tab_append(struct cqd_tab *t, uint32_t i);
/* The word of a record: born (new generation), or changed in state. */
void cqd_word_born(uint64_t *word, unsigned int state);
void cqd_word_state(uint64_t *word, unsigned int state);

/* --- page states (state.c) --- */

enum cqd_event {
	CQD_EV_FILL,		/* record taken for a new page */
	CQD_EV_PUBLISH,		/* copied and checked */
	CQD_EV_ABORT,		/* the seal failed */
	CQD_EV_EVICT,		/* chosen as victim */
	CQD_EV_TAKE_BACK,	/* a lookup or seal wants the victim */
	CQD_EV_RECLAIM,		/* the victim's slot is taken */
	CQD_EV_QUARANTINE,	/* bad checksum or lost parent while somebody reads it */
	CQD_EV_UNUSED,		/* nobody reads it any more */
	CQD_EV_DROP,		/* bad checksum or lost parent, unread */
	CQD_EV_RESTART,		/* found by a new daemon */
	CQD_EV_LEASE,		/* a slot is given to a client to be written */
	CQD_EV_RETURN,		/* given back, or sealed without it */
	CQD_EV_DISTRUST,	/* nobody says any more that it is not being written */
	CQD_EV_GONE,		/* whoever may have written to it is gone */
	CQD_N_EVENTS
};

/* New state, or -EINVAL: @event cannot happen in @state. */
int cqd_state_next(unsigned int state, unsigned int event);

/* --- objects --- */

/**
 * struct cqd_pool - memory of one kind in one place: owner of segments
 * @mem:        its backend
 * @dev:        its device
 * @node_fd:    the device's node, -1: none
 * @ready:      segments can be made
 * @why:        the reason if not
 * @trust_readers: readers of a namespace are given its segments
 * @name:       "host", or that of its section in cqd.conf
 * @limit:      bytes of segments that it may have
 * @reserved:   bytes of segments
 * @used:       bytes of slots in use
 * @evicting:   list of victims, by lru_next/prev
 * @draining:   evicting down to the low watermark
 * @destroying: segments on their way out
 * @last_look:  us, of cqd_evict_segment() in vain
 * @creating:   of a device: a segment is being made, and no other meanwhile
 * @full_until: loop time, ms: before then its device is not asked for memory again
 * @full:       what it said
 * @ipc:        a process that holds its memory (pool_ipc.c); NULL: there is none
 * @lost:       segments of it were lost with their holder since cqd started
 */
struct cqd_pool {
	const struct cqd_mem_ops *mem;
	struct cqd_mem_device dev;
	char name[CQP_MAX_NAME];
	struct cq_err why;
	int node_fd;
	uint64_t limit, reserved, used;
	uint32_t evicting;
	bool draining, ready, trust_readers;
	uint32_t destroying;
	uint64_t last_look;
	bool creating;
	uint64_t full_until;
	struct cq_err full;
	struct cqd_ipc *ipc;
	bool lost;
};

struct cqd_ns {
	struct cqd_store *st;
	struct list_head node;
	struct list_head segs;		/* by word_base: the map of its words */
	uint32_t rec;
	char name[CQP_MAX_NAME];
	char *salt;
	bool salted;			/* @salt is known, NULL: none */
	uint64_t quota_bytes, quota_pages, quota_pins;	/* resolved, never 0 */
	uint64_t used_bytes, arena_bytes, tail_bytes, pages, pins;
	struct list_head leafy;		/* shards with pages that may go */
	bool shrinking;			/* its limits were lowered below what it uses */
	uint32_t ttl_s;			/* of seals that name none */
	uint8_t priority, priority_max;
	struct cqd_ns_counts counts;
	struct cqd_mem mem;		/* state words */
	uint64_t *words;
	uint64_t n_words;
	struct cqd_ns *reads[CQD_MAX_READS];	/* whose pages its members may attach to */
	unsigned int n_reads;
	uint32_t leases;
	uint32_t lost;			/* slots leased to nobody that is known */
	uint32_t adopted;		/* clients of before the restart */
};

struct cqd_model {
	struct cqd_store *st;
	struct list_head node;
	uint32_t rec;
	char name[CQP_MAX_NAME];
	int fd;
	const void *image;
	uint64_t bytes;
	struct cqk_model *head;
	uint32_t opens;			/* sessions that have it open */
	uint32_t shards;
	bool ready, dying;
};

/* Index of a kind of segment in a shard: 0 codes, 1 sinks. */
enum { CQD_CODES, CQD_SINKS, CQD_N_KINDS };

struct cqd_shard_kind {
	struct list_head partial;	/* segments with a free slot */
	uint64_t slot_bytes, payload;	/* 0: the shard has no such objects */
	uint32_t segments;
	bool creating;
	struct cq_err err;		/* of the last creation that failed */
	int failed;
};

/*
 * The order in which a shard's pages go: one queue per priority and level of
 * frequency, least recently used first. The bits say which are not empty; the
 * ends of an empty one mean nothing.
 */
struct cqd_lru {
	uint64_t priorities[CQD_PRIORITIES / 64];
	uint8_t levels[CQD_PRIORITIES];
	struct {
		uint32_t old, new;
	} queue[CQD_PRIORITIES][CQD_LEVELS];
};

struct cqd_shard {
	struct cqd_store *st;
	struct list_head node;
	struct list_head leafy, ns_leafy; /* on the lists of the store and of @ns */
	struct cqd_ns *ns;
	struct cqd_model *model;
	struct cqd_pool *pool;
	struct cqp_shard range;
	struct cqp_key root;
	bool has_root;
	uint32_t opens;
	uint32_t names;
	uint32_t pages;			/* records of any state but free */
	uint32_t leases;		/* slots leased, or lost */
	struct cqd_shard_kind kind[CQD_N_KINDS];
	struct cqd_lru *lru;		/* leaves that may go; made with the first segment */
	struct list_head waiting;	/* seals without a slot */
	struct list_head leasing;	/* requests for leases without a slot */
	uint64_t kicked;
};

/* What owns a slot and is no page. */
#define CQD_OWNER_LEASE		0xfffffffeu	/* a lease */
#define CQD_OWNER_LOST		0xfffffffdu	/* leased, it is not known to whom */

struct cqd_segment {
	struct cqd_store *st;
	struct cqd_shard *shard;
	struct list_head ns_node;
	struct list_head partial_node;
	struct cqd_job job;
	struct cqd_mem mem;
	struct cq_err err;
	int ret;
	uint32_t rec, id, slots, used;
	unsigned int kind;
	uint64_t slot_bytes, word_base;
	uint64_t empty_since;		/* loop time, ms */
	uint64_t last_use;		/* us: no page in it was used later */
	uint8_t top;			/* ... or has a higher priority */
	uint32_t id_next;		/* hash chain by id */
	uint32_t free_head;
	uint32_t *next_free;		/* [slots] */
	uint32_t *owner;		/* [slots] page record, CQD_OWNER_* or CQP_NONE */
	struct cqd_lease **lease;	/* [slots] where slots are leased, else NULL */
	bool live, dying;
	bool leaving;			/* being emptied: no slot of it is given out */
	bool lost;			/* its memory is gone; closed, and not counted any more */
	uint32_t importers;		/* who may have its memory open: imports.c, look.c */
	bool closed;			/* takes no new page: readers.c */
};

#define CQD_PG_LRU		1u
#define CQD_PG_HASHED		2u
#define CQD_PG_UNVERIFIED	4u
#define CQD_PG_SINK		8u	/* has a sink object */
#define CQD_PG_TTL		16u	/* on the wheel of ttl.c */
#define CQD_PG_SAVED		32u	/* in a file of persist= */

struct cqd_page {
	struct cqd_shard *shard;
	struct cqd_seal_op *filler;
	uint32_t hash_next;
	uint32_t lru_prev, lru_next;
	uint32_t parent;		/* CQP_NONE for page 0 */
	uint32_t child, sib_prev, sib_next;
	uint32_t pins;			/* counts of all clients together */
	uint32_t ttl_prev, ttl_next;
	uint16_t holds;			/* jobs that read it */
	uint8_t state;
	uint8_t flags;
	uint8_t priority, level;	/* of the queue that it is listed in */
	uint16_t tag;			/* of its key's hash: few others need to be compared */
};

/* With 128 of the record, state word, slot arrays and hash: below 256. */
_Static_assert(sizeof(struct cqd_page) <= 64, "memory per page");

struct cqd_pin {
	uint32_t hash_next;
	uint32_t prev, next;		/* pins of the same client */
};

struct cqd_arena {
	struct kref ref;
	struct cqd_job job;
	struct cqd_store *st;
	struct list_head node;
	uint32_t id;
	int fd;
	uint64_t bytes;
};

struct cqd_client {
	struct cqd_store *st;
	struct list_head node;
	struct cqd_ns *ns;
	uint32_t rec;
	uint32_t hash_next;		/* hash chain by session id */
	bool orphan, cancelling;
	bool adopted;			/* found after a restart */
	void *data;
	uint32_t pins;			/* first pin record */
	uint64_t n_pins;
	uint64_t lookups, hits, misses, sealed;	/* since cqd started */
	struct list_head seals;
	uint32_t n_seals;
	struct list_head arenas;
	uint32_t n_arenas, next_arena;
	struct list_head publishes;
	struct list_head leases, leasing;	/* what it has, what it waits for */
	uint64_t *imports;		/* bit per segment record, NULL: none */
	uint32_t n_imports;
	uint32_t n_leases;
	struct cqd_shard *shards[CQD_SHARDS_PER_CLIENT];
	uint32_t n_shards;
};

/* Pages by the second at which they expire. */
struct cqd_wheel {
	uint32_t slot[CQD_WHEEL];
	uint64_t at;			/* second; slots before it are empty */
	uint32_t n;			/* pages on it */
};

/**
 * struct cqd_name - beside a name's record
 * @shard: NULL: the record is free
 * @next:  hash chain by namespace and name
 * @fd:    of the tail, read-only, -1 if none
 */
struct cqd_name {
	struct cqd_shard *shard;
	uint32_t next;
	int fd;
};

struct cqd_place {
	struct cqd_segment *seg;
	uint32_t slot;
};

/**
 * struct cqd_lease - a slot that a client writes
 * @rec: its record, among the pins
 * @op:  seal that names it, NULL: none
 * @kept: named by cqd_lease_keep()
 */
struct cqd_lease {
	struct list_head node;
	struct cqd_client *client;
	struct cqd_place at;
	uint32_t rec;
	bool kept;
	struct cqd_seal_op *op;
};

enum cqd_seal_where {
	CQD_SEAL_NEW,
	CQD_SEAL_ON_PAGE,
	CQD_SEAL_ON_SLOT,
	CQD_SEAL_COPY,
	CQD_SEAL_PARKED,
};

struct cqd_seal_op {
	struct cqd_job job;
	struct cqd_store *st;
	struct cqd_client *client;	/* NULL once it ended */
	struct cqd_shard *shard;
	struct cqd_arena *arena;	/* NULL: the payload is in leased slots */
	struct cqd_lease *lease[CQD_N_KINDS];
	bool lent;			/* their bytes count as the page's */
	struct list_head client_node;
	struct list_head wait_node;
	struct list_head waiters;	/* seals that wait for this page */
	enum cqd_seal_where where;
	struct cqp_key key, parent_key;
	uint64_t offset, sink_offset;
	uint32_t page, ttl_s;
	uint32_t depth;			/* behind a page of another namespace */
	uint8_t priority;
	bool parent_lost;
	bool saved;			/* from a file: nothing is evicted for it */
	uint64_t want[CQD_N_KINDS][2];	/* checksums that the file promises */
	struct cqd_place at[CQD_N_KINDS];
	uint64_t lo, hi;
	int ret;
	struct cq_err err;
	cqd_seal_cb done;
	void *arg;
};

struct cqd_store {
	uv_loop_t *loop;
	struct cqd_store_opts o;
	struct cqd_pool pool[CQD_MAX_POOLS];	/* the first is the host's */
	unsigned int n_pools;
	struct cqd_index ix;
	struct list_head namespaces, models, shards, clients;
	struct cqd_segment *segs[CQD_MAX_SEGMENTS];
	uint32_t seg_hash[CQD_MAX_SEGMENTS];
	struct cqd_page *pages;
	struct cqd_pin *pins;
	struct cqd_client **client_at;	/* by record */
	struct cqd_name names[CQD_MAX_NAMES];
	uint32_t name_hash[CQD_MAX_NAMES];
	uint32_t *page_hash, *pin_hash, *session_hash;
	uint32_t page_mask, pin_mask, session_mask;
	uint32_t orphans;
	struct list_head leafy;		/* shards with pages that may go */
	uint64_t half_us;		/* after so long a use counts half */
	struct cqd_wheel wheel;
	bool idling;			/* the idle handler runs */
	struct list_head evict_reqs;	/* of the administrator */
	struct cqd_segment *emptying;	/* one that is given back */
	uint32_t emptying_at;		/* its next slot */
	enum cqd_evict_reason emptying_why;
	uint64_t squeeze;		/* bytes to give back to the machine */
	uint64_t n_state[5];
	uint64_t pages_pinned;
	uint64_t hits, misses, seals, evictions, checksum_failures;
	uint64_t verify_pending;	/* pages taken over, in memory that cqd reads */
	uint64_t unchecked;		/* the same in the memory of devices */
	uint64_t checked_bad;		/* of these, found wrong by who can read them */
	uint64_t restored, published;	/* from files; by whatever way */
	uint64_t fdstore;
	struct cqd_fdstore *fdq;	/* NULL: nothing is pushed */
	uint32_t leaving;		/* page named by cqd_evicted() */
	enum cqd_evict_reason leaving_why;
	cqd_watch_fn watch;
	void *watch_arg;
	struct cqd_persist *persist;	/* NULL: off */
	bool adopted;			/* the index came from the fd store */
	struct cqd_transfer *transfer;	/* cqctl save or restore under way, or NULL */
	uint64_t transfer_done, transfer_total;
	uint64_t empty_ms;
	uint32_t n_closed;		/* segments that take no new page */
	uint64_t kick;			/* round of cqd_seal_kick_all() */
	struct list_head woken;		/* seals that may go on */
	bool waking;
	struct list_head verify_passes;
	uint64_t hash_seed;
	uv_timer_t timer, verify_timer;
	uv_idle_t idle;
	uint32_t open_handles;
	uint32_t jobs, slow_running;
	struct cqd_back *back;
	uv_poll_t back_poll;
	struct list_head slow_queue;
	bool closing;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* --- fd store (fdstore.c) --- */

enum cqd_fd_push {
	CQD_FD_LATER,		/* when there is room: does not wait */
	CQD_FD_NOW,		/* wait for room */
	CQD_FD_SURE,		/* and until the manager has it */
};

int cqd_fdstore_open(struct cqd_store *st);
void cqd_fdstore_close(struct cqd_store *st);
/* What waits for room in the manager's socket. */
void cqd_fdstore_kick(struct cqd_store *st);
int cqd_fdstore_settle(struct cqd_store *st, struct cq_err *err);
int cqd_fdstore_push(struct cqd_store *st, const char *name, int fd, enum cqd_fd_push how,
		     struct cq_err *err);
void cqd_fdstore_remove(struct cqd_store *st, const char *name);

/* --- pools (pool.c) --- */

/* The pools of @st->o. 0, or -errno: one cannot be had. */
int cqd_pools_init(struct cqd_store *st, struct cq_err *err);
/* Keeps nodes open, also while no cqd runs; @taken(arg, name): one that was kept, or -1. */
void cqd_pools_hold(struct cqd_store *st, int (*taken)(void *arg, const char *name), void *arg);
void cqd_pools_free(struct cqd_store *st);
/* The holders of pools that have one (pool_ipc.c): watched from now on; reached again once
 * a second; let go. */
void cqd_ipc_start(struct cqd_store *st);
void cqd_ipc_tick(struct cqd_store *st);
void cqd_ipc_stop(struct cqd_store *st);
int cqd_ipc_new(struct cqd_store *st, struct cqd_pool *pool, const struct cqd_pool_opts *o,
		struct cq_err *err);
void cqd_ipc_delete(struct cqd_pool *pool);
/* After a restart: what no segment is in goes back to its holder. */
void cqd_ipc_adopted(struct cqd_store *st);
/* Was this segment made by a holder that is there? Always, without a holder. */
bool cqd_ipc_current(const struct cqd_segment *seg);
/* Every page and lease in the pool's segments, whose memory is gone (lost.c); pages. */
uint64_t cqd_pool_lose(struct cqd_store *st, struct cqd_pool *pool);
/* Has the client opened something in a pool that lost segments? */
bool cqd_client_lost(const struct cqd_client *cl);

/* Why there can be no new segment in it now: -ENODEV, with a holder -ENODATA. */
int cqd_pool_unready(const struct cqd_pool *pool, struct cq_err *err);
/* Bytes that all of them may have. */
uint64_t cqd_pools_limit(const struct cqd_store *st);
/* Pool of a device, any text; NULL if there is none. */
struct cqd_pool *cqd_pool_find(struct cqd_store *st, const char *uuid);
/* The pool that a segment's record names, NULL. */
struct cqd_pool *cqd_pool_recorded(struct cqd_store *st, const struct cqp_rec_segment *r);
void cqd_pool_record(const struct cqd_pool *pool, struct cqp_rec_segment *r);

/* May readers of a namespace be given memory of this pool? Not of a device: who has a
 * descriptor of that can write as well. */
static inline bool cqd_pool_readable(const struct cqd_pool *pool)
{
	return !pool->mem->remote || pool->trust_readers;
}

static inline struct cqd_pool *cqd_pool_of(const struct cqd_segment *seg)
{
	return seg->shard->pool;
}

/* --- memory that others have open (imports.c) --- */

/* The client is given what it may open it by. 0; -ENOMEM. */
int cqd_import(struct cqd_client *cl, struct cqd_segment *seg);
/* The process is gone, or the session is not ours to look after any more. */
void cqd_imports_drop(struct cqd_client *cl);
/* The segment ends, whoever had it open. */
void cqd_imports_forget(struct cqd_segment *seg);
/* After a restart: who may have been given what. */
void cqd_adopt_imports(struct cqd_store *st);

/* --- namespaces (ns.c) --- */

struct cqd_ns *cqd_ns_by_rec(struct cqd_store *st, uint32_t rec);
/* Namespace around an adopted or new record; @fd -1: makes its state memfd. */
int cqd_ns_attach(struct cqd_store *st, uint32_t rec, int fd, struct cqd_ns **out,
		  struct cq_err *err);
void cqd_ns_free(struct cqd_ns *ns);
/* Words for @n slots: puts @seg on the map and sets seg->word_base. -ENOSPC. */
int cqd_ns_words_get(struct cqd_ns *ns, struct cqd_segment *seg, uint32_t n);
/* True if @bytes and @pages more fit; evicts the namespace's own leaves for it. */
bool cqd_ns_room(struct cqd_ns *ns, uint64_t bytes, uint64_t pages);
/* The same without evicting anything. */
bool cqd_ns_fits(const struct cqd_ns *ns, uint64_t bytes, uint64_t pages);

/* --- reading other namespaces (readers.c) --- */

/* @owner is @ns or one that @ns may read. */
bool cqd_ns_reads(const struct cqd_ns *ns, const struct cqd_ns *owner);
/* Next page by @key, after @p (CQP_NONE: the first), of the same model and range
 * as @sh in a namespace that @ns may read, its own not counted. */
uint32_t cqd_page_foreign(struct cqd_store *st, const struct cqd_ns *ns,
			  const struct cqd_shard *sh, const struct cqp_key *key, uint32_t p);
/* Destroys closed segments that have become empty; true if there was one. */
bool cqd_closed_retire(struct cqd_store *st);

/* --- models and shards (model.c, shard.c) --- */

struct cqd_model *cqd_model_find(struct cqd_store *st, const char *name);
/* Maps, checks and takes over a sealed memfd. */
int cqd_model_map(struct cqd_model *m, int fd, struct cq_err *err);
void cqd_model_free(struct cqd_model *m);
/* Frees a model that was unloaded once its last shard is gone. */
void cqd_model_put(struct cqd_model *m);
int cqd_shard_make(struct cqd_ns *ns, struct cqd_model *m, struct cqd_pool *pool,
		   const struct cqp_shard *range, struct cqd_shard **out,
		   struct cq_err *err);
/* Derives sh->root unless that was done: 0 or -ENOMEM. */
int cqd_shard_root(struct cqd_shard *sh, struct cq_err *err);
/* Forgets @sh if nothing is in it and nobody has it open. */
void cqd_shard_put(struct cqd_shard *sh);
void cqd_shard_free(struct cqd_shard *sh);

/* --- segments (segment.c) --- */

struct cqd_segment *cqd_segment_find(struct cqd_store *st, uint32_t id);
void cqd_segment_hash(struct cqd_segment *seg);
int cqd_segment_arrays(struct cqd_segment *seg);
/* Starts the creation of a segment: 0, or -ENOSPC, -ENOMEM. */
int cqd_segment_grow(struct cqd_shard *sh, unsigned int kind, struct cq_err *err);
/* Destroys @seg if it is empty and nothing reads it. */
bool cqd_segment_retire(struct cqd_segment *seg);
void cqd_segment_tick(struct cqd_store *st);
/* Destroys every empty segment of @pool, NULL: of all, now; their bytes. */
uint64_t cqd_segment_trim(struct cqd_store *st, const struct cqd_pool *pool);
void cqd_segment_release(struct cqd_segment *seg);
uint64_t *cqd_segment_word(const struct cqd_segment *seg, uint32_t slot);
struct cqp_page cqd_place_page(const struct cqd_segment *seg, uint32_t slot);

/* --- slots (slot.c) --- */

/* A free slot, making room if need be and @evict: 0; -EAGAIN wait until the shard is
 * kicked; else why there is none. Its word is still that of before. */
int cqd_slot_get(struct cqd_shard *sh, unsigned int kind, uint32_t owner, bool evict,
		 struct cqd_place *at, struct cq_err *err);
/* Its word says FILLING from now on, of a new generation. */
void cqd_slot_begin(struct cqd_place at);
void cqd_slot_free(struct cqd_place at);
/* Marks a slot of an adopted segment used. */
void cqd_slot_adopt(struct cqd_segment *seg, uint32_t slot, uint32_t owner);
/* Builds the free list from the owners. */
void cqd_segment_free_list(struct cqd_segment *seg);

/* --- leases (lease.c) --- */

/* The leases that a seal names: 0; -EINVAL; -EBUSY. */
int cqd_lease_check(struct cqd_client *cl, const struct cqd_shard *sh,
		    const struct cqd_seal_req *req, struct cqd_lease *lease[CQD_N_KINDS],
		    struct cq_err *err);
/* Every slot of a segment whose memory is gone that is leased, or may be. */
void cqd_leases_lose(struct cqd_segment *seg);
/* Bytes of a seal's leases count as its page's, or as theirs. */
void cqd_lease_lend(struct cqd_seal_op *op, bool lent);
/* A seal ends, its leases stay as they are. */
void cqd_lease_unbusy(struct cqd_seal_op *op);
/* The slots are the page's; before its record says so. */
void cqd_lease_place(struct cqd_seal_op *op);
/* ... and after it. */
void cqd_lease_used(struct cqd_seal_op *op);
/* Tries the requests again that wait for a slot of @sh. */
void cqd_lease_kick(struct cqd_shard *sh);
void cqd_lease_cancel_client(struct cqd_client *cl);
/* The process is gone. */
void cqd_leases_drop(struct cqd_client *cl);
/* Nobody says any more when it has stopped writing. */
void cqd_leases_distrust(struct cqd_client *cl);
/* The objects alone. */
void cqd_leases_free(struct cqd_client *cl);
/* A client of before the restart is gone: with the last one go lost slots. */
void cqd_leases_client_gone(struct cqd_client *cl);

/* --- pages (page.c) --- */

uint32_t cqd_page_find(struct cqd_store *st, const struct cqd_shard *sh,
		       const struct cqp_key *key);
/* First page of the hash chain that @key is in. */
uint32_t cqd_page_chain(struct cqd_store *st, const struct cqp_key *key);
/* The same in any shard of a namespace. */
uint32_t cqd_page_find_ns(struct cqd_store *st, const struct cqd_ns *ns,
			  const struct cqp_key *key);
void cqd_page_hash(struct cqd_store *st, uint32_t p);
/* Hash of a page record's key; what it leads to is on its way into the cache. */
uint64_t cqd_page_hash_soon(struct cqd_store *st, uint32_t p);
void cqd_page_find_soon(const struct cqd_store *st, uint64_t hash);
/* cqd_page_find() and cqd_page_hash() for page @p, whose hash is known: false, and
 * nothing done, if the shard has a page of its key. */
bool cqd_page_hash_new(struct cqd_store *st, uint32_t p, const struct cqd_shard *sh,
		       uint64_t hash);
void cqd_page_link(struct cqd_store *st, uint32_t p, uint32_t parent);
/* New page in state FILLING, findable by key. CQP_NONE: no record left. */
uint32_t cqd_page_begin(struct cqd_shard *sh, const struct cqp_key *key,
			uint32_t parent, bool sink, struct cqd_seal_op *op);
/* Bytes of slots that a page takes. */
uint64_t cqd_page_bytes(const struct cqd_shard *sh, bool sink);
void cqd_page_event(struct cqd_store *st, uint32_t p, enum cqd_event ev);
/* Out of every list; record and slots are free. */
void cqd_page_free(struct cqd_store *st, uint32_t p, enum cqd_event ev);
/* The page and its descendants: freed, or quarantined while in use. */
void cqd_page_drop(struct cqd_store *st, uint32_t p);
/* Does not wait for its checksum, or not any longer. */
void cqd_page_verified(struct cqd_store *st, uint32_t p);
/* Where the pages of @sh that wait are counted. */
static inline uint64_t *cqd_unverified_of(struct cqd_store *st, const struct cqd_shard *sh)
{
	return sh->pool->mem->remote ? &st->unchecked : &st->verify_pending;
}
/* Drops page @p, whose checksum is wrong; it is the @nth one, from 1: the first few are
 * named in the log. */
void cqd_page_bad(struct cqd_store *st, uint32_t p, uint64_t nth);
/* Puts the page where its pins, holds and children say: LRU, or nowhere. */
void cqd_page_settle(struct cqd_store *st, uint32_t p);
void cqd_page_touch(struct cqd_store *st, uint32_t p);
void cqd_page_hold(struct cqd_store *st, uint32_t p);
void cqd_page_unhold(struct cqd_store *st, uint32_t p);
struct cqd_place cqd_page_place(struct cqd_store *st, uint32_t p, unsigned int kind);
uint64_t cqd_now_us(void);

/* --- the order of pages that may go (lru.c) --- */

int cqd_lru_make(struct cqd_shard *sh);
void cqd_lru_add(struct cqd_store *st, uint32_t p);
void cqd_lru_del(struct cqd_store *st, uint32_t p);
/* Uses as they count now. */
uint32_t cqd_lru_uses(const struct cqd_store *st, uint32_t p, uint64_t now);
/* A page was used at @at: by its reader, or (@uses 1) once more. */
void cqd_lru_used(struct cqd_store *st, uint32_t p, uint64_t at, uint32_t uses);
/* What @p tells about the whole of its segments. */
void cqd_lru_note(struct cqd_store *st, uint32_t p);

/**
 * struct cqd_lru_of - which pages are asked for
 * @sh, @ns, @model, @pool: theirs, NULL: of any
 * @before: last used before then, in us; 0: at any time
 */
struct cqd_lru_of {
	const struct cqd_shard *sh;
	const struct cqd_ns *ns;
	const struct cqd_model *model;
	const struct cqd_pool *pool;
	uint64_t before;
};

bool cqd_lru_matches(const struct cqd_store *st, uint32_t p, const struct cqd_lru_of *of);
/* The page among them that goes first, CQP_NONE. */
uint32_t cqd_lru_first(struct cqd_store *st, const struct cqd_lru_of *of);
/* Does what has this priority and use go before page @p? CQP_NONE: yes. */
bool cqd_lru_before(const struct cqd_store *st, uint8_t priority, uint64_t use,
		    uint32_t p);

/* --- time to live (ttl.c) --- */

void cqd_ttl_init(struct cqd_store *st);
void cqd_ttl_add(struct cqd_store *st, uint32_t p);
void cqd_ttl_del(struct cqd_store *st, uint32_t p);
bool cqd_ttl_expired(const struct cqd_store *st, uint32_t p);
/* A page that has expired and may go, CQP_NONE; takes *@work down by what it did. */
uint32_t cqd_ttl_due(struct cqd_store *st, unsigned int *work);

/* --- eviction (evict.c) --- */

/* The first leaf of @sh, or of @ns, or of all (both NULL) goes. False: none may. */
bool cqd_evict_one(struct cqd_store *st, const struct cqd_shard *sh,
		   const struct cqd_ns *ns);
void cqd_evict_kick(struct cqd_store *st);
void cqd_evict_take_back(struct cqd_store *st, uint32_t p);
void cqd_evict_start(struct cqd_store *st);
void cqd_evict_idle(uv_idle_t *idle);
void cqd_evict_tick(struct cqd_store *st);
/* Ends the administrator's requests as far as they have come. */
void cqd_evict_stop(struct cqd_store *st);

/* --- whole segments (evict_segment.c) --- */

/* Empties an old segment of another shard. True: one is being destroyed. */
bool cqd_evict_segment(struct cqd_store *st, const struct cqd_shard *sh);
/* One step of emptying a segment or of giving memory back. False: nothing to do. */
bool cqd_evict_segment_step(struct cqd_store *st);

/* --- pins (pins.c) --- */

int cqd_pin(struct cqd_client *cl, uint32_t page, struct cq_err *err);
/* -ENOENT if @cl has no pin on it. */
int cqd_unpin(struct cqd_client *cl, uint32_t page);
bool cqd_pin_exists(struct cqd_client *cl, uint32_t page);
void cqd_pins_drop(struct cqd_client *cl);
/* Puts an adopted record into the lists. */
void cqd_pin_adopt(struct cqd_store *st, struct cqd_client *cl, uint32_t pin);

int cqd_pin_named(struct cqd_ns *ns, uint32_t page, struct cq_err *err);
void cqd_unpin_named(struct cqd_ns *ns, uint32_t page);
/* The pin of an adopted name: whatever the quota. */
void cqd_pin_adopt_named(struct cqd_ns *ns, uint32_t page);

/* --- names (names.c) and their tails (publish.c) --- */

/* Empty hash; before anything else is done with names. */
void cqd_names_init(struct cqd_store *st);
/* Close what is open; records and stored fds stay. */
void cqd_names_free(struct cqd_store *st);
bool cqd_name_good(const char *name);
/* Record by name, expired ones left out; CQP_NONE. */
uint32_t cqd_name_find(struct cqd_ns *ns, const char *name);
/*
 * Brings a filled record, whose page is pinned already, to life in place of one of
 * that name; @fd of its tail, or -1, is taken over.
 */
void cqd_name_born(struct cqd_shard *sh, uint32_t rec, int fd);
/* @n: record; its pin, tail and fd go. */
void cqd_name_drop(struct cqd_store *st, uint32_t n);
/* Those that have expired, or whose page was lost. */
void cqd_names_tick(struct cqd_store *st);
/* "cq-tail-<id>". */
void cqd_tail_name(uint32_t id, char buf[32]);
bool cqd_tail_sealed(int fd, uint64_t bytes);
/* A name without a tail, at once. As cqd_publish(). */
int cqd_name_make(struct cqd_shard *sh, const struct cqd_publish_req *req,
		  struct cq_err *err);
void cqd_publish_cancel_client(struct cqd_client *cl);

/* --- seals (seal.c, seal_req.c) --- */

/* Tries the seals again that wait for a slot of @sh. */
void cqd_seal_kick(struct cqd_shard *sh);
void cqd_seal_kick_all(struct cqd_store *st);
void cqd_seal_cancel_client(struct cqd_client *cl);
void cqd_seal_cancel_waiting(struct cqd_store *st);
void cqd_arena_drop_all(struct cqd_client *cl);
struct cqd_arena *cqd_arena_find(struct cqd_client *cl, uint32_t id);
void cqd_arena_put(struct cqd_arena *a);

/* --- clients (client.c) --- */

struct cqd_client *cqd_client_attach(struct cqd_store *st, struct cqd_ns *ns,
				     uint32_t rec, bool is_orphan);
void cqd_client_free(struct cqd_client *cl);
struct cqd_seal_op *cqd_client_seal(struct cqd_client *cl);

/* --- restart (adopt.c) and verification (verify.c) --- */

/* Takes over what the service manager kept, or starts afresh. */
int cqd_adopt(struct cqd_store *st, const struct cqd_store_opts *opts,
	      struct cq_err *err);
bool cqd_slot_right(const struct cqd_shard *sh, const struct cqp_rec_page *rec,
		    unsigned int kind, const struct cq_page_hdr *h, uint64_t lo, uint64_t hi);
void cqd_verify_background(struct cqd_store *st);
void cqd_verify_timer(uv_timer_t *timer);
void cqd_verify_stop(struct cqd_store *st);

/* --- persist= (persist.c) --- */

void cqd_persist_close(struct cqd_store *st);
void cqd_persist_free(struct cqd_store *st);
uint64_t cqd_persist_bytes(const struct cqd_store *st);

/* Arrays beside the index; -ENOMEM. */
int cqd_store_arrays(struct cqd_store *st);
void cqd_store_jobs_gone(struct cqd_store *st);
void cqd_store_handle_gone(struct cqd_store *st);
/* Sealed-memory helpers shared by index, state words and segments. */
int cqd_memfd_make(const char *name, uint64_t bytes, bool reserve, struct cqd_mem *mem,
		   struct cq_err *err);
int cqd_memfd_adopt(struct cqd_mem *mem, struct cq_err *err);
void cqd_memfd_free(struct cqd_mem *mem);
int cqd_fallocate(int fd, uint64_t off, uint64_t bytes);
uint64_t cqd_random(void);

#endif /* CQD_STORE_PRIV_H */
