/* SPDX-License-Identifier: MIT */
/*
 * Searching a process for bytes it must not have: every piece of memory that it
 * maps, and every file that it has open. It is searched from outside, by one
 * that may read all of it, so that the bytes looked for are not in it.
 */
#ifndef TESTS_SEARCH_H
#define TESTS_SEARCH_H

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cq/util.h"
#include "tests/harness.h"

#define MAX_MARKS	64
#define MARK_BYTES	48
#define SHADOW		(1ul << 30)

/**
 * struct mark - bytes that only some may see
 * @b: 48 bytes of coded payload or of a key
 */
struct mark {
	uint8_t b[MARK_BYTES];
	size_t len;
};

static struct mark marks[MAX_MARKS];
static size_t n_marks;

static void add_mark(const uint8_t *p, size_t len)
{
	ASSERT_LT(n_marks, MAX_MARKS);
	memcpy(marks[n_marks].b, p, len);
	marks[n_marks++].len = len;
}

/* Call @fn for every piece of memory that process @pid can read. */
__attribute__((unused))
static size_t each_byte(pid_t pid, void (*fn)(const uint8_t *p, size_t n, const char *where))
{
	static uint8_t buf[1 << 20];
	unsigned long start, end, at;
	char path[64], line[512], perms[8];
	size_t total = 0;
	ssize_t n;
	FILE *f;
	int fd, got;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT(f);
	ASSERT_SYS(fd);
	while (fgets(line, sizeof(line), f)) {
		got = sscanf(line, "%lx-%lx %7s", &start, &end, perms);
		ASSERT_EQ(got, 3);
		/* a sanitizer's shadow is larger than all that cq could map */
		if (perms[0] != 'r' || strstr(line, "[v") || end - start > SHADOW)
			continue;
		/* overlap, so that nothing hides on a border */
		for (at = start; at < end; at += sizeof(buf) - MARK_BYTES) {
			n = pread(fd, buf, MIN(sizeof(buf), end - at), (off_t)at);
			if (n <= 0)
				break;
			fn(buf, (size_t)n, line);
			total += (size_t)n;
		}
	}
	close(fd);
	fclose(f);
	return total;
}

/* The same for every file that it has open, mapped or not. */
__attribute__((unused))
static size_t each_file(pid_t pid, void (*fn)(const uint8_t *p, size_t n, const char *where))
{
	static uint8_t buf[1 << 20];
	char path[400], dir[64], name[256];
	size_t total = 0;
	struct dirent *e;
	struct stat st;
	ssize_t n;
	off_t at;
	DIR *d;
	int fd;

	snprintf(dir, sizeof(dir), "/proc/%d/fd", (int)pid);
	d = opendir(dir);
	ASSERT(d);
	while ((e = readdir(d))) {
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		if (stat(path, &st) || !S_ISREG(st.st_mode))
			continue;
		n = readlink(path, name, sizeof(name) - 1);
		name[MAX(n, 0)] = 0;
		fd = open(path, O_RDONLY | O_CLOEXEC);
		for (at = 0; fd >= 0; at += (off_t)sizeof(buf) - MARK_BYTES) {
			n = pread(fd, buf, sizeof(buf), at);
			if (n <= 0)
				break;
			fn(buf, (size_t)n, name);
			total += (size_t)n;
		}
		if (fd >= 0)
			close(fd);
	}
	closedir(d);
	return total;
}

static size_t n_found, n_found_seg;

__attribute__((unused))
static void search(const uint8_t *p, size_t n, const char *where)
{
	size_t i;

	for (i = 0; i < n_marks; i++) {
		if (!memmem(p, n, marks[i].b, marks[i].len))
			continue;
		n_found_seg += strstr(where, "/memfd:cq-seg") != NULL;
		if (!n_found++)
			printf("# mark %zu in %s\n", i, where);
	}
}

#endif /* TESTS_SEARCH_H */
