// SPDX-License-Identifier: MIT
/*
 * make gpu-bench: attention over codes on a GPU against the same over fp16, one line of
 * JSON each; Documentation/gpu.md says what is in them. Each shape of a model is measured
 * in a process of its own, and a case that would not be done in time is left out.
 *
 * Of a call that is timed, the next one reads the next layer of a ring, whose bytes are
 * four times the L2. Calls run from a CUDA graph; coded and fp16 ones take turns.
 */
#include <errno.h>
#include <getopt.h>
#include <sys/wait.h>
#include <time.h>
#include "tests/gpu/bench_rig.h"

#define GIB ((double)(1ull << 30))
#define MODEL_LAYERS 32
#define PREFILL 4096
#define GOOD_SHARE 0.8		/* of the bandwidth, from which an fp16 baseline counts */
#define MAX_EXTERN 256

static const struct shape {
	const char *name;
	uint32_t heads, kv, d;
} shapes[] = {
	{ "llama-3.1-8b", 32, 8, 128 },
	{ "llama-2-7b", 32, 32, 128 },
	{ "llama-3.1-70b-tp8", 8, 1, 128 },
	{ "toy", 4, 1, 64 },		/* for the emulation, and nothing else */
};

static const struct coding {
	const char *config;
	uint32_t channels;
} codings[] = { { "4c8b", 4 }, { "8c8b", 8 }, { "2c8b", 2 } };

static const enum cqk_cuda_variant variants[] = { CQK_CUDA_FEW, CQK_CUDA_BLOCK };

/* Another program's fp16 attention, measured on this GPU in this run. */
static struct outside {
	char name[32], shape[32];
	uint32_t batch, context;
	double us;
} outside[MAX_EXTERN];
static uint32_t n_outside;

static struct options {
	int device;
	size_t mib;
	double seconds;		/* for everything */
	double case_seconds;	/* for a case */
	const char *commit;
	const char *only;	/* shape */
	bool emulated, toy;
} opt = { .seconds = 480, .case_seconds = 2.5, .commit = "" };

static double began;
static char driver[32];

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static bool time_left(double for_s)
{
	return now() - began + for_s < opt.seconds;
}

/* What all lines begin with. */
static void line_begin(const struct rig *r, const char *bench, const struct shape *s)
{
	time_t t = time(NULL);
	char date[32];
	struct tm tm;

	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &tm));
	printf("{\"bench\":\"%s\",\"device\":\"%s\",\"driver\":\"%s\",\"emulated\":%s,"
	       "\"date\":\"%s\",\"commit\":\"%s\",\"shape\":\"%s\"", bench, r->name, driver,
	       r->emulated ? "true" : "false", date, opt.commit, s->name);
}

static void put(const char *key, double x)
{
	if (isfinite(x))
		printf(",\"%s\":%.6g", key, x);
	else
		printf(",\"%s\":null", key);
}

static void put_times(struct times *t)
{
	put("us", times_at(t, 0.5));
	put("p10_us", times_at(t, 0.1));
	put("p90_us", times_at(t, 0.9));
}

static void line_end(void)
{
	puts("}");
	fflush(stdout);
}

static struct toy_opts toy_of(const struct shape *s, uint32_t channels, uint32_t keys)
{
	return (struct toy_opts){
		.n_heads = s->heads, .n_kv_heads = s->kv, .d = s->d, .rope_dim = s->d,
		.ck = channels, .cv = channels, .keys = keys, .theta = 5e5,
	};
}

/* Layers of a ring of @bytes each, at most what the memory holds; 0: not even one. */
static uint32_t ring_of(const struct rig *r, double bytes, size_t memory)
{
	double want = ceil(4.0 * r->l2 / bytes), most = floor((double)memory / bytes);

	if (opt.toy)
		want = 2;
	return (uint32_t)fmin(fmin(want, most), MAX_RING);
}

/* A side of a comparison. */
struct side {
	struct model m;
	struct call c;
	struct times t;
};

static bool side_new(struct rig *r, struct side *x, const struct shape *s,
		     const struct toy_opts *o, const struct step *step, uint32_t layers)
{
	size_t halves = o->ck ? 0 : 1;
	double page = 64.0 * s->kv * s->d * (o->ck ? 2.0 / o->ck : 4.0);
	size_t memory = halves ? r->halves_bytes : r->codes_bytes;
	uint32_t ring = ring_of(r, page * pages_of(step), memory);

	memset(x, 0, sizeof(*x));
	if (layers && ring && page * pages_of(step) * layers <= (double)memory)
		ring = layers;
	else if (layers)
		ring = 0;
	if (!ring)
		return false;
	model_new(r, &x->m, o, ring, step->context + 64);
	call_new(r, &x->c, &x->m, step, halves ? r->halves : r->codes);
	return true;
}

static void side_free(struct rig *r, struct side *x)
{
	if (!x->c.mem)
		return;
	call_free(r, &x->c);
	model_free(r, &x->m);
}

/* Samples of both in turn, as many as there is time for. */
static void sample(struct rig *r, struct side *x, struct side *base)
{
	double end = now() + opt.case_seconds / 2;
	uint32_t least = opt.toy ? 2 : 5, i;

	graph_us(r, x->c.exec, x->c.calls);	/* warm */
	if (base)
		graph_us(r, base->c.exec, base->c.calls);
	for (i = 0; i < MAX_SAMPLES && (i < least || (now() < end && !opt.toy)); i++) {
		x->t.us[x->t.n++] = graph_us(r, x->c.exec, x->c.calls);
		if (base)
			base->t.us[base->t.n++] = graph_us(r, base->c.exec, base->c.calls);
	}
}

/* The fastest of other programs for that step, or NULL. */
static const struct outside *outside_of(const struct shape *s, const struct step *step)
{
	const struct outside *best = NULL;
	uint32_t i;

	for (i = 0; i < n_outside; i++)
		if (!strcmp(outside[i].shape, s->name) && outside[i].batch == step->batch &&
		    outside[i].context == step->context && !step->prefix &&
		    (!best || outside[i].us < best->us))
			best = &outside[i];
	return best;
}

/*
 * What a time is compared with: the fastest fp16 there is, if it reads fast enough to
 * count, else what its bytes take at the bandwidth of this device.
 */
static void put_baseline(struct rig *r, const struct shape *s, const struct step *step,
			 struct side *base, double us)
{
	const struct outside *other = outside_of(s, step);
	double bytes = (double)pages_of(step) * 64 * s->kv * s->d * 4;
	double bound = bytes / r->copy_bytes_s * 1e6, took = INFINITY, share;
	const char *name = "none";

	if (base && base->t.n) {
		name = cqk_cuda_variant_name(base->c.variant);
		took = times_at(&base->t, 0.5);
	}
	if (other && other->us < took) {
		name = other->name;
		took = other->us;
	}
	share = bound / took;
	printf(",\"baseline\":\"%s\"", name);
	put("baseline_us", took);
	put("baseline_hbm_share", share);
	/* short calls cannot fill the device, and have nothing to be excused for */
	if (isfinite(took) && (share >= GOOD_SHARE || bytes < GIB)) {
		printf(",\"versus\":\"baseline\"");
		put("vs_fp16", took / us);
	} else {
		printf(",\"versus\":\"fp16 bytes at the measured bandwidth\"");
		put("vs_fp16", bound / us);
	}
}

static void decode_line(struct rig *r, const struct shape *s, const struct coding *c,
			const struct step *step, struct side *x, struct side *base, double err)
{
	double us = times_at(&x->t, 0.5);

	line_begin(r, "decode", s);
	printf(",\"config\":\"%s\",\"keys\":\"%s\",\"sharing\":\"%s\",\"variant\":\"%s\"",
	       c->config, x->m.m.geom.keys == CQK_KEYS_PRE_ROPE ? "pre-rope" : "rotated",
	       step->prefix ? "prefix" : "private",
	       cqk_cuda_variant_name(x->c.variant));
	printf(",\"batch\":%u,\"rows\":%u,\"context\":%u,\"ring_layers\":%u", step->batch,
	       step->batch, step->context, x->m.m.geom.n_layers);
	put_times(&x->t);
	put("ps_token_head", us * 1e6 / ((double)pages_of(step) * 64 * s->kv));
	put_baseline(r, s, step, base, us);
	put("hbm_share", x->c.bytes / r->copy_bytes_s * 1e6 / us);
	put("copy_gb_s", r->copy_bytes_s / 1e9);
	put("rel_err", err);
	line_end();
}

/* Codes against fp16 in one step, by each variant that can. */
static void decode(struct rig *r, const struct shape *s, const struct coding *c, uint32_t keys,
		   const struct step *step)
{
	struct toy_opts coded = toy_of(s, c->channels, keys), f16 = toy_of(s, 0, CQK_KEYS_ROTATED);
	bool checked = step->context <= 8192 || (step->batch == 1 && step->context <= 32768);
	struct side x, base;
	bool have;
	uint32_t i;

	if (!side_new(r, &x, s, &coded, step, 0))
		return;
	have = side_new(r, &base, s, &f16, step, 0);
	if (have)
		call_graph(r, &base.c);
	for (i = 0; i < ARRAY_SIZE(variants) && time_left(opt.case_seconds); i++) {
		double err = NAN;

		/* a plan fits its variant */
		cqk_cuda_force(r->g.k, variants[i]);
		call_free(r, &x.c);
		call_new(r, &x.c, &x.m, step, r->codes);
		if (x.c.variant != variants[i])
			continue;
		if (checked)
			err = call_error(r, &x.c, x.m.m.geom.n_layers - 1);
		call_graph(r, &x.c);
		x.t.n = base.t.n = 0;
		sample(r, &x, have ? &base : NULL);
		decode_line(r, s, c, step, &x, have ? &base : NULL, err);
	}
	cqk_cuda_force(r->g.k, CQK_CUDA_AUTO);
	side_free(r, &base);
	side_free(r, &x);
}

/* Appends of @rows tokens: one to each of so many sequences, or all to one. */
struct appends {
	struct cqk_cuda_append a;
	cqcu_ptr mem;
};

static void appends_new(struct rig *r, struct appends *x, const struct model *m, uint32_t rows,
			bool one)
{
	const struct cqk_geom *g = &m->m.geom;
	uint32_t n = one ? rows / 64 : rows, i;
	size_t half_block = (size_t)g->n_layers * g->n_kv_heads * 2 * 64 * g->head_dim * 2;
	struct cqkd_dest *dests = toy_alloc(n * sizeof(*dests));
	struct cq_view view = { .dtype = CQ_F16, .stride_head = g->head_dim,
				.stride_token = (int64_t)g->n_kv_heads * g->head_dim,
				.data = (void *)(uintptr_t)r->halves };
	cqcu_ptr at;

	for (i = 0; i < n; i++)
		dests[i] = (struct cqkd_dest){
			.f16 = (i + 1) * half_block <= r->halves_bytes / 2 ?
			       r->halves + r->halves_bytes / 2 / 4096 * 4096 + i * half_block : 0,
			.codes = r->codes + i % (r->codes_bytes / m->m.payload) * m->m.payload,
			.tokens = 64, .first = one ? 0 : i % 64, .count = one ? 64 : 1,
			.row = one ? i * 64 : i, .pos = i * 64,
		};
	CU(r->g.cu->cuMemAlloc(&x->mem, n * sizeof(*dests) + 512));
	at = x->mem + 512;
	CU(r->g.cu->cuMemsetD8Async(x->mem, 0, 512, r->g.stream));
	CU(r->g.cu->cuStreamSynchronize(r->g.stream));
	copy_in(r, at, dests, n * sizeof(*dests));
	copy_in(r, x->mem + 256, &n, sizeof(n));
	x->a = (struct cqk_cuda_append){ .k = view, .v = view, .dests = at,
					 .n_dests = x->mem + 256, .max_dests = n,
					 .status = x->mem };
	free(dests);
}

static void append_layer(struct rig *r, struct appends *x, const struct model *m, uint32_t layer)
{
	x->a.layer = layer;
	if (cqk_cuda_append(r->g.k, m->t, &x->a, r->g.stream, &r->g.err))
		FAIL("%s", r->g.err.text);
}

static void append(struct rig *r, const struct shape *s, const struct coding *c, uint32_t rows,
		   bool one)
{
	struct toy_opts o = toy_of(s, c->channels, CQK_KEYS_PRE_ROPE);
	uint32_t layers = opt.toy ? 2 : MODEL_LAYERS, i;
	struct times t = { .n = opt.toy ? 2 : MAX_SAMPLES };
	struct cqcu_exec *exec;
	struct appends x;
	struct model m;

	model_new(r, &m, &o, layers, 128);
	appends_new(r, &x, &m, rows, one);
	graph_begin(r);
	for (i = 0; i < layers; i++)
		append_layer(r, &x, &m, i);
	exec = graph_end(r);
	graph_us(r, exec, layers);
	for (i = 0; i < t.n; i++)
		t.us[i] = graph_us(r, exec, layers);
	line_begin(r, one ? "prefill" : "append", s);
	printf(",\"config\":\"%s\",\"rows\":%u,\"ring_layers\":%u", c->config, rows, layers);
	put_times(&t);
	put("ns_token", times_at(&t, 0.5) * 1e3 / rows);
	line_end();
	CU(r->g.cu->cuGraphExecDestroy(exec));
	CU(r->g.cu->cuMemFree(x.mem));
	model_free(r, &m);
}

/* Appends and attention of all layers of a model, in one graph; 0: does not fit. */
static double whole_step(struct rig *r, const struct shape *s, uint32_t channels,
			 const struct step *step)
{
	struct toy_opts o = toy_of(s, channels, channels ? CQK_KEYS_PRE_ROPE : CQK_KEYS_ROTATED);
	uint32_t layers = opt.toy ? 2 : MODEL_LAYERS, i;
	struct times t = { .n = opt.toy ? 2 : 7 };
	struct cqcu_exec *exec;
	struct appends a;
	struct side x;

	if (!side_new(r, &x, s, &o, step, layers))
		return 0;
	appends_new(r, &a, &x.m, step->batch, false);
	graph_begin(r);
	for (i = 0; i < layers; i++) {
		append_layer(r, &a, &x.m, i);
		call_layer(r, &x.c, i);
	}
	exec = graph_end(r);
	graph_us(r, exec, 1);
	for (i = 0; i < t.n; i++)
		t.us[i] = graph_us(r, exec, 1);
	CU(r->g.cu->cuGraphExecDestroy(exec));
	CU(r->g.cu->cuMemFree(a.mem));
	side_free(r, &x);
	return times_at(&t, 0.5);
}

/* Sequences that @gib GiB hold, and their tokens per second: attention and appends only. */
static void steps(struct rig *r, const struct shape *s, const char *config, uint32_t channels)
{
	static const uint32_t gib[] = { 8, 16, 40 };
	uint32_t context = opt.toy ? 256 : 8192, layers = opt.toy ? 2 : MODEL_LAYERS, i;
	double token = (double)layers * s->kv * s->d * (channels ? 2.0 / channels : 4.0);

	for (i = 0; i < ARRAY_SIZE(gib) && time_left(opt.case_seconds); i++) {
		double held = floor(gib[i] * GIB / (token * context)), us;
		struct step step = { .batch = (uint32_t)fmin(held, opt.toy ? 2 : 256),
				     .context = context };

		us = whole_step(r, s, channels, &step);
		line_begin(r, "step", s);
		printf(",\"config\":\"%s\",\"gib\":%u,\"context\":%u,\"batch\":%u", config, gib[i],
		       context, step.batch);
		put("sequences_held", held);
		put("us", us > 0 ? us : NAN);
		put("tokens_s", us > 0 ? step.batch * 1e6 / us : NAN);
		line_end();
	}
}

/* All that is measured of one shape, the most telling first. */
static void measure(struct rig *r, const struct shape *s)
{
	static const uint32_t batches[] = { 8, 64, 1, 256 }, contexts[] = { 32768, 8192, 131072 };
	static const uint32_t toy_batches[] = { 2 }, toy_contexts[] = { 256 };
	const uint32_t *batch = opt.toy ? toy_batches : batches;
	const uint32_t *context = opt.toy ? toy_contexts : contexts;
	uint32_t n_batch = opt.toy ? 1 : 4, n_context = opt.toy ? 1 : 3, b, n, c, k;

	for (c = 0; c < ARRAY_SIZE(codings) && time_left(opt.case_seconds); c++) {
		append(r, s, &codings[c], opt.toy ? 2 : 64, false);
		append(r, s, &codings[c], opt.toy ? 128 : PREFILL, true);
	}
	for (b = 0; b < n_batch; b++)
		for (n = 0; n < n_context; n++)
			for (c = 0; c < ARRAY_SIZE(codings); c++)
				for (k = 0; k < 4; k++) {
					struct step step = { batch[b], context[n], k / 2 };

					if (step.prefix && step.batch < 2)
						continue;
					if (time_left(opt.case_seconds))
						decode(r, s, &codings[c], k % 2 ? CQK_KEYS_ROTATED :
						       CQK_KEYS_PRE_ROPE, &step);
				}
	if (s != shapes && !opt.toy)
		return;
	steps(r, s, "fp16", 0);
	for (c = 0; c < ARRAY_SIZE(codings); c++)
		steps(r, s, codings[c].config, codings[c].channels);
}

/* Lines "NAME SHAPE BATCH CONTEXT US" of other programs. */
static void outside_read(const char *path)
{
	FILE *f = fopen(path, "re");
	struct outside *o = outside;

	if (!f)
		FAIL("%s: %s", path, strerror(errno));
	while (n_outside < MAX_EXTERN &&
	       fscanf(f, "%31s %31s %u %u %lf", o->name, o->shape, &o->batch, &o->context,
		      &o->us) == 5) {
		n_outside++;
		o++;
	}
	fclose(f);
}

/* 0, or the exit status of make gpu-check: 3 is no GPU. */
static int shape_run(const struct shape *s)
{
	const struct cqk_cuda *cu;
	static struct rig r;
	struct cq_err err;
	int version = 0;

	if (cqk_cuda_get(&cu, &err) || cu->cuDriverGetVersion(&version)) {
		fprintf(stderr, "gpu_bench: %s\n", err.text);
		return 3;
	}
	snprintf(driver, sizeof(driver), "CUDA %d.%d", version / 1000, version % 1000 / 10);
	rig_open(&r, opt.device, opt.mib);
	if (r.emulated != opt.emulated) {
		fprintf(stderr, "gpu_bench: only the emulation is here\n");
		return 3;
	}
	measure(&r, s);
	rig_close(&r);
	return 0;
}

static bool options_read(int argc, char **argv)
{
	static const struct option options[] = {
		{ "emulated", no_argument, NULL, 'e' },
		{ "size", required_argument, NULL, 'm' },
		{ "seconds", required_argument, NULL, 's' },
		{ "commit", required_argument, NULL, 'c' },
		{ "only", required_argument, NULL, 'o' },
		{ "baselines", required_argument, NULL, 'b' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'e')
			opt.emulated = opt.toy = true;
		else if (c == 'm')
			opt.mib = strtoul(optarg, NULL, 10);
		else if (c == 's')
			opt.seconds = strtod(optarg, NULL);
		else if (c == 'c')
			opt.commit = optarg;
		else if (c == 'o')
			opt.only = optarg;
		else if (c == 'b')
			outside_read(optarg);
		else
			return false;
	}
	return optind == argc && !opt.commit[strspn(opt.commit, "0123456789abcdef+")] &&
	       opt.seconds > 0;
}

/* One shape in a process of its own: what it breaks there is broken for it alone. */
static int shape_fork(const struct shape *s)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (!pid)
		exit(shape_run(s));
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return 1;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	fprintf(stderr, "gpu_bench: %s: killed by signal %d\n", s->name, WTERMSIG(status));
	return 1;
}

static bool wanted(const struct shape *s)
{
	if (opt.only)
		return !strcmp(opt.only, s->name);
	return opt.toy == !strcmp(s->name, "toy");
}

int main(int argc, char **argv)
{
	uint32_t left = 0, i;
	double all;
	int rc = 0, ret;

	if (!options_read(argc, argv)) {
		fprintf(stderr, "usage: %s [--emulated] [--size MIB] [--seconds S] [--commit ID] "
				"[--only SHAPE] [--baselines FILE]\n",
			program_invocation_short_name);
		return 2;
	}
	began = now();
	all = opt.seconds;
	for (i = 0; i < ARRAY_SIZE(shapes); i++)
		left += wanted(&shapes[i]);
	for (i = 0; i < ARRAY_SIZE(shapes); i++) {
		double past = now() - began;

		if (!wanted(&shapes[i]))
			continue;
		/* half of what is left, and all of it for the last */
		opt.seconds = past + (all - past) / (left > 1 ? 2 : 1);
		left--;
		ret = shape_fork(&shapes[i]);
		if (ret == 3)
			return ret;
		if (ret)
			rc = 1;
	}
	return rc;
}
