/* SPDX-License-Identifier: MIT */
/* A worker from inside: what worker.c and handover.c share. */
#ifndef CHAOS_WORKER_H
#define CHAOS_WORKER_H

#include "tests/chaos/chaos.h"

#define HOLDS		5
#define BATCH_SEQS	3
#define BATCH_ROWS	8
#define PATIENCE_MS	20000

struct hold {
	struct cq_seq *seq;
	uint32_t text;
};

struct worker {
	const struct chaos_job *job;
	uint64_t rng;
	struct cq_ctx *ctx;
	struct cq_model *model;
	struct cq_batch *batch;
	struct hold hold[HOLDS];
	unsigned int n;
	struct text_memo memo;
	uint16_t k[TEXT_TOKENS * KV_HEADS * DIM], v[TEXT_TOKENS * KV_HEADS * DIM];
	uint16_t q[BATCH_ROWS * ROW];
	float o[BATCH_ROWS * ROW];
};

extern struct worker me;

#define DOING(fmt, ...)								\
	snprintf(chaos_me->doing, sizeof(chaos_me->doing), fmt, ##__VA_ARGS__)

/* Ends the worker unless @ret is one of those that may be. */
#define MAY(call, ret, ok) do {							\
	if ((ret) && !(ok))							\
		FAIL("%s = %d (%s): %s", call, ret, strerror(-(ret)), cq_last_error()); \
} while (0)

static inline bool unreachable(int ret)
{
	return ret == -ENOTCONN || ret == -ETIMEDOUT || ret == -ECONNREFUSED ||
	       ret == -ECONNRESET || ret == -EPIPE;
}

static inline bool no_room(int ret)
{
	return ret == -EDQUOT || ret == -ENOSPC;
}

static inline bool stopped(void)
{
	return atomic_load_explicit(&chaos->stop, memory_order_relaxed);
}

/* --- worker.c --- */
__attribute__((noreturn))
void worker_lost(const char *what, uint32_t text);
/* The arena is full: give up a sequence now and then, else wait. */
void worker_make_room(const struct cq_seq *keep);
void worker_drop(unsigned int i);
struct cq_seq *worker_open_text(uint32_t text, size_t n);
/* Attend with the sequence held last, and compare. */
void worker_attend_last(void);

/* --- handover.c --- */
/* Publish, attach to, replace or take away a name. */
void handover_step(void);
/* Settle every name of this namespace. */
void handover_audit(void);

#endif /* CHAOS_WORKER_H */
