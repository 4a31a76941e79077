// SPDX-License-Identifier: MIT
/*
 * calibrate: activation dump in, model file out. The only command that works
 * without cqd.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "client/cqctl/calibrate.h"

/* Tokens for each centroid of a group, below which codebooks fit these alone. */
#define ENOUGH 4

static int choose_codings(struct calib *cal, struct cq_err *err)
{
	struct cqk_budget b = {
		.bits = cal->budget, .fixed = cal->fixed, .k = cal->code[0],
		.v = cal->code[1], .loss = cal->loss, .choices = cal->choices,
		.n_choices = cal->n_choices,
	};
	int ret;

	cal->tried = true;
	ret = cqk_calib_budget(cal->dump, cal->size, &cal->opts, &b, err);
	cal->relative = b.relative;
	cal->tried = false;
	cal->step = 0;
	return ret;
}

static uint32_t most_of(const struct cq_code *codes, uint32_t n)
{
	uint32_t i, most = 0;

	for (i = 0; i < n; i++)
		if (codes[i].type != CQ_CODE_F16)
			most = MAX(most, cqk_code_centroids(codes[i]));
	return most;
}

/* Most centroids of a group; 0: all keys and values are left as they are. */
static uint32_t most_centroids(const struct calib *cal)
{
	bool any = cal->budget > 0;
	uint32_t e, most = 0;

	for (e = 0; e < 2 * cal->info.geom.n_layers; e++)
		if (!any || cal->fixed[e])
			most = MAX(most, most_of(&cal->code[e % 2][e / 2], 1));
	return any ? MAX(most, most_of(cal->choices, cal->n_choices)) : most;
}

/*
 * Fewer tokens than centroids are refused: each would be one, and say nothing of
 * other tokens. With few there is a note, for whoever tries things out.
 */
static int check_tokens(const struct calib *cal)
{
	uint32_t kept = cqk_dump_kept(&cal->info, cal->opts.sinks, 1);
	uint32_t k = most_centroids(cal);

	if (kept >= ENOUGH * k)
		return 0;
	if (kept < k)
		return cq_err_set(&cal->c->err, -EINVAL, "%s has %u tokens behind the sinks of "
				  "its sequences for %u centroids: at least %u are needed, %u "
				  "or more are better", cal->acts, kept, k, k, ENOUGH * k);
	fprintf(stderr, "cqctl calibrate: %s has %u tokens behind the sinks of its sequences for "
		"%u centroids, which will fit these tokens alone: %u or more are better\n",
		cal->acts, kept, k, ENOUGH * k);
	return 0;
}

/* From the codings to the image of the model file. 0, or -errno with the text in c->err. */
static int learn(struct calib *cal, void **image, size_t *size)
{
	struct cq_err err;
	int ret = 0;

	cal->start = ctl_calib_now();
	if (cal->budget > 0) {
		ret = choose_codings(cal, &err);
		cal->start = ctl_calib_now();
	}
	if (!ret) {
		ret = ctl_calib_partial(cal);
		if (ret)
			return ret;
		ret = cqk_calibrate(cal->dump, cal->size, &cal->opts, cal->error, image, size,
				    &err);
	}
	if (!ret || cal->unkept)
		return ret;
	return cq_err_set(&cal->c->err, ret, "%s: %s", cal->acts, err.text);
}

/* Everything behind the options. Returns enum ctl_exit. */
static int calibrate(struct calib *cal)
{
	struct ctl *c = cal->c;
	struct cqk_model *m = NULL;
	struct cq_err err;
	void *image = NULL;
	double seconds;
	size_t size = 0;
	int ret;

	ret = ctl_calib_map(cal);
	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	ret = cqk_dump_info(cal->dump, cal->size, &cal->info, &err);
	if (ret)
		return ctl_fail(c, ret, "%s: %s", cal->acts, err.text);
	ret = ctl_calib_codings(cal);
	if (ret != CTL_GO_ON)
		return ret;
	ret = check_tokens(cal);
	if (!ret)
		ret = ctl_calib_check_output(cal);
	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	seconds = ctl_calib_now();
	ret = learn(cal, &image, &size);
	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	seconds = ctl_calib_now() - seconds;
	ret = cqk_model_head(image, size, &m, &c->err);	/* what cqd will do */
	if (!ret)
		ret = ctl_calib_write(cal, image, size);
	ret = ret ? ctl_fail(c, ret, "%s", c->err.text) :
	      ctl_calib_report(cal, m, size, seconds);
	cqk_model_free(m);
	free(image);
	return ret;
}

static int parse(struct calib *cal, int argc, char **argv)
{
	const struct ctl_opt opts[] = {
		{ "k", 0, &cal->text.k, NULL },
		{ "v", 0, &cal->text.v, NULL },
		{ "layers", 0, &cal->text.layers, NULL },
		{ "budget", 0, &cal->text.budget, NULL },
		{ "choices", 0, &cal->text.choices, NULL },
		{ "fisher", 0, &cal->text.fisher, NULL },
		{ "clip", 0, &cal->text.clip, NULL },
		{ "centroids", 0, &cal->text.centroids, NULL },
		{ "sinks", 0, &cal->text.sinks, NULL },
		{ "window", 0, &cal->text.window, NULL },
		{ "iterations", 0, &cal->text.iterations, NULL },
		{ "starts", 0, &cal->text.starts, NULL },
		{ "threads", 0, &cal->text.threads, NULL },
		{ "seed", 0, &cal->text.seed, NULL },
		{ "rope-scaling", 0, &cal->text.scaling, NULL },
		{ "rope-pairs", 0, &cal->text.pairs, NULL },
		{ "resume", 0, NULL, &cal->resume },
		{ "output", 'o', &cal->output, NULL },
		{ NULL, 0, NULL, NULL },
	};
	int ret = ctl_parse(cal->c, argc, argv, opts, &cal->acts, 1, 1);

	return ret == CTL_GO_ON ? ctl_calib_options(cal) : ret;
}

int ctl_cmd_calibrate(struct ctl *c, int argc, char **argv)
{
	struct calib *cal = calloc(1, sizeof(*cal));
	int ret;

	if (!cal)
		return ctl_fail(c, -ENOMEM, "out of memory");
	cal->c = c;
	ret = parse(cal, argc, argv);
	if (ret == CTL_GO_ON)
		ret = calibrate(cal);
	ctl_partial_close(&cal->partial);
	if (cal->dump)
		munmap(cal->dump, cal->size);
	free(cal);
	return ret;
}
