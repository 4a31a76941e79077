// SPDX-License-Identifier: MIT
/*
 * cq-chaos: phases of a run and its report. Progress goes to stderr every 10 s,
 * a JSON record to a file, and the counts to the last line of stdout. The exit
 * status is 0 only if nothing was lost, wrong or leaked.
 */
#include <ftw.h>
#include <getopt.h>
#include <jansson.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include "tests/chaos/driver.h"

#define ATTACH_RATIO	3	/* of p99 in chaos to quiet: said, not enforced */
#define QUIET_ATTACHES	2000	/* 20 of them are beyond the p99 */
#define POOL "pool_bytes = 3M\nsegment_min = 256k\nsegment_max = 1M\nverify_rate = 32M\n"

struct chaos_shared *chaos;
struct chaos_worker *chaos_me;
const struct synth chaos_model = MODEL;
struct driver driver = { .seed = 1, .minutes = 10, .workers = 8, .cqd_fd = -1 };

/* Quotas that sometimes bind before the pool does; arenas count too. */
const struct sys_opts chaos_opts = {
	.model = &chaos_model,
	.daemon = POOL,
	.red = "quota_bytes = 7M\nquota_pins = 4000\n",
	.blue = "quota_bytes = 8M\nsalt = chaos\n",
	.manager = { "-w", WATCHDOG_ARG },
};

static const char *const phase_name[] = { "quiet", "chaos", "long life", "drain" };
static char dir[256];

/* --- failure --- */

static void show_tail(const char *path)
{
	char line[1200];
	FILE *f = fopen(path, "re");

	if (f && fseek(f, -3000, SEEK_END) == 0 && !fgets(line, sizeof(line), f))
		rewind(f);
	while (f && fgets(line, sizeof(line), f))
		fprintf(stderr, "chaos: cqd: %s", line);
	if (f)
		fclose(f);
}

static void show_workers(void)
{
	unsigned int i;

	for (i = 0; i < driver.workers; i++)
		fprintf(stderr, "chaos: worker %u: pid %d, life %u, %s%s%s\n", i,
			(int)chaos->w[i].pid, chaos->w[i].generation, chaos->w[i].doing,
			chaos->w[i].why[0] ? ": " : "", chaos->w[i].why);
}

static void print_counts(const struct audit *a);

void chaos_die(const char *file, int line, const char *fmt, ...)
{
	static const struct audit none;
	char text[1400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (chaos_me) {
		snprintf(chaos_me->why, sizeof(chaos_me->why), "%s:%d: %.400s", file, line, text);
		_exit(3);
	}
	if (!chaos || getpid() != getpgrp()) {
		fprintf(stderr, "chaos: %s:%d: %s\n", file, line, text);
		_exit(3);
	}
	show_workers();
	show_tail(driver.s.log);
	fprintf(stderr, "chaos: FAILED: seed %llu, phase %s, after %lld s: %s:%d: %s\n"
		"chaos: the evidence is in %s\n", (unsigned long long)driver.seed,
		phase_name[chaos_phase()], (test_now_ms() - driver.start_ms) / 1000, file, line,
		text, dir);
	print_counts(&none);
	fflush(stdout);
	/* what it started ends with it: PR_SET_PDEATHSIG */
	_exit(1);
}

const char *test_dir(void)
{
	const char *tmp = getenv("TMPDIR");

	if (!dir[0]) {
		snprintf(dir, sizeof(dir), "%s/cq-chaos-XXXXXX", tmp ? tmp : "/tmp");
		ASSERT(mkdtemp(dir));
	}
	return dir;
}

static int unlink_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
	(void)sb;
	(void)type;
	(void)ftw;
	return remove(path);
}

/* --- figures --- */

static size_t hist_bucket(uint64_t us)
{
	unsigned int octave;

	if (us < 16)
		return us;
	octave = 63 - (unsigned int)__builtin_clzll(us);
	return MIN((octave - 3) * 16 + (us >> (octave - 4) & 15), HIST_BUCKETS - 1);
}

void hist_add(struct hist *h, uint64_t us)
{
	uint64_t most = atomic_load_explicit(&h->most, memory_order_relaxed);

	atomic_fetch_add_explicit(&h->n[hist_bucket(us)], 1, memory_order_relaxed);
	while (us > most && !atomic_compare_exchange_weak(&h->most, &most, us))
		;
}

uint64_t hist_count(const struct hist *h)
{
	uint64_t n = 0;
	size_t i;

	for (i = 0; i < HIST_BUCKETS; i++)
		n += chaos_get(&h->n[i]);
	return n;
}

/* Middle of a bucket, microseconds. */
static double bucket_us(size_t i)
{
	if (i < 16)
		return (double)i;
	return ((double)(16 + i % 16) + 0.5) * (double)(1ull << (i / 16 - 1));
}

double hist_quantile2(const struct hist *a, const struct hist *b, double q)
{
	uint64_t n = hist_count(a) + (b ? hist_count(b) : 0), seen = 0;
	size_t i;

	for (i = 0; i < HIST_BUCKETS && n; i++) {
		seen += chaos_get(&a->n[i]) + (b ? chaos_get(&b->n[i]) : 0);
		if ((double)seen >= q * (double)n)
			return bucket_us(i);
	}
	return 0;
}

double hist_quantile(const struct hist *h, double q)
{
	return hist_quantile2(h, NULL, q);
}

static double attach_quiet(double q)
{
	return hist_quantile(&chaos->attach[PHASE_QUIET], q);
}

static double attach_chaos(double q)
{
	return hist_quantile2(&chaos->attach[PHASE_CHAOS], &chaos->attach[PHASE_LONG], q);
}

static double most_ms(const struct hist *h)
{
	uint64_t most = MAX(chaos_get(&h[PHASE_CHAOS].most), chaos_get(&h[PHASE_LONG].most));

	return (double)most / 1000;
}

/* --- report --- */

static void print_counts(const struct audit *a)
{
	printf("chaos: seed %llu, %lld s, %llu worker kills, %llu daemon kills, %llu reloads, "
	       "%llu watchdog hangs, %llu attention results checked, %llu stale, %llu lost, "
	       "%llu wrong, %llu leaked\n", (unsigned long long)driver.seed,
	       (test_now_ms() - driver.start_ms) / 1000,
	       (unsigned long long)driver.worker_kills, (unsigned long long)driver.daemon_kills,
	       (unsigned long long)driver.reloads, (unsigned long long)driver.hangs,
	       (unsigned long long)chaos_get(&chaos->checked),
	       (unsigned long long)chaos_get(&chaos->stale),
	       (unsigned long long)(chaos_get(&chaos->lost) + a->lost),
	       (unsigned long long)chaos_get(&chaos->wrong), (unsigned long long)a->leaked);
}

static void print_progress(void)
{
	fprintf(stderr, "chaos: %3lld s %-9s kills %llu+%llu, terms %llu, hangs %llu, reloads "
		"%llu; opened %llu (%llu pages found), sealed %llu, evicted %llu, checked %llu, "
		"handed over %llu, no room %llu, arena full %llu, away %llu; attach p50 %.0f "
		"us, p99 %.0f us (quiet %.0f, %.0f)\n",
		(test_now_ms() - driver.start_ms) / 1000, phase_name[chaos_phase()],
		(unsigned long long)driver.worker_kills, (unsigned long long)driver.daemon_kills,
		(unsigned long long)driver.terms, (unsigned long long)driver.hangs,
		(unsigned long long)driver.reloads,
		(unsigned long long)chaos_get(&chaos->opened),
		(unsigned long long)chaos_get(&chaos->matched),
		(unsigned long long)chaos_get(&chaos->sealed),
		(unsigned long long)chaos_get(&chaos->evictions),
		(unsigned long long)chaos_get(&chaos->checked),
		(unsigned long long)chaos_get(&chaos->passed),
		(unsigned long long)chaos_get(&chaos->no_room),
		(unsigned long long)chaos_get(&chaos->full),
		(unsigned long long)chaos_get(&chaos->away), attach_chaos(0.5),
		attach_chaos(0.99), attach_quiet(0.5), attach_quiet(0.99));
}

#define SERVED(a, b, q) \
	hist_quantile2(&chaos->served[PHASE_##a], &chaos->served[PHASE_##b], q)

static double attach_ratio(void)
{
	return attach_chaos(0.99) / attach_quiet(0.99);
}

static void print_attach(void)
{
	fprintf(stderr, "chaos: attach p50 %.0f us quiet (%llu of them), %.0f us in chaos; p99 "
		"%.0f and %.0f us, ratio %.2f: at most %d is %s\n", attach_quiet(0.5),
		(unsigned long long)hist_count(&chaos->attach[PHASE_QUIET]), attach_chaos(0.5),
		attach_quiet(0.99), attach_chaos(0.99), attach_ratio(), ATTACH_RATIO,
		hist_count(&chaos->attach[PHASE_QUIET]) < QUIET_ATTACHES ?
		"not measured, the quiet ones are too few" :
		attach_ratio() <= ATTACH_RATIO ? "met" : "not met");
	fprintf(stderr, "chaos: attach while cqd served: p50 %.0f us quiet, %.0f us in chaos; p99 "
		"%.0f and %.0f us, ratio %.2f (%llu of %llu)\n", SERVED(QUIET, QUIET, 0.5),
		SERVED(CHAOS, LONG, 0.5), SERVED(QUIET, QUIET, 0.99), SERVED(CHAOS, LONG, 0.99),
		SERVED(CHAOS, LONG, 0.99) / SERVED(QUIET, QUIET, 0.99),
		(unsigned long long)(hist_count(&chaos->served[PHASE_CHAOS]) +
				     hist_count(&chaos->served[PHASE_LONG])),
		(unsigned long long)(hist_count(&chaos->attach[PHASE_CHAOS]) +
				     hist_count(&chaos->attach[PHASE_LONG])));
}

static void print_names(void)
{
	fprintf(stderr, "chaos: names: %llu made, %llu replaced, %llu handed over and compared, "
		"%llu expired, %llu settled after a death in between\n",
		(unsigned long long)chaos_get(&chaos->published),
		(unsigned long long)chaos_get(&chaos->replaced),
		(unsigned long long)chaos_get(&chaos->passed),
		(unsigned long long)chaos_get(&chaos->expired),
		(unsigned long long)chaos_get(&chaos->unsure));
}

static void print_end(const struct audit *a)
{
	uint64_t slept = hist_count(&chaos->blocked[PHASE_CHAOS]) +
			 hist_count(&chaos->blocked[PHASE_LONG]);

	print_attach();
	print_names();
	fprintf(stderr, "chaos: token loop: p99.9 %.2f ms, longest %.2f ms; of tokens that slept "
		"(%llu): longest %.2f ms; the machine's own longest pause %.2f ms\n",
		hist_quantile2(&chaos->token[PHASE_CHAOS], &chaos->token[PHASE_LONG], 0.999) / 1e3,
		most_ms(chaos->token), (unsigned long long)slept, most_ms(chaos->blocked),
		most_ms(chaos->pause));
	fprintf(stderr, "chaos: serving again after p50 %.1f ms, p99 %.1f ms, worst %.1f ms\n",
		hist_quantile(&driver.serving, 0.5) / 1e3,
		hist_quantile(&driver.serving, 0.99) / 1e3,
		(double)chaos_get(&driver.serving.most) / 1e3);
	fprintf(stderr, "chaos: at the end %llu pages in %llu segments, all read; %llu lines of "
		"log, all explained\n", (unsigned long long)a->pages,
		(unsigned long long)a->segments, (unsigned long long)a->log_lines);
}

static json_t *json_hist(const struct hist *a, const struct hist *b)
{
	return json_pack("{s:I, s:f, s:f, s:f, s:f}", "n",
			 (json_int_t)(hist_count(a) + (b ? hist_count(b) : 0)), "p50_us",
			 hist_quantile2(a, b, 0.5), "p99_us", hist_quantile2(a, b, 0.99),
			 "p999_us", hist_quantile2(a, b, 0.999), "max_us",
			 (double)MAX(chaos_get(&a->most), b ? chaos_get(&b->most) : 0));
}

static json_t *json_counts(const struct audit *a)
{
	const struct {
		const char *name;
		uint64_t n;
	} c[] = {
		{ "seed", driver.seed },
		{ "seconds", (uint64_t)(test_now_ms() - driver.start_ms) / 1000 },
		{ "workers", driver.workers },
		{ "worker_kills", driver.worker_kills },
		{ "daemon_kills", driver.daemon_kills },
		{ "kills_during_start", driver.early },
		{ "terms", driver.terms }, { "watchdog_hangs", driver.hangs },
		{ "short_stops", driver.stops }, { "reloads", driver.reloads },
		{ "cqctl_runs", driver.ctl_runs }, { "rude_clients", chaos_get(&chaos->rabble) },
		{ "opened", chaos_get(&chaos->opened) },
		{ "pages_matched", chaos_get(&chaos->matched) },
		{ "sealed", chaos_get(&chaos->sealed) },
		{ "evictions_seen", chaos_get(&chaos->evictions) },
		{ "regained", chaos_get(&chaos->regained) },
		{ "forks", chaos_get(&chaos->forks) }, { "cuts", chaos_get(&chaos->cuts) },
		{ "handed_over", chaos_get(&chaos->passed) },
		{ "names_made", chaos_get(&chaos->published) },
		{ "names_replaced", chaos_get(&chaos->replaced) },
		{ "names_settled", chaos_get(&chaos->unsure) },
		{ "names_expired", chaos_get(&chaos->expired) },
		{ "no_room", chaos_get(&chaos->no_room) },
		{ "arena_full", chaos_get(&chaos->full) }, { "away", chaos_get(&chaos->away) },
		{ "checked", chaos_get(&chaos->checked) },
		{ "worst_error_ppm", chaos_get(&chaos->worst_ppm) },
		{ "stale", chaos_get(&chaos->stale) },
		{ "lost", chaos_get(&chaos->lost) + a->lost },
		{ "wrong", chaos_get(&chaos->wrong) }, { "leaked", a->leaked },
		{ "pages_at_end", a->pages }, { "segments_at_end", a->segments },
	};
	json_t *o = json_object();
	size_t i;

	for (i = 0; i < ARRAY_SIZE(c); i++)
		json_object_set_new(o, c[i].name, json_integer((json_int_t)c[i].n));
	return o;
}

static void write_json(const struct audit *a)
{
	json_t *o = json_counts(a);
	char path[512];

	json_object_set_new(o, "attach_quiet", json_hist(&chaos->attach[PHASE_QUIET], NULL));
	json_object_set_new(o, "attach_p99_ratio", json_real(attach_ratio()));
	json_object_set_new(o, "attach_chaos", json_hist(&chaos->attach[PHASE_CHAOS],
							 &chaos->attach[PHASE_LONG]));
	json_object_set_new(o, "attach_served", json_hist(&chaos->served[PHASE_CHAOS],
							  &chaos->served[PHASE_LONG]));
	json_object_set_new(o, "token", json_hist(&chaos->token[PHASE_CHAOS],
						  &chaos->token[PHASE_LONG]));
	json_object_set_new(o, "token_that_slept", json_hist(&chaos->blocked[PHASE_CHAOS],
							     &chaos->blocked[PHASE_LONG]));
	json_object_set_new(o, "machine_pause", json_hist(&chaos->pause[PHASE_CHAOS],
							  &chaos->pause[PHASE_LONG]));
	json_object_set_new(o, "serving_again", json_hist(&driver.serving, NULL));
	snprintf(path, sizeof(path), "%s/chaos.json", sys_build());
	if (json_dump_file(o, path, JSON_COMPACT))
		FAIL("%s: cannot be written", path);
	json_decref(o);
}

/* --- phases --- */

/* A clock that does nothing else: how late it wakes up is the machine's doing. */
__attribute__((noreturn))
static void clock_main(void)
{
	const struct timespec ms = { .tv_nsec = 1000000 };
	uint64_t start, took;

	for (;;) {
		start = now_us();
		nanosleep(&ms, NULL);
		took = now_us() - start;
		hist_add(&chaos->pause[chaos_phase()], took > 1000 ? took - 1000 : 0);
	}
}

static void enter(enum chaos_phase phase)
{
	atomic_store(&chaos->phase, (uint32_t)phase);
	print_progress();
}

static bool enough(const struct driver *d, enum chaos_phase phase, bool late,
		   unsigned int worker_kills, unsigned int daemon_kills)
{
	if (phase == PHASE_QUIET)	/* a slow machine has a ratio that says less */
		return late || hist_count(&chaos->attach[PHASE_QUIET]) >= QUIET_ATTACHES;
	return d->worker_kills >= worker_kills && d->daemon_kills >= daemon_kills;
}

/* At least @s seconds, at least so many faults, and not for ever. */
static void run_phase(struct driver *d, enum chaos_phase phase, unsigned int s,
		      unsigned int worker_kills, unsigned int daemon_kills)
{
	long long start = test_now_ms(), end = start + s * 1000ll, last = start;
	long long most = start + 2 * s * 1000ll + 60000;

	enter(phase);
	while (test_now_ms() < end ||
	       !enough(d, phase, test_now_ms() > end + s * 1000ll, worker_kills, daemon_kills)) {
		inject_step(d);
		if (test_now_ms() > most)
			FAIL("%llu and %llu kills in %lld s are too few",
			     (unsigned long long)d->worker_kills,
			     (unsigned long long)d->daemon_kills, (most - start) / 1000);
		if (test_now_ms() - last < 10000)
			continue;
		last = test_now_ms();
		print_progress();
	}
}

static void drain(struct driver *d)
{
	long long end = test_now_ms() + 60000;

	inject_until_ready(d);
	inject_rabble_end(d);
	enter(PHASE_DRAIN);
	atomic_store(&chaos->stop, true);
	while (!inject_workers_gone(d)) {
		inject_pump(d, 10);
		if (test_now_ms() > end)
			FAIL("workers do not end");
	}
	inject_until_ready(d);
}

static void end_all(struct driver *d, struct audit *a)
{
	int status;

	kill(d->clock, SIGKILL);
	waitpid(d->clock, &status, 0);
	sys_stop(&d->s);
	close(d->cqd_fd);
	if (waitpid(-1, &status, WNOHANG) >= 0 || errno != ECHILD) {
		fprintf(stderr, "chaos: leaked: a process\n");
		a->leaked++;
	}
	audit_log(d, a);
}

static void start_all(struct driver *d)
{
	sys_start(&d->s, &chaos_opts);
	/* "started" and "ready" were read by sys_start() */
	d->ready = true;
	d->cqd_fd = (int)syscall(SYS_pidfd_open, d->s.cqd, 0);
	ASSERT_SYS(d->cqd_fd);
	if (text_init(d->s.model))
		FAIL("%s: cannot be read", d->s.model);
	d->clock = inject_fork(d, getuid());
	if (!d->clock)
		clock_main();
	inject_workers_start(d);
}

/* --- options --- */

static void usage(void)
{
	fputs("Usage: cq-chaos [--seed N] [--minutes N | --short] [--workers N]\n"
	      "Kill cqd and its workers at random and compare every result.\n\n"
	      "  --seed N      of the random numbers (1)\n"
	      "  --minutes N   at least so long, and 1,000 kills of workers, 200 of cqd (10)\n"
	      "  --short       90 s, 100 and 20 kills\n"
	      "  --workers N   at the same time (8)\n", stderr);
	exit(2);
}

static unsigned int number(const char *text, unsigned int least, unsigned int most)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*end || !*text || n < least || n > most)
		usage();
	return (unsigned int)n;
}

static void parse(struct driver *d, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "minutes", required_argument, NULL, 'm' },
		{ "workers", required_argument, NULL, 'w' },
		{ "short", no_argument, NULL, 'q' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	d->seconds = 600;
	d->min_worker_kills = 1000;
	d->min_daemon_kills = 200;
	while ((c = getopt_long(argc, argv, "", longs, NULL)) >= 0) {
		if (c == 's') {
			d->seed = number(optarg, 0, UINT32_MAX);
		} else if (c == 'm') {
			d->seconds = 60 * number(optarg, 1, 10000);
		} else if (c == 'w') {
			d->workers = number(optarg, 1, MAX_WORKERS);
		} else if (c == 'q') {
			d->seconds = 90;
			d->min_worker_kills = 100;
			d->min_daemon_kills = 20;
		} else {
			usage();
		}
	}
	if (optind < argc)
		usage();
	optind = 0;	/* the service manager has options too */
	d->rng = d->seed;
}

static void prepare(void)
{
	const struct rlimit none = { 0, 0 };

	setpgid(0, 0);
	setrlimit(RLIMIT_CORE, &none);	/* the watchdog ends a hang by SIGABRT */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	signal(SIGPIPE, SIG_IGN);
	chaos = mmap(NULL, sizeof(*chaos), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	ASSERT(chaos != MAP_FAILED);
	if (!sys_root())
		fputs("chaos: not root: cqd and all workers run under one uid, in one "
		      "namespace\n", stderr);
}

int main(int argc, char **argv)
{
	struct driver *d = &driver;
	struct audit a = { 0 };
	bool bad;

	parse(d, argc, argv);
	prepare();
	d->start_ms = test_now_ms();
	start_all(d);
	run_phase(d, PHASE_QUIET, d->seconds / 8, 0, 0);
	run_phase(d, PHASE_CHAOS, d->seconds * 6 / 8, d->min_worker_kills * 3 / 4,
		  d->min_daemon_kills);
	inject_until_ready(d);
	run_phase(d, PHASE_LONG, d->seconds / 8, d->min_worker_kills, 0);
	drain(d);
	audit_run(d, &a);
	end_all(d, &a);
	print_end(&a);
	write_json(&a);
	bad = chaos_get(&chaos->stale) || chaos_get(&chaos->lost) || chaos_get(&chaos->wrong) ||
	      a.lost || a.leaked;
	if (!bad)
		nftw(dir, unlink_one, 16, FTW_DEPTH | FTW_PHYS);
	else
		fprintf(stderr, "chaos: the evidence is in %s\n", dir);
	print_counts(&a);
	return bad;
}
