// SPDX-License-Identifier: MIT
/*
 * Codings by a budget: how much each layer's keys and values lose at each
 * choice, and bits where they save most.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/calib.h"

#define TRY_TOKENS 40u		/* for each centroid; of these are held */
#define TRY_HELD 5		/* one in so many, to measure on */
#define TRY_ITERATIONS 6
#define SLACK 1e-9		/* rounding of sums of bits */

/* Of one channel, over the tokens that are held. */
static void add_losses(struct cqk_job *job, const struct cqk_kmeans *km, uint32_t j,
		       const float *g, float limit)
{
	const float *x = km->x + j * km->stride;
	double d;
	uint32_t t;

	for (t = km->n - job->held; t < km->n; t++) {
		d = (double)x[t] - (double)km->cen[(size_t)km->idx[t] * km->c + j];
		job->err += d * d;
		job->norm += (double)x[t] * (double)x[t];
		if (g)
			job->loss += (double)MIN(g[t], limit) * d * d;
	}
}

static int try_job(struct cqk_calib *c, struct cqk_job *job, struct cqk_kmeans *km,
		   struct cq_err *err)
{
	const float *g = NULL;
	float limit = 0;
	double norm;
	uint32_t j;

	cqk_learn(c, job, km, MIN(c->opts->iterations, TRY_ITERATIONS));
	cqk_kmeans_error(km, &norm);	/* the nearest centroids of all tokens */
	for (j = 0; j < km->c; j++) {
		if (c->gradients) {
			g = km->g + j * km->stride;
			limit = cqk_kmeans_quantile(g, km->n, c->opts->clip);
		}
		add_losses(job, km, j, g, limit);
	}
	job->loss /= MAX(job->held, 1u);	/* codings are not measured on as many */
	return 0;
}

static int layer_tried(struct cqk_calib *c, uint32_t layer)
{
	cqk_calib_release(c, 2 * layer, -1);
	cqk_calib_release(c, 2 * layer + 1, -1);
	return 0;
}

static bool is_fixed(const struct cqk_budget *b, uint32_t entry)
{
	return b->fixed && b->fixed[entry];
}

/* Codebooks of all choices for K or V of a layer. */
static uint32_t groups_of_all(const struct cqk_budget *b, const struct cqk_geom *g)
{
	uint32_t i, n = 0;

	for (i = 0; i < b->n_choices; i++)
		n += g->n_kv_heads * (g->head_dim / b->choices[i].channels);
	return n;
}

/* What @job learns from, and what it is measured on: never the same, nor all of a large dump. */
static void share_tokens(const struct cqk_calib *c, struct cqk_job *job)
{
	uint32_t most = TRY_TOKENS * cqk_code_centroids(job->code);

	job->every = MAX(1u, c->n_tokens / most);
	job->held = cqk_dump_kept(&c->dump.info, c->opts->sinks, job->every) / TRY_HELD;
}

/* Jobs of every choice for every entry that is not fixed. */
static int try_all(struct cqk_calib *c, const struct cqk_budget *b, struct cq_err *err)
{
	const struct cqk_geom *g = &c->opts->geom;
	uint32_t e, i, n = 2 * g->n_layers;
	const struct cq_code *code;
	int ret = cqk_jobs_new(c, n * groups_of_all(b, g), err);

	if (ret)
		return ret;
	for (e = 0; e < n; e++)
		for (i = 0; !is_fixed(b, e) && i < b->n_choices; i++) {
			code = &b->choices[i];
			c->max_c = MAX(c->max_c, code->channels);
			cqk_jobs_add(c, e, *code, g->head_dim / code->channels);
		}
	for (i = 0; i < c->n_jobs; i++)
		share_tokens(c, &c->jobs[i]);
	c->fn = try_job;
	c->report = true;
	c->finish = layer_tried;
	return cqk_jobs_run(c, err);
}

static uint32_t choice_of(const struct cqk_budget *b, struct cq_code code)
{
	uint32_t i;

	for (i = 0; b->choices[i].channels != code.channels ||
		    b->choices[i].bits != code.bits; i++)
		;
	return i;
}

/*
 * In the order of the jobs: the same sums whatever the threads. Returns whether
 * anything is lost anywhere.
 */
static bool sum_losses(const struct cqk_calib *c, struct cqk_budget *b)
{
	const struct cqk_job *job = c->jobs, *end = c->jobs + c->n_jobs;
	bool lost = false;
	double norm[CQK_MAX_CHOICES];
	uint32_t e, at;

	for (e = 0; e < 2 * c->opts->geom.n_layers; e++) {
		memset(norm, 0, sizeof(norm));
		for (; job < end && job->entry == e; job++) {
			at = choice_of(b, job->code);
			b->loss[e][at] += b->relative ? job->err : job->loss;
			norm[at] += job->norm;
			lost |= b->loss[e][at] > 0;
		}
		for (at = 0; b->relative && at < b->n_choices; at++)
			if (norm[at] > 0)
				b->loss[e][at] /= norm[at];
	}
	return lost;
}

/* Gradients that are all 0 say nothing, as those that are not there. */
static void compare(const struct cqk_calib *c, struct cqk_budget *b)
{
	b->relative = !c->gradients;
	if (sum_losses(c, b) || b->relative)
		return;
	b->relative = true;	/* all sums are still 0 */
	sum_losses(c, b);
}

static struct cq_code *code_at(const struct cqk_budget *b, uint32_t entry)
{
	return entry % 2 ? &b->v[entry / 2] : &b->k[entry / 2];
}

/*
 * The change of one entry that saves most per bit and costs at most @left;
 * false if there is none. Larger steps count too: a small one may save little
 * and lead to one that saves much.
 */
static bool best_step(const struct cqk_budget *b, uint32_t n, double left, uint32_t *entry,
		      uint32_t *to)
{
	double most = 0, cost, gain;
	uint32_t e, i, now;
	bool found = false;

	for (e = 0; e < n; e++) {
		now = is_fixed(b, e) ? b->n_choices : choice_of(b, *code_at(b, e));
		for (i = now + 1; i < b->n_choices; i++) {
			cost = cqk_code_bits(b->choices[i]) - cqk_code_bits(b->choices[now]);
			gain = (b->loss[e][now] - b->loss[e][i]) / cost;
			if (cost > left + SLACK || !(gain > most))
				continue;
			most = gain;
			*entry = e;
			*to = i;
			found = true;
		}
	}
	return found;
}

static int check_choices(const struct cqk_budget *b, const struct cqk_geom *g,
			 struct cq_err *err)
{
	const struct cq_code *code = b->choices;
	uint32_t i;

	if (!b->n_choices || b->n_choices > CQK_MAX_CHOICES)
		return cq_err_set(err, -EINVAL, "a budget chooses from 1 to %d codings",
				  CQK_MAX_CHOICES);
	for (i = 0; i < b->n_choices; i++)
		if (code[i].type != CQ_CODE_CQ || g->head_dim % code[i].channels ||
		    (i && cqk_code_bits(code[i]) <= cqk_code_bits(code[i - 1])))
			return cq_err_set(err, -EINVAL, "a budget chooses from coded codings of "
					  "more and more bits that go with head_dim");
	return 0;
}

/* The cheapest choice for each entry; *@left is what the budget then has. */
static int start_low(struct cqk_budget *b, const struct cqk_geom *g, double *left,
		     struct cq_err *err)
{
	uint32_t e, i, n = 2 * g->n_layers;
	double least = 0;

	for (e = 0; e < n; e++) {
		for (i = 0; i < b->n_choices; i++)
			b->loss[e][i] = 0;
		if (!is_fixed(b, e))
			*code_at(b, e) = b->choices[0];
		least += cqk_code_bits(*code_at(b, e));
	}
	*left = b->bits * n - least;
	if (*left >= -SLACK)
		return 0;
	return cq_err_set(err, -EINVAL, "a budget of %g bits per channel: at least %g are needed",
			  b->bits, least / n);
}

static void spend(struct cqk_budget *b, uint32_t n, double left)
{
	uint32_t e, i;

	while (best_step(b, n, left, &e, &i)) {
		left -= cqk_code_bits(b->choices[i]) - cqk_code_bits(*code_at(b, e));
		*code_at(b, e) = b->choices[i];
	}
	b->spent = b->bits - left / n;
}

int cqk_calib_budget(const void *dump, size_t size, const struct cqk_calib_opts *opts,
		     struct cqk_budget *budget, struct cq_err *err)
{
	struct cqk_calib_opts o = *opts;
	struct cqk_calib c = { .opts = &o, .lock = PTHREAD_MUTEX_INITIALIZER };
	double left = 0;
	int ret;

	o.k = NULL;
	o.v = NULL;
	ret = cqk_calib_open(&c, dump, size, err);
	c.gradients = c.dump.info.fisher;
	if (ret || (ret = check_choices(budget, &o.geom, err)) ||
	    (ret = start_low(budget, &o.geom, &left, err)) ||
	    (ret = cqk_calib_scan(&c, err)) || (ret = try_all(&c, budget, err)))
		goto out;
	compare(&c, budget);
	spend(budget, 2 * o.geom.n_layers, left);
out:
	cqk_calib_free(&c);
	return ret;
}
