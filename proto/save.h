/* SPDX-License-Identifier: MIT */
/*
 * Sealed pages in a file: what cqctl save writes, and the logs of persist=.
 *
 *	file:   [head 512 B][the same once more][record]...
 *	record: [struct cqp_save_rec][meta] padded to 512 B, [data]
 *	page:   meta is struct cqp_save_page, data the payload of the codes and
 *	        that of the sinks, each padded to 512 B with zeros
 *
 * Records begin at multiples of 512 bytes and carry a checksum of their own and
 * the random id of the file, so that after damage the next one can be found,
 * and no bytes that a tenant chose can be taken for one. A payload has the
 * checksum that it has in memory (cq/page.h). A number without a gap tells how
 * many records are missing. Integers are little-endian.
 *
 * This layout is frozen: change it only together with CQP_SAVE_VERSION, a
 * feature word, or by another type of record. Documentation/formats.md repeats
 * it in prose.
 */
#ifndef CQP_SAVE_H
#define CQP_SAVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "cq/err.h"
#include "cq/page.h"
#include "proto/proto.h"

#define CQP_SAVE_MAGIC		0x6576617351430a0dull
#define CQP_SAVE_REC_MAGIC	0x52535143u	/* "CQSR" in memory */
#define CQP_SAVE_VERSION	1
#define CQP_SAVE_INCOMPAT	0ull		/* incompatible features known */
#define CQP_SAVE_BLOCK		512
#define CQP_SAVE_FIRST		(2 * CQP_SAVE_BLOCK)	/* offset of the first record */

/**
 * struct cqp_save_head - first block of a file, and the second
 * @magic:    CQP_SAVE_MAGIC
 * @version:  CQP_SAVE_VERSION
 * @flags:    CQP_SAVE_LOG
 * @incompat: feature bits a reader must know, or refuse the file
 * @compat:   feature bits a reader may ignore
 * @file_id:  random; every record repeats it
 * @boot_id:  of the index that it was written from
 * @time_us:  CLOCK_REALTIME when it was begun
 * @pad:      0
 * @check:    XXH3-64 of the bytes before it
 */
struct cqp_save_head {
	uint64_t magic;
	uint32_t version;
	uint32_t flags;
	uint64_t incompat;
	uint64_t compat;
	uint64_t file_id;
	uint8_t boot_id[16];
	uint64_t time_us;
	uint8_t pad[440];
	uint64_t check;
};

#define CQP_SAVE_LOG		1u	/* appended to: no CQP_SAVE_END */

enum cqp_save_type {
	CQP_SAVE_PAGE = 1,
	CQP_SAVE_END = 2,	/* no meta, no data: nothing is missing behind */
};

/**
 * struct cqp_save_rec - head of a record
 * @magic:   CQP_SAVE_REC_MAGIC
 * @type:    enum cqp_save_type
 * @flags:   CQP_SAVE_SKIP
 * @meta:    bytes that follow in the same block, at most CQP_SAVE_META
 * @pad0:    0
 * @data:    bytes behind the block, a multiple of 512
 * @file_id: as in the file's head
 * @seq:     0, 1, ... in the order of the file
 * @pad:     0
 * @check:   XXH3-64 of the whole block with this field 0
 */
struct cqp_save_rec {
	uint32_t magic;
	uint16_t type;
	uint16_t flags;
	uint32_t meta;
	uint32_t pad0;
	uint64_t data;
	uint64_t file_id;
	uint64_t seq;
	uint8_t pad[16];
	uint64_t check;
};

#define CQP_SAVE_SKIP		1u	/* a reader may pass over an unknown type */
#define CQP_SAVE_META		(CQP_SAVE_BLOCK - 64)

/**
 * struct cqp_save_page - meta of CQP_SAVE_PAGE
 * @key:        of the page
 * @parent:     key of the page before; the root key for page 0, and for a page
 *              behind another namespace's, which the depth tells apart
 * @model_hash: of the model file
 * @tenant:     name of the namespace
 * @model:      name of the model, for messages only
 * @layer_begin: shard, ends exclusive and resolved
 * @depth:      page number in its chain
 * @uses, @ttl_s, @priority: as in the index
 * @age_us:     since its last use
 * @payload:    bytes of codes
 * @sink:       bytes of sinks, 0: no sink object
 * @check_lo, @check_hi: checksum of the codes
 * @sink_lo, @sink_hi:   checksum of the sinks
 */
struct cqp_save_page {
	uint8_t key[32];
	uint8_t parent[32];
	uint8_t model_hash[32];
	char tenant[64];
	char model[64];
	uint32_t layer_begin, layer_end, head_begin, head_end;
	uint32_t depth;
	uint32_t uses;
	uint32_t ttl_s;
	uint8_t priority;
	uint8_t pad0[3];
	uint64_t age_us;
	uint64_t payload, sink;
	uint64_t check_lo, check_hi;
	uint64_t sink_lo, sink_hi;
	uint64_t pad1;
};

_Static_assert(sizeof(struct cqp_save_head) == 512, "frozen");
_Static_assert(offsetof(struct cqp_save_head, file_id) == 32, "frozen");
_Static_assert(offsetof(struct cqp_save_head, time_us) == 56, "frozen");
_Static_assert(offsetof(struct cqp_save_head, check) == 504, "frozen");
_Static_assert(sizeof(struct cqp_save_rec) == 64, "frozen");
_Static_assert(offsetof(struct cqp_save_rec, data) == 16, "frozen");
_Static_assert(offsetof(struct cqp_save_rec, seq) == 32, "frozen");
_Static_assert(offsetof(struct cqp_save_rec, check) == 56, "frozen");
_Static_assert(sizeof(struct cqp_save_page) == 320, "frozen");
_Static_assert(offsetof(struct cqp_save_page, tenant) == 96, "frozen");
_Static_assert(offsetof(struct cqp_save_page, depth) == 240, "frozen");
_Static_assert(offsetof(struct cqp_save_page, age_us) == 256, "frozen");
_Static_assert(offsetof(struct cqp_save_page, sink_hi) == 304, "frozen");
_Static_assert(sizeof(struct cqp_save_page) <= CQP_SAVE_META, "fits its block");

/* A block as it is in the file. */
union cqp_save_block {
	struct cqp_save_head head;
	struct {
		struct cqp_save_rec rec;
		uint8_t meta[CQP_SAVE_META];
	};
	uint8_t b[CQP_SAVE_BLOCK];
};
_Static_assert(sizeof(union cqp_save_block) == CQP_SAVE_BLOCK, "one block");

/* Fills a head but for its boot_id, and sums it up. */
void cqp_save_head(union cqp_save_block *b, uint32_t flags, uint64_t file_id,
		   uint64_t time_us, const uint8_t boot_id[16]);
/* 0; -EINVAL no such file, damaged or of another version, with the reason. */
int cqp_save_head_check(const union cqp_save_block *b, struct cq_err *err);
/* Block of a record with @meta bytes of meta. */
void cqp_save_rec(union cqp_save_block *b, enum cqp_save_type type, uint64_t file_id,
		  uint64_t seq, const void *meta, uint32_t n_meta, uint64_t data);
/* Is it a record of that file? Nothing is said about its type. */
bool cqp_save_rec_ok(const union cqp_save_block *b, uint64_t file_id);
/* Copies the meta of a record of type CQP_SAVE_PAGE: 0, or -EINVAL. */
int cqp_save_page(const union cqp_save_block *b, struct cqp_save_page *out);

/* Bytes of data of a page with such payloads. */
static inline uint64_t cqp_save_data(uint64_t payload, uint64_t sink)
{
	return ALIGN_UP(payload, CQP_SAVE_BLOCK) + ALIGN_UP(sink, CQP_SAVE_BLOCK);
}

#endif /* CQP_SAVE_H */
