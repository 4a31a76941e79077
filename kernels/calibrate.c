// SPDX-License-Identifier: MIT
/*
 * Calibration: one k-means per (layer, K or V, kv head, channel group), from the
 * dump to the image of a model file.
 *
 * Each layer's outcome is one piece of memory, so that a caller can keep it and
 * give it back to a later run.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/calib.h"
#include "kernels/meta.h"

static int check_code(const struct cqk_calib_opts *o, struct cq_code code,
		      struct cq_err *err)
{
	struct cq_code again;
	char name[16];

	if (code.type > CQ_CODE_CQ)
		return cq_err_set(err, -EINVAL, "unknown coding %u", code.type);
	return cqk_code_parse(cqk_code_name(code, name), o->geom.head_dim, &again, err);
}

static int check_learning(const struct cqk_calib_opts *o, struct cq_err *err)
{
	if (!o->iterations)
		return cq_err_set(err, -EINVAL, "at least one iteration is wanted");
	if (!o->starts || o->starts > CQK_MAX_STARTS)
		return cq_err_set(err, -EINVAL, "%u starts: 1 to %u are wanted", o->starts,
				  CQK_MAX_STARTS);
	if (o->fisher > CQK_FISHER_BOTH)
		return cq_err_set(err, -EINVAL, "unknown use of gradients %u", o->fisher);
	if (!(o->clip > 0 && o->clip <= 1))
		return cq_err_set(err, -EINVAL, "gradients cannot be clipped at the "
				  "quantile %g: above 0 to 1 is wanted", o->clip);
	return 0;
}

static int check_opts(const struct cqk_calib_opts *o, struct cq_err *err)
{
	uint32_t l;
	int ret = cqk_geom_check(&o->geom, err);

	for (l = 0; !ret && o->k && l < o->geom.n_layers; l++) {
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
	return check_learning(o, err);
}

static int check_dump(struct cqk_calib *c, struct cq_err *err)
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
	c->gradients = o->fisher != CQK_FISHER_NONE;
	if (c->gradients && !c->dump.info.fisher)
		return cq_err_set(err, -EINVAL, "the dump has no squared gradients "
				  "(layers.0.k.fisher): write them or do without fisher");
	c->n_tokens = cqk_dump_kept(&c->dump.info, o->sinks, 1);
	if (!c->n_tokens)
		return cq_err_set(err, -EINVAL, "no tokens are left: every sequence has "
				  "%u, the first %u are sinks",
				  c->dump.info.sequence_tokens, o->sinks);
	return 0;
}

int cqk_calib_open(struct cqk_calib *c, const void *dump, size_t size, struct cq_err *err)
{
	int ret = check_opts(c->opts, err);

	if (!ret)
		ret = cqk_dump_open(dump, size, &c->dump, err);
	return ret ? ret : check_dump(c, err);
}

void cqk_calib_free(struct cqk_calib *c)
{
	uint32_t l;

	for (l = 0; c->layer && l < c->opts->geom.n_layers; l++)
		free(c->layer[l]);
	free(c->layer);
	free(c->jobs);
	free(c->left);
	cqk_dump_close(&c->dump);
	pthread_mutex_destroy(&c->lock);
}

void cqk_calib_release(const struct cqk_calib *c, uint32_t entry, int head)
{
	const void *data;
	size_t bytes;
	int fisher;

	for (fisher = 0; c->opts->release && fisher < (c->gradients ? 2 : 1); fisher++) {
		data = cqk_dump_bytes(&c->dump, entry, fisher, head, &bytes);
		c->opts->release(c->opts->arg, data, bytes);
	}
}

static int scan(struct cqk_calib *c, struct cqk_job *job, struct cqk_kmeans *km,
		struct cq_err *err)
{
	int ret = cqk_dump_scan(&c->dump, job->entry, job->head, false, err);

	if (!ret && c->gradients)
		ret = cqk_dump_scan(&c->dump, job->entry, job->head, true, err);
	cqk_calib_release(c, job->entry, (int)job->head);
	return ret;
}

int cqk_calib_scan(struct cqk_calib *c, struct cq_err *err)
{
	const struct cqk_calib_opts *o = c->opts;
	uint32_t e, n = 2 * o->geom.n_layers;
	int ret = cqk_jobs_new(c, n * o->geom.n_kv_heads, err);

	if (ret)
		return ret;
	for (e = 0; e < n; e++)
		if (!o->k || cqk_calib_code(o, e).type != CQ_CODE_F16)
			cqk_jobs_add(c, e, (struct cq_code){ 0 }, 1);
	c->fn = scan;
	c->report = false;
	c->finish = NULL;
	return cqk_jobs_run(c, err);
}

/* Bytes of a part of an entry. */
static size_t part_bytes(const struct cqk_calib_opts *o, struct cq_code code, uint32_t part)
{
	size_t channels = (size_t)o->geom.n_kv_heads * o->geom.head_dim;
	bool i8 = o->centroids == CQK_CENTROIDS_I8;

	if (part == CQK_PART_SUMS)
		return 2 * sizeof(double);
	if (code.type == CQ_CODE_F16)
		return 0;
	if (part == CQK_PART_STORED)
		return (channels << code.bits) * (i8 ? 1 : sizeof(uint16_t));
	if (part == CQK_PART_SCALE ? i8 : o->fisher & CQK_FISHER_CHANNEL)
		return channels * sizeof(float);
	return 0;
}

size_t cqk_calib_part(const struct cqk_calib_opts *opts, uint32_t entry, uint32_t part)
{
	uint32_t e, p;
	size_t at = 0;

	for (e = entry & ~1u; e <= entry; e++)
		for (p = 0; p < (e < entry ? CQK_PART_END : part); p++)
			at += part_bytes(opts, cqk_calib_code(opts, e), p);
	return at;
}

/* Where a part is, or NULL if there is none. */
static void *part_at(const struct cqk_calib *c, uint32_t entry, uint32_t part)
{
	if (!part_bytes(c->opts, cqk_calib_code(c->opts, entry), part))
		return NULL;
	return c->layer[entry / 2] + cqk_calib_part(c->opts, entry, part);
}

/* In the order of the jobs: the same sums whatever the threads. */
static void sum_errors(const struct cqk_calib *c, uint32_t layer)
{
	double *sums;
	uint32_t i;

	for (i = 0; i < c->n_jobs; i++) {
		if (c->jobs[i].entry / 2 != layer)
			continue;
		sums = part_at(c, c->jobs[i].entry, CQK_PART_SUMS);
		sums[0] += c->jobs[i].err;
		sums[1] += c->jobs[i].norm;
	}
}

static int layer_learnt(struct cqk_calib *c, uint32_t layer)
{
	const struct cqk_calib_opts *o = c->opts;
	int ret = 0;

	sum_errors(c, layer);
	cqk_calib_release(c, 2 * layer, -1);
	cqk_calib_release(c, 2 * layer + 1, -1);
	if (o->save)
		ret = o->save(o->arg, layer, c->layer[layer],
			      cqk_calib_part(o, 2 * layer + 1, CQK_PART_END));
	if (ret >= 0)
		return 0;
	return cq_err_set(&c->err, ret, "layer %u is learnt and cannot be kept: %s", layer,
			  strerror(-ret));
}

/* Memory for a layer, and its jobs unless the caller has kept it. */
static int prepare_layer(struct cqk_calib *c, uint32_t layer, struct cq_err *err)
{
	const struct cqk_calib_opts *o = c->opts;
	size_t size = cqk_calib_part(o, 2 * layer + 1, CQK_PART_END);
	struct cq_code code;
	uint32_t e;
	int ret = 0;

	c->layer[layer] = calloc(1, size);
	if (!c->layer[layer])
		return cq_err_set(err, -ENOMEM, "no memory for codebooks");
	if (o->load)
		ret = o->load(o->arg, layer, c->layer[layer], size);
	if (ret < 0)
		return cq_err_set(err, ret, "layer %u was kept and cannot be read: %s", layer,
				  strerror(-ret));
	for (e = 2 * layer; !ret && e < 2 * layer + 2; e++) {
		code = cqk_calib_code(o, e);
		c->max_c = MAX(c->max_c, code.channels);
		cqk_jobs_add(c, e, code, code.channels ? o->geom.head_dim / code.channels : 0);
	}
	return 0;
}

static int learn_all(struct cqk_calib *c, struct cq_err *err)
{
	const struct cqk_geom *g = &c->opts->geom;
	uint32_t l;
	int ret = cqk_jobs_new(c, 2 * g->n_layers * g->n_kv_heads * g->head_dim, err);

	if (ret)
		return ret;
	c->layer = calloc(g->n_layers, sizeof(*c->layer));
	if (!c->layer)
		return cq_err_set(err, -ENOMEM, "no memory for codebooks");
	for (l = 0; !ret && l < g->n_layers; l++)
		ret = prepare_layer(c, l, err);
	if (ret)
		return ret;
	c->fn = cqk_learn_job;
	c->report = true;
	c->finish = layer_learnt;
	return cqk_jobs_run(c, err);
}

static int write_model(const struct cqk_calib *c, void **image, size_t *size,
		       struct cq_err *err)
{
	const struct cqk_calib_opts *o = c->opts;
	uint32_t e, n = 2 * o->geom.n_layers;
	const void **stored = calloc(n, sizeof(*stored));
	const float **scales = calloc(n, sizeof(*scales));
	const float **metrics = calloc(n, sizeof(*metrics));
	struct cqk_model_desc desc = {
		.geom = o->geom, .k = o->k, .v = o->v, .centroids = o->centroids,
		.sinks = o->sinks, .window = o->window, .provenance = o->provenance,
		.codebooks = stored, .scales = scales, .metrics = metrics,
	};
	int ret = -ENOMEM;

	if (!stored || !scales || !metrics) {
		cq_err_set(err, ret, "no memory to write a model file");
		goto out;
	}
	for (e = 0; e < n; e++) {
		stored[e] = part_at(c, e, CQK_PART_STORED);
		scales[e] = part_at(c, e, CQK_PART_SCALE);
		metrics[e] = part_at(c, e, CQK_PART_METRIC);
	}
	memcpy(desc.fingerprint, o->fingerprint, sizeof(desc.fingerprint));
	ret = cqk_model_write(&desc, image, size, err);
out:
	free(stored);
	free(scales);
	free(metrics);
	return ret;
}

static double relative(const double *sums)
{
	return sums[1] > 0 ? sums[0] / sums[1] : 0;
}

int cqk_calibrate(const void *dump, size_t size, const struct cqk_calib_opts *opts,
		  struct cqk_calib_error *errors, void **image,
		  size_t *image_size, struct cq_err *err)
{
	struct cqk_calib c = { .opts = opts, .lock = PTHREAD_MUTEX_INITIALIZER };
	uint32_t l;
	int ret;

	if ((ret = cqk_calib_open(&c, dump, size, err)) ||
	    (ret = cqk_calib_scan(&c, err)) || (ret = learn_all(&c, err)) ||
	    (ret = write_model(&c, image, image_size, err)))
		goto out;
	for (l = 0; errors && l < opts->geom.n_layers; l++) {
		errors[l].k = relative(part_at(&c, 2 * l, CQK_PART_SUMS));
		errors[l].v = relative(part_at(&c, 2 * l + 1, CQK_PART_SUMS));
	}
out:
	cqk_calib_free(&c);
	return ret;
}
