// SPDX-License-Identifier: MIT
/*
 * Fuzzer of a restart: what the service manager hands back is damaged in many
 * places, and the store that is built over it must hold together, serve, and
 * leak nothing.
 *
 * Input: pieces of 8 bytes, each one damage (enum what): fields and words of
 * records, state words, payloads, descriptors that are lost, doubled, swapped or
 * are of another kind. They are done to copies of the memory of a small store.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/fuzz/store_scene.h"
#include "tests/store_check.h"

#define SEALS	(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define MAX_FDS	16
#define STEP	8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum what { FIELD, WORD, STATE, LOSE, SWAP, TWICE, KIND, COPY, PAYLOAD, HEAD, N_WHAT };

/*
 * struct kept - a descriptor as the manager holds it
 * @page: 4 KiB pages that are not zero, with their offsets
 */
struct kept {
	char name[32];
	int fd;
	off_t bytes;
	unsigned int n;
	off_t *at;
	uint8_t (*page)[4096];
};

static struct kept base[MAX_FDS];
static unsigned int n_base;
static struct cqp_index_hdr head;

/* --- the store before --- */

static void keep(const char *name, int fd)
{
	static const uint8_t zero[4096];
	struct kept *k = &base[n_base++];
	uint8_t page[4096];
	struct stat sb;
	off_t at;

	MUST(n_base <= MAX_FDS && !fstat(fd, &sb));
	snprintf(k->name, sizeof(k->name), "%s", name);
	k->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	k->bytes = sb.st_size;
	for (at = 0; at < sb.st_size; at += 4096) {
		memset(page, 0, sizeof(page));
		MUST(pread(fd, page, sizeof(page), at) > 0);
		if (!memcmp(page, zero, sizeof(page)))
			continue;
		k->at = realloc(k->at, (k->n + 1) * sizeof(*k->at));
		k->page = realloc(k->page, (k->n + 1) * sizeof(*k->page));
		MUST(k->at && k->page);
		k->at[k->n] = at;
		memcpy(k->page[k->n++], page, sizeof(page));
	}
}

static void setup(void)
{
	struct scene s;
	char name[32];
	uint32_t i;

	scene_start(&s, NULL, NULL, 0);
	scene_fill(&s);
	scene_fill_device(&s);
	memcpy(&head, s.st->ix.hdr, sizeof(head));
	keep("cq-index", s.st->ix.fd);
	keep("cq-state-0", list_first(&s.st->namespaces, struct cqd_ns, node)->mem.fd);
	keep("cq-model-0", list_first(&s.st->models, struct cqd_model, node)->fd);
	for (i = 0; i < CQD_MAX_SEGMENTS; i++) {
		if (!s.st->segs[i])
			continue;
		snprintf(name, sizeof(name), "cq-seg-%u", s.st->segs[i]->id);
		keep(name, s.st->segs[i]->mem.fd);
	}
	scene_stop(&s);
}

/* --- copies, and damage --- */

static int copy(const struct kept *k)
{
	unsigned int i;
	int fd;

	if (!strncmp(k->name, "cq-model", 8))
		return fcntl(k->fd, F_DUPFD_CLOEXEC, 3);
	fd = memfd_create(k->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	MUST(fd >= 0 && !ftruncate(fd, k->bytes));
	for (i = 0; i < k->n; i++)
		MUST(pwrite(fd, k->page[i], sizeof(k->page[i]), k->at[i]) > 0);
	return fd;
}

struct table {
	uint64_t off;
	size_t stride;
};

static struct table table_of(unsigned int i)
{
	const struct table t[] = {
		{ head.off_namespaces, sizeof(struct cqp_rec_namespace) },
		{ head.off_models, sizeof(struct cqp_rec_model) },
		{ head.off_segments, sizeof(struct cqp_rec_segment) },
		{ head.off_clients, sizeof(struct cqp_rec_client) },
		{ head.off_pages, sizeof(struct cqp_rec_page) },
		{ head.off_pins, sizeof(struct cqp_rec_pin) },
	};

	return t[i % ARRAY_SIZE(t)];
}

/* May fail: a descriptor can be a pipe by now, or too short. */
static void put(int fd, uint64_t off, const void *p, size_t n)
{
	if (pwrite(fd, p, n, (off_t)off) < 0)
		return;
}

static void copy_record(int fd, const struct table *t, unsigned int from, unsigned int to)
{
	uint8_t rec[128];

	if (pread(fd, rec, t->stride, (off_t)(t->off + from * t->stride)) > 0)
		put(fd, t->off + to * t->stride, rec, t->stride);
}

static int other_kind(unsigned int kind, const struct kept *k)
{
	int p[2], fd;

	switch (kind % 5) {
	case 0:
		MUST(!pipe2(p, O_CLOEXEC));
		close(p[1]);
		return p[0];
	case 1:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case 2:
		return open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case 3:		/* shorter than it should be */
		fd = memfd_create("short", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		MUST(!ftruncate(fd, k->bytes / 2));
		return fd;
	default:	/* nobody can write it */
		fd = copy(k);
		(void)fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE);
		return fd;
	}
}

struct image {
	int fds[2 * MAX_FDS];
	char *names[2 * MAX_FDS];
	unsigned int n;
};

static void replace(struct image *im, unsigned int i, int fd)
{
	close(im->fds[i]);
	im->fds[i] = fd;
}

static void hurt(struct image *im, const uint8_t d[STEP])
{
	unsigned int a = d[1] % im->n, b = d[2] % im->n;
	struct table t = table_of(d[1]);
	uint64_t word = CQP_WORD(d[3], d[4]);
	char *name;

	switch (d[0] % N_WHAT) {
	case FIELD:
		put(im->fds[0], t.off + d[2] % 8 * t.stride + d[3] % t.stride, d + 4,
		    1u << d[0] / N_WHAT % 3);
		break;
	case WORD:
		put(im->fds[0], t.off + d[2] % 8 * t.stride, &word, sizeof(word));
		break;
	case STATE:
		put(im->fds[1], d[2] * 8u, &word, sizeof(word));
		break;
	case LOSE:
		if (im->n > 1) {
			close(im->fds[a]);
			im->n--;
			im->fds[a] = im->fds[im->n];
			im->names[a] = im->names[im->n];
		}
		break;
	case SWAP:
		name = im->names[a];
		im->names[a] = im->names[b];
		im->names[b] = name;
		break;
	case TWICE:
		if (im->n < ARRAY_SIZE(im->fds)) {
			im->fds[im->n] = fcntl(im->fds[a], F_DUPFD_CLOEXEC, 3);
			im->names[im->n++] = im->names[b];
		}
		break;
	case KIND:
		replace(im, a, other_kind(d[2], &base[a % n_base]));
		break;
	case COPY:
		copy_record(im->fds[0], &t, d[2] % 8, d[3] % 8);
		break;
	case PAYLOAD:
		put(im->fds[a], (uint64_t)(d[2] | d[3] << 8), d + 4, 1);
		break;
	default:
		put(im->fds[0], d[2] % sizeof(head), d + 4, 1u << d[0] / N_WHAT % 3);
		break;
	}
}

static int first_free(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	MUST(fd >= 0);
	close(fd);
	return fd;
}

/* --- the store after --- */

static void check(struct cqd_store *st)
{
	const char *bad = store_check(st);

	if (bad)
		fprintf(stderr, "%s\n", bad);
	MUST(!bad);
}

static void serve(struct scene *s)
{
	check(s->st);
	scene_verify(s);
	check(s->st);
	if (!scene_client(s)) {
		scene_fill(s);
		check(s->st);
		scene_fill_device(s);
		check(s->st);
		cqd_client_end(s->cl);
		check(s->st);
	}
	scene_stop(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct image im = { .n = 0 };
	struct scene s;
	unsigned int i;
	int before;

	if (!n_base)
		setup();
	before = first_free();
	for (i = 0; i < n_base; i++) {
		im.fds[i] = copy(&base[i]);
		im.names[i] = base[i].name;
	}
	im.n = n_base;
	for (i = 0; i + STEP <= size && i < 32 * STEP; i += STEP)
		hurt(&im, data + i);
	for (i = 0; i < im.n; i++)
		(void)fcntl(im.fds[i], F_ADD_SEALS, SEALS);
	scene_start(&s, im.fds, im.names, im.n);
	serve(&s);
	MUST(first_free() == before);
	return 0;
}
