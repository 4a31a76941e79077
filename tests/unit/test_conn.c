// SPDX-License-Identifier: MIT
/*
 * Connections over a store that is played here: replies that have to wait, the
 * descriptors in them, requests answered later. One thread steps both sides, so
 * nothing depends on timing.
 */
#include <signal.h>
#include <sys/syscall.h>
#include "daemon/server.h"
#include "tests/harness.h"
#include "tests/system/wire.h"
#include "tests/unit/conn_store.h"

/* --- the kernel's part, where it has to fail --- */

static int send_errno, send_fails;

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	if (send_fails) {
		send_fails--;
		errno = send_errno;
		return -1;
	}
	return syscall(SYS_sendmsg, fd, msg, flags);
}

/* --- the server --- */

static uv_loop_t loop;
static struct cqd_server srv;
static struct cqp_frame frame;
static char sock[300];

static void server_start(void)
{
	struct cq_err err = { "" };
	unsigned int i;

	snprintf(sock, sizeof(sock), "%s/s", test_dir());
	ASSERT_OK(cqd_config_load(NULL, &srv.config, &err));
	uv_loop_init(&loop);
	srv.loop = &loop;
	srv.store = thing();
	list_init(&srv.tenants);
	list_init(&srv.listeners);
	list_init(&srv.conns);
	list_init(&srv.waiting);
	list_init(&srv.sessions);
	for (i = 0; i < CQD_HASH; i++)
		list_init(&srv.uids[i]);
	cqd_processes_init(&srv);
	uv_timer_init(&loop, &srv.tick);
	cqd_events_init(&srv);
	ASSERT_OK(cqd_tenants_apply(&srv, srv.config, &err));
	ASSERT_OK(cqd_listen(&srv, sock, 0600, false, &err));
}

static void step(void)
{
	int i;

	for (i = 0; i < 40; i++)
		uv_run(&loop, UV_RUN_NOWAIT);
}

static void server_stop(void)
{
	unsigned int i;

	cqd_conn_close_all(&srv);
	cqd_sessions_close_all(&srv);
	cqd_listen_close_all(&srv);
	uv_close((uv_handle_t *)&srv.tick, NULL);
	cqd_events_close(&srv);
	cqd_processes_close(&srv);
	uv_run(&loop, UV_RUN_DEFAULT);
	ASSERT_OK(uv_loop_close(&loop));
	ASSERT(list_empty(&srv.conns) && list_empty(&srv.waiting));
	for (i = 0; i < CQD_HASH; i++)
		ASSERT(list_empty(&srv.uids[i]) && list_empty(&srv.processes[i]));
	ASSERT_EQ(srv.n_conns, 0);
	cqd_tenants_free(&srv);
	cqd_config_free(srv.config);
	uv_library_shutdown();	/* libuv's own pipe for signals */
}

/* --- the client's part --- */

static int send_msg(int fd, Cqp__Msg *msg, uint64_t id)
{
	msg->id = id;
	return cqp_send(fd, msg, NULL, 0, MSG_DONTWAIT);
}

/* Next reply, NULL if there is none yet. */
static Cqp__Msg *next(int fd)
{
	int ret = cqp_recv(fd, &frame, MSG_DONTWAIT);
	Cqp__Msg *r;

	if (ret != 1)
		return NULL;
	r = cqp_unpack(frame.buf, frame.len, NULL);
	ASSERT(r);
	return r;
}

static int hello(uint64_t session)
{
	Cqp__Hello body = CQP__HELLO__INIT;
	DECLARE_MSG(msg, HELLO, hello, body);
	int fd = wire_connect(sock);
	Cqp__Msg *r;

	ASSERT_OK(fd);
	body.protocol = CQP_VERSION;
	body.has_session = session != 0;
	body.session = session;
	ASSERT_OK(send_msg(fd, &msg, 1));
	step();
	r = next(fd);
	ASSERT(r && r->body_case == CQP__MSG__BODY_HELLO_OK);
	ASSERT_EQ(r->hello_ok->resumed, session != 0);
	cqp_free(r);
	return fd;
}

/* @priority, @ttl_s: NULL: it names none. */
static int send_seal_with(int fd, uint64_t id, const uint32_t *priority, const uint32_t *ttl_s)
{
	static uint8_t bytes[256];
	Cqp__Seal body = CQP__SEAL__INIT;
	DECLARE_MSG(msg, SEAL, seal, body);

	body.parent = (ProtobufCBinaryData){ 32, bytes };
	body.tokens = (ProtobufCBinaryData){ 256, bytes };
	body.has_priority = priority != NULL;
	body.has_ttl_s = ttl_s != NULL;
	body.priority = priority ? *priority : 0;
	body.ttl_s = ttl_s ? *ttl_s : 0;
	return send_msg(fd, &msg, id);
}

static int send_seal(int fd, uint64_t id)
{
	return send_seal_with(fd, id, NULL, NULL);
}

static void model_open(int fd, char *name, uint64_t id, int want)
{
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);

	body.name = name;
	ASSERT_EQ(send_msg(fd, &msg, id), want);
}

/* Length of the file behind the frame's fd @i: who it was made for. */
static long long fd_length(unsigned int i)
{
	struct stat st;

	ASSERT_LT(i, frame.n_fds);
	ASSERT_SYS(fstat(frame.fds[i], &st));
	return st.st_size;
}

/* Replies wait with descriptors that their owner closes meanwhile. */
TEST(queued_descriptors)
{
	char name[] = "tiny", over[] = "x";
	long long end = test_now_ms() + 5000;
	uint64_t sent = 0, got = 0;
	Cqp__Msg *r;
	int fd;

	server_start();
	fd = hello(0);
	/* until the daemon reads no more */
	while (n_opens == sent) {
		model_open(fd, name, ++sent, 0);
		step();
	}
	/* what one client may leave unread, and what is queued behind that */
	ASSERT_GT(sent, 32);
	ASSERT_LT(sent, 50);
	while (got < sent) {
		ASSERT_LT(test_now_ms(), end);
		uv_run(&loop, UV_RUN_NOWAIT);
		r = next(fd);
		if (!r)
			continue;
		ASSERT_EQ(r->body_case, CQP__MSG__BODY_MODEL_OK);
		ASSERT_EQ(r->id, ++got);
		ASSERT_EQ(frame.n_fds, 2);
		ASSERT_EQ(fd_length(0), got * 2);
		ASSERT_EQ(fd_length(1), got * 2 + 1);
		cqp_frame_close(&frame);
		cqp_free(r);
	}
	model_open(fd, over, 1, 0);
	step();
	cqp_free(next(fd));
	close(fd);
	server_stop();
}

static int open_code(int fd, const char *model)
{
	char name[64];
	Cqp__Msg *r;
	int code;

	snprintf(name, sizeof(name), "%s", model);
	model_open(fd, name, 9, 0);
	step();
	r = next(fd);
	ASSERT(r && r->id == 9);
	code = r->body_case == CQP__MSG__BODY_ERROR ? r->error->code : 0;
	cqp_frame_close(&frame);
	cqp_free(r);
	return code;
}

/* A namespace may be kept to some models; the store is not even asked. */
TEST(models_of_a_namespace)
{
	int fd;

	server_start();
	ASSERT_OK(cqd_value_names("small, other", &srv.config->ns[0].models, NULL));
	fd = hello(0);
	ASSERT_EQ(open_code(fd, "small"), 0);
	ASSERT_EQ(open_code(fd, "tiny"), -EACCES);
	ASSERT_EQ(open_code(fd, "smal"), -EACCES);
	ASSERT_EQ(open_code(fd, "../small"), -EINVAL);
	ASSERT_EQ(n_opens, 1);
	srv.config->ns[0].uid.any = false;	/* inside stays inside */
	ASSERT_EQ(open_code(fd, "other"), 0);
	free(srv.config->ns[0].models.name[1]);
	srv.config->ns[0].models.n = 1;
	srv.config->ns[0].models.name[0][0] = 'x';
	srv.config->ns[0].models.name[0][1] = '\0';
	ASSERT_EQ(open_code(fd, "x"), -ENOENT);
	close(fd);
	server_stop();
}

/* A client that leaves with its replies waiting leaves no descriptor behind. */
TEST(queue_of_a_client_that_left)
{
	char name[] = "tiny", over[] = "x";
	uint64_t sent = 0;
	int fd;

	server_start();
	fd = hello(0);
	while (n_opens == sent) {
		model_open(fd, name, ++sent, 0);
		step();
	}
	close(fd);
	step();
	ASSERT_EQ(srv.n_conns, 0);
	ASSERT(the_clients[0].orphan);
	fd = hello(1);		/* and takes the session up again */
	ASSERT(!the_clients[0].orphan);
	model_open(fd, over, 2, 0);
	step();
	close(fd);
	server_stop();
}

static unsigned int collect(int fd, int want_code)
{
	unsigned int n = 0;
	Cqp__Msg *r;

	while ((r = next(fd))) {
		if (want_code) {
			ASSERT_EQ(r->body_case, CQP__MSG__BODY_ERROR);
			ASSERT_EQ(r->error->code, want_code);
		} else {
			ASSERT_EQ(r->body_case, CQP__MSG__BODY_SEAL_OK);
			ASSERT_EQ(r->seal_ok->key.len, 32);
			ASSERT(!r->seal_ok->has_sink);
		}
		n++;
		cqp_free(r);
	}
	return n;
}

/* So many may be open at a time; the others wait in the socket. */
TEST(pending_requests_are_bounded)
{
	unsigned int sent, i, got;
	int fd;

	server_start();
	fd = hello(0);
	for (sent = 0; sent < CQD_MAX_PENDING + 40; sent++) {
		ASSERT_OK(send_seal(fd, sent + 1));
		step();
	}
	ASSERT_EQ(n_seals, CQD_MAX_PENDING);
	answer(3, 0);
	step();
	ASSERT_EQ(n_seals, CQD_MAX_PENDING + 1);
	ASSERT_EQ(collect(fd, 0), 1);
	for (got = 1, i = 0; i < n_seals; i++) {
		if (seals[i].done)
			answer(i, 0);
		step();
		got += collect(fd, 0);
	}
	ASSERT_EQ(n_seals, sent);
	ASSERT_EQ(got, sent);
	close(fd);
	server_stop();
}

static int send_publish(int fd, uint64_t id)
{
	Cqp__Publish body = CQP__PUBLISH__INIT;
	DECLARE_MSG(msg, PUBLISH, publish, body);
	char name[] = "n";

	body.name = name;
	return send_msg(fd, &msg, id);
}

/* A request that is answered later counts by its answer. */
TEST(figures_of_late_answers)
{
	const struct cqd_request_count *n = srv.meter.request;
	int fd;

	server_start();
	fd = hello(0);
	ASSERT_OK(send_publish(fd, 1));
	ASSERT_OK(send_seal(fd, 2));
	ASSERT_OK(send_seal(fd, 3));
	step();
	answer(0, 0);
	answer(1, -ENOSPC);
	ASSERT_EQ(n[CQP__MSG__BODY_PUBLISH].ok, 0);
	ASSERT_EQ(n[CQP__MSG__BODY_PUBLISH].failed, 1);
	ASSERT_EQ(n[CQP__MSG__BODY_SEAL].ok, 1);
	ASSERT_EQ(n[CQP__MSG__BODY_SEAL].failed, 1);
	close(fd);
	server_stop();
}

TEST(answers_for_who_has_left)
{
	int fd, i;

	server_start();
	fd = hello(0);
	for (i = 0; i < 3; i++)
		ASSERT_OK(send_seal(fd, 5));
	step();
	close(fd);
	step();
	ASSERT_EQ(srv.n_conns, 0);
	answer(1, 0);
	step();
	answer(0, -ENOSPC);
	cqd_session_end(the_clients[0].data);	/* cancels the third */
	ASSERT(the_clients[0].ended);
	step();
	server_stop();
}

TEST(bye_cancels_what_is_open)
{
	Cqp__Bye body = CQP__BYE__INIT;
	DECLARE_MSG(msg, BYE, bye, body);
	Cqp__Msg *r;
	int fd;

	server_start();
	fd = hello(0);
	ASSERT_OK(send_seal(fd, 5));
	ASSERT_OK(send_msg(fd, &msg, 6));
	step();
	r = next(fd);
	ASSERT(r && r->body_case == CQP__MSG__BODY_ERROR);
	ASSERT_EQ(r->id, 5);
	ASSERT_EQ(r->error->code, -ECANCELED);
	cqp_free(r);
	r = next(fd);
	ASSERT(r && r->body_case == CQP__MSG__BODY_OK);
	ASSERT_EQ(r->id, 6);
	cqp_free(r);
	close(fd);
	step();
	server_stop();
}

/* Too many descriptors under way in all: the reply is tried again, in order. */
TEST(short_of_descriptors_in_flight)
{
	char name[] = "tiny", over[] = "x";
	long long end = test_now_ms() + 5000;
	uint64_t got = 0;
	Cqp__Msg *r;
	int fd;

	server_start();
	fd = hello(0);
	model_open(fd, name, 1, 0);
	model_open(fd, name, 2, 0);
	send_errno = ETOOMANYREFS;
	send_fails = 3;
	step();
	ASSERT_EQ(n_opens, 2);
	ASSERT(!next(fd));
	while (got < 2) {
		ASSERT_LT(test_now_ms(), end);
		uv_run(&loop, UV_RUN_NOWAIT);
		r = next(fd);
		if (!r)
			continue;
		ASSERT_EQ(r->id, ++got);
		ASSERT_EQ(fd_length(0), got * 2);
		cqp_frame_close(&frame);
		cqp_free(r);
	}
	ASSERT_EQ(send_fails, 0);
	ASSERT(list_empty(&srv.waiting));
	model_open(fd, over, 3, 0);
	step();
	cqp_free(next(fd));
	close(fd);
	server_stop();
}

/* A reply that cannot be sent ends the connection: nobody waits in vain. */
/* --- subscribers, and connections that take others along --- */

static struct cqd_conn *nth_conn(unsigned int i)
{
	struct list_head *pos = srv.conns.next;

	while (i--)
		pos = pos->next;
	ASSERT(pos != &srv.conns);
	return list_entry(pos, struct cqd_conn, node);
}

static void subscribe(int fd)
{
	Cqp__Subscribe body = CQP__SUBSCRIBE__INIT;
	DECLARE_MSG(msg, SUBSCRIBE, subscribe, body);

	ASSERT_OK(send_msg(fd, &msg, 7));
	step();
}

static void happens(void)
{
	struct cqd_notice n = { .kind = CQD_NOTICE_SEALED, .tenant = "default" };

	ASSERT(watch);
	watch(watch_arg, &n);
	cqd_events_flush(&srv);
}

/* A subscriber whose replies wait for descriptors costs no turn of the loop. */
TEST(a_starved_subscriber_rests)
{
	long long end = test_now_ms() + 5000;
	char name[] = "tiny", over[] = "x";
	bool events = false;
	uint64_t sent = 0;
	Cqp__Msg *r;
	int fd;

	server_start();
	fd = hello(0);
	subscribe(fd);
	cqd_events_flush(&srv);
	while (n_opens == sent) {
		model_open(fd, name, ++sent, 0);
		step();
	}
	ASSERT(nth_conn(0)->starved);
	happens();
	ASSERT(nth_conn(0)->want_write);
	ASSERT(!(nth_conn(0)->events & UV_WRITABLE));
	while (sent || !events) {
		ASSERT_LT(test_now_ms(), end);
		uv_run(&loop, UV_RUN_NOWAIT);
		cqd_events_flush(&srv);
		r = next(fd);
		if (!r)
			continue;
		if (r->body_case == CQP__MSG__BODY_MODEL_OK)
			sent--;
		else
			events |= !sent && r->body_case == CQP__MSG__BODY_EVENTS;
		cqp_frame_close(&frame);
		cqp_free(r);
	}
	model_open(fd, over, 1, 0);
	step();
	cqp_free(next(fd));
	close(fd);
	server_stop();
}

static void terms(int fd, const uint32_t *priority, const uint32_t *ttl_s)
{
	unsigned int before = n_seals;

	ASSERT_OK(send_seal_with(fd, before + 1, priority, ttl_s));
	step();
	ASSERT_EQ(n_seals, before + 1);
	ASSERT_EQ(seal_priority, priority ? (int64_t)*priority : -1);
	ASSERT_EQ(seal_ttl_s, ttl_s ? (int64_t)*ttl_s : -1);
	answer(before, 0);
	step();
	ASSERT_EQ(collect(fd, 0), 1);
}

/* As it was sent: none is not zero. */
TEST(priority_and_time_to_live_of_a_seal)
{
	static const uint32_t zero, high = 200, hour = 3600;
	int fd;

	server_start();
	fd = hello(0);
	terms(fd, &high, &hour);
	terms(fd, NULL, NULL);
	terms(fd, &zero, &zero);
	terms(fd, NULL, &hour);
	close(fd);
	server_stop();
}

/* The other client waited for what the first was sealing, and cannot be told. */
static void take_other_along(void)
{
	send_errno = EIO;
	send_fails = 1;
	answer(0, -ENOENT);
}

TEST(a_deadline_takes_another_along)
{
	long long end = test_now_ms() + 5000;
	int a, b, c;

	server_start();
	a = hello(0);
	b = hello(0);
	c = hello(0);
	ASSERT_OK(send_seal(b, 1));
	step();
	ASSERT_EQ(n_seals, 1);
	cqd_conn_deadline(nth_conn(0), 1);
	cqd_conn_deadline(nth_conn(1), 60000);
	cqd_conn_deadline(nth_conn(2), 60000);
	on_orphan = take_other_along;
	while (srv.n_conns > 1) {
		ASSERT_LT(test_now_ms(), end);
		uv_run(&loop, UV_RUN_NOWAIT);
	}
	ASSERT(the_clients[0].orphan && the_clients[1].orphan && !the_clients[2].orphan);
	close(a);
	close(b);
	close(c);
	server_stop();
}

TEST(a_subscriber_takes_another_along)
{
	int a, b;

	server_start();
	a = hello(0);
	b = hello(0);
	subscribe(a);
	subscribe(b);
	ASSERT_EQ(srv.events.n, 2);
	cqd_events_flush(&srv);
	ASSERT_OK(send_seal(b, 1));
	step();
	on_orphan = take_other_along;
	send_errno = EIO;
	send_fails = 1;
	happens();
	ASSERT_EQ(srv.events.n, 0);
	ASSERT_EQ(srv.n_conns, 0);
	ASSERT(!watch);
	close(a);
	close(b);
	server_stop();
}

TEST(send_fails_for_good)
{
	Cqp__Ping body = CQP__PING__INIT;
	DECLARE_MSG(msg, PING, ping, body);
	int fd;

	server_start();
	fd = hello(0);
	ASSERT_OK(send_msg(fd, &msg, 1));
	send_errno = EIO;
	send_fails = 1;
	step();
	ASSERT_EQ(srv.n_conns, 0);
	ASSERT_EQ(cqp_recv(fd, &frame, MSG_DONTWAIT), 0);
	ASSERT(the_clients[0].orphan);
	close(fd);
	server_stop();
}

/* A Bye that arrives together with a reset still counts. */
TEST(bye_and_gone)
{
	Cqp__Bye body = CQP__BYE__INIT;
	Cqp__Ping ping_body = CQP__PING__INIT;
	DECLARE_MSG(msg, BYE, bye, body);
	DECLARE_MSG(ping, PING, ping, ping_body);
	int fd;

	server_start();
	fd = hello(0);
	ASSERT_OK(send_msg(fd, &ping, 5));
	step();
	ASSERT_OK(send_msg(fd, &msg, 6));
	close(fd);		/* with Pong unread: the daemon sees ECONNRESET */
	step();
	ASSERT(the_clients[0].ended);
	ASSERT_EQ(srv.n_conns, 0);
	server_stop();
}

/* What is asked before a Bye has nobody to answer; the Bye counts all the same. */
TEST(bye_behind_an_unwanted_answer)
{
	Cqp__Bye body = CQP__BYE__INIT;
	Cqp__Ping ping_body = CQP__PING__INIT;
	DECLARE_MSG(msg, BYE, bye, body);
	DECLARE_MSG(ping, PING, ping, ping_body);
	int fd;

	server_start();
	fd = hello(0);
	ASSERT_OK(send_msg(fd, &ping, 5));
	ASSERT_OK(send_msg(fd, &msg, 6));
	close(fd);		/* both unread by the daemon, whose Pong meets EPIPE */
	step();
	ASSERT(the_clients[0].ended);
	ASSERT_EQ(srv.n_conns, 0);
	server_stop();
}
