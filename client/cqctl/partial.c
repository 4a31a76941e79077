// SPDX-License-Identifier: MIT
/*
 * Partial files of a calibration: a head with the identity of the run, then one
 * record per finished layer, each with a checksum. Not a format for others: a
 * file that differs in anything is another run's.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "client/cqctl/partial.h"

#define MAGIC 0x31545251434c4143ull	/* "CALCQRT1" in memory */

struct head {
	uint64_t magic;
	uint8_t id[32];
};

struct record {
	uint32_t layer;
	uint32_t pad;
	uint64_t size;
	uint8_t sum[32];
};

_Static_assert(sizeof(struct head) == 40 && sizeof(struct record) == 48, "no padding");

static int checksum(const void *data, size_t size, uint8_t *out)
{
	return EVP_Digest(data, size, out, NULL, EVP_sha256(), NULL) ? 0 : -ENOMEM;
}

/* All of it, or -errno; -ENODATA if the file ends before. */
static int read_at(int fd, void *buf, size_t n, uint64_t at)
{
	uint8_t *to = buf;
	ssize_t got;

	while (n) {
		got = pread(fd, to, n, (off_t)at);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -ENODATA;
		to += got;
		at += (uint64_t)got;
		n -= (size_t)got;
	}
	return 0;
}

int ctl_write_at(int fd, const void *buf, size_t n, uint64_t at)
{
	const uint8_t *from = buf;
	ssize_t put;

	while (n) {
		put = pwrite(fd, from, n, (off_t)at);
		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -errno;
		from += put;
		at += (uint64_t)put;
		n -= (size_t)put;
	}
	return 0;
}

/* Where each layer's last record is; what is not whole is not there. */
static int find_records(struct ctl_partial *p, uint64_t size)
{
	struct record r;
	int ret;

	for (p->end = sizeof(struct head); p->end + sizeof(r) <= size; ) {
		ret = read_at(p->fd, &r, sizeof(r), p->end);
		if (ret)
			return ret;
		if (r.layer >= CQ_MAX_LAYERS || r.size > size - p->end - sizeof(r))
			break;
		p->at[r.layer] = p->end;
		p->end += sizeof(r) + r.size;
	}
	return 0;
}

/* A file that nobody else works at. */
static int open_file(struct ctl_partial *p, struct cq_err *err)
{
	struct stat st;

	p->fd = open(p->path, O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	if (p->fd < 0)
		return cq_err_set(err, -errno, "cannot keep finished layers in %s: %s: remove "
				  "it or choose another output", p->path, strerror(errno));
	if (fstat(p->fd, &st) < 0 || !S_ISREG(st.st_mode))
		return cq_err_set(err, -EINVAL, "%s is not a regular file: remove it or choose "
				  "another output", p->path);
	if (flock(p->fd, LOCK_EX | LOCK_NB) < 0)
		return cq_err_set(err, -EBUSY, "%s is in use: another calibration writes the "
				  "same output; choose another", p->path);
	return 0;
}

int ctl_partial_open(struct ctl_partial *p, const char *output, struct cq_err *err)
{
	int ret;

	*p = (struct ctl_partial){ .fd = -1 };
	if (asprintf(&p->path, "%s.part", output) < 0) {
		p->path = NULL;
		return cq_err_set(err, -ENOMEM, "out of memory");
	}
	ret = open_file(p, err);
	if (ret && p->fd >= 0) {	/* another's: it is not ours to remove */
		close(p->fd);
		p->fd = -1;
	}
	return ret;
}

int ctl_partial_start(struct ctl_partial *p, const uint8_t *id, bool resume, struct cq_err *err)
{
	struct head h;
	struct stat st;
	int ret;

	memcpy(p->id, id, sizeof(p->id));
	if (!resume)
		return 0;
	ret = read_at(p->fd, &h, sizeof(h), 0);
	if (ret == -ENODATA)	/* made, and ended before a layer was finished */
		return 0;
	if (!ret && (h.magic != MAGIC || memcmp(h.id, p->id, 32)))
		return cq_err_set(err, -EINVAL, "%s is of another dump, other options or "
				  "another version: give those again, or do without --resume",
				  p->path);
	if (!ret)
		ret = fstat(p->fd, &st) < 0 ? -errno : find_records(p, (uint64_t)st.st_size);
	return ret ? cq_err_set(err, ret, "cannot read %s: %s", p->path, strerror(-ret)) : 0;
}

int ctl_partial_load(struct ctl_partial *p, uint32_t layer, void *data, size_t size)
{
	uint64_t at = p->at[layer];
	uint8_t sum[32];
	struct record r;
	int ret;

	if (!at)
		return 0;
	ret = read_at(p->fd, &r, sizeof(r), at);
	if (ret || r.size != size)
		return ret;
	ret = read_at(p->fd, data, size, at + sizeof(r));
	if (!ret)
		ret = checksum(data, size, sum);
	if (ret)
		return ret;
	if (!memcmp(sum, r.sum, sizeof(sum)))
		return 1;
	memset(data, 0, size);
	return 0;
}

/* What an earlier run kept goes when there is something to keep instead. */
static int write_head(struct ctl_partial *p)
{
	struct head h = { .magic = MAGIC };

	if (ftruncate(p->fd, 0) < 0)
		return -errno;
	memcpy(h.id, p->id, sizeof(h.id));
	p->end = sizeof(h);
	return ctl_write_at(p->fd, &h, sizeof(h), 0);
}

int ctl_partial_save(struct ctl_partial *p, uint32_t layer, const void *data, size_t size)
{
	struct record r = { .layer = layer, .size = size };
	int ret = p->end ? 0 : write_head(p);

	if (!ret)
		ret = checksum(data, size, r.sum);
	if (!ret)
		ret = ctl_write_at(p->fd, &r, sizeof(r), p->end);
	if (!ret)
		ret = ctl_write_at(p->fd, data, size, p->end + sizeof(r));
	if (!ret && fdatasync(p->fd) < 0)
		ret = -errno;
	if (!ret)
		p->end += sizeof(r) + size;
	return ret;
}

void ctl_partial_remove(struct ctl_partial *p)
{
	if (p->fd >= 0)
		unlink(p->path);
}

void ctl_partial_close(struct ctl_partial *p)
{
	struct stat st;

	if (p->path && p->fd >= 0) {
		if (!p->end && !fstat(p->fd, &st) && !st.st_size)
			unlink(p->path);
		close(p->fd);
	}
	free(p->path);
	p->path = NULL;
}
