// SPDX-License-Identifier: MIT
/* Calibration of one channel group: weights, metric, k-means, rounding. */
#include <math.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/calib.h"
#include "kernels/f16.h"

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

static double mean_below(const float *x, uint32_t n, float limit)
{
	double sum = 0;
	uint32_t t;

	for (t = 0; t < n; t++)
		sum += (double)MIN(x[t], limit);
	return sum / n;
}

/* Of the channels' mean squared gradients only ratios matter: their mean is 1. */
static void set_metric(const struct cqk_calib *c, struct cqk_kmeans *km)
{
	double m[CQ_MAX_HEAD_DIM], sum = 0, x;
	uint32_t j;

	for (j = 0; j < km->c; j++) {
		const float *g = km->g + j * km->stride;

		m[j] = 1;
		if (c->opts->fisher & CQK_FISHER_CHANNEL)
			m[j] = mean_below(g, km->n, cqk_kmeans_quantile(g, km->n,
									c->opts->clip));
		sum += m[j];
	}
	for (j = 0; j < km->c; j++) {
		x = sum > 0 ? m[j] / sum * km->c : 1;
		km->metric[j] = MAX(CQK_METRIC_MIN, MIN(CQK_METRIC_MAX, (float)x));
	}
}

/* Clipped, and with a mean of 1 so that f32 suffices. All 1 if there is no gradient. */
static void even_out(struct cqk_kmeans *km, double clip)
{
	float limit = cqk_kmeans_quantile(km->w, km->n, clip);
	double sum = 0;
	uint32_t t;

	for (t = 0; t < km->n; t++) {
		km->w[t] = MIN(km->w[t], limit);
		sum += (double)km->w[t];
	}
	for (t = 0; t < km->n; t++)
		km->w[t] = sum > 0 ? (float)((double)km->w[t] / sum * km->n) : 1;
}

static void set_weights(const struct cqk_calib *c, struct cqk_kmeans *km, uint32_t held)
{
	uint32_t t, j;
	double sum;

	memset(km->w, 0, km->stride * sizeof(*km->w));
	for (t = 0; t < km->n; t++) {
		km->w[t] = 1;
		if (!(c->opts->fisher & CQK_FISHER_TOKEN))
			continue;
		for (sum = 0, j = 0; j < km->c; j++)
			sum += (double)km->g[j * km->stride + t] / (double)km->metric[j];
		km->w[t] = (float)MIN(sum, (double)__FLT_MAX__);
	}
	if (c->opts->fisher & CQK_FISHER_TOKEN)
		even_out(km, c->opts->clip);
	memset(km->w + km->n - held, 0, held * sizeof(*km->w));
}

void cqk_learn(const struct cqk_calib *c, const struct cqk_job *job, struct cqk_kmeans *km,
	       uint32_t iterations)
{
	struct cqk_dump_part part = {
		.entry = job->entry, .head = job->head, .c = job->code.channels,
		.first = job->group * job->code.channels, .sinks = c->opts->sinks,
		.every = job->every,
	};

	km->c = job->code.channels;
	km->k = 1u << job->code.bits;
	km->n = cqk_dump_kept(&c->dump.info, c->opts->sinks, job->every);
	km->stride = ALIGN_UP((size_t)km->n, CQK_KMEANS_BLOCK);
	cqk_dump_group(&c->dump, &part, km->x, km->stride);
	part.fisher = 1;
	if (c->gradients)
		cqk_dump_group(&c->dump, &part, km->g, km->stride);
	set_metric(c, km);
	set_weights(c, km, job->held);
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
	if (o->fisher & CQK_FISHER_CHANNEL)
		memcpy(metric + channel * 4, km->metric, km->c * sizeof(*km->metric));
	job->err = cqk_kmeans_error(km, &job->norm);
	return 0;
}
