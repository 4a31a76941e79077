/* SPDX-License-Identifier: MIT */
/*
 * A model in the memory of a GPU.
 *
 * Pages are written where they stay: in slots that cqd has leased to this
 * session. The caller's thread takes slots, launches and records fences; the
 * engine asks for slots ahead, waits for fences, hashes full pages on a stream
 * of its own and only then names them in Seal. What is released, or taken from
 * a page, waits for the fence of the work that may still read it.
 *
 * All work of a model is in the order of the calls that gave it, on the
 * model's stream or on others that the caller keeps in that order.
 */
#ifndef CQC_GPU_H
#define CQC_GPU_H

#include "client/backend.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/launch.h"

#define CQC_FENCES 64u		/* recorded and not yet seen done */
#define CQC_LEASES 2048u	/* of a model */
#define CQC_HASHES 16u		/* pages hashed at once */
#define CQC_DEST_RING 262144u	/* bytes of destinations, in four parts */
#define CQC_PASTS 4u		/* steps of a batch on their way */

enum cqc_hash {
	CQC_HASH_NONE = 0,
	CQC_HASH_RUN = 1,	/* on the engine's stream */
	CQC_HASH_DONE = 2,
};

enum cqc_lease_state {
	CQC_LEASE_NONE = 0,
	CQC_LEASE_MAPPING = 1,	/* its segment is on the way */
	CQC_LEASE_HELD = 2,	/* the caller's thread has it */
};

/*
 * struct cqc_lease - a slot that this session may write
 * @page:    as leased
 * @seg:     mapped, both ways, once it is held
 * @epoch:   of cqc_gpu.epoch when it was leased
 * @state:   enum cqc_lease_state, engine only
 * @kind:    1 of sinks, 0 of codes
 * @used:    a page was published there; set by the engine before its result
 * @sealing: named in a Seal, engine only
 */
struct cqc_lease {
	struct cqp_page page;
	struct cqc_seg *seg;
	uint32_t epoch;
	uint32_t state;
	uint32_t kind;
	bool used, sealing;
};

/* A pin that is released when a fence has been passed. */
struct cqc_held {
	struct cqp_page page;
	uint32_t epoch;
	uint64_t fence;
};

/*
 * struct cqc_pool - leased slots of one kind
 * @ring:  engine to caller: numbers of leases, in .epoch of an entry
 * @stack: [@n] that the caller gave back, taken first
 * @want:  slots to have in @ring; raised when what was given was not enough
 * @fed:   some came since it was raised; else there are none, and to want more
 *         would only take them from the other kind later
 * @req:   Lease under way if @asked
 * @retry_at, @retry_ms: after a refusal
 */
struct cqc_pool {
	struct cqc_ring ring;
	uint32_t *stack;
	uint32_t n;
	uint32_t want;
	bool fed;
	struct cqc_req req;
	bool asked;
	int64_t retry_at;
	int32_t retry_ms;
};

/*
 * struct cqc_hashing - pages on the engine's stream
 * @stage: 0 none, 1 checksums, 2 headers
 * @n, @pg: pages
 * @host:  pinned: number, jobs, results, headers; at @list_at addresses of other
 *         headers and these, of calls that wait
 * @dev:   the same on the device
 */
struct cqc_hashing {
	uint32_t stage, n;
	struct cq_pg *pg[CQC_HASHES];
	struct cqcu_stream *stream;
	struct cqcu_event *event;
	uint8_t *host;
	cqcu_ptr dev;
	uint64_t bytes;
	uint64_t out, out_bytes;	/* where results begin, bytes of a page */
	uint64_t hdrs;
	uint64_t list_at;
};

/* A table of destinations, as it lies on the device too. */
struct cqc_dests {
	uint32_t n;
	uint32_t pad[3];
	struct cqkd_dest dest[];
};

/*
 * struct cqc_gpu - a model's side of a device
 * @uuid:     of the device
 * @stream:   of the model
 * @lost:     -errno: the context is lost, nothing more can be done there
 * @tables, @arena_at, @status: device memory
 * @bads:     [CQC_LEASES] u32 on the device, one for each lease: the greatest tag of a
 *            page that was there and was given a value that no fp16 can hold, there
 *            or in the page that it began as
 * @tags:     given out so far
 * @recorded: fences recorded; caller's thread, with release
 * @done:     fences seen done; engine, with release
 * @dirty:    something was launched since the last fence
 * @seen:     [CQC_FENCES] pinned: status word of appends at each fence
 * @bad:      last fence at which that was not 0; @bad_status what it was
 * @dests:    ring of destinations on the device, @dests_host pinned, in four
 *            parts with a fence each
 * @last:     destinations made last, for the next layer
 * @epoch:    grows when cqd has forgotten what it leased
 * @held:     [@held_max] ring of releases that wait
 */
struct cqc_gpu {
	const struct cqk_cuda *cu;
	char uuid[CQK_CUDA_UUID];
	cqcu_device dev;
	struct cqcu_ctx *ctx;
	struct cqcu_stream *stream;
	struct cqk_cuda_kernels *kernels;
	struct cqk_cuda_tables *tabs;
	cqcu_ptr tables, arena_at, status, bads;
	uint32_t tags;
	int sms;
	int lost;

	struct cqcu_event *event[CQC_FENCES];
	uint64_t recorded, done;
	bool dirty;
	uint64_t *seen;
	uint64_t bad, bad_status;

	cqcu_ptr dests;
	uint8_t *dests_host;
	uint32_t dests_part, dests_used;
	uint64_t dests_fence[4];
	struct {
		const struct cq_seq *seq;
		size_t at, n;
		uint32_t n_dests, epoch;
		cqcu_ptr table;
	} last;

	struct cqc_lease *leases;	/* [CQC_LEASES] */
	struct cqc_pool pool[2];
	uint32_t epoch;
	struct cqc_held *held;
	uint32_t held_max, held_n, held_at;
	struct cqc_hashing hashing;
};

/*
 * struct cqc_gpu_batch - a batch on a device
 * @mem:  on the device, at the same place for all steps: a table of destinations,
 *        at most @dests_max, and at @plan_at the plan; @host pinned
 * @n_dests, @n_items, @n_wide, @few_only: of the step
 * @work: workspace, @work_head bytes for each kv head
 * @past: steps whose end was not seen yet, @at is the one being made or in use
 */
struct cqc_gpu_batch {
	struct cqk_cuda_limits limits;
	cqcu_ptr mem, work;
	uint64_t mem_bytes, plan_at, work_head;
	uint32_t dests_max, n_dests, n_items, n_wide, few_only;
	uint8_t *host;
	uint32_t at;
	bool used, stale;
	struct {
		uint64_t fence;
		bool waits;
		uint32_t n_checks;
		struct cqc_check *checks;
	} past[CQC_PASTS];
};

/* --- gpu_model.c --- */

/* The UUID of a model's device; NULL: the host. */
char *cqc_gpu_uuid(const struct cq_model *model);
/* Let @model be on the device that @o names. 0 or -errno with text. */
int cqc_gpu_new(struct cq_model *model, const struct cq_model_opts *o);
/* The device's context for this thread. 0 or -errno with text; then cqc_gpu_out(). */
int cqc_gpu_in(const struct cqc_gpu *g);
void cqc_gpu_out(const struct cqc_gpu *g);
/* The same for the engine, which must not be bound by another thread's capture. */
int cqc_gpu_eng_in(const struct cqc_gpu *g, int *mode);
void cqc_gpu_eng_out(const struct cqc_gpu *g, int *mode);
/* Text of a driver call's failure; notes a lost context. */
int cqc_gpu_fail(struct cqc_gpu *g, int result, const char *what);
/* Until @stream has done what was begun, also after a failure, @ret. 0 or -errno with text. */
int cqc_gpu_finish(struct cqc_gpu *g, struct cqcu_stream *stream, int ret, const char *what);
int cqc_gpu_memory(struct cq_model *model, uint64_t bytes);
void cqc_gpu_fini(struct cq_model *model);
int cqc_gpu_call(const struct cq_model *model, int32_t device, void *stream,
		 const char *what);
int cqc_gpu_seg_map(struct cqc_seg *seg, int fd, const uint8_t *handle);
void cqc_gpu_seg_unmap(struct cqc_seg *seg);
/* A second, writable mapping. 0 or -errno. */
int cqc_gpu_seg_rw(struct cqc_seg *seg);

/* --- gpu_fence.c --- */

int cqc_gpu_fences_new(struct cqc_gpu *g);
void cqc_gpu_fences_free(struct cqc_gpu *g);
uint64_t cqc_gpu_fence(struct cq_model *model);
/* Has @fence been passed? Caller's thread; @wait for it. 1, 0, or -errno with text. */
int cqc_gpu_passed(struct cqc_gpu *g, uint64_t fence, bool wait);
/* Engine: move @g->done on. */
void cqc_gpu_fences_poll(struct cqc_gpu *g);
bool cqc_gpu_hold(struct cq_model *model, const struct cqc_order *o);
void cqc_gpu_held_pump(struct cq_model *model);

/* --- gpu_lease.c --- */

int cqc_gpu_leases_new(struct cq_model *model);
void cqc_gpu_leases_free(struct cqc_gpu *g);
int cqc_gpu_join(struct cq_model *model, uint32_t shard, uint64_t conn_no);
void cqc_gpu_rejoin(struct cq_model *model);
void cqc_lease_late(struct cq_ctx *ctx, const Cqp__LeaseOk *ok);
void cqc_gpu_leave(struct cq_model *model);
void cqc_gpu_resume(struct cq_model *model, bool resumed);
void cqc_gpu_gone(struct cq_model *model, uint32_t epoch);
void cqc_gpu_leases_pump(struct cq_model *model);
int cqc_gpu_leases_idle_ms(const struct cq_model *model);
void cqc_gpu_lease_over(struct cq_model *model, uint32_t lease);
/* A leased slot for codes (@kind 0) or sinks (1); CQC_NONE: none is there. */
uint32_t cqc_gpu_take(struct cq_model *model, uint32_t kind);
/* Is there one of each kind that pages need? 0 or -errno with text. */
int cqc_gpu_can_take(struct cq_model *model);
/* Two that were not used after all, each may be CQC_NONE. */
void cqc_gpu_unused(struct cq_model *model, uint32_t codes, uint32_t sinks);
/* Leases that wait for a segment that does not come go back; engine. */
void cqc_gpu_seg_gone(struct cq_model *model, uint32_t segment);
/* Let @pg be in these. */
void cqc_gpu_pg_set(struct cq_pg *pg, uint32_t codes, uint32_t sinks);
bool cqc_gpu_pg_take(struct cq_pg *pg, bool sink);
void cqc_gpu_pg_give(struct cq_pg *pg);

/* Payload of a leased slot: to be read, and to be written. */
static inline uint8_t *cqc_lease_ro(const struct cqc_gpu *g, uint32_t lease)
{
	const struct cqc_lease *l = &g->leases[lease];

	return (uint8_t *)(uintptr_t)l->seg->base + l->page.slot * l->seg->slot_bytes +
		sizeof(struct cq_page_hdr);
}

static inline cqcu_ptr cqc_lease_rw(const struct cqc_gpu *g, uint32_t lease)
{
	const struct cqc_lease *l = &g->leases[lease];

	return l->seg->rw + l->page.slot * l->seg->slot_bytes + sizeof(struct cq_page_hdr);
}

/* --- gpu_append.c --- */

int cqc_gpu_append(const struct cqc_append *a, size_t at, size_t n);
int cqc_gpu_dests(const struct cq_seq *seq, size_t at, size_t n, uint32_t row,
		  struct cqc_dests *t);
void cqc_gpu_place(struct cq_pg *pg);
void cqc_gpu_fill(const struct cq_seq *seq, uint32_t i);
int cqc_gpu_part(struct cq_model *model, const struct cqc_ent *from, uint32_t r, bool first,
		 struct cqc_ent *e);

/* --- gpu_step.c --- */

int cqc_gpu_batch_new(struct cq_batch *b);
void cqc_gpu_batch_free(struct cq_batch *b);
int cqc_gpu_batch_split(struct cq_batch *b, uint32_t n_parts);
int cqc_gpu_step_begin(struct cq_batch *b, bool wait);
int cqc_gpu_step(struct cq_batch *b);
int cqc_gpu_append_rows(struct cq_batch *b, const struct cqc_append *a,
			const struct cq_append_opts *opts);
int cqc_gpu_attention(const struct cq_batch *b, const struct cqc_attend *at);
int cqc_gpu_merge(const struct cqk_merge *m);

/* Sums of 64 bits that the kernel makes of a payload. */
static inline uint64_t cqc_gpu_sums(uint64_t payload)
{
	return (payload + CQ_CHECK_CHUNK - 1) / CQ_CHECK_CHUNK;
}

/* --- gpu_tail.c; the rest in tail.h --- */

int cqc_gpu_fetch(const struct cq_seq *seq, uint32_t i, uint32_t layer,
		  const struct cqc_parts *p, uint8_t *buf, struct cqc_fetched *out);

/* --- gpu_verify.c --- */

int cqc_gpu_verify(struct cq_model *model, const struct cqc_unchecked *f);

/* --- gpu_seal.c --- */

void cqc_gpu_fold(const uint8_t *sums, uint64_t payload, uint64_t out[2]);

int cqc_gpu_hashing_new(struct cq_model *model);
void cqc_gpu_hashing_free(struct cqc_gpu *g);
void cqc_gpu_quiet(struct cq_model *model);
bool cqc_gpu_same(const struct cq_pg *pg);
int cqc_gpu_ready(struct cq_pg *pg);
void cqc_gpu_seal(struct cq_pg *pg, Cqp__Seal *seal, struct cqc_seal_buf *buf);
int cqc_gpu_sealed(struct cq_pg *pg, int ret);
int cqc_gpu_headers(struct cq_model *model, const uint8_t *const *at, uint32_t n,
		    struct cq_page_hdr *hdr);
void cqc_gpu_run(struct cq_model *model);
int cqc_gpu_idle_ms(const struct cq_model *model);

#endif /* CQC_GPU_H */
