// SPDX-License-Identifier: MIT
/*
 * Names: what keeps a prefix resident although no process pins it, and hands a
 * sequence from one process of a namespace to another. A name's pin counts
 * for the namespace like a client's. A record carries what survives a restart;
 * here is what is rebuilt: the hash by namespace and name, the open tail.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "daemon/adopt.h"

static uint32_t *bucket(struct cqd_store *st, uint32_t ns, const char *name)
{
	/* Seeded: who chooses names must not choose chains. */
	uint64_t h = XXH3_64bits_withSeed(name, strlen(name), st->hash_seed + ns);

	return &st->name_hash[h % CQD_MAX_NAMES];
}

/**
 * cqd_names_init() - nothing has a name yet
 * @st: store
 */
void cqd_names_init(struct cqd_store *st)
{
	uint32_t i;

	for (i = 0; i < CQD_MAX_NAMES; i++) {
		st->names[i].fd = -1;
		st->name_hash[i] = CQP_NONE;
	}
}

/**
 * cqd_names_free() - close every tail; records and stored fds stay
 * @st: store
 */
void cqd_names_free(struct cqd_store *st)
{
	uint32_t i;

	for (i = 0; i < CQD_MAX_NAMES; i++)
		if (st->names[i].fd >= 0)
			close(st->names[i].fd);
}

/**
 * cqd_name_good() - 1 to 63 printable characters without space
 * @name: of a message or record
 *
 * Return: true if it may be one.
 */
bool cqd_name_good(const char *name)
{
	size_t i, n = strnlen(name, CQP_MAX_NAME);

	for (i = 0; i < n; i++)
		if (name[i] < 0x21 || name[i] > 0x7e)
			return false;
	return n > 0 && n < CQP_MAX_NAME;
}

/* Also one that has expired: whoever makes a name must see it. */
static uint32_t find(struct cqd_ns *ns, const char *name)
{
	struct cqd_store *st = ns->st;
	uint32_t i = *bucket(st, ns->rec, name);

	while (i != CQP_NONE && (st->names[i].shard->ns != ns ||
				 strcmp(st->ix.names[i].name, name)))
		i = st->names[i].next;
	return i;
}

/* Its time is over, or a checksum took its page. */
static bool lost(const struct cqd_store *st, uint32_t n, uint64_t now)
{
	const struct cqp_rec_name *r = &st->ix.names[n];

	return (r->expires_us && r->expires_us <= now) ||
	       (r->page != CQP_NONE && st->pages[r->page].state != CQP_SEALED);
}

/**
 * cqd_name_find() - a name that counts
 * @ns:   namespace
 * @name: any string of at most 63 bytes
 *
 * Return: its record; CQP_NONE. One that is over is dropped here.
 */
uint32_t cqd_name_find(struct cqd_ns *ns, const char *name)
{
	uint32_t i = find(ns, name);

	if (i == CQP_NONE || !lost(ns->st, i, cqd_now_us()))
		return i;
	cqd_name_drop(ns->st, i);
	return CQP_NONE;
}

/**
 * cqd_name_drop() - the end of a name
 * @st: store
 * @n:  record
 *
 * Who has its tail open keeps that; pages are kept by pins of their own.
 */
void cqd_name_drop(struct cqd_store *st, uint32_t n)
{
	struct cqp_rec_name *r = &st->ix.names[n];
	struct cqd_name *nm = &st->names[n];
	struct cqd_shard *sh = nm->shard;
	uint32_t *b = bucket(st, sh->ns->rec, r->name);
	char fdname[32];

	while (*b != n)
		b = &st->names[*b].next;
	*b = nm->next;
	cqd_word_state(&r->word, CQP_FREE);
	if (nm->fd >= 0) {
		cqd_tail_name(r->id, fdname);
		cqd_fdstore_remove(st, fdname);
		close(nm->fd);
		sh->ns->tail_bytes -= r->tail_bytes;
		sh->ns->used_bytes -= r->tail_bytes;
	}
	nm->fd = -1;
	nm->shard = NULL;
	if (r->page != CQP_NONE)
		cqd_unpin_named(sh->ns, r->page);
	cqd_tab_put(&st->ix.t_names, n);
	sh->names--;
	cqd_shard_put(sh);
}

/* Beside a record that lives or is about to; its pin and bytes are counted. */
static void attach(struct cqd_shard *sh, uint32_t n, int fd)
{
	struct cqd_store *st = sh->st;
	uint32_t *b = bucket(st, sh->ns->rec, st->ix.names[n].name);

	st->names[n] = (struct cqd_name){ .shard = sh, .next = *b, .fd = fd };
	*b = n;
	sh->names++;
}

/**
 * cqd_name_born() - a name begins to exist, in place of another if there is one
 * @sh:  its shard
 * @rec: filled; its page is pinned, its bytes are counted
 * @fd:  of the tail, -1: none; taken over
 */
void cqd_name_born(struct cqd_shard *sh, uint32_t rec, int fd)
{
	struct cqd_store *st = sh->st;
	uint32_t old = find(sh->ns, st->ix.names[rec].name);

	/* The new one first: killed in between, both are found, the later made
	 * wins. */
	cqd_word_born(&st->ix.names[rec].word, CQP_SEALED);
	sh->names++;	/* the last name of a shard may be going */
	if (old != CQP_NONE)
		cqd_name_drop(st, old);
	sh->names--;
	attach(sh, rec, fd);
}

/**
 * cqd_names_tick() - drop what has expired or was lost
 * @st: store; called once a second, looks at 1,024 records at most
 */
void cqd_names_tick(struct cqd_store *st)
{
	uint64_t now = cqd_now_us();
	uint32_t i;

	for (i = 0; st->ix.t_names.used && i < st->ix.t_names.high; i++)
		if (st->names[i].shard && lost(st, i, now))
			cqd_name_drop(st, i);
}

/* --- pins without a tail --- */

/**
 * cqd_unpublish() - take a name away
 * @ns:   namespace
 * @name: name
 * @err:  text of the failure
 *
 * Return: 0; -ENOENT.
 */
int cqd_unpublish(struct cqd_ns *ns, const char *name, struct cq_err *err)
{
	uint32_t i = cqd_name_find(ns, name);

	if (i == CQP_NONE)
		return cq_err_set(err, -ENOENT, "namespace '%s' has no name '%.63s'", ns->name,
				  name);
	cqd_name_drop(ns->st, i);
	return 0;
}

/**
 * cqd_name_pin() - a name for a resident page
 * @ns:      namespace
 * @name:    name
 * @key:     of the page, in any shard
 * @ttl_s:   0: never expires
 * @replace: take a name in use over
 * @err:     text of the failure
 *
 * Return: 0; -ENOENT the page is not resident; and as cqd_publish().
 */
int cqd_name_pin(struct cqd_ns *ns, const char *name, const struct cqp_key *key,
		 uint32_t ttl_s, bool replace, struct cq_err *err)
{
	struct cqd_store *st = ns->st;
	uint32_t p = cqd_page_find_ns(st, ns, key);
	struct cqd_publish_req req = { .name = name, .key = key, .ttl_s = ttl_s,
				       .replace = replace };
	char hex[65];

	if (p == CQP_NONE || st->pages[p].state == CQP_FILLING)
		return cq_err_set(err, -ENOENT, "namespace '%s' has no page %s: see cqctl list "
				  "pages", ns->name, cqp_key_hex(key, hex));
	req.tokens = ((uint64_t)st->ix.pages[p].depth + 1) * CQ_PAGE_TOKENS;
	return cqd_name_make(st->pages[p].shard, &req, err);
}

/* --- attaching --- */

/**
 * cqd_attach() - hand a named sequence to a client
 * @client: gets a pin on the last page
 * @shard:  one that it opened
 * @name:   name
 * @room:   bytes it has room for
 * @out:    filled on success; its fd is the caller's
 * @err:    text of the failure
 *
 * Return: 0; -ENOENT no such name in this shard; -ENODATA it only pins;
 * -ENOBUFS; -EDQUOT, -ENOSPC pins; -EMFILE.
 */
int cqd_attach(struct cqd_client *client, struct cqd_shard *shard, const char *name,
	       uint64_t room, struct cqd_attached *out, struct cq_err *err)
{
	uint32_t i = cqd_name_find(client->ns, name);
	struct cqd_store *st = client->st;
	const struct cqp_rec_name *r = &st->ix.names[i == CQP_NONE ? 0 : i];
	struct cqd_place at = { 0 };
	int fd, ret;

	if (i == CQP_NONE || st->names[i].shard != shard)
		return cq_err_set(err, -ENOENT, "namespace '%s' has no sequence '%.63s' of this "
				  "model and shard", client->ns->name, name);
	if (st->names[i].fd < 0)
		return cq_err_set(err, -ENODATA, "'%.63s' keeps pages and has no sequence to "
				  "attach to: open one with its token ids", name);
	if (r->tail_bytes > room)
		return cq_err_set(err, -ENOBUFS, "the tail of '%.63s' has %llu bytes, the arena "
				  "room for %llu", name, (unsigned long long)r->tail_bytes,
				  (unsigned long long)room);
	fd = fcntl(st->names[i].fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return cq_err_set(err, -errno, "no descriptor for '%.63s': %s", name,
				  strerror(errno));
	ret = r->page == CQP_NONE ? 0 : cqd_pin(client, r->page, err);
	if (ret) {
		close(fd);
		return ret;
	}
	if (r->page != CQP_NONE)
		at = cqd_page_place(st, r->page, CQD_CODES);
	*out = (struct cqd_attached){ .tokens = r->tokens, .bytes = r->tail_bytes,
				      .check_lo = r->check_lo, .check_hi = r->check_hi,
				      .page = cqd_place_page(at.seg, at.slot), .fd = fd };
	if (r->flags & CQP_NAME_ONCE)
		cqd_name_drop(st, i);
	return 0;
}

/* --- restart --- */

/* Is the page still the one that was named? */
static bool page_holds(const struct cqd_store *st, const struct cqp_rec_name *r,
		       const struct cqd_shard *sh)
{
	return r->page < st->ix.t_pages.high && st->pages[r->page].shard == sh &&
	       st->ix.pages[r->page].slot_gen == r->slot_gen &&
	       st->pages[r->page].pins < UINT32_MAX;
}

/* Its descriptor's number in ad->fds; -1: none and none wanted; -2: missing. */
static int take_tail(struct cqd_adopt *ad, const struct cqp_rec_name *r)
{
	char fdname[32];
	int fd;

	if (!r->id)
		return r->tail_bytes ? -2 : -1;
	cqd_tail_name(r->id, fdname);
	fd = cqd_adopt_take(ad, fdname);
	if (fd < 0)
		return -2;
	if (r->tail_bytes && cqd_tail_sealed(ad->fds[fd], r->tail_bytes))
		return fd;
	ad->taken[fd] = false;
	return -2;
}

/* A name made in place of another, and killed before that one was dropped. */
static bool later(struct cqd_store *st, struct cqd_ns *ns, const struct cqp_rec_name *r)
{
	uint32_t old = find(ns, r->name);

	if (old == CQP_NONE)
		return true;
	if (st->ix.names[old].created_us > r->created_us)
		return false;
	cqd_name_drop(st, old);
	return true;
}

/* Without a page it is the host's: its tail came from an arena. */
static struct cqd_pool *pool_of(struct cqd_store *st, const struct cqp_rec_name *r)
{
	return r->page < st->ix.t_pages.high && st->pages[r->page].shard ?
	       st->pages[r->page].shard->pool : st->pool;
}

/**
 * cqd_adopt_name() - a name's record, its page and its tail
 * @ad: restart; pages are in their tree
 * @i:  record, SEALED
 *
 * Return: true if it holds.
 */
bool cqd_adopt_name(struct cqd_adopt *ad, uint32_t i)
{
	struct cqd_store *st = ad->st;
	const struct cqp_rec_name *r = &st->ix.names[i];
	struct cqp_shard range = { r->layer_begin, r->layer_end, r->head_begin,
				   r->head_end };
	struct cqd_ns *ns = cqd_ns_by_rec(st, r->ns);
	struct cqd_model *m = cqd_model_by_rec(st, r->model);
	struct cqd_shard *sh;
	int fd;

	if (!cqd_name_good(r->name) || !ns || !m || r->flags & ~CQP_NAME_ONCE ||
	    (r->page == CQP_NONE && !r->id) ||
	    cqd_shard_make(ns, m, pool_of(st, r), &range, &sh, NULL))
		return false;
	sh->names++;	/* stays meanwhile */
	fd = -2;
	if ((r->page == CQP_NONE || page_holds(st, r, sh)) && later(st, ns, r))
		fd = take_tail(ad, r);
	sh->names--;
	if (fd == -2) {
		cqd_shard_put(sh);
		return false;
	}
	attach(sh, i, fd < 0 ? -1 : ad->fds[fd]);
	if (r->page != CQP_NONE)
		cqd_pin_adopt_named(ns, r->page);
	ns->tail_bytes += r->tail_bytes;
	ns->used_bytes += r->tail_bytes;
	return true;
}
