// SPDX-License-Identifier: MIT
/*
 * cq-worker score: teacher-forced quality of an attached reader.
 *
 * Continuations of a prefix are read twice in this process: attached to the
 * shared codes of the prefix, and on a model whose cache is fp16. At each
 * position the distributions of the next token are compared: KL(fp16 || coded)
 * in nats, and whether both prefer the same token.
 *
 * With --published the continuation is published too, and each of its pages
 * is scored by a reader that attaches to all pages before it: every position
 * then reads codes and at most 63 tokens in fp16, never a window.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"
#include "cq.h"

#define SEAL_MS 20000

/**
 * struct score - the two readers and the sums
 * @ref:      model to compare with
 * @text:     continuations, [n_text]
 * @p, @q:    [length][vocab] logits of @ref and of the coded model
 * @kl:       per position
 * @same:     per position: the same token is the most likely
 * @matched:  tokens the last attached reader found
 */
struct score {
	struct wk_session s;
	struct wk_shared ref;
	uint32_t *text;
	size_t n_text;
	float *p, *q;
	double *kl;
	bool *same;
	size_t n, max, matched;
	double nll_ref, nll;
};

static double nll(const float *logits, uint32_t token, size_t n)
{
	return wk_log_sum_exp(logits, n) - (double)logits[token];
}

/* Rows whose next tokens are @next; the last row has none. */
static void count(struct score *sc, const float *p, const float *q,
		  const uint32_t *next, size_t rows)
{
	size_t vocab = sc->s.cfg->vocab, i;

	for (i = 0; i < rows && sc->n < sc->max; i++, p += vocab, q += vocab) {
		sc->kl[sc->n] = wk_kl(p, q, vocab);
		sc->same[sc->n++] = wk_argmax(p, vocab) == wk_argmax(q, vocab);
		sc->nll_ref += nll(p, next[i], vocab);
		sc->nll += nll(q, next[i], vocab);
	}
}

/* Logits of the reference for ids[from..n): its prefix is computed once. */
static int reference(struct score *sc, size_t n)
{
	struct wk_session *s = &sc->s;
	size_t none;
	int ret;

	if (!sc->ref.seq) {
		ret = wk_shared_start(&sc->ref, NULL, 0,
				      CQ_SEQ_NOMATCH | CQ_SEQ_PRIVATE, &none);
		if (!ret)
			ret = wk_lm_forward(s->lm, &sc->ref.cache, s->ids, s->n_prefix,
					    0, NULL);
		if (ret)
			return ret;
	}
	ret = cq_truncate(sc->ref.seq, s->n_prefix);
	if (ret)
		return wk_cq_error(ret, "truncate");
	return wk_lm_forward(s->lm, &sc->ref.cache, s->ids + s->n_prefix,
			     n - s->n_prefix, n - s->n_prefix, sc->p);
}

/* A reader of ids[0..n) attached to the prefix: logits of the last @rows. */
static int attached(struct score *sc, size_t n, size_t rows, uint32_t flags,
		    float *logits)
{
	struct wk_session *s = &sc->s;
	int ret;

	ret = wk_shared_start(&s->sh, s->ids, n, flags | CQ_SEQ_PRIVATE, &sc->matched);
	if (!ret)
		ret = wk_lm_forward(s->lm, &s->sh.cache, s->ids + sc->matched,
				    n - sc->matched, rows, logits);
	return ret;
}

static int publish(struct score *sc, size_t n)
{
	struct wk_session *s = &sc->s;
	int ret;

	ret = wk_shared_start(&s->sh, s->ids, n, 0, &sc->matched);
	if (!ret)
		ret = wk_lm_forward(s->lm, &s->sh.cache, s->ids + sc->matched,
				    n - sc->matched, 0, NULL);
	if (ret)
		return ret;
	ret = cq_seal(s->sh.seq, SEAL_MS);
	return ret ? wk_cq_error(ret, "publish the continuation") : 0;
}

/* Each page behind the prefix, by a reader attached to all before it. */
static int pages(struct score *sc, size_t n)
{
	size_t vocab = sc->s.cfg->vocab, first = sc->s.n_prefix, at, rows;
	int ret;

	ret = publish(sc, n);
	if (ret)
		return ret;
	at = (first + WK_PAGE - 1) / WK_PAGE * WK_PAGE;
	for (at = at ? at : WK_PAGE; at < n; at += rows) {
		rows = n - at < WK_PAGE ? n - at : WK_PAGE;
		ret = attached(sc, at + rows, rows, 0, sc->q);
		if (ret)
			return ret;
		if (sc->matched != at)
			return wk_error(-EIO, "%zu tokens matched, %zu are published",
					sc->matched, at);
		count(sc, sc->p + (at - first) * vocab, sc->q, sc->s.ids + at + 1,
		      at + rows < n ? rows : rows - 1);
	}
	return 0;
}

static int continuation(struct score *sc, const struct wk_opts *o, size_t at)
{
	struct wk_session *s = &sc->s;
	size_t n = s->n_prefix + o->length;
	int ret;

	memcpy(s->ids + s->n_prefix, sc->text + at, o->length * sizeof(*s->ids));
	ret = reference(sc, n);
	if (ret)
		return ret;
	if (o->published)
		return pages(sc, n);
	ret = attached(sc, n, o->length, o->nomatch ? CQ_SEQ_NOMATCH : 0, sc->q);
	if (!ret)
		ret = wk_session_attached(s, o, n, sc->matched);
	if (!ret)
		count(sc, sc->p, sc->q, s->ids + s->n_prefix + 1, o->length - 1);
	return ret;
}

static int score_alloc(struct score *sc, const struct wk_opts *o)
{
	struct wk_session *s = &sc->s;
	size_t logits = o->length * s->cfg->vocab * sizeof(float);
	uint32_t *ids = realloc(s->ids, (s->n_prefix + o->length) * sizeof(*ids));

	s->ids = ids ? ids : s->ids;
	sc->max = o->sequences * o->length;
	sc->p = malloc(logits);
	sc->q = malloc(logits);
	sc->kl = malloc(sc->max * sizeof(*sc->kl));
	sc->same = malloc(sc->max * sizeof(*sc->same));
	if (!ids || !sc->p || !sc->q || !sc->kl || !sc->same)
		return wk_error(-ENOMEM, "out of memory");
	return 0;
}

static int print_kl(const struct score *sc, const char *path)
{
	size_t i;
	FILE *f;
	int ret = 0;

	f = fopen(path, "we");
	if (!f)
		return wk_error(-errno, "%s: %s", path, strerror(errno));
	for (i = 0; i < sc->n; i++)
		fprintf(f, "%.9g %d\n", sc->kl[i], sc->same[i]);
	if (fflush(f) || ferror(f))
		ret = wk_error(-EIO, "%s: write failed", path);
	fclose(f);
	return ret;
}

static void print_score(struct score *sc, const struct wk_opts *o)
{
	double sum = 0, same = 0;
	size_t i;
	json_t *j;

	for (i = 0; i < sc->n; i++) {
		sum += sc->kl[i];
		same += sc->same[i];
	}
	qsort(sc->kl, sc->n, sizeof(*sc->kl), wk_cmp_double);
	j = json_pack("{s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:f}",
		"positions", (json_int_t)sc->n, "sequences", (json_int_t)o->sequences,
		"prefix", (json_int_t)sc->s.n_prefix,
		"matched_tokens", (json_int_t)sc->matched,
		"kl_mean", sum / (double)sc->n,
		"kl_p99", sc->kl[(sc->n - 1) * 99 / 100],
		"top1", same / (double)sc->n,
		"ppl_reference", exp(sc->nll_ref / (double)sc->n),
		"ppl", exp(sc->nll / (double)sc->n));
	json_dumpf(j, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(j);
}

static int score_all(struct score *sc, const struct wk_opts *o)
{
	uint64_t i;
	int ret;

	if (o->length < 2 || !o->sequences ||
	    o->skip + o->sequences * o->length > sc->n_text)
		return wk_error(-EINVAL,
				"%s: %zu tokens, not %" PRIu64 " x %" PRIu64 " behind %" PRIu64,
				o->ids, sc->n_text, o->sequences, o->length, o->skip);
	ret = score_alloc(sc, o);
	if (!ret)
		ret = wk_shared_open(&sc->ref, sc->s.ctx, o->reference, NULL, sc->s.cfg,
				     o->chunk);
	for (i = 0; i < o->sequences && !ret; i++)
		ret = continuation(sc, o, o->skip + i * o->length);
	if (!ret && !sc->n)
		ret = wk_error(-EINVAL, "nothing to score: --length is too short");
	if (!ret && o->kl)
		ret = print_kl(sc, o->kl);
	if (!ret)
		print_score(sc, o);
	return ret;
}

int wk_cmd_score(const struct wk_opts *o)
{
	struct score sc;
	int ret;

	memset(&sc, 0, sizeof(sc));
	ret = wk_session_open(&sc.s, o);
	if (!ret)
		ret = wk_ids_read(o->ids, sc.s.cfg->vocab, &sc.text, &sc.n_text);
	if (!ret)
		ret = score_all(&sc, o);
	wk_shared_close(&sc.ref);
	wk_session_close(&sc.s);
	free(sc.text);
	free(sc.p);
	free(sc.q);
	free(sc.kl);
	free(sc.same);
	return ret;
}
