// SPDX-License-Identifier: MIT
/*
 * cqd that dies before its n-th store to the index or to a state word, again
 * and again, while four workers publish, hold, attach and let go and an
 * administrator loads and unloads a model. Every crash is at a place where the
 * memory is half changed; every fourth and the one after are in the restart
 * itself, if that has anything to store.
 *
 * CQ_CRASH_KILLS=n in the environment changes the number of kills.
 */
#include "tests/stores.h"
#include "tests/system/stores_ctl.h"
#include "tests/system/work.h"

#define WORKERS	4
#define HELD	3	/* sequences that a worker keeps: its first and the latest */
#define PAGES	3
#define TOKENS	(64 * PAGES)
#define SHARED	100	/* texts that all workers write */
#define SAMPLE	7	/* every so many-th text is compared with a clean daemon's */

static struct sys s;
static struct stores_ctl *ctl;
static const struct synth small = SYNTH_SMALL;
static const struct synth other = { .layers = 2, .heads = 4, .kv_heads = 2, .dim = 64,
				    .sinks = 4, .window = 64, .max_position = 32768,
				    .code = "4c8b", .seed = 2 };

/* --- workers --- */

struct held {
	struct cq_seq *seq;
	uint32_t text;
	float *o;
};

static uint32_t text_of(unsigned int worker, uint32_t n)
{
	return n % 4 == 3 ? SHARED + n / 4 : 10000 * (worker + 1) + n;
}

static void seal(struct cq_seq *seq)
{
	int ret;

	do {
		ret = cq_seal(seq, 2000);
	} while (ret == -ENOTCONN || ret == -ETIMEDOUT);
	WORK_OK(ret);
}

/* Held is held: the same answer as at first, never -ESTALE. */
static void check_held(struct work *w, const struct held *h)
{
	memset(w->o, 0xff, work_row(w));
	WORK_OK(work_attend(w, h->seq, h->text, w->o));
	ASSERT_MEMEQ(w->o, h->o, work_row(w));
}

static void publish(struct work *w, struct held *h, uint32_t text)
{
	if (h->seq)
		cq_seq_close(h->seq);
	h->text = text;
	h->seq = work_seq(w, text, TOKENS + 1);
	work_feed(w, h->seq, text, TOKENS);
	seal(h->seq);
	WORK_OK(work_attend(w, h->seq, text, h->o));
}

/* Says how many texts it was told are published. */
static void worker(int fd, void *arg)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	unsigned int me = *(unsigned int *)arg, i;
	struct held held[HELD] = { { NULL, 0, NULL } };
	struct work w;
	uint32_t n;

	work_open(&w, &s, &small, 0, 0);
	for (i = 0; i < HELD; i++)
		held[i].o = malloc(work_row(&w));
	sys_say(fd, 'w');
	for (n = 0; poll(&p, 1, 0) == 0; n++) {
		publish(&w, &held[n ? 1 + n % (HELD - 1) : 0], text_of(me, n));
		for (i = 0; i < HELD; i++)
			if (held[i].seq)
				check_held(&w, &held[i]);
	}
	sys_hear(fd, 'q');
	for (i = 0; i < HELD; i++) {
		if (held[i].seq)
			cq_seq_close(held[i].seq);
		free(held[i].o);
	}
	ASSERT_EQ(write(fd, &n, sizeof(n)), sizeof(n));
	work_close(&w);
}

/* --- an administrator: nothing here must succeed, everything may be cut short --- */

static bool load(const char *path)
{
	Cqp__Load body = CQP__LOAD__INIT;
	DECLARE_MSG(msg, LOAD, load, body);
	int fd = wire_open(s.admin), file = open(path, O_RDONLY | O_CLOEXEC), ret = -1;
	char name[] = "spare";

	ASSERT_SYS(file);
	body.name = name;
	if (fd >= 0)
		ret = wire_code(wire_call(fd, &msg, &file, 1, NULL));
	close(file);
	if (fd >= 0)
		close(fd);
	return ret == 0;
}

static bool unload(void)
{
	Cqp__Unload body = CQP__UNLOAD__INIT;
	DECLARE_MSG(msg, UNLOAD, unload, body);
	int fd = wire_open(s.admin), ret;
	char name[] = "spare";

	if (fd < 0)
		return false;
	body.name = name;
	ret = wire_code(wire_call(fd, &msg, NULL, 0, NULL));
	close(fd);
	return ret == 0;
}

/* A page of that model, so that unloading it has something to drop. */
static void use_spare(void)
{
	struct cq_open_opts oo = { .sz = sizeof(oo), .socket = s.sock, .name = "spare" };
	struct cq_model_opts mo = { .sz = sizeof(mo), .device = CQ_DEVICE_HOST };
	struct cq_seq_opts so = { .sz = sizeof(so) };
	struct cq_seq *seq;
	struct work w;

	memset(&w, 0, sizeof(w));
	work_buffers(&w, &other);
	if (!cq_open(&oo, &w.ctx) && !cq_model_open(w.ctx, "spare", &mo, &w.model) &&
	    !cq_seq_open(w.model, NULL, 0, &so, &seq)) {
		work_feed(&w, seq, 7, TOKENS);
		cq_seal(seq, 500);
		cq_seq_close(seq);
	}
	work_close(&w);
}

static void administrator(int fd, void *arg)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint32_t n = 0;

	while (poll(&p, 1, 0) == 0) {
		if (load(arg))
			use_spare();
		n += unload();
	}
	sys_hear(fd, 'q');
	ASSERT_EQ(write(fd, &n, sizeof(n)), sizeof(n));
}

/* --- the kills --- */

static unsigned int kills_wanted(unsigned int otherwise)
{
	const char *env = getenv("CQ_CRASH_KILLS");
	long n = env ? strtol(env, NULL, 10) : 0;

	return n > 0 && n < STORES_STARTS ? (unsigned int)n : otherwise;
}

/*
 * 1, 2, 3, ...; in between further on, where workers are under way; and after
 * each such one the first two stores of the restart.
 */
static void schedule(unsigned int kills)
{
	uint64_t x = 1;
	unsigned int i;

	for (i = 0; i < kills; i++) {
		x = synth_mix(x);
		ctl->die_at[i] = i % 4 == 0 ? 1 + i / 4 : i % 4 == 1 ? 100 + x % 1500 :
				 i % 4 - 1;
	}
}

static void make_ctl(void)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "%s/stores", test_dir());
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	ASSERT_SYS(fd);
	ASSERT_SYS(fchmod(fd, 0666));
	ASSERT_SYS(ftruncate(fd, sizeof(*ctl)));
	ctl = stores_mmap(NULL, sizeof(*ctl), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT(ctl != MAP_FAILED);
	close(fd);
	setenv("CQ_STORES_CTL", path, 1);
}

/* Until the manager has told of @kills deaths; how many came before readiness. */
static unsigned int watch(unsigned int kills, unsigned int *in_a_row)
{
	unsigned int early = 0, row = 0;
	bool ready = true;

	*in_a_row = 0;
	while (kills) {
		if (sys_line(&s, 2 * SYS_DEADLINE)) {
			sys_show_log(&s);
			FAIL("%u kills are missing", kills);
		}
		if (!strncmp(s.line, "ended ", 6))
			FAIL("cqd ended: %s", s.line);
		if (!strncmp(s.line, "started ", 8))
			ready = false;
		if (!strncmp(s.line, "ready ", 6))
			ready = true;
		if (strncmp(s.line, "killed ", 7))
			continue;
		kills--;
		early += !ready;
		row = ready ? 0 : row + 1;
		*in_a_row = MAX(*in_a_row, row);
	}
	return early;
}

/* Workers and administrator until all kills are done. Texts of each in @n. */
static void run_kills(const struct sys_opts *opts, unsigned int kills, uint32_t n[WORKERS])
{
	unsigned int i, early, row, me[WORKERS];
	struct sys_peer p[WORKERS + 1];
	char spare[300];
	uint32_t unloads = 0;

	make_ctl();
	sys_start(&s, opts);
	snprintf(spare, sizeof(spare), "%s/spare.cqm", test_dir());
	ASSERT_OK(synth_model(&other, spare, NULL));
	schedule(kills);
	ctl->starts = 0;
	for (i = 0; i < WORKERS; i++) {
		me[i] = i;
		sys_spawn(&p[i], i & 1 ? SYS_UID_B : SYS_UID_A, worker, &me[i]);
		sys_hear(p[i].fd, 'w');
	}
	sys_spawn(&p[i], 0, administrator, spare);
	ASSERT_SYS(kill(s.cqd, SIGKILL));	/* the first that the schedule does not kill */
	early = watch(kills + 1, &row);
	sys_expect(&s, "ready ");
	for (i = 0; i <= WORKERS; i++)
		sys_say(p[i].fd, 'q');
	for (i = 0; i <= WORKERS; i++) {
		ASSERT_EQ(read(p[i].fd, i < WORKERS ? &n[i] : &unloads, sizeof(*n)), sizeof(*n));
		sys_join(&p[i]);
	}
	printf("# %u kills, %u before readiness (%u in a row), %llu stores, %u unloads, "
	       "texts: %u %u %u %u\n", kills, early, row, (unsigned long long)ctl->stores,
	       unloads, n[0], n[1], n[2], n[3]);
	ASSERT_GE(row, kills >= 20 ? 2 : 0);
	SYS_UNTIL(&s, st.clients == 0 && st.pages_filling == 0);
	ASSERT_EQ(sys_check_index(&s), 0);
}

/* A pool much smaller than what is written: held pages stay, others go. */
TEST_LIMIT(held_pages_survive_any_crash, 240)
{
	static const struct sys_opts tight = { .program = "tests/system/cqd_stores",
		.daemon = "pool_bytes = 4M\nhigh = 80\nlow = 60\n", .red = "quota_bytes = 128M" };
	uint32_t n[WORKERS];
	uint64_t written = 0;
	Cqp__StatusOk st;
	unsigned int i;

	if (!STORES_WORK)
		SKIP("stores cannot be watched one by one here");
	run_kills(&tight, kills_wanted(100), n);
	sys_status(&s, &st);
	for (i = 0; i < WORKERS; i++)
		written += PAGES * n[i] * 3 / 4;
	printf("# %llu pages are left of more than %llu\n",
	       (unsigned long long)st.pages_sealed, (unsigned long long)written);
	ASSERT_LT(st.pages_sealed, written);
	sys_stop(&s);
	munmap(ctl, sizeof(*ctl));
}

/* --- a pool that has room: what was acknowledged is there --- */

struct texts {
	const uint32_t *n;
	bool write, sample;
};

static void each_text(struct work *w, const struct texts *t, unsigned int i, int fd)
{
	uint32_t k, text;
	struct cq_seq *seq;

	for (k = 0; k < t->n[i]; k++) {
		text = text_of(i, k);
		if (t->sample && k % SAMPLE)
			continue;
		if (t->write)
			work_publish(w, text, TOKENS);
		seq = work_seq(w, text, TOKENS + 1);
		ASSERT_EQ(cq_seq_length(seq), TOKENS);
		if (t->sample) {
			WORK_OK(work_attend(w, seq, text, w->o));
			ASSERT_EQ(write(fd, w->o, work_row(w)), work_row(w));
		}
		cq_seq_close(seq);
	}
}

static void reader(int fd, void *arg)
{
	struct work w;
	unsigned int i;

	work_open(&w, &s, &small, 0, 0);
	for (i = 0; i < WORKERS; i++)
		each_text(&w, arg, i, fd);
	work_close(&w);
}

/* Attention over a sample of the texts, as a worker gets it that attaches. */
static size_t outputs(const struct texts *t, uint8_t **out)
{
	size_t size = 0, got = 0;
	struct sys_peer p;
	ssize_t n;

	*out = NULL;
	sys_spawn(&p, SYS_UID_B, reader, (void *)(uintptr_t)t);
	do {
		if (got == size) {
			size += 1 << 20;
			*out = realloc(*out, size);
			ASSERT(*out);
		}
		n = read(p.fd, *out + got, size - got);
		ASSERT_SYS(n);
		got += (size_t)n;
	} while (n);
	sys_join(&p);
	return got;
}

TEST_LIMIT(acknowledged_pages_survive_any_crash, 240)
{
	struct sys_opts roomy = { .program = "tests/system/cqd_stores",
				  .daemon = "pool_bytes = 256M\n" };
	struct texts all = { NULL, false, false }, some = { NULL, false, true };
	uint32_t n[WORKERS];
	uint8_t *after, *clean;
	size_t bytes;

	if (!STORES_WORK)
		SKIP("stores cannot be watched one by one here");
	run_kills(&roomy, kills_wanted(100), n);
	all.n = n;
	some.n = n;
	ASSERT_EQ(outputs(&all, &clean), 0);
	free(clean);
	bytes = outputs(&some, &after);
	sys_stop(&s);
	/* the same texts, written into a daemon that nobody kills */
	roomy.program = NULL;
	some.write = true;
	sys_start(&s, &roomy);
	ASSERT_EQ(outputs(&some, &clean), bytes);
	ASSERT_MEMEQ(after, clean, bytes);
	printf("# %zu results agree\n", bytes / ((size_t)small.heads * small.dim * 4));
	free(after);
	free(clean);
	sys_stop(&s);
	munmap(ctl, sizeof(*ctl));
}
