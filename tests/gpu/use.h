/* SPDX-License-Identifier: MIT */
/*
 * T4, T5 and T10: what processes can do to memory that they share, and in what
 * order others see it. Include it once, after life.h.
 */
#ifndef GPU_USE_H
#define GPU_USE_H

#define TURNS	64	/* well below what a stream may have pending */

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
	p = mem_map(mem_import(fd), mem_size, READ);
	compare(p, mem_size);
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
	conclude(PASSED, "the writer got %s%s; owner and memory as before",
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
	CALL(cuMemsetD8(p, 0, 2 * GRAN));
	CALL(cuStreamCreate(&s, CQCU_STREAM_NON_BLOCKING));
	CALL(cuCtxSynchronize());
	send_fd(sock, mem_export(h), "", 1);
	recv_byte(sock);
	began = now_ms();
	for (unsigned int i = 0; i < TURNS; i++) {
		CALL(cuMemsetD32Async(p + GRAN + 8 * i, i + 100, 2, s));
		CALL(cuStreamWriteValue64(s, p, 2 * i + 1, 0));
		CALL(cuStreamWaitValue64(s, p, 2 * i + 2, CQCU_STREAM_WAIT_VALUE_GEQ));
	}
	CALL(cuStreamSynchronize(s));
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
	CALL(cuMemAlloc(&mine, sizeof(got)));
	CALL(cuStreamCreate(&s, CQCU_STREAM_NON_BLOCKING));
	for (unsigned int i = 0; i < TURNS; i++) {
		CALL(cuStreamWaitValue64(s, p, 2 * i + 1, CQCU_STREAM_WAIT_VALUE_GEQ));
		CALL(cuMemcpyDtoDAsync(mine + 8 * i, p + GRAN + 8 * i, 8, s));
		CALL(cuStreamWriteValue64(s, p, 2 * i + 2, 0));
	}
	res = cu->cuStreamQuery(s);
	if (res != CQCU_ERROR_NOT_READY)
		broken("a stream did not wait for a value that nobody has written");
	send_byte(sock, 0);
	CALL(cuStreamSynchronize(s));
	CALL(cuMemcpyDtoH(got, mine, sizeof(got)));
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
		conclude(SKIPPED, "the device has no 64-bit stream memory operations");
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
	conclude(PASSED, "%d turns between two processes, %.0f us each", TURNS, took * 1e3 / TURNS);
}

static void map_twice(int sock)
{
	cqcu_ptr ro, rw;
	cqcu_mem h;

	start();
	h = mem_new(mem_size);
	rw = mem_map(h, mem_size, READWRITE);
	ro = mem_map(h, mem_size, READ);
	fill(rw, mem_size);
	compare(ro, mem_size);
	CALL(cuMemUnmap(rw, mem_size));
	compare(ro, mem_size);
	send_byte(sock, 0);
}

static void t10_two_mappings(void)
{
	struct role r = role_start(map_twice);

	recv_byte(r.sock);
	role_must_end(&r);
	conclude(PASSED, "written through one mapping, read through the other");
}

#endif /* GPU_USE_H */
