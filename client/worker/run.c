// SPDX-License-Identifier: MIT
/*
 * cq-worker run: read a prompt, attached to what others have published, and
 * generate. One JSON object per line: "first" at the first token, "end" at
 * the end.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "client/worker/worker.h"
#include "cq.h"

#define SEAL_MS 20000

static void print_line(json_t *j)
{
	json_dumpf(j, stdout, JSON_COMPACT);
	putchar('\n');
	fflush(stdout);
	json_decref(j);
}

static void sleep_ms(uint64_t ms)
{
	struct timespec ts = { .tv_sec = (time_t)(ms / 1000),
			       .tv_nsec = (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

/* @tokens[0] is there already. Return: 0 or an error; @n counts. */
static int generate(struct wk_session *s, const struct wk_opts *o,
		    struct wk_sampler *sampler, uint32_t *tokens, size_t *n)
{
	uint32_t token = tokens[0];
	int ret;

	for (*n = 1; *n < o->generate; ++*n) {
		if (o->pace)
			sleep_ms(o->pace);
		ret = wk_session_next(s, sampler, &token);
		if (ret)
			return ret;
		tokens[*n] = token;
	}
	return 0;
}

static int print_done(struct wk_session *s, const uint32_t *tokens, size_t n, double ms)
{
	struct cq_seq_info info = { .sz = sizeof(info) };
	size_t len;
	char *text;
	int ret;

	ret = cq_seq_get_info(s->sh.seq, &info);
	if (ret)
		return wk_cq_error(ret, "sequence");
	ret = wk_tok_decode(s->tok, tokens, n, &text, &len);
	if (ret)
		return ret;
	print_line(json_pack("{s:s,s:I,s:f,s:I,s:I,s:I,s:I,s:o}",
		"event", "end", "generated", (json_int_t)n,
		"tokens_per_s", n > 1 ? (double)(n - 1) / ms * 1e3 : 0,
		"tokens", (json_int_t)info.tokens,
		"sealed", (json_int_t)info.sealed,
		"shared_bytes", (json_int_t)info.shared_bytes,
		"private_bytes", (json_int_t)info.private_bytes,
		"text", wk_json_text(text, len)));
	free(text);
	return 0;
}

/* Until somebody closes our standard input. */
static void hold(void)
{
	char buf[64];

	while (read(STDIN_FILENO, buf, sizeof(buf)) > 0)
		;
}

static int run_session(struct wk_session *s, const struct wk_opts *o)
{
	uint32_t flags = (o->nomatch ? CQ_SEQ_NOMATCH : 0) |
			 (o->private ? CQ_SEQ_PRIVATE : 0);
	struct wk_sampler sampler = { o->temperature, o->seed };
	struct wk_first first;
	uint32_t *tokens;
	double start;
	size_t n = 0;
	int ret;

	ret = o->attach ? wk_session_attach(s, o->attach, flags, &sampler, &first) :
			  wk_session_first(s, flags, &sampler, &first);
	if (ret)
		return ret;
	if (!o->private) {
		ret = cq_seal(s->sh.seq, SEAL_MS);
		/* Without cqd, or without room there, the pages serve us alone. */
		if (ret)
			wk_cq_error(ret, "the prompt stays private");
	}
	print_line(json_pack("{s:s,s:I,s:I,s:f}", "event", "first",
			     "prompt", (json_int_t)s->n,
			     "matched", (json_int_t)first.matched,
			     "ttft_ms", first.ttft_ms));
	tokens = malloc((o->generate + 1) * sizeof(*tokens));
	if (!tokens)
		return wk_error(-ENOMEM, "out of memory");
	tokens[0] = first.token;
	start = wk_now_ms();
	ret = generate(s, o, &sampler, tokens, &n);
	if (!ret)
		ret = print_done(s, tokens, n, wk_now_ms() - start);
	free(tokens);
	return ret;
}

/* For another process to go on with. */
static int hand_over(struct wk_session *s, const char *name)
{
	struct cq_publish_opts opts = { .sz = sizeof(opts), .flags = CQ_PUBLISH_REPLACE };
	int ret = cq_publish(s->sh.seq, name, &opts);

	return ret ? wk_cq_error(ret, name) : 0;
}

int wk_cmd_run(const struct wk_opts *o)
{
	struct wk_session s;
	int ret;

	if (!o->prefix == !o->attach || (o->attach && o->ask)) {
		wk_error(-EINVAL, "run needs --prefix, or --attach without --prefix and --ask");
		return -EINVAL;
	}
	ret = wk_session_open(&s, o);
	if (!ret && o->ask)
		ret = wk_session_ask(&s, o->ask);
	if (!ret)
		ret = run_session(&s, o);
	if (!ret && o->publish)
		ret = hand_over(&s, o->publish);
	if (!ret && o->hold)
		hold();
	wk_session_close(&s);
	return ret;
}
