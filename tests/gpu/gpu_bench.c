// SPDX-License-Identifier: MIT
/*
 * make gpu-bench: attention over codes on a GPU against the same over fp16 and fp8, one line
 * of JSON each; Documentation/gpu.md says what is in them. Each shape of a model is measured
 * in a process of its own, in rows by how telling they are (bench_rows.h). A row that would
 * not be done in time is left out, a process that is not done in time is ended, and the rows
 * that are missing are named.
 *
 * Of a call that is timed, the next one reads the next layer of a ring, whose bytes are
 * four times the L2. Calls run from a CUDA graph; codes and what they are compared with take
 * turns.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include "tests/gpu/bench_rig.h"
#include "tests/gpu/bench_rows.h"
#include "tests/gpu/bench_model.h"

#define GIB ((double)(1ull << 30))
#define MODEL_LAYERS 32
#define PREFILL 4096
#define GOOD_SHARE 0.8		/* of the bandwidth, from which a baseline counts */
#define MAX_ERROR 5e-3		/* a baseline that is wrong is none */
#define MAX_EXTERN 512
#define GRACE 10		/* seconds until a process that is not done in time is ended */

static const enum cqk_cuda_variant variants[] = {
	CQK_CUDA_WGMMA, CQK_CUDA_BOOKS, CQK_CUDA_FEW, CQK_CUDA_LUT, CQK_CUDA_SLICES,
	CQK_CUDA_BYTES, CQK_CUDA_BLOCK
};

/* Another program's attention, measured on this GPU in this run: of "fp16" or "fp8". */
static struct outside {
	char name[32], type[8], sharing[16], shape[32];
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
static struct progress *told;	/* to who waits for a shape's process */

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
static void line_begin(const char *bench, const struct shape *s)
{
	time_t t = time(NULL);
	char date[32];
	struct tm tm;

	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &tm));
	printf("{\"bench\":\"%s\",\"device\":\"%s\",\"driver\":\"%s\",\"emulated\":%s,"
	       "\"date\":\"%s\",\"commit\":\"%s\",\"shape\":\"%s\"", bench, told->device,
	       told->driver, told->emulated ? "true" : "false", date, opt.commit, s->name);
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

static struct toy_opts toy_of(const struct shape *s, const struct coding *c, uint32_t keys)
{
	return (struct toy_opts){
		.n_heads = s->heads, .n_kv_heads = s->kv, .d = s->d, .rope_dim = s->d,
		.ck = c->channels, .cv = c->channels, .bk = c->bits, .bv = c->bits,
		.i8 = c->i8, .keys = keys, .theta = 5e5,
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

/* A side of a comparison; not there: not on this device, or in its memory. */
struct side {
	struct model m;
	struct call c;
	struct times t;
	double err;
	bool there;
};

static bool side_new(struct rig *r, struct side *x, const struct shape *s,
		     const struct toy_opts *o, const struct step *step, uint32_t layers,
		     enum way way)
{
	double code = (o->bk ? o->bk : 8) / 8.0;	/* bytes; of values the same */
	double each = o->ck ? 2 * code / o->ck : way_fp8(way) ? 2 : 4;
	double bytes = 64.0 * s->kv * s->d * each * pages_of(step);
	bool halves = !o->ck && !way_fp8(way);
	size_t memory = halves ? r->halves_bytes : r->codes_bytes;
	uint32_t ring = ring_of(r, bytes, memory);

	memset(x, 0, sizeof(*x));
	x->err = NAN;
	if (layers && ring && bytes * layers <= (double)memory)
		ring = layers;
	else if (layers)
		ring = 0;
	if (!ring)
		return false;
	model_new(r, &x->m, o, ring, step->context + 64, way_fp8(way));
	x->there = call_new(r, &x->c, &x->m, step, halves ? r->halves : r->codes, way);
	if (!x->there)
		model_free(r, &x->m);
	return x->there;
}

static void side_free(struct rig *r, struct side *x)
{
	if (!x->there)
		return;
	call_free(r, &x->c);
	model_free(r, &x->m);
	x->there = false;
}

/* Samples of all sides in turn, as many as there is time for. */
static void sample(struct rig *r, struct side *sides)
{
	double end = now() + opt.case_seconds / 2;
	uint32_t least = opt.toy ? 2 : 5, i, w;

	for (w = 0; w < N_WAYS; w++) {
		sides[w].t.n = 0;
		if (sides[w].there)
			graph_us(r, sides[w].c.exec, sides[w].c.calls);	/* warm */
	}
	for (i = 0; i < MAX_SAMPLES && (i < least || (now() < end && !opt.toy)); i++)
		for (w = 0; w < N_WAYS; w++)
			if (sides[w].there)
				sides[w].t.us[sides[w].t.n++] =
					graph_us(r, sides[w].c.exec, sides[w].c.calls);
}

/* The fastest of other programs for that step and type, or NULL. */
static const struct outside *outside_of(const struct shape *s, const struct step *step, bool fp8)
{
	const char *sharing = step->prefix ? "prefix" : "private";
	const struct outside *best = NULL, *o;

	for (o = outside; o < outside + n_outside; o++)
		if (!strcmp(o->shape, s->name) && o->batch == step->batch &&
		    o->context == step->context && !strcmp(o->sharing, sharing) &&
		    !strcmp(o->type, fp8 ? "fp8" : "fp16") && (!best || o->us < best->us))
			best = o;
	return best;
}

/* The names of what is said of a baseline. */
struct keys {
	const char *name, *us, *share, *ring, *err, *versus, *bound, *ratio;
};

static const struct keys of_fp16 = {
	"baseline", "baseline_us", "baseline_hbm_share", "baseline_ring_layers",
	"baseline_rel_err", "versus", "fp16 bytes at the measured bandwidth", "vs_fp16",
}, of_fp8 = {
	"fp8", "fp8_us", "fp8_hbm_share", "fp8_ring_layers", "fp8_rel_err", "fp8_versus",
	"fp8 bytes at the measured bandwidth", "vs_fp8",
};

/*
 * What a time is compared with: the fastest there is of a type, if it reads fast enough to
 * count, else what its bytes take at the bandwidth of this device.
 */
static void put_baseline(struct rig *r, const struct shape *s, const struct step *step,
			 struct side *sides, bool fp8, double us)
{
	const struct keys *key = fp8 ? &of_fp8 : &of_fp16;
	const struct outside *other = outside_of(s, step, fp8);
	double bytes = (double)pages_of(step) * 64 * s->kv * s->d * (fp8 ? 2 : 4);
	double bound = bytes / r->copy_bytes_s * 1e6, took = INFINITY, share;
	const struct side *base = NULL;
	const char *name = "none";
	uint32_t w;

	for (w = WAY_F16; w < N_WAYS; w++)
		if (sides[w].there && way_fp8(w) == fp8 && times_at(&sides[w].t, 0.5) < took) {
			base = &sides[w];
			took = times_at(&sides[w].t, 0.5);
			name = call_name(&base->c);
		}
	if (other && other->us < took) {
		base = NULL;
		took = other->us;
		name = other->name;
	}
	share = bound / took;
	printf(",\"%s\":\"%s\"", key->name, name);
	put(key->us, took);
	put(key->share, share);
	put(key->ring, base ? base->m.m.geom.n_layers : NAN);
	put(key->err, base ? base->err : NAN);
	/* short calls cannot fill the device, and have nothing to be excused for */
	if (isfinite(took) && (share >= GOOD_SHARE || bytes < GIB)) {
		printf(",\"%s\":\"baseline\"", key->versus);
		put(key->ratio, took / us);
	} else {
		printf(",\"%s\":\"%s\"", key->versus, key->bound);
		put(key->ratio, bound / us);
	}
}

/* What was expected, and how much of what a multiprocessor can was used. */
static void put_forecast(const struct rig *r, const struct shape *s, const struct row *row,
			 const struct call *c, double us)
{
	struct forecast f = forecast(r, s, row, c);
	double per_us = r->sms * r->clock_hz * 1e-6;
	bool lookups = c->variant == CQK_CUDA_BLOCK;	/* all that is counted of it */

	put("model_us", f.wall ? f.us : NAN);
	printf(",\"model_wall\":\"%s\"", f.wall ? f.wall : "none");
	put("shared_share", f.wall && !lookups ? f.clocks[WALL_SHARED] / per_us / us : NAN);
	put("issue_share", f.wall && !lookups ? f.clocks[WALL_ISSUE] / per_us / us : NAN);
	put("clock_ghz", r->clock_hz / 1e9);
	put("sms", r->sms);
}

static void decode_line(struct rig *r, const struct shape *s, const struct row *row,
			struct side *sides)
{
	struct side *x = &sides[WAY_CODES];
	double us = times_at(&x->t, 0.5);

	line_begin("decode", s);
	row_put(row);
	printf(",\"variant\":\"%s\",\"rows\":%u,\"ring_layers\":%u", call_name(&x->c),
	       row->step.batch, x->m.m.geom.n_layers);
	put_times(&x->t);
	put("ps_token_head", us * 1e6 / ((double)pages_of(&row->step) * 64 * s->kv));
	put_baseline(r, s, &row->step, sides, false, us);
	put_baseline(r, s, &row->step, sides, true, us);
	put("hbm_share", x->c.bytes / r->copy_bytes_s * 1e6 / us);
	put("copy_gb_s", r->copy_bytes_s / 1e9);
	put_forecast(r, s, row, &x->c, us);
	put("rel_err", x->err);
	line_end();
}

/* A side's graph; before that its error, if somebody can wait for the reference. */
static void side_ready(struct rig *r, struct side *x, const struct step *step)
{
	bool checked = step->context <= 8192 || (step->batch == 1 && step->context <= 32768);

	if (checked)
		x->err = call_error(r, &x->c, x->m.m.geom.n_layers - 1);
	if (x->c.way != WAY_CODES && isfinite(x->err) != checked)
		FAIL("%s has no results", call_name(&x->c));
	if (x->c.way != WAY_CODES && x->err > MAX_ERROR)
		FAIL("%s has an error of %.1e", call_name(&x->c), x->err);
	call_graph(r, &x->c);
}

/* Codes against fp16 and fp8 in one step, by each variant that can. False: no room. */
static bool decode(struct rig *r, const struct shape *s, const struct row *row)
{
	struct toy_opts coded = toy_of(s, row->c, row->keys);
	struct toy_opts plain = toy_of(s, &codings[CODINGS], CQK_KEYS_ROTATED);
	const struct step *step = &row->step;
	struct side sides[N_WAYS], *x = &sides[WAY_CODES];
	uint32_t i, w;

	memset(sides, 0, sizeof(sides));
	if (!side_new(r, x, s, &coded, step, 0, WAY_CODES))
		return false;
	for (w = WAY_F16; w < N_WAYS; w++)
		if ((step->prefix || !way_cascade(w)) &&
		    side_new(r, &sides[w], s, &plain, step, 0, w))
			side_ready(r, &sides[w], step);
	for (i = 0; i < ARRAY_SIZE(variants) && (!i || time_left(opt.case_seconds / 2)); i++) {
		/* a plan fits its variant */
		cqk_cuda_force(r->g.k, variants[i]);
		call_free(r, &x->c);
		call_new(r, &x->c, &x->m, step, r->codes, WAY_CODES);
		if (x->c.variant != variants[i])
			continue;
		side_ready(r, x, step);
		sample(r, sides);
		decode_line(r, s, row, sides);
	}
	cqk_cuda_force(r->g.k, CQK_CUDA_AUTO);
	for (w = 0; w < N_WAYS; w++)
		side_free(r, &sides[w]);
	return true;
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
					 .tokens = rows, .status = x->mem };
	free(dests);
}

static void append_layer(struct rig *r, struct appends *x, const struct model *m, uint32_t layer)
{
	x->a.layer = layer;
	if (cqk_cuda_append(r->g.k, m->t, &x->a, r->g.stream, &r->g.err))
		FAIL("%s", r->g.err.text);
}

static void append(struct rig *r, const struct shape *s, const struct row *row)
{
	struct toy_opts o = toy_of(s, row->c, CQK_KEYS_PRE_ROPE);
	uint32_t layers = opt.toy ? 2 : MODEL_LAYERS, rows = row->step.batch, i;
	struct times t = { .n = opt.toy ? 2 : MAX_SAMPLES };
	bool one = row->what == ROW_PREFILL;
	struct cqcu_exec *exec;
	struct appends x;
	struct model m;

	model_new(r, &m, &o, layers, 128, false);
	appends_new(r, &x, &m, rows, one);
	cqk_cuda_force_encode(r->g.k, row->encode);
	graph_begin(r);
	for (i = 0; i < layers; i++)
		append_layer(r, &x, &m, i);
	exec = graph_end(r);
	cqk_cuda_force_encode(r->g.k, CQK_ENCODE_AUTO);
	graph_us(r, exec, layers);
	for (i = 0; i < t.n; i++)
		t.us[i] = graph_us(r, exec, layers);
	line_begin(row_names[row->what], s);
	row_put(row);
	printf(",\"ring_layers\":%u", layers);
	put_times(&t);
	put("ns_token", times_at(&t, 0.5) * 1e3 / rows);
	line_end();
	CU(r->g.cu->cuGraphExecDestroy(exec));
	CU(r->g.cu->cuMemFree(x.mem));
	model_free(r, &m);
	fill_codes(r);
}

/* Appends and attention of all layers of a model, in one graph; 0: does not fit. */
static double whole_step(struct rig *r, const struct shape *s, const struct coding *c,
			 const struct step *step)
{
	struct toy_opts o = toy_of(s, c, c->channels ? CQK_KEYS_PRE_ROPE : CQK_KEYS_ROTATED);
	uint32_t layers = opt.toy ? 2 : MODEL_LAYERS, i;
	struct times t = { .n = opt.toy ? 2 : 7 };
	struct cqcu_exec *exec;
	struct appends a;
	struct side x;

	if (!side_new(r, &x, s, &o, step, layers, c->channels ? WAY_CODES : WAY_F16))
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
	fill_codes(r);
	return times_at(&t, 0.5);
}

/* Sequences that some GiB hold, and their tokens per second: attention and appends only. */
static void step(struct rig *r, const struct shape *s, const struct row *row)
{
	uint32_t layers = opt.toy ? 2 : MODEL_LAYERS, channels = row->c->channels;
	double token = (double)layers * s->kv * s->d * (channels ? 2.0 / channels : 4.0);
	double held = floor(row->gib * GIB / (token * row->step.context)), us;
	struct step at = row->step;

	at.batch = (uint32_t)fmin(held, at.batch);
	us = whole_step(r, s, row->c, &at);
	line_begin("step", s);
	row_put(row);
	printf(",\"batch\":%u", at.batch);
	put("sequences_held", held);
	put("us", us > 0 ? us : NAN);
	put("tokens_s", us > 0 ? at.batch * 1e6 / us : NAN);
	line_end();
}

static bool measure_row(struct rig *r, const struct shape *s, const struct row *row)
{
	if (row->what == ROW_DECODE)
		return decode(r, s, row);
	if (row->what == ROW_STEP)
		step(r, s, row);
	else
		append(r, s, row);
	return true;
}

/* All that is measured of one shape, while there is time for what it took so far at most. */
static void measure(struct rig *r, const struct shape *s, const struct rows *rows)
{
	double most[ROW_KINDS];
	uint32_t i;

	for (i = 0; i < ROW_KINDS; i++)
		most[i] = opt.case_seconds;
	for (i = 0; i < rows->n; i++) {
		const struct row *row = &rows->at[i];
		double start = now();

		if (!time_left(most[row->what])) {
			told->state[i] = ROW_NO_TIME;
			continue;
		}
		told->state[i] = ROW_BEGUN;
		told->state[i] = measure_row(r, s, row) ? ROW_DONE : ROW_NO_ROOM;
		most[row->what] = fmax(most[row->what], now() - start);
	}
}

/* Lines "NAME TYPE SHARING SHAPE BATCH CONTEXT US" of other programs. */
static void outside_read(const char *path)
{
	FILE *f = fopen(path, "re");
	struct outside *o = outside;

	if (!f)
		FAIL("%s: %s", path, strerror(errno));
	while (n_outside < MAX_EXTERN &&
	       fscanf(f, "%31s %7s %15s %31s %u %u %lf", o->name, o->type, o->sharing, o->shape,
		      &o->batch, &o->context, &o->us) == 7) {
		n_outside++;
		o++;
	}
	fclose(f);
}

/* 0, or the exit status of make gpu-check: 3 is no GPU. */
static int shape_run(const struct shape *s, const struct rows *rows)
{
	const struct cqk_cuda *cu;
	static struct rig r;
	struct cq_err err;
	int version = 0;

	if (cqk_cuda_get(&cu, &err) || cu->cuDriverGetVersion(&version)) {
		fprintf(stderr, "gpu_bench: %s\n", err.text);
		return 3;
	}
	/* what cannot be asked whether there is time is ended */
	alarm((unsigned int)fmax(began + opt.seconds - now(), 0) + GRACE);
	rig_open(&r, opt.device, opt.mib);
	if (r.emulated != opt.emulated) {
		fprintf(stderr, "gpu_bench: only the emulation is here\n");
		return 3;
	}
	snprintf(told->driver, sizeof(told->driver), "CUDA %d.%d", version / 1000,
		 version % 1000 / 10);
	memcpy(told->device, r.name, sizeof(told->device));
	measure(&r, s, rows);
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

/* Name the rows of a shape that were not measured. */
static void put_missing(const struct shape *s, const struct rows *rows)
{
	static const char *const why[] = {
		[ROW_WAITING] = "not reached", [ROW_BEGUN] = "ended", [ROW_NO_TIME] = "time",
		[ROW_NO_ROOM] = "memory",
	};
	uint32_t i;

	for (i = 0; i < rows->n; i++) {
		if (told->state[i] == ROW_DONE)
			continue;
		line_begin("skipped", s);
		printf(",\"what\":\"%s\"", row_names[rows->at[i].what]);
		row_put(&rows->at[i]);
		printf(",\"why\":\"%s\"", why[told->state[i]]);
		line_end();
	}
}

/* One shape in a process of its own: what it breaks there is broken for it alone. */
static int shape_fork(const struct shape *s)
{
	static struct rows rows;
	int status;
	pid_t pid;

	rows_of(&rows, s, s == shapes, opt.toy);
	memset(told->state, 0, sizeof(told->state));
	fflush(NULL);
	pid = fork();
	if (!pid)
		exit(shape_run(s, &rows));
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return 1;
	/* a GPU that is lost after a shape was measured is no reason to forget that */
	if (WIFEXITED(status) && WEXITSTATUS(status) == 3 && !told->device[0])
		return 3;
	put_missing(s, &rows);
	if (WIFEXITED(status))
		return WEXITSTATUS(status) ? 1 : 0;
	fprintf(stderr, "gpu_bench: %s: %s\n", s->name, WTERMSIG(status) == SIGALRM ?
		"was not done in time, and was ended" : strsignal(WTERMSIG(status)));
	/* what was measured until then is as good as any */
	return WTERMSIG(status) == SIGALRM ? 0 : 1;
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
	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (told == MAP_FAILED)
		FAIL("mmap: %s", strerror(errno));
	told->emulated = opt.emulated;
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
