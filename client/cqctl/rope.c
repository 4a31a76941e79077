// SPDX-License-Identifier: MIT
/*
 * RoPE on the command line of calibrate: scaling as models' config.json has it
 * ("rope_scaling"), or in words. Where YaRN's authors have a default, it counts.
 */
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "client/cqctl/rope.h"

#define PREFIX "rope_"

/* "factor" -> what kernels/meta.h has as rope_factor; NULL: no such number. */
static const struct cqk_rope_number *find_number(const char *name)
{
	const struct cqk_rope_number *n;
	uint32_t i;

	if (!strcmp(name, "original_max_position_embeddings"))
		name = "original_max_position";
	for (i = 0; (n = cqk_rope_number(i)); i++)
		if (!strcmp(name, n->key + strlen(PREFIX)))
			return n;
	return NULL;
}

static const char *kind_of(json_t *obj)
{
	const char *kind = json_string_value(json_object_get(obj, "rope_type"));

	return kind ? kind : json_string_value(json_object_get(obj, "type"));
}

static int take_kind(json_t *obj, struct cqk_rope_scaling *s, struct cq_err *err)
{
	const char *kind = kind_of(obj);
	char buf[48];

	if (!kind)
		return cq_err_set(err, -EINVAL, "no rope_type: linear, llama3, yarn or none");
	if (!strcmp(kind, "default") || !cqk_scaling_parse(kind, &s->type))
		return 0;
	return cq_err_set(err, -EOPNOTSUPP, "rope_type \"%s\" is not supported: linear, llama3, "
			  "yarn and none are", cqk_printable(kind, buf));
}

static int take_number(const char *name, const json_t *x, struct cqk_rope_scaling *s,
		       uint32_t *given, struct cq_err *err)
{
	const struct cqk_rope_number *n = find_number(name);
	char buf[48];

	if (!n || !cqk_rope_has(s, n))
		return cq_err_set(err, -EINVAL, "%s is nothing that rope_type %s has",
				  cqk_printable(name, buf), cqk_scaling_name(s->type));
	if (!json_is_number(x) && !json_is_boolean(x))
		return cq_err_set(err, -EINVAL, "%s is not a number", cqk_printable(name, buf));
	*cqk_rope_value(s, n) = json_is_boolean(x) ? json_is_true(x) : json_number_value(x);
	*given |= 1u << (n - cqk_rope_number(0));
	return 0;
}

/* Numbers that are not @given: a default, if YaRN has one, or a failure. */
static int take_defaults(struct cqk_rope_scaling *s, uint32_t given, struct cq_err *err)
{
	const struct cqk_rope_scaling yarn = {
		.beta_fast = 32, .beta_slow = 1, .truncate = 1,
		/* arXiv 2309.00071, section 3.4 */
		.attention_factor = s->factor > 1 ? 0.1 * log(s->factor) + 1 : 1,
	};
	struct cqk_rope_scaling copy = yarn;
	const struct cqk_rope_number *n;
	uint32_t i;

	for (i = 0; (n = cqk_rope_number(i)); i++) {
		if (given >> i & 1 || !cqk_rope_has(s, n))
			continue;
		*cqk_rope_value(s, n) = s->type == CQK_SCALING_YARN ? *cqk_rope_value(&copy, n) : 0;
		if (!(*cqk_rope_value(s, n) > 0))
			return cq_err_set(err, -EINVAL, "rope_type %s needs %s",
					  cqk_scaling_name(s->type), n->key + strlen(PREFIX));
	}
	return 0;
}

static int take_object(json_t *obj, struct cqk_rope_scaling *out, struct cq_err *err)
{
	struct cqk_rope_scaling s = { 0 };
	uint32_t given = 0;
	const char *name;
	json_t *x;
	int ret = take_kind(obj, &s, err);

	if (ret)
		return ret;
	json_object_foreach(obj, name, x) {
		if (!strcmp(name, "rope_type") || !strcmp(name, "type") || json_is_null(x))
			continue;
		ret = take_number(name, x, &s, &given, err);
		if (ret)
			return ret;
	}
	ret = take_defaults(&s, given, err);
	if (!ret)
		*out = s;
	return ret;
}

/* "factor=8" into @obj. */
static int put_word(json_t *obj, char *word, locale_t c_locale, struct cq_err *err)
{
	char *value = strchr(word, '='), *end, buf[48];
	double x;

	if (!value || value == word)
		return cq_err_set(err, -EINVAL, "\"%s\" is not like factor=8",
				  cqk_printable(word, buf));
	*value++ = '\0';
	x = strtod_l(value, &end, c_locale);
	if (!*value || *end || !isfinite(x))
		return cq_err_set(err, -EINVAL, "%s: \"%s\" is not a number", word,
				  cqk_printable(value, buf));
	if (json_object_get(obj, word))
		return cq_err_set(err, -EINVAL, "%s is given twice", word);
	if (json_object_set_new(obj, word, json_real(x)))
		return cq_err_set(err, -ENOMEM, "out of memory");
	return 0;
}

/* "llama3,factor=8,..." as the object that config.json has. */
static int words_to_object(char *text, json_t *obj, struct cq_err *err)
{
	locale_t c_locale = newlocale(LC_ALL_MASK, "C", NULL);
	char *save = NULL, *word = strtok_r(text, ",", &save);
	int ret = 0;

	if (!c_locale)
		return cq_err_set(err, -ENOMEM, "out of memory");
	if (word && json_object_set_new(obj, "rope_type", json_string(word)))
		ret = cq_err_set(err, -EINVAL, "the kind is not UTF-8");
	while (!ret && (word = strtok_r(NULL, ",", &save)))
		ret = put_word(obj, word, c_locale, err);
	freelocale(c_locale);
	return ret;
}

static json_t *object_of(const char *text, struct cq_err *err)
{
	json_t *obj;
	json_error_t e;
	char *copy;
	int ret;

	if (text[0] == '{') {
		obj = json_loads(text, JSON_REJECT_DUPLICATES, &e);
		if (!obj)
			cq_err_set(err, -EINVAL, "JSON: %.80s", e.text);
		return obj;
	}
	obj = json_object();
	copy = strdup(text);
	ret = obj && copy ? words_to_object(copy, obj, err) :
	      cq_err_set(err, -ENOMEM, "out of memory");
	free(copy);
	if (!ret)
		return obj;
	json_decref(obj);
	return NULL;
}

int ctl_rope_scaling(const char *text, struct cqk_rope_scaling *out, struct cq_err *err)
{
	json_t *obj = object_of(text, err);
	int ret;

	if (!obj)
		return -EINVAL;
	ret = take_object(obj, out, err);
	json_decref(obj);
	return ret;
}

int ctl_rope_pairs(const char *text, uint32_t *out)
{
	if (!strcmp(text, "half"))
		*out = CQK_PAIRS_HALF;
	else if (!strcmp(text, "interleaved"))
		*out = CQK_PAIRS_INTERLEAVED;
	else
		return -EINVAL;
	return 0;
}
