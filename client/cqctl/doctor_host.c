// SPDX-License-Identifier: MIT
/* doctor: what the machine is like. */
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>
#include "client/cqctl/doctor.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define NEED_MAJOR	5	/* pidfd_open, close_range */
#define NEED_MINOR	9
#define WANT_NOFILE	16384
#define KEEPS_STORE	254	/* first systemd that keeps the fd store over a stop */

static void check_kernel(struct ctl *c, struct doc_finding *f)
{
	unsigned int major = 0, minor = 0;
	struct utsname u;

	if (uname(&u) < 0 || sscanf(u.release, "%u.%u", &major, &minor) != 2) {
		doc_text(f, "unknown");
		return;
	}
	doc_text(f, "%.100s %.100s, %.50s", u.sysname, u.release, u.machine);
	if (major < NEED_MAJOR || (major == NEED_MAJOR && minor < NEED_MINOR))
		doc_remedy(f, DOC_PROBLEM, "cqd needs Linux %d.%d", NEED_MAJOR, NEED_MINOR);
}

static void check_pidfd(struct ctl *c, struct doc_finding *f)
{
	int s[2], fd = (int)syscall(SYS_pidfd_open, getpid(), 0), got = -1;
	socklen_t len = sizeof(got);
	bool peer = false;

	if (fd < 0) {
		doc_text(f, "pidfd_open: %s", strerror(errno));
		doc_remedy(f, DOC_PROBLEM, "use a kernel, or a container's system call filter, "
			   "that has it");
		return;
	}
	close(fd);
	if (!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s)) {
		peer = !getsockopt(s[0], SOL_SOCKET, SO_PEERPIDFD, &got, &len);
		close(s[0]);
		close(s[1]);
	}
	if (peer && got >= 0)
		close(got);
	doc_text(f, peer ? "pidfd_open and SO_PEERPIDFD" :
		 "pidfd_open with the start time (SO_PEERPIDFD is there from Linux 6.5)");
}

static void check_memfd(struct ctl *c, struct doc_finding *f)
{
	int fd = memfd_create("cq-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0) {
		doc_text(f, "memfd_create: %s", strerror(errno));
		doc_remedy(f, DOC_PROBLEM, "pages live in memfds: use a kernel or a system call "
			   "filter that has them");
		return;
	}
	doc_text(f, "sealed memfds");
	close(fd);
}

/* A number, "max" as UINT64_MAX. */
static bool read_number(const char *path, uint64_t *out)
{
	char buf[64];

	if (!doc_read(path, buf, sizeof(buf)))
		return false;
	*out = strcmp(buf, "max") ? strtoull(buf, NULL, 10) : UINT64_MAX;
	return true;
}

static void check_memory(struct ctl *c, struct doc_finding *f)
{
	static const char limit[] = "/sys/fs/cgroup/system.slice/cqd.service/memory.max";
	struct sysinfo si;
	uint64_t total, max;
	char a[24], b[24];

	if (sysinfo(&si) < 0) {
		doc_text(f, "unknown");
		return;
	}
	total = (uint64_t)si.totalram * si.mem_unit;
	if (!read_number(limit, &max))
		doc_text(f, "%s of memory; cqd.service has no control group now",
			 ctl_bytes(total, a));
	else if (max == UINT64_MAX)
		doc_text(f, "%s of memory, cqd.service may use all", ctl_bytes(total, a));
	else
		doc_text(f, "%s of memory, cqd.service may use %s", ctl_bytes(total, a),
			 ctl_bytes(max, b));
	if (read_number(limit, &max) && max < total / 4)
		doc_remedy(f, DOC_WARNING, "set pool_bytes below MemoryMax= of cqd.service: the "
			   "default is 25 %% of the machine's memory");
}

/* The word in brackets of "always [madvise] never". */
static void chosen(char *text)
{
	char *from = strchr(text, '['), *to = from ? strchr(from, ']') : NULL;

	if (!to)
		return;
	*to = '\0';
	memmove(text, from + 1, (size_t)(to - from));
}

static void check_thp(struct ctl *c, struct doc_finding *f)
{
	char anon[128] = "unknown", shmem[128] = "unknown";

	doc_read("/sys/kernel/mm/transparent_hugepage/enabled", anon, sizeof(anon));
	doc_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shmem, sizeof(shmem));
	chosen(anon);
	chosen(shmem);
	doc_text(f, "transparent huge pages: %s, for shared memory: %s", anon, shmem);
	if (!strcmp(shmem, "never") || !strcmp(shmem, "deny"))
		doc_remedy(f, DOC_WARNING, "for fewer TLB misses in attention: echo advise > "
			   "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

static const char *limit_text(rlim_t n, char buf[24])
{
	if (n == RLIM_INFINITY)
		return "unlimited";
	snprintf(buf, 24, "%llu", (unsigned long long)n);
	return buf;
}

static void check_memlock(struct ctl *c, struct doc_finding *f)
{
	struct rlimit rl = { 0, 0 };
	char a[24];

	getrlimit(RLIMIT_MEMLOCK, &rl);
	doc_text(f, "%s bytes (cqd and libcq lock nothing; GPU drivers may)",
		 limit_text(rl.rlim_max, a));
}

static void check_nofile(struct ctl *c, struct doc_finding *f)
{
	struct rlimit rl = { 0, 0 };
	char a[24], b[24];

	getrlimit(RLIMIT_NOFILE, &rl);
	doc_text(f, "%s open files here, up to %s; cqd.service sets its own",
		 limit_text(rl.rlim_cur, a), limit_text(rl.rlim_max, b));
	if (rl.rlim_max < WANT_NOFILE)
		doc_remedy(f, DOC_WARNING, "workers map many segments: raise LimitNOFILE= or "
			   "ulimit -n to %d", WANT_NOFILE);
}

static void check_overcommit(struct ctl *c, struct doc_finding *f)
{
	uint64_t mode = 0;

	if (!read_number("/proc/sys/vm/overcommit_memory", &mode)) {
		doc_text(f, "unknown");
		return;
	}
	doc_text(f, "vm.overcommit_memory = %" PRIu64, mode);
	if (mode == 2)
		doc_remedy(f, DOC_WARNING, "shared mappings of every worker may count: see "
			   "CommitLimit in /proc/meminfo, or sysctl vm.overcommit_memory=0");
}

static void check_psi(struct ctl *c, struct doc_finding *f)
{
	char line[128];

	if (doc_read("/proc/pressure/memory", line, sizeof(line))) {
		doc_text(f, "pressure of memory is measured: %s", line);
		return;
	}
	doc_text(f, "pressure stall information is not there");
	doc_remedy(f, DOC_WARNING, "boot with psi=1 to see pressure of memory");
}

static void check_gpu(struct ctl *c, struct doc_finding *f)
{
	char version[160];
	size_t n = 0;
	glob_t g;

	if (!glob("/dev/nvidia[0-9]*", 0, NULL, &g)) {
		n = g.gl_pathc;
		globfree(&g);
	}
	if (!doc_read("/proc/driver/nvidia/version", version, sizeof(version))) {
		doc_text(f, "no NVIDIA driver: pages are in host memory");
		return;
	}
	doc_text(f, "%zu devices, %s", n, version);
	if (!n)
		doc_remedy(f, DOC_WARNING, "the driver is there, no /dev/nvidia0: run "
			   "nvidia-modprobe -c 0, or give the container its devices");
}

/* Of the manager that runs, or 0. */
static unsigned int systemd_version(void)
{
	unsigned int version = 0;
	sd_bus *bus = NULL;
	char *text = NULL;

	if (sd_booted() > 0 && sd_bus_open_system(&bus) >= 0) {
		sd_bus_set_method_call_timeout(bus, 2000000);
		if (sd_bus_get_property_string(bus, "org.freedesktop.systemd1",
					       "/org/freedesktop/systemd1",
					       "org.freedesktop.systemd1.Manager", "Version",
					       NULL, &text) >= 0)
			version = (unsigned int)strtoul(text, NULL, 10);
	}
	free(text);
	sd_bus_flush_close_unref(bus);
	return version;
}

static void check_systemd(struct ctl *c, struct doc_finding *f)
{
	unsigned int version = systemd_version();

	if (sd_booted() <= 0) {
		doc_text(f, "systemd does not run this machine");
		doc_remedy(f, DOC_WARNING, "without a store of descriptors a restart of cqd "
			   "loses its pages: use persist= in cqd.conf(5)");
	} else if (!version) {
		doc_text(f, "systemd, of unknown version");
	} else if (version < KEEPS_STORE) {
		doc_text(f, "systemd %u keeps descriptors over a restart and a crash, not over a "
			 "stop", version);
		doc_remedy(f, DOC_WARNING, "persist= in cqd.conf(5), or cqctl save before a stop");
	} else {
		doc_text(f, "systemd %u keeps descriptors over restart, crash and stop", version);
	}
}

const struct doc_check doc_host_checks[] = {
	{ "kernel", check_kernel },
	{ "memfd", check_memfd },
	{ "pidfd", check_pidfd },
	{ "memory", check_memory },
	{ "huge pages", check_thp },
	{ "memlock", check_memlock },
	{ "open files", check_nofile },
	{ "overcommit", check_overcommit },
	{ "pressure", check_psi },
	{ "GPU", check_gpu },
	{ "systemd", check_systemd },
	{ NULL, NULL },
};
