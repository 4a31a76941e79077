// SPDX-License-Identifier: MIT
/*
 * cq-worker tokenize: texts to a file of token ids.
 * cq-worker verify: the forward pass against logits computed elsewhere.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"
#include "cq.h"

#define MAX_TEXT (64u << 20)

static int text_read(const char *path, char **text, size_t *len)
{
	char *part, *both;
	size_t n;
	int ret;

	ret = wk_file_read(path, MAX_TEXT, &part, &n);
	if (ret)
		return ret;
	both = realloc(*text, *len + n + 1);
	if (!both) {
		free(part);
		return wk_error(-ENOMEM, "%s: out of memory", path);
	}
	memcpy(both + *len, part, n + 1);
	free(part);
	*text = both;
	*len += n;
	return 0;
}

static int ids_write(const char *path, const uint32_t *ids, size_t n)
{
	unsigned char b[2];
	size_t i;
	FILE *f;
	int ret = 0;

	f = fopen(path, "we");
	if (!f)
		return wk_error(-errno, "%s: %s", path, strerror(errno));
	for (i = 0; i < n; i++) {
		b[0] = (unsigned char)ids[i];
		b[1] = (unsigned char)(ids[i] >> 8);
		fwrite(b, 1, 2, f);
	}
	if (fflush(f) || ferror(f))
		ret = wk_error(-EIO, "%s: write failed", path);
	fclose(f);
	return ret;
}

int wk_cmd_tokenize(const struct wk_opts *o)
{
	struct wk_tok *tok = NULL;
	char path[WK_PATH], *text = NULL;
	uint32_t *ids = NULL;
	size_t len = 0, n = 0;
	int ret, i;

	ret = wk_path(path, o->lm, "merges.json");
	if (!ret)
		ret = wk_tok_load(path, &tok);
	for (i = 0; i < o->n_args && !ret; i++)
		ret = text_read(o->args[i], &text, &len);
	if (!ret)
		ret = wk_tok_encode(tok, text, len, &ids, &n);
	if (!ret && o->limit && n < o->limit)
		ret = wk_error(-EINVAL, "%zu tokens, %" PRIu64 " wanted", n, o->limit);
	if (!ret)
		ret = ids_write(o->out, ids, o->limit ? o->limit : n);
	if (!ret)
		printf("{\"bytes\": %zu, \"tokens\": %zu, \"written\": %zu}\n", len,
		       n, o->limit ? (size_t)o->limit : n);
	wk_tok_free(tok);
	free(text);
	free(ids);
	return ret;
}

#define REF_TOKENS 256
#define REF_ROWS 7

/* Tokens, rows and logits of reference.safetensors. */
struct reference {
	struct wk_st st;
	uint32_t ids[REF_TOKENS];
	int32_t rows[REF_ROWS];
	float *logits;
};

static int reference_read(struct reference *ref, const char *path, uint32_t vocab)
{
	const void *tokens, *rows, *logits;
	uint16_t id;
	size_t i;
	int ret;

	ret = wk_st_open(&ref->st, path);
	if (ret)
		return ret;
	ret = wk_st_tensor(&ref->st, "tokens", "U16", REF_TOKENS, 0, &tokens);
	if (!ret)
		ret = wk_st_tensor(&ref->st, "rows", "I32", REF_ROWS, 0, &rows);
	if (!ret)
		ret = wk_st_tensor(&ref->st, "logits", "F32", REF_ROWS, vocab, &logits);
	if (ret)
		return ret;
	ref->logits = malloc((size_t)REF_ROWS * vocab * sizeof(float));
	if (!ref->logits)
		return wk_error(-ENOMEM, "out of memory");
	memcpy(ref->logits, logits, (size_t)REF_ROWS * vocab * sizeof(float));
	memcpy(ref->rows, rows, sizeof(ref->rows));
	for (i = 0; i < REF_TOKENS; i++) {
		memcpy(&id, (const char *)tokens + 2 * i, 2);
		ref->ids[i] = id;
	}
	for (i = 0; i < REF_ROWS; i++)
		if (ref->rows[i] < 0 || ref->rows[i] >= REF_TOKENS)
			return wk_error(-EINVAL, "%s: row %d", path, ref->rows[i]);
	return 0;
}

static double compare(const struct reference *ref, const float *logits, uint32_t vocab)
{
	double worst = 0, diff;
	size_t r, i;

	for (r = 0; r < REF_ROWS; r++) {
		for (i = 0; i < vocab; i++) {
			diff = fabs((double)logits[(size_t)ref->rows[r] * vocab + i] -
				    (double)ref->logits[r * vocab + i]);
			worst = diff > worst || isnan(diff) ? diff : worst;
		}
	}
	return worst;
}

/* Over cqd's model if one is named, else in this process. */
static int verify_with(const struct wk_opts *o, struct wk_lm *lm,
		       const struct reference *ref, float *logits)
{
	struct cq_open_opts open = { .sz = sizeof(open), .socket = o->socket,
				     .name = o->name };
	struct wk_local *local = NULL;
	struct cq_ctx *ctx = NULL;
	struct wk_shared sh = { 0 };
	size_t matched;
	int ret;

	if (!o->model) {
		ret = wk_local_new(wk_lm_config(lm), o->chunk, &local);
		if (!ret)
			ret = wk_lm_forward(lm, wk_local_cache(local), ref->ids,
					    REF_TOKENS, REF_TOKENS, logits);
		wk_local_free(local);
		return ret;
	}
	ret = cq_open(&open, &ctx);
	if (ret)
		return wk_cq_error(ret, "open");
	ret = wk_shared_open(&sh, ctx, o->model, o->gpu, wk_lm_config(lm), o->chunk);
	if (!ret)
		ret = wk_shared_start(&sh, NULL, 0, CQ_SEQ_NOMATCH | CQ_SEQ_PRIVATE,
				      &matched);
	if (!ret)
		ret = wk_lm_forward(lm, &sh.cache, ref->ids, REF_TOKENS, REF_TOKENS,
				    logits);
	wk_shared_close(&sh);
	cq_close(ctx);
	return ret;
}

int wk_cmd_verify(const struct wk_opts *o)
{
	struct reference ref = { .logits = NULL };
	struct wk_lm *lm = NULL;
	float *logits = NULL;
	char path[WK_PATH];
	double worst;
	int ret;

	ret = wk_path(path, o->lm, "reference.safetensors");
	if (!ret)
		ret = wk_lm_load(o->lm, o->chunk, &lm);
	if (!ret)
		ret = reference_read(&ref, path, wk_lm_config(lm)->vocab);
	if (!ret) {
		logits = malloc((size_t)REF_TOKENS * wk_lm_config(lm)->vocab *
				sizeof(float));
		if (!logits)
			ret = wk_error(-ENOMEM, "out of memory");
	}
	if (!ret)
		ret = verify_with(o, lm, &ref, logits);
	if (!ret) {
		worst = compare(&ref, logits, wk_lm_config(lm)->vocab);
		printf("{\"cache\": \"%s\", \"rows\": %d, \"max_error\": %.3g}\n",
		       o->model ? o->model : "local", REF_ROWS, worst);
		if (!(worst <= o->tolerance))
			ret = wk_error(-ERANGE, "logits are off by %g, more than %g",
				       worst, o->tolerance);
	}
	free(ref.logits);
	wk_st_close(&ref.st);
	free(logits);
	wk_lm_free(lm);
	return ret;
}
