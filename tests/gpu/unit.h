/* SPDX-License-Identifier: MIT */
/*
 * What cqd.service takes from a process, as far as a process can take it from
 * itself: for hosts without systemd. Include it once, after rig.h.
 */
#ifndef GPU_UNIT_H
#define GPU_UNIT_H

#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#ifndef PR_SET_MDWE		/* Linux 6.3 */
#define PR_SET_MDWE		65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif
#define NOBODY			65534

#ifdef __x86_64__
#define UNIT_ARCH		AUDIT_ARCH_X86_64
#define X32_BIT			0x40000000
#define LAST_CALL		450	/* known to systemd 252; later ones do not exist */
/*
 * System calls of x86-64 that SystemCallFilter= of the unit leaves out, as
 * systemd-analyze syscall-filter lists them.
 */
#define UNIT_DENIED(D) \
	D(mincore) D(chown) D(fchown) D(lchown) D(ptrace) D(syslog) D(setuid) D(setreuid) \
	D(setgroups) D(setresuid) D(setfsuid) D(capset) D(uselib) D(ustat) D(sysfs) \
	D(setpriority) D(sched_setparam) D(sched_setscheduler) D(vhangup) D(modify_ldt) \
	D(pivot_root) D(_sysctl) D(adjtimex) D(setrlimit) D(chroot) D(acct) \
	D(settimeofday) D(mount) D(umount2) D(swapon) D(swapoff) D(reboot) D(sethostname) \
	D(setdomainname) D(iopl) D(ioperm) D(create_module) D(init_module) \
	D(delete_module) D(get_kernel_syms) D(query_module) D(quotactl) D(nfsservctl) \
	D(getpmsg) D(putpmsg) D(afs_syscall) D(tuxcall) D(security) D(sched_setaffinity) \
	D(lookup_dcookie) D(clock_settime) D(vserver) D(set_mempolicy) D(kexec_load) \
	D(ioprio_set) D(migrate_pages) D(fchownat) D(move_pages) D(perf_event_open) \
	D(fanotify_init) D(fanotify_mark) D(open_by_handle_at) D(clock_adjtime) \
	D(finit_module) D(sched_setattr) D(seccomp) D(kexec_file_load) D(bpf) \
	D(pkey_mprotect) D(pkey_alloc) D(pkey_free) D(open_tree) D(move_mount) D(fsopen) \
	D(fsconfig) D(fsmount) D(fspick) D(pidfd_getfd) D(mount_setattr) D(quotactl_fd) \
	D(landlock_create_ruleset) D(landlock_add_rule) D(landlock_restrict_self) \
	D(memfd_secret) D(process_mrelease) D(set_mempolicy_home_node)
#endif

/* --- filters of system calls --- */

#define NR	offsetof(struct seccomp_data, nr)
#define ARG(n)	(offsetof(struct seccomp_data, args) + 8 * (n))	/* its low half */

#define LOAD(at)		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at)
#define MASK(bits)		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, bits)
/* Skip @n instructions unless the value is @k, or has one of the bits @k. */
#define UNLESS(k, n)		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, k, 0, n)
#define UNLESS_BITS(k, n)	BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, k, 0, n)
#define REFUSE(code)		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (code))
#define ALLOW			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static int filter_add(const struct sock_filter *code, size_t n)
{
	const struct sock_fprog prog = { (unsigned short)n, (struct sock_filter *)(uintptr_t)code };

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) ? -errno : 0;
}

#ifdef UNIT_ARCH
static int filter_calls(void)
{
	static const struct sock_filter code[] = {
		LOAD(offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, UNIT_ARCH, 1, 0),
		REFUSE(EPERM),
		LOAD(NR),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, LAST_CALL, 0, 1),
		REFUSE(ENOSYS),
#define DENY(name) UNLESS(__NR_##name, 1), REFUSE(EPERM),
		UNIT_DENIED(DENY)
#undef DENY
		ALLOW,
	};

	return filter_add(code, ARRAY_SIZE(code));
}

/* As systemd does it; the kernel's own way comes on top where there is one. */
static int filter_exec(void)
{
	static const struct sock_filter code[] = {
		LOAD(NR),
		UNLESS(__NR_mmap, 4),
		LOAD(ARG(2)),
		MASK(PROT_WRITE | PROT_EXEC),
		UNLESS(PROT_WRITE | PROT_EXEC, 1),
		REFUSE(EPERM),
		LOAD(NR),
		UNLESS(__NR_mprotect, 3),
		LOAD(ARG(2)),
		UNLESS_BITS(PROT_EXEC, 1),
		REFUSE(EPERM),
		LOAD(NR),
		UNLESS(__NR_pkey_mprotect, 3),
		LOAD(ARG(2)),
		UNLESS_BITS(PROT_EXEC, 1),
		REFUSE(EPERM),
		LOAD(NR),
		UNLESS(__NR_shmat, 3),
		LOAD(ARG(2)),
		UNLESS_BITS(SHM_EXEC, 1),
		REFUSE(EPERM),
		ALLOW,
	};
	int ret = filter_add(code, ARRAY_SIZE(code));

	if (!ret)
		prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0);
	return ret;
}

static int filter_families(void)
{
	static const struct sock_filter code[] = {
		LOAD(NR),
		UNLESS(__NR_socket, 3),
		LOAD(ARG(0)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 1, 0),
		REFUSE(EAFNOSUPPORT),
		ALLOW,
	};

	return filter_add(code, ARRAY_SIZE(code));
}

static int filter_namespaces(void)
{
	static const uint32_t all = CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWNS |
				    CLONE_NEWPID | CLONE_NEWUSER | CLONE_NEWUTS;
	const struct sock_filter code[] = {
		LOAD(NR),
		UNLESS(__NR_setns, 1),
		REFUSE(EPERM),
		UNLESS(__NR_clone3, 1),
		REFUSE(ENOSYS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_unshare, 1, 0),
		UNLESS(__NR_clone, 3),
		LOAD(ARG(0)),
		UNLESS_BITS(all, 1),
		REFUSE(EPERM),
		ALLOW,
	};

	return filter_add(code, ARRAY_SIZE(code));
}
#else
static int filter_calls(void)
{
	return -EOPNOTSUPP;
}
#define filter_exec		filter_calls
#define filter_families		filter_calls
#define filter_namespaces	filter_calls
#endif

/* --- what is no filter --- */

static int own_network(void)
{
	return unshare(CLONE_NEWNET) ? -errno : 0;
}

/* Nobody, and the group that may have the device nodes; root can do so. */
static int other_user(void)
{
	const struct group *video = getgrnam("video");
	gid_t gid = video ? video->gr_gid : NOBODY;

	if (found->gpu.emulated)
		return -EOPNOTSUPP;	/* its state belongs to who began it */
	if (setgroups(1, &gid) || setgid(NOBODY) || setuid(NOBODY))
		return -errno;
	/* a change of user forgets it */
	return prctl(PR_SET_PDEATHSIG, SIGKILL) ? -errno : 0;
}

static int no_capabilities(void)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct none[2] = { { 0 } };

	for (int cap = 0; cap < 64; cap++)
		prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
	return syscall(SYS_capset, &head, none) ? -errno : 0;
}

static int no_new_privileges(void)
{
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;
}

/* --- does it hold? --- */

static bool in_own_network(void)
{
	return true;	/* unshare() said so */
}

static bool is_other_user(void)
{
	return getuid() == NOBODY && geteuid() == NOBODY;
}

static bool has_no_capabilities(void)
{
	return prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) != 1;
}

static bool gains_no_privileges(void)
{
	return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
}

static bool refuses_families(void)
{
	return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0) < 0 && errno == EAFNOSUPPORT;
}

static bool refuses_namespaces(void)
{
	return setns(-1, 0) < 0 && errno == EPERM;	/* EBADF without the filter */
}

static bool refuses_exec(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0) == MAP_FAILED;
}

static bool refuses_calls(void)
{
	return syscall(SYS_mincore, NULL, 0, NULL) < 0 && errno == EPERM;
}

/* In the order in which a process can do it to itself. */
static const struct {
	const char *name;	/* of the unit */
	int (*apply)(void);
	bool (*holds)(void);
} restrictions[] = {
	{ "PrivateNetwork", own_network, in_own_network },
	{ "User", other_user, is_other_user },
	{ "CapabilityBoundingSet", no_capabilities, has_no_capabilities },
	{ "NoNewPrivileges", no_new_privileges, gains_no_privileges },
	{ "RestrictAddressFamilies", filter_families, refuses_families },
	{ "RestrictNamespaces", filter_namespaces, refuses_namespaces },
	{ "MemoryDenyWriteExecute", filter_exec, refuses_exec },
	{ "SystemCallFilter", filter_calls, refuses_calls },
};

#define FILTERS_FROM	4	/* a filter needs no-new-privileges */

/* Bits of restrictions[] that could not be applied; the others hold. */
static unsigned int restrict_to(unsigned int which)
{
	unsigned int missing = 0, i;

	if (which >> FILTERS_FROM)
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	for (i = 0; i < ARRAY_SIZE(restrictions); i++)
		if (which >> i & 1 && restrictions[i].apply())
			missing |= 1u << i;
	for (i = 0; i < ARRAY_SIZE(restrictions); i++)
		if ((which & ~missing) >> i & 1 && !restrictions[i].holds())
			broken("%s was applied, but does not hold", restrictions[i].name);
	return missing;
}

#endif /* GPU_UNIT_H */
