// SPDX-License-Identifier: MIT
/*
 * cqd, with every store to the index and to state words watched: the n-th one
 * after a start kills it. Which n is the test's (tests/system/test_crash.c); it
 * says so in a file that both map. The daemon's objects are those of cqd.
 */
#include <fcntl.h>
#include <stdlib.h>
#include "tests/stores.h"
#include "tests/system/stores_ctl.h"

static struct stores_ctl *ctl;
static uint64_t die_at;

static void before_store(uint64_t n)
{
	ctl->stores++;
	if (n == die_at)
		kill(getpid(), SIGKILL);
}

/* Before main(): the first mapping of the index counts. */
__attribute__((constructor))
static void watch(void)
{
	const char *path = getenv("CQ_STORES_CTL");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	ctl = stores_mmap(NULL, sizeof(*ctl), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (ctl == MAP_FAILED)
		_exit(95);
	if (ctl->starts < STORES_STARTS)
		die_at = ctl->die_at[ctl->starts];
	ctl->starts++;
	stores_watch(before_store);
}
