// SPDX-License-Identifier: MIT
/*
 * libcq on the emulated GPU against a cqd that lies about leases and segments: a
 * process between the two changes what cqd says. Whatever it is, nothing is written
 * outside of slots (the driver would end the context), and the next one is fine.
 */
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "tests/unit/test_libcq_gpu.h"
#include "client/gpu.h"

enum lie {
	HONEST,
	LEASE_NONE, LEASE_LENGTH, LEASE_SLOT, LEASE_SLOT_NEXT, LEASE_TWICE, LEASE_GENERATION,
	LEASE_SEALED, LEASE_SEGMENT, LEASE_SINKS_FOR_CODES,
	SEG_BYTES, SEG_SLOTS, SEG_SMALL_SLOTS, SEG_WORDS, SEG_IPC, SEG_SHORT_HANDLE,
	LIES,
};

/* Shared with the process between. */
static struct {
	int lie, told;
} *m;

static struct rig r;
static const struct shape small = GPU_SHAPE;
static uint32_t ids[64 * 64];
static char between[300];
static pid_t liar;

/* --- the process between --- */

static struct cqp_page sinks;	/* some of an honest answer */

static void lie_lease(Cqp__LeaseOk *ok)
{
	size_t n = ok->slots.len / sizeof(struct cqp_page), i;
	struct cqp_page p[1024];

	ASSERT_LE(n, 1024);
	memcpy(p, ok->slots.data, n * sizeof(*p));
	m->told = m->lie <= LEASE_SINKS_FOR_CODES || m->told;
	for (i = 0; i < n; i++) {
		if (m->lie == LEASE_SLOT)
			p[i].slot = 0xfffffff0;
		if (m->lie == LEASE_SLOT_NEXT)	/* there are fewer in a segment */
			p[i].slot += 100000;
		if (m->lie == LEASE_TWICE)
			p[i] = p[0];
		if (m->lie == LEASE_GENERATION)
			p[i].word += CQP_WORD(1, 0);
		if (m->lie == LEASE_SEALED)
			p[i].word = CQP_WORD(CQP_WORD_GEN(p[i].word), CQP_SEALED);
		if (m->lie == LEASE_SEGMENT)
			p[i].segment ^= 0x5555;
		if (m->lie == LEASE_SINKS_FOR_CODES)
			p[i].segment = sinks.segment;
	}
	memcpy(ok->slots.data, p, n * sizeof(*p));
	if (m->lie == LEASE_NONE)
		ok->slots.len = 0;
	if (m->lie == LEASE_LENGTH)
		ok->slots.len--;
}

static void lie_segment(Cqp__SegmentOk *ok)
{
	static uint8_t handle[CQC_IPC_HANDLE];

	m->told = m->lie >= SEG_BYTES || m->told;
	if (m->lie == SEG_BYTES)
		ok->bytes *= 4;
	if (m->lie == SEG_SLOTS) {
		ok->slots *= 4;
		ok->bytes *= 4;
	}
	if (m->lie == SEG_SMALL_SLOTS)
		ok->slot_bytes = CQ_SLOT_ALIGN;
	if (m->lie == SEG_WORDS)
		ok->word_base = UINT64_MAX - 4;
	if (m->lie != SEG_IPC && m->lie != SEG_SHORT_HANDLE)
		return;
	ok->has_backend = 1;
	ok->backend = CQP__BACKEND__CUDA_IPC;
	ok->has_handle = 1;
	ok->handle.data = handle;
	ok->handle.len = sizeof(handle) - (m->lie == SEG_SHORT_HANDLE);
}

/* One datagram. */
static bool pass(int from, int to, bool answer)
{
	static struct cqp_frame f;
	Cqp__Msg *msg;
	uint32_t fds;

	if (cqp_recv(from, &f, 0) != 1)
		return false;
	msg = cqp_unpack(f.buf, f.len, NULL);
	ASSERT(msg);
	fds = f.n_fds;
	if (answer && msg->body_case == CQP__MSG__BODY_LEASE_OK && m->lie)
		lie_lease(msg->lease_ok);
	if (answer && msg->body_case == CQP__MSG__BODY_SEGMENT_OK && m->lie) {
		uint8_t *was = msg->segment_ok->handle.data;

		lie_segment(msg->segment_ok);
		if (msg->segment_ok->handle.len)
			fds = 0;
		cqp_send(to, msg, f.fds, fds, 0);
		msg->segment_ok->handle.data = was;
	} else {
		cqp_send(to, msg, f.fds, fds, 0);
	}
	if (answer && msg->body_case == CQP__MSG__BODY_LEASE_OK && !m->lie)
		memcpy(&sinks, msg->lease_ok->slots.data, sizeof(sinks));
	cqp_free(msg);
	cqp_frame_close(&f);
	return true;
}

static int dial(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	ASSERT_SYS(fd);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.107s", path);
	ASSERT_SYS(connect(fd, (struct sockaddr *)&sa, sizeof(sa)));
	return fd;
}

static void stand_between(int worker)
{
	struct pollfd p[2] = { { .fd = worker, .events = POLLIN },
			       { .fd = dial(r.sock), .events = POLLIN } };
	bool more = true;

	while (more && poll(p, 2, -1) > 0) {
		if (p[0].revents)
			more = pass(p[0].fd, p[1].fd, false);
		if (more && p[1].revents)
			more = pass(p[1].fd, p[0].fd, true);
	}
	close(p[0].fd);
	close(p[1].fd);
}

static void liar_start(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), sock;

	m = mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(m != MAP_FAILED);
	snprintf(between, sizeof(between), "%s/between.sock", test_dir());
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.107s", between);
	ASSERT_SYS(fd);
	ASSERT_SYS(bind(fd, (struct sockaddr *)&sa, sizeof(sa)));
	ASSERT_SYS(listen(fd, 8));
	fflush(stdout);
	liar = fork();
	ASSERT_SYS(liar);
	if (liar) {
		close(fd);
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		sock = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		ASSERT_SYS(sock);
		stand_between(sock);
	}
}

/* --- tests --- */

static void begin(void)
{
	gpu_env();
	rig_ids(ids, ARRAY_SIZE(ids), 1);
	rig_start(&r, &small, GPU_CONF);
	liar_start();
}

static void end(void)
{
	ASSERT_SYS(kill(liar, SIGKILL));
	ASSERT_EQ(waitpid(liar, NULL, 0), liar);
	rig_stop(&r);
}

static void works(void)
{
	struct cq_seq *seq;
	struct worker w;

	worker_gpu_open(&w, &small, between, 0, 32);
	seq = worker_seq(&w, NULL, 0);
	gpu_grow(&w, seq, ids, 200);
	CQ_OK(cq_seal(seq, 5000));
	ASSERT_EQ(worker_info(seq).sealed, 192);
	ASSERT_EQ(w.model->gpu->lost, 0);
	cq_close(w.ctx);
}

/* At cq_model_open(): refused with a text that says who is wrong. */
TEST_LIMIT(lies_at_open, 60)
{
	struct worker w;
	int lie, ret;

	begin();
	works();
	for (lie = LEASE_NONE; lie < LIES; lie++) {
		m->told = 0;
		m->lie = lie;
		ret = worker_gpu_try(&w, &small, between, 0, 32);
		ASSERT(m->told);
		if (!ret)
			FAIL("lie %d is believed", lie);
		ASSERT_STRHAS(cq_last_error(), "cqd");
		m->lie = HONEST;
		cq_close(w.ctx);
		works();
	}
	end();
}

static bool some_leased(const struct worker *w)
{
	struct cq_seq *seq = worker_seq(w, NULL, 0);
	int ret = gpu_append_layer(w, seq, ids, 60 * 64, 0);

	cq_seq_close(seq);
	return !ret;
}

/* Later, of slots that are asked for ahead: the connection is made anew. */
TEST_LIMIT(lies_about_more_leases, 120)
{
	struct cq_seq *seq;
	struct worker w;
	int lie, i;

	begin();
	for (lie = LEASE_SLOT; lie <= LEASE_SEGMENT; lie++) {
		worker_gpu_open(&w, &small, between, 0, 64);
		seq = worker_seq(&w, NULL, 0);
		gpu_grow(&w, seq, ids, 64);
		m->told = 0;
		m->lie = lie;
		for (i = 0; i < 5000 && !m->told; i++) {
			some_leased(&w);
			usleep(1000);
		}
		ASSERT(m->told);
		usleep(20000);
		m->lie = HONEST;
		for (i = 0; i < 5000 && !some_leased(&w); i++)
			usleep(1000);
		ASSERT_LT(i, 5000);
		ASSERT_EQ(w.model->gpu->lost, 0);
		cq_seq_close(seq);
		cq_close(w.ctx);
	}
	works();
	end();
}
