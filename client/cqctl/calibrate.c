// SPDX-License-Identifier: MIT
/*
 * calibrate: activation dump in, model file out. The only command that works
 * without cqd.
 *
 * The dump is mapped. Its pages may be changed by others meanwhile; then the
 * codebooks are bad, and a dump that is cut short raises SIGBUS: nothing is
 * written in either case but a file that parses, or none.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"
#include "client/cqctl/rope.h"
#include "kernels/calibrate.h"
#include "kernels/meta.h"

/* Lines of progress when standard error is no terminal. */
#define STEPS 4

/*
 * One calibration: options as given, then the mapped dump, then what they mean
 * (@code: keys and values), the errors found, and the state of the progress.
 */
struct calib {
	struct ctl *c;
	const char *acts, *output;
	const char *k, *v, *centroids, *sinks, *window, *iterations, *threads, *seed;
	const char *scaling, *pairs;
	bool fisher;
	void *dump;
	size_t size;
	struct cqk_dump_info info;
	struct cq_code code[2][CQ_MAX_LAYERS];
	struct cqk_calib_opts opts;
	struct cqk_calib_error error[CQ_MAX_LAYERS];
	char provenance[512];
	double start, shown;
	uint32_t step;
	bool terminal;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int map_dump(struct calib *cal)
{
	int fd = open(cal->acts, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), ret;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0) {
		ret = cq_err_set(&cal->c->err, -errno, "cannot open %s: %s", cal->acts,
				 strerror(errno));
		goto out;
	}
	ret = cq_err_set(&cal->c->err, -EINVAL, "%s is not a regular file, or empty",
			 cal->acts);
	if (!S_ISREG(st.st_mode) || st.st_size <= 0)
		goto out;
	cal->size = (size_t)st.st_size;
	cal->dump = mmap(NULL, cal->size, PROT_READ, MAP_PRIVATE, fd, 0);
	ret = 0;
	if (cal->dump == MAP_FAILED) {
		cal->dump = NULL;
		ret = cq_err_set(&cal->c->err, -errno, "cannot map %s: %s", cal->acts,
				 strerror(errno));
	}
out:
	if (fd >= 0)
		close(fd);
	return ret;
}

/* One name for all layers, or one per layer. CTL_GO_ON or exit status. */
static int parse_codes(struct calib *cal, const char *opt, const char *text,
		       struct cq_code *out)
{
	const struct cqk_geom *g = &cal->info.geom;
	struct cq_err err;
	char name[16];
	uint32_t l;
	size_t n;

	for (l = 0; l < g->n_layers; l++) {
		n = strcspn(text, ",");
		snprintf(name, sizeof(name), "%.*s", (int)MIN(n, sizeof(name)), text);
		if (cqk_code_parse(name, g->head_dim, &out[l], &err))
			return ctl_usage(cal->c, "--%s: %s", opt, err.text);
		if (!text[n] && !l) {
			for (l = 1; l < g->n_layers; l++)
				out[l] = out[0];
			return CTL_GO_ON;
		}
		if (!text[n] != (l + 1 == g->n_layers))
			break;
		text += n + 1;
	}
	if (l < g->n_layers)
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

static uint32_t n_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 1;
	return (uint32_t)MAX(CPU_COUNT(&set), 1);
}

/* What can be said without looking at the dump. */
static int parse_options(struct calib *cal)
{
	struct cqk_calib_opts *o = &cal->opts;
	uint64_t sinks = 4, window = 128, iterations = 25, threads = n_cpus(), seed = 1;
	int ret;

	if (!cal->k || !cal->v || !cal->output)
		return ctl_usage(cal->c, "--%s is missing", !cal->k ? "k" : !cal->v ?
				 "v" : "output");
	if (!cal->output[0])
		return ctl_usage(cal->c, "--output: a file name is wanted");
	if ((ret = parse_number(cal, "sinks", cal->sinks, 0, CQ_MAX_SINKS, &sinks)) >= 0 ||
	    (ret = parse_number(cal, "window", cal->window, 0, CQ_MAX_WINDOW,
				&window)) >= 0 ||
	    (ret = parse_number(cal, "iterations", cal->iterations, 1, 10000,
				&iterations)) >= 0 ||
	    (ret = parse_number(cal, "threads", cal->threads, 1, 256, &threads)) >= 0 ||
	    (ret = parse_number(cal, "seed", cal->seed, 0, UINT64_MAX, &seed)) >= 0)
		return ret;
	if (window % CQ_PAGE_TOKENS)
		return ctl_usage(cal->c, "--window %s: a multiple of %d is wanted",
				 cal->window, CQ_PAGE_TOKENS);
	if (!cal->centroids || !strcmp(cal->centroids, "i8"))
		o->centroids = CQK_CENTROIDS_I8;
	else if (!strcmp(cal->centroids, "f16"))
		o->centroids = CQK_CENTROIDS_F16;
	else
		return ctl_usage(cal->c, "--centroids %s: i8 or f16", cal->centroids);
	o->sinks = (uint32_t)sinks;
	o->window = (uint32_t)window;
	o->iterations = (uint32_t)iterations;
	o->threads = (uint32_t)threads;
	o->seed = seed;
	o->fisher = cal->fisher;
	return CTL_GO_ON;
}

static int progress(void *arg, uint32_t done, uint32_t total)
{
	struct calib *cal = arg;
	double t = now(), left = (t - cal->start) / done * (total - done);

	if (cal->terminal) {
		if (t - cal->shown < 0.1 && done < total)
			return 0;
		cal->shown = t;
		fprintf(stderr, "\r%u of %u codebooks, %.0f s left \033[K", done, total,
			left);
		if (done == total)
			fputs("\r\033[K", stderr);
	} else if ((uint64_t)done * STEPS / total > cal->step) {
		cal->step = (uint32_t)((uint64_t)done * STEPS / total);
		fprintf(stderr, "%u of %u codebooks after %.1f s, %.0f s left\n", done,
			total, t - cal->start, left);
	}
	return 0;
}

/* What the dump says of RoPE, and what was said on the command line instead. */
static int fill_rope(struct calib *cal)
{
	struct cqk_geom *g = &cal->opts.geom;
	struct cq_err err;

	*g = cal->info.geom;
	if (cal->pairs && ctl_rope_pairs(cal->pairs, &g->rope_pairs))
		return ctl_usage(cal->c, "--rope-pairs %s: half or interleaved", cal->pairs);
	if (cal->scaling && ctl_rope_scaling(cal->scaling, &g->rope_scaling, &err))
		return ctl_usage(cal->c, "--rope-scaling: %s", err.text);
	if (cqk_geom_check(g, &err))
		return ctl_usage(cal->c, "RoPE of %s: %s", cal->acts, err.text);
	return CTL_GO_ON;
}

static int fill_opts(struct calib *cal)
{
	struct cqk_calib_opts *o = &cal->opts;
	int ret;

	ret = parse_codes(cal, "k", cal->k, cal->code[0]);
	if (ret == CTL_GO_ON)
		ret = parse_codes(cal, "v", cal->v, cal->code[1]);
	if (ret == CTL_GO_ON)
		ret = fill_rope(cal);
	if (ret != CTL_GO_ON)
		return ret;
	o->k = cal->code[0];
	o->v = cal->code[1];
	memcpy(o->fingerprint, cal->info.fingerprint, sizeof(o->fingerprint));
	snprintf(cal->provenance, sizeof(cal->provenance), "cqctl " CQ_VERSION
		 " calibrate: %s; %llu tokens in sequences of %u, k %.32s, v %.32s%s, "
		 "iterations %u, seed %llu", cal->info.source[0] ? cal->info.source :
		 "unnamed source", (unsigned long long)cal->info.tokens,
		 cal->info.sequence_tokens, cal->k, cal->v, o->fisher ? ", fisher" : "",
		 o->iterations, (unsigned long long)o->seed);
	o->provenance = cal->provenance;
	o->progress = progress;
	o->arg = cal;
	cal->terminal = isatty(STDERR_FILENO);
	return CTL_GO_ON;
}

static int write_all(int fd, const uint8_t *buf, size_t n)
{
	ssize_t done;

	while (n) {
		done = write(fd, buf, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		buf += done;
		n -= (size_t)done;
	}
	return 0;
}

/*
 * Known before the work that takes long: a file can be made beside the output,
 * and what has its name is a file, not a folder or /dev/null.
 */
static int check_output(struct calib *cal)
{
	const char *slash = strrchr(cal->output, '/');
	struct stat st;
	char *dir;
	int ret;

	if (!stat(cal->output, &st) && !S_ISREG(st.st_mode))
		return cq_err_set(&cal->c->err, -EINVAL, "%s is there and not a regular "
				  "file: choose another output", cal->output);
	if (asprintf(&dir, "%.*s.", (int)(slash ? slash + 1 - cal->output : 0),
		     cal->output) < 0)
		return cq_err_set(&cal->c->err, -ENOMEM, "out of memory");
	ret = faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) < 0 ? -errno : 0;
	free(dir);
	if (!ret)
		return 0;
	return cq_err_set(&cal->c->err, ret, "cannot write %s: %s", cal->output,
			  strerror(-ret));
}

/* Under a name of its own first: the output is old, or new and whole. */
static int write_beside(struct calib *cal, const void *image, size_t size)
{
	mode_t mask = umask(0);
	char *tmp;
	int fd, ret;

	umask(mask);
	if (asprintf(&tmp, "%s.XXXXXX", cal->output) < 0)
		return cq_err_set(&cal->c->err, -ENOMEM, "out of memory");
	fd = mkostemp(tmp, O_CLOEXEC);
	ret = fd < 0 ? -errno : write_all(fd, image, size);
	if (!ret && (fchmod(fd, 0666 & ~mask) < 0 || fsync(fd) < 0))
		ret = -errno;
	if (fd >= 0 && close(fd) < 0 && !ret)
		ret = -errno;
	if (!ret && rename(tmp, cal->output) < 0)
		ret = -errno;
	if (ret && fd >= 0)
		unlink(tmp);
	free(tmp);
	if (!ret)
		return 0;
	return cq_err_set(&cal->c->err, ret, "cannot write %s: %s", cal->output,
			  strerror(-ret));
}

/* A signal that ends us waits until no temporary file is left. */
static int write_model(struct calib *cal, const void *image, size_t size)
{
	static const int ends[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };
	sigset_t set, old;
	size_t i;
	int ret;

	sigemptyset(&set);
	for (i = 0; i < ARRAY_SIZE(ends); i++)
		sigaddset(&set, ends[i]);
	sigprocmask(SIG_BLOCK, &set, &old);
	ret = write_beside(cal, image, size);
	sigprocmask(SIG_SETMASK, &old, NULL);
	return ret;
}

static double bits(const struct calib *cal, int v, uint32_t l)
{
	struct cq_code code = cal->code[v][l];

	return code.type == CQ_CODE_F16 ? 16 : (double)code.bits / code.channels;
}

static int report_json(const struct calib *cal, const struct cqk_model *m, size_t size,
		       double seconds)
{
	json_t *layers = json_array();
	char k[16], v[16], hash[65], rope[256];
	uint32_t l;

	for (l = 0; l < cal->info.geom.n_layers; l++)
		json_array_append_new(layers, json_pack("{s:s, s:f, s:s, s:f}",
			"k", cqk_code_name(cal->code[0][l], k), "k_error",
			cal->error[l].k, "v", cqk_code_name(cal->code[1][l], v),
			"v_error", cal->error[l].v));
	return ctl_print_json(json_pack("{s:o, s:s, s:I, s:I, s:I, s:s, s:s, s:f, s:o}",
		"model", ctl_json_text(cal->output), "hash", ctl_hex(m->hash, 32, hash),
		"bytes", (json_int_t)size, "slot_bytes", (json_int_t)m->slot_bytes,
		"tokens", (json_int_t)cal->info.tokens, "centroids",
		cqk_centroids_name(cal->opts.centroids), "rope",
		cqk_rope_text(&m->geom, rope, sizeof(rope)), "seconds", seconds,
		"layers", layers));
}

static int report(const struct calib *cal, const struct cqk_model *m, size_t size,
		  double seconds)
{
	char k[16], v[16], hash[65], buf[24], rope[256];
	double sum = 0;
	uint32_t l;

	if (cal->c->json)
		return report_json(cal, m, size, seconds);
	puts("layer  keys    error   values  error");
	for (l = 0; l < cal->info.geom.n_layers; l++) {
		printf("%5u  %-6s %6.4f   %-6s %6.4f\n", l,
		       cqk_code_name(cal->code[0][l], k), cal->error[l].k,
		       cqk_code_name(cal->code[1][l], v), cal->error[l].v);
		sum += bits(cal, 0, l) + bits(cal, 1, l);
	}
	printf("RoPE: %s\n", cqk_rope_text(&m->geom, rope, sizeof(rope)));
	printf("%s: %s, %.2f bits per value, %llu tokens, %.1f s, hash %.16s\n",
	       cal->output, ctl_bytes(size, buf), sum / (2 * cal->info.geom.n_layers),
	       (unsigned long long)cal->info.tokens, seconds,
	       ctl_hex(m->hash, 32, hash));
	return CTL_OK;
}

/* Everything behind the options. Returns enum ctl_exit. */
static int calibrate(struct calib *cal)
{
	struct ctl *c = cal->c;
	struct cqk_model *m = NULL;
	struct cq_err err;
	void *image = NULL;
	size_t size = 0;
	double seconds;
	int ret;

	ret = map_dump(cal);
	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	ret = cqk_dump_info(cal->dump, cal->size, &cal->info, &err);
	if (ret)
		return ctl_fail(c, ret, "%s: %s", cal->acts, err.text);
	ret = fill_opts(cal);
	if (ret != CTL_GO_ON)
		return ret;
	ret = check_output(cal);
	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	cal->start = now();
	ret = cqk_calibrate(cal->dump, cal->size, &cal->opts, cal->error, &image, &size,
			    &err);
	if (ret)
		return ctl_fail(c, ret, "%s: %s", cal->acts, err.text);
	seconds = now() - cal->start;
	ret = cqk_model_head(image, size, &m, &c->err);	/* what cqd will do */
	if (!ret)
		ret = write_model(cal, image, size);
	ret = ret ? ctl_fail(c, ret, "%s", c->err.text) : report(cal, m, size, seconds);
	cqk_model_free(m);
	free(image);
	return ret;
}

int ctl_cmd_calibrate(struct ctl *c, int argc, char **argv)
{
	struct calib *cal = calloc(1, sizeof(*cal));
	const struct ctl_opt opts[] = {
		{ "k", 0, cal ? &cal->k : NULL, NULL },
		{ "v", 0, cal ? &cal->v : NULL, NULL },
		{ "fisher", 0, NULL, cal ? &cal->fisher : NULL },
		{ "centroids", 0, cal ? &cal->centroids : NULL, NULL },
		{ "sinks", 0, cal ? &cal->sinks : NULL, NULL },
		{ "window", 0, cal ? &cal->window : NULL, NULL },
		{ "iterations", 0, cal ? &cal->iterations : NULL, NULL },
		{ "threads", 0, cal ? &cal->threads : NULL, NULL },
		{ "seed", 0, cal ? &cal->seed : NULL, NULL },
		{ "rope-scaling", 0, cal ? &cal->scaling : NULL, NULL },
		{ "rope-pairs", 0, cal ? &cal->pairs : NULL, NULL },
		{ "output", 'o', cal ? &cal->output : NULL, NULL },
		{ NULL, 0, NULL, NULL },
	};
	int ret;

	if (!cal)
		return ctl_fail(c, -ENOMEM, "out of memory");
	cal->c = c;
	ret = ctl_parse(c, argc, argv, opts, &cal->acts, 1, 1);
	if (ret == CTL_GO_ON)
		ret = parse_options(cal);
	if (ret == CTL_GO_ON)
		ret = calibrate(cal);
	if (cal->dump)
		munmap(cal->dump, cal->size);
	free(cal);
	return ret;
}
