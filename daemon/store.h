/* SPDX-License-Identifier: MIT */
/*
 * The store: namespaces, models, segments, pages, pins and clients, and the
 * index that makes them survive a restart. It knows no sockets and no
 * messages; daemon/conn.c and the handlers stand before it.
 *
 * Everything here runs on the event loop's thread. What is slow (reserving
 * memory, copying, checksums, pushing fds to the service manager) is queued to
 * worker threads by the store itself; completions run on the loop.
 */
#ifndef CQD_STORE_H
#define CQD_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>
#include "cq/err.h"
#include "daemon/mem.h"
#include "proto/index.h"
#include "proto/key.h"
#include "proto/look.h"
#include "proto/proto.h"
#include "proto/tail.h"

#define CQD_MAX_POOLS	17	/* the host and 16 GPUs */

struct cqd_store;	/* one per daemon */
struct cqd_ns;		/* namespace */
struct cqd_model;	/* loaded model file */
struct cqd_shard;	/* namespace x model x range: owner of segments */
struct cqd_client;	/* a session: what pins belong to; outlives connections */
struct cqd_segment;
struct cqd_ns_counts;	/* daemon/count.h */

/**
 * struct cqd_pool_opts - memory of a device, as configured
 * @name:    of the section
 * @uuid:    of the device
 * @backend: by name
 * @bytes:   limit on segments; 0: @percent of the device's memory
 * @holder:  socket of the process that holds the memory, lives on; NULL: there is none
 * @trust_readers: readable_by holds there too
 */
struct cqd_pool_opts {
	const char *name, *uuid, *backend, *holder;
	uint64_t bytes;
	uint32_t percent;
	bool trust_readers;
};

/**
 * struct cqd_store_opts - limits and what came back from the fd store
 * @pool_bytes:  limit on bytes of the host's segments
 * @max_pages:   page records in the index
 * @max_clients: client records
 * @max_pins:    pin records
 * @segment_min: bytes of a shard's first segment, @segment_max of its largest
 * @low, @high:  eviction watermarks in percent of a pool in use
 * @half_life_s: after so many seconds a use counts half; 0: the default
 * @verify_rate: bytes per second of background verification after re-adoption
 * @backend:     memory backend by name, "memfd"
 * @policy:      huge pages and nodes of the host's segments
 * @pools:       devices, [@n_pools], less than CQD_MAX_POOLS of them
 * @fds:         descriptors handed over by the service manager, @names their
 *               names, @n_fds their number; the store owns them from now on
 * @push_fds:    a service manager with an fd store is there (else nothing is pushed)
 */
struct cqd_store_opts {
	uint64_t pool_bytes;
	uint32_t max_pages, max_clients, max_pins;
	uint64_t segment_min, segment_max;
	uint32_t low, high, half_life_s;
	uint64_t verify_rate;
	const char *backend;
	struct cqd_mem_policy policy;
	const struct cqd_pool_opts *pools;
	unsigned int n_pools;
	const int *fds;
	char *const *names;
	unsigned int n_fds;
	bool push_fds;
};

/* Builds or re-adopts the index. 0, -ENOMEM, -EINVAL. On success @err is empty,
 * or has one line about what was not taken over: log it. */
int cqd_store_new(uv_loop_t *loop, const struct cqd_store_opts *opts,
		  struct cqd_store **out, struct cq_err *err);
/* Stops background work and closes; calls @done on the loop when nothing runs
 * any more. The fds stay in the service manager's store. */
void cqd_store_close(struct cqd_store *st, void (*done)(void *arg), void *arg);

const uint8_t *cqd_store_boot_id(const struct cqd_store *st);

/**
 * struct cqd_ns_opts - a namespace as configured
 * @quota_bytes: slots, sinks and arenas together; 0: the limit of all pools
 * @quota_pages, @quota_pins: 0: no limit of its own
 * @salt: mixed into root keys
 * @priority, @ttl_s: of pages whose seal names none
 * @priority_max: what a seal may ask for; more is taken as this
 */
struct cqd_ns_opts {
	uint64_t quota_bytes;
	uint64_t quota_pages;
	uint64_t quota_pins;
	const char *salt;
	uint32_t ttl_s;
	uint8_t priority, priority_max;
};

/* Finds the namespace or makes it, and sets its limits. 0, -ENOSPC, -ENOMEM. */
int cqd_ns_get(struct cqd_store *st, const char *name,
	       const struct cqd_ns_opts *opts, struct cqd_ns **out,
	       struct cq_err *err);
const char *cqd_ns_name(const struct cqd_ns *ns);
/* NULL if there is none of that name. */
struct cqd_ns *cqd_ns_find(struct cqd_store *st, const char *name);

/**
 * struct cqd_ns_room - what a namespace may use, and uses
 * @max_bytes, @max_pages, @max_pins: UINT64_MAX: no limit
 */
struct cqd_ns_room {
	uint64_t max_bytes, max_pages, max_pins;
	uint64_t bytes, pages, pins;
};

void cqd_ns_room_get(const struct cqd_ns *ns, struct cqd_ns_room *out);
/* Limits from now on, each 0: none of its own. What is above goes, unless in use. */
void cqd_ns_limit(struct cqd_ns *ns, uint64_t bytes, uint64_t pages, uint64_t pins);
struct cqd_seal_req;
/* Priority and time to live of a seal; NULL: it named none. */
void cqd_ns_terms(const struct cqd_ns *ns, const uint32_t *priority,
		  const uint32_t *ttl_s, struct cqd_seal_req *req);

/*
 * Who may attach to whose pages, set anew: begin, one call for each pair, end.
 * Lookups obey at once; pins that are there stay until they are released.
 */
void cqd_readers_begin(struct cqd_store *st);
/* 0; -ENOSPC @reader reads CQD_MAX_READS others already. */
int cqd_readers_add(struct cqd_ns *owner, struct cqd_ns *reader, struct cq_err *err);
/* Nothing new goes into segments that somebody holds who may read no longer. */
void cqd_readers_end(struct cqd_store *st);

/* --- models --- */

typedef void (*cqd_model_cb)(void *arg, int ret, const uint8_t hash[32],
			     bool existing, const struct cq_err *err);

/**
 * cqd_model_load() - copy a model file into a sealed memfd of the daemon's own
 * @name: name workers open it by; loading another file under a name in use
 *        is -EEXIST
 * @fd:   readable file; a duplicate is taken
 * @done: called on the loop, exactly once, unless an error is returned
 */
int cqd_model_load(struct cqd_store *st, const char *name, int fd,
		   cqd_model_cb done, void *arg, struct cq_err *err);
/* -ENOENT; -EBUSY sessions have it open or pages are pinned; drops its pages. */
int cqd_model_unload(struct cqd_store *st, const char *name, struct cq_err *err);

/**
 * struct cqd_shard_info - what ModelOk carries
 * @id:         of the shard, for messages
 * @model_fd:   sealed memfd, owned by the store
 * @state_fd:   read-only fd of the namespace's state words, owned by the store
 * @kind:       of the memory of its segments
 */
struct cqd_shard_info {
	uint32_t id;
	enum cqd_mem_kind kind;
	uint8_t hash[32];
	struct cqp_key root;
	uint64_t model_bytes;
	uint64_t state_words;
	int model_fd;
	int state_fd;
};

/* Range all 0 = whole model. @device NULL: the host's memory. 0; -ENOENT; -EINVAL;
 * -ENODEV; -ENOMEM. */
int cqd_shard_get_on(struct cqd_client *client, const char *model,
		     const struct cqp_shard *range, const char *device,
		     struct cqd_shard **out, struct cqd_shard_info *info,
		     struct cq_err *err);
/* The same in the host's memory. */
int cqd_shard_get(struct cqd_client *client, const char *model,
		  const struct cqp_shard *range, struct cqd_shard **out,
		  struct cqd_shard_info *info, struct cq_err *err);
/* Shard of a message: only one that this client opened. NULL if not. */
struct cqd_shard *cqd_shard_find(struct cqd_client *client, uint32_t id);

/* --- clients --- */

/**
 * cqd_client_new() - record of a process; pins are counted on it
 * @start_time: of the process (with pid: its identity across restarts)
 */
int cqd_client_new(struct cqd_store *st, struct cqd_ns *ns, pid_t pid,
		   uint64_t start_time, uid_t uid, const char *name,
		   struct cqd_client **out, struct cq_err *err);
/* Session by id, NULL if there is none. */
struct cqd_client *cqd_client_find(struct cqd_store *st, uint64_t session);
/* Session of an orphan with the same namespace, pid and start time, or NULL. */
struct cqd_client *cqd_client_resume(struct cqd_store *st, struct cqd_ns *ns,
				     uint64_t session, pid_t pid,
				     uint64_t start_time);
/* Connected <-> orphaned. Orphans keep their pins until cqd_client_end(). */
void cqd_client_set_orphan(struct cqd_client *client, bool is_orphan);
/* The process is gone, or has no lease: all that it held is dropped. */
void cqd_client_end(struct cqd_client *client);
/* The process said Bye. False: slots that it leased may still be written to, by work
 * that it began. All else is dropped, and cqd_client_end() must follow when it is gone. */
bool cqd_client_bye(struct cqd_client *client);
uint64_t cqd_client_session(const struct cqd_client *client);
struct cqd_ns *cqd_client_ns(const struct cqd_client *client);
pid_t cqd_client_pid(const struct cqd_client *client);
uint64_t cqd_client_start_time(const struct cqd_client *client);
uid_t cqd_client_uid(const struct cqd_client *client);
/* Pins and leases. */
uint64_t cqd_client_pins(const struct cqd_client *client);
/* Connection layer's own pointer on it. */
void cqd_client_set_data(struct cqd_client *client, void *data);
void *cqd_client_data(const struct cqd_client *client);
/* Calls @fn for each client; it may end the one it is given. */
void cqd_client_for_each(struct cqd_store *st,
			 void (*fn)(struct cqd_client *client, void *arg), void *arg);

/**
 * cqd_arena_offer() - register a worker's arena
 * @fd:    memfd of at least @bytes, F_SEAL_SHRINK set; a duplicate is taken
 * @arena: id for Seal
 *
 * 0; -EINVAL not such an fd; -EDQUOT; -ENOMEM.
 */
int cqd_arena_offer(struct cqd_client *client, struct cqd_shard *shard, int fd,
		    uint64_t bytes, uint32_t *arena, struct cq_err *err);
/* 0; -ENOENT no such arena of this client. */
int cqd_arena_drop(struct cqd_client *client, uint32_t arena);

/* --- pages --- */

/**
 * struct cqd_found - about a lookup's answer
 * @filling: the first page missing is being sealed by another client
 * @split:   not 0: the pages behind the first @split do not hang on those; the
 *           last of the first ones is pinned as well
 * @n_unchecked: pages that cqd took over in memory it cannot read, and whose
 *           checksum nobody has looked at since; their bits are set in @unchecked
 */
struct cqd_found {
	bool filling;
	unsigned int split;
	unsigned int n_unchecked;
	uint8_t unchecked[CQP_MAX_KEYS / 8];
};

/**
 * cqd_match() - longest run of resident pages
 * @keys:  [n] chained keys in order
 * @pin:   pin the last page matched
 * @pages: [n] filled up to the return value
 * @sink:  the sink object of page 0, if @keys[0] is a page 0 and has one; else
 *         sink->segment is CQP_NONE
 * @found: set: what else there is to say
 *
 * Return: pages matched, or -EDQUOT / -ENOSPC (pins).
 */
int cqd_match(struct cqd_client *client, struct cqd_shard *shard,
	      const struct cqp_key *keys, unsigned int n, bool pin,
	      struct cqp_page *pages, struct cqp_page *sink, struct cqd_found *found,
	      struct cq_err *err);

/* A page's checksum, as in its header. */
struct cqd_check {
	uint64_t lo, hi;
};

/* What a worker says of pages that cqd cannot read; @gone: bits of those that are lost. */
void cqd_checked(struct cqd_client *client, const struct cqp_page *pages,
		 const struct cqd_check *checks, unsigned int n, uint8_t *gone);

/**
 * struct cqd_segment_info - what SegmentOk carries
 * @kind: of its memory
 * @fd: read-only where there is such a thing, owned by the store; -1: none
 * @handle: CQD_HANDLE bytes of the store's, instead of @fd; NULL: none
 * @state_fd: the same for the state words of its namespace, @state_words of
 *            them, if that is not the client's own; else -1
 */
struct cqd_segment_info {
	enum cqd_mem_kind kind;
	uint64_t bytes, slot_bytes, word_base, state_words;
	uint32_t slots;
	int fd, state_fd;
	const uint8_t *handle;
};

/* 0; -ENOENT: no such segment of a namespace that this client may read; -ENODATA: it, or
 * all that it was among, is lost; -ENOMEM. */
int cqd_segment_get(struct cqd_client *client, uint32_t id,
		    struct cqd_segment_info *info);

/**
 * struct cqd_seal_req - a page to be copied and published
 * @slot:        leased slot that the payload is in; NULL: it is copied from @arena
 * @sink_slot:   the same of the sink payload, NULL: none
 * @check_lo, @check_hi: with @slot: checksum of the payload, as in its header
 * @arena:       id from cqd_arena_offer()
 * @parent:      key of the page before, or the shard's root key
 * @offset:      of the payload in the arena
 * @sink_offset: of the sink payload, UINT64_MAX if none
 * @ttl_s:       dropped when unused for so long; 0: never
 * @priority:    the higher, the longer it stays
 */
struct cqd_seal_req {
	const struct cqp_page *slot, *sink_slot;
	uint64_t check_lo, check_hi;
	uint32_t arena;
	uint32_t ttl_s;
	uint8_t priority;
	struct cqp_key parent;
	uint32_t tokens[CQ_PAGE_TOKENS];
	const void *extra;
	size_t extra_len;
	uint64_t offset;
	uint64_t sink_offset;
};

struct cqd_seal_result {
	struct cqp_key key;
	struct cqp_page page;	/* pinned for the client */
	struct cqp_page sink;	/* segment CQP_NONE if none */
	bool existing;
};

typedef void (*cqd_seal_cb)(void *arg, int ret, const struct cqd_seal_result *res,
			    const struct cq_err *err);

/**
 * cqd_seal() - copy into a free slot, checksum the copy, publish
 * @done: called on the loop, exactly once and possibly before return, also
 *        when the client ended meanwhile (-ECANCELED); not called when an
 *        error is returned
 *
 * Failures given to @done: -ENOSPC pool full of pages that cannot go;
 * -EDQUOT; -ENOENT parent not resident; -EFAULT arena too short; -ENOMEM.
 */
int cqd_seal(struct cqd_client *client, struct cqd_shard *shard,
	     const struct cqd_seal_req *req, cqd_seal_cb done, void *arg,
	     struct cq_err *err);

/* Drops one pin per entry. 0, or -EINVAL: an entry names no page pinned by this
 * client (entries before it are done). */
int cqd_release(struct cqd_client *client, const struct cqp_page *pages,
		unsigned int n, struct cq_err *err);

/* --- leases --- */

#define CQD_MAX_LEASE	1024	/* slots of one request */

typedef void (*cqd_lease_cb)(void *arg, int ret, const struct cqp_page *slots,
			     unsigned int n, const struct cq_err *err);

/**
 * cqd_lease() - slots of a device that the client writes itself
 * @n:    slots wanted, 1 to CQD_MAX_LEASE
 * @sink: for sink objects
 * @done: called on the loop, exactly once and possibly before return, with at least
 *        one slot or the failure; not called when an error is returned
 *
 * Failures given to @done: -EDQUOT; -ENOSPC; -ECANCELED; -ENOMEM.
 */
int cqd_lease(struct cqd_client *client, struct cqd_shard *shard, unsigned int n, bool sink,
	      cqd_lease_cb done, void *arg, struct cq_err *err);
/* Slots go back. 0; -EINVAL one is not leased by this client, -EBUSY is being sealed
 * (entries before it are done). */
int cqd_lease_return(struct cqd_client *client, const struct cqp_page *slots,
		     unsigned int n, struct cq_err *err);
/* All go back but these, which are checked first: 0 or -EINVAL. */
int cqd_lease_keep(struct cqd_client *client, const struct cqp_page *slots,
		   unsigned int n, struct cq_err *err);

/* --- names --- */

/**
 * struct cqd_publish_req - a name for a sequence
 * @name:     1 to 63 characters
 * @key:      of its last full page, which is resident; NULL: it has none
 * @tokens:   in all
 * @arena:    id from cqd_arena_offer()
 * @extents:  [@n_extents] of the arena, the tail; none: the name only pins
 * @check_lo: XXH3-128 of the tail, low half
 * @check_hi: high half
 * @ttl_s:    0: never expires
 * @replace:  take a name in use over
 * @once:     the first attach takes the name away
 */
struct cqd_publish_req {
	const char *name;
	const struct cqp_key *key;
	uint64_t tokens;
	uint32_t arena;
	const struct cqp_extent *extents;
	unsigned int n_extents;
	uint64_t check_lo, check_hi;
	uint32_t ttl_s;
	bool replace, once;
};

typedef void (*cqd_publish_cb)(void *arg, int ret, const struct cq_err *err);

/**
 * cqd_publish() - copy a tail, keep it and the pages under a name
 * @done: called on the loop, exactly once and possibly before return; not
 *        called when an error is returned
 *
 * Return, or given to @done: 0; -EINVAL; -EEXIST; -ENOENT the page is not
 * resident; -EDQUOT; -ENOSPC names; -EFAULT arena too short; -EIO the arena
 * changed meanwhile; -ECANCELED the client ended; -ENOMEM.
 */
int cqd_publish(struct cqd_client *client, struct cqd_shard *shard,
		const struct cqd_publish_req *req, cqd_publish_cb done, void *arg,
		struct cq_err *err);

/**
 * struct cqd_attached - what AttachOk carries
 * @page: the last full page, pinned; segment CQP_NONE if none
 * @fd:   read-only memfd of @bytes, sealed; the receiver closes it
 */
struct cqd_attached {
	uint64_t tokens, bytes, check_lo, check_hi;
	struct cqp_page page;
	int fd;
};

/* 0; -ENOENT no such name, or of another shard; -ENODATA it has no tail; -ENOBUFS
 * a tail of more than @room bytes; -EDQUOT, -ENOSPC pins; -EMFILE. */
int cqd_attach(struct cqd_client *client, struct cqd_shard *shard, const char *name,
	       uint64_t room, struct cqd_attached *out, struct cq_err *err);
/* 0 or -ENOENT. */
int cqd_unpublish(struct cqd_ns *ns, const char *name, struct cq_err *err);
/* The administrator's: @key of any shard. 0; -ENOENT; and as cqd_publish(). */
int cqd_name_pin(struct cqd_ns *ns, const char *name, const struct cqp_key *key,
		 uint32_t ttl_s, bool replace, struct cq_err *err);

/* --- administration --- */

typedef void (*cqd_verify_cb)(void *arg, uint64_t checked, uint64_t failed,
			      uint64_t bytes);
/* Checksum of every sealed page now; mismatches are dropped with descendants. */
int cqd_verify(struct cqd_store *st, cqd_verify_cb done, void *arg);

/**
 * struct cqd_look_segment - memory that somebody is to look at
 * @kind:   CQD_CODES or CQD_SINKS
 * @fd:     the store's; -1: none
 * @handle: CQD_HANDLE bytes of the store's, instead of @fd; NULL: none
 */
struct cqd_look_segment {
	unsigned int kind;
	uint64_t bytes;
	int fd;
	const uint8_t *handle;
};

/**
 * struct cqd_look_batch - what LookOk carries
 * @device: UUID, the store's
 * @rate:   bytes per second, 0: as fast as it goes
 * @slots:  [@n_slots], their segments [@n_segs]
 */
struct cqd_look_batch {
	const char *device;
	uint64_t rate;
	uint32_t n_slots, n_segs;
	struct cqp_look slots[CQP_LOOK_SLOTS];
	struct cqd_look_segment seg[CQP_LOOK_SEGMENTS];
};

struct cqd_look;
/* Pages of a GPU, for who can read them. 0; -ENODEV; -EINVAL; -ENOMEM. */
int cqd_look_new(struct cqd_store *st, const char *pool, bool all, struct cqd_look **out,
		 struct cq_err *err);
/* What was found where the last answer said, [@n]. 0; -EINVAL. */
int cqd_look_seen(struct cqd_look *l, const struct cqp_seen *seen, uint32_t n, uint64_t *wrong,
		  struct cq_err *err);
void cqd_look_next(struct cqd_look *l, struct cqd_look_batch *b);
void cqd_look_free(struct cqd_look *l);

/**
 * struct cqd_evict_opts - which pages the administrator wants gone
 * @ns:       of this namespace, NULL: of all
 * @model:    of the model of this name, NULL: of all
 * @older_us: not used for longer than so long; 0: whatever their use
 * @bytes:    ends when so many are free; 0: no such end
 */
struct cqd_evict_opts {
	const struct cqd_ns *ns;
	const char *model;
	uint64_t older_us;
	uint64_t bytes;
};

typedef void (*cqd_evict_cb)(void *arg, uint64_t pages, uint64_t bytes);
/* Evicts some per turn of the loop, never what is in use; then calls @done with
 * what went. 0; -ENOENT no such model; -ENOMEM. */
int cqd_evict(struct cqd_store *st, const struct cqd_evict_opts *opts,
	      cqd_evict_cb done, void *arg, struct cq_err *err);
/* The machine is short of memory: gives some segments back. */
void cqd_store_squeeze(struct cqd_store *st);

typedef void (*cqd_save_cb)(void *arg, int ret, uint64_t pages, uint64_t bytes,
			    const struct cq_err *err);
/* Writes every sealed page to a file (proto/save.h). */
int cqd_save(struct cqd_store *st, int fd, cqd_save_cb done, void *arg, struct cq_err *err);

/**
 * struct cqd_restore_result - what became of saved pages
 * @restored:     came back, @bytes of payload
 * @existing:     were resident
 * @lost:         records missing in the file, as far as can be told
 * @bad:          damaged: wrong checksum, no page of that model or salt
 * @no_parent:    the page before was not there
 * @no_model:     no model of that hash is loaded
 * @no_namespace: no such namespace
 * @no_room:      a quota, the pool or the index is full
 * @unread:       of @lost and @bad, those that may be whole: reading failed
 * @text:         the first model or namespace that is missing
 */
struct cqd_restore_result {
	uint64_t restored, bytes, existing;
	uint64_t lost, bad, no_parent, no_model, no_namespace, no_room, unread;
	char text[96];
};

typedef void (*cqd_restore_cb)(void *arg, int ret, const struct cqd_restore_result *res,
			       const struct cq_err *err);
/* Brings the pages of a file back; nothing is evicted for them. */
int cqd_restore(struct cqd_store *st, int fd, cqd_restore_cb done, void *arg,
		struct cq_err *err);
/* Nobody waits for the one with that @arg: it ends soon, another may begin now. */
void cqd_transfer_gone(struct cqd_store *st, const void *arg);

/* persist=: pages of a folder come back, sealed ones are written there.
 * Models that pages are of should be loaded. */
int cqd_persist_start(struct cqd_store *st, const char *dir, uint64_t rate,
		      struct cq_err *err);
/* Writes what is not written yet; @done at once if nothing is persistent. */
void cqd_persist_flush(struct cqd_store *st, void (*done)(void *arg), void *arg);

struct cqd_stats {
	uint64_t pool_limit, pool_reserved, pool_used;	/* the host's */
	uint64_t index_used, codebook_bytes, arena_bytes;
	uint64_t pages_sealed, pages_filling, pages_pinned;
	uint64_t clients, orphans;
	uint64_t hits, misses, seals, restored, evictions;
	uint64_t checksum_failures, verify_pending;
	uint64_t unchecked;			/* the same on devices, left to workers */
	uint64_t fdstore, segments;
	uint64_t transfer_done, transfer_total;	/* of a save or restore, else 0 */
	uint64_t persist_bytes;			/* of the files of persist= */
};

void cqd_store_stats(const struct cqd_store *st, struct cqd_stats *out);
/* Pages in memory that cqd cannot read: neither verified nor saved. */
uint64_t cqd_store_unreadable(const struct cqd_store *st);

/**
 * struct cqd_ns_figures - a namespace at this moment
 * @quota_pages, @quota_pins: UINT64_MAX: none
 * @counts: lives as long as the store
 */
struct cqd_ns_figures {
	const char *name;
	uint64_t bytes, arena_bytes, pages, pins, leases;
	uint64_t quota_bytes, quota_pages, quota_pins;
	const struct cqd_ns_counts *counts;
};

/* Namespace number @i from 0 on. False: there are not so many. */
bool cqd_ns_figures(const struct cqd_store *st, uint32_t i, struct cqd_ns_figures *out);

/**
 * struct cqd_pool_figures - a pool at this moment
 * @name:    "host", or that of its section
 * @backend: its kind of memory
 * @uuid:    of its device, empty: the host
 * @why:     why it cannot be used; empty: it can
 * @node:    device node that is kept open, empty: none
 */
struct cqd_pool_figures {
	const char *name, *backend, *uuid, *why, *node;
	uint64_t limit, reserved, used;
};

/* Pool number @i; 0 is the host's. False: there are not so many. */
bool cqd_pool_figures(const struct cqd_store *st, uint32_t i, struct cqd_pool_figures *out);

/* Name of an enum cqp_state. */
const char *cqd_state_name(unsigned int state);

/**
 * struct cqd_item - one line of a listing; unused fields are 0 or NULL
 * Strings and @hash point into the store and hold until the loop runs on.
 */
struct cqd_item {
	const char *name, *tenant, *model, *state, *backend, *pool;
	char text[65];		/* storage for @name when it is computed */
	char k[16], v[16];
	char rope[256];
	const uint8_t *hash;
	uint64_t id, bytes, limit, pages, pins, slots, age_us, slot_bytes, tokens, left_us;
	uint64_t lookups, hits, misses, seals, restored, evictions;
	uint32_t pid, uid, layers, heads, kv_heads, head_dim, depth, sinks, window;
};

/* Item at or after @cursor (0 = first). True and *cursor moved past it, or
 * false at the end. @kind: Cqp__Kind (0 models .. 5 names). */
bool cqd_store_item(struct cqd_store *st, unsigned int kind, uint64_t *cursor,
		    struct cqd_item *out);

#endif /* CQD_STORE_H */
