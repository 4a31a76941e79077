// SPDX-License-Identifier: MIT
/*
 * Pressure stall information: when the machine, or cqd's own control group,
 * stalls for want of memory, segments go back.
 *
 * The service manager says where to look ($MEMORY_PRESSURE_WATCH, systemd 254
 * and later), or with /dev/null that it must not be done; else cqd's own group
 * is tried and then the machine. A file gets a trigger written
 * (Documentation/accounting/psi.rst of the kernel) and is readable with priority
 * when it fires; its window is 2 s, which needs no privilege. A FIFO is readable
 * when its writer wants memory back.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cq/log.h"
#include "daemon/server.h"

#define WINDOW_US	2000000u
#define MACHINE		"/proc/pressure/memory"

struct cqd_pressure {
	struct cqd_server *srv;
	uv_poll_t poll;
	char path[320];
	int fd;
	bool fifo;
};

/* "0::/system.slice/cqd.service" of the unified hierarchy. */
static void own_group(char *path, size_t size)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[256];

	path[0] = '\0';
	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "0::/", 4) || !strchr(line, '\n'))
			continue;
		line[strcspn(line, "\n")] = '\0';
		snprintf(path, size, "/sys/fs/cgroup%s/memory.pressure", line + 3);
	}
	if (f)
		fclose(f);
}

/* Descriptor of @path ready to be polled, or -errno. */
static int arm(const char *path, uint32_t us, bool *fifo)
{
	char trigger[64];
	struct stat sb;
	int fd, n, ret;

	fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &sb) < 0)
		goto err_close;
	*fifo = S_ISFIFO(sb.st_mode);
	if (*fifo)
		return fd;
	/* The NUL belongs to it. */
	n = snprintf(trigger, sizeof(trigger), "some %u %u", us, WINDOW_US) + 1;
	if (write(fd, trigger, (size_t)n) == n)
		return fd;
err_close:
	ret = -errno;
	close(fd);
	return ret;
}

/* The service manager's way of saying MemoryPressureWatch=off. */
static bool unwanted(void)
{
	const char *given = getenv("MEMORY_PRESSURE_WATCH");

	return given && !strcmp(given, "/dev/null");
}

static int arm_any(struct cqd_pressure *p, uint32_t us)
{
	const char *given = getenv("MEMORY_PRESSURE_WATCH");

	if (given) {
		snprintf(p->path, sizeof(p->path), "%s", given);
		return arm(p->path, us, &p->fifo);
	}
	own_group(p->path, sizeof(p->path));
	p->fd = p->path[0] ? arm(p->path, us, &p->fifo) : -ENOENT;
	if (p->fd >= 0)
		return p->fd;
	snprintf(p->path, sizeof(p->path), MACHINE);
	return arm(p->path, us, &p->fifo);
}

static void on_event(uv_poll_t *poll, int status, int events)
{
	struct cqd_pressure *p = poll->data;
	char buf[256];

	if (status < 0) {
		cq_warn("%s: %s; memory pressure is not watched any more", p->path,
			uv_strerror(status));
		uv_poll_stop(poll);
		return;
	}
	while (p->fifo && read(p->fd, buf, sizeof(buf)) > 0)
		;
	cqd_store_squeeze(p->srv->store);
}

static void on_closed(uv_handle_t *h)
{
	struct cqd_pressure *p = h->data;

	close(p->fd);
	free(p);
}

/**
 * cqd_pressure_new() - watch for memory pressure
 * @srv: server with a store
 * @us:  stall in a window of 2 s at which memory is given back; 0: do not
 *
 * Return: what cqd_pressure_close() takes; NULL: not watched. That it cannot be
 * is said in one line of the log, and nothing else depends on it.
 */
struct cqd_pressure *cqd_pressure_new(struct cqd_server *srv, uint32_t us)
{
	struct cqd_pressure *p;

	if (!us || unwanted())
		return NULL;
	p = calloc(1, sizeof(*p));
	if (!p) {
		cq_warn("out of memory: memory pressure is not watched");
		return NULL;
	}
	p->srv = srv;
	p->fd = arm_any(p, us);
	if (p->fd >= 0 && !uv_poll_init(srv->loop, &p->poll, p->fd)) {
		p->poll.data = p;
		uv_poll_start(&p->poll, p->fifo ? UV_READABLE : UV_PRIORITIZED, on_event);
		cq_info("memory pressure is watched at %s", p->path);
		return p;
	}
	cq_warn("%s: %s: memory pressure is not watched; the kernel needs psi=1, the unit "
		"MemoryPressureWatch=on (systemd 254), or set pressure = off", p->path,
		strerror(p->fd < 0 ? -p->fd : EINVAL));
	if (p->fd >= 0)
		close(p->fd);
	free(p);
	return NULL;
}

/**
 * cqd_pressure_close() - stop watching
 * @p: may be NULL; freed when the loop has closed its handle
 */
void cqd_pressure_close(struct cqd_pressure *p)
{
	if (p)
		uv_close((uv_handle_t *)&p->poll, on_closed);
}
