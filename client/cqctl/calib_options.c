// SPDX-License-Identifier: MIT
/* Options of calibrate. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "client/cqctl/calibrate.h"
#include "client/cqctl/rope.h"
#include "kernels/meta.h"

static const char *const fishers[] = {
	[CQK_FISHER_NONE] = "none", [CQK_FISHER_TOKEN] = "token",
	[CQK_FISHER_CHANNEL] = "channel", [CQK_FISHER_BOTH] = "both",
};

/* The coding at the start of a list, which moves on: NULL behind the last. 0 or -errno. */
static int next_code(const struct calib *cal, const char **list, struct cq_code *out,
		     struct cq_err *err)
{
	size_t n = strcspn(*list, ",");
	char name[16];

	snprintf(name, sizeof(name), "%.*s", (int)MIN(n, sizeof(name)), *list);
	*list = (*list)[n] ? *list + n + 1 : NULL;
	return cqk_code_parse(name, cal->info.geom.head_dim, out, err);
}

/* One name for all layers, or one per layer. CTL_GO_ON or exit status. */
static int parse_codes(struct calib *cal, const char *opt, const char *list,
		       struct cq_code *out)
{
	const struct cqk_geom *g = &cal->info.geom;
	struct cq_err err;
	uint32_t l;

	for (l = 0; list && l < g->n_layers; l++)
		if (next_code(cal, &list, &out[l], &err))
			return ctl_usage(cal->c, "--%s: %s", opt, err.text);
	if (!list && l == 1)
		for (; l < g->n_layers; l++)
			out[l] = out[0];
	if (list || l < g->n_layers)
		return ctl_usage(cal->c, "--%s: one coding, or one for each of the %u "
				 "layers of %s", opt, g->n_layers, cal->acts);
	return CTL_GO_ON;
}

static int parse_number(struct calib *cal, const char *opt, const char *text,
			uint64_t min, uint64_t max, uint64_t *out)
{
	if (!text || !ctl_number(text, min, max, out))
		return CTL_GO_ON;
	return ctl_usage(cal->c, "--%s %s: a number from %llu to %llu is wanted", opt,
			 text, (unsigned long long)min, (unsigned long long)max);
}

static int parse_real(struct calib *cal, const char *opt, const char *text, double above,
		      double max, double *out)
{
	double x;

	if (!text)
		return CTL_GO_ON;
	if (ctl_real(text, &x) || !(x > above && x <= max))
		return ctl_usage(cal->c, "--%s %s: a number above %g and up to %g is wanted",
				 opt, text, above, max);
	*out = x;
	return CTL_GO_ON;
}

/* One of @words [@n]; the first is 0. */
static int parse_word(struct calib *cal, const char *opt, const char *text,
		      const char *const *words, uint32_t n, uint32_t *out)
{
	char list[64] = "";
	uint32_t i, at = 0;

	if (!text)
		return CTL_GO_ON;
	for (i = 0; i < n && strcmp(text, words[i]); i++)
		at += (uint32_t)snprintf(list + at, sizeof(list) - at, "%s%s", !i ? "" :
					 i + 1 < n ? ", " : " or ", words[i]);
	if (i == n)
		return ctl_usage(cal->c, "--%s %s: %s", opt, text, list);
	*out = i;
	return CTL_GO_ON;
}

static uint32_t n_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 1;
	return (uint32_t)MAX(CPU_COUNT(&set), 1);
}

/* What goes together. */
static int check_together(struct calib *cal)
{
	const char *missing = !cal->text.k ? "k" : !cal->text.v ? "v" : NULL;

	if (cal->text.budget && (cal->text.k || cal->text.v))
		return ctl_usage(cal->c, "--budget chooses what --k and --v would say: give one "
				 "or the other, and --layers for single layers");
	if (cal->text.choices && !cal->text.budget)
		return ctl_usage(cal->c, "--choices is for --budget");
	if (!cal->text.budget && missing)
		return ctl_usage(cal->c, "--%s is missing", missing);
	if (!cal->output)
		return ctl_usage(cal->c, "--output is missing");
	if (!cal->output[0])
		return ctl_usage(cal->c, "--output: a file name is wanted");
	return CTL_GO_ON;
}

static int parse_numbers(struct calib *cal)
{
	const struct {
		const char *name, *text;
		uint64_t min, max, value;
		uint32_t *out;
	} opt[] = {
		{ "sinks", cal->text.sinks, 0, CQ_MAX_SINKS, 4, &cal->opts.sinks },
		{ "window", cal->text.window, 0, CQ_MAX_WINDOW, 128, &cal->opts.window },
		{ "iterations", cal->text.iterations, 1, 10000, 25, &cal->opts.iterations },
		{ "starts", cal->text.starts, 1, CQK_MAX_STARTS, 1, &cal->opts.starts },
		{ "threads", cal->text.threads, 1, 256, n_cpus(), &cal->opts.threads },
	};
	uint64_t x;
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(opt); i++) {
		x = opt[i].value;
		ret = parse_number(cal, opt[i].name, opt[i].text, opt[i].min, opt[i].max, &x);
		if (ret != CTL_GO_ON)
			return ret;
		*opt[i].out = (uint32_t)x;
	}
	cal->opts.seed = 1;
	return parse_number(cal, "seed", cal->text.seed, 0, UINT64_MAX, &cal->opts.seed);
}

int ctl_calib_options(struct calib *cal)
{
	static const char *const centroids[] = {
		[CQK_CENTROIDS_F16] = "f16", [CQK_CENTROIDS_I8] = "i8",
	};
	struct cqk_calib_opts *o = &cal->opts;
	int ret;

	o->centroids = CQK_CENTROIDS_I8;
	o->clip = 0.99;
	if ((ret = check_together(cal)) >= 0 || (ret = parse_numbers(cal)) >= 0 ||
	    (ret = parse_word(cal, "centroids", cal->text.centroids, centroids, 2,
			      &o->centroids)) >= 0 ||
	    (ret = parse_word(cal, "fisher", cal->text.fisher, fishers, 4, &o->fisher)) >= 0 ||
	    (ret = parse_real(cal, "clip", cal->text.clip, 0, 1, &o->clip)) >= 0 ||
	    (ret = parse_real(cal, "budget", cal->text.budget, 0, 16, &cal->budget)) >= 0)
		return ret;
	if (o->window % CQ_PAGE_TOKENS)
		return ctl_usage(cal->c, "--window %s: a multiple of %d is wanted",
				 cal->text.window, CQ_PAGE_TOKENS);
	return CTL_GO_ON;
}

/* One "3=4c8b/2c8b" or "3-5=4c8b/2c8b" of @n bytes. */
static int parse_layer(struct calib *cal, const char *text, size_t n)
{
	uint32_t layers = cal->info.geom.n_layers;
	struct cq_code code[2];
	char item[64], *k, *v, *last;
	uint64_t from, to, l;
	struct cq_err err;
	int i;

	snprintf(item, sizeof(item), "%.*s", (int)MIN(n, sizeof(item)), text);
	k = strchr(item, '=');
	v = k ? strchr(k, '/') : NULL;
	if (!v)
		return ctl_usage(cal->c, "--layers %s: like 0=2c8b/4c8b is wanted, codings of keys "
				 "and values", item);
	*k++ = '\0';
	*v++ = '\0';
	last = strchr(item, '-');
	if (last)
		*last++ = '\0';
	if (ctl_number(item, 0, layers - 1, &from) ||
	    ctl_number(last ? last : item, from, layers - 1, &to))
		return ctl_usage(cal->c, "--layers: %s%s%s is not one of the layers 0 to %u of %s",
				 item, last ? "-" : "", last ? last : "", layers - 1, cal->acts);
	for (i = 0; i < 2; i++)
		if (cqk_code_parse(i ? v : k, cal->info.geom.head_dim, &code[i], &err))
			return ctl_usage(cal->c, "--layers: %s", err.text);
	for (l = from; l <= to; l++)
		for (i = 0; i < 2; i++) {
			cal->code[i][l] = code[i];
			cal->fixed[2 * l + (uint64_t)i] = true;
		}
	return CTL_GO_ON;
}

static int parse_layers(struct calib *cal)
{
	const char *s = cal->text.layers;
	int ret = CTL_GO_ON;
	size_t n;

	for (; s && ret == CTL_GO_ON; s = s[n] ? s + n + 1 : NULL) {
		n = strcspn(s, ",");
		ret = parse_layer(cal, s, n);
	}
	return ret;
}

static int by_bits(const void *a, const void *b)
{
	double x = cqk_code_bits(*(const struct cq_code *)a);
	double y = cqk_code_bits(*(const struct cq_code *)b);

	return (x > y) - (x < y);
}

/* What a budget chooses from: of the usual codings those that go with the heads. */
static int parse_choices(struct calib *cal)
{
	const char *list = cal->text.choices ? cal->text.choices : "8c8b,4c8b,2c8b";
	struct cq_code code;
	struct cq_err err;
	uint32_t i;

	while (list) {
		if (!next_code(cal, &list, &code, &err)) {
			if (code.type == CQ_CODE_F16)
				return ctl_usage(cal->c, "--choices: fp16 is for --layers");
			if (cal->n_choices == CQK_MAX_CHOICES)
				return ctl_usage(cal->c, "--choices: more than %d",
						 CQK_MAX_CHOICES);
			cal->choices[cal->n_choices++] = code;
		} else if (cal->text.choices) {
			return ctl_usage(cal->c, "--choices: %s", err.text);
		}
	}
	qsort(cal->choices, cal->n_choices, sizeof(code), by_bits);
	for (i = 1; i < cal->n_choices; i++)
		if (cqk_code_bits(cal->choices[i]) <= cqk_code_bits(cal->choices[i - 1]))
			return ctl_usage(cal->c, "--choices: two of the same bits per channel");
	return CTL_GO_ON;
}

/* What the dump says of RoPE, and what was said on the command line instead. */
static int fill_rope(struct calib *cal)
{
	struct cqk_geom *g = &cal->opts.geom;
	struct cq_err err;

	*g = cal->info.geom;
	if (cal->text.pairs && ctl_rope_pairs(cal->text.pairs, &g->rope_pairs))
		return ctl_usage(cal->c, "--rope-pairs %s: half or interleaved", cal->text.pairs);
	if (cal->text.scaling && ctl_rope_scaling(cal->text.scaling, &g->rope_scaling, &err))
		return ctl_usage(cal->c, "--rope-scaling: %s", err.text);
	if (cqk_geom_check(g, &err))
		return ctl_usage(cal->c, "RoPE of %s: %s", cal->acts, err.text);
	return CTL_GO_ON;
}

static void fill_provenance(struct calib *cal)
{
	const struct cqk_calib_opts *o = &cal->opts;
	char what[96];

	if (cal->budget > 0)
		snprintf(what, sizeof(what), "budget %g%s%.48s", cal->budget,
			 cal->text.choices ? " of " : "",
			 cal->text.choices ? cal->text.choices : "");
	else
		snprintf(what, sizeof(what), "k %.32s, v %.32s", cal->text.k, cal->text.v);
	snprintf(cal->provenance, sizeof(cal->provenance), "cqctl " CQ_VERSION
		 " calibrate: %s; %llu tokens in sequences of %u, %s%s%.64s, fisher %s, clip %g, "
		 "iterations %u, starts %u, seed %llu", cal->info.source[0] ?
		 cal->info.source : "unnamed source", (unsigned long long)cal->info.tokens,
		 cal->info.sequence_tokens, what, cal->text.layers ? ", layers " : "",
		 cal->text.layers ? cal->text.layers : "", fishers[o->fisher], o->clip,
		 o->iterations, o->starts, (unsigned long long)o->seed);
	cal->opts.provenance = cal->provenance;
}

int ctl_calib_codings(struct calib *cal)
{
	struct cqk_calib_opts *o = &cal->opts;
	int ret = CTL_GO_ON;

	if (cal->text.k)
		ret = parse_codes(cal, "k", cal->text.k, cal->code[0]);
	if (ret == CTL_GO_ON && cal->text.v)
		ret = parse_codes(cal, "v", cal->text.v, cal->code[1]);
	if (ret == CTL_GO_ON)
		ret = parse_layers(cal);
	if (ret == CTL_GO_ON && cal->text.budget)
		ret = parse_choices(cal);
	if (ret == CTL_GO_ON)
		ret = fill_rope(cal);
	if (ret != CTL_GO_ON)
		return ret;
	o->k = cal->code[0];
	o->v = cal->code[1];
	if (!cal->text.fisher && cal->info.fisher)
		o->fisher = CQK_FISHER_BOTH;
	memcpy(o->fingerprint, cal->info.fingerprint, sizeof(o->fingerprint));
	fill_provenance(cal);
	o->progress = ctl_calib_progress;
	o->release = ctl_calib_release;
	o->arg = cal;
	cal->terminal = isatty(STDERR_FILENO);
	return CTL_GO_ON;
}
