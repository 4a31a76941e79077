// SPDX-License-Identifier: MIT
/*
 * What calibration can be told: the metric, clipping, several starts, a budget;
 * and what it can keep of a run that is ended.
 */
#include <float.h>
#include "tests/harness.h"
#include "tests/kernels/fake_dump.h"

/* Channels differ in size by powers of two, gradients by the inverse of it. */
static void fill_hard(struct fake *f, bool hard)
{
	uint32_t e, h, t, ch;
	uint64_t rng = 31;
	double size, x, g;

	for (e = 0; e < 4; e++)
		for (h = 0; h < 2; h++)
			for (t = 0; t < f->tokens; t++)
				for (ch = 0; ch < f->geom.head_dim; ch++) {
					size = hard && ch % 3 == 0 ? 16 : 1;
					x = gauss(&rng);
					g = gauss(&rng) * (t % 16 ? 0.1 : 2);
					put(f, f->at[e], h, t, ch, x * size);
					put(f, f->fisher_at[e], h, t, ch, g * g / size / size);
				}
}

/* Sum of g^2 (x - c)^2 of layer 0's keys, coded by hand with the file's metric. */
static double weighted_error(const struct fake *f, const struct cqk_model *m)
{
	const struct cqk_codebook *cb = &m->layers[0].k;
	const float *x = (const void *)f->at[0], *g2 = (const void *)f->fisher_at[0];
	uint32_t d = f->geom.head_dim, c = cb->code.channels, h, t, g, k, j, best;
	double sum = 0, near, s, v;
	size_t at, ch;

	for (h = 0; h < 2; h++)
		for (t = 0; t < f->tokens; t++)
			for (g = 0; g < d / c; g++) {
				at = ((size_t)h * f->tokens + t) * d + g * c;
				for (near = DBL_MAX, best = 0, k = 0; k < 256; k++) {
					for (s = 0, j = 0; j < c; j++) {
						ch = h * d + g * c + j;
						v = x[at + j] - cb->f32[ch * 256 + k];
						s += v * v * (cb->metric ? cb->metric[ch] : 1);
					}
					if (s < near) {
						near = s;
						best = k;
					}
				}
				for (j = 0; j < c; j++) {
					ch = h * d + g * c + j;
					v = x[at + j] - cb->f32[ch * 256 + best];
					sum += v * v * g2[at + j];
				}
			}
	return sum;
}

static double error_with(const struct fake *f, uint32_t fisher)
{
	struct cqk_calib_opts o = options(f, "4c8b", "fp16");
	struct cqk_model *m;
	struct image im;
	double err;

	o.fisher = fisher;
	im = calibrated(f, &o, NULL);
	ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
	ASSERT_EQ(!m->layers[1].k.metric, !(fisher & CQK_FISHER_CHANNEL));
	err = weighted_error(f, m);
	cqk_model_free(m);
	free(im.buf);
	return err;
}

/* With a metric the size of a channel has no part in it; without it has. */
TEST(large_channels_cost_nothing)
{
	double err[2][4];
	uint32_t hard, fisher;
	struct fake f;

	for (hard = 0; hard < 2; hard++) {
		fake_new(&f, 64, 1500, 500, true, true);
		fill_hard(&f, hard);
		for (fisher = 0; fisher < 4; fisher++)
			err[hard][fisher] = error_with(&f, fisher);
		free(f.im.buf);
	}
	for (fisher = 0; fisher < 4; fisher++)
		printf("# fisher %u: %g plain, %g hard\n", fisher, err[0][fisher],
		       err[1][fisher]);
	ASSERT(err[1][CQK_FISHER_BOTH] < err[0][CQK_FISHER_BOTH] * 1.02);
	ASSERT(err[1][CQK_FISHER_CHANNEL] < err[0][CQK_FISHER_CHANNEL] * 1.02);
	ASSERT(err[1][CQK_FISHER_TOKEN] > err[1][CQK_FISHER_BOTH] * 2);
	ASSERT(err[1][CQK_FISHER_NONE] > err[1][CQK_FISHER_CHANNEL] * 2);
	ASSERT(err[0][CQK_FISHER_BOTH] < err[0][CQK_FISHER_NONE] * 0.9);
}

/* The mean of a channel's squared gradients, clipped, over its group's mean. */
TEST(the_metric_is_what_it_says)
{
	static const double mean[4] = { 1, 0.5, 4, 0 };
	struct cqk_calib_opts o;
	struct cqk_model *m;
	struct image im;
	struct fake f;
	uint32_t h, t, ch;

	fake_new(&f, 64, 400, 400, true, true);
	fake_noise(&f, 3);
	for (h = 0; h < 2; h++)
		for (t = 0; t < 400; t++)
			for (ch = 0; ch < 64; ch++)
				put(&f, f.fisher_at[0], h, t, ch, t == 5 && ch < 60 ? 1e6 :
				    ch < 60 ? mean[ch % 4] * (0.5 + t % 2) : 0);
	o = options(&f, "4c8b", "4c8b");
	o.fisher = CQK_FISHER_CHANNEL;
	o.clip = 0.99;
	im = calibrated(&f, &o, NULL);
	ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
	for (h = 0; h < 2; h++)
		for (ch = 0; ch < 60; ch++)
			if (ch % 4 < 3)
				ASSERT_NEAR(m->layers[0].k.metric[h * 64 + ch],
					    mean[ch % 4] / 5.5 * 4, 0.02);
			else
				ASSERT(m->layers[0].k.metric[h * 64 + ch] == CQK_METRIC_MIN);
	for (ch = 60; ch < 64; ch++)	/* nothing known: all alike */
		ASSERT(m->layers[0].k.metric[ch] == 1);
	cqk_model_free(m);
	free(im.buf);
	o.clip = 1;
	im = calibrated(&f, &o, NULL);	/* one token has it all */
	ASSERT_OK(cqk_model_parse(im.buf, im.size, &m, NULL));
	for (ch = 0; ch < 4; ch++)
		ASSERT_NEAR(m->layers[0].k.metric[ch], 1, 0.01);
	cqk_model_free(m);
	free(im.buf);
	free(f.im.buf);
}

/* Every fourth token has none, one has much more than the others. */
static void gradients_with_zeros(struct fake *f, float zero)
{
	uint32_t e, h, t, ch;

	for (e = 0; e < 4; e++)
		for (h = 0; h < 2; h++)
			for (t = 0; t < 400; t++)
				for (ch = 0; ch < 64; ch++)
					put(f, f->fisher_at[e], h, t, ch, t == 5 ? 1000 + ch :
					    t % 4 ? 1 + ch % 4 : zero);
}

/* The sign of a gradient of 0 has no part in where gradients are cut. */
TEST(zeros_of_either_sign)
{
	struct image im[2];
	struct cqk_calib_opts o;
	uint32_t f32, sign;
	struct fake f;

	for (f32 = 0; f32 < 2; f32++) {
		fake_new(&f, 64, 400, 400, f32, true);
		fake_noise(&f, 3);
		o = options(&f, "4c8b", "4c8b");
		o.fisher = CQK_FISHER_BOTH;
		o.clip = 0.9;
		for (sign = 0; sign < 2; sign++) {
			gradients_with_zeros(&f, sign ? -0.0f : 0.0f);
			im[sign] = calibrated(&f, &o, NULL);
		}
		ASSERT_EQ(im[0].size, im[1].size);
		ASSERT_MEMEQ(im[0].buf, im[1].buf, im[0].size);
		free(im[0].buf);
		free(im[1].buf);
		free(f.im.buf);
	}
}

TEST(the_best_of_several_starts)
{
	struct cqk_calib_error one[2], eight[2];
	struct cqk_calib_opts o;
	struct image im;
	struct fake f;

	fake_new(&f, 64, 800, 800, true, false);
	fake_noise(&f, 3);
	o = options(&f, "8c8b", "8c8b");
	im = calibrated(&f, &o, one);
	free(im.buf);
	o.starts = 8;
	im = calibrated(&f, &o, eight);
	free(im.buf);
	printf("# error %g from one start, %g from eight\n", one[0].k, eight[0].k);
	ASSERT(eight[0].k < one[0].k && eight[1].v < one[1].v);
	free(f.im.buf);
}

/* What callbacks were told: layers kept, bytes let go. */
struct kept {
	const struct fake *f;
	void *data[2];
	size_t size[2], released;
	uint32_t saves, learnt;
	int load_ret, save_ret;
};

static int keep(void *arg, uint32_t layer, const void *data, size_t size)
{
	struct kept *k = arg;

	k->saves++;
	if (k->save_ret)
		return k->save_ret;
	free(k->data[layer]);
	k->data[layer] = malloc(size);
	memcpy(k->data[layer], data, size);
	k->size[layer] = size;
	return 0;
}

static int give_back(void *arg, uint32_t layer, void *data, size_t size)
{
	struct kept *k = arg;

	if (k->load_ret)
		return k->load_ret;
	if (!k->data[layer])
		return 0;
	ASSERT_EQ(size, k->size[layer]);
	memcpy(data, k->data[layer], size);
	return 1;
}

static int count(void *arg, uint32_t done, uint32_t total)
{
	struct kept *k = arg;

	k->learnt = total;
	return 0;
}

static void released(void *arg, const void *data, size_t size)
{
	struct kept *k = arg;
	const uint8_t *at = data;

	ASSERT(at >= k->f->at[0] && at + size <= k->f->im.buf + k->f->im.size);
	__atomic_add_fetch(&k->released, size, __ATOMIC_RELAXED);
}

TEST(layers_that_were_kept)
{
	struct cqk_calib_error whole[2], again[2];
	struct kept k = { 0 };
	struct cqk_calib_opts o;
	struct image a, b;
	struct fake f;
	uint32_t i;

	fake_new(&f, 64, 500, 250, false, true);
	fill_hard(&f, true);
	k.f = &f;
	o = options(&f, "4c8b", "8c8b");
	codes[0][1] = (struct cq_code){ .type = CQ_CODE_F16 };
	o.fisher = CQK_FISHER_BOTH;
	o.centroids = CQK_CENTROIDS_I8;
	o.threads = 3;
	o.save = keep;
	o.load = give_back;
	o.progress = count;
	o.release = released;
	o.arg = &k;
	a = calibrated(&f, &o, whole);
	ASSERT_EQ(k.saves, 2);
	ASSERT_EQ(k.learnt, 2 * (16 + 8 + 8));
	/* all but the keys of layer 1 scanned by head; all when learnt */
	ASSERT_EQ(k.released, (6 + 8) * 2 * 500 * 64 * sizeof(uint16_t));
	for (i = 0; i < 3; i++) {	/* both kept, the second, none */
		b = calibrated(&f, &o, again);
		ASSERT_EQ(a.size, b.size);
		ASSERT_MEMEQ(a.buf, b.buf, a.size);
		ASSERT_MEMEQ(whole, again, sizeof(whole));
		ASSERT_EQ(k.saves, i == 0 ? 2 : i == 1 ? 3 : 5);
		free(b.buf);
		free(k.data[0]);
		k.data[0] = NULL;
		if (i == 1) {
			free(k.data[1]);
			k.data[1] = NULL;
		}
	}
	free(k.data[1]);
	free(a.buf);
	free(f.im.buf);
}

TEST(what_cannot_be_kept)
{
	struct kept k = { .save_ret = -ENOSPC };
	struct cqk_calib_opts o;
	struct cq_err err;
	struct fake f;
	size_t size;
	void *image;

	fake_new(&f, 64, 100, 100, false, false);
	fake_noise(&f, 1);
	o = options(&f, "4c8b", "8c8b");
	o.save = keep;
	o.load = give_back;
	o.arg = &k;
	ASSERT_EQ(cqk_calibrate(f.im.buf, f.im.size, &o, NULL, &image, &size, &err), -ENOSPC);
	ASSERT_STRHAS(err.text, "layer 0 is learnt and cannot be kept: No space");
	ASSERT_EQ(k.saves, 1);
	k.load_ret = -EIO;
	ASSERT_EQ(cqk_calibrate(f.im.buf, f.im.size, &o, NULL, &image, &size, &err), -EIO);
	ASSERT_STRHAS(err.text, "layer 0 was kept and cannot be read");
	free(f.im.buf);
}

static struct cq_code bought[2][2];
static double loss[4][CQK_MAX_CHOICES];
static const struct cq_code usual[3] = {
	{ CQ_CODE_CQ, 8, 8, 0 }, { CQ_CODE_CQ, 4, 8, 0 }, { CQ_CODE_CQ, 2, 8, 0 },
};

static int buy(const struct fake *f, double bits, const bool *fixed, struct cqk_budget *b,
	       struct cq_err *err)
{
	struct cqk_calib_opts o = options(f, "2c8b", "2c8b");

	*b = (struct cqk_budget){ .bits = bits, .fixed = fixed, .k = bought[0], .v = bought[1],
				  .loss = loss, .choices = usual, .n_choices = 3 };
	o.threads = bits > 2 ? 1 : 3;
	return cqk_calib_budget(f->im.buf, f->im.size, &o, b, err);
}

/* Gradients say that the values of layer 1 are worth the most, then its keys. */
TEST(a_budget_goes_where_it_saves)
{
	static const double worth[4] = { 0.01, 0.02, 0.5, 30 };
	static const bool fixed[4] = { false, false, false, true };
	struct cqk_budget b;
	struct cq_err err;
	struct fake f;
	uint32_t e, h, t, ch;
	double before;

	fake_new(&f, 64, 3000, 1000, false, true);
	fake_noise(&f, 9);
	for (e = 0; e < 4; e++)
		for (h = 0; h < 2; h++)
			for (t = 0; t < 3000; t++)
				for (ch = 0; ch < 64; ch++)
					put(&f, f.fisher_at[e], h, t, ch, worth[e]);
	ASSERT_OK(buy(&f, 2.2, NULL, &b, &err));
	for (e = 0; e < 4; e++)
		ASSERT(loss[e][0] > loss[e][1] && loss[e][1] > loss[e][2] && loss[e][2] > 0);
	ASSERT(loss[3][0] > 50 * loss[2][0] && loss[2][1] > 20 * loss[1][1]);
	ASSERT_EQ(bought[1][1].channels, 2);	/* 4 of 8.8 bits */
	ASSERT_EQ(bought[0][1].channels, 4);	/* 2: its next step costs 2 */
	ASSERT_EQ(bought[1][0].channels, 8);
	ASSERT_EQ(bought[0][0].channels, 8);
	ASSERT_NEAR(b.spent, 2, 1e-9);
	before = loss[2][1];
	ASSERT_OK(buy(&f, 1.75, NULL, &b, &err));	/* other threads */
	ASSERT(loss[2][1] == before);
	ASSERT_NEAR(b.spent, 1.75, 1e-9);
	ASSERT_OK(buy(&f, 4, NULL, &b, &err));
	for (e = 0; e < 4; e++)
		ASSERT_EQ(bought[e % 2][e / 2].channels, 2);
	bought[1][1] = (struct cq_code){ .type = CQ_CODE_F16 };
	ASSERT_EQ(buy(&f, 4.74, fixed, &b, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "at least 4.75");
	ASSERT_OK(buy(&f, 5, fixed, &b, &err));
	ASSERT_EQ(bought[1][1].type, CQ_CODE_F16);
	ASSERT_EQ(bought[0][1].channels, 4);
	ASSERT_EQ(buy(&f, 0.5, NULL, &b, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "at least 1 are needed");
	free(f.im.buf);
}

/* Without gradients by the relative error. */
TEST(a_budget_without_gradients)
{
	struct cqk_budget b;
	struct cq_err err;
	struct fake f;
	uint32_t h, t, ch;

	fake_new(&f, 64, 700, 700, false, false);
	fake_noise(&f, 9);
	for (h = 0; h < 2; h++)		/* nothing to code in the keys of layer 0 */
		for (t = 0; t < 700; t++)
			for (ch = 0; ch < 64; ch++)
				put(&f, f.at[0], h, t, ch, 1);
	ASSERT_OK(buy(&f, 2, NULL, &b, &err));
	ASSERT(loss[0][0] < 1e-9 && loss[1][0] > 0.1 && loss[1][0] < 1);
	ASSERT_EQ(bought[0][0].channels, 8);
	ASSERT(b.relative);
	free(f.im.buf);
}

/* What is chosen from is the caller's: as many centroids as tokens look good to these alone. */
TEST(a_budget_of_other_choices)
{
	static const struct cq_code wrong[][2] = {
		{ { CQ_CODE_CQ, 4, 8, 0 }, { CQ_CODE_CQ, 8, 8, 0 } },	/* fewer bits */
		{ { CQ_CODE_CQ, 4, 8, 0 }, { CQ_CODE_CQ, 4, 8, 0 } },
		{ { CQ_CODE_CQ, 4, 8, 0 }, { CQ_CODE_F16, 0, 0, 0 } },
		{ { CQ_CODE_CQ, 3, 8, 0 }, { CQ_CODE_CQ, 2, 8, 0 } },	/* not of 64 */
	};
	static const struct cq_code ten[3] = {
		{ CQ_CODE_CQ, 8, 8, 0 }, { CQ_CODE_CQ, 8, 10, 0 }, { CQ_CODE_CQ, 4, 8, 0 },
	};
	struct cqk_calib_opts o;
	struct cqk_budget b = { .bits = 4, .k = bought[0], .v = bought[1], .loss = loss };
	struct cq_err err;
	struct fake f;
	uint32_t i, e;

	fake_new(&f, 64, 1300, 1300, false, true);
	fake_noise(&f, 9);
	for (e = 0; e < 4; e++)
		for (i = 0; i < 2 * 1300 * 64; i++)
			put(&f, f.fisher_at[e], i / 64 / 1300, i / 64 % 1300, i % 64, 1);
	o = options(&f, "2c8b", "2c8b");
	for (i = 0; i < ARRAY_SIZE(wrong); i++) {
		b.choices = wrong[i];
		b.n_choices = 2;
		ASSERT_EQ(cqk_calib_budget(f.im.buf, f.im.size, &o, &b, &err), -EINVAL);
		ASSERT_STRHAS(err.text, "more and more bits");
	}
	for (i = 0; i < 2; i++) {
		b.n_choices = i ? CQK_MAX_CHOICES + 1 : 0;
		ASSERT_EQ(cqk_calib_budget(f.im.buf, f.im.size, &o, &b, &err), -EINVAL);
		ASSERT_STRHAS(err.text, "from 1 to 8");
	}
	b.choices = ten;
	b.n_choices = 3;
	b.bits = 1.5;
	ASSERT_OK(cqk_calib_budget(f.im.buf, f.im.size, &o, &b, &err));
	for (e = 0; e < 4; e++) {
		/* noise: 1040 tokens and 1024 centroids, of others a third is left at best */
		ASSERT(loss[e][1] > 0.3 * loss[e][0] && loss[e][2] < loss[e][0]);
		ASSERT(loss[e][1] > loss[e][2]);
	}
	ASSERT(b.spent <= 1.5 && b.spent >= 1.25);
	free(f.im.buf);
}

/* 8c8b is tried on half of these tokens, 8c10b on all: losses are those of one token. */
TEST(choices_on_unlike_numbers_of_tokens)
{
	static const struct cq_code choices[2] = {
		{ CQ_CODE_CQ, 8, 8, 0 }, { CQ_CODE_CQ, 8, 10, 0 },
	};
	struct cqk_calib_opts o;
	struct cqk_budget b = { .bits = 1.1, .k = bought[0], .v = bought[1], .loss = loss,
				.choices = choices, .n_choices = 2 };
	struct cq_err err;
	struct fake f;
	uint32_t i, e;

	fake_new(&f, 8, 21000, 1000, false, true);
	fake_noise(&f, 9);
	for (e = 0; e < 4; e++)
		for (i = 0; i < 2 * 21000 * 8; i++)
			put(&f, f.fisher_at[e], i / 8 / 21000, i / 8 % 21000, i % 8, 1);
	o = options(&f, "8c8b", "8c8b");
	ASSERT_OK(cqk_calib_budget(f.im.buf, f.im.size, &o, &b, &err));
	for (e = 0; e < 4; e++)
		ASSERT(loss[e][1] < loss[e][0] && loss[e][1] > 0.5 * loss[e][0]);
	free(f.im.buf);
}

/* Gradients that are all 0 are none; those of one channel are enough to go by. */
TEST(a_budget_with_gradients_of_0)
{
	double without[4][CQK_MAX_CHOICES];
	struct cqk_budget b;
	struct cq_err err;
	struct fake f;
	uint32_t fisher, t;

	for (fisher = 0; fisher < 2; fisher++) {
		fake_new(&f, 64, 700, 700, false, fisher);
		fake_noise(&f, 9);
		ASSERT_OK(buy(&f, 2, NULL, &b, &err));
		ASSERT(b.relative && loss[3][0] > 0.1 && loss[3][0] < 1);
		ASSERT_NEAR(b.spent, 2, 1e-9);
		if (!fisher) {
			memcpy(without, loss, sizeof(loss));
			free(f.im.buf);
		}
	}
	ASSERT_MEMEQ(without, loss, sizeof(loss));
	for (t = 0; t < 700; t++)
		put(&f, f.fisher_at[3], 1, t, 7, 1);
	ASSERT_OK(buy(&f, 2, NULL, &b, &err));
	ASSERT(!b.relative && loss[2][0] == 0 && loss[3][0] > 0);
	ASSERT_EQ(bought[1][1].channels, 2);
	free(f.im.buf);
}

TEST(bad_options)
{
	struct cqk_calib_opts o;
	struct cqk_budget b;
	struct cq_err err;
	struct fake f;
	size_t size;
	void *image;
	uint32_t i;

	fake_new(&f, 64, 100, 100, false, false);
	for (i = 0; i < 7; i++) {
		static const char *const text[] = { "starts", "starts", "gradients 4",
						    "quantile", "quantile", "quantile",
						    "no squared gradients" };

		o = options(&f, "4c8b", "4c8b");
		o.starts = i == 0 ? 0 : i == 1 ? CQK_MAX_STARTS + 1 : 1;
		o.fisher = i == 2 ? 4 : i == 6 ? CQK_FISHER_TOKEN : 0;
		o.clip = i == 3 ? 0 : i == 4 ? 1.01 : i == 5 ? NAN : 1;
		ASSERT_EQ(cqk_calibrate(f.im.buf, f.im.size, &o, NULL, &image, &size, &err),
			  -EINVAL);
		ASSERT_STRHAS(err.text, text[i]);
	}
	put(&f, f.at[3], 1, 50, 5, NAN);
	ASSERT_EQ(buy(&f, 2, NULL, &b, &err), -EINVAL);
	ASSERT_STRHAS(err.text, "layer 1, values, head 1, token 50");
	free(f.im.buf);
}
