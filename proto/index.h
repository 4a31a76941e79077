/* SPDX-License-Identifier: MIT */
/*
 * The index: fixed records in a memfd that only cqd maps; the truth that
 * survives a restart. And the state words: one per slot, in a memfd per
 * namespace that workers map read-only.
 *
 * A record is filled first, then its word is stored with release; when it
 * dies, the word goes first. A scan trusts a record only if its word says so.
 *
 *	word = generation << 8 | state
 *
 * The generation of a slot grows by one whenever the slot is given to another
 * page, so a reader that remembers the word notices every reuse.
 */
#ifndef CQP_INDEX_H
#define CQP_INDEX_H

#include <stddef.h>
#include <stdint.h>

#define CQP_INDEX_MAGIC		0x3158444951430a0dull
#define CQP_INDEX_VERSION	2
#define CQP_INDEX_V1		1	/* the same without names */
#define CQP_INDEX_V1_BYTES	144	/* of its head */
#define CQP_INDEX_COMPAT	0ull	/* compatible features this build keeps up */

enum cqp_state {
	CQP_FREE = 0,
	CQP_FILLING = 1,
	CQP_SEALED = 2,
	CQP_EVICTING = 3,
	CQP_QUARANTINED = 4,
};

#define CQP_WORD(gen, state)	((uint64_t)(gen) << 8 | (uint64_t)(state))
#define CQP_WORD_STATE(w)	((unsigned int)((w) & 0xff))
#define CQP_WORD_GEN(w)		((uint64_t)(w) >> 8)

#define CQP_NONE		0xffffffffu	/* no such record */

/* Head of the index memfd, 4 KiB; tables follow at the offsets given. */
struct cqp_index_hdr {
	uint64_t magic;
	uint32_t version;
	uint32_t pad0;
	uint64_t incompat;
	uint64_t compat;
	uint8_t boot_id[16];
	uint64_t bytes;			/* of the memfd */
	uint32_t high_clients, high_pages, high_pins; /* records beyond were never used */
	uint32_t pad1;
	uint32_t n_namespaces, n_models, n_segments, n_clients;
	uint32_t n_pages, n_pins;
	uint64_t off_namespaces, off_models, off_segments, off_clients;
	uint64_t off_pages, off_pins;
	/* version 2; zero in version 1 */
	uint32_t n_names;
	uint32_t pad2;
	uint64_t off_names;
};

/* Fields behind the word may be read only while the word says CQP_SEALED
 * (or, for pages, FILLING: then only segment and slot). */
struct cqp_rec_namespace {
	uint64_t word;
	char name[64];
	uint64_t state_words;		/* capacity of its state memfd */
	uint8_t pad[48];
};

struct cqp_rec_model {
	uint64_t word;
	char name[64];
	uint8_t hash[32];
	uint64_t bytes;
	uint8_t pad[16];
};

struct cqp_rec_segment {
	uint64_t word;
	uint32_t id;
	uint32_t ns;			/* namespace record */
	uint32_t model;			/* model record */
	uint32_t kind;			/* enum cq_page_kind: codes or sinks */
	uint32_t layer_begin, layer_end, head_begin, head_end;
	uint64_t bytes;
	uint64_t slot_bytes;
	uint64_t word_base;
	uint32_t slots;
	uint8_t given[32];		/* bit i: members of namespace record i have its fd */
	uint32_t backend;		/* enum Backend; 0: the host's memory */
	uint8_t device[16];		/* of its UUID; 0 with the host's */
	uint8_t pad[8];
};

struct cqp_rec_client {
	uint64_t word;
	uint64_t session;
	uint64_t start_time;		/* of the process, /proc/<pid>/stat field 22 */
	uint32_t pid;
	uint32_t uid;
	uint32_t ns;
	char name[64];
	uint8_t pad[28];
};

struct cqp_rec_page {
	uint64_t word;
	uint8_t key[32];
	uint64_t slot_gen;		/* generation in the state word of the slot */
	uint64_t sink_gen;
	uint64_t check_lo, check_hi;	/* as in the slot's header */
	uint64_t last_use_us;
	uint32_t parent;		/* page record, CQP_NONE for page 0 */
	uint32_t depth;
	uint32_t segment, slot;		/* segment record, slot */
	uint32_t sink_segment, sink_slot; /* CQP_NONE if none */
	uint32_t uses;			/* lookups that matched it, halved with time */
	uint32_t ttl_s;			/* dropped when unused for so long; 0: never */
	uint8_t priority;		/* the higher, the longer it stays */
	uint8_t behind;			/* 1: without parent, behind another namespace's page */
	uint8_t pad[14];
};

/*
 * Pins of one client on one page. With page CQP_NONE a lease: a slot of a device that
 * the client may be writing.
 */
struct cqp_rec_pin {
	uint64_t word;
	uint32_t client;
	uint32_t page;
	uint64_t count;			/* of a lease: segment record << 32 | slot */
	uint64_t slot_gen;		/* of a lease: in the state word of the slot; else 0 */
};

/* How a name's sequence is handed out. */
#define CQP_NAME_ONCE		1u	/* the first attach takes the name away */

/*
 * A name of a namespace: keeps its last page, and so all ancestors, resident,
 * and may own a tail (proto/tail.h) in the descriptor "cq-tail-<id>".
 */
struct cqp_rec_name {
	uint64_t word;
	char name[64];
	uint32_t ns;			/* namespace record */
	uint32_t model;			/* model record */
	uint32_t layer_begin, layer_end, head_begin, head_end;
	uint32_t page;			/* page record, CQP_NONE: less than a page */
	uint32_t id;			/* of the tail, 0: none */
	uint64_t slot_gen;		/* of that page, to tell it from a later one */
	uint64_t tokens;
	uint64_t tail_bytes;
	uint64_t check_lo, check_hi;	/* XXH3-128 of the tail */
	uint64_t created_us;		/* CLOCK_MONOTONIC */
	uint64_t expires_us;		/* 0: never */
	uint32_t flags;			/* CQP_NAME_* */
	uint8_t pad[92];
};

_Static_assert(sizeof(struct cqp_index_hdr) == 160, "frozen");
_Static_assert(offsetof(struct cqp_index_hdr, n_names) == CQP_INDEX_V1_BYTES, "frozen");
_Static_assert(sizeof(struct cqp_rec_name) == 256, "frozen");
_Static_assert(offsetof(struct cqp_rec_name, page) == 96, "frozen");
_Static_assert(offsetof(struct cqp_rec_name, flags) == 160, "frozen");
_Static_assert(sizeof(struct cqp_rec_namespace) == 128, "frozen");
_Static_assert(sizeof(struct cqp_rec_model) == 128, "frozen");
_Static_assert(sizeof(struct cqp_rec_segment) == 128, "frozen");
_Static_assert(sizeof(struct cqp_rec_client) == 128, "frozen");
_Static_assert(sizeof(struct cqp_rec_page) == 128, "frozen");
_Static_assert(sizeof(struct cqp_rec_pin) == 32, "frozen");
_Static_assert(offsetof(struct cqp_rec_page, slot_gen) == 40, "frozen");
_Static_assert(offsetof(struct cqp_rec_page, parent) == 80, "frozen");
_Static_assert(offsetof(struct cqp_rec_page, uses) == 104, "frozen");
_Static_assert(offsetof(struct cqp_rec_segment, word_base) == 56, "frozen");
_Static_assert(offsetof(struct cqp_rec_segment, given) == 68, "frozen");
_Static_assert(offsetof(struct cqp_rec_segment, backend) == 100, "frozen");
_Static_assert(offsetof(struct cqp_rec_segment, device) == 104, "frozen");

#endif /* CQP_INDEX_H */
