/* SPDX-License-Identifier: MIT */
/*
 * Where a model's memory is, host or device: what differs between the two.
 * Pointers that a backend makes (blocks, codes, sinks) are addresses for its
 * own kernels; nothing else follows them.
 */
#ifndef CQC_BACKEND_H
#define CQC_BACKEND_H

#include "client/internal.h"

struct cqc_draft;
struct cqc_piece;

#define CQC_HEADERS (CQP_MAX_KEYS + 1u)	/* of one Lookup: pages, and the sinks' */
#define CQC_IPC_HANDLE 64	/* bytes of a CUDA IPC memory handle */

/* One call of cq_append(), options checked. */
struct cqc_append {
	struct cq_seq *seq;
	const struct cq_view *k, *v;
	uint32_t layer;
	int turn;		/* keys: -1 undo the rotation, 1 rotate, 0 as they are */
	void *stream;
};

/* One call of cq_attention(), options checked and resolved. */
struct cqc_attend {
	uint32_t layer;
	const struct cq_view *q, *o;
	struct cq_attn_opts opt;
};

/*
 * struct cqc_unchecked - pages found, of which some were not verified since cqd took
 * them over
 * @pages: [@n]; those whose bit is set in @bits are to be looked at
 * @sink:  of the first page; NULL: none
 */
struct cqc_unchecked {
	const struct cqp_page *pages, *sink;
	const uint8_t *bits;
	uint32_t n;
};

/*
 * struct cqc_fetched - one layer of a page, where the host can read it
 * @sink:  [kv head][K|V][sinks][d]
 * @f16:   [kv head][K|V][64][d]
 * @codes: of all kv heads
 */
struct cqc_fetched {
	const uint16_t *sink, *f16;
	const uint8_t *codes;
};

/* Bytes of codes, which come first, offsets of what follows, and the end. */
struct cqc_fetch_at {
	size_t codes, f16, sink, end;
};

/**
 * struct cqc_backend - operations on memory of one kind
 * @memory:   arena of @bytes (0: default) and tables, at open; @model is parsed.
 *            Undone by @fini, also after a failure. 0 or -errno with text
 * @join:     cqd is told of it, lock held, at open, over connection @conn_no. 0 or
 *            -errno with text
 * @rejoin:   the same after a reconnect, as an answer arrives; sets model->ready
 * @quiet:    before the engine lets go of the model; lock held
 * @leave:    tell cqd of the end; lock held
 * @fini:     give everything back; nothing of the model is in use
 * @call:     are @device and @stream of a call for this model? 0 or -EINVAL
 * @seg_map:  map a segment of seg->bytes from @fd, which stays the caller's, or, if that
 *            is -1, @handle, [CQC_IPC_HANDLE]. 0 or -errno
 * @seg_unmap: undo that
 * @headers:  copy the headers of @n slots, at most CQC_HEADERS; lock held. 0 or -errno
 * @verify:   look at pages that cqd could not; lock held. How many of them from the
 *            first on may be used, or -errno
 * @pg_take:  memory for a private page's codes and, if @sink, sinks; false: full
 * @pg_give:  the same back, whichever of it there is
 * @same:     does a page have the bytes of the published one in pg->res?
 * @append:   rows [0, @n) of the views to token @at and on; entries are there.
 *            0 or -errno, then nothing counts
 * @fill:     page @i is full: codes, and sinks of page 0, are to be in place
 * @in_place: a page is published where it was private
 * @part:     copy what a part-filled page keeps, see part_make(); sets the tokens
 *            in e->f16_mask that it brought from sinks. 0 or -errno
 * @fetch:    let the host read one layer of page @i, of which it wants @p; @buf, if
 *            the model is on a device, has cqc_fetch_at().end bytes. 0 or -errno
 * @tail_put: lay out a tail, all pieces behind its head; see tail.h. 0 or -errno
 * @tail_take: copy what came for an entry to where its page and block are; what
 *            others have to be there too is made. 0 or -errno
 * @place:    a full page is about to be ordered: let it be where it can be sealed
 * @fence:    number to be waited for until work given so far is done; 0: none
 * @batch_new: memory of a batch; 0 or -errno with text
 * @batch_free: undo that, also half of it
 * @batch_split: memory for @n_parts calls on the same kv heads at once; 0, or -errno
 *            with text and nothing changed
 * @step_begin: the step before is over; @wait for all of them. 0; -ESTALE of an
 *            earlier one; -errno with text
 * @step:     tables of the step are made. 0 or -errno with text
 * @append_rows: of a whole step, one layer; @a has no sequence. 0 or -errno
 * @attention: one layer, or a part of it. 0 or -errno with text
 * @merge:    one result of parts. 0 or -errno with text
 * @hold:     of the engine: keep an order back for its fence? true: kept
 * @ready:    of the engine: may a page be sealed? 1; 0 not yet; -errno never
 * @seal:     of the engine: fill in where the page is; @buf lives as long as @seal
 * @sealed:   of the engine: answer to that, 0 or -errno; @pg->res is filled in for
 *            0. Returns @ret, or 0 if it was published for all that
 * @run:      of the engine: whatever can be done without waiting
 * @idle_ms:  of the engine: when to look again, -1: never
 * @resume:   of the engine: a connection came back, @resumed with its session
 *
 * All are mandatory. Those of the engine run with the context's lock held, the
 * others on the caller's thread without it unless said otherwise.
 */
struct cqc_backend {
	bool in_place;
	int (*memory)(struct cq_model *model, uint64_t bytes);
	int (*join)(struct cq_model *model, uint32_t shard, uint64_t conn_no);
	void (*rejoin)(struct cq_model *model);
	void (*quiet)(struct cq_model *model);
	void (*leave)(struct cq_model *model);
	void (*fini)(struct cq_model *model);
	int (*call)(const struct cq_model *model, int32_t device, void *stream,
		    const char *what);
	int (*seg_map)(struct cqc_seg *seg, int fd, const uint8_t *handle);
	void (*seg_unmap)(struct cqc_seg *seg);
	int (*headers)(struct cq_model *model, const uint8_t *const *at, uint32_t n,
		       struct cq_page_hdr *hdr);
	int (*verify)(struct cq_model *model, const struct cqc_unchecked *f);
	bool (*pg_take)(struct cq_pg *pg, bool sink);
	void (*pg_give)(struct cq_pg *pg);
	bool (*same)(const struct cq_pg *pg);
	int (*append)(const struct cqc_append *a, size_t at, size_t n);
	void (*fill)(const struct cq_seq *seq, uint32_t i);
	int (*part)(struct cq_model *model, const struct cqc_ent *from, uint32_t r, bool first,
		    struct cqc_ent *e);
	int (*fetch)(const struct cq_seq *seq, uint32_t i, uint32_t layer,
		     const struct cqc_parts *p, uint8_t *buf, struct cqc_fetched *out);
	int (*tail_put)(struct cqc_draft *d);
	int (*tail_take)(struct cq_seq *seq, const struct cqc_piece *p);
	void (*place)(struct cq_pg *pg);
	uint64_t (*fence)(struct cq_model *model);
	int (*batch_new)(struct cq_batch *b);
	void (*batch_free)(struct cq_batch *b);
	int (*batch_split)(struct cq_batch *b, uint32_t n_parts);
	int (*step_begin)(struct cq_batch *b, bool wait);
	int (*step)(struct cq_batch *b);
	int (*append_rows)(struct cq_batch *b, const struct cqc_append *a,
			   const struct cq_append_opts *opts);
	int (*attention)(const struct cq_batch *b, const struct cqc_attend *at);
	int (*merge)(const struct cqk_merge *m);
	bool (*hold)(struct cq_model *model, const struct cqc_order *o);
	int (*ready)(struct cq_pg *pg);
	void (*seal)(struct cq_pg *pg, Cqp__Seal *seal, struct cqc_seal_buf *buf);
	int (*sealed)(struct cq_pg *pg, int ret);
	void (*run)(struct cq_model *model);
	int (*idle_ms)(const struct cq_model *model);
	void (*resume)(struct cq_model *model, bool resumed);
};

extern const struct cqc_backend cqc_host;
extern const struct cqc_backend cqc_cuda;

/* --- parts of the host's, each beside what it is about --- */

int cqc_host_memory(struct cq_model *model, uint64_t bytes);
int cqc_host_join(struct cq_model *model, uint32_t shard, uint64_t conn_no);
void cqc_host_rejoin(struct cq_model *model);
int cqc_host_seg_map(struct cqc_seg *seg, int fd, const uint8_t *handle);
int cqc_host_append(const struct cqc_append *a, size_t at, size_t n);
void cqc_host_fill(const struct cq_seq *seq, uint32_t i);
int cqc_host_append_rows(struct cq_batch *b, const struct cqc_append *a,
			 const struct cq_append_opts *opts);
int cqc_key_turn(const struct cqk_geom *g, uint32_t flags);
int cqc_append_check(const struct cq_model *model, const struct cqc_append *p, size_t n,
		     const struct cq_append_opts *o);

/* --- read.c --- */

struct cqc_fetch_at cqc_fetch_at(const struct cqk_model *m, uint32_t layer);
int cqc_host_fetch(const struct cq_seq *seq, uint32_t i, uint32_t layer,
		   const struct cqc_parts *p, uint8_t *buf, struct cqc_fetched *out);

/* --- commit.c --- */

/* Codes of tokens @first to 63 of a page, from its fp16 block. */
void cqc_codes_make(const struct cq_model *model, const uint16_t *f16, uint32_t first,
		    uint8_t *codes);
/* The sinks of page 0, from its fp16 block: [layer][head][K|V][sinks][d]. */
void cqc_sinks_make(const struct cqk_model *m, const uint16_t *f16, uint8_t *to);

/* --- rows.c --- */

/* A step's rows count as appended to @layer. 0 or -EINVAL: some were already. */
int cqc_rows_count(struct cq_batch *b, uint32_t layer);
void cqc_rows_uncount(struct cq_batch *b, uint32_t layer);
int cqc_host_part(struct cq_model *model, const struct cqc_ent *from, uint32_t r, bool first,
		  struct cqc_ent *e);
int cqc_host_batch_new(struct cq_batch *b);
int cqc_host_batch_split(struct cq_batch *b, uint32_t n_parts);
int cqc_host_attention(const struct cq_batch *b, const struct cqc_attend *at);
int cqc_host_merge(const struct cqk_merge *m);

/* The rings between the threads, for @pages pages on their way at once. */
int cqc_rings_init(struct cq_model *model, uint32_t pages);

#endif /* CQC_BACKEND_H */
