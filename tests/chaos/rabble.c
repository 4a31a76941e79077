// SPDX-License-Identifier: MIT
/*
 * Clients that keep no rule: datagrams of random bytes, requests that are
 * valid but for a byte, descriptors that nobody asked for, connections that
 * say nothing, readers that do not read; and administrators who ask all the
 * time. Each lives for a moment and takes what comes: cqd must not care.
 */
#include <signal.h>
#include "tests/chaos/chaos.h"
#include "tests/system/wire.h"

#define LIFE_MS 300

static uint64_t rng;

static long long end_ms;

static bool go_on(void)
{
	return test_now_ms() < end_ms;
}

static void drain(int fd)
{
	static struct cqp_frame f;

	while (cqp_recv(fd, &f, MSG_DONTWAIT) == 1)
		cqp_frame_close(&f);
}

static void send_noise(int fd)
{
	uint8_t buf[4096];
	size_t n = 1 + chaos_below(&rng, chaos_below(&rng, 8) ? 64 : sizeof(buf)), i;

	for (i = 0; i < n; i++)
		buf[i] = (uint8_t)chaos_random(&rng);
	(void)!send(fd, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* A Status, ModelOpen or List with one byte changed. */
static void send_almost(int fd)
{
	Cqp__ModelOpen open = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, open);
	uint8_t buf[256];
	char name[] = "tiny";
	size_t n;

	open.name = name;
	msg.id = chaos_random(&rng);
	n = cqp__msg__pack(&msg, buf);
	buf[chaos_below(&rng, (uint32_t)n)] = (uint8_t)chaos_random(&rng);
	(void)!send(fd, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void send_fds(int fd)
{
	Cqp__Ping ping = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, ping);
	unsigned int n = 1 + chaos_below(&rng, CQP_MAX_FDS), i;
	int fds[CQP_MAX_FDS], one = memfd_create("rabble", MFD_CLOEXEC);

	if (one < 0)
		return;
	for (i = 0; i < n; i++)
		fds[i] = one;
	msg.id = 1;
	(void)cqp_send(fd, &msg, fds, n, MSG_DONTWAIT);
	close(one);
}

/* Ask and never read the answers. */
static void send_unread(int fd)
{
	Cqp__Ping ping = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, ping);
	int i;

	for (i = 0; i < 400; i++)
		if (cqp_send(fd, &msg, NULL, 0, MSG_DONTWAIT))
			break;
}

static void be_rude(const char *sock)
{
	void (*const how[])(int fd) = { send_noise, send_almost, send_fds, send_unread };
	int fd = chaos_below(&rng, 2) ? wire_open(sock) : wire_connect(sock), i;

	if (fd < 0) {
		usleep(2000);
		return;
	}
	for (i = 0; i < 8 && go_on(); i++) {
		how[chaos_below(&rng, ARRAY_SIZE(how))](fd);
		if (chaos_below(&rng, 2))
			drain(fd);
	}
	close(fd);
	chaos_count(&chaos->rabble, 1);
}

/* Many connections at once, which say nothing. */
static void be_many(const char *sock)
{
	int fd[64];
	size_t n, i;

	for (n = 0; n < ARRAY_SIZE(fd) && go_on(); n++) {
		fd[n] = wire_connect(sock);
		if (fd[n] < 0)
			break;
	}
	for (i = 0; i < n; i++)
		close(fd[i]);
	chaos_count(&chaos->rabble, n);
}

static bool ask(int fd, uint32_t kind, uint64_t *cursor)
{
	Cqp__List list = CQP__LIST__INIT;
	DECLARE_MSG(msg, LIST, list, list);
	Cqp__Msg *r;
	bool more;

	list.kind = (Cqp__Kind)kind;
	list.has_cursor = *cursor != 0;
	list.cursor = *cursor;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_LIST_OK) {
		cqp_free(r);
		return false;
	}
	more = r->list_ok->has_cursor;
	*cursor = r->list_ok->cursor;
	cqp_free(r);
	return more;
}

/* Evictions so far, over all lives of cqd; one administrator at a time counts. */
static void note_evictions(const Cqp__Msg *r)
{
	atomic_flag *busy = &chaos->evictions_busy;
	uint64_t now, before;

	if (!r || r->body_case != CQP__MSG__BODY_STATUS_OK || atomic_flag_test_and_set(busy))
		return;
	now = r->status_ok->evictions;
	before = atomic_exchange(&chaos->evictions_seen, now);
	chaos_count(&chaos->evictions, now >= before ? now - before : now);
	atomic_flag_clear(busy);
}

/* Lists of everything, from a random place or from the start. */
static void be_curious(const char *admin)
{
	Cqp__Status status = CQP__STATUS__INIT;
	DECLARE_MSG(msg, STATUS, status, status);
	uint64_t cursor;
	uint32_t kind;
	Cqp__Msg *r;
	int fd = wire_open(admin);

	if (fd < 0) {
		usleep(2000);
		return;
	}
	for (kind = 0; kind < 5 && go_on(); kind++) {
		r = wire_call(fd, &msg, NULL, 0, NULL);
		note_evictions(r);
		cqp_free(r);
		cursor = chaos_below(&rng, 3) ? 0 : chaos_random(&rng);
		while (ask(fd, kind, &cursor) && go_on())
			;
	}
	close(fd);
	chaos_count(&chaos->rabble, 1);
}

/**
 * rabble_main() - pester cqd for a moment
 * @sock:  socket of workers; who may not reach @admin plays the workers' part
 * @admin: administrator's socket, or NULL
 * @seed:  of the random numbers
 */
void rabble_main(const char *sock, const char *admin, uint64_t seed)
{
	rng = seed;
	end_ms = test_now_ms() + LIFE_MS;
	while (go_on()) {
		if (admin)
			be_curious(admin);
		else if (chaos_below(&rng, 4))
			be_rude(sock);
		else
			be_many(sock);
	}
	_exit(0);
}
