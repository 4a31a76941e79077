// SPDX-License-Identifier: MIT
/*
 * verify --gpu: checksums of pages that cqd cannot read. cqd says where they lie; they are
 * copied to the host, summed here, and cqd judges what was found and drops what is wrong.
 *
 * Segments are mapped for one answer at a time, so that memory which cqd gives back
 * meanwhile is soon free.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/map.h"
#include "proto/look.h"
#include "proto/sum.h"

#define PAYLOAD_MAX ((uint64_t)1 << 30)

/*
 * struct look - one run
 * @buf:  pinned, [@room]
 * @at:   segments that are mapped, @bytes of each; 0: none
 * @seen: of the last answer, [@n_seen]
 * @pages: slots of codes; @owed_us pauses too short to be made
 */
struct look {
	struct ctl *c;
	const struct cqk_cuda *cu;
	cqcu_device dev;
	uint8_t *buf;
	uint64_t room;
	struct {
		cqcu_ptr p;
		uint64_t bytes;
		bool ipc;
	} at[CQP_LOOK_SEGMENTS];
	struct cqp_seen seen[CQP_LOOK_SLOTS];
	size_t n_seen;
	uint64_t pages, wrong, bytes, owed_us;
};

static int fail(struct look *l, int result, const char *what)
{
	return cqk_cuda_fail(&l->c->err, result, what);
}

/* A context there, once. It ends with the process. */
static int open_device(struct look *l, const char *uuid)
{
	struct cqcu_ctx *ctx;
	int ret, r;

	if (l->cu)
		return 0;
	ret = cqk_cuda_get(&l->cu, &l->c->err);
	if (!ret)
		ret = cqk_cuda_find(&l->dev, uuid, &l->c->err);
	if (ret)
		return ret;
	r = l->cu->cuDevicePrimaryCtxRetain(&ctx, l->dev);
	if (!r)
		r = l->cu->cuCtxSetCurrent(ctx);
	return r ? fail(l, r, "making a context on the GPU") : 0;
}

static int malformed(struct look *l)
{
	return cq_err_set(&l->c->err, -EPROTO, "cqd gave a malformed answer to Look");
}

static int map_one(struct look *l, uint32_t i, const Cqp__LookSegment *s, int fd)
{
	const char *what = "opening a segment: its owner may have ended";
	int r;

	if (fd < 0 && (!s->has_handle || s->handle.len != sizeof(struct cqcu_ipc_handle)))
		return malformed(l);
	if (fd >= 0)
		r = cqk_cuda_map_fd(l->cu, l->dev, fd, s->bytes, &l->at[i].p, &what);
	else
		r = cqk_cuda_open_handle(l->cu, s->handle.data, s->bytes, &l->at[i].p);
	if (r)
		return r < 0 ? malformed(l) : fail(l, r, what);
	l->at[i].bytes = s->bytes;
	l->at[i].ipc = fd < 0;
	return 0;
}

static void unmap_all(struct look *l)
{
	uint32_t i;

	for (i = 0; i < CQP_LOOK_SEGMENTS; i++) {
		if (l->at[i].p && l->at[i].ipc)
			l->cu->cuIpcCloseMemHandle(l->at[i].p);
		else
			cqk_cuda_unmap(l->cu, l->at[i].p, l->at[i].bytes);
		l->at[i].p = 0;
		l->at[i].bytes = 0;
	}
}

/* Room on the host for a slot; NULL and -errno in @ret if there is none. */
static uint8_t *room(struct look *l, uint64_t bytes, int *ret)
{
	void *p;
	int r;

	if (l->buf && bytes <= l->room)
		return l->buf;
	if (l->buf)
		l->cu->cuMemFreeHost(l->buf);
	l->buf = NULL;
	l->room = 0;
	r = l->cu->cuMemHostAlloc(&p, bytes, 0);
	if (r) {
		*ret = fail(l, r, "pinning host memory");
		return NULL;
	}
	l->buf = p;
	l->room = bytes;
	return l->buf;
}

static int look_at(struct look *l, const struct cqp_look *s, struct cqp_seen *out)
{
	uint64_t bytes = sizeof(out->hdr) + s->payload, in;
	struct cqp_sum sum;
	int ret = -ENOMEM, r;
	uint8_t *buf;

	if (s->segment >= CQP_LOOK_SEGMENTS || s->payload > PAYLOAD_MAX)
		return malformed(l);
	in = l->at[s->segment].bytes;
	if (in < bytes || s->offset > in - bytes)
		return malformed(l);
	buf = room(l, bytes, &ret);
	if (!buf)
		return ret;
	r = l->cu->cuMemcpyDtoH(buf, l->at[s->segment].p + s->offset, bytes);
	if (r)
		return fail(l, r, "reading a page");
	memcpy(&out->hdr, buf, sizeof(out->hdr));
	cqp_sum_begin(&sum);
	cqp_sum_add(&sum, buf + sizeof(out->hdr), s->payload);
	cqp_sum_end(&sum, &out->lo, &out->hi);
	l->pages += out->hdr.kind != CQ_PAGE_SINK;
	l->bytes += bytes;
	return 0;
}

static int look_all(struct look *l, const Cqp__LookOk *ok, const int *fds)
{
	struct cqp_look slots[CQP_LOOK_SLOTS];
	size_t n = ok->slots.len / sizeof(slots[0]), i;
	int ret = 0, next = 0;

	/* without slots there is no context to map anything in */
	if (ok->slots.len % sizeof(slots[0]) || n > ARRAY_SIZE(slots) ||
	    ok->n_segments > (n ? CQP_LOOK_SEGMENTS : 0))
		return malformed(l);
	if (n)
		memcpy(slots, ok->slots.data, ok->slots.len);
	for (i = 0; i < ok->n_segments && !ret; i++)
		ret = map_one(l, (uint32_t)i, ok->segments[i],
			      ok->segments[i]->has_handle ? -1 : fds[next++]);
	for (i = 0; i < n && !ret; i++)
		ret = look_at(l, &slots[i], &l->seen[i]);
	l->n_seen = n;
	return ret;
}

/* Bytes over time are the rate; pauses of less than a millisecond add up. */
static void pause_for(struct look *l, uint64_t bytes, uint64_t rate)
{
	if (!rate)
		return;
	l->owed_us += bytes * 1000000 / rate;
	if (l->owed_us < 1000)
		return;
	poll(NULL, 0, (int)MIN(l->owed_us / 1000, (uint64_t)INT32_MAX));
	l->owed_us %= 1000;
}

/* One answer. 1: there may be more; 0: that was the end; -errno. */
static int step(struct look *l, Cqp__Look *body)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	uint64_t before = l->bytes;
	int fds[2] = { -1, -1 }, ret;

	body->has_seen = l->n_seen != 0;
	body->seen = (ProtobufCBinaryData){ l->n_seen * sizeof(l->seen[0]), (uint8_t *)l->seen };
	msg.body_case = CQP__MSG__BODY_LOOK;
	msg.look = body;
	l->c->fds = fds;
	reply = ctl_call(l->c, &msg, -1, CQP__MSG__BODY_LOOK_OK, &ret);
	l->c->fds = NULL;
	if (reply) {
		l->wrong += reply->look_ok->wrong;
		if (reply->look_ok->slots.len)
			ret = open_device(l, reply->look_ok->device);
		if (!ret)
			ret = look_all(l, reply->look_ok, fds);
		unmap_all(l);
	}
	if (fds[0] >= 0)
		close(fds[0]);
	if (fds[1] >= 0)
		close(fds[1]);
	if (reply && !ret && l->n_seen) {
		pause_for(l, l->bytes - before, reply->look_ok->rate);
		ret = 1;
	}
	cqp_free(reply);
	return ret;
}

static int said(const struct look *l, uint64_t us)
{
	char a[24], b[24];

	if (l->c->json)
		return ctl_print_json(json_pack("{s:I, s:I, s:I, s:I}",
						"checked", (json_int_t)l->pages,
						"failed", (json_int_t)l->wrong,
						"bytes", (json_int_t)l->bytes,
						"us", (json_int_t)us));
	printf("%" PRIu64 " pages, %s checked in %s: %" PRIu64 " wrong%s\n", l->pages,
	       ctl_bytes(l->bytes, a), ctl_time(us, b), l->wrong,
	       l->wrong ? " (dropped, with all that follow them)" : "");
	return CTL_OK;
}

int ctl_look(struct ctl *c, const char *name, bool pending)
{
	static struct look l;	/* large: not on the stack */
	Cqp__Look body = CQP__LOOK__INIT;
	uint64_t start = ctl_now_us();
	char pool[CQP_MAX_NAME + 1];
	int ret;

	if (strlen(name) > CQP_MAX_NAME)
		return ctl_usage(c, "--gpu: a name has at most %d characters", CQP_MAX_NAME);
	l.c = c;
	snprintf(pool, sizeof(pool), "%s", name);
	body.pool = pool;
	body.has_all = true;
	body.all = !pending;
	do
		ret = step(&l, &body);
	while (ret > 0);
	if (l.buf)
		l.cu->cuMemFreeHost(l.buf);
	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	ret = said(&l, ctl_now_us() - start);
	return !ret && l.wrong ? CTL_FAILED : ret;
}
