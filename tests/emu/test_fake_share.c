// SPDX-License-Identifier: MIT
/*
 * The fake driver across processes: memory by descriptor and by legacy handle,
 * who keeps it alive, and what one process's faults do to others (nothing).
 * Each process starts the driver for itself, after it was forked.
 */
#include "tests/harness.h"
#include "tests/emu/fake_rig.h"

#define SIZE	(2 * GRAN)

/* All processes of one test see the same devices, and no other test's. */
static void share_state(void)
{
	char name[64];

	snprintf(name, sizeof(name), "share%d", getpid());
	knob("CQ_EMU_STATE", name);
	knob("CQ_EMU_MEMORY", "8388608");
}

static size_t used(void)
{
	size_t left, total;

	CU(cuMemGetInfo(&left, &total));
	return total - left;
}

static void kill_and_reap(pid_t pid)
{
	int status;

	ASSERT_SYS(kill(pid, SIGKILL));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
}

static void wait_for_byte(int sock)
{
	char c;

	ASSERT_EQ(read(sock, &c, 1), 1);
}

static void send_byte(int sock)
{
	ASSERT_EQ(send(sock, "", 1, MSG_NOSIGNAL), 1);
}

static void own_vmm(int sock)
{
	cqcu_ptr p;
	cqcu_mem h;
	int fd;

	start();
	h = mem_new(SIZE);
	p = mem_map(h, SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	ASSERT_EQ(launch_fill(p, 0x1234, SIZE / 4, NULL), 0);
	CU(cuCtxSynchronize());
	CU(cuMemExportToShareableHandle(&fd, h, 1, 0));
	send_fd(sock, fd, "", 1);
	wait_for_byte(sock);
}

static cqcu_mem import(int fd)
{
	cqcu_mem h;

	CU(cuMemImportFromShareableHandle(&h, (void *)(intptr_t)fd, 1));
	return h;
}

/* The owner is killed; a holder without CUDA has the fd; a third one imports. */
TEST(a_descriptor_keeps_memory_when_its_owner_dies)
{
	pid_t owner;
	cqcu_ptr p;
	cqcu_mem h;
	int sock, fd;
	char c;

	share_state();
	owner = spawn(own_vmm, &sock);
	fd = recv_fd(sock, &c, 1);
	ASSERT_LE(0, fd);
	kill_and_reap(owner);
	close(sock);
	start();
	ASSERT_EQ(used(), SIZE);
	h = import(fd);
	p = mem_map(h, SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READ);
	ASSERT_EQ(peek(p), 0x1234);
	ASSERT_EQ(peek(p + SIZE - 4), 0x1234);
	/* descriptor, handle, mapping: the last of them counts */
	close(fd);
	ASSERT_EQ(used(), SIZE);
	CU(cuMemRelease(h));
	ASSERT_EQ(used(), SIZE);
	ASSERT_EQ(peek(p), 0x1234);
	CU(cuMemUnmap(p, SIZE));
	ASSERT_EQ(used(), 0);
}

/* The daemon's way: cuInit() only, no context. */
TEST(an_owner_without_a_context)
{
	cqcu_mem h;
	size_t left;
	int fd;

	share_state();
	start_driver();
	h = mem_new(SIZE);
	CU(cuMemExportToShareableHandle(&fd, h, 1, 0));
	CU(cuMemRelease(h));
	h = import(fd);
	CU(cuMemRelease(h));
	close(fd);
	CU_FAILS(CQCU_ERROR_INVALID_CONTEXT, cuMemGetInfo(&left, &left));
}

static void own_and_hang(int sock)
{
	start();
	mem_new(3 * GRAN);
	send_byte(sock);
	wait_for_byte(sock);
}

TEST(memory_is_counted_over_all_processes)
{
	struct cqcu_mem_prop prop = { .type = CQCU_MEM_ALLOCATION_TYPE_PINNED,
				      .location = { CQCU_MEM_LOCATION_TYPE_DEVICE, 0 } };
	pid_t owner;
	cqcu_mem h;
	int sock;

	share_state();
	owner = spawn(own_and_hang, &sock);
	wait_for_byte(sock);
	start();
	ASSERT_EQ(used(), 3 * GRAN);
	CU_FAILS(CQCU_ERROR_OUT_OF_MEMORY, cuMemCreate(&h, 2 * GRAN, &prop, 0));
	kill_and_reap(owner);
	close(sock);
	ASSERT_EQ(used(), 0);
	CU(cuMemCreate(&h, 4 * GRAN, &prop, 0));
	CU(cuMemRelease(h));
}

static void own_block(int sock)
{
	struct cqcu_ipc_handle h;
	cqcu_ptr p;

	start();
	CU(cuMemAlloc(&p, 10000));
	ASSERT_EQ(launch_fill(p, 77, 2500, NULL), 0);
	CU(cuCtxSynchronize());
	CU(cuIpcGetMemHandle(&h, p + 100));
	send_fd(sock, -1, &h, sizeof(h));
	wait_for_byte(sock);
	/* told to free it, then to end */
	CU(cuMemFree(p));
	send_byte(sock);
	wait_for_byte(sock);
}

TEST(a_legacy_handle_needs_its_owner)
{
	struct cqcu_ipc_handle h;
	cqcu_ptr p, again;
	pid_t owner;
	int sock;

	share_state();
	owner = spawn(own_block, &sock);
	recv_fd(sock, &h, sizeof(h));
	start();
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuIpcOpenMemHandle(&p, h, 0));
	CU(cuIpcOpenMemHandle(&p, h, 1));
	ASSERT_EQ(peek(p), 77);
	ASSERT_EQ(peek(p + 9996), 77);
	poke(p, 78);
	CU(cuIpcOpenMemHandle(&again, h, 1));
	ASSERT_EQ(again, p);
	CU(cuIpcCloseMemHandle(p));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemFree(p));
	kill_and_reap(owner);
	close(sock);
	/* opened before: it lives on; but nobody opens it any more */
	ASSERT_EQ(peek(p), 78);
	CU_FAILS(CQCU_ERROR_MAP_FAILED, cuIpcOpenMemHandle(&again, h, 1));
	ASSERT_LT(0, used());
	CU(cuIpcCloseMemHandle(p));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuIpcCloseMemHandle(p));
	ASSERT_EQ(used(), 0);
	CU_FAILS(CQCU_ERROR_MAP_FAILED, cuIpcOpenMemHandle(&p, h, 1));
}

static void open_block(int sock)
{
	struct cqcu_ipc_handle h;
	cqcu_ptr p;

	recv_fd(sock, &h, sizeof(h));
	start();
	CU(cuIpcOpenMemHandle(&p, h, 1));
	send_byte(sock);
	wait_for_byte(sock);
	ASSERT_EQ(peek(p), 77);
}

/* Somebody still has it open; that is no way in for others. */
TEST(a_legacy_handle_of_freed_memory)
{
	struct cqcu_ipc_handle h;
	pid_t owner, other;
	int sock, other_sock;
	cqcu_ptr p;

	share_state();
	owner = spawn(own_block, &sock);
	other = spawn(open_block, &other_sock);
	recv_fd(sock, &h, sizeof(h));
	send_fd(other_sock, -1, &h, sizeof(h));
	wait_for_byte(other_sock);
	start();
	send_byte(sock);
	wait_for_byte(sock);
	CU_FAILS(CQCU_ERROR_MAP_FAILED, cuIpcOpenMemHandle(&p, h, 1));
	ASSERT_LT(0, used());
	send_byte(sock);
	reap(owner);
	close(sock);
	send_byte(other_sock);
	reap(other);
	close(other_sock);
	ASSERT_EQ(used(), 0);
}

TEST(legacy_handles_that_are_none)
{
	struct cqcu_ipc_handle h;
	cqcu_ptr p, q;
	cqcu_mem mem;

	start();
	memset(&h, 0xff, sizeof(h));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuIpcOpenMemHandle(&p, h, 1));
	memset(&h, 0, sizeof(h));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuIpcOpenMemHandle(&p, h, 1));
	mem = mem_new(GRAN);
	q = mem_map(mem, GRAN, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuIpcGetMemHandle(&h, q));
	CU(cuMemUnmap(q, GRAN));
	CU(cuMemRelease(mem));
	CU(cuMemAlloc(&p, 64));
	CU(cuIpcGetMemHandle(&h, p));
	CU_FAILS(CQCU_ERROR_INVALID_CONTEXT, cuIpcOpenMemHandle(&q, h, 1));
}

/* Its context is lost; the memory and everybody else's are not. */
static void write_read_only(int sock)
{
	cqcu_ptr p;
	char c;
	int fd = recv_fd(sock, &c, 1);

	start();
	p = mem_map(import(fd), SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READ);
	ASSERT_EQ(peek(p), 5);
	ASSERT_EQ(launch_fill(p, 6, 1, NULL), 0);
	CU_FAILS(CQCU_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
}

TEST(one_process_faults_alone)
{
	pid_t bad;
	cqcu_ptr p;
	cqcu_mem h;
	int sock, fd;

	share_state();
	bad = spawn(write_read_only, &sock);
	start();
	h = mem_new(SIZE);
	p = mem_map(h, SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	poke(p, 5);
	CU(cuMemExportToShareableHandle(&fd, h, 1, 0));
	send_fd(sock, fd, "", 1);
	reap(bad);
	ASSERT_EQ(launch_step(p + 4, p, 1, NULL), 0);
	ASSERT_EQ(peek(p + 4), 16);
	CU(cuMemUnmap(p, SIZE));
	CU(cuMemRelease(h));
	close(fd);
	close(sock);
}

/* A stream of one process waits for a word that another one writes. */
static void write_word(int sock)
{
	struct cqcu_stream *s;
	cqcu_ptr p;
	char c;
	int fd = recv_fd(sock, &c, 1);

	start();
	p = mem_map(import(fd), SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	CU(cuStreamCreate(&s, 1));
	ASSERT_EQ(launch_fill(p + 64, 21, 1, s), 0);
	CU(cuStreamWriteValue64(s, p, 3, 0));
	CU(cuStreamSynchronize(s));
}

TEST(a_word_orders_streams_of_two_processes)
{
	struct cqcu_stream *s;
	pid_t writer;
	cqcu_ptr p;
	cqcu_mem h;
	int sock, fd;

	share_state();
	knob("CQ_EMU_DELAY_US", "1000");
	writer = spawn(write_word, &sock);
	start();
	h = mem_new(SIZE);
	p = mem_map(h, SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	CU(cuStreamCreate(&s, 1));
	CU(cuStreamWaitValue64(s, p, 3, 0));
	ASSERT_EQ(launch_step(p + 128, p + 64, 1, s), 0);
	CU(cuMemExportToShareableHandle(&fd, h, 1, 0));
	send_fd(sock, fd, "", 1);
	CU(cuStreamSynchronize(s));
	ASSERT_EQ(peek(p + 128), 64);
	reap(writer);
	CU(cuMemUnmap(p, SIZE));
	CU(cuMemRelease(h));
	close(fd);
	close(sock);
}

TEST(a_descriptor_that_polls_as_hung_up)
{
	struct pollfd pfd = { .events = POLLIN };
	cqcu_ptr p;
	cqcu_mem h;

	share_state();
	knob("CQ_EMU_FD_POLL", "1");
	start();
	h = mem_new(SIZE);
	CU(cuMemExportToShareableHandle(&pfd.fd, h, 1, 0));
	ASSERT_EQ(poll(&pfd, 1, 0), 1);
	ASSERT_EQ(pfd.revents & (POLLERR | POLLHUP), POLLERR | POLLHUP);
	p = mem_map(h, SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	poke(p, 31);
	CU(cuMemUnmap(p, SIZE));
	CU(cuMemRelease(h));
	/* it keeps the memory, and can be imported more than once */
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(used(), SIZE);
		h = import(pfd.fd);
		p = mem_map(h, SIZE, CQCU_MEM_ACCESS_FLAGS_PROT_READ);
		ASSERT_EQ(peek(p), 31);
		CU(cuMemUnmap(p, SIZE));
		CU(cuMemRelease(h));
	}
	close(pfd.fd);
	ASSERT_EQ(used(), 0);
}

TEST(descriptors_that_are_no_memory)
{
	int p[2], fd, dir, null;
	cqcu_mem h;

	start();
	ASSERT_SYS(pipe2(p, O_CLOEXEC));
	ASSERT_SYS(fd = memfd_create("x", MFD_CLOEXEC));
	ASSERT_SYS(ftruncate(fd, (off_t)(GRAN + 4096)));
	ASSERT_SYS(dir = open("/", O_RDONLY | O_CLOEXEC));
	ASSERT_SYS(null = open("/dev/null", O_RDWR | O_CLOEXEC));
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemImportFromShareableHandle(&h, (void *)-1l, 1));
	for (int i = 0; i < 5; i++) {
		int some[] = { p[0], p[1], fd, dir, null };

		CU_FAILS(CQCU_ERROR_INVALID_VALUE,
			 cuMemImportFromShareableHandle(&h, (void *)(intptr_t)some[i], 1));
	}
	CU_FAILS(CQCU_ERROR_INVALID_VALUE, cuMemImportFromShareableHandle(&h, (void *)999l, 1));
	CU_FAILS(CQCU_ERROR_NOT_SUPPORTED, cuMemImportFromShareableHandle(&h, (void *)0l, 8));
	close(p[0]);
	close(p[1]);
	close(fd);
	close(dir);
	close(null);
}
