/* SPDX-License-Identifier: MIT */
/* The driver's side of a chaos run: cqd, its manager, the workers' processes. */
#ifndef CHAOS_DRIVER_H
#define CHAOS_DRIVER_H

#define TESTS_CHAOS
#include "tests/chaos/chaos.h"
#include "tests/system/sys.h"

#define MAX_RABBLE	3
#define WATCHDOG_US	2000000
#define WATCHDOG_ARG	"2000000"

/* Ways in which this instance of cqd was asked to end. */
enum chaos_asked {
	ASKED_KILL = 1 << 0,
	ASKED_TERM = 1 << 1,
	ASKED_HANG = 1 << 2,
	ASKED_HUP = 1 << 3,	/* before it was ready: it may not have a handler yet */
};

/**
 * struct driver - everything but the workers' memory
 * @seed, @minutes, @workers, @min_worker_kills, @min_daemon_kills: what was asked for
 * @cqd_fd:   pidfd of the cqd that the manager told of last, -1: none
 * @asked:    how it was asked to end
 * @ready:    it said so
 * @gone_at:  when the one before it ended, 0: none did
 * @began_at: when it started
 * @cont_at:  it is stopped until then, 0: it is not
 * @store:    descriptors that the manager keeps, by its own count
 * @bad_conf: the configuration file has an error now
 * @rabble:   pids of clients that keep no rule, 0: none
 * @start_ms: of the run
 */
struct driver {
	struct sys s;
	uint64_t seed, rng;
	unsigned int minutes, workers, min_worker_kills, min_daemon_kills, seconds;
	int cqd_fd;
	unsigned int asked;
	bool ready, bad_conf;
	uint64_t gone_at, began_at, cont_at;
	unsigned int store;
	pid_t rabble[MAX_RABBLE], clock;
	long long start_ms;
	uint64_t worker_kills, daemon_kills, terms, hangs, stops, reloads, early, ctl_runs;
	uint64_t disturbed;		/* times that cqd was, while it was ready */
	struct hist serving;		/* from the end of a cqd to "ready" of the next */
};

extern struct driver driver;
extern const struct sys_opts chaos_opts;

/* --- inject.c --- */
void inject_pump(struct driver *d, int ms);
void inject_until_ready(struct driver *d);
void inject_step(struct driver *d);
void inject_workers_start(struct driver *d);
void inject_reap(struct driver *d);
bool inject_workers_gone(const struct driver *d);
void inject_rabble_end(struct driver *d);
/* A process of the driver's that has let go of the driver's descriptors. */
pid_t inject_fork(struct driver *d, uid_t uid);
uid_t inject_uid(const struct driver *d, unsigned int worker);
unsigned int inject_ns(unsigned int worker);

/* --- audit.c --- */
/**
 * struct audit - what was found when everybody had gone
 * @leaked: descriptors, pages and processes too many
 * @pages:  resident at the end, all of them attached to and read
 */
struct audit {
	uint64_t leaked, lost, pages, verified, segments, log_lines;
};

void audit_run(struct driver *d, struct audit *a);
void audit_log(const struct driver *d, struct audit *a);

#endif /* CHAOS_DRIVER_H */
