// SPDX-License-Identifier: MIT
/*
 * Faults, each at its own random times: SIGKILL of workers and of cqd, at any
 * moment of its life; hangs until the watchdog, and shorter ones; SIGTERM;
 * SIGHUP with configuration files good and bad; cqctl; clients that keep no
 * rule. What the service manager tells is compared with what was done.
 */
#include <sys/syscall.h>
#include "tests/chaos/driver.h"

#define WORKER_KILL_MS	430		/* mean times between faults */
#define DAEMON_MS	1900
#define HANG_EVERY	15		/* disturbances of cqd */
#define RELOAD_MS	2500
#define RABBLE_MS	700
#define CTL_MS		3000
#define READY_MS	30000
#define STRANGER_UID	64109		/* of no namespace */

/* --- processes --- */

/**
 * inject_ns() - namespace of a worker: every other one is blue's
 * @worker: its place
 */
unsigned int inject_ns(unsigned int worker)
{
	return sys_root() ? worker % 2 : 0;
}

/**
 * inject_uid() - uid of a worker
 * @d:      driver
 * @worker: its place
 */
uid_t inject_uid(const struct driver *d, unsigned int worker)
{
	if (inject_ns(worker))
		return SYS_UID_C;
	return worker % 4 ? SYS_UID_B : SYS_UID_A;
}

/**
 * inject_fork() - fork a process that lets go of the driver's descriptors
 * @d:   driver
 * @uid: the child's, if the driver is root
 *
 * Return: as fork().
 */
pid_t inject_fork(struct driver *d, uid_t uid)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	ASSERT_SYS(pid);
	if (pid)
		return pid;
	close(d->s.to);
	close(d->s.from);
	if (d->cqd_fd >= 0)
		close(d->cqd_fd);
	sys_become(uid);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return 0;
}

static void worker_start(struct driver *d, unsigned int i)
{
	struct chaos_worker *w = &chaos->w[i];
	struct chaos_job job = { .sock = d->s.sock, .seed = chaos_random(&d->rng) };
	pid_t pid;

	w->generation++;
	w->ns = inject_ns(i);
	w->uid = inject_uid(d, i);
	w->doing[0] = 0;
	pid = inject_fork(d, w->uid);
	if (!pid) {
		chaos_me = w;
		worker_main(&job);
	}
	w->pid = pid;
}

/**
 * inject_workers_start() - all of them
 * @d: driver
 */
void inject_workers_start(struct driver *d)
{
	unsigned int i;

	for (i = 0; i < d->workers; i++)
		worker_start(d, i);
}

/**
 * inject_workers_gone() - have they all ended
 * @d: driver
 */
bool inject_workers_gone(const struct driver *d)
{
	unsigned int i;

	for (i = 0; i < d->workers; i++)
		if (chaos->w[i].pid)
			return false;
	return true;
}

/* Who died in the middle leaves a name that may be either. */
static void names_let_go(pid_t pid)
{
	pid_t owner;
	size_t i;

	for (i = 0; i < (size_t)NAMESPACES * NAMES; i++) {
		owner = pid;
		atomic_compare_exchange_strong(&chaos->name[i / NAMES][i % NAMES].owner, &owner, 0);
	}
}

static void worker_ended(struct driver *d, unsigned int i, int status)
{
	struct chaos_worker *w = &chaos->w[i];

	names_let_go(w->pid);
	w->pid = 0;
	if (w->why[0])
		FAIL("worker %u (uid %u, life %u, %s): %s", i, (unsigned int)w->uid,
		     w->generation, w->doing, w->why);
	if (WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL : WEXITSTATUS(status) != 0)
		FAIL("worker %u (%s) ended with status %#x", i, w->doing, (unsigned int)status);
	if (chaos_phase() != PHASE_DRAIN)
		worker_start(d, i);
}

static void child_ended(struct driver *d, pid_t pid, int status)
{
	unsigned int i;

	for (i = 0; i < d->workers; i++)
		if (chaos->w[i].pid == pid)
			worker_ended(d, i, status);
	for (i = 0; i < MAX_RABBLE; i++) {
		if (d->rabble[i] != pid)
			continue;
		d->rabble[i] = 0;
		/* cqctl says 1 when cqd was away; a client that crashed is no client */
		if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
			FAIL("a client ended with status %#x", (unsigned int)status);
	}
	if (pid == d->s.manager)
		FAIL("the service manager ended with status %#x", (unsigned int)status);
}

/**
 * inject_reap() - processes that have ended; a killed worker has a successor
 * @d: driver
 */
void inject_reap(struct driver *d)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		child_ended(d, pid, status);
}

/* --- what the manager tells --- */

/* From the signal on, not from when the manager has told of its end. */
static void outage(bool is)
{
	uint32_t n = atomic_load(&chaos->outage);

	if ((n & 1) != is)
		atomic_store(&chaos->outage, n + 1);
}

/* By descriptor: what has that number now may be somebody else. */
static void cqd_started(struct driver *d)
{
	char path[64], line[256] = "";
	FILE *f;

	if (d->cqd_fd >= 0)
		close(d->cqd_fd);
	d->cqd_fd = (int)syscall(SYS_pidfd_open, d->s.cqd, 0);
	snprintf(path, sizeof(path), "/proc/%d/status", (int)d->s.cqd);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "PPid:", 5))
			break;
	if (f)
		fclose(f);
	if (d->cqd_fd >= 0 && strtol(line + 5, NULL, 10) != d->s.manager) {
		close(d->cqd_fd);
		d->cqd_fd = -1;
	}
	d->asked = 0;
	d->ready = false;
	d->began_at = now_us();
}

static void cqd_gone(struct driver *d)
{
	if (d->cqd_fd >= 0)
		close(d->cqd_fd);
	d->cqd_fd = -1;
	d->cont_at = 0;
	d->ready = false;
	outage(true);
	d->gone_at = now_us();
	d->began_at = d->gone_at;	/* the next one's turn */
}

static void cqd_killed(struct driver *d, int sig)
{
	unsigned int need = sig == SIGKILL ? ASKED_KILL : sig == SIGTERM ? ASKED_TERM :
			    sig == SIGABRT ? ASKED_HANG : sig == SIGHUP ? ASKED_HUP : 0;

	if (!(d->asked & need))
		FAIL("cqd died of signal %d (%s), which nobody sent", sig, strsignal(sig));
	if (sig == SIGKILL)
		d->daemon_kills++;
	if (sig == SIGABRT)
		d->hangs++;
	cqd_gone(d);
}

static void cqd_ended(struct driver *d, int code)
{
	if (code ? !d->bad_conf : !(d->asked & ASKED_TERM))
		FAIL("cqd ended by itself, exit status %d", code);
	if (!code)
		d->terms++;
	cqd_gone(d);
	sys_tell(&d->s, "go");
}

static void manager_line(struct driver *d)
{
	const char *line = d->s.line, *sp = strrchr(line, ' ');
	long last = sp ? strtol(sp + 1, NULL, 10) : 0;

	if (!strncmp(line, "started ", 8)) {
		cqd_started(d);
	} else if (!strncmp(line, "ready ", 6)) {
		if (!d->ready && d->gone_at)
			hist_add(&d->serving, now_us() - d->gone_at);
		d->gone_at = 0;
		d->ready = true;
		outage(false);
	} else if (!strncmp(line, "killed ", 7)) {
		cqd_killed(d, (int)last);
	} else if (!strncmp(line, "ended ", 6)) {
		cqd_ended(d, (int)last);
	} else if (!strncmp(line, "stored ", 7) || !strncmp(line, "removed ", 8)) {
		d->store = (unsigned int)last;
	}
}

/**
 * inject_pump() - listen to the manager, reap, for some time
 * @d:  driver
 * @ms: at least so long
 */
void inject_pump(struct driver *d, int ms)
{
	long long end = test_now_ms() + ms;
	int ret;

	do {
		ret = sys_line(&d->s, (int)MAX(1, MIN(20, end - test_now_ms())));
		if (!ret)
			manager_line(d);
		else if (ret != -ETIMEDOUT)
			FAIL("the service manager is gone");
		inject_reap(d);
		if (d->cont_at && now_us() >= d->cont_at) {
			syscall(SYS_pidfd_send_signal, d->cqd_fd, SIGCONT, NULL, 0);
			d->cont_at = 0;
			outage(!d->ready);
		}
		if (!d->ready && !d->cont_at && d->began_at + READY_MS * 1000ull < now_us())
			FAIL("cqd was started %d ms ago and is not ready", READY_MS);
	} while (test_now_ms() < end);
}

/**
 * inject_until_ready() - a cqd that serves
 * @d: driver
 */
void inject_until_ready(struct driver *d)
{
	while (!d->ready || d->cont_at)
		inject_pump(d, 1);
}

/* --- faults --- */

static void signal_cqd(struct driver *d, int sig, unsigned int asked)
{
	if (d->cqd_fd < 0)
		return;
	if (sig != SIGHUP)
		outage(true);
	d->asked |= asked;
	syscall(SYS_pidfd_send_signal, d->cqd_fd, sig, NULL, 0);
}

static void kill_worker(struct driver *d)
{
	struct chaos_worker *w = &chaos->w[chaos_below(&d->rng, d->workers)];

	if (!w->pid || kill(w->pid, SIGKILL))
		return;
	d->worker_kills++;
}

/* While it starts, within a few milliseconds of "ready", or at any time. */
static void kill_cqd(struct driver *d)
{
	signal_cqd(d, SIGKILL, ASKED_KILL);
	if (chaos_below(&d->rng, 4))
		return;
	while (d->asked)	/* until the next one has started */
		inject_pump(d, 1);
	usleep(chaos_below(&d->rng, 30000));
	d->early++;
	if (chaos_below(&d->rng, 4) == 0)
		signal_cqd(d, SIGHUP, ASKED_HUP);
	signal_cqd(d, SIGKILL, ASKED_KILL);
}

static void stop_cqd(struct driver *d, bool hang)
{
	uint32_t us = hang ? WATCHDOG_US + 400000 : 20000 + chaos_below(&d->rng, 600000);

	signal_cqd(d, SIGSTOP, hang ? ASKED_HANG : 0);
	d->cont_at = now_us() + us;
	d->stops += !hang;
}

static void disturb_cqd(struct driver *d)
{
	uint32_t what = chaos_below(&d->rng, 100);

	if (d->cont_at || d->cqd_fd < 0)
		return;
	/* by number, since there are few of them in a short run */
	if (d->ready && ++d->disturbed % HANG_EVERY == 0)
		stop_cqd(d, true);
	else if (what < 82)
		kill_cqd(d);
	else if (what < 90)
		signal_cqd(d, SIGTERM, ASKED_TERM);
	else if (d->ready)
		stop_cqd(d, false);
}

/* Put a file in place that is whole at every moment. */
static void write_conf(struct driver *d, const struct sys_opts *o, const char *more)
{
	struct sys s = d->s;
	FILE *f;

	snprintf(s.conf, sizeof(s.conf), "%.290s.new", d->s.conf);
	sys_write_conf(&s, o);
	f = fopen(s.conf, "ae");
	ASSERT(f);
	fputs(more, f);
	fclose(f);
	ASSERT_SYS(rename(s.conf, d->s.conf));
}

static void reload(struct driver *d)
{
	static const char *const good[] = { "", "[namespace green]\nuid = 64109\n",
		"[namespace green]\nuid = 64109\nquota_pages = 3\n# comment\n" };
	static const char *const bad[] = { "nonsense\n", "[namespace red]\nuid = 1\n",
		"[daemon]\npool_bytes = 1\n", "[namespace x]\nquota_bytes = 10Q\n", "[unclosed\n" };

	if (!d->ready || d->asked || d->cont_at)
		return;
	if (chaos_below(&d->rng, 3)) {
		write_conf(d, &chaos_opts, good[chaos_below(&d->rng, ARRAY_SIZE(good))]);
		signal_cqd(d, SIGHUP, 0);
	} else {
		d->bad_conf = true;
		write_conf(d, &chaos_opts, bad[chaos_below(&d->rng, ARRAY_SIZE(bad))]);
		signal_cqd(d, SIGHUP, 0);
		inject_pump(d, 60);
		write_conf(d, &chaos_opts, "");
		d->bad_conf = false;
	}
	d->reloads++;
}

static pid_t *rabble_place(struct driver *d)
{
	unsigned int i;

	for (i = 0; i < MAX_RABBLE; i++)
		if (!d->rabble[i])
			return &d->rabble[i];
	return NULL;
}

static void start_rabble(struct driver *d)
{
	uint32_t who = chaos_below(&d->rng, 3);
	uint64_t seed = chaos_random(&d->rng);
	uid_t uid = who == 0 ? SYS_UID_A : who == 1 ? STRANGER_UID : 0;
	pid_t *at = rabble_place(d);

	if (!at)
		return;
	*at = inject_fork(d, uid);
	if (!*at)
		rabble_main(d->s.sock, who == 2 ? d->s.admin : NULL, seed);
}

static void start_ctl(struct driver *d)
{
	static const char *const what[] = { "status", "verify", "ping", "list" };
	const char *cmd = what[chaos_below(&d->rng, ARRAY_SIZE(what))];
	char path[512];
	pid_t *at = rabble_place(d);
	int null;

	if (!at)
		return;
	d->ctl_runs++;
	*at = inject_fork(d, getuid());
	if (*at)
		return;
	snprintf(path, sizeof(path), "%s/cqctl", sys_build());
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		_exit(1);
	execl(path, "cqctl", "--socket", d->s.admin, "--json", cmd, (char *)NULL);
	_exit(1);
}

/**
 * inject_rabble_end() - clients that still run get no more time
 * @d: driver
 */
void inject_rabble_end(struct driver *d)
{
	unsigned int i;

	for (i = 0; i < MAX_RABBLE; i++)
		if (d->rabble[i])
			kill(d->rabble[i], SIGKILL);
	for (i = 0; i < MAX_RABBLE; i++)
		while (d->rabble[i])
			inject_pump(d, 1);
}

/* Is it time for what happens every @mean ms on average? Sets the next time. */
static bool due(struct driver *d, long long *at, unsigned int mean)
{
	long long now = test_now_ms();

	if (!*at)
		*at = now + chaos_below(&d->rng, 2 * mean);
	if (now < *at)
		return false;
	*at = now + chaos_below(&d->rng, 2 * mean);
	return true;
}

/**
 * inject_step() - what is due now, by the phase
 * @d: driver
 */
void inject_step(struct driver *d)
{
	static long long worker, cqd, conf, rabble, ctl;
	uint32_t phase = chaos_phase();

	inject_pump(d, 5);
	if (phase == PHASE_DRAIN)
		return;
	/* load, not faults: what is quiet and what is not differ by faults alone */
	if (due(d, &rabble, RABBLE_MS))
		start_rabble(d);
	if (due(d, &ctl, CTL_MS))
		start_ctl(d);
	if (phase == PHASE_QUIET)
		return;
	if (due(d, &worker, WORKER_KILL_MS))
		kill_worker(d);
	if (due(d, &conf, RELOAD_MS))
		reload(d);
	if (phase == PHASE_CHAOS && due(d, &cqd, DAEMON_MS))
		disturb_cqd(d);
}
