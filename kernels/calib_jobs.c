// SPDX-License-Identifier: MIT
/*
 * Jobs of a calibration, shared out over threads.
 *
 * Whatever thread takes a job, its random numbers come from (seed, layer, K/V,
 * head, group) and its result goes to a place of its own: the model file does
 * not depend on the number of threads.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/calib.h"

#define MAX_THREADS 256u

int cqk_jobs_new(struct cqk_calib *c, uint32_t n, struct cq_err *err)
{
	free(c->jobs);
	free(c->left);
	c->n_jobs = 0;
	c->jobs = calloc(MAX(n, 1u), sizeof(*c->jobs));
	c->left = calloc(c->opts->geom.n_layers, sizeof(*c->left));
	if (!c->jobs || !c->left)
		return cq_err_set(err, -ENOMEM, "no memory for the list of codebooks");
	return 0;
}

void cqk_jobs_add(struct cqk_calib *c, uint32_t entry, struct cq_code code, uint32_t groups)
{
	uint32_t h, i, n_heads = c->opts->geom.n_kv_heads;

	for (h = 0; h < n_heads; h++)
		for (i = 0; i < groups; i++)
			c->jobs[c->n_jobs++] = (struct cqk_job){
				.entry = entry, .head = h, .group = i, .code = code,
				.every = 1 };
	c->left[entry / 2] += n_heads * groups;
}

static void finished(struct cqk_calib *c, const struct cqk_job *job)
{
	const struct cqk_calib_opts *o = c->opts;
	uint32_t layer = job->entry / 2;

	c->done++;
	if (c->report && o->progress && o->progress(o->arg, c->done, c->n_jobs)) {
		c->ret = cq_err_set(&c->err, -ECANCELED, "canceled");
		return;
	}
	if (!--c->left[layer] && c->finish)
		c->ret = c->finish(c, layer);
}

/* Jobs are handed out in order, so all before a failed one have been taken. */
static struct cqk_job *take_job(struct cqk_calib *c, struct cqk_job *last, int ret,
				const struct cq_err *err)
{
	struct cqk_job *job = NULL;
	uint32_t i;

	pthread_mutex_lock(&c->lock);
	i = last ? (uint32_t)(last - c->jobs) : 0;
	if (ret && i < c->failed) {
		c->failed = i;
		c->ret = ret;
		c->err = *err;
	} else if (last && !ret && !c->ret) {
		finished(c, last);
	}
	if (!c->ret && c->next < c->n_jobs)
		job = &c->jobs[c->next++];
	pthread_mutex_unlock(&c->lock);
	return job;
}

/* Most centroids of a job; 0 if none learns any. */
static uint32_t most_centroids(const struct cqk_calib *c)
{
	uint32_t i, bits = 0;

	for (i = 0; i < c->n_jobs; i++)
		bits = MAX(bits, c->jobs[i].code.bits);
	return bits ? 1u << bits : 0;
}

static void *work(void *arg)
{
	struct cqk_calib *c = arg;
	struct cqk_kmeans km = { 0 };
	struct cq_err err = { "" };
	struct cqk_job *job = NULL;
	uint32_t k = most_centroids(c);
	int ret = 0;

	if (k && cqk_kmeans_init(&km, c->n_tokens, c->max_c, k)) {
		pthread_mutex_lock(&c->lock);
		c->ret = cq_err_set(&c->err, -ENOMEM, "no memory to learn codebooks "
				    "from %u tokens: use fewer threads or a smaller "
				    "dump", c->n_tokens);
		pthread_mutex_unlock(&c->lock);
		return NULL;
	}
	while ((job = take_job(c, job, ret, &err)))
		ret = c->fn(c, job, &km, &err);
	cqk_kmeans_free(&km);
	return NULL;
}

int cqk_jobs_run(struct cqk_calib *c, struct cq_err *err)
{
	uint32_t i, n = MIN(MAX(c->opts->threads, 1u), MIN(MAX_THREADS, c->n_jobs));
	pthread_t threads[MAX_THREADS];

	if (!c->n_jobs)
		return 0;
	c->next = 0;
	c->done = 0;
	c->failed = UINT32_MAX;
	for (i = 1; i < n; i++)
		if (pthread_create(&threads[i], NULL, work, c))
			break;
	n = i;
	work(c);
	for (i = 1; i < n; i++)
		pthread_join(threads[i], NULL);
	if (c->ret && err)
		*err = c->err;
	return c->ret;
}
