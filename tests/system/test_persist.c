// SPDX-License-Identifier: MIT
/*
 * persist= under a service manager that keeps nothing, or everything: pages come
 * back after a stop, after kill -9 those that had been written do, and a restart
 * with the fd store costs the disk nothing.
 */
#include <sys/mount.h>
#include "tests/system/work.h"

#define TEXT	41
#define PREFIX	(64 * 20)
#define PAGES	(PREFIX / CQ_PAGE_TOKENS)
#define ROW(m)	((size_t)(m).heads * (m).dim * sizeof(float))

static struct sys s;
static const struct synth small = SYNTH_SMALL;
static char folder[300];

static void start(bool store)
{
	static char daemon[400];
	struct sys_opts o = { .daemon = daemon };

	snprintf(folder, sizeof(folder), "%s/pages", test_dir());
	if (mkdir(folder, 0700) == 0 && sys_root())
		ASSERT_SYS(chown(folder, SYS_CQD_UID, SYS_CQD_UID));
	snprintf(daemon, sizeof(daemon), "persist = %s\n", folder);
	if (!store)
		o.manager[0] = "-N";
	sys_start(&s, &o);
}

static void publisher(int fd, void *arg)
{
	struct work w;

	work_open(&w, &s, &small, 0, 0);
	work_publish(&w, TEXT, PREFIX);
	work_close(&w);
}

static void publish(void)
{
	struct sys_peer p;

	sys_spawn(&p, SYS_UID_A, publisher, NULL);
	sys_join(&p);
}

static void attacher(int fd, void *arg)
{
	struct cq_seq *seq;
	struct work w;
	float *o;

	work_open(&w, &s, &small, 0, 0);
	seq = work_seq(&w, TEXT, PREFIX + 1);
	ASSERT_EQ(cq_seq_length(seq), PREFIX);
	o = malloc(work_row(&w));
	ASSERT(o);
	WORK_OK(work_attend(&w, seq, TEXT, o));
	ASSERT_EQ(write(fd, o, work_row(&w)), work_row(&w));
	free(o);
	cq_seq_close(seq);
	work_close(&w);
}

static float *attach(void)
{
	float *o = malloc(ROW(small));
	struct sys_peer p;
	size_t got = 0;
	ssize_t n;

	ASSERT(o);
	sys_spawn(&p, SYS_UID_B, attacher, NULL);
	while (got < ROW(small)) {
		n = read(p.fd, (char *)o + got, ROW(small) - got);
		ASSERT_GT(n, 0);
		got += (size_t)n;
	}
	sys_join(&p);
	return o;
}

static void stop_and_start(void)
{
	sys_tell(&s, "hold");
	ASSERT_SYS(kill(s.cqd, SIGTERM));
	sys_expect(&s, "ended ");
	sys_tell(&s, "go");
	sys_expect(&s, "ready ");
}

/* Bytes of all files, and when the last of them was written. */
static uint64_t files(struct timespec *when)
{
	DIR *d = opendir(folder);
	struct dirent *e;
	struct stat sb;
	uint64_t sum = 0;

	ASSERT(d);
	while ((e = readdir(d))) {
		if (strncmp(e->d_name, "pages-", 6))
			continue;
		/* A log that is opened to see that nothing is left to write goes again. */
		if (fstatat(dirfd(d), e->d_name, &sb, 0) < 0 || !sb.st_size)
			continue;
		sum += (uint64_t)sb.st_size;
		if (sb.st_mtim.tv_sec > when->tv_sec ||
		    (sb.st_mtim.tv_sec == when->tv_sec &&
		     sb.st_mtim.tv_nsec > when->tv_nsec))
			*when = sb.st_mtim;
	}
	closedir(d);
	return sum;
}

static unsigned int in_log(const char *text)
{
	FILE *f = fopen(s.log, "re");
	unsigned int n = 0;
	char line[1024];

	ASSERT(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, text) != NULL;
	fclose(f);
	return n;
}

static void must_be(float *a, float *b)
{
	ASSERT_MEMEQ(b, a, ROW(small));
	free(b);
}

TEST(stop_kill_start)
{
	struct timespec when = { 0 };
	uint64_t bytes;
	float *a;

	start(false);
	publish();
	a = attach();
	stop_and_start();
	SYS_UNTIL(&s, st.pages_sealed == PAGES);
	must_be(a, attach());
	/* Nothing new since: files are as they were, and a kill loses nothing. */
	bytes = files(&when);
	ASSERT_GT(bytes, PAGES * 512);
	sys_restart(&s);
	SYS_UNTIL(&s, st.pages_sealed == PAGES);
	must_be(a, attach());
	ASSERT_EQ(files(&when), bytes);
	free(a);
	sys_stop(&s);
}

/* At any moment: what comes back is right, what does not was not written. */
TEST(kill_while_it_writes)
{
	struct timespec when = { 0 };
	float *a;
	int i;

	start(false);
	publish();
	a = attach();
	for (i = 0; i < 5; i++) {
		usleep((useconds_t)i * 60000);	/* the moment of the kill */
		sys_restart(&s);
		publish();	/* what is missing */
		must_be(a, attach());
	}
	SYS_UNTIL(&s, st.persist_bytes > PAGES * 512);
	stop_and_start();
	SYS_UNTIL(&s, st.pages_sealed == PAGES);
	must_be(a, attach());
	ASSERT_EQ(in_log("damaged"), 0);
	ASSERT_GT(files(&when), 0);
	free(a);
	sys_stop(&s);
}

TEST(a_kept_store_costs_nothing)
{
	struct timespec when = { 0 }, then = { 0 };
	uint64_t bytes;
	float *a;
	int i;

	start(true);
	publish();
	a = attach();
	stop_and_start();	/* flushed */
	SYS_UNTIL(&s, st.persist_bytes > 0);
	bytes = files(&when);
	for (i = 0; i < 3; i++) {
		sys_restart(&s);
		SYS_UNTIL(&s, st.pages_sealed == PAGES && st.persist_bytes == bytes);
		must_be(a, attach());
	}
	ASSERT_EQ(files(&then), bytes);
	ASSERT(!memcmp(&when, &then, sizeof(when)));
	ASSERT_EQ(in_log("came back"), 0);
	free(a);
	sys_stop(&s);
}

/* Another file under the name: the pages stay where they are, and that is said. */
TEST(other_model_of_the_name)
{
	struct synth other = small;
	struct cq_err err = { "" };
	Cqp__StatusOk now;

	start(false);
	publish();
	sys_tell(&s, "hold");
	ASSERT_SYS(kill(s.cqd, SIGTERM));
	sys_expect(&s, "ended ");
	other.layers++;
	ASSERT_OK(synth_model(&other, s.model, &err));
	sys_tell(&s, "go");
	sys_expect(&s, "ready ");
	SYS_UNTIL(&s, in_log("the first: model 'tiny'") == 1);
	ASSERT_EQ(in_log("20 no model or namespace"), 1);
	sys_status(&s, &now);
	ASSERT_EQ(now.pages_sealed, 0);
	sys_stop(&s);
}

/* Said once; nothing in memory is lost; written when there is room again. */
TEST(disk_full)
{
	float *a;

	snprintf(folder, sizeof(folder), "%s/pages", test_dir());
	ASSERT_SYS(mkdir(folder, 0700));
	if (mount("none", folder, "tmpfs", 0, "size=16k,mode=0777"))
		SKIP("no file system can be mounted: %s", strerror(errno));
	start(false);
	publish();
	a = attach();
	SYS_UNTIL(&s, in_log("No space left") == 1);
	must_be(a, attach());
	ASSERT_EQ(in_log("No space left"), 1);
	ASSERT_SYS(mount("none", folder, "tmpfs", MS_REMOUNT, "size=8m,mode=0777"));
	stop_and_start();
	SYS_UNTIL(&s, st.pages_sealed == PAGES);
	must_be(a, attach());
	free(a);
	sys_stop(&s);
	ASSERT_SYS(umount2(folder, MNT_DETACH));
}
