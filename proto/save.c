// SPDX-License-Identifier: MIT
/* Blocks of files of saved pages, put together and checked: no I/O. */
#include <errno.h>
#include <string.h>
#include <xxhash.h>
#include "proto/save.h"

#define MAX_PAYLOAD (1ull << 40)

/**
 * cqp_save_head() - head of a file
 * @b:       filled
 * @flags:   CQP_SAVE_LOG or 0
 * @file_id: random
 * @time_us: of now
 * @boot_id: of the index
 */
void cqp_save_head(union cqp_save_block *b, uint32_t flags, uint64_t file_id,
		   uint64_t time_us, const uint8_t boot_id[16])
{
	memset(b, 0, sizeof(*b));
	b->head.magic = CQP_SAVE_MAGIC;
	b->head.version = CQP_SAVE_VERSION;
	b->head.flags = flags;
	b->head.file_id = file_id;
	b->head.time_us = time_us;
	memcpy(b->head.boot_id, boot_id, sizeof(b->head.boot_id));
	b->head.check = XXH3_64bits(b, offsetof(struct cqp_save_head, check));
}

/**
 * cqp_save_head_check() - is this the head of a file that can be read here?
 * @b:   block
 * @err: why not
 *
 * Return: 0; -EINVAL.
 */
int cqp_save_head_check(const union cqp_save_block *b, struct cq_err *err)
{
	if (b->head.magic != CQP_SAVE_MAGIC)
		return cq_err_set(err, -EINVAL, "no file of saved pages (wrong magic)");
	if (b->head.check != XXH3_64bits(b, offsetof(struct cqp_save_head, check)))
		return cq_err_set(err, -EINVAL, "the file's head is damaged");
	if (b->head.version != CQP_SAVE_VERSION)
		return cq_err_set(err, -EINVAL, "the file has version %u, this cqd reads %d",
				  b->head.version, CQP_SAVE_VERSION);
	if (b->head.incompat & ~CQP_SAVE_INCOMPAT)
		return cq_err_set(err, -EINVAL, "the file needs features 0x%llx, this cqd knows "
				  "0x%llx: use a newer one",
				  (unsigned long long)b->head.incompat,
				  (unsigned long long)CQP_SAVE_INCOMPAT);
	return 0;
}

static uint64_t block_check(const union cqp_save_block *b)
{
	union cqp_save_block copy = *b;

	copy.rec.check = 0;
	return XXH3_64bits(&copy, sizeof(copy));
}

/**
 * cqp_save_rec() - block of a record
 * @b:       filled
 * @type:    of the record
 * @file_id: of the file
 * @seq:     number of the record
 * @meta:    @n_meta bytes, NULL if 0
 * @n_meta:  at most CQP_SAVE_META
 * @data:    bytes that follow, a multiple of 512
 */
void cqp_save_rec(union cqp_save_block *b, enum cqp_save_type type, uint64_t file_id,
		  uint64_t seq, const void *meta, uint32_t n_meta, uint64_t data)
{
	memset(b, 0, sizeof(*b));
	b->rec.magic = CQP_SAVE_REC_MAGIC;
	b->rec.type = (uint16_t)type;
	b->rec.meta = n_meta;
	b->rec.data = data;
	b->rec.file_id = file_id;
	b->rec.seq = seq;
	if (n_meta)
		memcpy(b->meta, meta, n_meta);
	b->rec.check = block_check(b);
}

/**
 * cqp_save_rec_ok() - is it a record of that file?
 * @b:       block
 * @file_id: of the file
 *
 * Return: true if it is whole; its type may be unknown.
 */
bool cqp_save_rec_ok(const union cqp_save_block *b, uint64_t file_id)
{
	return b->rec.magic == CQP_SAVE_REC_MAGIC && b->rec.file_id == file_id &&
	       b->rec.meta <= CQP_SAVE_META && b->rec.data % CQP_SAVE_BLOCK == 0 &&
	       b->rec.data <= 2 * MAX_PAYLOAD && b->rec.check == block_check(b);
}

static bool text_ok(const char text[64])
{
	return text[0] && memchr(text, '\0', 64);
}

/**
 * cqp_save_page() - meta of a page
 * @b:   record that is whole, of type CQP_SAVE_PAGE
 * @out: filled on success
 *
 * Return: 0; -EINVAL: lengths or texts that no cqd writes.
 */
int cqp_save_page(const union cqp_save_block *b, struct cqp_save_page *out)
{
	struct cqp_save_page m;

	if (b->rec.meta != sizeof(m))
		return -EINVAL;
	memcpy(&m, b->meta, sizeof(m));
	if (!text_ok(m.tenant) || !text_ok(m.model) || !m.payload ||
	    m.payload > MAX_PAYLOAD || m.sink > MAX_PAYLOAD ||
	    cqp_save_data(m.payload, m.sink) != b->rec.data)
		return -EINVAL;
	*out = m;
	return 0;
}
