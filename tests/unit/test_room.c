// SPDX-License-Identifier: MIT
/*
 * cqctl evict and quota on a real cqd, defaults of namespaces, the limit of
 * connections, and memory pressure through a FIFO.
 */
#include <jansson.h>
#include <sys/stat.h>
#include "cq.h"
#include "tests/unit/test_libcq.h"

static const struct shape shape = SHAPE_SMALL;
static struct rig r;

/* Output of a cqctl command as JSON; its exit status is checked. */
static json_t *ctl(int status, const char *args)
{
	const char *o = getenv("O");
	char cmd[1000], out[4000];
	json_t *j;
	FILE *f;
	size_t n;
	int ret;

	snprintf(cmd, sizeof(cmd), "%s/cqctl --socket %s --json %s", o ? o : "build", r.admin,
		 args);
	f = popen(cmd, "re");
	ASSERT(f);
	n = fread(out, 1, sizeof(out) - 1, f);
	out[n] = '\0';
	ret = pclose(f);
	if (!WIFEXITED(ret) || WEXITSTATUS(ret) != status)
		FAIL("%s: status %d, want %d: %s", cmd, ret, status, out);
	j = json_loads(out, 0, NULL);
	if (!j && status != 2)
		FAIL("%s: no JSON: %s", cmd, out);
	return j;
}

static long long number(json_t *j, const char *a, const char *b)
{
	json_t *v = json_object_get(j, a);
	long long n;

	if (b)
		v = json_object_get(v, b);
	n = json_is_null(v) ? -1 : json_integer_value(v);
	json_decref(j);
	return n;
}

static void publish(uint32_t text, size_t pages)
{
	uint32_t ids[64 * 16 + 1];

	rig_ids(ids, 64 * pages + 1, text);
	rig_publish(&r, ids, 64 * pages + 1);
}

static void rewrite(const char *daemon)
{
	char conf[1600];

	snprintf(conf, sizeof(conf), "[daemon]\nsocket = %s\nadmin_socket = %s\n"
		 "segment_min = 1M\nsegment_max = 16M\npool_bytes = 64M\n%s\n"
		 "[model toy]\npath = %s\n", r.sock, r.admin, daemon, r.model);
	rig_write(r.conf, conf, strlen(conf));
	ASSERT_SYS(kill(r.cqd, SIGHUP));
}

TEST(the_administrator_makes_room)
{
	long long bytes;

	rig_start(&r, &shape, "pool_bytes = 64M\n[namespace a]\nuid = *\n");
	publish(1, 8);
	bytes = number(ctl(0, "quota a"), "bytes", "used");
	ASSERT_EQ(number(ctl(0, "quota a"), "pages", "used"), 8);
	ASSERT_EQ(number(ctl(0, "quota a"), "pages", "limit"), -1);
	ASSERT_EQ(number(ctl(0, "evict --older 1h"), "pages", NULL), 0);
	ASSERT_EQ(number(ctl(0, "evict --namespace a --bytes 1"), "pages", NULL), 1);
	ASSERT_EQ(number(ctl(0, "evict --model toy --older 1ms --all"), "pages", NULL), 7);
	ASSERT_EQ(number(ctl(0, "quota a"), "bytes", "used"), 0);
	ASSERT_GT(bytes, 8 * 4096);
	json_decref(ctl(1, "evict --all --namespace nobody"));
	json_decref(ctl(1, "evict --all --model nothing"));
	json_decref(ctl(1, "quota nobody"));
	json_decref(ctl(2, "evict"));
	json_decref(ctl(2, "evict --all --bytes 5"));
	json_decref(ctl(2, "evict --bytes 5x"));
	json_decref(ctl(2, "evict --older soon"));
	json_decref(ctl(2, "quota"));
	json_decref(ctl(2, "quota a --pages many"));
	rig_stop(&r);
}

/* Changed at run time, until the next reload; connections to the border. */
TEST(limits_until_the_reload)
{
	struct worker w[3];
	struct cq_open_opts o = { .sz = sizeof(o), .socket = r.sock, .timeout_ms = 1000 };
	struct cq_ctx *ctx;
	long long end;
	json_t *j;

	rig_start(&r, &shape, "pool_bytes = 64M\n[namespace a]\nuid = *\nconnections = 2\n"
		  "quota_pages = 16\n");
	publish(1, 8);
	ASSERT_EQ(number(ctl(0, "quota a"), "pages", "used"), 8);
	ASSERT_EQ(number(ctl(0, "quota a"), "connections", "limit"), 2);
	end = test_now_ms() + 5000;
	while (number(ctl(0, "quota a"), "connections", "used"))
		ASSERT_LT(test_now_ms(), end);
	worker_connect(&w[0], &shape, r.sock, 0);
	worker_connect(&w[1], &shape, r.sock, 0);
	ASSERT_EQ(number(ctl(0, "quota a"), "connections", "used"), 2);
	CQ_FAILS(cq_open(&o, &ctx), -EUSERS);
	j = ctl(0, "quota a --connections 3 --pages 2");
	ASSERT(json_is_true(json_object_get(j, "until_reload")));
	json_decref(j);
	worker_connect(&w[2], &shape, r.sock, 0);
	CQ_FAILS(cq_open(&o, &ctx), -EUSERS);
	end = test_now_ms() + 5000;
	while (number(ctl(0, "quota a"), "pages", "used") > 2)
		ASSERT_LT(test_now_ms(), end);
	ASSERT_EQ(number(ctl(0, "quota a"), "pages", "limit"), 2);
	ASSERT_EQ(number(ctl(0, "quota a --bytes 20M --pins 100"), "bytes", "limit"), 20 << 20);
	ASSERT_EQ(number(ctl(0, "quota a"), "pages", "limit"), 2);
	rewrite("[namespace a]\nuid = *\nconnections = 2\nquota_pages = 16\n");
	while (number(ctl(0, "quota a"), "pages", "limit") != 16)
		ASSERT_LT(test_now_ms(), end);
	ASSERT_EQ(number(ctl(0, "quota a"), "pins", "limit"), -1);
	ASSERT_EQ(number(ctl(0, "quota a"), "connections", "limit"), 2);
	cq_close(w[2].ctx);
	cq_close(w[1].ctx);
	cq_close(w[0].ctx);
	rig_stop(&r);
}

/* Pages of a namespace with a ttl go by themselves. */
TEST(ttl_of_a_namespace)
{
	long long end;

	rig_start(&r, &shape, "pool_bytes = 64M\n[namespace a]\nuid = *\nttl = 1s\n");
	publish(1, 8);
	ASSERT_GT(number(ctl(0, "quota a"), "pages", "used"), 0);
	end = test_now_ms() + 8000;
	while (number(ctl(0, "quota a"), "pages", "used"))
		ASSERT_LT(test_now_ms(), end);
	rig_stop(&r);
}

/* The segments' memory, as /proc shows it to whoever owns the process. */
static long long shmem_kb(void)
{
	char path[300], link[64];
	long long blocks = 0;
	struct stat sb;
	int fd;

	for (fd = 3; fd < 256; fd++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", r.cqd, fd);
		memset(link, 0, sizeof(link));
		if (readlink(path, link, sizeof(link) - 1) > 0 &&
		    !strncmp(link, "/memfd:cq-seg", 13) && !stat(path, &sb))
			blocks += sb.st_blocks;
	}
	return blocks / 2;
}

TEST(pressure_gives_memory_back)
{
	char fifo[300];
	long long before, now, end;
	int fd;

	snprintf(fifo, sizeof(fifo), "%s/pressure", test_dir());
	ASSERT_SYS(mkfifo(fifo, 0600));
	setenv("MEMORY_PRESSURE_WATCH", fifo, 1);
	rig_start(&r, &shape, "pool_bytes = 64M\npressure = some 100ms");
	publish(1, 16);
	before = shmem_kb();
	ASSERT_GT(before, 1000);
	fd = open(fifo, O_WRONLY | O_CLOEXEC);
	ASSERT_SYS(fd);
	end = test_now_ms() + 8000;
	do {
		ASSERT_EQ(write(fd, "x", 1), 1);
		ASSERT_LT(test_now_ms(), end);
		usleep(10000);
		now = shmem_kb();
	} while (now);
	printf("# segments of cqd: %lld kB before, %lld kB after\n", before, now);
	ASSERT_EQ(number(ctl(0, "status"), "pool_used", NULL), 0);
	close(fd);
	rig_stop(&r);
}

/* The real one, or one line of the log that says why not. */
TEST(pressure_of_the_machine)
{
	static char log[8192];
	int fd, n;

	unsetenv("MEMORY_PRESSURE_WATCH");
	rig_start(&r, &shape, "pool_bytes = 64M\npressure = some 1s");
	publish(1, 2);
	rig_stop(&r);
	fd = open(r.log, O_RDONLY | O_CLOEXEC);
	n = (int)read(fd, log, sizeof(log) - 1);
	close(fd);
	ASSERT_GT(n, 0);
	log[n] = '\0';
	ASSERT_STRHAS(log, access("/proc/pressure/memory", W_OK) ? "is not watched" : "watched at");
	setenv("MEMORY_PRESSURE_WATCH", "/nonexistent", 1);
	rig_start(&r, &shape, "pool_bytes = 64M\npressure = some 1s");
	rig_stop(&r);
	fd = open(r.log, O_RDONLY | O_CLOEXEC);
	n = (int)read(fd, log, sizeof(log) - 1);
	close(fd);
	log[n] = '\0';
	ASSERT_STRHAS(log, "/nonexistent: No such file or directory: memory pressure is not");
}
