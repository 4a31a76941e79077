/* SPDX-License-Identifier: MIT */
/* A crash of cqd before a store: a child that takes the store over as it is now. */
#ifndef TESTS_STORE_CRASH_H
#define TESTS_STORE_CRASH_H

#include "tests/stores.h"
#include "tests/unit/store_rig.h"

/* Runs @fn in a child, as the daemon after a crash before store @n. */
static void crash_before(uint64_t n, void (*fn)(void))
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	ASSERT_SYS(pid);
	if (!pid) {
		stores.before = NULL;
		pthread_mutex_init(&mgr.lock, NULL);	/* the parent's is held */
		fn();
		fflush(stdout);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	if (status)
		FAIL("crash before store %llu: status %#x", (unsigned long long)n,
		     (unsigned int)status);
}

#endif /* TESTS_STORE_CRASH_H */
