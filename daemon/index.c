// SPDX-License-Identifier: MIT
/*
 * The index memfd: layout, creation, validation of its head, free lists.
 *
 * Only cqd maps it. It is reserved once, so a store into it cannot fail. What
 * lies in it after a crash is input like any other: cqd_index_open() believes
 * a head only if it describes exactly the layout this code would make.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/store_priv.h"

#define HEAD_BYTES	4096
#define MAX_RECORDS	(1u << 28)	/* per table: keeps every product in 64 bits */

/* Offsets and size from the counts; the only place that knows the order. */
static void layout(struct cqp_index_hdr *h)
{
	uint64_t off = HEAD_BYTES;

	h->off_namespaces = off;
	off += ALIGN_UP(h->n_namespaces * sizeof(struct cqp_rec_namespace), 4096);
	h->off_models = off;
	off += ALIGN_UP(h->n_models * sizeof(struct cqp_rec_model), 4096);
	h->off_segments = off;
	off += ALIGN_UP(h->n_segments * sizeof(struct cqp_rec_segment), 4096);
	h->off_clients = off;
	off += ALIGN_UP(h->n_clients * sizeof(struct cqp_rec_client), 4096);
	h->off_pages = off;
	off += ALIGN_UP(h->n_pages * sizeof(struct cqp_rec_page), 4096);
	h->off_pins = off;
	off += ALIGN_UP(h->n_pins * sizeof(struct cqp_rec_pin), 4096);
	h->off_names = h->version == CQP_INDEX_V1 ? 0 : off;
	off += ALIGN_UP(h->n_names * sizeof(struct cqp_rec_name), 4096);
	h->bytes = off;
}

static bool same_layout(const struct cqp_index_hdr *h)
{
	struct cqp_index_hdr want = *h;

	if (h->version == CQP_INDEX_V1 ? h->n_names : h->n_names - 1u >= CQD_MAX_NAMES)
		return false;
	if (!h->n_namespaces || h->n_namespaces > CQD_MAX_NS || !h->n_models ||
	    h->n_models > CQD_MAX_MODELS || !h->n_segments ||
	    h->n_segments > CQD_MAX_SEGMENTS || !h->n_clients ||
	    h->n_clients > MAX_RECORDS || !h->n_pages || h->n_pages > MAX_RECORDS ||
	    !h->n_pins || h->n_pins > MAX_RECORDS)
		return false;
	layout(&want);
	/* A compatible feature may keep something of its own behind our tables. */
	if (h->compat & ~CQP_INDEX_COMPAT && h->bytes > want.bytes)
		want.bytes = h->bytes;
	return !memcmp(&want, h, sizeof(want));
}

static void tab_free(struct cqd_tab *t)
{
	free(t->next);
	t->next = NULL;
}

/* @high: NULL for a table that is small enough to be looked at whole. */
static int tab_init(struct cqd_tab *t, uint32_t n, uint32_t *high)
{
	t->n = n;
	t->used = 0;
	t->head = CQP_NONE;
	t->high = high ? MIN(*high, n) : n;
	t->stored = high;
	t->next = malloc((n + 1) * sizeof(*t->next));
	return t->next ? 0 : -ENOMEM;
}

static int tabs_init(struct cqd_index *ix)
{
	struct cqp_index_hdr *h = ix->hdr;
	uint32_t n_names = h->version == CQP_INDEX_V1 ? 0 : h->n_names;

	if (tab_init(&ix->t_names, n_names, NULL) ||
	    tab_init(&ix->t_ns, h->n_namespaces, NULL) ||
	    tab_init(&ix->t_models, h->n_models, NULL) ||
	    tab_init(&ix->t_segs, h->n_segments, NULL) ||
	    tab_init(&ix->t_clients, h->n_clients, &h->high_clients) ||
	    tab_init(&ix->t_pages, h->n_pages, &h->high_pages) ||
	    tab_init(&ix->t_pins, h->n_pins, &h->high_pins))
		return -ENOMEM;
	return 0;
}

static void tables_at(struct cqd_index *ix, struct cqd_mem *mem)
{
	uint8_t *b = mem->base;
	const struct cqp_index_hdr *h = mem->base;

	ix->hdr = mem->base;
	ix->fd = mem->fd;
	ix->bytes = mem->bytes;
	ix->ns = (void *)(b + h->off_namespaces);
	ix->models = (void *)(b + h->off_models);
	ix->segs = (void *)(b + h->off_segments);
	ix->clients = (void *)(b + h->off_clients);
	ix->pages = (void *)(b + h->off_pages);
	ix->pins = (void *)(b + h->off_pins);
	/* The head of the first version ended before this field. */
	ix->names = h->version == CQP_INDEX_V1 ? NULL : (void *)(b + h->off_names);
}

/* A table that was never used has nothing to be looked at. */
static void fresh(struct cqd_index *ix)
{
	ix->t_ns.high = 0;
	ix->t_models.high = 0;
	ix->t_segs.high = 0;
	ix->t_names.high = 0;
}

/* The index has no read-only twin: nobody else ever sees it. */
static void no_reader(struct cqd_mem *mem)
{
	close(mem->ro_fd);
	mem->ro_fd = -1;
}

/**
 * cqd_index_create() - an empty index with a new boot id
 * @ix:   filled on success
 * @opts: table sizes
 * @err:  text of the failure
 *
 * Return: 0; -EINVAL sizes out of range; -ENOMEM; other -errno.
 */
int cqd_index_create(struct cqd_index *ix, const struct cqd_store_opts *opts,
		     struct cq_err *err)
{
	struct cqp_index_hdr h = {
		.magic = CQP_INDEX_MAGIC,
		.version = CQP_INDEX_VERSION,
		.n_namespaces = CQD_MAX_NS,
		.n_models = CQD_MAX_MODELS,
		.n_segments = CQD_MAX_SEGMENTS,
		.n_clients = opts->max_clients,
		.n_pages = opts->max_pages,
		.n_pins = opts->max_pins,
		.n_names = CQD_MAX_NAMES,
	};
	uint64_t id[2] = { cqd_random(), cqd_random() };
	struct cqd_mem mem;
	int ret;

	memcpy(h.boot_id, id, sizeof(h.boot_id));
	layout(&h);
	if (!same_layout(&h))
		return cq_err_set(err, -EINVAL,
				  "max_pages %u, max_clients %u, max_pins %u: each must be 1 to %u",
				  opts->max_pages, opts->max_clients, opts->max_pins,
				  MAX_RECORDS);
	ret = cqd_memfd_make("cq-index", h.bytes, true, &mem, err);
	if (ret)
		return ret;
	no_reader(&mem);
	memcpy(mem.base, &h, sizeof(h));
	tables_at(ix, &mem);
	ret = tabs_init(ix);
	if (ret) {
		cqd_index_close(ix);
		return cq_err_set(err, ret, "no memory for the index");
	}
	fresh(ix);
	return 0;
}

static int head_check(int fd, struct cqp_index_hdr *h, struct cq_err *err)
{
	struct stat sb;

	if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode) ||
	    pread(fd, h, sizeof(*h), 0) != (ssize_t)sizeof(*h))
		return cq_err_set(err, -EINVAL, "the stored index cannot be read");
	if (h->magic != CQP_INDEX_MAGIC)
		return cq_err_set(err, -EINVAL, "the stored index is not an index of cq");
	if (h->version == CQP_INDEX_V1)	/* its head ended before these */
		memset((uint8_t *)h + CQP_INDEX_V1_BYTES, 0, sizeof(*h) - CQP_INDEX_V1_BYTES);
	if ((h->version != CQP_INDEX_VERSION && h->version != CQP_INDEX_V1) || h->incompat)
		return cq_err_set(err, -EINVAL,
				  "the stored index has version %u, features %#llx; "
				  "this cqd knows versions %u to %u",
				  h->version, (unsigned long long)h->incompat,
				  (unsigned int)CQP_INDEX_V1, (unsigned int)CQP_INDEX_VERSION);
	if (h->bytes != (uint64_t)sb.st_size || !same_layout(h))
		return cq_err_set(err, -EINVAL, "the stored index is damaged");
	return 0;
}

/**
 * cqd_index_open() - take over the index of the daemon before
 * @ix:  filled on success
 * @fd:  from the fd store; owned by @ix on success
 * @err: text of the failure
 *
 * Checks the head only; records are checked by adopt.c, which then rebuilds
 * the free lists.
 *
 * Return: 0; -EINVAL not ours or damaged; -ENOMEM; other -errno.
 */
int cqd_index_open(struct cqd_index *ix, int fd, struct cq_err *err)
{
	struct cqp_index_hdr h;
	struct cqd_mem mem = { .fd = fd, .ro_fd = -1 };
	int ret;

	ret = head_check(fd, &h, err);
	if (ret)
		return ret;
	mem.bytes = h.bytes;
	ret = cqd_memfd_adopt(&mem, err);
	if (ret)
		return ret;
	no_reader(&mem);
	tables_at(ix, &mem);
	ret = tabs_init(ix);
	if (ret) {
		ix->fd = -1;	/* stays the caller's */
		cqd_index_close(ix);
		return cq_err_set(err, ret, "no memory for the index");
	}
	return 0;
}

/**
 * cqd_index_close() - unmap; the service manager's copy of the fd stays
 * @ix: may be empty
 */
void cqd_index_close(struct cqd_index *ix)
{
	struct cqd_mem mem = { .bytes = ix->bytes, .fd = ix->fd, .ro_fd = -1,
			       .base = ix->hdr };

	tab_free(&ix->t_names);
	tab_free(&ix->t_ns);
	tab_free(&ix->t_models);
	tab_free(&ix->t_segs);
	tab_free(&ix->t_clients);
	tab_free(&ix->t_pages);
	tab_free(&ix->t_pins);
	cqd_memfd_free(&mem);
	ix->hdr = NULL;
	ix->fd = -1;
}

/**
 * cqd_tab_get() - a free record
 * @t: table
 *
 * Return: its number, CQP_NONE when the table is full.
 */
uint32_t cqd_tab_get(struct cqd_tab *t)
{
	uint32_t i = t->head;

	if (i != CQP_NONE) {
		t->head = t->next[i];
	} else if (t->high < t->n) {
		i = t->high++;
		/* Out before the record's word, which is stored with release. */
		if (t->stored)
			WRITE_ONCE(*t->stored, t->high);
	}
	if (i != CQP_NONE)
		t->used++;
	return i;
}

/**
 * cqd_tab_put() - give a record back
 * @t: table
 * @i: its number; its word says free already
 */
void cqd_tab_put(struct cqd_tab *t, uint32_t i)
{
	t->next[i] = t->head;
	t->head = i;
	t->used--;
}

/**
 * cqd_tab_rebuild() - begin a new free list: every record is in use
 * @t: table
 */
void cqd_tab_rebuild(struct cqd_tab *t)
{
	t->head = CQP_NONE;
	t->last = CQP_NONE;
	t->used = t->high;
}

/**
 * cqd_tab_append() - a record behind all others of a new free list
 * @t: table, of which no record was given back since cqd_tab_rebuild()
 * @i: its number; its word says free already
 */
void cqd_tab_append(struct cqd_tab *t, uint32_t i)
{
	t->next[i] = CQP_NONE;
	if (t->last == CQP_NONE)
		t->head = i;
	else
		t->next[t->last] = i;
	t->last = i;
	t->used--;
}

/**
 * cqd_word_born() - a record begins to exist
 * @word:  its word; every other field has been filled
 * @state: CQP_SEALED, or CQP_FILLING for a page
 */
void cqd_word_born(uint64_t *word, unsigned int state)
{
	/* Pairs with the acquire of the scan in adopt.c: fields before word. */
	smp_store_release(word, CQP_WORD(CQP_WORD_GEN(*word) + 1, state));
}

/**
 * cqd_word_state() - change of state within a generation
 * @word:  of a record or of a slot
 * @state: enum cqp_state
 */
void cqd_word_state(uint64_t *word, unsigned int state)
{
	/*
	 * Pairs with the acquire of the scan in adopt.c (records), and with
	 * the acquire of a worker that attaches a page (state words): whoever
	 * sees SEALED sees the payload.
	 */
	smp_store_release(word, CQP_WORD(CQP_WORD_GEN(*word), state));
	/* The word is out before anything is done to what it guarded. */
	smp_wmb();
}
