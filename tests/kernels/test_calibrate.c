// SPDX-License-Identifier: MIT
/*
 * Calibration: as good as an independent k-means, the same file whatever the
 * threads and the instruction set, and bad input named.
 */
#include <float.h>
#include "tests/harness.h"
#include "tests/kernels/fake_dump.h"
#include "tests/rope_ref.h"

static void refused(const struct fake *f, const struct cqk_calib_opts *o, int code,
		    const char *text)
{
	struct cq_err err = { "" };
	size_t size = 77;
	void *image = &size;

	ASSERT_EQ(cqk_calibrate(f->im.buf, f->im.size, o, NULL, &image, &size, &err),
		  code);
	ASSERT_STRHAS(err.text, text);
	ASSERT(image == &size && size == 77);
}

/* Plain Lloyd in doubles from random points; best of @starts. */
static double naive_kmeans(const double *x, uint32_t n, uint32_t c, int starts)
{
	double *cen = malloc(256 * c * 8), *sum = malloc(256 * (c + 1) * 8);
	double best = DBL_MAX, loss = 0, d, near;
	uint64_t rng = 99;
	uint32_t t, k, j, at;
	int it;

	for (; starts > 0; starts--) {
		for (k = 0; k < 256; k++)
			memcpy(cen + k * c, x + (cqk_random(&rng) % n) * c, c * 8);
		for (it = 0; it < 25; it++) {
			memset(sum, 0, 256 * (c + 1) * 8);
			for (loss = 0, t = 0; t < n; t++) {
				for (near = DBL_MAX, at = 0, k = 0; k < 256; k++) {
					for (d = 0, j = 0; j < c; j++)
						d += (x[t * c + j] - cen[k * c + j]) *
						     (x[t * c + j] - cen[k * c + j]);
					if (d < near) {
						near = d;
						at = k;
					}
				}
				loss += near;
				sum[at * (c + 1) + c]++;
				for (j = 0; j < c; j++)
					sum[at * (c + 1) + j] += x[t * c + j];
			}
			for (k = 0; k < 256; k++)
				for (j = 0; j < c && sum[k * (c + 1) + c] > 0; j++)
					cen[k * c + j] = sum[k * (c + 1) + j] /
							 sum[k * (c + 1) + c];
		}
		best = MIN(best, loss);
	}
	free(cen);
	free(sum);
	return best;
}

TEST(as_good_as_naive)
{
	struct cqk_kmeans km;
	uint64_t rng = 5;
	uint32_t n = 4000, c = 4, t, j;
	double *x = malloc(n * c * 8), norm, err, naive;

	ASSERT_OK(cqk_kmeans_init(&km, n, c, 256));
	km.c = c;
	km.k = 256;
	km.n = n;
	km.stride = 4032;
	memset(km.x, 0, km.stride * c * 4);
	for (t = 0; t < km.stride; t++)
		km.w[t] = t < n;
	for (t = 0; t < n; t++)
		for (j = 0; j < c; j++) {
			x[t * c + j] = gauss(&rng);
			km.x[j * km.stride + t] = (float)x[t * c + j];
		}
	ASSERT_GT(cqk_kmeans_run(&km, 25, 1), 3);
	err = cqk_kmeans_error(&km, &norm);
	naive = naive_kmeans(x, n, c, 3);
	if (err > naive * 1.01)
		FAIL("error %g, a naive k-means has %g", err / norm, naive / norm);
	/* Lloyd cannot beat the best of several starts by much either. */
	ASSERT(err > naive * 0.9 && err / norm < 0.12);
	cqk_kmeans_free(&km);
	free(x);
}

TEST(implementations_agree)
{
	static const uint32_t widths[] = { 1, 2, 3, 4, 5, 8, 12, 16 };
	const struct cqk_kmeans_ops *ops;
	struct cqk_kmeans km;
	uint64_t rng = 1;
	size_t i, w, c;
	int32_t *idx = malloc(1024 * 4);
	float *d2 = malloc(1024 * 4), block[16], *cen, want;
	unsigned int o;

	for (w = 0; w < ARRAY_SIZE(widths); w++) {
		c = widths[w];
		ASSERT_OK(cqk_kmeans_init(&km, 1024, (uint32_t)c, 256));
		cen = km.cen;
		for (i = 0; i < 1024 * c; i++)
			km.x[i] = (float)gauss(&rng);
		for (i = 0; i < 256 * c; i++)
			cen[i] = (float)gauss(&rng);
		memcpy(cen + 9 * c, cen + 3 * c, c * 4);	/* a tie */
		for (i = 0; i < c; i++)
			km.metric[i] = w % 2 ? 0.1f + (float)uniform(&rng) : 1;
		for (i = 0; i < 256; i++)
			km.half_norm[i] = i == 9 ? km.half_norm[3] : (float)uniform(&rng);
		for (o = 0; (ops = cqk_kmeans_nth(o)); o++) {
			if (!ops->usable())
				continue;
			for (i = 0; i < 1024; i++) {
				km.w[i] = 1.0f / (float)(i + 1);
				km.d2[i] = (float)(i % 7);
			}
			ops->assign(km.x, 1024, (uint32_t)c, 256, cen, km.half_norm,
				    km.idx);
			ops->spread(km.x, 1024, (uint32_t)c, cen, km.metric, km.w, km.d2,
				    km.block);
			if (!o) {
				memcpy(idx, km.idx, 4096);
				memcpy(d2, km.d2, 4096);
				memcpy(block, km.block, 64);
			}
			ASSERT_MEMEQ(km.idx, idx, 4096);
			ASSERT_MEMEQ(km.d2, d2, 4096);
			ASSERT_MEMEQ(km.block, block, 64);
		}
		for (i = 0; i < 1024; i++) {	/* against the definition */
			float best = INFINITY, acc;
			int32_t at = 0, k;
			size_t j;

			for (k = 0; k < 256; k++) {
				acc = km.half_norm[k];
				for (j = 0; j < c; j++)
					acc -= km.x[j * 1024 + i] * cen[(size_t)k * c + j];
				if (acc < best) {
					best = acc;
					at = k;
				}
			}
			ASSERT_EQ(idx[i], at);
			ASSERT_NE(at, 9);
			for (want = 0, j = 0; j < c; j++) {
				acc = km.x[j * 1024 + i] - cen[j];
				want += acc * acc * km.metric[j];
			}
			ASSERT(d2[i] == MIN(want, (float)(i % 7)));
		}
		cqk_kmeans_free(&km);
	}
	free(idx);
	free(d2);
}

TEST(threads_do_not_matter)
{
	struct cqk_calib_error e1[2], e4[2];
	struct cqk_calib_opts o;
	struct image a, b;
	struct fake f;

	fake_new(&f, 64, 700, 350, false, true);
	fake_noise(&f, 11);
	memset(f.fisher_at[0], 0x3c, f.im.size - (size_t)(f.fisher_at[0] - f.im.buf));
	o = options(&f, "4c8b", "8c8b");
	o.fisher = CQK_FISHER_BOTH;
	o.centroids = CQK_CENTROIDS_I8;
	o.sinks = 4;
	a = calibrated(&f, &o, e1);
	o.threads = 4;
	b = calibrated(&f, &o, e4);
	ASSERT_EQ(a.size, b.size);
	ASSERT(!memcmp(a.buf, b.buf, a.size));
	ASSERT(!memcmp(e1, e4, sizeof(e1)));
	free(b.buf);
	o.seed = 4;
	b = calibrated(&f, &o, e4);
	ASSERT(memcmp(a.buf, b.buf, a.size));
	free(a.buf);
	free(b.buf);
	free(f.im.buf);
}

/* The same keys, channels as the model has them and as they are stored. */
static void fill_keys(struct fake *f, const struct cqk_geom *order, uint8_t *const *at,
		      uint32_t entry, bool positive)
{
	uint32_t h, t, ch;
	uint64_t seed = entry + 77;
	double x;

	for (h = 0; h < 2; h++)
		for (t = 0; t < f->tokens; t++)
			for (ch = 0; ch < f->geom.head_dim; ch++) {
				x = gauss(&seed) * (1 + ch % 5);
				put(f, at[entry], h, t, ref_stored(order, ch),
				    positive ? x * x : x);
			}
}

static void fill_dump(struct fake *f, const struct cqk_geom *order)
{
	struct cqk_geom plain = f->geom;
	uint32_t e;

	for (e = 0; e < 4; e++) {
		fill_keys(f, e % 2 ? &plain : order, f->at, e, false);
		fill_keys(f, e % 2 ? &plain : order, f->fisher_at, e, true);
	}
}

TEST(interleaved_keys_are_learnt_as_they_are_stored)
{
	struct cqk_model *m[2];
	struct cqk_calib_opts o;
	struct cqk_geom mixed;
	struct image im[2];
	struct fake f[2];
	uint32_t l, i;
	size_t n = (size_t)2 * 64 * 256 * 2;

	for (i = 0; i < 2; i++) {
		fake_new(&f[i], 64, 600, 300, true, true);
		mixed = f[i].geom;
		mixed.rope_dim = 48;
		mixed.rope_pairs = CQK_PAIRS_INTERLEAVED;
		/* the first dump has the model's order, the second the stored one */
		fill_dump(&f[i], i ? &mixed : &f[i].geom);
		o = options(&f[i], "4c8b", "4c8b");
		o.fisher = CQK_FISHER_BOTH;
		o.geom.rope_dim = 48;
		o.geom.rope_pairs = i ? CQK_PAIRS_HALF : CQK_PAIRS_INTERLEAVED;
		im[i] = calibrated(&f[i], &o, NULL);
		ASSERT_OK(cqk_model_head(im[i].buf, im[i].size, &m[i], NULL));
		ASSERT_EQ(m[i]->geom.rope_pairs, o.geom.rope_pairs);
	}
	for (l = 0; l < 2; l++) {
		ASSERT_MEMEQ(m[0]->layers[l].k.stored, m[1]->layers[l].k.stored, n);
		ASSERT_MEMEQ(m[0]->layers[l].v.stored, m[1]->layers[l].v.stored, n);
	}
	ASSERT(memcmp(m[0]->hash, m[1]->hash, 32));
	for (i = 0; i < 2; i++) {
		cqk_model_free(m[i]);
		free(im[i].buf);
		free(f[i].im.buf);
	}
}

/* The same data at another place starts from other random numbers. */
TEST(every_group_has_its_seed)
{
	const struct cqk_codebook *k, *v;
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image im;
	struct fake f;
	size_t head;

	fake_new(&f, 64, 700, 700, false, false);
	fake_noise(&f, 11);
	head = (size_t)(f.at[1] - f.at[0]) / 2;
	memcpy(f.at[0] + head, f.at[0], head);
	memcpy(f.at[1], f.at[0], head);
	memcpy(f.at[2], f.at[0], head);
	o = options(&f, "4c8b", "4c8b");
	im = calibrated(&f, &o, NULL);
	ASSERT_OK(cqk_model_head(im.buf, im.size, &m, NULL));
	k = &m->layers[0].k;
	v = &m->layers[0].v;
	head = 64 * 256 * 2;
	ASSERT(memcmp(k->stored, (const uint8_t *)k->stored + head, head));
	ASSERT(memcmp(k->stored, v->stored, head));
	ASSERT(memcmp(k->stored, m->layers[1].k.stored, head));
	cqk_model_free(m);
	free(im.buf);
	free(f.im.buf);
}

/* Squared error of layer 0's keys, coded by hand in double precision. */
static double coding_error(const struct fake *f, const struct cqk_model *m,
			   uint32_t sinks, uint32_t seq)
{
	const struct cqk_codebook *cb = &m->layers[0].k;
	uint32_t d = f->geom.head_dim, c = cb->code.channels, h, t, g, k, j;
	uint32_t n = 1u << cb->code.bits;
	const uint16_t *x = (const void *)f->at[0];
	double err = 0, norm = 0, near, s, v;

	for (h = 0; h < 2; h++)
		for (t = 0; t < f->tokens; t++) {
			if (t % seq < sinks)
				continue;
			for (g = 0; g < d / c; g++) {
				for (near = DBL_MAX, k = 0; k < n; k++) {
					for (s = 0, j = 0; j < c; j++) {
						v = cqk_f16_to_f32(x[(h * f->tokens + t) *
								     d + g * c + j]);
						v -= cb->f32[(h * d + g * c + j) * n + k];
						s += v * v;
					}
					near = MIN(near, s);
				}
				err += near;
				for (j = 0; j < c; j++) {
					v = cqk_f16_to_f32(x[(h * f->tokens + t) * d +
							     g * c + j]);
					norm += v * v;
				}
			}
		}
	return err / norm;
}

TEST(error_is_that_of_the_file)
{
	struct cqk_calib_error errors[2];
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image im;
	struct fake f;
	uint32_t kind;

	fake_new(&f, 64, 600, 250, false, false);
	fake_noise(&f, 2);
	o = options(&f, "4c8b", "fp16");
	o.sinks = 7;
	for (kind = 0; kind < 2; kind++) {
		o.centroids = kind;
		im = calibrated(&f, &o, errors);
		ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
		ASSERT_NEAR(errors[0].k, coding_error(&f, m, 7, 250), 1e-6);
		ASSERT(errors[0].k > 0.001 && errors[0].k < 0.1);
		ASSERT(errors[0].v == 0);
		ASSERT_EQ(m->sinks, 7);
		ASSERT_EQ(m->window, 128);
		ASSERT_EQ(m->fingerprint[2], 3);
		ASSERT_EQ(m->layers[0].k.centroids, kind);
		cqk_model_free(m);
		free(im.buf);
	}
	free(f.im.buf);
}

/* 1,024 centroids: deterministic, better than 256, and as the encoder has them. */
TEST(codes_of_ten_bits)
{
	struct cqk_calib_error few[2], many[2], again[2];
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image a, b;
	struct fake f;

	fake_new(&f, 64, 2100, 350, false, false);
	fake_noise(&f, 11);
	o = options(&f, "8c8b", "8c8b");
	o.iterations = 4;
	o.centroids = CQK_CENTROIDS_I8;
	a = calibrated(&f, &o, few);
	free(a.buf);
	o = options(&f, "8c10b", "4c8b");
	o.iterations = 4;
	o.centroids = CQK_CENTROIDS_I8;
	o.sinks = 3;
	a = calibrated(&f, &o, many);
	o.threads = 4;
	b = calibrated(&f, &o, again);
	ASSERT_EQ(a.size, b.size);
	ASSERT(!memcmp(a.buf, b.buf, a.size));
	ASSERT_OK(cqk_model_parse(a.buf, a.size, &m, NULL));
	ASSERT_EQ(m->layers[1].k.code.bits, 10);
	ASSERT_NEAR(many[0].k, coding_error(&f, m, 3, 350), 1e-6);
	ASSERT(many[0].k < 0.8 * few[0].k && many[0].k > 0.001);
	cqk_model_free(m);
	free(a.buf);
	free(b.buf);
	free(f.im.buf);
}

TEST(head_dims)
{
	static const uint32_t dims[] = { 64, 80, 96, 112, 128, 256 };
	struct cqk_calib_error errors[2];
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image im;
	struct fake f;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(dims); i++) {
		fake_new(&f, dims[i], 300, 100, true, false);
		fake_noise(&f, i);
		o = options(&f, "2c8b", "16c8b");
		o.iterations = 3;
		im = calibrated(&f, &o, errors);
		ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
		ASSERT_EQ(m->layers[1].v.n_groups, dims[i] / 16);
		ASSERT(errors[1].k < errors[1].v && errors[1].v < 0.5);
		cqk_model_free(m);
		free(im.buf);
		free(f.im.buf);
	}
}

/* Fewer tokens than centroids: every token gets a centroid of its own. */
TEST(few_tokens)
{
	struct cqk_calib_error errors[2];
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image im;
	struct fake f;
	uint32_t n;

	for (n = 1; n <= 200; n += 67) {
		fake_new(&f, 64, n, 512, false, false);
		fake_noise(&f, n);
		o = options(&f, "4c8b", "8c8b");
		im = calibrated(&f, &o, errors);
		ASSERT(errors[0].k < 1e-7 && errors[1].v < 1e-7);
		ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
		cqk_model_free(m);
		free(im.buf);
		free(f.im.buf);
	}
}

TEST(constant_channels)
{
	struct cqk_calib_error errors[2];
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image im;
	struct fake f;
	uint32_t h, t, ch, kind;

	fake_new(&f, 64, 500, 500, false, false);
	fake_noise(&f, 3);
	for (h = 0; h < 2; h++)
		for (t = 0; t < 500; t++) {
			for (ch = 0; ch < 64; ch++)
				put(&f, f.at[0], h, t, ch, ch < 32 ? 0 : 2.5);
			for (ch = 0; ch < 4; ch++)	/* one of four alive */
				put(&f, f.at[1], h, t, ch, ch ? 1 : t / 100.0);
		}
	o = options(&f, "4c8b", "4c8b");
	for (kind = 0; kind < 2; kind++) {
		o.centroids = kind;
		im = calibrated(&f, &o, errors);
		ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
		ASSERT(errors[0].k < 1e-6);
		ASSERT(errors[0].v < 0.1);
		cqk_model_free(m);
		free(im.buf);
	}
	free(f.im.buf);
}

/* From one point 256 times: all but one cluster start empty. */
TEST(reseeding)
{
	bool seen[256] = { false };
	uint32_t t, used = 0;
	struct cqk_kmeans km;
	uint64_t rng = 5;

	ASSERT_OK(cqk_kmeans_init(&km, 1024, 2, 256));
	km.c = 2;
	km.k = 256;
	km.n = 1024;
	km.stride = 1024;
	for (t = 0; t < 1024; t++) {
		km.w[t] = 1;
		km.x[t] = (float)gauss(&rng);
		km.x[1024 + t] = (float)gauss(&rng);
	}
	memset(km.cen, 0, 512 * sizeof(float));
	cqk_kmeans_refine(&km, 2);
	for (t = 0; t < 1024; t++)
		seen[km.idx[t]] = true;
	for (t = 0; t < 256; t++)
		used += seen[t];
	ASSERT_GT(used, 150);
	cqk_kmeans_free(&km);
}

/* It stops when an iteration gains less than 1e-4, and not long before. */
TEST(early_stop)
{
	struct cqk_kmeans km;
	uint32_t t, made, again;
	uint64_t rng = 5;
	double loss;

	ASSERT_OK(cqk_kmeans_init(&km, 2048, 2, 256));
	km.c = 2;
	km.k = 256;
	km.n = 2048;
	km.stride = 2048;
	for (t = 0; t < 2048; t++) {
		km.w[t] = 1;
		km.x[t] = (float)gauss(&rng);
		km.x[2048 + t] = (float)gauss(&rng);
	}
	made = cqk_kmeans_run(&km, 10000, 1);
	loss = km.loss;
	ASSERT(made > 5 && made < 200);
	again = cqk_kmeans_run(&km, made - 1, 1);
	ASSERT_EQ(again, made - 1);
	ASSERT(km.loss >= loss);
	cqk_kmeans_refine(&km, 10000);
	ASSERT_NEAR(km.loss, loss, loss * 1e-3);
	cqk_kmeans_free(&km);
}

/* Two tight heaps and a far one: no centroid stays where nothing is. */
TEST(empty_clusters)
{
	struct cqk_kmeans km;
	uint64_t rng = 5;
	uint32_t t, k, used = 0;
	bool seen[256] = { false };
	double norm, err;

	ASSERT_OK(cqk_kmeans_init(&km, 1024, 1, 256));
	km.c = 1;
	km.k = 256;
	km.n = 1024;
	km.stride = 1024;
	for (t = 0; t < 1024; t++) {
		km.w[t] = t < 1000 ? 1 : 1000;
		km.x[t] = (float)(t < 1000 ? uniform(&rng) : 1e4 * uniform(&rng));
	}
	cqk_kmeans_run(&km, 100, 1);
	err = cqk_kmeans_error(&km, &norm);
	for (t = 0; t < 1024; t++)
		seen[km.idx[t]] = true;
	for (k = 0; k < 256; k++)
		used += seen[k];
	ASSERT_GT(used, 200);
	ASSERT(err / 1000 < 1e-4);
	cqk_kmeans_free(&km);
}

/* Heavy tokens are coded better than without weights. */
TEST(fisher_counts)
{
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image im;
	struct fake f;
	uint64_t rng = 8;
	double heavy[2];
	uint32_t h, t, ch;
	int on;

	fake_new(&f, 64, 4000, 4000, false, true);
	for (h = 0; h < 2; h++)
		for (t = 0; t < 4000; t++)
			for (ch = 0; ch < 64; ch++) {
				put(&f, f.at[0], h, t, ch,
				    gauss(&rng) + (t % 8 < 7 ? 0 : 6));
				put(&f, f.fisher_at[0], h, t, ch, t % 8 < 7 ? 0.01 : 1);
			}
	o = options(&f, "8c8b", "fp16");
	for (on = 0; on < 2; on++) {
		o.fisher = on ? CQK_FISHER_TOKEN : 0;
		im = calibrated(&f, &o, NULL);
		ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
		heavy[on] = coding_error(&f, m, 7, 8);
		cqk_model_free(m);
		free(im.buf);
	}
	printf("# error of heavy tokens: plain %g, fisher %g\n", heavy[0], heavy[1]);
	ASSERT(heavy[1] < 0.8 * heavy[0]);
	free(f.im.buf);
}

TEST(quantiles)
{
	float w[2000];
	uint32_t i;

	for (i = 0; i < 2000; i++)
		w[i] = (float)i;
	w[7] = 1e30f;
	ASSERT(cqk_kmeans_quantile(w, 2000, 1) == 1e30f);
	ASSERT(cqk_kmeans_quantile(w, 2000, 0.999) == 1998);
	ASSERT(cqk_kmeans_quantile(w, 2000, 0.5) == 1000);
	ASSERT(cqk_kmeans_quantile(w, 2000, 0) == 0);
	w[0] = 3;
	ASSERT(cqk_kmeans_quantile(w, 1, 0.999) == 3);
}

TEST(bad_values_are_named)
{
	static const double bad[] = { NAN, INFINITY, -INFINITY, 1e6 };
	struct cqk_calib_opts o;
	struct fake f;
	size_t i;

	for (i = 0; i < 8; i++) {
		fake_new(&f, 64, 300, 100, i / 4, true);
		fake_noise(&f, 3);
		o = options(&f, "4c8b", "4c8b");
		o.sinks = 4;
		o.threads = 3;
		put(&f, f.at[3], 1, 201, 5, bad[i % 4]);	/* a sink, even */
		refused(&f, &o, -EINVAL, "layer 1, values, head 1, token 201");
		put(&f, f.at[2], 0, 299, 63, bad[i % 4]);
		refused(&f, &o, -EINVAL, "layer 1, keys, head 0, token 299");
		put(&f, f.at[2], 0, 299, 63, 0);
		put(&f, f.at[3], 1, 201, 5, 0);
		o.fisher = CQK_FISHER_BOTH;
		put(&f, f.fisher_at[0], 1, 17, 0, i % 4 ? -1 : NAN);
		refused(&f, &o, -EINVAL, "layer 0, keys (fisher), head 1, token 17");
		free(f.im.buf);
	}
}

static int stop_at_three(void *arg, uint32_t done, uint32_t total)
{
	ASSERT_EQ(done, ++*(uint32_t *)arg);
	ASSERT_EQ(total, 2 * 2 * (16 + 8));
	return done == 3;
}

TEST(progress_and_cancel)
{
	struct cqk_calib_opts o;
	uint32_t calls = 0;
	struct fake f;

	fake_new(&f, 64, 300, 300, false, false);
	fake_noise(&f, 3);
	o = options(&f, "4c8b", "8c8b");
	o.progress = stop_at_three;
	o.arg = &calls;
	o.threads = 2;
	refused(&f, &o, -ECANCELED, "canceled");
	ASSERT_EQ(calls, 3);
	free(f.im.buf);
}

TEST(options_and_shapes)
{
	struct cqk_calib_opts o, bad;
	struct fake f;

	fake_new(&f, 64, 100, 4, false, false);
	o = options(&f, "4c8b", "4c8b");
	bad = o;
	bad.sinks = 4;
	refused(&f, &bad, -EINVAL, "no tokens are left");
	bad.sinks = 65;
	refused(&f, &bad, -EINVAL, "sinks");
	bad = o;
	bad.window = 65;
	refused(&f, &bad, -EINVAL, "window");
	bad = o;
	bad.fisher = CQK_FISHER_CHANNEL;
	refused(&f, &bad, -EINVAL, "fisher");
	bad = o;
	bad.iterations = 0;
	refused(&f, &bad, -EINVAL, "iteration");
	bad = o;
	bad.centroids = 2;
	refused(&f, &bad, -EINVAL, "centroids");
	bad = o;
	bad.geom.n_layers = 1;
	refused(&f, &bad, -EINVAL, "2 layers");
	bad = o;
	bad.geom.head_dim = 128;
	refused(&f, &bad, -EINVAL, "64 channels");
	codes[0][1].bits = 10;
	refused(&f, &o, -EOPNOTSUPP, "10 bits");
	f.im.size--;
	refused(&f, &o, -EOPNOTSUPP, "10 bits");
	codes[0][1].bits = 8;
	refused(&f, &o, -EINVAL, "cut short");
	free(f.im.buf);
}

TEST(dump_info)
{
	static const struct {
		const char *from, *to, *text;
		int code;
	} edit[] = {
		{ "activations-1", "activations-7", "activations-7", -EPROTO },
		{ "\"sequence_tokens\":\"50\"", "\"sequence_tokens\":\" 0\"",
		  "sequence_tokens", -EINVAL },
		{ "layers.1.v", "layers.1.w", "layers.1.v is missing", -EINVAL },
		{ "\"n_kv_heads\":\"2\"", "\"n_kv_heads\":\"1\"", "shape", -EINVAL },
		{ "fingerprint", "fingerpront", "fingerprint is missing", -EINVAL },
		{ "\"F16\"", "\"U16\"", "neither", -EINVAL },
		{ "rope_theta", "rope_thetq", "unknown metadata rope_thetq", -EINVAL },
	};
	struct cqk_dump_info info;
	struct cqk_geom geom;
	struct cq_err err;
	struct fake f;
	char *at;
	size_t i;

	fake_new(&f, 64, 120, 50, false, true);
	ASSERT_OK(cqk_dump_info(f.im.buf, f.im.size, &info, NULL));
	ASSERT_EQ(info.tokens, 120);
	ASSERT_EQ(info.sequence_tokens, 50);
	ASSERT_EQ(info.fingerprint[31], 31);
	ASSERT(info.fisher);
	ASSERT_STREQ(info.source, "noise");
	ASSERT_OK(cqk_dump_geom(f.im.buf, f.im.size, &geom, NULL));
	ASSERT_EQ(geom.head_dim, 64);
	ASSERT(geom.rope_theta == 10000);
	for (i = 0; i < ARRAY_SIZE(edit); i++) {
		at = memmem(f.im.buf, f.im.size, edit[i].from, strlen(edit[i].from));
		ASSERT(at);
		ASSERT_EQ(strlen(edit[i].from), strlen(edit[i].to));
		memcpy(at, edit[i].to, strlen(edit[i].to));
		ASSERT_EQ(cqk_dump_info(f.im.buf, f.im.size, &info, &err), edit[i].code);
		ASSERT_STRHAS(err.text, edit[i].text);
		memcpy(at, edit[i].from, strlen(edit[i].from));
	}
	free(f.im.buf);
	fake_new(&f, 64, 120, 0, false, false);
	ASSERT_EQ(cqk_dump_info(f.im.buf, f.im.size, &info, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "sequence_tokens");
	free(f.im.buf);
}
