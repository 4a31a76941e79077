/* SPDX-License-Identifier: MIT */
/* A small store with a model, for fuzzers: no harness, failures abort. */
#ifndef TESTS_STORE_SCENE_H
#define TESTS_STORE_SCENE_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/store_priv.h"
#include "tests/system/synth.h"
#include "tests/unit/remote_mem.h"

#define MUST(c) do { if (!(c)) { perror(#c); abort(); } } while (0)
#define SCENE_ARENA	(1u << 18)

/* Nothing of what is found wrong is said: that would be a line per input. */
void __wrap_cq_log(int prio, const char *fmt, ...);
void __wrap_cq_log(int prio, const char *fmt, ...)
{
}

struct scene {
	uv_loop_t loop;
	struct cqd_store *st;
	struct cqd_ns *ns;
	struct cqd_client *cl;
	struct cqd_shard *sh;
	struct cqd_shard_info info;
	struct cqd_shard *device;	/* the same model on the played GPU */
	struct cqp_page slot[4];	/* leased last */
	unsigned int n_slots;
	uint32_t arena;
	int arena_fd;
	bool done;
};

/* One layer, one head: pages of 4 KiB. */
__attribute__((unused))
static int scene_model(void)
{
	static const struct synth tiny = { .layers = 1, .heads = 1, .kv_heads = 1, .dim = 64,
					   .sinks = 4, .window = 64, .max_position = 4096,
					   .code = "4c8b", .seed = 1 };
	static int fd = -1;
	char path[40];

	if (fd >= 0)
		return fd;
	fd = memfd_create("model", MFD_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	MUST(fd >= 0 && !synth_model(&tiny, path, NULL));
	return fd;
}

static void scene_until(struct scene *s)
{
	while (!s->done)
		uv_run(&s->loop, UV_RUN_ONCE);
	s->done = false;
}

static void scene_loaded(void *arg, int ret, const uint8_t hash[32], bool existing,
			 const struct cq_err *err)
{
	((struct scene *)arg)->done = true;
}

static void scene_sealed(void *arg, int ret, const struct cqd_seal_result *res,
			 const struct cq_err *err)
{
	((struct scene *)arg)->done = true;
}

static void scene_leased(void *arg, int ret, const struct cqp_page *slots, unsigned int n,
			 const struct cq_err *err)
{
	struct scene *s = arg;

	s->n_slots = ret ? 0 : n;
	if (!ret)
		memcpy(s->slot, slots, n * sizeof(*slots));
	s->done = true;
}

static void scene_verified(void *arg, uint64_t checked, uint64_t failed, uint64_t bytes)
{
	((struct scene *)arg)->done = true;
}

static void scene_closed(void *arg)
{
	((struct scene *)arg)->done = true;
}

__attribute__((unused))
static void scene_verify(struct scene *s)
{
	if (!cqd_verify(s->st, scene_verified, s))
		scene_until(s);
}

/* A session in namespace "t" with model "m" open. 0 or -errno. */
__attribute__((unused))
static int scene_client(struct scene *s)
{
	static const struct cqd_ns_opts opts = { .quota_bytes = 64 << 20 };
	static const struct cqp_shard all;
	struct cqd_model *m = cqd_model_find(s->st, "m");
	int ret = cqd_ns_get(s->st, "t", &opts, &s->ns, NULL);

	if (ret)
		return ret;
	if (!m && !cqd_model_load(s->st, "m", scene_model(), scene_loaded, s, NULL))
		scene_until(s);
	ret = cqd_client_new(s->st, s->ns, getpid(), 1, 0, "c", &s->cl, NULL);
	if (ret)
		return ret;
	ret = cqd_shard_get(s->cl, "m", &all, &s->sh, &s->info, NULL);
	if (!ret)
		ret = cqd_shard_get_on(s->cl, "m", &all, REMOTE_UUID, &s->device, &s->info,
				       NULL);
	if (!ret)
		ret = cqd_arena_offer(s->cl, s->sh, s->arena_fd, SCENE_ARENA, &s->arena, NULL);
	if (ret)
		cqd_client_end(s->cl);
	return ret;
}

/* Two short chains; the pins of one stay. */
__attribute__((unused))
static void scene_fill(struct scene *s)
{
	struct cqd_seal_req q = { .arena = s->arena };
	struct cqp_page page, sink;
	struct cqp_key key = s->info.root;
	struct cqd_found found;
	uint32_t i, pins;

	for (i = 0; i < 6; i++) {
		q.sink_offset = i % 3 ? UINT64_MAX : 0;
		q.parent = i % 3 ? key : s->info.root;
		q.tokens[0] = i;
		MUST(!cqp_key_page(&key, &q.parent, q.tokens, NULL, 0));
		if (!cqd_seal(s->cl, s->sh, &q, scene_sealed, s, NULL))
			scene_until(s);
		for (pins = i < 3; pins && cqd_match(s->cl, s->sh, &key, 1, false, &page,
						     &sink, &found, NULL) == 1; pins--)
			(void)cqd_release(s->cl, &page, 1, NULL);
	}
}

static unsigned int scene_lease(struct scene *s, unsigned int n, bool sinks)
{
	s->n_slots = 0;
	if (!cqd_lease(s->cl, s->device, n, sinks, scene_leased, s, NULL))
		scene_until(s);
	return s->n_slots;
}

/* A page on the device; a slot for codes and one for sinks stay leased. */
__attribute__((unused))
static void scene_fill_device(struct scene *s)
{
	struct cqd_seal_req q = { .parent = s->info.root, .sink_offset = UINT64_MAX };
	struct cqp_page codes[3], sinks[2];

	if (scene_lease(s, 3, false) != 3)
		return;
	memcpy(codes, s->slot, sizeof(codes));
	if (scene_lease(s, 2, true) != 2)
		return;
	memcpy(sinks, s->slot, sizeof(sinks));
	q.tokens[0] = 77;
	q.slot = &codes[0];
	q.sink_slot = &sinks[0];
	if (!cqd_seal(s->cl, s->device, &q, scene_sealed, s, NULL))
		scene_until(s);
	(void)cqd_lease_return(s->cl, &codes[1], 1, NULL);
}

/* Without descriptors: with model and session, ready to be filled. */
__attribute__((unused))
static void scene_start(struct scene *s, const int *fds, char *const *names, unsigned int n)
{
	static const struct cqd_pool_opts gpu = {
		.name = "g0", .uuid = REMOTE_UUID, .backend = "remote", .bytes = 512 << 10,
	};
	struct cqd_store_opts o = {
		.pools = &gpu, .n_pools = 1,
		.pool_bytes = 1 << 20, .max_pages = 16, .max_clients = 8, .max_pins = 24,
		.segment_min = 64 << 10, .segment_max = 64 << 10, .low = 90, .high = 95,
		.verify_rate = 1 << 30, .backend = "memfd", .fds = fds, .names = names,
		.n_fds = n,
	};

	MUST(cqd_mem_find("remote") || !cqd_mem_register(&remote_ops));
	*s = (struct scene){ .done = false };
	s->arena_fd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	MUST(s->arena_fd >= 0 && !ftruncate(s->arena_fd, SCENE_ARENA) &&
	     !fcntl(s->arena_fd, F_ADD_SEALS, F_SEAL_SHRINK));
	MUST(!uv_loop_init(&s->loop));
	MUST(!cqd_store_new(&s->loop, &o, &s->st, NULL));
	MUST(n || !scene_client(s));
}

__attribute__((unused))
static void scene_stop(struct scene *s)
{
	cqd_store_close(s->st, scene_closed, s);
	scene_until(s);
	uv_run(&s->loop, UV_RUN_DEFAULT);
	MUST(!uv_loop_close(&s->loop));
	close(s->arena_fd);
}

#endif /* TESTS_STORE_SCENE_H */
