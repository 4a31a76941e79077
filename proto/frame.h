/* SPDX-License-Identifier: MIT */
/*
 * One datagram = one message + its file descriptors.
 *
 * fds are CLOEXEC at birth, at most CQP_MAX_FDS; a datagram whose fds were cut
 * (MSG_CTRUNC) or whose bytes were cut (MSG_TRUNC) is refused whole and every
 * fd in it closed.
 */
#ifndef CQP_FRAME_H
#define CQP_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "cq/err.h"
#include "proto/proto.h"
#include "cq.pb-c.h"

/**
 * struct cqp_frame - a received datagram
 * @len:   bytes in @buf
 * @n_fds: descriptors in @fds, owned by the frame until taken (set to -1)
 */
struct cqp_frame {
	size_t len;
	unsigned int n_fds;
	int fds[CQP_MAX_FDS];
	uint8_t buf[CQP_MAX_MSG];
};

/**
 * cqp_send() - send one message
 * @sock:  connected SOCK_SEQPACKET socket
 * @msg:   message; @fds [n_fds] go along and stay owned by the caller
 * @flags: MSG_DONTWAIT or 0
 *
 * Return: 0; -EAGAIN queue full; -EMSGSIZE; -EPIPE; other -errno.
 */
int cqp_send(int sock, const Cqp__Msg *msg, const int *fds, unsigned int n_fds,
	     int flags);

/* The same for bytes already packed. */
int cqp_send_raw(int sock, const uint8_t *buf, size_t len, const int *fds,
		 unsigned int n_fds, int flags);

/**
 * cqp_recv() - receive one datagram
 *
 * Return: 1 got one; 0 end of file; -EAGAIN; -EMSGSIZE too long; -EBADMSG fds
 * cut or too many; other -errno. On failure the frame holds no fds.
 */
int cqp_recv(int sock, struct cqp_frame *f, int flags);

/* Close every fd still in the frame. */
void cqp_frame_close(struct cqp_frame *f);

/* Take fd @i out of the frame: the caller owns it. -1 if there is none. */
int cqp_frame_take(struct cqp_frame *f, unsigned int i);

/**
 * cqp_unpack() - parse a datagram
 * @buf: bytes, at most CQP_MAX_MSG
 *
 * Memory taken is bounded (a hostile message cannot make the parser allocate
 * more than a fixed multiple of its size). Return: message, to be freed with
 * cqp_free(); NULL with @err set if malformed or out of memory.
 */
Cqp__Msg *cqp_unpack(const uint8_t *buf, size_t len, struct cq_err *err);
void cqp_free(Cqp__Msg *msg);

#endif /* CQP_FRAME_H */
