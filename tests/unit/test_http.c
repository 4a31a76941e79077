// SPDX-License-Identifier: MIT
/* The head of an HTTP request, whole and in pieces; accepting when there is
 * nothing to accept with. */
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "tests/harness.h"
#include "cq/util.h"
#include "daemon/http.h"
#include "daemon/server.h"

static int parse(const char *text, struct cqd_http_req *req)
{
	*req = (struct cqd_http_req){ .what = CQD_HTTP_NONE };
	return cqd_http_parse(text, strlen(text), req);
}

TEST(statuses)
{
	static const struct {
		const char *text;
		int status;
		enum cqd_http_what what;
	} heads[] = {
		{ "GET /metrics HTTP/1.1\r\n\r\n", 200, CQD_HTTP_METRICS },
		{ "GET /health HTTP/1.0\r\n\r\n", 200, CQD_HTTP_HEALTH },
		{ "GET /metrics HTTP/1.1\n\n", 200, CQD_HTTP_METRICS },
		{ "GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\nbody", 200, CQD_HTTP_METRICS },
		{ "GET /metrics/ HTTP/1.1\r\n\r\n", 404, 0 },
		{ "GET / HTTP/1.1\r\n\r\n", 404, 0 },
		{ "HEAD /metrics HTTP/1.1\r\n\r\n", 405, 0 },
		{ "PUT /health HTTP/1.1\r\n\r\n", 405, 0 },
		{ "PUT /x HTTP/1.1\r\n\r\n", 404, 0 },
		{ "GET /metrics HTTP/2.0\r\n\r\n", 505, 0 },
		{ "GET /metrics HTTP/1.10\r\n\r\n", 400, 0 },
		{ "GET /metrics HTTP/1.1 \r\n\r\n", 400, 0 },
		{ "GET  /metrics HTTP/1.1\r\n\r\n", 400, 0 },
		{ "GET metrics HTTP/1.1\r\n\r\n", 400, 0 },
		{ "GET /metrics\r\n\r\n", 400, 0 },
		{ "get /metrics HTTP/1.1\r\n\r\n", 400, 0 },
		{ " GET /metrics HTTP/1.1\r\n\r\n", 400, 0 },
		{ "\r\n\r\n", 400, 0 },
		{ "GET /metrics HTTP/1.1\r\nA: \x01\r\n\r\n", 400, 0 },
		{ "\x7f", 400, 0 },
		{ "GET /metrics HTTP/1.1\r\n", 0, 0 },
		{ "", 0, 0 },
	};
	struct cqd_http_req req;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(heads); i++) {
		if (parse(heads[i].text, &req) != heads[i].status)
			FAIL("\"%s\": %d, not %d", heads[i].text, parse(heads[i].text, &req),
			     heads[i].status);
		ASSERT_EQ(req.what, heads[i].what);
	}
}

TEST(chunks_for_those_who_know_them)
{
	struct cqd_http_req req;

	ASSERT_EQ(parse("GET /metrics HTTP/1.1\r\n\r\n", &req), 200);
	ASSERT(req.chunks);
	ASSERT_EQ(parse("GET /metrics HTTP/1.0\r\n\r\n", &req), 200);
	ASSERT(!req.chunks);
}

/* A head is complete with its last byte and not before, on the heap's edge. */
TEST(in_pieces)
{
	static const char text[] = "GET /metrics HTTP/1.1\r\nHost: localhost:9464\r\n\r\n";
	struct cqd_http_req req;
	size_t n;

	for (n = 0; n < sizeof(text); n++) {
		char *copy = malloc(n + 1);

		memcpy(copy + 1, text, n);
		ASSERT_EQ(cqd_http_parse(copy + 1, n, &req), n + 1 < sizeof(text) ? 0 : 200);
		free(copy);
	}
}

TEST(too_long)
{
	static char text[CQD_HTTP_REQUEST];
	struct cqd_http_req req;

	memset(text, 'a', sizeof(text));
	ASSERT_EQ(cqd_http_parse(text, sizeof(text) - 1, &req), 0);
	ASSERT_EQ(cqd_http_parse(text, sizeof(text), &req), 431);
	text[0] = '\0';
	ASSERT_EQ(cqd_http_parse(text, sizeof(text), &req), 400);
}

/* Out of descriptors the loop sleeps, and goes on when there are some. */
TEST(no_descriptor_to_accept_with)
{
	static struct cqd_config cfg = { .socket_mode = 0600 };
	static struct cqd_server srv;
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	long long end = test_now_ms() + 600;
	struct rlimit old, none;
	unsigned int turns = 0;
	uv_loop_t loop;
	struct cq_err err;
	int fd;

	ASSERT_OK(uv_loop_init(&loop));
	srv.loop = &loop;
	srv.config = &cfg;
	list_init(&srv.http.listeners);
	list_init(&srv.http.conns);
	uv_timer_init(&loop, &srv.http.tick);
	srv.http.tick.data = &srv;
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/h", test_dir());
	ASSERT_OK(cqd_http_bind(&srv, sa.sun_path, &err));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ASSERT_OK(connect(fd, (struct sockaddr *)&sa, sizeof(sa)));
	ASSERT_OK(getrlimit(RLIMIT_NOFILE, &old));
	none = old;
	none.rlim_cur = 3;
	ASSERT_OK(setrlimit(RLIMIT_NOFILE, &none));
	while (test_now_ms() < end) {
		uv_run(&loop, UV_RUN_ONCE);
		turns++;
	}
	ASSERT_EQ(srv.http.n, 0);
	ASSERT_LT(turns, 50);
	ASSERT_OK(setrlimit(RLIMIT_NOFILE, &old));
	end = test_now_ms() + 5000;
	while (!srv.http.n && test_now_ms() < end)
		uv_run(&loop, UV_RUN_ONCE);
	ASSERT_EQ(srv.http.n, 1);
	close(fd);
	cqd_http_close(&srv);
	uv_run(&loop, UV_RUN_DEFAULT);
	ASSERT_OK(uv_loop_close(&loop));
	uv_library_shutdown();
}
