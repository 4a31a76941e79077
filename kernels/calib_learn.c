// SPDX-License-Identifier: MIT
/* Calibration of one channel group: weights, metric, k-means, rounding. */
#include <math.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/calib.h"
#include "kernels/f16.h"

/* A channel's variance is at least this part of its group's largest. */
#define LEAST_VARIANCE 1e-6

static uint64_t job_seed(const struct cqk_calib *c, const struct cqk_job *job)
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

/* Channels @first .. @first + @n - 1 of the job's group. */
static struct cqk_dump_part part_of(const struct cqk_calib *c, const struct cqk_job *job,
				    uint32_t first, uint32_t n)
{
	return (struct cqk_dump_part){
		.entry = job->entry, .head = job->head, .c = n,
		.first = job->group * job->code.channels + first,
		.sinks = c->opts->sinks, .every = c->every,
	};
}

/* Uniform, or the gradients: clipped, and with a mean of 1 so that f32 suffices. */
static void load_weights(const struct cqk_calib *c, const struct cqk_job *job,
			 struct cqk_kmeans *km)
{
	struct cqk_dump_part part = part_of(c, job, 0, km->c);
	uint32_t t, n = c->n_tokens;
	double sum = 0;

	memset(km->w, 0, km->stride * sizeof(*km->w));
	if (c->opts->fisher) {
		cqk_dump_weights(&c->dump, &part, km->w);
		cqk_kmeans_clip(km->w, n, c->opts->clip);
		for (t = 0; t < n; t++)
			sum += (double)km->w[t];
	}
	for (t = 0; t < n; t++)
		km->w[t] = sum > 0 ? (float)((double)km->w[t] / sum * n) : 1;
}

void cqk_channel_weights(const struct cqk_calib *c, const struct cqk_job *job, uint32_t j,
			 float *out)
{
	struct cqk_dump_part part = part_of(c, job, j, 1);

	cqk_dump_weights(&c->dump, &part, out);
	cqk_kmeans_clip(out, c->n_tokens, c->opts->clip);
}

static double mean_gradient(const struct cqk_calib *c, const struct cqk_job *job, uint32_t j,
			    float *tmp)
{
	double sum = 0;
	uint32_t t;

	cqk_channel_weights(c, job, j, tmp);
	for (t = 0; t < c->n_tokens; t++)
		sum += (double)tmp[t];
	return sum / c->n_tokens;
}

static double variance(const float *x, uint32_t n)
{
	double sum = 0, sq = 0, mean;
	uint32_t t;

	for (t = 0; t < n; t++)
		sum += (double)x[t];
	mean = sum / n;
	for (t = 0; t < n; t++)
		sq += ((double)x[t] - mean) * ((double)x[t] - mean);
	return sq / n;
}

/* Only ratios within a group matter: their mean is 1, or all are. */
static void set_metric(struct cqk_kmeans *km, const double *m)
{
	double sum = 0, x;
	uint32_t j;

	for (j = 0; j < km->c; j++)
		sum += m[j];
	for (j = 0; j < km->c; j++) {
		x = sum > 0 ? m[j] / sum * km->c : 1;
		km->metric[j] = MAX(CQK_METRIC_MIN, MIN(CQK_METRIC_MAX, (float)x));
	}
}

static void load_metric(const struct cqk_calib *c, const struct cqk_job *job,
			struct cqk_kmeans *km)
{
	double m[CQ_MAX_HEAD_DIM] = { 0 }, top = 0;
	uint32_t j;

	for (j = 0; j < km->c && c->opts->metric == CQK_METRIC_FISHER; j++)
		m[j] = mean_gradient(c, job, j, km->d2);
	for (j = 0; j < km->c && c->opts->metric == CQK_METRIC_VARIANCE; j++) {
		m[j] = variance(km->x + j * km->stride, km->n);
		top = MAX(top, m[j]);
	}
	for (j = 0; j < km->c && top > 0; j++)
		m[j] = 1 / MAX(m[j], top * LEAST_VARIANCE);
	set_metric(km, m);
}

void cqk_learn(const struct cqk_calib *c, const struct cqk_job *job, struct cqk_kmeans *km,
	       uint32_t iterations)
{
	struct cqk_dump_part part = part_of(c, job, 0, job->code.channels);

	km->c = job->code.channels;
	km->k = 1u << job->code.bits;
	km->n = c->n_tokens;
	km->stride = ALIGN_UP((size_t)km->n, CQK_KMEANS_BLOCK);
	cqk_dump_group(&c->dump, &part, km->x, km->stride);
	load_weights(c, job, km);
	load_metric(c, job, km);
	cqk_kmeans_best(km, iterations, c->opts->starts, job_seed(c, job));
}

/* Rounds the centroids to what the file holds, and leaves that in km->cen. */
static void store_f16(struct cqk_kmeans *km, uint16_t *out)
{
	uint32_t i;

	for (i = 0; i < km->k * km->c; i++) {
		out[i] = cqk_f32_to_f16(MAX(-CQK_F16_MAX, MIN(CQK_F16_MAX, km->cen[i])));
		km->cen[i] = cqk_f16_to_f32(out[i]);
	}
}

static void store_i8(struct cqk_kmeans *km, int8_t *out, float *scale)
{
	uint32_t j, k, i;
	float top, q;

	for (j = 0; j < km->c; j++) {
		for (top = 0, k = 0; k < km->k; k++)
			top = MAX(top, fabsf(km->cen[k * km->c + j]));
		scale[j] = top / 127;
		for (k = 0; k < km->k; k++) {
			i = k * km->c + j;
			q = scale[j] > 0 ? rintf(km->cen[i] / scale[j]) : 0;
			out[i] = (int8_t)MAX(-127.0f, MIN(127.0f, q));
			km->cen[i] = (float)out[i] * scale[j];
		}
	}
}

int cqk_learn_job(struct cqk_calib *c, struct cqk_job *job, struct cqk_kmeans *km,
		  struct cq_err *err)
{
	const struct cqk_calib_opts *o = c->opts;
	size_t channel = (size_t)job->head * o->geom.head_dim +
			 (size_t)job->group * job->code.channels;
	uint8_t *base = c->layer[job->entry / 2];
	uint8_t *stored = base + cqk_calib_part(o, job->entry, CQK_PART_STORED);
	uint8_t *scale = base + cqk_calib_part(o, job->entry, CQK_PART_SCALE);
	uint8_t *metric = base + cqk_calib_part(o, job->entry, CQK_PART_METRIC);

	cqk_learn(c, job, km, o->iterations);
	if (o->centroids == CQK_CENTROIDS_I8)
		store_i8(km, (int8_t *)stored + channel * km->k,
			 (float *)(void *)scale + channel);
	else
		store_f16(km, (uint16_t *)(void *)stored + channel * km->k);
	if (o->metric)
		memcpy(metric + channel * 4, km->metric, km->c * sizeof(*km->metric));
	job->err = cqk_kmeans_error(km, &job->norm);
	return 0;
}
