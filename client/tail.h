/* SPDX-License-Identifier: MIT */
/* Tails (proto/tail.h) on their way between a sequence and cqd. */
#ifndef CQC_TAIL_H
#define CQC_TAIL_H

#include "client/backend.h"
#include "proto/tail.h"

/*
 * struct cqc_draft - a tail being put together
 * @meta:   [@meta_bytes] head, entries, ids, extra bytes
 * @extent: [@n_extents] where the tail is, in the model's arena or in @own
 * @unit:   [@n_units] blocks of the arena that are ours until cqd has copied
 * @own:    memory of the tail alone, if the model's is on a device
 */
struct cqc_draft {
	const struct cq_seq *seq;
	struct cqp_tail_head head;
	struct cqp_tail_entry entry[CQP_MAX_ENTRIES];
	struct cqp_extent extent[CQP_MAX_EXTENTS];
	uint32_t unit[CQP_MAX_EXTENTS];
	uint32_t n_extents, n_units;
	uint8_t *meta;
	uint64_t meta_bytes;
	struct cqc_arena own;
};

/*
 * struct cqc_piece - what a tail has for one entry
 * @e:     checked
 * @part:  a part-filled page, of @rows tokens
 * @f16, @codes, @sinks: NULL: none
 */
struct cqc_piece {
	const struct cqp_tail_entry *e;
	bool part;
	uint32_t rows;
	const uint8_t *f16, *codes, *sinks;
};

/* Rows of @mask, all else 0. @from may be @to. */
void cqc_f16_cut(const struct cqk_model *m, const uint8_t *from, uint64_t mask, uint8_t *to);
/* Codes of tokens from @n on become 0. */
void cqc_codes_cut(const struct cqk_model *m, uint32_t n, uint8_t *codes);
/* Are they numbers: halves, rows of @mask, codes of @n tokens? */
bool cqc_halves_finite(const uint8_t *p, size_t n);
bool cqc_rows_finite(const struct cqk_model *m, const uint8_t *block, uint64_t mask);
bool cqc_codes_finite(const struct cqk_model *m, uint32_t n, const uint8_t *codes);

int cqc_host_tail_put(struct cqc_draft *d);
int cqc_host_tail_take(struct cq_seq *seq, const struct cqc_piece *p);
int cqc_gpu_tail_put(struct cqc_draft *d);
int cqc_gpu_tail_take(struct cq_seq *seq, const struct cqc_piece *p);

#endif /* CQC_TAIL_H */
