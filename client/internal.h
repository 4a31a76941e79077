/* SPDX-License-Identifier: MIT */
/*
 * libcq inside: what its files share.
 *
 * Two parties work on these objects. The caller's thread owns sequences,
 * arena, batches and every reference count; it never waits for the other one
 * on the token path. The engine (conn.c, session.c, seal.c, segment.c) owns
 * the socket, requests and segments; it runs on the context's own thread or
 * inside cq_poll() and synchronous calls, always with ctx->lock held. Orders
 * and results pass between them through the rings of a model; a page object
 * belongs to the engine's fields while it is ordered.
 */
#ifndef CQC_INTERNAL_H
#define CQC_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "client/arena.h"
#include "client/ring.h"
#include "cq.h"
#include "cq.pb-c.h"
#include "cq/barrier.h"
#include "cq/err.h"
#include "cq/list.h"
#include "kernels/kernels.h"
#include "kernels/view.h"
#include "proto/frame.h"
#include "proto/index.h"
#include "proto/key.h"
#include "proto/proto.h"

struct cqc_backend;
struct cqc_gpu;
struct cqc_gpu_batch;

#define CQ_API __attribute__((visibility("default")))

#define CQC_ARENA_BLOCKS 256	/* of an arena whose size the caller leaves open */
#define CQC_RELEASE_MAX 1024	/* pins dropped by one message */
#define CQC_MAX_POSITIONS (1u << 30)	/* no model has more */

/* --- errors and options (opts.c) --- */

/* Text of this thread's last failure. */
struct cq_err *cqc_err(void);

#define cqc_fail(code, ...) cq_err_set(cqc_err(), (code), __VA_ARGS__)

/* Copies a caller's struct that begins with its size. 0, -EINVAL, -E2BIG. */
int cqc_opts_in(void *dst, size_t size, const void *src, const char *what);
/* Fills a caller's struct that begins with its size. 0 or -EINVAL. */
int cqc_opts_out(void *dst, const void *src, size_t size, const char *what);

/* --- requests --- */

struct cqc_req;

/*
 * typeof(cqc_req.done) - end of a request, with the context's lock held
 * @ret: 0; the daemon's error; -ENOTCONN the connection was lost; -EPROTO
 *       another reply than the one wanted
 * @msg: the reply, valid during the call; NULL unless it arrived
 * @f:   its descriptors, may be taken
 */
struct cqc_req {
	struct list_head link;
	uint64_t id;
	Cqp__Msg__BodyCase want;
	void (*done)(struct cq_ctx *ctx, struct cqc_req *req, int ret,
		     const Cqp__Msg *msg, struct cqp_frame *f);
	void *arg;
};

/*
 * struct cqc_call - a request that somebody waits for
 * @req:  must be first
 * @take: copies what is needed out of the reply; runs with the lock held
 * @over: the reply or failure is there
 * @ret:  result
 * @err:  text
 */
struct cqc_call {
	struct cqc_req req;
	int (*take)(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f);
	void *arg;
	bool over;
	int ret;
	struct cq_err err;
};

/* Bytes that a Seal points to. */
struct cqc_seal_buf {
	struct cqp_page slot, sink;
	uint64_t checks[4];
};

/* --- objects --- */

enum cqc_link {
	CQC_AWAY = 0,		/* no connection */
	CQC_HELLO = 1,		/* connected, Hello sent */
	CQC_READY = 2,		/* Hello answered */
};

/*
 * struct cq_ctx - a connection and its engine
 * @guard:  page that fork() wipes; the word is 0 in a child
 * @opened: tells this context's calls from stray pointers
 * @lock:   everything below it, and the engine's side of models and pages
 * @cond:   something was answered, sealed or lost
 */
struct cq_ctx {
	const uint32_t *guard;
	struct list_head models;
	bool poll_mode;
	uint32_t timeout_ms;
	int event;			/* cq_event_fd() */
	int wake;			/* wakes the own thread */
	char *path, *name, *tenant;
	pthread_t thread;

	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool stop, greeted, want_out;
	bool stalled;			/* a lookup got no answer; nothing came since */
	int sock;
	int link;			/* enum cqc_link */
	int away_err;			/* why the connection is away */
	uint64_t conn_no;		/* connections made so far */
	uint64_t next_id;
	uint64_t session;
	uint8_t boot_id[16];
	uint32_t boot_epoch;		/* grows when the daemon lost everything */
	uint32_t pin_epoch;		/* grows when it lost our pins */
	int64_t retry_at;		/* ms, CLOCK_MONOTONIC */
	int32_t retry_ms;
	uint32_t events;
	struct list_head reqs;
	struct list_head jobs;		/* pages to be sealed, struct cq_pg.job */
	struct list_head mapping;	/* sealed, their segments not mapped yet */
	struct cqc_req hello;
	struct cqc_req release_req;
	bool releasing;
	struct cqp_page *releases;
	uint32_t n_releases, max_releases;
	struct cqp_frame *frame;
};

/*
 * struct cqc_state_map - a namespace's state words, mapped read-only
 * Kept until the model is closed: pages point into it.
 */
struct cqc_state_map {
	struct list_head link;
	const uint64_t *words;
	uint64_t n;
	uint64_t dev, ino;
};

/*
 * struct cqc_seg - a segment
 * @base: NULL while its fd is on the way; read-only
 * @rw:   the same memory writable, on a device; 0: not yet
 * @ipc:  opened by a legacy handle: one mapping, which is writable
 * @words: word of slot 0
 */
struct cqc_seg {
	struct list_head link;
	struct cq_model *model;
	struct cqc_req req;
	uint32_t id, epoch;
	uint32_t slots;
	uint64_t bytes, slot_bytes;
	const uint8_t *base;
	uint64_t rw;
	bool ipc;
	const uint64_t *words;
};

/* Caller's extra key bytes, shared by the pages of a sequence. */
struct cqc_extra {
	uint32_t refs;
	uint32_t len;
	uint8_t bytes[];
};

/*
 * struct cqc_slot - a page or sink in shared memory
 * @data: payload, where kernels read it
 * @word: its state word; any value but @expect, in the bits of @mask, means that
 *        it is gone
 * @check: checksum of the payload, as its header says
 */
struct cqc_slot {
	const uint8_t *data;
	const uint64_t *word;
	uint64_t expect, mask;
	uint64_t check[2];
};

enum cqc_eng {			/* what the engine does with a page */
	CQC_ENG_IDLE = 0,
	CQC_ENG_QUEUED = 1,
	CQC_ENG_SENT = 2,
	CQC_ENG_MAPPING = 3,
	CQC_ENG_SEALED = 4,
	CQC_ENG_FAILED = 5,
};

/*
 * struct cq_pg - 64 tokens as codes, private or shared; counted
 * @refs:    sequences, children and the engine; caller's thread only
 * @busy:    steps whose tables point into @chunk
 * @ordered: handed to the engine, result not applied yet
 * @pinned:  @page is pinned for this client since @pin_epoch
 * @priority, @ttl_s: for cqd, set when it is ordered
 * @n_coded: tokens that have codes; 64 = full
 * @chunk:   arena chunk, or number of a lease on a device; CQC_NONE once shared
 * @codes:   payload where it is read now
 * @slot:    .word is NULL while private
 * @sink:    page 0 of a model with sinks: fp16 copy; .data NULL if none
 * @eng:     enum cqc_eng, engine only
 * @job:     place in ctx->jobs or ctx->mapping, engine only
 * @res:     result, engine's until it is passed back
 * @own:     word of the slot of a private page on a device: another generation
 *           means that it was given to somebody else
 * @born, @fence: fences of a device that its first and last token come before
 * @bad, @tag: number of a word on a device, and what that is at least if a value
 *           was appended that no fp16 can hold; @looked at by the engine
 * @sums:    of the payload and the sinks' on a device, low and high half
 * @hash:    enum cqc_hash, engine only
 */
struct cq_pg {
	struct cq_model *model;
	struct cq_pg *parent;
	struct cq_pg *next;
	uint32_t refs, busy;
	bool ordered, pinned, orphan;
	uint8_t priority;
	uint32_t ttl_s;
	uint32_t n_coded;
	uint32_t chunk, sink_chunk;
	int seal_err;
	const uint8_t *codes;
	struct cqc_slot slot, sink;
	struct cqp_key key;
	struct cqc_extra *extra;
	struct cqp_page page;
	uint32_t pin_epoch;

	uint32_t eng;
	struct list_head job;
	struct cqc_req req;
	struct {
		int ret;
		bool existing, has_sink;
		uint32_t pin_epoch;
		struct cqp_page page, sink_page;
		struct cqc_slot slot, sink;
	} res;
	struct cqc_slot own;
	uint64_t born, fence;
	uint32_t bad, tag;
	bool looked;
	uint64_t sums[4];
	uint32_t hash;
	uint32_t tokens[CQ_PAGE_TOKENS];
};

/*
 * struct cqc_pin - pins on matched pages, which together hold the whole prefix
 * @at: [@n] one for each answer, two for one that says "split"
 */
struct cqc_pin {
	uint32_t refs;
	uint32_t n;
	struct {
		struct cqp_page page;
		uint32_t epoch;
	} at[];
};

/*
 * struct cq_model - an opened model or shard
 * @be:     where its memory is (client/backend.h)
 * @gpu:    of a model on a device, else NULL
 * @device: its ordinal in this process, or CQ_DEVICE_HOST
 * @whole:  as parsed; @m the shard of it, what everything computes with
 * @steps:  calls of cq_step() so far
 * @orders, @results: rings
 * @deferred: results that wait for a step to end
 * @free_pg: page objects; @want_pg objects are allocated in all
 */
struct cq_model {
	uint32_t magic;
	struct cq_ctx *ctx;
	const struct cqc_backend *be;
	struct cqc_gpu *gpu;
	int32_t device;
	struct list_head link;
	struct list_head seqs, batches;
	uint64_t steps;
	char *name;
	struct cqk_model *whole;
	struct cqk_model m;
	const struct cqk_ops *ops;
	struct cqk_rope rope;
	void *rope_mem;
	void *image;
	uint64_t image_bytes;
	bool image_mapped;
	struct cqc_arena arena;
	struct cqc_ring orders, results;
	struct cq_pg *deferred;
	struct cq_pg *free_pg;
	struct cq_pg *slabs;
	uint64_t want_pg, have_pg;

	/* engine's, under ctx->lock */
	struct cqp_shard range;		/* as asked for */
	bool ready;
	int gone;			/* another model has its name now */
	int64_t reopen_at;		/* ms; 0: nothing to try */
	int32_t reopen_ms;
	uint32_t shard, arena_id;
	struct cqp_key root;
	struct cqc_req open_req, arena_req;
	struct list_head segs, maps;
	struct cqc_state_map *state;
};

/**
 * struct cqc_ent - 64 tokens of a sequence
 * @pg:       codes (or the object they will go to)
 * @f16:      arena block, CQC_NONE if there is none
 * @f16_mask: tokens that are (or will be) in it
 */
struct cqc_ent {
	struct cq_pg *pg;
	uint32_t f16;
	uint64_t f16_mask;
};

/*
 * struct cq_seq - a sequence
 * @mark:    cq_step() of the model that saw it last, to find duplicates
 * @ents:    [@max_ents], @n_ents in use; they may reach beyond @len
 * @f16_lo:  entries below it hold no fp16 block
 * @priority, @ttl_s: of pages it publishes
 * @appended: [layers] tokens appended and not committed
 */
struct cq_seq {
	uint32_t magic;
	uint32_t flags;
	struct cq_model *model;
	struct list_head link;
	uint32_t position;
	uint32_t priority, ttl_s;
	uint32_t n_ents, max_ents, f16_lo;
	uint64_t mark;
	size_t len, matched;
	struct cqc_extra *extra;
	struct cqc_pin *pin;
	struct cqc_ent *ents;
	uint32_t *appended;
};

/* A word to be read again after attention; @block: of the step, which it is about. */
struct cqc_check {
	const uint64_t *word;
	uint64_t expect, mask;
	uint32_t block;
};

static inline struct cqc_check cqc_slot_word(const struct cqc_slot *slot)
{
	return (struct cqc_check){ .word = slot->word, .expect = slot->expect,
				   .mask = slot->mask };
}

/*
 * struct cq_batch - memory of steps
 * @rows:   [@max_seqs] of each sequence of the step
 * @blocks, @spans: what the kernels read, spans grouped by block
 * @tmp, @use: [n_uses] spans as they are found and the block of each
 * @share:  blocks may be read by several sequences
 * @checks: words of the shared blocks; @check_of: check + 1 of each block
 * @held:   private pages whose chunks the step points to
 * @table:  hash of blocks by base, [@table_mask + 1], values block + 1; empty
 *          between steps; @place: where each block stands in it
 * @scratch: [@n_parts][kv head], @scratch_head bytes each: calls may run at once
 * @gpu:    what it has on a device
 */
struct cq_batch {
	uint32_t magic;
	struct cq_model *model;
	struct list_head link;
	uint32_t max_seqs, max_rows, max_ents, max_uses;
	bool valid, share;
	uint32_t n_seqs, n_rows, n_blocks, n_uses, n_checks, n_held;
	struct cq_seq **seqs;
	uint32_t *rows;
	uint32_t *row_pos;
	struct cqk_block *blocks;
	struct cqk_span *spans, *tmp;
	uint32_t *use;
	struct cqc_check *checks;
	struct cq_pg **held;
	uint32_t *check_of, *place;
	uint32_t *table;
	uint32_t table_mask;
	uint32_t n_parts;
	size_t scratch_head;
	uint8_t *scratch;
	struct cqc_gpu_batch *gpu;
};

#define CQC_MODEL_MAGIC 0x4c444f4du
#define CQC_SEQ_MAGIC 0x51455343u
#define CQC_BATCH_MAGIC 0x54414243u

/* 0, or -EOWNERDEAD in a forked child. A plain load: no system call. */
static inline int cqc_alive(const struct cq_ctx *ctx)
{
	if (READ_ONCE(*ctx->guard))
		return 0;
	return cqc_fail(-EOWNERDEAD, "this handle was opened before fork(); open anew in the "
				     "child");
}

/* Bits 0 .. n-1. */
static inline uint64_t cqc_low(uint32_t n)
{
	return n >= 64 ? ~0ull : (1ull << n) - 1;
}

/* --- conn.c --- */

int64_t cqc_now_ms(void);
/* Connects and says Hello; waits for the answer. 0 or -errno with text. */
int cqc_conn_start(struct cq_ctx *ctx);
/* Lose the connection and come back later. Lock held. */
void cqc_conn_drop(struct cq_ctx *ctx, int why);
/* Whatever can be done without waiting; returns the number of events. */
int cqc_conn_run(struct cq_ctx *ctx);
/* Send @msg as @req. 0; -EAGAIN; -ENOTCONN. Lock held. */
int cqc_send(struct cq_ctx *ctx, struct cqc_req *req, Cqp__Msg *msg,
	     const int *fds, unsigned int n_fds);
/* A request whose answer nobody waits for. Lock held. */
void cqc_tell(struct cq_ctx *ctx, Cqp__Msg *msg);
/* Send and wait. @conn_no: 0, or the connection it must go over. Lock held. */
int cqc_call(struct cq_ctx *ctx, struct cqc_call *call, Cqp__Msg *msg,
	     const int *fds, unsigned int n_fds, uint64_t conn_no);
/* Wait for the engine to do something. 0 or -ETIMEDOUT. Lock held. */
int cqc_wait(struct cq_ctx *ctx, int64_t deadline_ms);
/* Wake the own thread. No lock needed. */
void cqc_wake(struct cq_ctx *ctx);
/* Wait for something on the socket or the wake fd; by the engine alone. */
void cqc_conn_poll(struct cq_ctx *ctx, bool want_out, int timeout_ms);
/* How long nothing needs to be done, ms; -1: for ever. Lock held. */
int cqc_conn_idle_ms(struct cq_ctx *ctx);

/* --- session.c --- */

/* Hello over a fresh connection. Lock held. */
int cqc_hello_send(struct cq_ctx *ctx);
int cqc_hello_take(struct cq_ctx *ctx, const Cqp__Msg *msg);
void cqc_hello_fill(struct cq_ctx *ctx, Cqp__Msg *msg, Cqp__Hello *hello);
/* Open models again after Hello. Lock held. */
void cqc_models_reopen(struct cq_ctx *ctx, bool resumed);
/* The same for those whose time has come; and when that is, or INT64_MAX. */
void cqc_models_retry(struct cq_ctx *ctx);
int64_t cqc_models_retry_at(const struct cq_ctx *ctx);
bool cqc_model_returning(const struct cq_model *model);
void cqc_model_open_fill(const struct cq_model *model, Cqp__Msg *msg, Cqp__ModelOpen *mo);
/* Could not open again, or not yet. Lock held. */
void cqc_reopen_later(struct cq_model *model, int why);
/* cqd need not keep an arena any more. Lock held. */
void cqc_arena_drop(struct cq_ctx *ctx, uint32_t arena);
/* Reply to a request nobody waits for any more. Lock held. */
void cqc_late(struct cq_ctx *ctx, const Cqp__Msg *msg);

/* --- seal.c --- */

void cqc_orders_drain(struct cq_ctx *ctx);	/* lock held */
void cqc_event(struct cq_ctx *ctx);		/* cq_event_fd() becomes readable */
void cqc_jobs_pump(struct cq_ctx *ctx);		/* lock held */
void cqc_jobs_mapped(struct cq_ctx *ctx);	/* lock held: segments arrived */
void cqc_jobs_cancel(struct cq_ctx *ctx);	/* lock held: drop jobs of closed sequences */
void cqc_jobs_forget(struct cq_model *model);	/* lock held: the model is closed */
void cqc_release_add(struct cq_ctx *ctx, const struct cqp_page *page, uint32_t epoch);
void cqc_release_pump(struct cq_ctx *ctx);
/* From the caller's thread, no lock held. */
void cqc_order_push(struct cq_model *model, const struct cqc_order *o);

/* --- segment.c --- */

int cqc_memfd_check(int fd, uint64_t bytes, const char *what, struct cq_err *err);
/* Segment by id, asked for if it is not there yet; NULL: cannot be asked now. */
struct cqc_seg *cqc_seg_want(struct cq_model *model, uint32_t id);
struct cqc_seg *cqc_seg_find(struct cq_model *model, uint32_t id);
/* The same, waiting until it is mapped. Lock held. 0 or -errno. */
int cqc_seg_get(struct cq_model *model, uint32_t id, struct cqc_seg **out);
void cqc_segs_lost(struct cq_model *model);	/* connection gone: forget questions */
void cqc_segs_free(struct cq_model *model);
/* Map the state words behind @fd (not taken) unless they are mapped already. */
int cqc_state_map(struct cq_model *model, int fd, uint64_t n, struct cqc_state_map **out,
		  struct cq_err *err);
/* The same in two steps, for headers that are read many at once. */
const uint8_t *cqc_slot_at(const struct cq_model *model, const struct cqc_seg *seg,
			   const struct cqp_page *page, uint32_t kind);
int cqc_slot_is(const struct cq_model *model, const struct cqc_seg *seg,
		const struct cqp_page *page, uint32_t kind, const struct cqp_key *key,
		const struct cq_page_hdr *hdr, struct cqc_slot *out);
/* Is @page what it is said to be? Fills @out. 0, -EPROTO, -ESTALE. */
int cqc_slot_check(struct cq_model *model, const struct cqc_seg *seg,
		   const struct cqp_page *page, uint32_t kind,
		   const struct cqp_key *key, struct cqc_slot *out);

/* --- pages.c --- */

/* Page objects for @n more entries of sequences, so that none is allocated on the
 * token path. 0 or -ENOMEM. */
int cqc_pg_reserve(struct cq_model *model, uint64_t n);
void cqc_pg_unreserve(struct cq_model *model, uint64_t n);
struct cq_pg *cqc_pg_new(struct cq_model *model);

static inline struct cq_pg *cqc_pg_get(struct cq_pg *pg)
{
	pg->refs++;
	return pg;
}

void cqc_pg_put(struct cq_pg *pg);		/* accepts NULL */
/* A page object with arena memory; @sink: with a sink chunk. NULL: full. */
struct cq_pg *cqc_pg_private(struct cq_model *model, bool sink);
/* Apply results of the engine; true if there were any. */
bool cqc_results_apply(struct cq_model *model);
void cqc_extra_put(struct cqc_extra *extra);	/* accepts NULL */
void cqc_pin_put(struct cq_model *model, struct cqc_pin *pin);	/* accepts NULL */

/* --- model.c --- */

int cqc_arena_offer(struct cq_ctx *ctx, uint32_t shard, const struct cqc_arena *a,
		    uint64_t conn_no, uint32_t *id);

/* --- shard.c --- */

int cqc_shard_make(const struct cqk_model *whole, const struct cqp_shard *range,
		   struct cqk_model *out);
void cqc_shard_free(struct cqk_model *m);

/* --- seq.c --- */

int cqc_seq_check(const struct cq_seq *seq);
struct cq_seq *cqc_seq_alloc(struct cq_model *model, uint32_t position, uint32_t flags);
void cqc_seq_free(struct cq_seq *seq);
/* Entries up to @tokens tokens in all. 0 or -ENOBUFS, nothing changed. */
int cqc_seq_grow(struct cq_seq *seq, size_t tokens);
void cqc_ent_drop(struct cq_seq *seq, struct cqc_ent *ent);
void cqc_orphans_mark(struct cq_seq *seq, uint32_t first);
/* Steps that name @seq are over. */
void cqc_steps_end(struct cq_seq *seq);
int cqc_model_check(const struct cq_model *model);
/* priority of @o. 0 or -EINVAL. */
int cqc_priority_check(const struct cq_seq_opts *o);
int cqc_extra_new(const void *bytes, size_t len, struct cqc_extra **out);
/* Let @pg have the sequence's extra bytes. */
void cqc_extra_get(struct cq_pg *pg, struct cqc_extra *extra);
/* Waits until the model can be asked. Lock held. 0 or -ENOTCONN. */
int cqc_await_ready(struct cq_model *model);
/* No tokens appended and not committed? 0 or -EBUSY. */
int cqc_seq_quiet(const struct cq_seq *seq, const char *what);

/*
 * struct cqc_parts - where the tokens of an entry are read from
 * Masks do not overlap; together they are the tokens asked for.
 */
struct cqc_parts {
	uint64_t sink, f16, codes;
};

struct cqc_parts cqc_ent_parts(const struct cq_seq *seq, uint32_t i, uint64_t want);

/* --- match.c --- */

/* The first @pages pages of @ids as far as they are published; moves seq->pin. */
int cqc_seq_match(struct cq_seq *seq, const uint32_t *ids, uint32_t pages);

/* --- commit.c --- */

void cqc_pages_order(struct cq_seq *seq, uint32_t full);

/* --- step.c --- */

int cqc_batch_check(const struct cq_batch *batch);
int cqc_batch_stepped(const struct cq_batch *batch, const char *what);
void cqc_batch_end_step(struct cq_batch *batch);

/* --- attn.c --- */

int cqc_words_check(const struct cqc_check *c, uint32_t n);

/* --- model.c, append.c, read.c: what codec.c has in common with them --- */

int cqc_kernels(const struct cqk_ops **out);
int cqc_key_to_f16(const struct cqk_geom *g, const struct cq_view *v, size_t row,
		   uint32_t head, uint16_t *out);
void cqc_key_from_f32(const struct cqk_geom *g, const struct cq_view *v, size_t row,
		      uint32_t head, const float *in);

/* --- view.c --- */

int cqc_view_check(const struct cq_view *v, size_t n, uint32_t heads, uint32_t d,
		   const char *what);
/* One row of @d channels to halves. Index of the first bad one, or -1. */
int cqc_row_to_f16(const struct cq_view *v, size_t row, uint32_t head,
		   uint32_t d, uint16_t *out);
int cqc_f32_to_f16(const float *in, uint32_t d, uint16_t *out);

/* K (@kv 0) or V (@kv 1) rows of @head in an fp16 block of @tokens tokens. */
static inline size_t cqc_f16_at(const struct cqk_model *m, uint32_t tokens,
				uint32_t layer, uint32_t head, uint32_t kv)
{
	return (((size_t)layer * m->geom.n_kv_heads + head) * 2 + kv) * tokens *
	       m->geom.head_dim;
}

/* Byte offset of the same in a page's payload. */
static inline uint64_t cqc_code_at(const struct cqk_model *m, uint32_t layer,
				   uint32_t head, uint32_t kv)
{
	const struct cqk_layer *l = &m->layers[layer];

	return l->offset + head * (l->k_bytes + l->v_bytes) + (kv ? l->k_bytes : 0);
}

#endif /* CQC_INTERNAL_H */
