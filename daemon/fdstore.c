// SPDX-License-Identifier: MIT
/*
 * The service manager's fd store: descriptors that outlive the daemon.
 *
 * FDPOLL=0: a memfd never hangs up, and the manager must not look for it.
 * The manager takes messages in order, so one barrier confirms every push
 * before it. It drops silently what exceeds FileDescriptorStoreMax=.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include "daemon/store_priv.h"

#define BARRIER_US (5 * 1000 * 1000ull)

/**
 * cqd_fdstore_push() - keep a descriptor across restarts
 * @st:      store; nothing is done without opts.push_fds
 * @name:    FDNAME
 * @fd:      stays the caller's
 * @barrier: wait until the manager has taken it (worker threads only)
 * @err:     text of the failure
 *
 * Thread-safe.
 *
 * Return: 0; -ENOTCONN no notify socket; -ETIMEDOUT; other -errno.
 */
int cqd_fdstore_push(struct cqd_store *st, const char *name, int fd, bool barrier,
		     struct cq_err *err)
{
	char msg[128];
	int ret;

	if (!st->o.push_fds)
		return 0;
	snprintf(msg, sizeof(msg), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	ret = sd_pid_notify_with_fds(0, 0, msg, &fd, 1);
	if (ret > 0 && barrier)
		ret = sd_notify_barrier(0, BARRIER_US);
	if (ret == 0)
		ret = -ENOTCONN;
	if (ret < 0)
		return cq_err_set(err, ret, "handing %s to the service manager: %s",
				  name, strerror(-ret));
	__atomic_fetch_add(&st->fdstore, 1, __ATOMIC_RELAXED);
	return 0;
}

/**
 * cqd_fdstore_remove() - the manager may close its copy
 * @st:   store
 * @name: FDNAME; every descriptor of that name goes
 *
 * Thread-safe. A lost message costs memory until the next start, when the
 * descriptor comes back without a record and is removed.
 */
void cqd_fdstore_remove(struct cqd_store *st, const char *name)
{
	char msg[128];

	if (!st->o.push_fds)
		return;
	snprintf(msg, sizeof(msg), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	sd_notify(0, msg);
	if (__atomic_load_n(&st->fdstore, __ATOMIC_RELAXED))
		__atomic_fetch_sub(&st->fdstore, 1, __ATOMIC_RELAXED);
}
