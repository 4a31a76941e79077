// SPDX-License-Identifier: MIT
/*
 * Fuzzer of the reader of saved pages.
 *
 * Input: one byte of mode. Odd: the rest is a file. Even: the rest is a list of
 * records to be put together with right checksums, so that mutation gets
 * behind them: one byte of what to do, one of how, and for pages some of their
 * fields.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "daemon/savefile.h"

#define MUST(c) do { if (!(c)) { fprintf(stderr, "%s\n", #c); abort(); } } while (0)
#define FILE_ID 0x1122334455667788ull

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t take(const uint8_t **in, size_t *n)
{
	if (!*n)
		return 0;
	(*n)--;
	return *(*in)++;
}

static void put(int fd, const void *p, size_t n)
{
	MUST(write(fd, p, n) == (ssize_t)n);
}

static void put_page(int fd, uint8_t how, const uint8_t **in, size_t *n, uint64_t seq)
{
	static const uint8_t zero[64 * CQP_SAVE_BLOCK];
	struct cqp_save_page m = { .model = "m", .tenant = "t", .layer_end = 1 };
	union cqp_save_block b;
	uint64_t data;

	m.key[0] = take(in, n);
	m.depth = take(in, n);
	m.payload = take(in, n) * 64u;
	m.sink = take(in, n) * 16u;
	data = cqp_save_data(m.payload, m.sink);
	if (how & 1)
		memset(m.tenant, 'x', sizeof(m.tenant));
	if (how & 2)
		m.payload += 1ull << 60;
	cqp_save_rec(&b, CQP_SAVE_PAGE, FILE_ID, seq, &m,
		     how & 4 ? 8 : (uint32_t)sizeof(m), how & 8 ? data + 512 : data);
	put(fd, &b, sizeof(b));
	data = how & 16 ? data / 2 : data;
	put(fd, zero, MIN(data, sizeof(zero)));
}

/* A record of a type that this reader does not know. */
static void put_other(int fd, uint8_t how, uint64_t seq)
{
	union cqp_save_block b;

	cqp_save_rec(&b, how & 1 ? 7 : CQP_SAVE_END, FILE_ID, how & 2 ? seq + 9 : seq, NULL,
		     0, how & 4 ? 512 : 0);
	put(fd, &b, sizeof(b));
}

static void build(int fd, const uint8_t *in, size_t n)
{
	uint8_t boot_id[16] = { 1 }, what, how;
	union cqp_save_block b;
	uint64_t seq = 0;

	how = take(&in, &n);
	cqp_save_head(&b, how & 1, FILE_ID, 2, boot_id);
	put(fd, &b, sizeof(b));
	if (how & 2)
		MUST(pwrite(fd, "damage", 6, 100) == 6);
	b.b[8] += how & 4;
	put(fd, &b, sizeof(b));
	while (n) {
		what = take(&in, &n);
		how = take(&in, &n);
		switch (what % 4) {
		case 0:
			put_page(fd, how, &in, &n, seq++);
			break;
		case 1:
			put_other(fd, how, seq++);
			break;
		case 2:		/* a hole */
			MUST(lseek(fd, (off_t)(how * 65536u), SEEK_CUR) >= 0);
			break;
		default:
			memset(&b, how, sizeof(b));
			put(fd, &b, sizeof(b));
			break;
		}
	}
}

static void try_head(const uint8_t *in, size_t n)
{
	union cqp_save_block b = { .b = { 0 } };
	struct cq_err err = { "" };

	memcpy(&b, in, MIN(n, sizeof(b)));
	MUST(!cqp_save_head_check(&b, &err) || err.text[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct cqd_savefile f;
	struct cqp_save_page page, again;
	struct cq_err err = { "" };
	uint64_t offset, last = 0, turns = 0;
	int fd, ret;

	if (!size)
		return 0;
	fd = memfd_create("saved", MFD_CLOEXEC);
	MUST(fd >= 0);
	if (data[0] & 1)
		put(fd, data + 1, size - 1);
	else
		build(fd, data + 1, size - 1);
	try_head(data + 1, size - 1);
	ret = cqd_savefile_open(&f, fd, &err);
	MUST(!ret || err.text[0]);
	while (!ret) {
		ret = cqd_savefile_next(&f, &page, &offset);
		MUST(f.pos <= f.bytes + CQP_SAVE_BLOCK + sizeof(f.buf));
		MUST(++turns <= f.bytes / CQP_SAVE_BLOCK + 2);
		if (!ret)
			break;
		if (ret == 1) {
			MUST(offset > last && page.payload &&
			     offset + CQP_SAVE_BLOCK + page.payload + page.sink <= f.bytes);
			MUST(memchr(page.tenant, 0, sizeof(page.tenant)));
			MUST(!cqd_savefile_page(&f, offset, &again));
			MUST(!memcmp(&page, &again, sizeof(page)));
			MUST(cqd_savefile_page(&f, offset + 1, &again));
			last = offset;
		}
		ret = 0;
	}
	MUST(cqd_savefile_lost(&f) <= UINT64_MAX / 2);
	close(fd);
	return 0;
}
