/* SPDX-License-Identifier: MIT */
/*
 * What a bench knows of cqd and of the machine besides its answers: the memory
 * that is the daemon's own, real-time priority, and how late a thread comes
 * that does nothing but wake up.
 */
#ifndef BENCH_OWN_H
#define BENCH_OWN_H

#include <pthread.h>
#include <sched.h>
#include "tests/system/sys.h"

#define OWN_PRIORITY	50		/* of cqd and of what is measured */
#define OWN_TICK_NS	1000000ull	/* the control wakes up so often */

/**
 * struct own - resident memory of a process in KiB, by what it is
 * @segments: pages of segments, which are the cache and not the daemon
 * @index, @state: of the memfds of these names; @reserved: size of the index
 * @anon:     heap and stacks
 * @rest:     program and libraries, shared with whoever runs them too
 */
struct own {
	long segments, index, state, anon, rest, reserved;
};

static inline long own_total(const struct own *o)
{
	return o->index + o->state + o->anon + o->rest;
}

/* From /proc/PID/smaps. */
static inline void own_read(struct own *o, pid_t pid)
{
	char path[64], line[512];
	long kb, rss = 0, *to = &o->rest;
	FILE *f;

	memset(o, 0, sizeof(*o));
	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	f = fopen(path, "re");
	ASSERT(f);
	while (fgets(line, sizeof(line), f)) {
		if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' '))
			to = strstr(line, "cq-seg") ? &o->segments :
			     strstr(line, "cq-index") ? &o->index :
			     strstr(line, "cq-state") ? &o->state : &o->rest;
		if (sscanf(line, "Size: %ld kB", &kb) == 1 && to == &o->index)
			o->reserved += kb;
		if (sscanf(line, "Rss: %ld kB", &kb) == 1)
			*to += rss = kb;
		if (sscanf(line, "Anonymous: %ld kB", &kb) == 1 && to == &o->rest) {
			o->rest -= MIN(kb, rss);
			o->anon += MIN(kb, rss);
		}
	}
	fclose(f);
}

/* A number out of the environment. */
static inline long own_number(const char *env, long def)
{
	const char *v = getenv(env);

	return v ? strtol(v, NULL, 10) : def;
}

/* Soft limit of descriptors as high as it goes. */
static inline rlim_t own_nofile(void)
{
	struct rlimit rl;

	ASSERT_SYS(getrlimit(RLIMIT_NOFILE, &rl));
	rl.rlim_cur = rl.rlim_max;
	ASSERT_SYS(setrlimit(RLIMIT_NOFILE, &rl));
	return rl.rlim_cur;
}

/* Real-time or not: the thread @tid, 0 for the caller. */
static inline int own_realtime(pid_t tid, bool on, int priority)
{
	struct sched_param p = { .sched_priority = on ? priority : 0 };

	return sched_setscheduler(tid, on ? SCHED_FIFO : SCHED_OTHER, &p) < 0 ? -errno : 0;
}

/* Put a thread on one processor, or on any (-1). */
static inline void own_pin(pid_t tid, int cpu)
{
	cpu_set_t set;
	int i;

	CPU_ZERO(&set);
	for (i = 0; i < (int)sysconf(_SC_NPROCESSORS_ONLN); i++)
		if (cpu < 0 || i == cpu)
			CPU_SET(i, &set);
	ASSERT_SYS(sched_setaffinity(tid, sizeof(set), &set));
}

/* --- the control: what anybody would have seen --- */

/**
 * struct own_control - a thread that wakes up every millisecond
 * @late: us behind the time it asked for
 */
struct own_control {
	pthread_t thread;
	bool rt, stop;
	size_t n;
	double late[60000];
};

static void *own_control_main(void *arg)
{
	struct own_control *c = arg;
	uint64_t due = bench_now_ns();
	struct timespec ts;

	if (c->rt)
		ASSERT_OK(own_realtime(0, true, OWN_PRIORITY + 1));
	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED) && c->n < ARRAY_SIZE(c->late)) {
		due += OWN_TICK_NS;
		ts.tv_sec = (time_t)(due / 1000000000);
		ts.tv_nsec = (long)(due % 1000000000);
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL))
			;
		c->late[c->n++] = (double)(bench_now_ns() - due) / 1000;
	}
	return NULL;
}

static inline void own_control_start(struct own_control *c, bool rt)
{
	memset(c, 0, sizeof(*c));
	c->rt = rt;
	ASSERT_EQ(pthread_create(&c->thread, NULL, own_control_main, c), 0);
}

/* Its 99th percentile; the longest is returned. */
static inline double own_control_stop(struct own_control *c, double *p99)
{
	__atomic_store_n(&c->stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(pthread_join(c->thread, NULL), 0);
	*p99 = bench_quantile(c->late, c->n, 0.99);
	return c->late[c->n - 1];
}

#endif /* BENCH_OWN_H */
