/* SPDX-License-Identifier: MIT */
/* The protocol by hand: what libcq would never send can be sent with this. */
#ifndef TESTS_WIRE_H
#define TESTS_WIRE_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "proto/frame.h"
#include "proto/key.h"

/* A request as @var; @body is of the type that @CASE and @field say. */
#define DECLARE_MSG(var, CASE, field, body)					\
	Cqp__Msg var = {							\
		.base = PROTOBUF_C_MESSAGE_INIT(&cqp__msg__descriptor),		\
		.body_case = CQP__MSG__BODY_##CASE,				\
		.field = &(body),						\
	}

/* The same in tests of one side, where the other is played by hand. */
#define WIRE_MSG(var, CASE, field, body) DECLARE_MSG(var, CASE, field, body)

/* Connected socket, or -errno. */
static inline int wire_connect(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd, ret;

	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	memcpy(a.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

/* As cqp_recv(), with a deadline: -ETIMEDOUT. */
static inline int wire_recv(int fd, struct cqp_frame *f, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int ret;

	if (poll(&p, 1, ms) <= 0)
		return -ETIMEDOUT;
	ret = cqp_recv(fd, f, MSG_DONTWAIT);
	/* said once; what was sent before can still be read */
	return ret == -ECONNRESET ? cqp_recv(fd, f, MSG_DONTWAIT) : ret;
}

/*
 * Send @msg under a fresh id and wait for its answer, which is to be freed with
 * cqp_free(). @f, if not NULL, receives the descriptors. NULL: the connection
 * ended, or 5 s went by.
 */
static inline Cqp__Msg *wire_call(int fd, Cqp__Msg *msg, const int *fds,
				  unsigned int n_fds, struct cqp_frame *f)
{
	static struct cqp_frame own;
	static uint64_t id;
	Cqp__Msg *reply;
	int ret;

	f = f ? f : &own;
	msg->id = ++id;
	ret = cqp_send(fd, msg, fds, n_fds, 0);
	if (ret && ret != -EPIPE)	/* closed: why may be there to be read */
		return NULL;
	while (wire_recv(fd, f, 5000) == 1) {
		reply = cqp_unpack(f->buf, f->len, NULL);
		if (reply && (reply->id == id || !reply->id)) {
			if (f == &own)
				cqp_frame_close(f);
			return reply;
		}
		cqp_free(reply);
		cqp_frame_close(f);
	}
	return NULL;
}

/* Error code of @reply, 0 if it is no Error, -ENOTCONN if there is none. Frees it. */
static inline int wire_code(Cqp__Msg *reply)
{
	int code = 0;

	if (!reply)
		return -ENOTCONN;
	if (reply->body_case == CQP__MSG__BODY_ERROR)
		code = reply->error->code ? reply->error->code : -EBADMSG;
	cqp_free(reply);
	return code;
}

/* The answer was not the one hoped for: why. Frees it. */
static inline int wire_unexpected(Cqp__Msg *reply)
{
	int code = wire_code(reply);

	return code ? code : -EBADMSG;
}

/* Hello with the given version and namespace; 0, the daemon's code, or -ENOTCONN. */
static inline int wire_hello_as(int fd, uint32_t protocol, uint64_t incompat,
				const char *tenant)
{
	Cqp__Hello hello = CQP__HELLO__INIT;
	char name[] = "test", ns[64] = "";
	DECLARE_MSG(msg, HELLO, hello, hello);

	hello.protocol = protocol;
	hello.incompat = incompat;
	hello.client = name;
	if (tenant) {
		strncat(ns, tenant, sizeof(ns) - 1);
		hello.tenant = ns;
	}
	return wire_code(wire_call(fd, &msg, NULL, 0, NULL));
}

static inline int wire_hello(int fd)
{
	return wire_hello_as(fd, CQP_VERSION, 0, NULL);
}

/*
 * Hello that goes on with *@session if it is one: 1 it does, 0 it is a new one,
 * -errno. *@session is what the daemon says.
 */
static inline int wire_resume(int fd, uint64_t *session)
{
	Cqp__Hello hello = CQP__HELLO__INIT;
	char name[] = "test";
	DECLARE_MSG(msg, HELLO, hello, hello);
	Cqp__Msg *r;
	int resumed;

	hello.protocol = CQP_VERSION;
	hello.client = name;
	hello.has_session = *session != 0;
	hello.session = *session;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_HELLO_OK)
		return wire_unexpected(r);
	*session = r->hello_ok->session;
	resumed = r->hello_ok->resumed;
	cqp_free(r);
	return resumed;
}

/* Connected and greeted, or -errno. */
static inline int wire_open(const char *path)
{
	int fd = wire_connect(path), ret;

	if (fd < 0)
		return fd;
	ret = wire_hello(fd);
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

/**
 * struct wire_shard - a model opened by hand, with an arena
 * @memfd: the arena, @bytes of it mapped at @base
 */
struct wire_shard {
	uint32_t shard, arena;
	struct cqp_key root;
	int memfd;
	uint64_t bytes;
	void *base;
};

/* ModelOpen of the whole model; 0 or a negative errno. Its descriptors are closed. */
static inline int wire_model_open(int fd, const char *model, struct wire_shard *w)
{
	Cqp__ModelOpen body = CQP__MODEL_OPEN__INIT;
	DECLARE_MSG(msg, MODEL_OPEN, model_open, body);
	char name[CQP_MAX_NAME] = "";
	Cqp__Msg *r;

	strncat(name, model, sizeof(name) - 1);
	body.name = name;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_MODEL_OK ||
	    r->model_ok->root_key.len != sizeof(w->root.b))
		return wire_unexpected(r);
	w->shard = r->model_ok->shard;
	memcpy(w->root.b, r->model_ok->root_key.data, sizeof(w->root.b));
	cqp_free(r);
	return 0;
}

/* Make and offer an arena of @bytes; 0 or a negative errno. */
static inline int wire_arena(int fd, struct wire_shard *w, uint64_t bytes)
{
	Cqp__ArenaOffer body = CQP__ARENA_OFFER__INIT;
	DECLARE_MSG(msg, ARENA_OFFER, arena_offer, body);
	Cqp__Msg *r;

	w->memfd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (w->memfd < 0 || ftruncate(w->memfd, (off_t)bytes) ||
	    fcntl(w->memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		return -errno;
	w->bytes = bytes;
	w->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w->memfd, 0);
	if (w->base == MAP_FAILED)
		return -errno;
	body.shard = w->shard;
	body.bytes = bytes;
	r = wire_call(fd, &msg, &w->memfd, 1, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_ARENA_OK)
		return wire_unexpected(r);
	w->arena = r->arena_ok->arena;
	cqp_free(r);
	return 0;
}

static inline void wire_arena_close(struct wire_shard *w)
{
	munmap(w->base, w->bytes);
	close(w->memfd);
}

/* A Seal that waits for its answer: 0 with the page and its key, or -errno. */
static inline int wire_seal(int fd, const struct wire_shard *w, struct cqp_key parent,
			    const uint32_t *ids, uint64_t offset, uint64_t sink_offset,
			    struct cqp_key *key, struct cqp_page *page)
{
	Cqp__Seal body = CQP__SEAL__INIT;
	DECLARE_MSG(msg, SEAL, seal, body);
	uint8_t tokens[CQ_PAGE_TOKENS * 4];
	Cqp__Msg *r;

	memcpy(tokens, ids, sizeof(tokens));
	body.shard = w->shard;
	body.arena = w->arena;
	body.parent = (ProtobufCBinaryData){ sizeof(parent.b), parent.b };
	body.tokens = (ProtobufCBinaryData){ sizeof(tokens), tokens };
	body.offset = offset;
	body.has_sink_offset = sink_offset != UINT64_MAX;
	body.sink_offset = sink_offset;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_SEAL_OK ||
	    r->seal_ok->key.len != sizeof(key->b) || r->seal_ok->page.len != sizeof(*page))
		return wire_unexpected(r);
	memcpy(key->b, r->seal_ok->key.data, sizeof(key->b));
	memcpy(page, r->seal_ok->page.data, sizeof(*page));
	cqp_free(r);
	return 0;
}

/* Pages resident of @n keys, or -errno; not pinned. */
static inline int wire_lookup(int fd, uint32_t shard, const struct cqp_key *keys,
			      size_t n)
{
	Cqp__Lookup body = CQP__LOOKUP__INIT;
	DECLARE_MSG(msg, LOOKUP, lookup, body);
	uint8_t bytes[64 * sizeof(*keys)];
	Cqp__Msg *r;
	int matched;

	if (n > 64)
		return -EINVAL;
	memcpy(bytes, keys, n * sizeof(*keys));
	body.shard = shard;
	body.keys = (ProtobufCBinaryData){ n * sizeof(*keys), bytes };
	body.has_pin = 1;
	body.pin = 0;
	r = wire_call(fd, &msg, NULL, 0, NULL);
	if (!r || r->body_case != CQP__MSG__BODY_LOOKUP_OK)
		return wire_unexpected(r);
	matched = (int)r->lookup_ok->matched;
	cqp_free(r);
	return matched;
}

#endif /* TESTS_WIRE_H */
