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

#define TRY_TOKENS 8192u
#define TRY_ITERATIONS 6
#define SLACK 1e-9		/* rounding of sums of bits */

static const struct cq_code choices[] = {
	{ CQ_CODE_CQ, 8, 8, 0 }, { CQ_CODE_CQ, 4, 8, 0 }, { CQ_CODE_CQ, 2, 8, 0 },
};

_Static_assert(ARRAY_SIZE(choices) == CQK_BUDGET_CHOICES, "as calibrate.h says");

const struct cq_code *cqk_budget_choice(uint32_t i)
{
	return i < ARRAY_SIZE(choices) ? &choices[i] : NULL;
}

/* Sum over tokens and channels of g^2 (x - c)^2. */
static double weighted_loss(const struct cqk_calib *c, const struct cqk_kmeans *km)
{
	double sum = 0, d;
	const float *g;
	uint32_t j, t;
	float limit;

	for (j = 0; j < km->c; j++) {
		g = km->g + j * km->stride;
		limit = cqk_kmeans_quantile(g, km->n, c->opts->clip);
		for (t = 0; t < km->n; t++) {
			d = (double)km->x[j * km->stride + t] -
			    (double)km->cen[(size_t)km->idx[t] * km->c + j];
			sum += (double)MIN(g[t], limit) * d * d;
		}
	}
	return sum;
}

static int try_job(struct cqk_calib *c, struct cqk_job *job, struct cqk_kmeans *km,
		   struct cq_err *err)
{
	cqk_learn(c, job, km, MIN(c->opts->iterations, TRY_ITERATIONS));
	job->err = cqk_kmeans_error(km, &job->norm);
	job->loss = c->gradients ? weighted_loss(c, km) : 0;
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

/* Jobs of every choice for every entry that is not fixed. */
static int try_all(struct cqk_calib *c, const struct cqk_budget *b, struct cq_err *err)
{
	const struct cqk_geom *g = &c->opts->geom;
	uint32_t e, i, n = 2 * g->n_layers;
	int ret = cqk_jobs_new(c, n * g->n_kv_heads * g->head_dim, err);

	if (ret)
		return ret;
	for (e = 0; e < n; e++)
		for (i = 0; !is_fixed(b, e) && i < CQK_BUDGET_CHOICES; i++)
			if (isfinite(b->loss[e][i]))
				cqk_jobs_add(c, e, choices[i], g->head_dim / choices[i].channels);
	c->max_c = choices[0].channels;
	c->every = MAX(1u, c->n_tokens / TRY_TOKENS);
	c->n_tokens = cqk_dump_kept(&c->dump.info, c->opts->sinks, c->every);
	c->fn = try_job;
	c->report = true;
	c->finish = layer_tried;
	return cqk_jobs_run(c, err);
}

static uint32_t choice_of(struct cq_code code)
{
	uint32_t i;

	for (i = 0; choices[i].channels != code.channels; i++)
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
	double norm[CQK_BUDGET_CHOICES];
	uint32_t e, at;

	for (e = 0; e < 2 * c->opts->geom.n_layers; e++) {
		memset(norm, 0, sizeof(norm));
		for (; job < end && job->entry == e; job++) {
			at = choice_of(job->code);
			b->loss[e][at] += b->relative ? job->err : job->loss;
			norm[at] += job->norm;
			lost |= b->loss[e][at] > 0;
		}
		for (at = 0; b->relative && at < CQK_BUDGET_CHOICES; at++)
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
		now = is_fixed(b, e) ? CQK_BUDGET_CHOICES : choice_of(*code_at(b, e));
		for (i = now + 1; i < CQK_BUDGET_CHOICES; i++) {
			cost = cqk_code_bits(choices[i]) - cqk_code_bits(choices[now]);
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

/* The cheapest choice for each entry; *@left is what the budget then has. */
static int start_low(struct cqk_budget *b, const struct cqk_geom *g, double *left,
		     struct cq_err *err)
{
	uint32_t e, i, low, n = 2 * g->n_layers;
	double least = 0;

	for (low = 0; g->head_dim % choices[low].channels; low++)
		;	/* head_dim is even */
	for (e = 0; e < n; e++) {
		for (i = 0; i < CQK_BUDGET_CHOICES; i++)
			b->loss[e][i] = g->head_dim % choices[i].channels ? INFINITY : 0;
		if (!is_fixed(b, e))
			*code_at(b, e) = choices[low];
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
		left -= cqk_code_bits(choices[i]) - cqk_code_bits(*code_at(b, e));
		*code_at(b, e) = choices[i];
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
	if (ret || (ret = start_low(budget, &o.geom, &left, err)) ||
	    (ret = cqk_calib_scan(&c, err)) || (ret = try_all(&c, budget, err)))
		goto out;
	compare(&c, budget);
	spend(budget, 2 * o.geom.n_layers, left);
out:
	cqk_calib_free(&c);
	return ret;
}
