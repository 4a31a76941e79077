// SPDX-License-Identifier: MIT
/*
 * An index of an older layout, or with tables of other sizes, becomes one of
 * today's: its memfd cannot grow, so the live records are copied into a new
 * one. Records that move (pages, clients, pins) are numbered anew, and what
 * points to them follows. The old index is only read: until the new one is
 * safe with the service manager it stays the truth (adopt.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/store_priv.h"

#define NOWHERE 0xfffffffeu	/* a reference that no scan believes */

/*
 * struct table - records of one kind in the old index
 * @n: the first ones, those behind were never used
 */
struct table {
	const uint8_t *base;
	size_t stride;
	uint32_t n;
};

static struct table pages_of(const struct cqd_index *ix)
{
	return (struct table){ (const void *)ix->pages, sizeof(*ix->pages), ix->t_pages.high };
}

static struct table clients_of(const struct cqd_index *ix)
{
	return (struct table){ (const void *)ix->clients, sizeof(*ix->clients),
			       ix->t_clients.high };
}

static struct table pins_of(const struct cqd_index *ix)
{
	return (struct table){ (const void *)ix->pins, sizeof(*ix->pins), ix->t_pins.high };
}

/* What a scan would look at: all else is free after a restart. */
static bool live(const struct table *t, uint32_t i)
{
	const uint64_t *word = (const void *)(t->base + i * t->stride);

	/* Pairs with the release in cqd_word_born(): word, then fields. */
	return CQP_WORD_STATE(smp_load_acquire(word)) == CQP_SEALED;
}

static uint32_t count(struct table t)
{
	uint32_t i, n = 0;

	for (i = 0; i < t.n; i++)
		n += live(&t, i);
	return n;
}

/* As asked for, unless more is in use: then as it is. */
static uint32_t size_for(uint32_t have, uint32_t want, struct table t)
{
	return have == want || (want < have && count(t) > want) ? have : want;
}

static struct cqd_store_opts sizes(const struct cqd_index *ix, const struct cqd_store_opts *opts)
{
	struct cqd_store_opts o = *opts;

	o.max_pages = size_for(ix->t_pages.n, opts->max_pages, pages_of(ix));
	o.max_clients = size_for(ix->t_clients.n, opts->max_clients, clients_of(ix));
	o.max_pins = size_for(ix->t_pins.n, opts->max_pins, pins_of(ix));
	return o;
}

/**
 * cqd_index_current() - can an index stay as it is?
 * @ix:   opened
 * @opts: table sizes asked for
 *
 * Return: true if it has today's layout and those sizes, or holds more records
 * than would fit into them.
 */
bool cqd_index_current(const struct cqd_index *ix, const struct cqd_store_opts *opts)
{
	struct cqd_store_opts o = sizes(ix, opts);

	return ix->hdr->version == CQP_INDEX_VERSION && ix->t_names.n == CQD_MAX_NAMES &&
	       ix->t_pages.n == o.max_pages && ix->t_clients.n == o.max_clients &&
	       ix->t_pins.n == o.max_pins;
}

/* Live records to the front of @to. [t.n] new numbers; NULL without memory. */
static uint32_t *move(struct table t, void *to, uint32_t *n)
{
	uint32_t *number = malloc(((size_t)t.n + 1) * sizeof(*number)), i;

	if (!number)
		return NULL;
	*n = 0;
	for (i = 0; i < t.n; i++) {
		number[i] = NOWHERE;
		if (!live(&t, i))
			continue;
		memcpy((uint8_t *)to + *n * t.stride, t.base + i * t.stride, t.stride);
		number[i] = (*n)++;
	}
	return number;
}

static uint32_t follow(const uint32_t *number, uint32_t n, uint32_t i)
{
	if (i == CQP_NONE)
		return CQP_NONE;
	return i < n ? number[i] : NOWHERE;
}

/* Pages, clients and pins, in this order: the later point to the earlier. */
static int move_all(const struct cqd_index *from, struct cqd_index *to)
{
	struct cqp_index_hdr *h = to->hdr;
	uint32_t *page, *client = NULL, *pin = NULL, i;
	int ret = -ENOMEM;

	page = move(pages_of(from), to->pages, &h->high_pages);
	if (page)
		client = move(clients_of(from), to->clients, &h->high_clients);
	if (client)
		pin = move(pins_of(from), to->pins, &h->high_pins);
	if (!pin)
		goto out;
	for (i = 0; i < h->high_pages; i++)
		to->pages[i].parent = follow(page, from->t_pages.high, to->pages[i].parent);
	for (i = 0; i < h->high_pins; i++) {
		to->pins[i].page = follow(page, from->t_pages.high, to->pins[i].page);
		to->pins[i].client = follow(client, from->t_clients.high, to->pins[i].client);
	}
	for (i = 0; i < MIN(from->t_names.n, to->t_names.n); i++) {
		to->names[i] = from->names[i];
		to->names[i].page = follow(page, from->t_pages.high, to->names[i].page);
	}
	ret = 0;
out:
	free(page);
	free(client);
	free(pin);
	return ret;
}

/* Tables whose records keep their numbers: segments and models are named by them. */
static void keep_all(const struct cqd_index *from, struct cqd_index *to)
{
	memcpy(to->ns, from->ns, MIN(from->t_ns.n, to->t_ns.n) * sizeof(*to->ns));
	memcpy(to->models, from->models,
	       MIN(from->t_models.n, to->t_models.n) * sizeof(*to->models));
	memcpy(to->segs, from->segs, MIN(from->t_segs.n, to->t_segs.n) * sizeof(*to->segs));
}

static void marks(struct cqd_index *ix)
{
	ix->t_ns.high = ix->t_ns.n;
	ix->t_models.high = ix->t_models.n;
	ix->t_segs.high = ix->t_segs.n;
	ix->t_names.high = ix->t_names.n;
	ix->t_pages.high = ix->hdr->high_pages;
	ix->t_clients.high = ix->hdr->high_clients;
	ix->t_pins.high = ix->hdr->high_pins;
}

/**
 * cqd_index_migrate() - the records of an index in a new one of today's layout
 * @from: opened; only read
 * @opts: table sizes asked for
 * @out:  filled on success, with the boot id of @from
 * @err:  text of the failure
 *
 * Return: 0; -ENOMEM; other -errno.
 */
int cqd_index_migrate(const struct cqd_index *from, const struct cqd_store_opts *opts,
		      struct cqd_index *out, struct cq_err *err)
{
	struct cqd_store_opts o = sizes(from, opts);
	int ret = cqd_index_create(out, &o, err);

	if (ret)
		return ret;
	/* Whoever finds it half made must not believe it. */
	out->hdr->magic = 0;
	memcpy(out->hdr->boot_id, from->hdr->boot_id, sizeof(out->hdr->boot_id));
	keep_all(from, out);
	ret = move_all(from, out);
	if (ret) {
		cqd_index_close(out);
		return cq_err_set(err, ret, "no memory to copy the index");
	}
	marks(out);
	/* Pairs with the head being read by the next cqd: records, then magic. */
	smp_store_release(&out->hdr->magic, CQP_INDEX_MAGIC);
	return 0;
}
