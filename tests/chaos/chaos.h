/* SPDX-License-Identifier: MIT */
/*
 * The chaos run: a real cqd whose pool is always full, workers that attend to
 * what they share and compare every result with a reference, and a driver that
 * kills, stops, reloads and pesters all of them. Documentation/chaos.md says
 * what it shows and how to read it.
 *
 *	main.c		options, phases, report
 *	text.c		texts, what they must read as, the reference
 *	worker.c	a worker's life
 *	handover.c	sequences and pins under names
 *	inject.c	faults, and what the service manager tells of them
 *	rabble.c	clients that keep no rule
 *	audit.c		what must hold when everybody has gone
 */
#ifndef CHAOS_H
#define CHAOS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "cq.h"
#include "tests/chaos/rig.h"
#include "tests/system/synth.h"

/*
 * A text is one of TEXT_VARIANTS continuations of one of TEXT_GROUPS prefixes.
 * Three times as many pages as the pool has room for, in each namespace.
 */
#define TEXT_GROUPS	16
#define TEXT_VARIANTS	5
#define TEXTS		(TEXT_GROUPS * TEXT_VARIANTS)
#define TEXT_SHARED	3		/* pages of the prefix */
#define TEXT_PAGES	8
#define TEXT_TOKENS	(TEXT_PAGES * 64)
#define PAGES		(TEXT_GROUPS * TEXT_SHARED + TEXTS * (TEXT_PAGES - TEXT_SHARED))
#define MODEL		{ .layers = 2, .heads = 4, .kv_heads = 2, .dim = 64,		\
			  .sinks = 4, .window = 64, .max_position = 1024,		\
			  .code = "4c8b", .seed = 1 }
#define LAYERS		2
#define HEADS		4
#define KV_HEADS	2
#define DIM		64
#define ROW		(HEADS * DIM)

#define MAX_WORKERS	16
#define NAMESPACES	2
#define NAMES		3		/* of a namespace; their tails count for its quota */
#define NAME_TTL_S	20
#define PAGE_TTL_S	4		/* of the few pages that have one */
#define HIST_BUCKETS	448
#define TOLERANCE	5e-3		/* of an output; a wrong token makes 4e-2 and more */

enum chaos_phase {
	PHASE_QUIET,		/* the same load, no faults: what chaos is compared with */
	PHASE_CHAOS,
	PHASE_LONG,		/* cqd is left alive: leaks in it add up */
	PHASE_DRAIN,
	PHASES,
};

/**
 * struct hist - counts by microseconds, 16 buckets an octave
 */
struct hist {
	_Atomic uint64_t n[HIST_BUCKETS];
	_Atomic uint64_t most;
};

/**
 * struct chaos_worker - a worker's slot, outlives it
 * @pid:   of the process that has it now, 0: none
 * @doing: what it was last at
 * @why:   its failure; "" while there is none
 */
struct chaos_worker {
	pid_t pid;
	uint32_t generation;
	unsigned int ns;
	uid_t uid;
	char doing[128];
	char why[512];
};

/**
 * struct chaos_record - what a name was made of
 * @live:       acknowledged, or about to be
 * @pin:        keeps pages and nothing else
 * @made_us:    before cqd was asked: it lives for @ttl_s from then on at least
 * @said_us:    when cqd had said so: at most
 */
struct chaos_record {
	uint32_t text, tokens, ttl_s;
	bool live, once, pin;
	uint64_t made_us, said_us;
};

/**
 * struct chaos_name - a name, outlives who works on it
 * @owner: pid of the worker that is at it; who dies there leaves @state
 * @state: generation << 3 | what is under way << 1 | which of @rec counts
 */
struct chaos_name {
	_Atomic pid_t owner;
	_Atomic uint64_t state;
	struct chaos_record rec[2];
};

/**
 * struct chaos_shared - mapped by every process of a run
 * @attach: cq_seq_open() that found something, by phase
 * @served: those of @attach during which there was a cqd that was ready all the while
 * @outage: odd while there is none; two more with each
 * @token:  a token of decoding: step, append, attention, commit
 * @blocked: those among them in which the thread gave its CPU away
 * @pause:  how late a clock woke up that does nothing else: the machine's own
 * @w:      workers, by their place
 */
struct chaos_shared {
	_Atomic uint32_t phase;
	_Atomic bool stop;
	_Atomic uint32_t outage;
	struct hist attach[PHASES], served[PHASES], token[PHASES], blocked[PHASES], pause[PHASES];
	_Atomic uint64_t checked, stale, lost, wrong, worst_ppm;
	_Atomic uint64_t opened, matched, sealed, full, no_room, away, timeouts, forks, cuts,
		 passed, regained, published, replaced, unsure, expired;
	_Atomic uint64_t rabble, found[NAMESPACES], evictions, evictions_seen;
	atomic_flag evictions_busy;
	struct chaos_worker w[MAX_WORKERS];
	struct chaos_name name[NAMESPACES][NAMES];
};

extern struct chaos_shared *chaos;
extern struct chaos_worker *chaos_me;	/* NULL in the driver */
extern const struct synth chaos_model;

static inline void chaos_count(_Atomic uint64_t *c, uint64_t n)
{
	atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static inline uint64_t chaos_get(const _Atomic uint64_t *c)
{
	return atomic_load_explicit(c, memory_order_relaxed);
}

static inline uint32_t chaos_phase(void)
{
	return atomic_load_explicit(&chaos->phase, memory_order_relaxed);
}

/* splitmix64 as a stream. */
static inline uint64_t chaos_random(uint64_t *rng)
{
	*rng += 0x9e3779b97f4a7c15ull;
	return synth_mix(*rng);
}

static inline uint32_t chaos_below(uint64_t *rng, uint32_t n)
{
	return (uint32_t)((chaos_random(rng) >> 32) * n >> 32);
}

void hist_add(struct hist *h, uint64_t us);
uint64_t hist_count(const struct hist *h);
double hist_quantile(const struct hist *h, double q);
/* Quantile over two of them. */
double hist_quantile2(const struct hist *a, const struct hist *b, double q);

/* --- text.c --- */

/**
 * struct text_memo - references that were computed, by what they depend on
 */
struct text_memo {
	struct {
		uint64_t key;
		double o[ROW];
	} at[128];
};

int text_init(const char *model_path);
void text_ids(uint32_t *ids, uint32_t text, size_t from, size_t n);
/* Rows of K (0) or V (1), [n][KV_HEADS][DIM] halves, as a worker appends them. */
void text_rows(uint16_t *x, uint32_t text, uint32_t what, uint32_t layer, size_t from, size_t n);
void text_query(uint16_t *q, uint32_t text, uint32_t layer, size_t at);
uint32_t text_page(uint32_t text, uint32_t page);
/* Somebody else's text with the same first @page pages. */
uint32_t text_cousin(uint32_t text, uint64_t *rng);
uint32_t text_pick(uint64_t *rng);

/*
 * Are @k and @v, [n][KV_HEADS][DIM], what tokens 0 to n - 1 must read as: each
 * either in full precision or through its codes? @coded gets a bit for each.
 * Return: -1, or the first token that is neither.
 */
int text_compare(const uint16_t *k, const uint16_t *v, uint32_t text, uint32_t layer, size_t n,
		 uint64_t coded[TEXT_PAGES]);

/* Attention of the row at token @n, itself in full precision, in double. */
const double *text_reference(struct text_memo *memo, uint32_t text, uint32_t layer, size_t n,
			     const uint64_t coded[TEXT_PAGES], double scale);

/* --- worker.c --- */

/**
 * struct chaos_job - what a worker is started with
 * @sock: socket of cqd
 * @seed: of its random numbers
 */
struct chaos_job {
	const char *sock;
	uint64_t seed;
};

__attribute__((noreturn))
void worker_main(const struct chaos_job *job);
/*
 * Attach to every text, read all of it. Return: pages that some text has.
 * With @names, settle what is published under names instead.
 */
uint32_t worker_audit(const struct chaos_job *job, bool names);

/* --- rabble.c --- */

__attribute__((noreturn))
void rabble_main(const char *sock, const char *admin, uint64_t seed);

#endif /* CHAOS_H */
