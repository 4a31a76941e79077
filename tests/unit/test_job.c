// SPDX-License-Identifier: MIT
/* Worker threads that the kernel refuses: said once, and the store works on. */
#include <sys/resource.h>
#include "tests/unit/store_rig.h"
#include "cq/log.h"

#define PAGES	8
#define NOBODY	65533

static struct rig r;
static unsigned int refused, said;
static bool allow = true;

int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
	int ret = allow ? __real_pthread_create(t, a, fn, arg) : EAGAIN;

	refused += ret != 0;
	return ret;
}

void __wrap_cq_log(int prio, const char *fmt, ...);
void __wrap_cq_log(int prio, const char *fmt, ...)
{
	said += prio <= LOG_WARNING && strstr(fmt, "worker threads") != NULL;
}

static unsigned int threads(void)
{
	struct dirent *e;
	DIR *d = opendir("/proc/self/task");
	unsigned int n = 0;

	ASSERT(d);
	while ((e = readdir(d)))
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

/* Segments are made, pages copied and checked. */
static void use_it(void)
{
	struct cqp_key keys[PAGES];
	struct cqp_page pages[PAGES];

	rig_chain(&r, 1, PAGES, keys, pages);
	ASSERT_EQ(rig_resident(&r, keys, PAGES), PAGES);
}

TEST(none)
{
	allow = false;
	rig_defaults(&r);
	rig_start(&r);
	use_it();
	ASSERT_EQ(threads(), 1);
	ASSERT_GT(refused, PAGES);
	ASSERT_EQ(said, 1);
	rig_stop(&r);
}

/* There are some again: no restart is needed. */
TEST(none_at_first)
{
	allow = false;
	rig_defaults(&r);
	rig_start(&r);
	ASSERT_EQ(threads(), 1);
	allow = true;
	use_it();
	ASSERT_EQ(threads(), 5);
	rig_stop(&r);
}

/* The kernel's own limit, which is not for root. */
TEST(limit_of_processes)
{
	struct rlimit one, old;

	if (!getuid() && setresuid(NOBODY, NOBODY, NOBODY))
		SKIP("no other uid");
	ASSERT_EQ(getrlimit(RLIMIT_NPROC, &old), 0);
	one = old;
	one.rlim_cur = 1;
	ASSERT_EQ(setrlimit(RLIMIT_NPROC, &one), 0);
	rig_defaults(&r);
	rig_start(&r);
	use_it();
	ASSERT_EQ(threads(), 1);
	ASSERT_EQ(said, 1);
	rig_stop(&r);
	/* a sanitizer looks for leaks with a thread of its own */
	ASSERT_EQ(setrlimit(RLIMIT_NPROC, &old), 0);
}

TEST(enough)
{
	rig_defaults(&r);
	rig_start(&r);
	use_it();
	ASSERT_EQ(threads(), 5);
	ASSERT_EQ(said, 0);
	rig_stop(&r);
}
