// SPDX-License-Identifier: MIT
/* Commands that go on until a signal, and waiting that one ends. */
#include <errno.h>
#include <signal.h>
#include <time.h>
#include "client/cqctl/cqctl.h"

static volatile sig_atomic_t stopped;

static void on_signal(int signum)
{
	stopped = 1;
}

uint64_t ctl_now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

void ctl_watch(struct ctl *c)
{
	static const int ends[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction sa = { .sa_handler = on_signal };
	sigset_t set;
	size_t i;

	sigemptyset(&set);
	for (i = 0; i < ARRAY_SIZE(ends); i++) {
		sigaddset(&set, ends[i]);
		sigaction(ends[i], &sa, NULL);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	c->watch = true;
}

bool ctl_stopped(void)
{
	return stopped;
}

int ctl_wait(struct pollfd *p, nfds_t n, uint64_t ms)
{
	uint64_t end = ctl_now_us() + ms * 1000, now, left;
	struct timespec ts;
	sigset_t none;
	int ret;

	sigemptyset(&none);
	while (!stopped) {
		now = ctl_now_us();
		left = now < end ? end - now : 0;
		ts.tv_sec = (time_t)(left / 1000000);
		ts.tv_nsec = (long)(left % 1000000 * 1000);
		ret = ppoll(p, n, ms ? &ts : NULL, &none);
		if (ret >= 0)
			return ret;
		if (errno != EINTR)
			return -errno;
	}
	return -EINTR;
}
