// SPDX-License-Identifier: MIT
/*
 * cq-worker bench: time to first token, cold and attached, in one warm
 * process and by the same prefill code; then the rate of generation.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include "client/worker/worker.h"
#include "cq.h"

#define MAX_REPEAT 1000

/**
 * struct bench - what was measured
 * @cold, @attached: milliseconds to the first token, [n_cold], [n_attached]
 */
struct bench {
	double cold[MAX_REPEAT], attached[MAX_REPEAT];
	size_t n_cold, n_attached;
	size_t prompt, matched;
	double tokens_per_s;
	uint64_t shared, own;
};

static int once(struct wk_session *s, uint32_t flags, struct wk_first *first)
{
	struct wk_sampler greedy = { 0, 0 };
	int ret;

	ret = wk_session_first(s, flags | CQ_SEQ_PRIVATE, &greedy, first);
	if (ret)
		wk_shared_end(&s->sh);
	return ret;
}

static int rate(struct wk_session *s, const struct wk_opts *o, struct bench *b,
		uint32_t token)
{
	struct wk_sampler greedy = { 0, 0 };
	double start;
	uint64_t i;
	int ret;

	ret = wk_session_bytes(s, &b->shared, &b->own);
	if (ret || o->generate < 2)
		return ret;
	start = wk_now_ms();
	for (i = 1; i < o->generate; i++) {
		ret = wk_session_next(s, &greedy, &token);
		if (ret)
			return ret;
	}
	b->tokens_per_s = (double)(o->generate - 1) / (wk_now_ms() - start) * 1e3;
	return 0;
}

/* A third of the runs are cold; run 0 of each kind warms up. */
static int measure(struct wk_session *s, const struct wk_opts *o, struct bench *b)
{
	uint32_t flags = o->nomatch ? CQ_SEQ_NOMATCH : 0;
	struct wk_first first;
	uint64_t i;
	int ret;

	b->prompt = s->n;
	for (i = 0; i <= o->repeat; i++) {
		if (i % 3 == 0) {
			ret = once(s, CQ_SEQ_NOMATCH, &first);
			if (ret)
				return ret;
			if (i)
				b->cold[b->n_cold++] = first.ttft_ms;
		}
		ret = once(s, flags, &first);
		if (!ret)
			ret = wk_session_attached(s, o, s->n, first.matched);
		if (ret)
			return ret;
		if (i)
			b->attached[b->n_attached++] = first.ttft_ms;
		b->matched = first.matched;
	}
	return rate(s, o, b, first.token);
}

static void print_bench(const struct wk_session *s, struct bench *b)
{
	const struct wk_config *c = s->cfg;
	double cold = wk_median(b->cold, b->n_cold);
	double attached = wk_median(b->attached, b->n_attached);
	json_t *j = json_pack("{s:I,s:I,s:f,s:f,s:f,s:f,s:I,s:I,s:I,s:I}",
		"prompt", (json_int_t)b->prompt, "matched_tokens", (json_int_t)b->matched,
		"ttft_cold_ms", cold, "ttft_attached_ms", attached,
		"speedup", cold / attached, "tokens_per_s", b->tokens_per_s,
		"bytes_per_token_fp16",
		(json_int_t)c->n_layers * c->n_kv_heads * c->head_dim * 4,
		"shared_bytes", (json_int_t)b->shared,
		"private_bytes", (json_int_t)b->own,
		"sequence_bytes", (json_int_t)(b->shared + b->own));

	json_dumpf(j, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(j);
}

int wk_cmd_bench(const struct wk_opts *o)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct wk_session s = { 0 };
	int ret;

	if (!b)
		return wk_error(-ENOMEM, "out of memory");
	ret = o->repeat < 3 || o->repeat > MAX_REPEAT ?
	      wk_error(-EINVAL, "--repeat is 3 to %d", MAX_REPEAT) :
	      wk_session_open(&s, o);
	if (!ret && o->ask)
		ret = wk_session_ask(&s, o->ask);
	if (!ret)
		ret = measure(&s, o, b);
	if (!ret)
		print_bench(&s, b);
	wk_session_close(&s);
	free(b);
	return ret;
}
