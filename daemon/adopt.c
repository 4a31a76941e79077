// SPDX-License-Identifier: MIT
/*
 * After a restart: what the service manager kept becomes the store again.
 *
 * The index is input like any other. A record counts only if its word says
 * so, its fields are in range, it agrees with the descriptor of its name and
 * with the records it points to; else its word is cleared, and what hung on it
 * goes the same way. A descriptor that no record names is removed. Nothing is
 * read but records and model heads: payloads are verified later (verify.c).
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/adopt.h"

#define INDEX_NAME "cq-index"

/* --- descriptors --- */

static int by_name(const void *a, const void *b, void *arg)
{
	const unsigned int *x = a, *y = b;
	const struct cqd_adopt *ad = arg;
	int c = strcmp(ad->names[*x], ad->names[*y]);

	return c ? c : *x < *y ? -1 : *x > *y;
}

/* Thousands of segments look for their names. */
static int sort_names(struct cqd_adopt *ad)
{
	unsigned int i;

	ad->order = calloc(ad->n + 1, sizeof(*ad->order));
	if (!ad->order)
		return -ENOMEM;
	for (i = 0; i < ad->n; i++)
		ad->order[i] = i;
	qsort_r(ad->order, ad->n, sizeof(*ad->order), by_name, ad);
	return 0;
}

/* Place in the order of a descriptor of @name: the first, or the next after @at. */
static const unsigned int *next_named(const struct cqd_adopt *ad, const char *name,
				      const unsigned int *at)
{
	const unsigned int *end = ad->order + ad->n;
	size_t lo = 0, hi = ad->n, mid;

	if (at) {
		at++;
	} else {
		while (lo < hi) {
			mid = (lo + hi) / 2;
			if (strcmp(ad->names[ad->order[mid]], name) < 0)
				lo = mid + 1;
			else
				hi = mid;
		}
		at = ad->order + lo;
	}
	return at < end && !strcmp(ad->names[*at], name) ? at : NULL;
}

/**
 * cqd_adopt_take() - first descriptor of a name
 * @ad:   taken ones are marked
 * @name: FDNAME
 *
 * Return: its number in ad->fds, -1 if there is none.
 */
int cqd_adopt_take(struct cqd_adopt *ad, const char *name)
{
	const unsigned int *at = NULL;

	while ((at = next_named(ad, name, at)) != NULL) {
		if (ad->taken[*at])
			continue;
		ad->taken[*at] = true;
		return (int)*at;
	}
	return -1;
}

static bool name_kept(const struct cqd_adopt *ad, const char *name)
{
	const unsigned int *at = NULL;

	while ((at = next_named(ad, name, at)) != NULL)
		if (ad->taken[*at])
			return true;
	return false;
}

/* "cq-index" is number 1, "cq-index-2" 2, ...; 0: no index. */
static unsigned int index_number(const char *name)
{
	const size_t n = sizeof(INDEX_NAME) - 1;
	unsigned long x;
	char *end;

	if (strncmp(name, INDEX_NAME, n))
		return 0;
	if (!name[n])
		return 1;
	if (name[n] != '-' || name[n + 1] < '1' || name[n + 1] > '9')
		return 0;
	x = strtoul(name + n + 1, &end, 10);
	return *end || x < 2 || x >= UINT_MAX - 1 ? 0 : (unsigned int)x;
}

/* Descriptors without a record. A name that is kept cannot be removed. */
static void drop_rest(struct cqd_adopt *ad)
{
	unsigned int i;

	for (i = 0; i < ad->n; i++) {
		if (ad->taken[i])
			continue;
		if (!name_kept(ad, ad->names[i]))
			cqd_fdstore_remove(ad->st, ad->names[i]);
		close(ad->fds[i]);
		/* Of an index that was replaced nothing is lost. */
		ad->lost_fds += !index_number(ad->names[i]);
	}
}

/* A failed start: the next one finds them again. */
static void close_rest(struct cqd_adopt *ad)
{
	unsigned int i;

	for (i = 0; i < ad->n; i++)
		if (!ad->taken[i])
			close(ad->fds[i]);
}

/* --- namespaces and models --- */

static bool good_name(const char name[CQP_MAX_NAME])
{
	return name[0] && memchr(name, '\0', CQP_MAX_NAME);
}

/**
 * cqd_adopt_kill() - a record that does not hold
 * @ad:   counted there
 * @word: of the record
 */
void cqd_adopt_kill(struct cqd_adopt *ad, uint64_t *word)
{
	cqd_word_state(word, CQP_FREE);
	ad->lost_records++;
}

static bool ns_known(const struct cqd_adopt *ad, const char *name)
{
	struct list_head *pos;

	list_for_each(pos, &ad->st->namespaces)
		if (!strcmp(list_entry(pos, struct cqd_ns, node)->name, name))
			return true;
	return false;
}

static bool adopt_ns(struct cqd_adopt *ad, uint32_t i)
{
	const struct cqp_rec_namespace *r = &ad->st->ix.ns[i];
	char name[32];
	struct cqd_ns *ns;
	int fd;

	if (!good_name(r->name) || ns_known(ad, r->name) || !r->state_words ||
	    r->state_words > CQD_MAX_WORDS)
		return false;
	snprintf(name, sizeof(name), "cq-state-%u", i);
	fd = cqd_adopt_take(ad, name);
	if (fd < 0)
		return false;
	if (!cqd_ns_attach(ad->st, i, ad->fds[fd], &ns, NULL))
		return true;
	ad->taken[fd] = false;
	return false;
}

static bool adopt_model(struct cqd_adopt *ad, uint32_t i)
{
	const struct cqp_rec_model *r = &ad->st->ix.models[i];
	struct cqd_model *m;
	char name[32];
	int fd;

	if (!good_name(r->name) || cqd_model_find(ad->st, r->name))
		return false;
	snprintf(name, sizeof(name), "cq-model-%u", i);
	fd = cqd_adopt_take(ad, name);
	if (fd < 0)
		return false;
	m = calloc(1, sizeof(*m));
	if (!m || cqd_model_map(m, ad->fds[fd], NULL)) {
		free(m);
		ad->taken[fd] = false;
		return false;
	}
	m->st = ad->st;
	m->rec = i;
	m->ready = true;
	snprintf(m->name, sizeof(m->name), "%s", r->name);
	list_add_tail(&m->node, &ad->st->models);
	if (m->bytes == r->bytes && !memcmp(m->head->hash, r->hash, sizeof(r->hash)))
		return true;
	m->fd = -1;	/* goes with the rest */
	cqd_model_free(m);
	ad->taken[fd] = false;
	return false;
}

/* --- clients and pins --- */

static bool adopt_client(struct cqd_adopt *ad, uint32_t i)
{
	struct cqp_rec_client *r = &ad->st->ix.clients[i];
	struct cqd_ns *ns = cqd_ns_by_rec(ad->st, r->ns);

	if (!ns || !r->session || cqd_client_find(ad->st, r->session) || !r->pid ||
	    r->pid > INT32_MAX)
		return false;
	r->name[sizeof(r->name) - 1] = '\0';
	if (!cqd_client_attach(ad->st, ns, i, true))
		return false;
	ad->st->client_at[i]->adopted = true;
	ns->adopted++;
	return true;
}

static bool adopt_pin(struct cqd_adopt *ad, uint32_t i)
{
	struct cqd_store *st = ad->st;
	const struct cqp_rec_pin *r = &st->ix.pins[i];
	const struct cqd_page *pg;
	struct cqd_client *cl;

	if (r->page == CQP_NONE)
		return cqd_adopt_lease(ad, i);
	if (r->client >= st->ix.t_clients.n || r->page >= st->ix.t_pages.n)
		return false;
	cl = st->client_at[r->client];
	pg = &st->pages[r->page];
	/* A seal pins its page before it is one; this one died with the daemon. */
	if (!pg->shard && r->page < st->ix.t_pages.high) {
		cqd_word_state(&st->ix.pins[i].word, CQP_FREE);
		return true;
	}
	/* Of whatever namespace: who may read whom is not known yet. */
	if (!cl || !pg->shard || !r->count ||
	    r->count > UINT32_MAX - pg->pins || cqd_pin_exists(cl, r->page))
		return false;
	cqd_pin_adopt(st, cl, i);
	return true;
}

/* --- tables --- */

struct table {
	struct cqd_tab *tab;
	uint8_t *base;
	size_t stride;
	bool (*adopt)(struct cqd_adopt *ad, uint32_t i);
};

/*
 * Each record of a table in turn, and its free list. Only SEALED counts:
 * what was being made or unmade when the daemon died is free.
 */
static void scan_one(struct cqd_adopt *ad, const struct table *t, uint32_t i)
{
	uint64_t *word = (uint64_t *)(void *)(t->base + i * t->stride);
	/* Pairs with the release in cqd_word_born(): word, then fields. */
	unsigned int state = CQP_WORD_STATE(smp_load_acquire(word));

	if (state == CQP_SEALED && !t->adopt(ad, i))
		cqd_adopt_kill(ad, word);
	else if (state != CQP_SEALED && state != CQP_FREE)
		cqd_word_state(word, CQP_FREE);
	if (CQP_WORD_STATE(*word) != CQP_SEALED)
		cqd_tab_append(t->tab, i);
}

static void scan(struct cqd_adopt *ad, const struct table *t)
{
	uint32_t i;

	cqd_tab_rebuild(t->tab);
	for (i = 0; i < t->tab->high; i++)
		scan_one(ad, t, i);
}

/* There are very many of them. */
static void scan_pages(struct cqd_adopt *ad)
{
	struct cqd_index *ix = &ad->st->ix;
	const struct table t = { &ix->t_pages, (void *)ix->pages, sizeof(*ix->pages),
				 cqd_adopt_page };
	uint32_t i;

	ad->later = CQP_NONE;
	cqd_tab_rebuild(t.tab);
	for (i = 0; i < CQD_ADOPT_AHEAD; i++)
		cqd_adopt_page_soon(ad, i);
	for (i = 0; i < t.tab->high; i++) {
		scan_one(ad, &t, i);
		cqd_adopt_page_soon(ad, i + CQD_ADOPT_AHEAD);
	}
}

static int scan_all(struct cqd_adopt *ad)
{
	struct cqd_index *ix = &ad->st->ix;
	struct table first[] = {
		{ &ix->t_ns, (void *)ix->ns, sizeof(*ix->ns), adopt_ns },
		{ &ix->t_models, (void *)ix->models, sizeof(*ix->models), adopt_model },
		{ &ix->t_segs, (void *)ix->segs, sizeof(*ix->segs), cqd_adopt_segment },
	};
	struct table then[] = {
		{ &ix->t_clients, (void *)ix->clients, sizeof(*ix->clients), adopt_client },
		{ &ix->t_pins, (void *)ix->pins, sizeof(*ix->pins), adopt_pin },
		{ &ix->t_names, (void *)ix->names, sizeof(*ix->names), cqd_adopt_name },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(first); i++)
		scan(ad, &first[i]);
	scan_pages(ad);
	cqd_adopt_tree(ad);
	for (i = 0; i < ARRAY_SIZE(then); i++)
		scan(ad, &then[i]);
	cqd_adopt_leases(ad);
	cqd_adopt_imports(ad->st);
	return cqd_adopt_order(ad);
}

/* --- the whole --- */

static int fresh(struct cqd_adopt *ad, const struct cqd_store_opts *opts,
		 struct cq_err *err)
{
	struct cqd_store *st = ad->st;
	int ret = cqd_index_create(&st->ix, opts, err);

	if (!ret)
		ret = cqd_store_arrays(st);
	if (!ret)
		ret = cqd_fdstore_push(st, INDEX_NAME, st->ix.fd, CQD_FD_NOW, err);
	return ret;
}

/* The newest one below @below that nobody has; -1: none. */
static int newest(const struct cqd_adopt *ad, unsigned int below)
{
	unsigned int i, number, best = 0;
	int found = -1;

	for (i = 0; i < ad->n; i++) {
		number = index_number(ad->names[i]);
		if (number > best && number < below) {
			best = number;
			found = (int)i;
		}
	}
	return found;
}

/*
 * 0 taken over, 1 there was none, -errno there is none that we can use. More
 * than one: a cqd died between handing over a new index and removing the old
 * one, which hold the same; or before it was whole.
 */
static int open_index(struct cqd_adopt *ad, struct cq_err *why)
{
	int i, ret = 1, one;

	ad->index = UINT_MAX;
	while ((i = newest(ad, ad->index)) >= 0) {
		ad->index = index_number(ad->names[i]);
		one = cqd_index_open(&ad->st->ix, ad->fds[i], ret > 0 ? why : NULL);
		if (!one) {
			ad->taken[i] = true;
			return 0;
		}
		ret = ret > 0 ? one : ret;
	}
	return ret;
}

static void index_name(unsigned int number, char name[32])
{
	if (number == 1)
		snprintf(name, 32, INDEX_NAME);
	else
		snprintf(name, 32, INDEX_NAME "-%u", number);
}

/*
 * An index of another layout is replaced: the new one is with the service
 * manager, under a name of its own, before the old one is given up. Nothing is
 * changed in either before that, so whichever is found after a crash will do.
 */
static int modernise(struct cqd_adopt *ad, const struct cqd_store_opts *opts,
		     struct cq_err *err)
{
	struct cqd_store *st = ad->st;
	/* No name that is there already, whatever lies under it. */
	unsigned int next = index_number(ad->names[newest(ad, UINT_MAX)]) + 1;
	char old[32], name[32];
	struct cqd_index ix;
	int ret;

	if (cqd_index_current(&st->ix, opts))
		return 0;
	ret = cqd_index_migrate(&st->ix, opts, &ix, err);
	if (ret)
		return ret;
	index_name(ad->index, old);
	index_name(next, name);
	ret = cqd_fdstore_push(st, name, ix.fd, CQD_FD_SURE, err);
	if (ret) {
		/* It may have arrived, and must never win over the old one. */
		ix.hdr->magic = 0;
		cqd_fdstore_remove(st, name);
		cqd_index_close(&ix);
		return ret;
	}
	cqd_fdstore_remove(st, old);
	cqd_index_close(&st->ix);
	st->ix = ix;
	ad->index = next;
	return 0;
}

static void say_sizes(const struct cqd_index *ix, const struct cqd_store_opts *opts,
		      struct cq_err *err)
{
	if (ix->t_pages.n != opts->max_pages || ix->t_pins.n != opts->max_pins ||
	    ix->t_clients.n != opts->max_clients)
		cq_err_set(err, 0, "max_pages %u, max_clients %u, max_pins %u: more is in use, "
			   "so %u, %u and %u stay until a restart with less",
			   opts->max_pages, opts->max_clients, opts->max_pins,
			   ix->t_pages.n, ix->t_clients.n, ix->t_pins.n);
}

static int take_over(struct cqd_adopt *ad, const struct cqd_store_opts *opts,
		     struct cq_err *err)
{
	int ret, stays = modernise(ad, opts, err);

	/* Only its sizes are not those asked for: the next start tries again. */
	if (stays && ad->st->ix.hdr->version != CQP_INDEX_VERSION) {
		close_rest(ad);
		return stays;
	}
	ret = cqd_store_arrays(ad->st);
	if (!ret)
		ret = scan_all(ad);
	if (ret) {
		close_rest(ad);
		return cq_err_set(err, ret, "no memory to take over the index");
	}
	drop_rest(ad);
	if (ad->lost_records || ad->lost_fds)
		cq_err_set(err, 0, "restart: dropped %u records and %u descriptors "
			   "that did not fit together", ad->lost_records, ad->lost_fds);
	else if (!stays)
		say_sizes(&ad->st->ix, opts, err);
	return 0;
}

static int take_node(void *arg, const char *name)
{
	struct cqd_adopt *ad = arg;
	int i = cqd_adopt_take(ad, name);

	return i < 0 ? -1 : ad->fds[i];
}

/**
 * cqd_adopt() - take over what the service manager kept, or start afresh
 * @st:   store without an index
 * @opts: descriptors and table sizes
 * @err:  text of the failure; on success a line about what was dropped
 *
 * Return: 0; -ENOMEM; other -errno.
 */
int cqd_adopt(struct cqd_store *st, const struct cqd_store_opts *opts,
	      struct cq_err *err)
{
	struct cqd_adopt ad = { .st = st, .fds = opts->fds, .names = opts->names,
				.n = opts->n_fds, .now = cqd_now_us() };
	struct cq_err why = { "" };
	int ret;

	ad.taken = calloc(opts->n_fds + 1, sizeof(*ad.taken));
	if (!ad.taken || sort_names(&ad)) {	/* the caller exits: nothing needs to be closed */
		free(ad.taken);
		return cq_err_set(err, -ENOMEM, "no memory to take over descriptors");
	}
	st->fdstore = opts->n_fds;
	cqd_pools_hold(st, take_node, &ad);
	ret = open_index(&ad, &why);
	if (ret == 0) {
		ret = take_over(&ad, opts, err);
		st->adopted = true;
	} else {
		drop_rest(&ad);
		ret = fresh(&ad, opts, err);
		if (!ret && ad.n)
			cq_err_set(err, 0, "%s: every cached page of the cqd before is dropped",
				   why.text[0] ? why.text : "the fd store holds no index");
	}
	if (!ret)
		cqd_ipc_adopted(st);
	free(ad.order);
	free(ad.taken);
	return ret;
}
