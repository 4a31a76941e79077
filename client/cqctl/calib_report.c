// SPDX-License-Identifier: MIT
/* What calibrate says while it works and at its end. */
#include <math.h>
#include <string.h>
#include <time.h>
#include "client/cqctl/calibrate.h"
#include "kernels/meta.h"

/* Lines of progress when standard error is no terminal. */
#define STEPS 4

/* Effective bits: of a context that long, with codebooks for so many tokens. */
#define CONTEXT 8192
#define POOL 1000000

double ctl_calib_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

int ctl_calib_progress(void *arg, uint32_t done, uint32_t total)
{
	struct calib *cal = arg;
	double t = ctl_calib_now(), left = (t - cal->start) / done * (total - done);
	const char *what = cal->tried ? "codebooks tried" : "codebooks";

	if (cal->terminal) {
		if (t - cal->shown < 0.1 && done < total)
			return 0;
		cal->shown = t;
		fprintf(stderr, "\r%u of %u %s, %.0f s left \033[K", done, total, what, left);
		if (done == total)
			fputs("\r\033[K", stderr);
	} else if ((uint64_t)done * STEPS / total > cal->step) {
		cal->step = (uint32_t)((uint64_t)done * STEPS / total);
		fprintf(stderr, "%u of %u %s after %.1f s, %.0f s left\n", done, total, what,
			t - cal->start, left);
	}
	return 0;
}

static double mean_bits(const struct calib *cal)
{
	uint32_t e, n = 2 * cal->info.geom.n_layers;
	double sum = 0;

	for (e = 0; e < n; e++)
		sum += cqk_code_bits(cal->code[e % 2][e / 2]);
	return sum / n;
}

/*
 * What a reader of a shared prefix keeps, per value: slots with their heads and
 * padding, the sinks of one context, its part of the model file.
 */
static double effective_bits(const struct cqk_model *m, size_t size)
{
	double values = 2.0 * m->geom.n_layers * m->geom.n_kv_heads * m->geom.head_dim;
	double bytes = (double)m->slot_bytes / CQ_PAGE_TOKENS +
		       (double)m->sink_slot_bytes / CONTEXT + (double)size / POOL;

	return 8 * bytes / values;
}

static json_t *losses(const struct calib *cal, uint32_t entry)
{
	json_t *list = json_array();
	uint32_t i;

	for (i = 0; i < cal->n_choices; i++)
		json_array_append_new(list, json_real(cal->loss[entry][i]));
	return list;
}

static json_t *layer_json(const struct calib *cal, uint32_t l)
{
	char k[16], v[16];
	json_t *layer = json_pack("{s:s, s:f, s:s, s:f}",
		"k", cqk_code_name(cal->code[0][l], k), "k_error", cal->error[l].k,
		"v", cqk_code_name(cal->code[1][l], v), "v_error", cal->error[l].v);

	if (layer && cal->budget > 0) {
		json_object_set_new(layer, "k_losses", losses(cal, 2 * l));
		json_object_set_new(layer, "v_losses", losses(cal, 2 * l + 1));
	}
	return layer;
}

static int report_json(const struct calib *cal, const struct cqk_model *m, size_t size,
		       double seconds)
{
	json_t *layers = json_array();
	char hash[65], rope[256];
	uint32_t l;

	for (l = 0; l < cal->info.geom.n_layers; l++)
		json_array_append_new(layers, layer_json(cal, l));
	return ctl_print_json(json_pack("{s:o, s:s, s:I, s:I, s:I, s:s, s:s, s:f, s:f, s:f, s:o}",
		"model", ctl_json_text(cal->output), "hash", ctl_hex(m->hash, 32, hash),
		"bytes", (json_int_t)size, "slot_bytes", (json_int_t)m->slot_bytes,
		"tokens", (json_int_t)cal->info.tokens, "centroids",
		cqk_centroids_name(cal->opts.centroids), "rope",
		cqk_rope_text(&m->geom, rope, sizeof(rope)), "seconds", seconds,
		"bits", mean_bits(cal), "effective_bits", effective_bits(m, size),
		"layers", layers));
}

/* One line per layer for keys and one for values: what each choice loses. */
static void print_losses(const struct calib *cal)
{
	uint32_t e, i;
	char name[16];

	if (cal->relative)
		printf("The dump %s: what codings lose is compared by\n"
		       "the relative squared error, which says little about layers.\n",
		       cal->info.fisher ? "has squared gradients of 0 alone" :
		       "has no squared gradients");
	fputs("layer    ", stdout);
	for (i = 0; i < cal->n_choices; i++)
		printf("   loss %-6s", cqk_code_name(cal->choices[i], name));
	puts("  choice");
	for (e = 0; e < 2 * cal->info.geom.n_layers; e++) {
		printf("%5u %s", e / 2, e % 2 ? "v  " : "k  ");
		for (i = 0; i < cal->n_choices; i++)
			printf("  %12.4g", cal->loss[e][i]);
		printf("  %s%s\n", cqk_code_name(cal->code[e % 2][e / 2], name),
		       cal->fixed[e] ? " (as told)" : "");
	}
}

int ctl_calib_report(const struct calib *cal, const struct cqk_model *m, size_t size,
		     double seconds)
{
	char k[16], v[16], hash[65], buf[24], rope[256];
	uint32_t l;

	if (cal->c->json)
		return report_json(cal, m, size, seconds);
	if (cal->budget > 0)
		print_losses(cal);
	puts("layer  keys    error   values  error");
	for (l = 0; l < cal->info.geom.n_layers; l++)
		printf("%5u  %-6s %6.4f   %-6s %6.4f\n", l,
		       cqk_code_name(cal->code[0][l], k), cal->error[l].k,
		       cqk_code_name(cal->code[1][l], v), cal->error[l].v);
	printf("RoPE: %s\n", cqk_rope_text(&m->geom, rope, sizeof(rope)));
	printf("Bits per value with slots, sinks of %d tokens, codebooks over %d: %.2f\n",
	       CONTEXT, POOL, effective_bits(m, size));
	printf("%s: %s, %.2f bits per value, %llu tokens, %.1f s, hash %.16s\n",
	       cal->output, ctl_bytes(size, buf), mean_bits(cal),
	       (unsigned long long)cal->info.tokens, seconds, ctl_hex(m->hash, 32, hash));
	return CTL_OK;
}
