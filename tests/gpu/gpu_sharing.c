// SPDX-License-Identifier: MIT
/*
 * T1 to T10: what the design takes for granted about memory that processes
 * share on a GPU. Documentation/gpu.md says what stands on each.
 *
 *	gpu_sharing [--emulated] [--size MIB] [--uuid UUID] [--commit ID]
 *
 * stdout: one line of JSON per test; stderr: the same for people. Exit status:
 * 0, 1 if a test failed, 3 without a GPU. A device of the emulation is taken
 * with --emulated only, and a GPU without it only.
 */
#include <getopt.h>

#include "tests/gpu/rig.h"
#include "tests/gpu/report.h"

#define READ		CQCU_MEM_ACCESS_FLAGS_PROT_READ
#define READWRITE	CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE
#define TURNS		64		/* well below what a stream may have pending */
#define SETTLE_MS	10000	/* for memory to be given back, which is asynchronous */

/* The owner of @size bytes: 'c' has it compare them, anything else ends it. */
static void own(int sock)
{
	cqcu_ptr p;
	cqcu_mem h;
	int fd;

	start();
	h = mem_new(size);
	p = mem_map(h, size, READWRITE);
	fill(p, size);
	fd = mem_export(h);
	send_fd(sock, fd, "", 1);
	close(fd);
	while (recv_byte(sock) == 'c') {
		compare(p, size);
		send_byte(sock, 'c');
	}
}

static void import_and_compare(int sock)
{
	int fd = take_fd(sock);

	start();
	compare(mem_map(mem_import(fd), size, READ), size);
}

/* Somebody else who uses the GPU meanwhile. */
static void stand_by(int sock)
{
	start();
	send_byte(sock, 0);
	recv_byte(sock);
}

/* The memory of an owner that is dead, all that is left being its descriptor. */
static int orphan(void)
{
	struct role owner = role_start(own);
	int fd = take_fd(owner.sock);

	role_kill(&owner);
	return fd;
}

static void t1_fd_outlives_owner(void)
{
	struct role other = role_start(stand_by);
	int fd;

	recv_byte(other.sock);
	fd = orphan();
	if (!role_try(import_and_compare, fd))
		return;
	close(fd);
	send_byte(other.sock, 0);
	role_must_end(&other);
	conclude(PASS, "%zu MiB the same after the owner was killed", size >> 20);
}

/* Without another client and, the first time, without an open device node. */
static void t2_fd_alone(void)
{
	const char *node = found->gpu.node;
	char lost[sizeof(found->value)] = "";
	int fd, held;

	fd = orphan();
	if (!role_try(import_and_compare, fd))
		memcpy(lost, found->value, sizeof(lost));
	found->value[0] = '\0';
	close(fd);
	if (!node[0]) {
		if (lost[0])
			conclude(FAIL, "descriptor alone: lost (%s)", lost);
		else
			conclude(PASS, "descriptor alone: kept; no device node to hold");
		return;
	}
	held = open(node, O_RDWR | O_CLOEXEC);
	if (held < 0)
		broken("%s: %s", node, strerror(errno));
	fd = orphan();
	if (!role_try(import_and_compare, fd))
		return;
	conclude(PASS, "with %s held: kept; descriptor alone: %s%s", node,
		 lost[0] ? "lost: " : "kept", lost);
}

static void own_without_context(int sock)
{
	struct cqcu_ctx *ctx = NULL;
	cqcu_mem h;
	int fd;

	start_driver();
	h = mem_new(size);
	fd = mem_export(h);
	CU(cuMemRelease(h));
	CU(cuCtxGetCurrent(&ctx));
	if (ctx)
		broken("there is a context that nobody made");
	send_fd(sock, fd, "", 1);
	recv_byte(sock);
}

static void import_and_fill(int sock)
{
	int fd = take_fd(sock);

	start();
	fill(mem_map(mem_import(fd), size, READWRITE), size);
}

static void t3_owner_without_context(void)
{
	struct role owner = role_start(own_without_context);
	int fd = take_fd(owner.sock);

	if (!role_try(import_and_fill, fd) || !role_try(import_and_compare, fd))
		return;
	send_byte(owner.sock, 0);
	role_must_end(&owner);
	conclude(PASS, "one worker wrote, another read; the owner had only cuInit()");
}

struct fault {
	int first;	/* of the write */
	int later;	/* of the next call */
};

/* The write must fail, and may cost this process its context. */
static void write_read_only(int sock)
{
	struct fault fault;
	int fd = take_fd(sock);
	cqcu_ptr p;

	start();
	p = mem_map(mem_import(fd), size, READ);
	compare(p, size);
	fault.first = cu->cuMemsetD32Async(p, 0xdeadbeef, 1024, NULL);
	if (!fault.first)
		fault.first = cu->cuCtxSynchronize();
	fault.later = cu->cuCtxSynchronize();
	send_fd(sock, -1, &fault, sizeof(fault));
}

static void t4_read_only_is_enforced(void)
{
	struct role owner = role_start(own), writer;
	int fd = take_fd(owner.sock);
	char text[CQK_CUDA_TEXT];
	struct fault fault;

	writer = role_start(write_read_only);
	send_fd(writer.sock, fd, "", 1);
	recv_fd(writer.sock, &fault, sizeof(fault));
	role_must_end(&writer);
	send_byte(owner.sock, 'c');
	recv_byte(owner.sock);
	send_byte(owner.sock, 'q');
	role_must_end(&owner);
	if (!fault.first)
		broken("a write through a read-only mapping was not refused");
	conclude(PASS, "the writer got %s%s; owner and memory as before",
		 cqk_cuda_text(fault.first, text), fault.later ? " and lost its context" : "");
}

/* A word that counts, at 0; what it guards, from GRAN on. */
static void count_odd(int sock)
{
	struct cqcu_stream *s;
	double began, took;
	cqcu_ptr p;
	cqcu_mem h;

	start();
	h = mem_new(2 * GRAN);
	p = mem_map(h, 2 * GRAN, READWRITE);
	CU(cuMemsetD8(p, 0, 2 * GRAN));
	CU(cuStreamCreate(&s, CQCU_STREAM_NON_BLOCKING));
	CU(cuCtxSynchronize());
	send_fd(sock, mem_export(h), "", 1);
	recv_byte(sock);
	began = now_ms();
	for (unsigned int i = 0; i < TURNS; i++) {
		CU(cuMemsetD32Async(p + GRAN + 8 * i, i + 100, 2, s));
		CU(cuStreamWriteValue64(s, p, 2 * i + 1, 0));
		CU(cuStreamWaitValue64(s, p, 2 * i + 2, CQCU_STREAM_WAIT_VALUE_GEQ));
	}
	CU(cuStreamSynchronize(s));
	took = now_ms() - began;
	send_fd(sock, -1, &took, sizeof(took));
	recv_byte(sock);
}

static void count_even(int sock)
{
	int fd = take_fd(sock), res;
	struct cqcu_stream *s;
	uint32_t got[2 * TURNS];
	cqcu_ptr p, mine;

	start();
	p = mem_map(mem_import(fd), 2 * GRAN, READWRITE);
	CU(cuMemAlloc(&mine, sizeof(got)));
	CU(cuStreamCreate(&s, CQCU_STREAM_NON_BLOCKING));
	for (unsigned int i = 0; i < TURNS; i++) {
		CU(cuStreamWaitValue64(s, p, 2 * i + 1, CQCU_STREAM_WAIT_VALUE_GEQ));
		CU(cuMemcpyDtoDAsync(mine + 8 * i, p + GRAN + 8 * i, 8, s));
		CU(cuStreamWriteValue64(s, p, 2 * i + 2, 0));
	}
	res = cu->cuStreamQuery(s);
	if (res != CQCU_ERROR_NOT_READY)
		broken("a stream did not wait for a value that nobody has written");
	send_byte(sock, 0);
	CU(cuStreamSynchronize(s));
	CU(cuMemcpyDtoH(got, mine, sizeof(got)));
	for (unsigned int i = 0; i < 2 * TURNS; i++)
		if (got[i] != i / 2 + 100)
			broken("turn %u read %u: the value came before what it guards", i / 2,
			       got[i]);
}

static void t5_timeline(void)
{
	struct role odd, even;
	double took;
	int fd;

	if (!found->gpu.timeline) {
		conclude(SKIP, "the device has no 64-bit stream memory operations");
		return;
	}
	odd = role_start(count_odd);
	fd = take_fd(odd.sock);
	even = role_start(count_even);
	send_fd(even.sock, fd, "", 1);
	recv_byte(even.sock);
	send_byte(odd.sock, 0);
	recv_fd(odd.sock, &took, sizeof(took));
	role_must_end(&even);
	send_byte(odd.sock, 0);
	role_must_end(&odd);
	conclude(PASS, "%d turns between two processes, %.0f us each", TURNS, took * 1e3 / TURNS);
}

/* Somebody who looks: what is free, whenever asked. */
static void meter(int sock)
{
	size_t left, total;

	start();
	do {
		CU(cuMemGetInfo(&left, &total));
		send_fd(sock, -1, &left, sizeof(left));
	} while (recv_byte(sock) == 'm');
}

static size_t read_meter(int sock)
{
	size_t left;

	send_byte(sock, 'm');
	recv_fd(sock, &left, sizeof(left));
	return left;
}

/* Ask until @want bytes are free again but for a quarter of @size; ms, or -1. */
static double settle(int sock, size_t want, size_t *left)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	double began = now_ms();

	for (;;) {
		*left = read_meter(sock);
		if (*left + size / 4 >= want)
			return now_ms() - began;
		if (now_ms() - began > SETTLE_MS)
			return -1;
		nanosleep(&pause, NULL);
	}
}

static void t6_memory_comes_back(void)
{
	struct role m = role_start(meter);
	size_t before, held, after;
	double ms;
	int fd;

	recv_fd(m.sock, &before, sizeof(before));
	fd = orphan();
	if (settle(m.sock, before - size, &held) < 0)
		broken("the dead owner still has %zu MiB more than what it shared",
		       (before - size - held) >> 20);
	if (held > before - size + size / 4)
		broken("%zu MiB were shared, but %zu MiB more are free than must be", size >> 20,
		       (held - (before - size)) >> 20);
	close(fd);
	ms = settle(m.sock, before, &after);
	if (ms < 0)
		broken("%zu MiB are not given back after the last descriptor was closed",
		       (before - after) >> 20);
	send_byte(m.sock, 'q');
	role_must_end(&m);
	conclude(PASS, "%zu MiB free, %zu with the owner dead, %zu in %.1f ms after the last close",
		 before >> 20, held >> 20, after >> 20, ms);
}

static void export_again(int sock)
{
	int fd = take_fd(sock), again = -1, res;
	cqcu_mem h;

	start();
	h = mem_import(fd);
	res = cu->cuMemExportToShareableHandle(&again, h,
					       CQCU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	send_fd(sock, res ? -1 : again, &res, sizeof(res));
	recv_byte(sock);
}

static void t7_dup_and_export_again(void)
{
	struct role r = role_start(export_again);
	int fd = orphan(), copy, again, res;
	char how[CQK_CUDA_TEXT], lost[64] = "";

	send_fd(r.sock, fd, "", 1);
	again = recv_fd(r.sock, &res, sizeof(res));
	role_kill(&r);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		broken("dup: %s", strerror(errno));
	close(fd);
	if (!role_try(import_and_compare, copy))
		return;
	/* The first memory goes with its last copy, unless the second export keeps it. */
	close(copy);
	if (!res && !role_try(import_and_compare, again))
		snprintf(lost, sizeof(lost), ", but not the memory");
	found->value[0] = '\0';
	conclude(PASS, "dup() serves; exported again by an importer: %s%s",
		 res ? cqk_cuda_text(res, how) : "works", lost);
}

static unsigned int poll_flags(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT | POLLPRI };

	SYS(poll(&p, 1, 0));
	return (unsigned short)p.revents;
}

/* Says what is; systemd drops a descriptor with POLLERR or POLLHUP, but for FDPOLL=0. */
static void t8_poll_flags(void)
{
	struct role owner = role_start(own);
	int fd = take_fd(owner.sock);
	unsigned int alive, dead;

	alive = poll_flags(fd);
	role_kill(&owner);
	dead = poll_flags(fd);
	conclude(PASS, "0x%x with the owner alive, 0x%x after its death: FDPOLL=0 is %s", alive,
		 dead, (alive | dead) & (POLLERR | POLLHUP) ? "needed" : "not needed");
}

/* Both read at the same time; that they attend waits for the kernels. */
static void t9_two_workers(void)
{
	struct role a, b;
	int fd = orphan();

	a = role_start(import_and_compare);
	b = role_start(import_and_compare);
	send_fd(a.sock, fd, "", 1);
	send_fd(b.sock, fd, "", 1);
	role_must_end(&a);
	role_must_end(&b);
	conclude(SKIP, "no kernels: two workers read one prefix, nothing was attended");
}

static void map_twice(int sock)
{
	cqcu_ptr ro, rw;
	cqcu_mem h;

	start();
	h = mem_new(size);
	rw = mem_map(h, size, READWRITE);
	ro = mem_map(h, size, READ);
	fill(rw, size);
	compare(ro, size);
	CU(cuMemUnmap(rw, size));
	compare(ro, size);
	send_byte(sock, 0);
}

static void t10_two_mappings(void)
{
	struct role r = role_start(map_twice);

	recv_byte(r.sock);
	role_must_end(&r);
	conclude(PASS, "written through one mapping, read through the other");
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "T1", t1_fd_outlives_owner },
	{ "T2", t2_fd_alone },
	{ "T3", t3_owner_without_context },
	{ "T4", t4_read_only_is_enforced },
	{ "T5", t5_timeline },
	{ "T6", t6_memory_comes_back },
	{ "T7", t7_dup_and_export_again },
	{ "T8", t8_poll_flags },
	{ "T9", t9_two_workers },
	{ "T10", t10_two_mappings },
};

static int run_tests(const char *commit)
{
	bool good = true;

	fprintf(stderr, "%s, %s, driver %s, %zu MiB\n", found->gpu.name, found->gpu.uuid,
		found->gpu.driver, size >> 20);
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++) {
		found->result = FAIL;
		found->value[0] = '\0';
		if (conduct(tests[i].run))
			found->result = FAIL;
		good = good && found->result != FAIL;
		report(tests[i].name, commit);
	}
	return good ? 0 : 1;
}

static const char usage[] =
	"usage: gpu_sharing [--emulated] [--size MIB] [--uuid UUID] [--commit ID]\n";

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "emulated", no_argument, NULL, 'e' },
		{ "size", required_argument, NULL, 's' },
		{ "uuid", required_argument, NULL, 'u' },
		{ "commit", required_argument, NULL, 'c' },
		{ NULL, 0, NULL, 0 },
	};
	const char *commit = "";
	bool emulated = false;
	char *end = NULL;
	unsigned long mib = 1024;
	int opt, ret;

	found = mmap(NULL, sizeof(*found), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (found == MAP_FAILED || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) {
		perror("gpu_sharing");
		return 1;
	}
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'e')
			emulated = true;
		else if (opt == 's')
			mib = strtoul(optarg, &end, 10);
		else if (opt == 'u')
			snprintf(found->gpu.uuid, sizeof(found->gpu.uuid), "%s", optarg);
		else if (opt == 'c')
			commit = optarg;
		else
			mib = 0;
	}
	if (optind < argc || (end && *end) || mib < 8 || mib > 65536 || mib % 2 ||
	    commit[strspn(commit, "0123456789abcdef+")]) {
		fputs(usage, stderr);
		return 2;
	}
	size = mib << 20;
	ret = find_gpu(emulated);
	return ret ? ret : run_tests(commit);
}
