// SPDX-License-Identifier: MIT
/*
 * What run, bench and score have in common: the language model, its
 * tokenizer, the connection to cqd, and the prompt.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"
#include "cq.h"

int wk_session_open(struct wk_session *s, const struct wk_opts *o)
{
	struct cq_open_opts open = { .sz = sizeof(open), .socket = o->socket,
				     .name = o->name };
	char path[WK_PATH];
	int ret;

	memset(s, 0, sizeof(*s));
	ret = wk_lm_load(o->lm, o->chunk, &s->lm);
	if (ret)
		return ret;
	s->cfg = wk_lm_config(s->lm);
	ret = wk_path(path, o->lm, "merges.json");
	if (!ret)
		ret = wk_tok_load(path, &s->tok);
	if (!ret && o->prefix)
		ret = wk_ids_read(o->prefix, s->cfg->vocab, &s->ids, &s->n_prefix);
	if (ret)
		return ret;
	s->n = s->n_prefix;
	s->logits = malloc(s->cfg->vocab * sizeof(float));
	if (!s->logits)
		return wk_error(-ENOMEM, "out of memory");
	ret = cq_open(&open, &s->ctx);
	if (ret)
		return wk_cq_error(ret, "open");
	return wk_shared_open(&s->sh, s->ctx, o->model, o->gpu, s->cfg, o->chunk);
}

void wk_session_close(struct wk_session *s)
{
	wk_shared_close(&s->sh);
	cq_close(s->ctx);
	free(s->logits);
	free(s->ids);
	wk_tok_free(s->tok);
	wk_lm_free(s->lm);
}

/* @n more tokens of the sequence; s->ids must hold them whatever fails later. */
static int push(struct wk_session *s, const uint32_t *ids, size_t n)
{
	uint32_t *all = realloc(s->ids, (s->n + n + 1) * sizeof(*all));

	if (!all)
		return wk_error(-ENOMEM, "out of memory");
	memcpy(all + s->n, ids, n * sizeof(*ids));
	s->ids = all;
	s->n += n;
	return 0;
}

int wk_session_ask(struct wk_session *s, const char *text)
{
	uint32_t *ids;
	size_t n;
	int ret;

	ret = wk_tok_encode(s->tok, text, strlen(text), &ids, &n);
	if (ret)
		return ret;
	ret = push(s, ids, n);
	free(ids);
	return ret;
}

/* Open the sequence and read what is not there; logits of the last token. */
static int read_prompt(struct wk_session *s, size_t *matched)
{
	int ret = wk_shared_start(&s->sh, s->ids, s->n, s->flags, matched);

	if (ret)
		return ret;
	return wk_lm_forward(s->lm, &s->sh.cache, s->ids + *matched, s->n - *matched, 1,
			     s->logits);
}

int wk_session_first(struct wk_session *s, uint32_t flags, struct wk_sampler *sampler,
		     struct wk_first *out)
{
	double start = wk_now_ms();
	int ret;

	if (!s->n)
		return wk_error(-EINVAL, "an empty prompt");
	s->flags = flags;
	ret = read_prompt(s, &out->matched);
	if (ret == -ESTALE)
		ret = read_prompt(s, &out->matched);
	if (ret)
		return ret;
	out->token = wk_sample(sampler, s->logits, s->cfg->vocab);
	out->ttft_ms = wk_now_ms() - start;
	return 0;
}

/* Ids of the sequence, which another process has read. */
static int take_ids(struct wk_session *s, size_t n)
{
	size_t i;
	int ret;

	free(s->ids);
	s->n = n;
	s->ids = malloc((n + 1) * sizeof(*s->ids));
	if (!s->ids)
		return wk_error(-ENOMEM, "out of memory");
	ret = cq_tokens(s->sh.seq, 0, n, s->ids);
	if (ret)
		return wk_cq_error(ret, "tokens");
	for (i = 0; i < n; i++)
		if (s->ids[i] >= s->cfg->vocab)
			return wk_error(-EINVAL, "token %u: the language model has %zu",
					s->ids[i], (size_t)s->cfg->vocab);
	return 0;
}

int wk_session_attach(struct wk_session *s, const char *name, uint32_t flags,
		      struct wk_sampler *sampler, struct wk_first *out)
{
	struct cq_seq_opts opts = { .sz = sizeof(opts), .flags = flags & CQ_SEQ_PRIVATE };
	double start = wk_now_ms();
	size_t n;
	int ret;

	s->flags = flags;
	wk_shared_end(&s->sh);
	ret = cq_attach(s->sh.model, name, &opts, &s->sh.seq);
	if (ret)
		return wk_cq_error(ret, name);
	n = cq_seq_length(s->sh.seq);
	ret = take_ids(s, n);
	if (ret)
		return ret;
	out->matched = n;
	ret = cq_truncate(s->sh.seq, n - 1);
	if (ret)
		return wk_cq_error(ret, name);
	ret = wk_lm_forward(s->lm, &s->sh.cache, s->ids + n - 1, 1, 1, s->logits);
	if (ret)
		return ret;
	out->token = wk_sample(sampler, s->logits, s->cfg->vocab);
	out->ttft_ms = wk_now_ms() - start;
	return 0;
}

int wk_session_next(struct wk_session *s, struct wk_sampler *sampler, uint32_t *token)
{
	size_t matched;
	int ret;

	ret = push(s, token, 1);
	if (ret)
		return ret;
	ret = wk_lm_forward(s->lm, &s->sh.cache, token, 1, 1, s->logits);
	/* A shared page was taken back: read again what is gone. */
	if (ret == -ESTALE)
		ret = read_prompt(s, &matched);
	if (!ret)
		*token = wk_sample(sampler, s->logits, s->cfg->vocab);
	return ret;
}

int wk_session_attached(const struct wk_session *s, const struct wk_opts *o, size_t n,
			size_t matched)
{
	size_t want = s->n_prefix < n ? s->n_prefix : n - 1;

	want -= want % WK_PAGE;
	if (o->nomatch)
		return 0;
	if (!want)
		return wk_error(-EINVAL, "%s: %zu tokens are no full page of %d: nothing to "
				"attach to", o->prefix, s->n_prefix, WK_PAGE);
	if (matched >= want)
		return 0;
	return wk_error(-ENODATA, "%s: %zu of %zu tokens are published in model %s: publish "
			"them with \"cq-worker run --model %s --prefix %s\", or compare "
			"with --nomatch", o->prefix, matched, want, o->model, o->model,
			o->prefix);
}

int wk_session_bytes(struct wk_session *s, uint64_t *shared, uint64_t *own)
{
	struct cq_seq_info info = { .sz = sizeof(info) };
	int ret;

	ret = cq_seq_get_info(s->sh.seq, &info);
	if (ret)
		return wk_cq_error(ret, "sequence");
	*shared = info.shared_bytes;
	*own = info.private_bytes;
	return 0;
}
