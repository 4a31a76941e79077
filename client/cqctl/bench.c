// SPDX-License-Identifier: MIT
/*
 * bench: how long cqd takes to answer, on this machine, as it is configured.
 *
 * Each client is a process with a connection of its own that sends its next
 * request when the last one is answered. Pages are made of noise, live for a
 * second and are released, so they go by themselves.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"
#include "cq/page.h"

#define MAX_CLIENTS	256
#define MAX_SECONDS	3600
#define SAMPLES		65536	/* the last ones of a client and phase are kept */
#define TTL_S		1

enum phase { PING, LOOKUP, SEAL, ATTACH, N_PHASES };

static const char *const phase_name[] = { "ping", "lookup", "seal", "attach" };

/* What a client measured; shared with the one that started it. */
struct result {
	uint64_t n[N_PHASES];
	uint32_t us10[N_PHASES][SAMPLES];	/* tenths of a microsecond */
	char error[CQ_ERR_TEXT];
};

/*
 * struct bench - what all clients do
 * @phases:  how many of them, in their order
 * @page:    bytes of an arena that holds any page of the model
 * @sinks:   pages 0 have a sink object
 * @start_us, @phase_us: of the first phase, and of each
 */
struct bench {
	struct ctl *c;
	const char *tenant;
	char model[CQP_MAX_NAME];
	unsigned int clients, phases;
	uint64_t page, start_us, phase_us;
	bool sinks;
	struct result *result;
	uint32_t *all;
};

/* A client. */
struct runner {
	const struct bench *b;
	struct result *r;
	struct ctl admin, worker;
	uint32_t shard, arena;
	uint8_t root[CQ_KEY_BYTES], key[CQ_KEY_BYTES];
	struct cqp_page page;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* --- requests; each returns 0 or -errno with the connection's err set --- */

static int do_ping(struct runner *r)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Ping ping = CQP__PING__INIT;
	int ret;

	msg.body_case = CQP__MSG__BODY_PING;
	msg.ping = &ping;
	reply = ctl_call(&r->admin, &msg, -1, CQP__MSG__BODY_PONG, &ret);
	cqp_free(reply);
	return ret;
}

static int look_up(struct runner *r, uint8_t *key, bool pin, uint32_t *matched)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Lookup lookup = CQP__LOOKUP__INIT;
	int ret;

	lookup.shard = r->shard;
	lookup.keys.data = key;
	lookup.keys.len = CQ_KEY_BYTES;
	lookup.has_pin = true;
	lookup.pin = pin;
	msg.body_case = CQP__MSG__BODY_LOOKUP;
	msg.lookup = &lookup;
	reply = ctl_call(&r->worker, &msg, -1, CQP__MSG__BODY_LOOKUP_OK, &ret);
	if (!reply)
		return ret;
	*matched = reply->lookup_ok->matched;
	if (*matched && reply->lookup_ok->pages.len >= sizeof(r->page))
		memcpy(&r->page, reply->lookup_ok->pages.data, sizeof(r->page));
	cqp_free(reply);
	return 0;
}

/* A key that nobody has. */
static int do_lookup(struct runner *r)
{
	uint8_t key[CQ_KEY_BYTES];
	uint32_t matched;

	if (getrandom(key, sizeof(key), 0) != sizeof(key))
		return -EIO;
	return look_up(r, key, false, &matched);
}

static int release(struct runner *r)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Release body = CQP__RELEASE__INIT;
	int ret;

	body.pages.data = (uint8_t *)&r->page;
	body.pages.len = sizeof(r->page);
	msg.body_case = CQP__MSG__BODY_RELEASE;
	msg.release = &body;
	reply = ctl_call(&r->worker, &msg, -1, CQP__MSG__BODY_OK, &ret);
	cqp_free(reply);
	return ret;
}

static int do_seal(struct runner *r)
{
	uint32_t tokens[CQ_PAGE_TOKENS];
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Seal seal = CQP__SEAL__INIT;
	int ret;

	if (getrandom(tokens, sizeof(tokens), 0) != sizeof(tokens))
		return -EIO;
	seal.shard = r->shard;
	seal.arena = r->arena;
	seal.parent.data = r->root;
	seal.parent.len = sizeof(r->root);
	seal.tokens.data = (uint8_t *)tokens;
	seal.tokens.len = sizeof(tokens);
	seal.has_sink_offset = r->b->sinks;
	seal.has_ttl_s = true;
	seal.ttl_s = TTL_S;
	msg.body_case = CQP__MSG__BODY_SEAL;
	msg.seal = &seal;
	reply = ctl_call(&r->worker, &msg, -1, CQP__MSG__BODY_SEAL_OK, &ret);
	if (!reply)
		return ret;
	ret = cq_err_set(&r->worker.err, -EPROTO, "SealOk with a key or page of another size");
	if (reply->seal_ok->key.len == sizeof(r->key) &&
	    reply->seal_ok->page.len == sizeof(r->page)) {
		memcpy(r->key, reply->seal_ok->key.data, sizeof(r->key));
		memcpy(&r->page, reply->seal_ok->page.data, sizeof(r->page));
		ret = 0;
	}
	cqp_free(reply);
	return ret;
}

static int do_attach(struct runner *r)
{
	uint32_t matched = 0;
	int ret = look_up(r, r->key, true, &matched);

	if (!ret && !matched)
		ret = cq_err_set(&r->worker.err, -ENOENT, "the page that was sealed is gone");
	return ret;
}

/* --- a client --- */

static int open_model(struct runner *r)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__ModelOpen open = CQP__MODEL_OPEN__INIT;
	char name[CQP_MAX_NAME];
	int ret;

	snprintf(name, sizeof(name), "%s", r->b->model);
	open.name = name;
	msg.body_case = CQP__MSG__BODY_MODEL_OPEN;
	msg.model_open = &open;
	reply = ctl_call(&r->worker, &msg, -1, CQP__MSG__BODY_MODEL_OK, &ret);
	if (!reply)
		return ret;
	r->shard = reply->model_ok->shard;
	if (reply->model_ok->root_key.len == sizeof(r->root))
		memcpy(r->root, reply->model_ok->root_key.data, sizeof(r->root));
	cqp_free(reply);
	return 0;
}

static int offer_arena(struct runner *r)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__ArenaOffer offer = CQP__ARENA_OFFER__INIT;
	int fd = memfd_create("cqctl-bench", MFD_CLOEXEC | MFD_ALLOW_SEALING), ret;

	if (fd < 0 || ftruncate(fd, (off_t)r->b->page) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0) {
		ret = cq_err_set(&r->worker.err, -errno, "arena: %s", strerror(errno));
		if (fd >= 0)
			close(fd);
		return ret;
	}
	offer.shard = r->shard;
	offer.bytes = r->b->page;
	msg.body_case = CQP__MSG__BODY_ARENA_OFFER;
	msg.arena_offer = &offer;
	reply = ctl_call(&r->worker, &msg, fd, CQP__MSG__BODY_ARENA_OK, &ret);
	close(fd);
	if (reply)
		r->arena = reply->arena_ok->arena;
	cqp_free(reply);
	return ret;
}

static int one(struct runner *r, enum phase ph)
{
	static int (*const request[])(struct runner *r) = {
		do_ping, do_lookup, do_seal, do_attach,
	};
	uint64_t start = now_ns(), took;
	int ret = request[ph](r);

	if (ret)
		return ret;
	took = (now_ns() - start) / 100;
	r->r->us10[ph][r->r->n[ph]++ % SAMPLES] = (uint32_t)MIN(took, UINT32_MAX);
	return ph == SEAL || ph == ATTACH ? release(r) : 0;
}

static int run_phase(struct runner *r, enum phase ph)
{
	uint64_t end = (r->b->start_us + (ph + 1) * r->b->phase_us) * 1000;
	int ret = 0;

	/* A page to attach to, which lives as long as it is used. */
	if (ph == ATTACH) {
		ret = do_seal(r);
		if (!ret)
			ret = release(r);
	}
	while (!ret && now_ns() < end)
		ret = one(r, ph);
	return ret;
}

static int run_client(const struct bench *b, struct result *res)
{
	struct runner r = { .b = b, .r = res };
	const char *env = getenv("CQ_SOCKET");
	const struct ctl *why = &r.admin;
	int ret;
	unsigned int ph;

	r.admin = (struct ctl){ .socket = b->c->socket, .sock = -1, .next_id = 1 };
	r.worker = (struct ctl){ .socket = env && env[0] ? env : CQP_DEFAULT_SOCKET,
				 .tenant = b->tenant, .sock = -1, .next_id = 1 };
	ret = ctl_connect(&r.admin);
	if (!ret && b->phases > PING + 1) {
		why = &r.worker;
		ret = ctl_connect(&r.worker);
		if (!ret)
			ret = open_model(&r);
		if (!ret)
			ret = offer_arena(&r);
	}
	for (ph = 0; ph < b->phases && !ret; ph++) {
		why = ph == PING ? &r.admin : &r.worker;
		ret = run_phase(&r, (enum phase)ph);
	}
	if (ret)
		snprintf(res->error, sizeof(res->error), "%s", why->err.text[0] ?
			 why->err.text : strerror(-ret));
	ctl_disconnect(&r.admin);
	ctl_disconnect(&r.worker);
	return ret;
}

/* --- all of them --- */

/* The first model that is loaded, or the one that was named. */
static int find_model(struct bench *b, const char *name)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__List list = CQP__LIST__INIT;
	const Cqp__Item *it;
	uint64_t sinks;
	size_t i;
	int ret;

	list.kind = CQP__KIND__MODELS;
	msg.body_case = CQP__MSG__BODY_LIST;
	msg.list = &list;
	reply = ctl_call(b->c, &msg, -1, CQP__MSG__BODY_LIST_OK, &ret);
	if (!reply)
		return ret;
	for (i = 0; i < reply->list_ok->n_items; i++) {
		it = reply->list_ok->items[i];
		if (name && strcmp(name, it->name))
			continue;
		sinks = cq_f16_block_bytes(it->layers, it->kv_heads, it->head_dim, it->sinks);
		snprintf(b->model, sizeof(b->model), "%s", it->name);
		b->sinks = it->sinks != 0;
		b->page = MAX(it->slot_bytes, sinks);
		break;
	}
	cqp_free(reply);
	if (name && !b->model[0])
		return cq_err_set(&b->c->err, -ENOENT, "no model is called %s", name);
	return 0;
}

static int run_all(struct bench *b)
{
	struct result *r = b->result;
	unsigned int i, started = 0;
	int status, failed = 0;
	pid_t pid;

	fflush(stdout);
	fflush(stderr);
	b->start_us = now_ns() / 1000;
	for (i = 0; i < b->clients; i++) {
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			_exit(run_client(b, &r[i]) ? 1 : 0);
		}
		started += pid > 0;
	}
	for (i = 0; i < started; i++)
		failed |= wait(&status) < 0 || status;
	for (i = 0; i < b->clients; i++)
		if (r[i].error[0])
			return cq_err_set(&b->c->err, -EIO, "client %u of %u: %.400s", i + 1,
					  b->clients, r[i].error);
	return failed || started < b->clients ?
	       cq_err_set(&b->c->err, -EIO, "a client could not be started, or died") : 0;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void report_phase(const struct bench *b, enum phase ph, json_t *o)
{
	double seconds = (double)b->phase_us / 1e6, p50, p99;
	uint64_t total = 0;
	size_t n = 0, m, half, most;
	unsigned int i;

	for (i = 0; i < b->clients; i++) {
		m = (size_t)MIN(b->result[i].n[ph], (uint64_t)SAMPLES);
		memcpy(b->all + n, b->result[i].us10[ph], m * sizeof(*b->all));
		n += m;
		total += b->result[i].n[ph];
	}
	if (!n)
		return;
	half = n / 2;
	most = n * 99 / 100;
	qsort(b->all, n, sizeof(*b->all), by_value);
	p50 = b->all[half] / 10.0;
	p99 = b->all[most] / 10.0;
	if (o)
		json_object_set_new(o, phase_name[ph], json_pack("{s:I, s:f, s:f, s:f}",
			"requests", (json_int_t)total, "per_second", (double)total / seconds,
			"p50_us", p50, "p99_us", p99));
	else
		printf("%-8s %10" PRIu64 " requests %10.0f/s   p50 %8.1f us   p99 %8.1f us\n",
		       phase_name[ph], total, (double)total / seconds, p50, p99);
}

static int report(const struct bench *b)
{
	json_t *o = b->c->json ? json_object() : NULL;
	unsigned int ph;

	if (o) {
		json_object_set_new(o, "clients", json_integer((json_int_t)b->clients));
		json_object_set_new(o, "model", ctl_json_text(b->model));
		json_object_set_new(o, "page_bytes", json_integer((json_int_t)b->page));
	} else if (b->phases > PING + 1) {
		printf("%u clients, model %s, slots of %" PRIu64 " bytes\n", b->clients,
		       b->model, b->page);
	} else {
		printf("%u clients; no model is loaded: ping only\n", b->clients);
	}
	for (ph = 0; ph < b->phases; ph++)
		report_phase(b, (enum phase)ph, o);
	return o ? ctl_print_json(o) : CTL_OK;
}

static int bench(struct bench *b, uint64_t seconds, const char *model)
{
	size_t bytes = b->clients * sizeof(*b->result);
	int ret = find_model(b, model);

	if (ret)
		return ctl_fail(b->c, ret, "%s", b->c->err.text);
	b->phases = b->model[0] ? N_PHASES : PING + 1;
	b->phase_us = seconds * 1000000 / b->phases;
	b->all = malloc((size_t)b->clients * SAMPLES * sizeof(*b->all));
	b->result = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!b->all || b->result == MAP_FAILED) {
		free(b->all);
		return ctl_fail(b->c, -ENOMEM, "out of memory");
	}
	ret = run_all(b);
	ret = ret ? ctl_fail(b->c, ret, "%s", b->c->err.text) : report(b);
	munmap(b->result, bytes);
	free(b->all);
	return ret;
}

int ctl_cmd_bench(struct ctl *c, int argc, char **argv)
{
	const char *clients = "4", *seconds = "4", *model = NULL;
	struct bench b = { .c = c };
	const struct ctl_opt opts[] = {
		{ "clients", 0, &clients, NULL },
		{ "seconds", 0, &seconds, NULL },
		{ "namespace", 0, &b.tenant, NULL },
		{ "model", 0, &model, NULL },
		{ NULL, 0, NULL, NULL },
	};
	int ret = ctl_parse(c, argc, argv, opts, NULL, 0, 0);
	uint64_t n, s;

	if (ret != CTL_GO_ON)
		return ret;
	if (ctl_number(clients, 1, MAX_CLIENTS, &n))
		return ctl_usage(c, "--clients %s: 1 to %d", clients, MAX_CLIENTS);
	if (ctl_number(seconds, 1, MAX_SECONDS, &s))
		return ctl_usage(c, "--seconds %s: 1 to %d", seconds, MAX_SECONDS);
	b.clients = (unsigned int)n;
	return bench(&b, s, model);
}
