// SPDX-License-Identifier: MIT
/*
 * The folder of persist=: its files are found, created and replaced here, on
 * worker threads, one operation at a time. Which and when says daemon/persist.c.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/persist.h"

#define NAME_BYTES	32

static void log_name(uint32_t n, const char *suffix, char buf[NAME_BYTES])
{
	snprintf(buf, NAME_BYTES, "pages-%08u.%s", n, suffix);
}

static int by_number(const void *a, const void *b)
{
	const struct cqd_persist_file *x = a, *y = b;

	return x->number < y->number ? -1 : x->number > y->number;
}

/* Number of a log's name, or 0. */
static uint32_t number_of(const char *name)
{
	char again[NAME_BYTES];
	unsigned int n;

	if (sscanf(name, "pages-%8u.cq", &n) != 1)
		return 0;
	log_name(n, "cq", again);
	return strcmp(name, again) ? 0 : n;
}

static int add_file(struct cqd_persist *p, uint32_t number, const char *name)
{
	struct cqd_persist_file *f = realloc(p->file, (p->n_files + 1) * sizeof(*f));
	struct cqd_savefile *check;
	struct cq_err err = { "" };
	char bad[NAME_BYTES];
	struct stat sb;
	int ret;

	if (!f)
		return -ENOMEM;
	p->file = f;
	f += p->n_files;
	*f = (struct cqd_persist_file){ .number = number };
	f->fd = openat(p->dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (f->fd < 0)
		return -errno;
	check = malloc(sizeof(*check));
	if (!check) {
		close(f->fd);
		return -ENOMEM;
	}
	ret = cqd_savefile_open(check, f->fd, &err);
	if (ret && ret != -EINVAL) {
		close(f->fd);
		free(check);
		return ret;
	}
	if (fstat(f->fd, &sb) == 0 && sb.st_size < CQP_SAVE_FIRST) {
		/* Its daemon ended before it wrote anything. */
		unlinkat(p->dirfd, name, 0);
		close(f->fd);
	} else if (ret) {
		/* Out of the way, for who wants to look at it. */
		log_name(number, "bad", bad);
		(void)renameat(p->dirfd, name, p->dirfd, bad);
		snprintf(p->said, sizeof(p->said), "%s: %.160s; renamed to %s", name, err.text,
			 bad);
		close(f->fd);
	} else {
		f->bytes = check->bytes;
		p->old_bytes += f->bytes;
		p->n_files++;
	}
	free(check);
	return 0;
}

/**
 * cqd_persist_list() - open the folder's files, oldest first
 * @job: of the folder; @ret and @said tell the outcome
 *
 * What a daemon left half done goes, and what is no log is put aside.
 */
void cqd_persist_list(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);
	int fd = openat(p->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	uint32_t n;
	size_t len;

	p->ret = d ? 0 : -errno;
	if (!d && fd >= 0)
		close(fd);
	/* cppcheck-suppress readdirCalled ; each has its own stream */
	while (d && !p->ret && (e = readdir(d))) {
		len = strlen(e->d_name);
		n = number_of(e->d_name);
		if (n)
			p->ret = add_file(p, n, e->d_name);
		else if (!strncmp(e->d_name, "pages-", 6) && len > 4 &&
			 !strcmp(e->d_name + len - 4, ".tmp"))
			unlinkat(p->dirfd, e->d_name, 0);
		p->number = MAX(p->number, n);
	}
	if (d)
		closedir(d);
	if (p->n_files)
		qsort(p->file, p->n_files, sizeof(*p->file), by_number);
}

/**
 * cqd_persist_open() - create the next file
 * @job: of the folder; @ret: 0 or -errno, with save.fd set
 */
void cqd_persist_open(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);
	char name[NAME_BYTES];

	log_name(p->number + 1, p->state == CQD_PERSIST_WRITE ? "cq" : "tmp", name);
	p->save.fd = openat(p->dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
			    0600);
	p->ret = p->save.fd < 0 ? -errno : 0;
}

/**
 * cqd_persist_drop() - take the newest file away: nothing was written to it
 * @job: of the folder
 */
void cqd_persist_drop(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);
	char name[NAME_BYTES];

	log_name(p->number, p->state == CQD_PERSIST_WRITE ? "cq" : "tmp", name);
	unlinkat(p->dirfd, name, 0);
	close(p->save.fd);
}

/**
 * cqd_persist_swap() - put the newest file in the place of all others
 * @job: of the folder; @ret: 0, or -errno: there is no new file
 */
void cqd_persist_swap(struct cqd_job *job)
{
	struct cqd_persist *p = container_of(job, struct cqd_persist, job);
	char tmp[NAME_BYTES], name[NAME_BYTES];
	unsigned int i;

	log_name(p->number, "tmp", tmp);
	log_name(p->number, "cq", name);
	p->ret = 0;
	if (fdatasync(p->save.fd) < 0 || renameat(p->dirfd, tmp, p->dirfd, name) < 0 ||
	    fsync(p->dirfd) < 0)
		p->ret = -errno;
	for (i = 0; i < p->n_files && !p->ret; i++) {
		log_name(p->file[i].number, "cq", name);
		unlinkat(p->dirfd, name, 0);
	}
	if (p->ret) {
		/* Renamed or not: the others stay, so it must not. */
		unlinkat(p->dirfd, tmp, 0);
		unlinkat(p->dirfd, name, 0);
		close(p->save.fd);
	}
}
