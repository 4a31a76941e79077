// SPDX-License-Identifier: MIT
/*
 * Pages in files: saved and brought back, from files cut and damaged anywhere,
 * into stores that lack what the pages need or have no room for them.
 */
#include <sys/resource.h>
#include <xxhash.h>
#include "tests/unit/store_rig.h"
#include "daemon/save.h"

#define PAGES 6

struct outcome {
	bool done;
	int ret;
	uint64_t pages, bytes;
	struct cqd_restore_result res;
	struct cq_err err;
};

static void on_save(void *arg, int ret, uint64_t pages, uint64_t bytes,
		    const struct cq_err *err)
{
	struct outcome *o = arg;

	ASSERT(!o->done);
	o->done = true;
	o->ret = ret;
	o->pages = pages;
	o->bytes = bytes;
	o->err = *err;
}

static void on_restore(void *arg, int ret, const struct cqd_restore_result *res,
		       const struct cq_err *err)
{
	struct outcome *o = arg;

	ASSERT(!o->done);
	o->done = true;
	o->ret = ret;
	o->res = *res;
	o->err = *err;
}

static struct outcome save(struct rig *r, int fd)
{
	struct outcome o = { 0 };

	ASSERT_EQ(cqd_save(r->st, fd, on_save, &o, &r->err), 0);
	rig_run(r, &o.done);
	return o;
}

static struct outcome restore(struct rig *r, int fd)
{
	struct outcome o = { 0 };

	if (cqd_restore(r->st, fd, on_restore, &o, &r->err))
		FAIL("restore: %s", r->err.text);
	rig_run(r, &o.done);
	return o;
}

static int file(void)
{
	char path[] = "/tmp/cq-save-XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	ASSERT(fd >= 0);
	unlink(path);
	return fd;
}

/* Bytes of the record of a page, with and without sinks. */
static uint64_t record(const struct rig *r, bool sink)
{
	return CQP_SAVE_BLOCK + cqp_save_data(r->sh->kind[CQD_CODES].payload,
					      sink ? r->sh->kind[CQD_SINKS].payload : 0);
}

static uint64_t sink_bytes(const struct rig *r)
{
	return r->sh->kind[CQD_SINKS].payload;
}

/* rig_stop() without the end of libuv's threads: another rig follows. */
static void stop(struct rig *r)
{
	rig_close(r);
	ASSERT_EQ(uv_loop_close(&r->loop), 0);
	munmap(r->arena, RIG_ARENA);
	close(r->arena_fd);
}

/* A file with one chain of PAGES pages. */
static int saved_chain(struct cqp_key keys[PAGES])
{
	struct cqp_page pages[PAGES];
	struct outcome o;
	struct rig r;
	int fd = file();

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	o = save(&r, fd);
	ASSERT_EQ(o.ret, 0);
	ASSERT_EQ(o.pages, PAGES);
	ASSERT_EQ(o.bytes, record(&r, sink_bytes(&r)) + (PAGES - 1) * record(&r, false));
	ASSERT_EQ(lseek(fd, 0, SEEK_END), o.bytes + CQP_SAVE_FIRST + CQP_SAVE_BLOCK);
	stop(&r);
	return fd;
}

static const uint8_t *bytes_of(struct rig *r, const struct cqp_key *key, unsigned int kind)
{
	uint32_t p = cqd_page_find(r->st, r->sh, key);
	struct cqd_place at;

	ASSERT(p != CQP_NONE);
	at = cqd_page_place(r->st, p, kind);
	ASSERT(at.seg);
	return (const uint8_t *)at.seg->mem.base + at.slot * at.seg->slot_bytes +
	       sizeof(struct cq_page_hdr);
}

TEST(round_trip)
{
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys);
	const uint8_t *b;
	struct outcome o;
	uint64_t i;
	uint32_t p;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	o = restore(&r, fd);
	ASSERT_EQ(o.ret, 0);
	ASSERT_EQ(o.res.restored, PAGES);
	ASSERT_EQ(o.res.lost + o.res.bad + o.res.no_parent + o.res.no_room, 0);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	for (p = 0; p < PAGES; p++) {
		b = bytes_of(&r, &keys[p], CQD_CODES);
		for (i = 0; i < r.sh->kind[CQD_CODES].payload; i++)
			ASSERT_EQ(b[i], (uint8_t)(1 + p + i));
	}
	b = bytes_of(&r, &keys[0], CQD_SINKS);
	for (i = 0; i < r.sh->kind[CQD_SINKS].payload; i++)
		ASSERT_EQ(b[i], (uint8_t)(1 + i));
	/* Once more: all there. Nothing is pinned, no session is left over. */
	o = restore(&r, fd);
	ASSERT_EQ(o.res.existing, PAGES);
	ASSERT_EQ(o.res.restored, 0);
	ASSERT_EQ(r.st->pages_pinned, 0);
	ASSERT_EQ(r.st->ix.t_clients.used, 1);
	rig_stop(&r);
	close(fd);
}

/* Who asked has gone: the next one may begin, and nothing goes on behind. */
TEST(abandoned)
{
	struct cqp_key keys[40];
	struct cqp_page pages[40];
	struct outcome first = { 0 }, again = { 0 }, second;
	int fd = file(), other = file();
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, 40, keys, pages);
	ASSERT_EQ(cqd_save(r.st, fd, on_save, &first, &r.err), 0);
	ASSERT_EQ(cqd_save(r.st, other, on_save, &again, &r.err), -EBUSY);
	cqd_transfer_gone(r.st, &again);	/* another's */
	ASSERT_EQ(cqd_save(r.st, other, on_save, &again, &r.err), -EBUSY);
	cqd_transfer_gone(r.st, &first);
	second = save(&r, other);
	ASSERT_EQ(second.ret, 0);
	ASSERT_EQ(second.pages, 40);
	rig_run(&r, &first.done);
	ASSERT_EQ(first.ret, -ECANCELED);
	ASSERT(first.pages <= CQD_SAVE_BATCH);
	first = (struct outcome){ 0 };
	ASSERT_EQ(cqd_restore(r.st, other, on_restore, &first, &r.err), 0);
	cqd_transfer_gone(r.st, &first);
	second = restore(&r, other);
	ASSERT_EQ(second.res.existing, 40);
	rig_run(&r, &first.done);
	ASSERT_EQ(first.ret, -ECANCELED);
	ASSERT(!r.st->transfer);
	ASSERT_EQ(r.st->ix.t_clients.used, 1);
	rig_stop(&r);
	close(fd);
	close(other);
}

/* What the index knew beside the key comes back as well, the priority as far as the
 * namespace allows it. */
static void attributes(uint8_t priority_max, uint8_t priority)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct cqp_rec_page *rec;
	struct rig r;
	uint64_t age;
	int fd = file();

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, 2, keys, pages);
	rec = &r.st->ix.pages[cqd_page_find(r.st, r.sh, &keys[1])];
	rec->uses = 7;
	rec->ttl_s = 3600;
	rec->priority = 200;
	rec->last_use_us = cqd_now_us() - 1000000;
	ASSERT_EQ(save(&r, fd).ret, 0);
	stop(&r);
	rig_defaults(&r);
	rig_start(&r);
	r.ns->priority_max = priority_max;
	ASSERT_EQ(restore(&r, fd).res.restored, 2);
	rec = &r.st->ix.pages[cqd_page_find(r.st, r.sh, &keys[1])];
	age = cqd_now_us() - rec->last_use_us;
	ASSERT_EQ(rec->uses, 7);
	ASSERT_EQ(rec->ttl_s, 3600);
	ASSERT_EQ(rec->priority, priority);
	ASSERT_EQ(rec->depth, 1);
	ASSERT(age >= 1000000 && age < 60000000);
	stop(&r);
	close(fd);
}

TEST(attributes_come_back)
{
	attributes(255, 200);
	attributes(200, 200);
	attributes(100, 100);
	uv_library_shutdown();
}

/* Nobody sealed them: neither the store nor a session says so. */
TEST(restored_is_not_sealed)
{
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys);
	struct cqd_ns_figures fig;
	struct cqd_stats s;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	ASSERT_EQ(restore(&r, fd).res.restored, PAGES);
	ASSERT_EQ(restore(&r, fd).res.existing, PAGES);
	cqd_store_stats(r.st, &s);
	ASSERT(cqd_ns_figures(r.st, 0, &fig));
	ASSERT_EQ(s.restored, PAGES);
	ASSERT_EQ(s.seals, 0);
	ASSERT_EQ(fig.counts->restored, PAGES);
	ASSERT_EQ(fig.counts->seals + fig.counts->seals_existing, 0);
	ASSERT_EQ(fig.counts->sealing, 0);
	ASSERT_EQ(r.st->published, PAGES);	/* for persist= they are new */
	ASSERT_EQ(rig_seal(&r, r.cl, r.arena_id, &r.root, 77).ret, 0);
	cqd_store_stats(r.st, &s);
	ASSERT_EQ(s.restored, PAGES);
	ASSERT_EQ(s.seals, 1);
	ASSERT_EQ(r.st->published, PAGES + 1);
	rig_stop(&r);
	close(fd);
}

/* The chain leaves memory. */
static void forget(struct rig *r, const struct cqp_key *keys)
{
	uint32_t p = cqd_page_find(r->st, r->sh, &keys[0]);

	if (p != CQP_NONE)
		cqd_page_drop(r->st, p);
	ASSERT_EQ(r->st->n_state[CQP_SEALED], 0);
}

static uint8_t *image_of(int fd, uint64_t *size)
{
	uint8_t *image;

	*size = (uint64_t)lseek(fd, 0, SEEK_END);
	image = malloc(*size);
	ASSERT_EQ(pread(fd, image, *size, 0), (ssize_t)*size);
	return image;
}

/* Pages whose records end at or before @at. */
static uint64_t whole_before(const struct rig *r, uint64_t at)
{
	uint64_t n, end = CQP_SAVE_FIRST + record(r, sink_bytes(r));

	for (n = 0; n < PAGES && end <= at; n++)
		end += record(r, false);
	return n;
}

/* Cut at each block: the whole pages before it come back, the loss is told. */
TEST(cut_anywhere)
{
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys), cut;
	uint64_t size, at;
	uint8_t *image = image_of(fd, &size);
	struct outcome o;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	for (at = size - CQP_SAVE_BLOCK; at >= CQP_SAVE_FIRST; at -= CQP_SAVE_BLOCK) {
		cut = file();
		ASSERT_EQ(write(cut, image, at), (ssize_t)at);
		o = restore(&r, cut);
		ASSERT_EQ(o.ret, 0);
		ASSERT_EQ(o.res.restored, whole_before(&r, at));
		ASSERT(o.res.lost >= 1);
		close(cut);
		forget(&r, keys);
	}
	rig_stop(&r);
	free(image);
	close(fd);
}

/* A byte changed in each block: that page and what follows it is lost, no more. */
TEST(damaged_anywhere)
{
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys);
	uint64_t size, at, n;
	uint8_t *image = image_of(fd, &size), bad;
	struct outcome o;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	for (at = 0; at < size; at += CQP_SAVE_BLOCK) {
		bad = image[at + 70] ^ 1;
		ASSERT_EQ(pwrite(fd, &bad, 1, (off_t)at + 70), 1);
		o = restore(&r, fd);
		/* Padding behind a payload is nobody's. */
		n = at < CQP_SAVE_FIRST ? PAGES : whole_before(&r, at);
		ASSERT_EQ(o.ret, 0);
		ASSERT(o.res.restored == n || o.res.restored == PAGES);
		ASSERT_EQ(o.res.restored + o.res.lost + o.res.bad + o.res.no_parent,
			  MAX(PAGES, o.res.restored + o.res.lost));
		if (o.res.restored < PAGES)
			ASSERT_EQ(o.res.lost + o.res.bad, 1);
		ASSERT_EQ(pwrite(fd, &image[at + 70], 1, (off_t)at + 70), 1);
		forget(&r, keys);
	}
	/* Both heads: nothing can be trusted. */
	memset(image, 0, CQP_SAVE_FIRST);
	ASSERT_EQ(pwrite(fd, image, CQP_SAVE_FIRST, 0), CQP_SAVE_FIRST);
	o = restore(&r, fd);
	ASSERT_EQ(o.ret, -EINVAL);
	ASSERT(strstr(o.err.text, "magic"));
	rig_stop(&r);
	free(image);
	close(fd);
}

/* A tenant's bytes that look like a record are none: they lack the file's id. */
TEST(no_record_in_a_payload)
{
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys);
	struct cqp_save_page meta;
	union cqp_save_block b;
	struct cqd_savefile *f = malloc(sizeof(*f));
	struct cq_err err;
	uint64_t offset = 0;
	unsigned int n = 0;
	int ret;

	ASSERT_EQ(cqd_savefile_open(f, fd, &err), 0);
	ASSERT_EQ(cqd_savefile_next(f, &meta, &offset), 1);
	snprintf(meta.tenant, sizeof(meta.tenant), "victim");
	cqp_save_rec(&b, CQP_SAVE_PAGE, f->file_id + 1, 0, &meta, sizeof(meta),
		     cqp_save_data(meta.payload, meta.sink));
	/* In the first page's codes, and its own record is gone. */
	ASSERT_EQ(pwrite(fd, &b, sizeof(b), CQP_SAVE_FIRST + CQP_SAVE_BLOCK), sizeof(b));
	memset(&b, 0, sizeof(b));
	ASSERT_EQ(pwrite(fd, &b, sizeof(b), CQP_SAVE_FIRST), sizeof(b));
	ASSERT_EQ(cqd_savefile_open(f, fd, &err), 0);
	while ((ret = cqd_savefile_next(f, &meta, &offset)) != 0) {
		n += ret == 1;
		ASSERT(ret != 1 || strcmp(meta.tenant, "victim"));
	}
	ASSERT_EQ(n, PAGES - 1);
	ASSERT_EQ(cqd_savefile_lost(f), 1);
	free(f);
	close(fd);
	uv_library_shutdown();
}

/* Other types of records: passed over when they say so, else counted. */
TEST(unknown_records)
{
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys);
	struct cqd_savefile *f = malloc(sizeof(*f));
	struct cqp_save_page meta;
	union cqp_save_block b;
	struct cq_err err;
	uint64_t offset, size = (uint64_t)lseek(fd, 0, SEEK_END);
	unsigned int skip;

	ASSERT_EQ(cqd_savefile_open(f, fd, &err), 0);
	for (skip = 0; skip < 2; skip++) {
		cqp_save_rec(&b, 99, f->file_id, PAGES, "pin", 3, 0);
		b.rec.flags = skip ? CQP_SAVE_SKIP : 0;
		b.rec.check = 0;
		b.rec.check = XXH3_64bits(&b, sizeof(b));
		ASSERT_EQ(pwrite(fd, &b, sizeof(b), (off_t)(size - sizeof(b))), sizeof(b));
		cqp_save_rec(&b, CQP_SAVE_END, f->file_id, PAGES + 1, NULL, 0, 0);
		ASSERT_EQ(pwrite(fd, &b, sizeof(b), (off_t)size), sizeof(b));
		ASSERT_EQ(cqd_savefile_open(f, fd, &err), 0);
		while (cqd_savefile_next(f, &meta, &offset))
			;
		ASSERT(f->ended);
		ASSERT_EQ(cqd_savefile_lost(f), !skip);
	}
	free(f);
	close(fd);
	uv_library_shutdown();
}

TEST(newer_files_are_refused)
{
	struct cqd_savefile *f = malloc(sizeof(*f));
	union cqp_save_block b;
	struct cq_err err;
	uint8_t boot_id[16] = { 1 };
	int fd = file(), i;

	for (i = 0; i < 3; i++) {
		cqp_save_head(&b, 0, 1, 2, boot_id);
		b.head.compat = i == 0;
		b.head.version += i == 1;
		b.head.incompat = i == 2;
		b.head.check = XXH3_64bits(&b, offsetof(struct cqp_save_head, check));
		ASSERT_EQ(pwrite(fd, &b, sizeof(b), 0), sizeof(b));
		ASSERT_EQ(pwrite(fd, &b, sizeof(b), sizeof(b)), sizeof(b));
		ASSERT_EQ(cqd_savefile_open(f, fd, &err), i ? -EINVAL : 0);
	}
	close(fd);
	fd = memfd_create("empty", MFD_CLOEXEC);
	ASSERT_EQ(cqd_savefile_open(f, fd, &err), -EINVAL);
	close(fd);
	fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	ASSERT_EQ(cqd_savefile_open(f, fd, &err), -EINVAL);
	close(fd);
	free(f);
}

/* --- stores that are not like the one before --- */

TEST(other_model_of_the_name)
{
	struct image im = image_model(small_geom(64), "8c8b", "8c8b", CQK_CENTROIDS_F16);
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys);
	struct outcome o;
	struct rig r;

	rig_defaults(&r);
	ASSERT_EQ(uv_loop_init(&r.loop), 0);
	ASSERT_EQ(rig_open(&r), 0);
	o = restore(&r, fd);
	ASSERT_EQ(o.res.no_namespace, PAGES);
	ASSERT(strstr(o.res.text, "tenant"));
	rig_ns(&r);
	o = restore(&r, fd);
	ASSERT_EQ(o.res.no_model, PAGES);
	ASSERT(strstr(o.res.text, "model 'm'"));
	ASSERT_EQ(rig_load(&r, "m", im.buf, im.size).ret, 0);
	o = restore(&r, fd);
	ASSERT_EQ(o.res.no_model, PAGES);
	ASSERT_EQ(o.res.restored, 0);
	free(im.buf);
	rig_close(&r);
	ASSERT_EQ(uv_loop_close(&r.loop), 0);
	uv_library_shutdown();
	close(fd);
}

TEST(other_salt)
{
	static const struct cqd_ns_opts salty = { .salt = "pepper" };
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys);
	struct image im = rig_model();
	struct outcome o;
	struct rig r;

	rig_defaults(&r);
	ASSERT_EQ(uv_loop_init(&r.loop), 0);
	ASSERT_EQ(rig_open(&r), 0);
	ASSERT_EQ(rig_load(&r, "m", im.buf, im.size).ret, 0);
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &salty, &r.ns, &r.err), 0);
	o = restore(&r, fd);
	ASSERT_EQ(o.res.bad, 1);
	ASSERT_EQ(o.res.no_parent, PAGES - 1);
	ASSERT_EQ(r.st->n_state[CQP_SEALED], 0);
	free(im.buf);
	rig_close(&r);
	ASSERT_EQ(uv_loop_close(&r.loop), 0);
	uv_library_shutdown();
	close(fd);
}

/* The chain's end in a namespace that reads the other: two pages of its own. */
static void seal_behind(struct rig *r, struct cqp_key keys[4])
{
	static const struct cqd_ns_opts wide = { .quota_bytes = 1 << 30 };
	struct cqd_shard *own = r->sh;
	struct cqp_page pages[2];
	struct cqd_client *cl;
	struct cqd_ns *ns;
	uint32_t arena, i;
	struct rig_wait w;

	ASSERT_EQ(cqd_ns_get(r->st, "reader", &wide, &ns, &r->err), 0);
	rig_chain(r, 1, 2, keys, pages);
	cqd_readers_begin(r->st);
	ASSERT_EQ(cqd_readers_add(r->ns, ns, &r->err), 0);
	cqd_readers_end(r->st);
	ASSERT_EQ(cqd_client_new(r->st, ns, 101, 7, 0, "reader", &cl, &r->err), 0);
	ASSERT_EQ(cqd_shard_get(cl, "m", &own->range, &r->sh, &r->info, &r->err), 0);
	ASSERT_EQ(cqd_arena_offer(cl, r->sh, r->arena_fd, RIG_ARENA, &arena, &r->err), 0);
	for (i = 2; i < 4; i++) {
		w = rig_seal(r, cl, arena, &keys[i - 1], i + 1);
		ASSERT_EQ(w.ret, 0);
		keys[i] = w.res.key;
	}
	r->sh = own;
}

/* A page behind another namespace's comes back as that: it is no page 0. */
TEST(behind_another_namespace)
{
	static const struct cqd_ns_opts wide = { .quota_bytes = 1 << 30 };
	const struct cqp_rec_page *rec;
	struct cqp_key keys[4];
	struct cqd_ns *ns;
	struct outcome o;
	struct rig r;
	uint32_t p, i;
	int fd = file();

	rig_defaults(&r);
	rig_start(&r);
	seal_behind(&r, keys);
	ASSERT_EQ(save(&r, fd).pages, 4);
	stop(&r);
	rig_defaults(&r);
	rig_start(&r);
	ASSERT_EQ(cqd_ns_get(r.st, "reader", &wide, &ns, &r.err), 0);
	o = restore(&r, fd);
	ASSERT_EQ(o.res.bad, 0);
	ASSERT_EQ(o.res.restored, 4);
	for (i = 2; i < 4; i++) {
		p = cqd_page_find_ns(r.st, ns, &keys[i]);
		ASSERT(p != CQP_NONE);
		rec = &r.st->ix.pages[p];
		ASSERT_EQ(rec->depth, i);
		ASSERT_EQ(rec->behind, i == 2);
		ASSERT_EQ(rec->parent == CQP_NONE, i == 2);
	}
	rig_stop(&r);
	close(fd);
}

/*
 * A namespace that is no longer in cqd.conf has pages and, as far as anybody knows,
 * no salt: neither is a root key made for it nor does anything come back into it.
 */
TEST(namespace_without_a_salt_yet)
{
	static const struct cqd_ns_opts salty = { .salt = "pepper" };
	struct cqp_key keys[PAGES], root;
	int fd = saved_chain(keys), out = file();
	struct cqp_page pages[2];
	struct rig r;

	mgr_start();
	rig_defaults(&r);
	r.o.push_fds = true;
	rig_start(&r);
	rig_chain(&r, 100, 2, keys, pages);
	root = r.root;
	rig_close(&r);
	mgr_sync();
	ASSERT_EQ(rig_open(&r), 0);
	ASSERT_EQ(r.st->n_state[CQP_SEALED], 2);
	ASSERT_EQ(save(&r, out).pages, 0);
	ASSERT_EQ(restore(&r, fd).res.no_namespace, PAGES);
	ASSERT_EQ(cqd_ns_get(r.st, "tenant", &salty, &r.ns, &r.err), 0);
	r.cl = rig_client(&r, 100, &r.arena_id);
	ASSERT(memcmp(&r.root, &root, sizeof(root)));
	rig_stop(&r);
	mgr_stop();
	close(out);
	close(fd);
}

/* Quota and pool hold, and nothing resident goes for what comes back. */
TEST(no_room)
{
	struct cqp_key keys[PAGES], own[3];
	struct cqp_page pages[3];
	int fd = saved_chain(keys);
	struct outcome o;
	struct rig r;

	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 100, 3, own, pages);
	ASSERT_EQ(cqd_release(r.cl, pages, 3, &r.err), 0);
	r.ns->quota_pages = 5;
	o = restore(&r, fd);
	ASSERT_EQ(o.ret, 0);
	ASSERT_EQ(o.res.restored, 2);
	ASSERT_EQ(o.res.restored + o.res.no_room + o.res.no_parent, PAGES);
	ASSERT_EQ(rig_resident(&r, own, 3), 3);
	r.ns->quota_pages = UINT64_MAX;
	r.st->pool[0].limit = r.st->pool[0].used;
	o = restore(&r, fd);
	ASSERT_EQ(o.res.restored, 0);
	ASSERT_EQ(o.res.existing, 2);
	ASSERT_EQ(rig_resident(&r, own, 3), 3);
	ASSERT_EQ(r.st->evictions, 0);
	rig_stop(&r);
	close(fd);
}

/* --- failures --- */

/* As when the disk is full: an error, and memory is as it was. */
TEST(disk_full)
{
	struct rlimit lim = { 8192, RLIM_INFINITY };
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];
	struct outcome o;
	struct rig r;
	int fd = file();

	signal(SIGXFSZ, SIG_IGN);
	rig_defaults(&r);
	rig_start(&r);
	rig_chain(&r, 1, PAGES, keys, pages);
	setrlimit(RLIMIT_FSIZE, &lim);
	o = save(&r, fd);
	ASSERT_EQ(o.ret, -EFBIG);
	ASSERT(strstr(o.err.text, "writing"));
	lim.rlim_cur = RLIM_INFINITY;
	setrlimit(RLIMIT_FSIZE, &lim);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
	ASSERT_EQ(save(&r, fd).ret, 0);
	rig_stop(&r);
	close(fd);
}

/* Pinned by a save, or being brought back, when the store closes. */
TEST(closing_meanwhile)
{
	struct outcome o = { 0 };
	struct cqp_key keys[PAGES];
	int fd = saved_chain(keys), out = file(), turns, i;
	struct rig r;

	for (turns = 0; turns < 12; turns++) {
		rig_defaults(&r);
		rig_start(&r);
		o = (struct outcome){ 0 };
		ASSERT_EQ(cqd_restore(r.st, fd, on_restore, &o, &r.err), 0);
		ASSERT_EQ(cqd_save(r.st, out, on_save, &o, &r.err), -EBUSY);
		for (i = 0; i < turns && !o.done; i++)
			uv_run(&r.loop, UV_RUN_ONCE);
		stop(&r);
		ASSERT(o.done);
	}
	uv_library_shutdown();
	close(out);
	close(fd);
}
