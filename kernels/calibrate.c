// SPDX-License-Identifier: MIT
/*
 * Calibration: one k-means per (layer, K or V, kv head, channel group), shared
 * out over threads.
 *
 * Whatever thread takes a job, its random numbers come from (seed, layer, K/V,
 * head, group) and its result goes to a place of its own: the model file does
 * not depend on the number of threads.
 */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/calibrate.h"
#include "kernels/dump.h"
#include "kernels/f16.h"
#include "kernels/kmeans.h"
#include "kernels/meta.h"

#define K CQK_KMEANS_K
#define MAX_THREADS 256u

/* One codebook of one group, or one scan of a head. */
struct job {
	uint32_t entry;		/* 2 * layer, + 1 for V */
	uint32_t head;
	uint32_t group;
	double err;		/* sum of squared errors */
	double norm;		/* sum of squares */
};

/*
 * One run. @stored and @scale are [2 * n_layers], as they go into the file; @fn
 * is what the threads do with each job. What follows @lock is guarded by it;
 * @failed is the lowest job that failed, so that the message does not depend
 * on the threads.
 */
struct calib {
	const struct cqk_calib_opts *opts;
	struct cqk_dump dump;
	uint32_t n_tokens;
	uint32_t max_c;
	struct job *jobs;
	uint32_t n_jobs;
	void **stored;
	float **scale;
	int (*fn)(struct calib *c, struct job *job, struct cqk_kmeans *km,
		  struct cq_err *err);
	pthread_mutex_t lock;
	uint32_t next, done, failed;
	int ret;
	struct cq_err err;
};

static struct cq_code code_of(const struct calib *c, uint32_t entry)
{
	return entry % 2 ? c->opts->v[entry / 2] : c->opts->k[entry / 2];
}

static uint64_t job_seed(const struct calib *c, const struct job *job)
{
	uint64_t parts[] = { job->entry / 2, job->entry % 2, job->head, job->group };
	uint64_t s = c->opts->seed;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		s ^= parts[i] * 0xd6e8feb86659fd93ull;
		s = cqk_random(&s);
	}
	return s;
}

/* Uniform, or the gradients: clipped, and with a mean of 1 so that f32 suffices. */
static void load_weights(const struct calib *c, const struct job *job,
			 struct cqk_kmeans *km)
{
	uint32_t t, n = c->n_tokens;
	double sum = 0;

	memset(km->w, 0, km->stride * sizeof(*km->w));
	if (c->opts->fisher) {
		cqk_dump_weights(&c->dump, job->entry, job->head, job->group * km->c,
				 km->c, c->opts->sinks, km->w);
		cqk_kmeans_clip(km->w, n, 0.999);
		for (t = 0; t < n; t++)
			sum += (double)km->w[t];
	}
	for (t = 0; t < n; t++)
		km->w[t] = sum > 0 ? (float)((double)km->w[t] / sum * n) : 1;
}

/* Rounds the centroids to what the file holds, and leaves that in km->cen. */
static void store_f16(struct cqk_kmeans *km, uint16_t *out)
{
	uint32_t i;

	for (i = 0; i < K * km->c; i++) {
		out[i] = cqk_f32_to_f16(MAX(-CQK_F16_MAX, MIN(CQK_F16_MAX, km->cen[i])));
		km->cen[i] = cqk_f16_to_f32(out[i]);
	}
}

static void store_i8(struct cqk_kmeans *km, int8_t *out, float *scale)
{
	uint32_t j, k, i;
	float top, q;

	for (j = 0; j < km->c; j++) {
		for (top = 0, k = 0; k < K; k++)
			top = MAX(top, fabsf(km->cen[k * km->c + j]));
		scale[j] = top / 127;
		for (k = 0; k < K; k++) {
			i = k * km->c + j;
			q = scale[j] > 0 ? rintf(km->cen[i] / scale[j]) : 0;
			out[i] = (int8_t)MAX(-127.0f, MIN(127.0f, q));
			km->cen[i] = (float)out[i] * scale[j];
		}
	}
}

static int learn(struct calib *c, struct job *job, struct cqk_kmeans *km,
		 struct cq_err *err)
{
	uint32_t d = c->opts->geom.head_dim, e = job->entry;
	size_t channel, at;

	km->c = code_of(c, e).channels;
	km->n = c->n_tokens;
	km->stride = ALIGN_UP((size_t)km->n, CQK_KMEANS_BLOCK);
	cqk_dump_group(&c->dump, e, job->head, job->group * km->c, km->c,
		       c->opts->sinks, km->x, km->stride);
	load_weights(c, job, km);
	cqk_kmeans_run(km, c->opts->iterations, job_seed(c, job));
	channel = (size_t)job->head * d + (size_t)job->group * km->c;
	at = channel * K;
	if (c->opts->centroids == CQK_CENTROIDS_I8)
		store_i8(km, (int8_t *)c->stored[e] + at, c->scale[e] + channel);
	else
		store_f16(km, (uint16_t *)c->stored[e] + at);
	job->err = cqk_kmeans_error(km, &job->norm);
	return 0;
}

static int scan(struct calib *c, struct job *job, struct cqk_kmeans *km,
		struct cq_err *err)
{
	int ret = cqk_dump_scan(&c->dump, job->entry, job->head, false, err);

	if (!ret && c->opts->fisher)
		ret = cqk_dump_scan(&c->dump, job->entry, job->head, true, err);
	return ret;
}

static int report(struct calib *c)
{
	const struct cqk_calib_opts *o = c->opts;

	c->done++;
	if (c->fn != learn || !o->progress || !o->progress(o->arg, c->done, c->n_jobs))
		return 0;
	return cq_err_set(&c->err, -ECANCELED, "canceled");
}

/* Jobs are handed out in order, so all before a failed one have been taken. */
static struct job *take_job(struct calib *c, struct job *finished, int ret,
			    const struct cq_err *err)
{
	struct job *job = NULL;
	uint32_t i;

	pthread_mutex_lock(&c->lock);
	i = finished ? (uint32_t)(finished - c->jobs) : 0;
	if (ret && i < c->failed) {
		c->failed = i;
		c->ret = ret;
		c->err = *err;
	} else if (finished && !ret && !c->ret) {
		c->ret = report(c);
	}
	if (!c->ret && c->next < c->n_jobs)
		job = &c->jobs[c->next++];
	pthread_mutex_unlock(&c->lock);
	return job;
}

static void *work(void *arg)
{
	struct calib *c = arg;
	struct cqk_kmeans km = { 0 };
	struct cq_err err = { "" };
	struct job *job = NULL;
	int ret = 0;

	if (c->fn == learn && cqk_kmeans_init(&km, c->n_tokens, c->max_c)) {
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

/* Runs @fn on every job; threads that cannot be had are done without. */
static int run_jobs(struct calib *c, __typeof__(c->fn) fn, struct cq_err *err)
{
	uint32_t i, n = MIN(MAX(c->opts->threads, 1u), MIN(MAX_THREADS, c->n_jobs));
	pthread_t threads[MAX_THREADS];

	if (!c->n_jobs)
		return 0;
	c->fn = fn;
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

static int add_jobs(struct calib *c, bool groups, struct cq_err *err)
{
	const struct cqk_geom *g = &c->opts->geom;
	uint32_t e, h, i, n, ch;

	free(c->jobs);
	c->n_jobs = 0;
	c->jobs = calloc(2ull * g->n_layers * g->n_kv_heads * (groups ? g->head_dim : 1),
			 sizeof(*c->jobs));
	if (!c->jobs)
		return cq_err_set(err, -ENOMEM, "no memory for the list of codebooks");
	for (e = 0; e < 2 * g->n_layers; e++) {
		ch = code_of(c, e).channels;
		n = !ch ? 0 : groups ? g->head_dim / ch : 1;
		for (h = 0; h < g->n_kv_heads; h++)
			for (i = 0; i < n; i++)
				c->jobs[c->n_jobs++] =
					(struct job){ .entry = e, .head = h, .group = i };
	}
	return 0;
}

static int alloc_codebooks(struct calib *c, struct cq_err *err)
{
	const struct cqk_geom *g = &c->opts->geom;
	size_t channels = (size_t)g->n_kv_heads * g->head_dim;
	uint32_t e, n = 2 * g->n_layers;

	c->stored = calloc(n, sizeof(*c->stored));
	c->scale = calloc(n, sizeof(*c->scale));
	if (!c->stored || !c->scale)
		goto err_nomem;
	for (e = 0; e < n; e++) {
		if (code_of(c, e).type == CQ_CODE_F16)
			continue;
		c->max_c = MAX(c->max_c, code_of(c, e).channels);
		c->stored[e] = calloc(channels * K, sizeof(uint16_t));
		c->scale[e] = calloc(channels, sizeof(float));
		if (!c->stored[e] || !c->scale[e])
			goto err_nomem;
	}
	return 0;

err_nomem:
	return cq_err_set(err, -ENOMEM, "no memory for codebooks");
}

static int check_code(const struct cqk_calib_opts *o, struct cq_code code,
		      struct cq_err *err)
{
	struct cq_code again;
	char name[16];

	if (code.type > CQ_CODE_CQ)
		return cq_err_set(err, -EINVAL, "unknown coding %u", code.type);
	return cqk_code_parse(cqk_code_name(code, name), o->geom.head_dim, &again, err);
}

static int check_opts(const struct cqk_calib_opts *o, struct cq_err *err)
{
	uint32_t l;
	int ret = cqk_geom_check(&o->geom, err);

	for (l = 0; !ret && l < o->geom.n_layers; l++) {
		ret = check_code(o, o->k[l], err);
		if (!ret)
			ret = check_code(o, o->v[l], err);
	}
	if (ret)
		return ret;
	if (o->centroids > CQK_CENTROIDS_I8)
		return cq_err_set(err, -EINVAL, "unknown kind of centroids %u",
				  o->centroids);
	if (o->sinks > CQ_MAX_SINKS)
		return cq_err_set(err, -EINVAL, "%u sinks, at most %d are possible",
				  o->sinks, CQ_MAX_SINKS);
	if (o->window > CQ_MAX_WINDOW || o->window % CQ_PAGE_TOKENS)
		return cq_err_set(err, -EINVAL, "a window of %u tokens: a multiple of %d "
				  "up to %d is wanted", o->window, CQ_PAGE_TOKENS,
				  CQ_MAX_WINDOW);
	if (!o->iterations)
		return cq_err_set(err, -EINVAL, "at least one iteration is wanted");
	return 0;
}

static int check_dump(struct calib *c, struct cq_err *err)
{
	const struct cqk_calib_opts *o = c->opts;
	struct cqk_geom *g = &c->dump.info.geom;

	if (g->n_layers != o->geom.n_layers || g->n_kv_heads != o->geom.n_kv_heads ||
	    g->head_dim != o->geom.head_dim)
		return cq_err_set(err, -EINVAL, "the dump has %u layers, %u kv heads and "
				  "%u channels, %u, %u and %u are asked for", g->n_layers,
				  g->n_kv_heads, g->head_dim, o->geom.n_layers,
				  o->geom.n_kv_heads, o->geom.head_dim);
	*g = o->geom;	/* its pairs say in which order keys are stored */
	if (o->fisher && !c->dump.info.fisher)
		return cq_err_set(err, -EINVAL, "the dump has no squared gradients "
				  "(layers.0.k.fisher): write them or do without fisher");
	c->n_tokens = cqk_dump_kept(&c->dump, o->sinks);
	if (!c->n_tokens)
		return cq_err_set(err, -EINVAL, "no tokens are left: every sequence has "
				  "%u, the first %u are sinks",
				  c->dump.info.sequence_tokens, o->sinks);
	return 0;
}

/* Per layer, in the order of the jobs: the same sum whatever the threads. */
static void sum_errors(const struct calib *c, struct cqk_calib_error *errors)
{
	double sum[2] = { 0 }, norm[2] = { 0 };
	uint32_t l, i = 0;

	for (l = 0; l < c->opts->geom.n_layers; l++) {
		memset(sum, 0, sizeof(sum));
		memset(norm, 0, sizeof(norm));
		for (; i < c->n_jobs && c->jobs[i].entry / 2 == l; i++) {
			sum[c->jobs[i].entry % 2] += c->jobs[i].err;
			norm[c->jobs[i].entry % 2] += c->jobs[i].norm;
		}
		errors[l].k = norm[0] > 0 ? sum[0] / norm[0] : 0;
		errors[l].v = norm[1] > 0 ? sum[1] / norm[1] : 0;
	}
}

static int write_model(const struct calib *c, void **image, size_t *size,
		       struct cq_err *err)
{
	const struct cqk_calib_opts *o = c->opts;
	struct cqk_model_desc desc = {
		.geom = o->geom, .k = o->k, .v = o->v, .centroids = o->centroids,
		.sinks = o->sinks, .window = o->window, .provenance = o->provenance,
		.codebooks = (const void *const *)c->stored,
		.scales = (const float *const *)c->scale,
	};

	memcpy(desc.fingerprint, o->fingerprint, sizeof(desc.fingerprint));
	return cqk_model_write(&desc, image, size, err);
}

static void calib_free(struct calib *c)
{
	uint32_t e;

	for (e = 0; e < 2 * c->opts->geom.n_layers; e++) {
		if (c->stored)
			free(c->stored[e]);
		if (c->scale)
			free(c->scale[e]);
	}
	free(c->stored);
	free(c->scale);
	free(c->jobs);
	cqk_dump_close(&c->dump);
	pthread_mutex_destroy(&c->lock);
}

int cqk_calibrate(const void *dump, size_t size, const struct cqk_calib_opts *opts,
		  struct cqk_calib_error *errors, void **image,
		  size_t *image_size, struct cq_err *err)
{
	struct calib c = { .opts = opts, .lock = PTHREAD_MUTEX_INITIALIZER };
	int ret = check_opts(opts, err);

	if (ret)
		return ret;
	ret = cqk_dump_open(dump, size, &c.dump, err);
	if (ret)
		return ret;
	if ((ret = check_dump(&c, err)) || (ret = alloc_codebooks(&c, err)) ||
	    (ret = add_jobs(&c, false, err)) || (ret = run_jobs(&c, scan, err)) ||
	    (ret = add_jobs(&c, true, err)) || (ret = run_jobs(&c, learn, err)) ||
	    (ret = write_model(&c, image, image_size, err)))
		goto out;
	if (errors)
		sum_errors(&c, errors);
out:
	calib_free(&c);
	return ret;
}
