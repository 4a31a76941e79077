/* SPDX-License-Identifier: MIT */
/*
 * Inside cqctl: commands, their options, one connection, and output as text
 * or JSON.
 */
#ifndef CQCTL_H
#define CQCTL_H

#include <jansson.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "cq/err.h"
#include "cq/util.h"
#include "proto/frame.h"

enum ctl_exit {
	CTL_OK = 0,
	CTL_FAILED = 1,
	CTL_USAGE = 2,
	/* of ping alone */
	CTL_ABSENT = 3,
	CTL_NOT_READY = 4,
	CTL_TIMEOUT = 5,
};

/**
 * struct ctl - one run of the program
 * @socket: path asked for with --socket, NULL for the default
 * @tenant: namespace to enter on a workers' socket, or NULL
 * @json:   --json was given
 * @cmd:    what runs
 * @timeout_ms: of connecting and of each answer; 0: the default
 * @watch:  signals are let in only by ctl_wait()
 * @sock:   connection, -1 until ctl_connect()
 * @next_id: of the next request
 * @fds:    where an answer's descriptors go, [2], -1 if there is none; NULL: closed
 * @tick:   called about once per second while an answer is waited for, or NULL
 * @err:    text of the last failure
 */
struct ctl {
	const char *socket, *tenant;
	bool json;
	const struct ctl_command *cmd;
	uint64_t timeout_ms;
	bool watch;
	int sock;
	uint64_t next_id;
	int *fds;
	void (*tick)(struct ctl *c);
	struct cq_err err;
};

/**
 * struct ctl_command - one command
 * @name:    as typed
 * @args:    shown behind the name
 * @summary: one line
 * @help:    further lines, or NULL
 * @run:     @argv [@argc] is what follows the name; returns enum ctl_exit
 */
struct ctl_command {
	const char *name;
	const char *args;
	const char *summary;
	const char *help;
	int (*run)(struct ctl *c, int argc, char **argv);
};

/**
 * struct ctl_opt - an option of a command; the last one has no name
 * @name:   without dashes
 * @letter: short form, or 0
 * @value:  set to the argument; NULL: the option takes none
 * @flag:   set to true when there is no @value
 */
struct ctl_opt {
	const char *name;
	char letter;
	const char **value;
	bool *flag;
};

#define CTL_GO_ON (-1)

/*
 * Options and arguments of a command, in any order; --help, --json and --socket
 * are always taken. @opts may be NULL. @pos gets @min to @max arguments, the
 * rest NULL. Returns CTL_GO_ON, or the exit status after a message or help.
 */
int ctl_parse(struct ctl *c, int argc, char **argv, const struct ctl_opt *opts,
	      const char **pos, int min, int max);
/* A wrong use: prints it with a hint. Returns CTL_USAGE. */
__attribute__((format(printf, 2, 3)))
int ctl_usage(struct ctl *c, const char *fmt, ...);
/* A failure: prints it, and with --json an object. Returns CTL_FAILED. */
__attribute__((format(printf, 3, 4)))
int ctl_fail(struct ctl *c, int code, const char *fmt, ...);

/* A decimal number from @min to @max. 0 or -EINVAL. */
int ctl_number(const char *text, uint64_t min, uint64_t max, uint64_t *out);
/* A finite number with a decimal point. 0 or -EINVAL. */
int ctl_real(const char *text, double *out);
/* Bytes: "4096", "16M". 0 or -EINVAL. */
int ctl_size(const char *text, uint64_t *bytes);
/* A length of time: "90", "150ms", "2h". 0 or -EINVAL. */
int ctl_duration(const char *text, uint64_t *us);

/*
 * Connects and greets. 0, or -errno with c->err set. Done by ctl_call() too.
 */
int ctl_connect(struct ctl *c);
void ctl_disconnect(struct ctl *c);
/*
 * One request and its answer of body @want; @fd goes along unless -1. NULL with
 * *ret = -errno and c->err set on failure. The answer is freed with cqp_free().
 */
Cqp__Msg *ctl_call(struct ctl *c, Cqp__Msg *msg, int fd, Cqp__Msg__BodyCase want,
		   int *ret);

/* A further answer of body @want to request @id; as ctl_call() else. */
Cqp__Msg *ctl_next(struct ctl *c, uint64_t id, Cqp__Msg__BodyCase want, int *ret);

/* Microseconds of a clock that only goes on. */
uint64_t ctl_now_us(void);
/*
 * From here on SIGINT, SIGTERM and SIGHUP end the command: they are let in only
 * while it waits for cqd or in ctl_wait(), and ctl_stopped() says that one came.
 */
void ctl_watch(struct ctl *c);
bool ctl_stopped(void);
/* As ppoll(2) for @ms, 0: for ever. -EINTR: ctl_stopped(). */
int ctl_wait(struct pollfd *p, nfds_t n, uint64_t ms);

/* Prints @obj (taken over) as one line of JSON. Returns enum ctl_exit. */
int ctl_print_json(json_t *obj);
/* A string of any bytes: unless they are UTF-8, those beyond ASCII become '?'. */
json_t *ctl_json_text(const char *s);
/* What is beyond JSON's 63 bits becomes the largest number. */
json_t *ctl_json_u64(uint64_t n);
/* "12.3 MiB" and "1 h 2 min" in @buf, at least 24 bytes. Return @buf. */
const char *ctl_bytes(uint64_t n, char *buf);
const char *ctl_time(uint64_t us, char *buf);
/* Hex digits of at most 32 bytes in @buf, at least 65 bytes. Returns @buf. */
const char *ctl_hex(const uint8_t *data, size_t n, char *buf);
/* Text from elsewhere on a terminal: control bytes become '?'. */
void ctl_put_text(FILE *f, const char *s);

/**
 * struct ctl_items - every reply of a listing
 * @reply: [n_replies], owned
 * @n_replies: their number
 * @item:  [n], into the replies
 * @n:     items in all
 */
struct ctl_items {
	struct Cqp__Msg **reply;
	struct Cqp__Item **item;
	size_t n_replies;
	size_t n;
};

/* All of a kind, however many messages it takes. 0, or -errno with c->err set. */
int ctl_items_get(struct ctl *c, Cqp__Kind kind, struct ctl_items *it);
void ctl_items_free(struct ctl_items *it);
/* Sorts them by id and name, as ctl_items_find() needs them. */
void ctl_items_order(struct ctl_items *it);
/* The one with id and name of @like, NULL. (top.c) */
const Cqp__Item *ctl_items_find(const struct ctl_items *it, const Cqp__Item *like);

int ctl_cmd_ping(struct ctl *c, int argc, char **argv);
int ctl_cmd_status(struct ctl *c, int argc, char **argv);
int ctl_cmd_verify(struct ctl *c, int argc, char **argv);
/* Pages of the GPU of section [gpu @name]; @pending: those that nobody looked at. */
int ctl_look(struct ctl *c, const char *name, bool pending);
int ctl_cmd_list(struct ctl *c, int argc, char **argv);
int ctl_cmd_show(struct ctl *c, int argc, char **argv);
int ctl_cmd_list_named(struct ctl *c, int argc, char **argv);
int ctl_cmd_events(struct ctl *c, int argc, char **argv);
int ctl_cmd_metrics(struct ctl *c, int argc, char **argv);
int ctl_cmd_top(struct ctl *c, int argc, char **argv);
int ctl_cmd_load(struct ctl *c, int argc, char **argv);
int ctl_cmd_unload(struct ctl *c, int argc, char **argv);
int ctl_cmd_evict(struct ctl *c, int argc, char **argv);
int ctl_cmd_quota(struct ctl *c, int argc, char **argv);
int ctl_cmd_pin(struct ctl *c, int argc, char **argv);
int ctl_cmd_unpin(struct ctl *c, int argc, char **argv);
int ctl_cmd_save(struct ctl *c, int argc, char **argv);
int ctl_cmd_restore(struct ctl *c, int argc, char **argv);
int ctl_cmd_bench(struct ctl *c, int argc, char **argv);
int ctl_cmd_doctor(struct ctl *c, int argc, char **argv);
int ctl_cmd_drain(struct ctl *c, int argc, char **argv);
int ctl_cmd_calibrate(struct ctl *c, int argc, char **argv);

#endif /* CQCTL_H */
