// SPDX-License-Identifier: MIT
/*
 * RoPE in metadata: which channels turn together, and scaling. One table says
 * which numbers a kind of scaling has and what they may be; parser, writer,
 * hash and cqctl go by it.
 */
#include <errno.h>
#include <math.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/meta.h"

#define BIT(type) (1u << CQK_SCALING_##type)
#define AT(field) offsetof(struct cqk_rope_scaling, field)

static const struct cqk_rope_number numbers[] = {
	{ "rope_factor", AT(factor), BIT(LINEAR) | BIT(LLAMA3) | BIT(YARN), false, 1, 1e6 },
	{ "rope_original_max_position", AT(original_max_position), BIT(LLAMA3) | BIT(YARN), true,
	  1, CQK_MAX_POSITION },
	{ "rope_low_freq_factor", AT(low_freq_factor), BIT(LLAMA3), false, 1e-6, 1e6 },
	{ "rope_high_freq_factor", AT(high_freq_factor), BIT(LLAMA3), false, 1e-6, 1e6 },
	{ "rope_beta_fast", AT(beta_fast), BIT(YARN), false, 1e-6, 1e6 },
	{ "rope_beta_slow", AT(beta_slow), BIT(YARN), false, 1e-6, 1e6 },
	{ "rope_attention_factor", AT(attention_factor), BIT(YARN), false, 0.125, 8 },
	{ "rope_truncate", AT(truncate), BIT(YARN), true, 0, 1 },
};

static const char *const scaling_names[] = {
	[CQK_SCALING_NONE] = "none",
	[CQK_SCALING_LINEAR] = "linear",
	[CQK_SCALING_LLAMA3] = "llama3",
	[CQK_SCALING_YARN] = "yarn",
};

/* In the order of enum cqk_pairs, and what a model without RoPE has. */
static const char *const pairs_names[] = { "half", "interleaved", "none" };

/**
 * cqk_rope_number() - the numbers that kinds of RoPE scaling have
 * @i: index
 *
 * Return: one of them, in the order of files and of the hash; NULL past the end.
 */
const struct cqk_rope_number *cqk_rope_number(uint32_t i)
{
	return i < ARRAY_SIZE(numbers) ? &numbers[i] : NULL;
}

/**
 * cqk_rope_value() - place of a number
 * @s: scaling
 * @n: number
 *
 * Return: its place in @s, whether the kind of @s has it or not.
 */
double *cqk_rope_value(struct cqk_rope_scaling *s, const struct cqk_rope_number *n)
{
	return (double *)(void *)((uint8_t *)s + n->at);
}

/**
 * cqk_rope_has() - does a kind of scaling have a number?
 * @s: scaling, of any type, known or not
 * @n: number
 *
 * Return: true if @s has it.
 */
bool cqk_rope_has(const struct cqk_rope_scaling *s, const struct cqk_rope_number *n)
{
	return s->type <= CQK_SCALING_YARN && n->types >> s->type & 1;
}

/**
 * cqk_scaling_name() - word for enum cqk_scaling
 * @type: value
 *
 * Return: static text.
 */
const char *cqk_scaling_name(uint32_t type)
{
	return type < ARRAY_SIZE(scaling_names) ? scaling_names[type] : "?";
}

/**
 * cqk_pairs_name() - word for which channels turn together
 * @g: geometry
 *
 * Return: static text: "half", "interleaved" or "none".
 */
const char *cqk_pairs_name(const struct cqk_geom *g)
{
	if (g->keys == CQK_KEYS_NONE)
		return "none";
	return g->rope_pairs <= CQK_PAIRS_INTERLEAVED ? pairs_names[g->rope_pairs] : "?";
}

/**
 * cqk_scaling_parse() - word to enum cqk_scaling
 * @name: word
 * @type: set on success
 *
 * Return: 0, or -EINVAL.
 */
int cqk_scaling_parse(const char *name, uint32_t *type)
{
	uint32_t i;

	for (i = 0; i < ARRAY_SIZE(scaling_names); i++) {
		if (!strcmp(name, scaling_names[i])) {
			*type = i;
			return 0;
		}
	}
	return -EINVAL;
}

static bool known_key(const char *key)
{
	static const char *const other[] = { "rope", "rope_dim", "rope_theta", "rope_scaling" };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(other); i++)
		if (!strcmp(key, other[i]))
			return true;
	for (i = 0; i < ARRAY_SIZE(numbers); i++)
		if (!strcmp(key, numbers[i].key))
			return true;
	return false;
}

/* A rotation that this build does not know would give other numbers silently. */
static int check_keys(const struct st_file *f, struct cq_err *err)
{
	const char *key = NULL;
	char buf[48];

	while ((key = st_meta_next(f, key)))
		if (!strncmp(key, "rope", 4) && !known_key(key))
			return cq_err_set(err, -EINVAL, "unknown metadata %s",
					  cqk_printable(key, buf));
	return 0;
}

static int read_numbers(const struct st_file *f, struct cqk_rope_scaling *s,
			struct cq_err *err)
{
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(numbers); i++) {
		if (cqk_rope_has(s, &numbers[i])) {
			ret = cqk_meta_real(f, numbers[i].key, cqk_rope_value(s, &numbers[i]),
					    err);
			if (ret)
				return ret;
		} else if (st_meta(f, numbers[i].key)) {
			return cq_err_set(err, -EINVAL, "metadata %s does not go with rope_scaling "
					  "\"%s\"", numbers[i].key, cqk_scaling_name(s->type));
		}
	}
	return 0;
}

int cqk_meta_rope(const struct st_file *f, struct cqk_geom *g, struct cq_err *err)
{
	uint32_t pairs;
	int ret;

	if ((ret = check_keys(f, err)) ||
	    (ret = cqk_meta_word(f, "rope", pairs_names, ARRAY_SIZE(pairs_names), &pairs,
				 err)) ||
	    (ret = cqk_meta_u32(f, "rope_dim", 0, CQ_MAX_HEAD_DIM, &g->rope_dim, err)) ||
	    (ret = cqk_meta_real(f, "rope_theta", &g->rope_theta, err)))
		return ret;
	if ((pairs > CQK_PAIRS_INTERLEAVED) != (g->keys == CQK_KEYS_NONE))
		return cq_err_set(err, -EINVAL, "metadata rope \"%s\" does not go with "
				  "keys \"%s\"", pairs_names[pairs], cqk_keys_name(g->keys));
	g->rope_pairs = pairs > CQK_PAIRS_INTERLEAVED ? CQK_PAIRS_HALF : pairs;
	if (st_meta(f, "rope_scaling")) {
		ret = cqk_meta_word(f, "rope_scaling", scaling_names, ARRAY_SIZE(scaling_names),
				    &g->rope_scaling.type, err);
		if (ret)
			return ret;
	}
	return read_numbers(f, &g->rope_scaling, err);
}

static int check_number(const struct cqk_rope_scaling *s, const struct cqk_rope_number *n,
			struct cq_err *err)
{
	struct cqk_rope_scaling copy = *s;
	double x = *cqk_rope_value(&copy, n);

	if (!cqk_rope_has(s, n)) {
		if (x == 0)
			return 0;
		return cq_err_set(err, -EINVAL, "%s %g does not go with rope_scaling \"%s\"",
				  n->key, x, cqk_scaling_name(s->type));
	}
	if (x >= n->min && x <= n->max && (!n->whole || x == floor(x)))
		return 0;
	return cq_err_set(err, -EINVAL, "%s %g is not %s from %g to %g", n->key, x,
			  n->whole ? "a whole number" : "a number", n->min, n->max);
}

static int check_scaling(const struct cqk_geom *g, struct cq_err *err)
{
	const struct cqk_rope_scaling *s = &g->rope_scaling;
	size_t i;
	int ret;

	if (s->type > CQK_SCALING_YARN)
		return cq_err_set(err, -EINVAL, "rope_scaling: unknown kind %u", s->type);
	for (i = 0; i < ARRAY_SIZE(numbers); i++) {
		ret = check_number(s, &numbers[i], err);
		if (ret)
			return ret;
	}
	if (s->type == CQK_SCALING_LLAMA3 && s->low_freq_factor >= s->high_freq_factor)
		return cq_err_set(err, -EINVAL, "rope_low_freq_factor %g is not below "
				  "rope_high_freq_factor %g", s->low_freq_factor,
				  s->high_freq_factor);
	if (s->type == CQK_SCALING_YARN && s->beta_slow >= s->beta_fast)
		return cq_err_set(err, -EINVAL, "rope_beta_slow %g is not below rope_beta_fast "
				  "%g", s->beta_slow, s->beta_fast);
	if (s->type == CQK_SCALING_YARN && !(g->rope_theta > 1))
		return cq_err_set(err, -EINVAL, "rope_theta %g: yarn needs one above 1",
				  g->rope_theta);
	return 0;
}

/**
 * cqk_rope_check() - are keys and RoPE of a shape such that cq can serve them?
 * @g:   shape
 * @err: text of the failure, may be NULL
 *
 * Return: 0 or -EINVAL.
 */
int cqk_rope_check(const struct cqk_geom *g, struct cq_err *err)
{
	if (g->keys > CQK_KEYS_NONE)
		return cq_err_set(err, -EINVAL, "keys: unknown kind %u", g->keys);
	if (g->rope_pairs > CQK_PAIRS_INTERLEAVED)
		return cq_err_set(err, -EINVAL, "rope: unknown kind of pairs %u", g->rope_pairs);
	if (g->keys == CQK_KEYS_NONE) {
		if (g->rope_dim || g->rope_theta != 0)
			return cq_err_set(err, -EINVAL, "rope_dim and rope_theta must "
					  "be 0 for keys without RoPE");
		if (g->rope_pairs || g->rope_scaling.type)
			return cq_err_set(err, -EINVAL, "rope_scaling and interleaved pairs do "
					  "not go with keys without RoPE");
		return check_scaling(g, err);
	}
	if (!g->rope_dim || g->rope_dim % 2 || g->rope_dim > g->head_dim)
		return cq_err_set(err, -EINVAL, "rope_dim %u: an even number from 2 to "
				  "head_dim (%u) is wanted", g->rope_dim, g->head_dim);
	if (!(g->rope_theta >= 1 && g->rope_theta <= 1e12))
		return cq_err_set(err, -EINVAL, "rope_theta %g is not from 1 to 1e12",
				  g->rope_theta);
	return check_scaling(g, err);
}

/**
 * cqk_rope_text() - RoPE of a model in a line for people
 * @g:    shape, checked
 * @buf:  text
 * @size: its bytes; the text is cut where they end
 *
 * Return: @buf.
 */
const char *cqk_rope_text(const struct cqk_geom *g, char *buf, size_t size)
{
	struct cqk_rope_scaling s = g->rope_scaling;
	size_t at, i;

	if (g->keys == CQK_KEYS_NONE) {
		snprintf(buf, size, "none");
		return buf;
	}
	at = (size_t)snprintf(buf, size, "%s, dim %u, theta %g", cqk_pairs_name(g), g->rope_dim,
			      g->rope_theta);
	if (s.type && at < size)
		at += (size_t)snprintf(buf + at, size - at, ", %s", cqk_scaling_name(s.type));
	for (i = 0; i < ARRAY_SIZE(numbers) && at < size; i++)
		if (cqk_rope_has(&s, &numbers[i]))
			at += (size_t)snprintf(buf + at, size - at, " %s %.10g",
					       numbers[i].key + strlen("rope_"),
					       *cqk_rope_value(&s, &numbers[i]));
	return buf;
}
