// SPDX-License-Identifier: MIT
/*
 * The way to a holder, against one that is played and says what it should not. A peer of
 * our own uid, or what took its place, must not be able to do more than be cut off.
 */
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "tests/harness.h"
#include "daemon/ipc_link.h"
#include "daemon/mem.h"
#include "tests/fdmsg.h"

#define UUID	"GPU-00112233-4455-6677-8899-aabbccddeeff"
#define BOOT	0x1234
#define BYTES	CQP_HOLDER_GRAIN

struct said {
	struct cqp_holder_ans a;
	struct cqp_holder_block block[CQP_HOLDER_LIST + 1];
};

#define HANG_UP SIZE_MAX	/* length of an answer: none, and the connection ends */

/* How an answer to requests of @op is spoilt; @left times, then it is right. */
struct play {
	uint16_t op;
	void (*spoil)(struct said *said, size_t *len);
	unsigned int blocks;
	int left, fd;		/* @fd: sent along, -1: none */
	bool mute;
};

static struct {
	char path[300];
	struct cqd_ipc_link link;
	pid_t pid;
	int log;	/* numbers of blocks that were freed */
} t;

static struct said answer;	/* large: not on the stack */

static void list(const struct play *p, const struct cqp_holder_req *r)
{
	uint64_t i;

	for (i = r->block ? r->block : 1; i <= p->blocks && answer.a.n < CQP_HOLDER_LIST; i++)
		answer.block[answer.a.n++] = (struct cqp_holder_block){ .block = i,
									.bytes = BYTES };
}

static void reply(int fd, struct play *p, const struct cqp_holder_req *r)
{
	size_t len;

	memset(&answer, 0, sizeof(answer));
	answer.a = (struct cqp_holder_ans){
		.magic = CQP_HOLDER_MAGIC, .version = CQP_HOLDER_VERSION, .op = r->op,
		.seq = r->seq, .boot = BOOT, .bytes = 1 << 30, .uuid = UUID,
	};
	if (r->op == CQP_HOLDER_LIST_FROM) {
		list(p, r);
	} else if (r->op == CQP_HOLDER_ALLOC) {
		answer.a.n = 1;
		answer.block[0] = (struct cqp_holder_block){ r->block, r->bytes, { 7 } };
	}
	len = sizeof(answer.a) + answer.a.n * sizeof(answer.block[0]);
	if (r->op == p->op && p->left) {
		p->left--;
		if (p->mute)
			return;
		if (p->spoil)
			p->spoil(&answer, &len);
		if (!len)
			_exit(0);
		if (len == HANG_UP) {
			shutdown(fd, SHUT_RDWR);
			return;
		}
		fdmsg_send(fd, p->fd, &answer, len);
		return;
	}
	send(fd, &answer, len, MSG_NOSIGNAL);
}

static void talk(int fd, struct play *p)
{
	struct cqp_holder_req r;

	while (recv(fd, &r, sizeof(r), 0) == (ssize_t)sizeof(r)) {
		if (r.op == CQP_HOLDER_FREE)
			ASSERT_EQ(write(t.log, &r.block, sizeof(r.block)), sizeof(r.block));
		else
			reply(fd, p, &r);
	}
	close(fd);
}

static void play(struct play p)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), fd, log[2];

	snprintf(t.path, sizeof(t.path), "%s/h.sock", test_dir());
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.*s", (int)sizeof(sa.sun_path) - 1, t.path);
	ASSERT_SYS(s);
	ASSERT_SYS(bind(s, (struct sockaddr *)&sa, sizeof(sa)));
	ASSERT_SYS(listen(s, 4));
	ASSERT_SYS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, log));
	fflush(stdout);
	t.pid = fork();
	ASSERT_SYS(t.pid);
	if (!t.pid) {
		close(log[0]);
		t.log = log[1];
		while ((fd = accept4(s, NULL, NULL, SOCK_CLOEXEC)) >= 0)
			talk(fd, &p);
		_exit(0);
	}
	close(log[1]);
	close(s);
	t.log = log[0];
	cqd_ipc_link_init(&t.link, "g0", t.path, UUID);
}

static void done(void)
{
	int status;

	cqd_ipc_link_set(&t.link, NULL);
	pthread_mutex_destroy(&t.link.lock);
	kill(t.pid, SIGKILL);
	ASSERT_EQ(waitpid(t.pid, &status, 0), t.pid);
	close(t.log);
	unlink(t.path);
}

/* The next block that was freed, 0: none. */
static uint64_t freed(int ms)
{
	struct pollfd p = { .fd = t.log, .events = POLLIN };
	uint64_t block = 0;

	if (poll(&p, 1, ms) > 0)
		ASSERT_EQ(read(t.log, &block, sizeof(block)), sizeof(block));
	return block;
}

static int reach(void)
{
	struct cqd_ipc_peer p;
	struct cq_err err = { "" };
	int ret = cqd_ipc_reach(&t.link, &p, &err);

	if (!ret)
		cqd_ipc_link_set(&t.link, &p);
	else
		ASSERT_NE(strlen(err.text), 0);
	return ret;
}

static int get_block(uint64_t block)
{
	uint8_t handle[CQP_HOLDER_HANDLE];
	struct cq_err err = { "" };
	uint64_t boot;
	int ret = cqd_ipc_alloc(&t.link, block, BYTES, handle, &boot, &err);

	if (!ret) {
		ASSERT_EQ(boot, BOOT);
		ASSERT_EQ(handle[0], 7);
	} else {
		ASSERT_NE(strlen(err.text), 0);
	}
	return ret;
}

/* What a segment takes stays, the rest is given back. */
TEST(list_and_sweep)
{
	struct cqd_ipc_peer p;
	uint64_t i;

	play((struct play){ .blocks = 600, .fd = -1 });
	ASSERT_OK(cqd_ipc_reach(&t.link, &p, NULL));
	ASSERT_EQ(p.n, 600);
	ASSERT_EQ(p.boot, BOOT);
	ASSERT_EQ(p.bytes, 1 << 30);
	ASSERT(!cqd_ipc_peer_take(&p, 0, BYTES));
	ASSERT(!cqd_ipc_peer_take(&p, 601, BYTES));
	ASSERT(!cqd_ipc_peer_take(&p, 5, 2 * BYTES));
	for (i = 2; i <= 600; i++)
		ASSERT(cqd_ipc_peer_take(&p, i, BYTES)->block == i);
	ASSERT(!cqd_ipc_peer_take(&p, 5, BYTES));
	cqd_ipc_peer_sweep(&p);
	ASSERT_EQ(freed(5000), 1);
	ASSERT_EQ(freed(50), 0);
	cqd_ipc_link_set(&t.link, &p);
	ASSERT_EQ(p.fd, -1);
	ASSERT_OK(get_block(1000));
	cqd_ipc_free(&t.link, BOOT + 1, 1000);	/* of another holder */
	ASSERT_EQ(freed(50), 0);
	cqd_ipc_free(&t.link, BOOT, 1000);
	ASSERT_EQ(freed(5000), 1000);
	cqd_ipc_link_set(&t.link, NULL);
	ASSERT_EQ(get_block(1), -ENODATA);
	done();
}

TEST(nobody_there)
{
	play((struct play){ .fd = -1 });
	done();
	ASSERT_EQ(reach(), -ECONNREFUSED);
}

/* --- answers that are none --- */

static void bad_magic(struct said *a, size_t *len)
{
	a->a.magic++;
}

static void bad_version(struct said *a, size_t *len)
{
	a->a.version++;
}

static void bad_op(struct said *a, size_t *len)
{
	a->a.op = 77;
}

static void is_short(struct said *a, size_t *len)
{
	*len = sizeof(a->a) - 1;
}

static void one_byte(struct said *a, size_t *len)
{
	*len = 1;
}

static void too_long(struct said *a, size_t *len)
{
	*len = sizeof(*a);
}

static void more_than_said(struct said *a, size_t *len)
{
	a->a.n++;
}

static void very_many(struct said *a, size_t *len)
{
	a->a.n = UINT32_MAX;
}

static void good_error(struct said *a, size_t *len)
{
	a->a.error = 5;
}

static void wild_error(struct said *a, size_t *len)
{
	a->a.error = INT32_MIN;
}

static void no_boot(struct said *a, size_t *len)
{
	a->a.boot = 0;
}

static void open_text(struct said *a, size_t *len)
{
	memset(a->a.text, 'x', sizeof(a->a.text));
}

static void open_uuid(struct said *a, size_t *len)
{
	memset(a->a.uuid, 'x', sizeof(a->a.uuid));
}

static void (*const nonsense[])(struct said *, size_t *) = {
	bad_magic, bad_version, bad_op, is_short, one_byte, too_long, more_than_said, very_many,
	good_error, wild_error, no_boot, open_text, open_uuid,
};

#define N_NONSENSE (sizeof(nonsense) / sizeof(nonsense[0]))

/* To Hello, to the list and to a request: refused, and right the next time. */
TEST_LIMIT(nonsense_is_refused, 60)
{
	static const uint16_t ops[] = { CQP_HOLDER_HELLO, CQP_HOLDER_LIST_FROM };
	unsigned int i, k;

	for (i = 0; i < N_NONSENSE; i++) {
		for (k = 0; k < 2; k++) {
			play((struct play){ .op = ops[k], .spoil = nonsense[i], .left = 1,
					    .fd = -1 });
			ASSERT_EQ(reach(), -EPROTO);
			ASSERT_OK(reach());
			done();
		}
		play((struct play){ .op = CQP_HOLDER_ALLOC, .spoil = nonsense[i], .left = 1,
				    .fd = -1 });
		ASSERT_OK(reach());
		ASSERT_EQ(get_block(1), -EPROTO);
		/* Cut off: nothing more of this connection is believed. */
		ASSERT_EQ(get_block(2), -ENODATA);
		ASSERT_OK(reach());
		ASSERT_OK(get_block(3));
		done();
	}
}

/* Descriptors are not let in. */
TEST(descriptor_along)
{
	play((struct play){ .op = CQP_HOLDER_ALLOC, .left = 1, .fd = 0 });
	ASSERT_OK(reach());
	ASSERT_EQ(get_block(1), -EPROTO);
	done();
}

static void other_block(struct said *a, size_t *len)
{
	a->block[0].block++;
}

static void other_size(struct said *a, size_t *len)
{
	a->block[0].bytes *= 2;
}

static void other_boot(struct said *a, size_t *len)
{
	a->a.boot++;
}

static void none_at_all(struct said *a, size_t *len)
{
	a->a.n = 0;
	*len = sizeof(a->a);
}

TEST(another_block)
{
	static void (*const how[])(struct said *, size_t *) = {
		other_block, other_size, other_boot, none_at_all,
	};
	unsigned int i;

	for (i = 0; i < 4; i++) {
		play((struct play){ .op = CQP_HOLDER_ALLOC, .spoil = how[i], .left = 1,
				    .fd = -1 });
		ASSERT_OK(reach());
		ASSERT_EQ(get_block(1), -EPROTO);
		done();
	}
}

static void backwards(struct said *a, size_t *len)
{
	struct cqp_holder_block b = a->block[0];

	a->block[0] = a->block[1];
	a->block[1] = b;
}

static void same_again(struct said *a, size_t *len)
{
	a->block[1] = a->block[0];
}

static void for_ever(struct said *a, size_t *len)
{
	static uint64_t next;
	unsigned int i;

	a->a.n = CQP_HOLDER_LIST;
	for (i = 0; i < CQP_HOLDER_LIST; i++)
		a->block[i].block = ++next;
	*len = sizeof(a->a) + sizeof(a->block[0]) * CQP_HOLDER_LIST;
}

TEST(bad_lists)
{
	static void (*const how[])(struct said *, size_t *) = { backwards, same_again, for_ever };
	unsigned int i;

	for (i = 0; i < 3; i++) {
		play((struct play){ .op = CQP_HOLDER_LIST_FROM, .spoil = how[i], .left = 1000,
				    .blocks = 2, .fd = -1 });
		ASSERT_EQ(reach(), -EPROTO);
		done();
	}
}

static void of_another_gpu(struct said *a, size_t *len)
{
	a->a.uuid[4] = 'f';
}

TEST(another_device)
{
	play((struct play){ .op = CQP_HOLDER_HELLO, .spoil = of_another_gpu, .left = 1,
			    .fd = -1 });
	ASSERT_EQ(reach(), -EINVAL);
	done();
}

static void full(struct said *a, size_t *len)
{
	none_at_all(a, len);
	a->a.error = -ENOMEM;
}

static void dies(struct said *a, size_t *len)
{
	*len = 0;
}

/* The holder's error is the caller's; its death is -ENODATA. */
TEST(errors)
{
	play((struct play){ .op = CQP_HOLDER_ALLOC, .spoil = full, .left = 1, .fd = -1 });
	ASSERT_OK(reach());
	ASSERT_EQ(get_block(1), -ENOMEM);
	ASSERT_OK(get_block(1));
	done();
	play((struct play){ .op = CQP_HOLDER_ALLOC, .spoil = dies, .left = 1, .fd = -1 });
	ASSERT_OK(reach());
	ASSERT_EQ(get_block(1), -ENODATA);
	done();
	play((struct play){ .op = CQP_HOLDER_HELLO, .spoil = dies, .left = 1, .fd = -1 });
	ASSERT_EQ(reach(), -ECONNABORTED);
	done();
}

static void hangs_up(struct said *a, size_t *len)
{
	*len = HANG_UP;
}

/* At the start, when pages depend on it, a holder that hangs up is asked again. */
TEST(asked_again)
{
	struct cqd_mem_device dev = { .link = &t.link };
	struct cq_err err;

	play((struct play){ .op = CQP_HOLDER_HELLO, .spoil = hangs_up, .left = 2, .fd = -1 });
	ASSERT_OK(cqd_mem_ipc.probe(&dev, &err));
	cqd_ipc_link_set(&t.link, NULL);
	done();
	play((struct play){ .op = CQP_HOLDER_HELLO, .spoil = hangs_up, .left = 3, .fd = -1 });
	ASSERT_EQ(cqd_mem_ipc.probe(&dev, &err), -ECONNABORTED);
	ASSERT_STRHAS(err.text, "hung up");
	done();
}

static void late(struct said *a, size_t *len)
{
	a->a.seq--;
}

/* Nobody waits for ever; what comes too late is known, and its block given back. */
TEST_LIMIT(no_answer, 60)
{
	play((struct play){ .op = CQP_HOLDER_HELLO, .mute = true, .left = 1, .fd = -1 });
	ASSERT_EQ(reach(), -ETIMEDOUT);
	done();
	play((struct play){ .op = CQP_HOLDER_ALLOC, .spoil = late, .left = 1, .fd = -1 });
	ASSERT_OK(reach());
	ASSERT_EQ(get_block(9), -ETIMEDOUT);
	ASSERT_EQ(freed(5000), 9);
	ASSERT_OK(get_block(10));
	done();
}
