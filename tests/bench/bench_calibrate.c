// SPDX-License-Identifier: MIT
/*
 * Calibration at full size: layers of Llama-3.1-8B's shape (8 kv heads of 128
 * channels) over 32,768 tokens with gradients, one thread; one JSON object per
 * line. "cpu_s_32_layers" is the time of a layer on a CPU times 32.
 *
 * The dump is noise: channels are mixed from a few sources, as those of a
 * language model depend on each other, and gradients have long tails.
 *
 * bench_calibrate [LAYERS]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/calibrate.h"
#include "kernels/f16.h"
#include "kernels/kmeans.h"
#include "kernels/safetensors.h"
#include "tests/bench/times.h"

#define N_KV 8u
#define D 128u
#define TOKENS 32768u
#define SOURCES 24
#define MAX_BENCH_LAYERS 8

/* About normal, deviation 1. */
static float noise(uint64_t *rng)
{
	uint64_t r = cqk_random(rng);

	return ((float)(r & 0xffff) + (float)(r >> 16 & 0xffff) + (float)(r >> 32 & 0xffff) +
		(float)(r >> 48) - 131070) / 37837;
}

static void fill_values(uint16_t *out, uint64_t rng)
{
	float mix[SOURCES][D], z[SOURCES], x[D];
	uint32_t t, i, ch;

	for (i = 0; i < SOURCES; i++)
		for (ch = 0; ch < D; ch++)
			mix[i][ch] = noise(&rng) * 0.2f;
	for (t = 0; t < TOKENS; t++) {
		for (i = 0; i < SOURCES; i++)
			z[i] = noise(&rng);
		for (ch = 0; ch < D; ch++)
			x[ch] = 0.3f * noise(&rng);
		for (i = 0; i < SOURCES; i++)
			for (ch = 0; ch < D; ch++)
				x[ch] += z[i] * mix[i][ch];
		for (ch = 0; ch < D; ch++)
			*out++ = cqk_f32_to_f16(x[ch]);
	}
}

static void fill_gradients(uint16_t *out, uint64_t rng)
{
	float all, g;
	uint32_t t, ch;

	for (t = 0; t < TOKENS; t++) {
		all = noise(&rng) * noise(&rng);
		for (ch = 0; ch < D; ch++) {
			g = all * noise(&rng);
			*out++ = cqk_f32_to_f16(g * g);
		}
	}
}

/* The dump's image, [n_layers] layers; NULL if there is no memory for it. */
static uint8_t *make_dump(uint32_t n_layers, size_t *size)
{
	static char names[4 * MAX_BENCH_LAYERS][32];
	struct st_tensor t[4 * MAX_BENCH_LAYERS] = { { 0 } };
	char layers[8];
	const char *meta[] = {
		"format", "cq-activations-1", "n_layers", layers, "n_heads", "32",
		"n_kv_heads", "8", "head_dim", "128", "max_position", "131072",
		"keys", "pre-rope", "rope", "half", "rope_dim", "128", "rope_theta", "500000",
		"sequence_tokens", "2048", "fingerprint",
		"0000000000000000000000000000000000000000000000000000000000000000",
	};
	size_t head = (size_t)TOKENS * D, bytes = N_KV * head * 2, at;
	uint32_t i, h, n = 4 * n_layers;
	void *header;
	uint8_t *buf;

	snprintf(layers, sizeof(layers), "%u", n_layers);
	for (i = 0; i < n; i++) {
		snprintf(names[i], sizeof(names[i]), "layers.%u.%c%s", i / 4,
			 i / 2 % 2 ? 'v' : 'k', i % 2 ? ".fisher" : "");
		t[i] = (struct st_tensor){ .name = names[i], .dtype = ST_F16, .n_dims = 3,
					   .shape = { N_KV, TOKENS, D }, .bytes = bytes };
	}
	at = st_header(t, n, meta, ARRAY_SIZE(meta) / 2, &header);
	*size = at + n * bytes;
	buf = at ? realloc(header, *size) : NULL;
	for (i = 0; buf && i < n; i++)
		for (h = 0; h < N_KV; h++) {
			uint16_t *out = (uint16_t *)(void *)(buf + at + i * bytes) + h * head;

			(i % 2 ? fill_gradients : fill_values)(out, i * N_KV + h + 1);
		}
	return buf;
}

static int run(const uint8_t *dump, size_t size, uint32_t n_layers, uint8_t c)
{
	struct cq_code code[MAX_BENCH_LAYERS];
	struct cqk_calib_error error[MAX_BENCH_LAYERS];
	struct cqk_calib_opts o = {
		.k = code, .v = code, .centroids = CQK_CENTROIDS_I8, .sinks = 4,
		.fisher = CQK_FISHER_BOTH, .clip = 0.99, .iterations = 25, .starts = 1,
		.threads = 1, .seed = 1,
	};
	size_t image_size;
	struct cq_err err;
	double start, s;
	void *image;
	uint32_t l;

	for (l = 0; l < n_layers; l++)
		code[l] = (struct cq_code){ CQ_CODE_CQ, c, 8, 0 };
	if (cqk_dump_geom(dump, size, &o.geom, &err))
		goto err_said;
	start = times_now();
	if (cqk_calibrate(dump, size, &o, error, &image, &image_size, &err))
		goto err_said;
	s = (times_now() - start) / 1e9 / n_layers;
	free(image);
	printf("{\"bench\": \"calibrate\", \"config\": \"k%uc8b-v%uc8b\", \"layers\": %u, "
	       "\"tokens\": %u, \"kv_heads\": %u, \"head_dim\": %u, \"iterations\": 25, "
	       "\"k_error\": %.4f, \"cpu_s_per_layer\": %.2f, \"cpu_s_32_layers\": %.0f}\n",
	       c, c, n_layers, TOKENS, N_KV, D, error[0].k, s, 32 * s);
	fflush(stdout);
	return 0;

err_said:
	fprintf(stderr, "bench_calibrate: %s\n", err.text);
	return -1;
}

int main(int argc, char **argv)
{
	long n = argc > 1 ? strtol(argv[1], NULL, 10) : 1;
	uint8_t *dump, c;
	size_t size;
	int ret = 0;

	if (n < 1 || n > MAX_BENCH_LAYERS) {
		fprintf(stderr, "bench_calibrate: 1 to %d layers\n", MAX_BENCH_LAYERS);
		return 2;
	}
	dump = make_dump((uint32_t)n, &size);
	if (!dump) {
		fputs("bench_calibrate: no memory for the dump\n", stderr);
		return 1;
	}
	for (c = 8; c >= 2 && !ret; c /= 2)
		ret = run(dump, size, (uint32_t)n, c);
	free(dump);
	return ret ? 1 : 0;
}
