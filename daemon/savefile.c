// SPDX-License-Identifier: MIT
/* Reader of files of saved pages: see daemon/savefile.h. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cq/util.h"
#include "daemon/savefile.h"

#define STRETCH		(8ull << 20)	/* searched per call */
#define MAX_SEARCH	(4ull << 30)	/* and per file */

/* -EIO: a block of which the disk, or the file, has only a part. */
static int read_block(const struct cqd_savefile *f, uint64_t at, union cqp_save_block *b)
{
	ssize_t n = pread(f->fd, b, sizeof(*b), (off_t)at);

	if (n < 0)
		return -EIO;
	return n == (ssize_t)sizeof(*b) ? 0 : -EINVAL;
}

/**
 * cqd_savefile_open() - check a file's head
 * @f:   filled
 * @fd:  must stay open while @f is used
 * @err: text of the failure
 *
 * The head is there twice: one whole copy is enough.
 *
 * Return: 0; -EINVAL; -EIO.
 */
int cqd_savefile_open(struct cqd_savefile *f, int fd, struct cq_err *err)
{
	union cqp_save_block b;
	struct stat sb;
	int ret;

	if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode))
		return cq_err_set(err, -EINVAL, "saved pages must be in a regular file");
	memset(f, 0, sizeof(*f));
	f->fd = fd;
	f->pos = CQP_SAVE_FIRST;
	f->bytes = (uint64_t)sb.st_size;
	memset(&b, 0, sizeof(b));
	if (read_block(f, 0, &b) || cqp_save_head_check(&b, NULL)) {
		ret = read_block(f, CQP_SAVE_BLOCK, &b);
		if (ret)
			return cq_err_set(err, ret, ret == -EIO ? "its head cannot be read" :
					  "the file is too short for its head");
		ret = cqp_save_head_check(&b, err);
		if (ret)
			return ret;
	}
	f->file_id = b.head.file_id;
	f->flags = b.head.flags;
	return 0;
}

/* Counts what the numbers say is missing before @seq. */
static void take_seq(struct cqd_savefile *f, uint64_t seq)
{
	if (seq < f->seq)
		return;
	f->missing = MIN(f->missing + (seq - f->seq), f->bytes / CQP_SAVE_BLOCK);
	f->seq = seq + 1;
}

/* A block in memory that begins like a record of this file. */
static bool looks_good(const struct cqd_savefile *f, const uint8_t *p)
{
	const struct cqp_save_rec *r = (const void *)p;

	return r->magic == CQP_SAVE_REC_MAGIC && r->file_id == f->file_id;
}

/* What is no hole behind @at: a sparse file costs nothing to search. */
static uint64_t next_data(const struct cqd_savefile *f, uint64_t at)
{
	off_t to = lseek(f->fd, (off_t)at, SEEK_DATA);

	if (to < 0)
		return errno == ENXIO ? f->bytes : at;
	return MAX(at, (uint64_t)to & ~(uint64_t)(CQP_SAVE_BLOCK - 1));
}

/* Moves f->pos to the next block that may be a record, or over a stretch. */
static int search(struct cqd_savefile *f)
{
	uint64_t left = STRETCH;
	ssize_t n, i;

	f->torn = true;
	f->pos += CQP_SAVE_BLOCK;
	while (left && f->pos < f->bytes && f->searched < MAX_SEARCH) {
		f->pos = next_data(f, f->pos);
		n = pread(f->fd, f->buf, sizeof(f->buf), (off_t)f->pos);
		f->unread += n < 0;
		for (i = 0; i + CQP_SAVE_BLOCK <= n; i += CQP_SAVE_BLOCK) {
			if (looks_good(f, f->buf + i)) {
				f->pos += (uint64_t)i;
				return -EAGAIN;
			}
		}
		n = MAX(i, CQP_SAVE_BLOCK);	/* of a bad sector: the block */
		f->pos += (uint64_t)n;
		f->searched += (uint64_t)n;
		left -= MIN(left, (uint64_t)n);
	}
	if (f->searched >= MAX_SEARCH)
		f->pos = f->bytes;
	return -EAGAIN;
}

static int take_record(struct cqd_savefile *f, const union cqp_save_block *b,
		       struct cqp_save_page *page, uint64_t *offset)
{
	uint64_t at = f->pos;

	take_seq(f, b->rec.seq);
	f->torn = false;
	f->pos += CQP_SAVE_BLOCK + b->rec.data;
	if (b->rec.type == CQP_SAVE_END) {
		f->ended = true;
		f->pos = f->bytes;
		return 0;
	}
	if (b->rec.type == CQP_SAVE_PAGE && !cqp_save_page(b, page)) {
		*offset = at;
		return 1;
	}
	if (b->rec.type == CQP_SAVE_PAGE || !(b->rec.flags & CQP_SAVE_SKIP))
		f->unknown++;
	return -EAGAIN;
}

/**
 * cqd_savefile_next() - the next page of a file
 * @f:      file
 * @page:   filled if there is one
 * @offset: of its record
 *
 * Return: 1 a page; 0 the end; -EAGAIN something else was passed, call again.
 */
int cqd_savefile_next(struct cqd_savefile *f, struct cqp_save_page *page,
		      uint64_t *offset)
{
	union cqp_save_block b;
	int ret;

	if (f->pos >= f->bytes)
		return 0;
	ret = read_block(f, f->pos, &b);
	f->unread += ret == -EIO;
	if (ret || !cqp_save_rec_ok(&b, f->file_id))
		return search(f);
	/* Its data is cut: nothing can be behind, but another record inside. */
	if (b.rec.data > f->bytes - f->pos - CQP_SAVE_BLOCK)
		return search(f);
	return take_record(f, &b, page, offset);
}

/**
 * cqd_savefile_page() - a page that was found before
 * @f:      file
 * @offset: as cqd_savefile_next() gave it
 * @page:   filled on success
 *
 * Return: 0; -EINVAL the file has changed; -EIO.
 */
int cqd_savefile_page(const struct cqd_savefile *f, uint64_t offset,
		      struct cqp_save_page *page)
{
	union cqp_save_block b;
	int ret = read_block(f, offset, &b);

	if (ret)
		return ret;
	if (!cqp_save_rec_ok(&b, f->file_id) || b.rec.type != CQP_SAVE_PAGE)
		return -EINVAL;
	return cqp_save_page(&b, page);
}

/**
 * cqd_savefile_lost() - records missing for sure
 * @f: file, read to its end
 *
 * Return: at least so many; 0: nothing is missing.
 */
uint64_t cqd_savefile_lost(const struct cqd_savefile *f)
{
	uint64_t n = f->missing + f->unknown;

	/* Torn at the end: no number tells how many were behind. */
	if (!n && (f->torn || (!f->ended && !(f->flags & CQP_SAVE_LOG))))
		n = 1;
	return n;
}
