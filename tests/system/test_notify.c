// SPDX-License-Identifier: MIT
/*
 * The service manager stops reading and its socket fills up: clients notice
 * nothing, and what cqd had to say arrives when there is room again.
 */
#include "tests/system/sys.h"

#define REQUESTS	50
#define SLOWEST_MS	1000

static struct sys s;

static int fill(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), n = 0;

	ASSERT_SYS(fd);
	snprintf(to.sun_path, sizeof(to.sun_path), "%s", path);
	while (sendto(fd, "X=1", 3, 0, (struct sockaddr *)&to, sizeof(to)) == 3)
		n++;
	ASSERT_EQ(errno, EAGAIN);
	close(fd);
	return n;
}

static bool logged(const char *what)
{
	FILE *f = fopen(s.log, "re");
	char line[512];
	bool found = false;

	ASSERT(f);
	while (!found && fgets(line, sizeof(line), f))
		found = strstr(line, what);
	fclose(f);
	return found;
}

TEST_LIMIT(full_socket, 60)
{
	/* a new namespace, whose state words go to the manager as well */
	static const struct sys_opts more = { .blue = "[namespace green]\nuid = 64104\n" };
	long long end, t, slowest = 0;
	Cqp__StatusOk st;
	int i, n, fd;

	sys_start(&s, NULL);
	ASSERT_SYS(kill(s.manager, SIGSTOP));
	n = fill(s.notify);
	sys_write_conf(&s, &more);
	ASSERT_SYS(kill(s.cqd, SIGHUP));
	end = test_now_ms() + SYS_DEADLINE;
	while (!logged("configuration reloaded") && test_now_ms() < end)
		usleep(1000);
	ASSERT(logged("configuration reloaded"));
	for (i = 0; i < REQUESTS; i++) {
		t = test_now_ms();
		fd = wire_open(s.sock);
		ASSERT_OK(fd);
		close(fd);
		sys_status(&s, &st);
		t = test_now_ms() - t;
		slowest = MAX(slowest, t);
		usleep(10000);
	}
	printf("# %d messages fill the socket; slowest request %lld ms\n", n, slowest);
	ASSERT_LT(slowest, SLOWEST_MS);
	ASSERT_SYS(kill(s.manager, SIGCONT));
	sys_expect(&s, "reloading ");
	sys_expect(&s, "ready ");
	sys_restart(&s);
	sys_stop(&s);
}

/* Nobody waits for it while the manager stands still: it stays a zombie. */
static bool ended(pid_t pid)
{
	char path[64], state = 0;
	FILE *f;
	int n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	ASSERT(f);
	n = fscanf(f, "%*d %*s %c", &state);
	fclose(f);
	ASSERT_EQ(n, 1);
	return state == 'Z';
}

/* Asked to end meanwhile, cqd ends. */
TEST_LIMIT(stop_at_a_full_socket, 60)
{
	long long end = test_now_ms() + SYS_DEADLINE;

	sys_start(&s, NULL);
	ASSERT_SYS(kill(s.manager, SIGSTOP));
	fill(s.notify);
	ASSERT_SYS(kill(s.cqd, SIGTERM));
	while (!ended(s.cqd) && test_now_ms() < end)
		usleep(1000);
	ASSERT(ended(s.cqd));
	ASSERT_SYS(kill(s.manager, SIGCONT));
	sys_expect(&s, "ended ");
	sys_stop(&s);
}
