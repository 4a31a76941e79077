// SPDX-License-Identifier: MIT
/*
 * Metadata of model files and activation dumps: strings in, checked numbers
 * out. Documentation/formats.md is the list of keys.
 */
#include <ctype.h>
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/meta.h"

static const char *const keys_names[] = {
	[CQK_KEYS_PRE_ROPE] = "pre-rope",
	[CQK_KEYS_ROTATED] = "rotated",
	[CQK_KEYS_NONE] = "none",
};

static const char *const centroids_names[] = {
	[CQK_CENTROIDS_F16] = "f16",
	[CQK_CENTROIDS_I8] = "i8",
};

/**
 * cqk_keys_name() - word for enum cqk_keys
 * @keys: value
 *
 * Return: static text.
 */
const char *cqk_keys_name(uint32_t keys)
{
	return keys < ARRAY_SIZE(keys_names) ? keys_names[keys] : "?";
}

/**
 * cqk_centroids_name() - word for enum cqk_centroids
 * @centroids: value
 *
 * Return: static text.
 */
const char *cqk_centroids_name(uint32_t centroids)
{
	return centroids < ARRAY_SIZE(centroids_names) ? centroids_names[centroids] : "?";
}

/**
 * cqk_printable() - text from a file, fit for a message
 * @s:   text
 * @buf: receives at most 47 bytes of it, control and other bytes as '?'
 *
 * Return: @buf.
 */
const char *cqk_printable(const char *s, char buf[48])
{
	size_t i;

	for (i = 0; i < 47 && s[i]; i++)
		buf[i] = s[i] >= 0x20 && s[i] < 0x7f ? s[i] : '?';
	buf[i] = '\0';
	return buf;
}

/**
 * cqk_hex() - 32 bytes as hex digits
 * @hash: bytes
 * @buf:  receives 64 digits and a terminator
 *
 * Return: @buf.
 */
const char *cqk_hex(const uint8_t hash[32], char buf[65])
{
	static const char digits[] = "0123456789abcdef";
	int i;

	for (i = 0; i < 32; i++) {
		buf[2 * i] = digits[hash[i] >> 4];
		buf[2 * i + 1] = digits[hash[i] & 15];
	}
	buf[64] = '\0';
	return buf;
}

static int meta_get(const struct st_file *f, const char *key, const char **out,
		    struct cq_err *err)
{
	*out = st_meta(f, key);
	if (!*out)
		return cq_err_set(err, -EINVAL, "metadata %s is missing", key);
	return 0;
}

static int meta_bad(const char *key, const char *s, const char *want,
		    struct cq_err *err)
{
	char buf[48];

	return cq_err_set(err, -EINVAL, "metadata %s: \"%s\" is not %s", key,
			  cqk_printable(s, buf), want);
}

int cqk_meta_u32(const struct st_file *f, const char *key, uint32_t min, uint32_t max,
		 uint32_t *out, struct cq_err *err)
{
	const char *s;
	char want[48];
	uint64_t x = 0;
	size_t i;
	int ret = meta_get(f, key, &s, err);

	if (ret)
		return ret;
	for (i = 0; i < 10 && isdigit((unsigned char)s[i]); i++)
		x = x * 10 + (uint64_t)(s[i] - '0');
	if (!i || s[i] || (s[0] == '0' && i > 1) || x < min || x > max) {
		snprintf(want, sizeof(want), "a number from %u to %u", min, max);
		return meta_bad(key, s, want, err);
	}
	*out = (uint32_t)x;
	return 0;
}

int cqk_meta_word(const struct st_file *f, const char *key, const char *const *names,
		  uint32_t n, uint32_t *out, struct cq_err *err)
{
	const char *s;
	uint32_t i;
	int ret = meta_get(f, key, &s, err);

	if (ret)
		return ret;
	for (i = 0; i < n; i++) {
		if (!strcmp(s, names[i])) {
			*out = i;
			return 0;
		}
	}
	return meta_bad(key, s, "a value this build knows", err);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

int cqk_meta_hash(const struct st_file *f, const char *key, uint8_t out[32],
		  struct cq_err *err)
{
	uint8_t hash[32] = { 0 };
	const char *s;
	int i, d, ret = meta_get(f, key, &s, err);

	if (ret)
		return ret;
	for (i = 0; i < 64; i++) {
		d = hex_digit(s[i]);
		if (d < 0)
			break;
		hash[i / 2] = (uint8_t)(hash[i / 2] << 4 | d);
	}
	if (i < 64 || s[64])
		return meta_bad(key, s, "64 lower-case hex digits", err);
	memcpy(out, hash, 32);
	return 0;
}

int cqk_meta_format(const struct st_file *f, const char *want, const char *what,
		    struct cq_err *err)
{
	const char *s = st_meta(f, "format");
	char buf[48];

	if (s && !strcmp(s, want))
		return 0;
	return cq_err_set(err, -EPROTO, "not %s: metadata format is %s%s%s, %s is "
			  "wanted", what, s ? "\"" : "", s ? cqk_printable(s, buf) :
			  "missing", s ? "\"" : "", want);
}

/* strtod() of the C locale, whatever the program has set. */
int cqk_meta_real(const struct st_file *f, const char *key, double *out, struct cq_err *err)
{
	locale_t c_locale;
	const char *s;
	char *end;
	int ret = meta_get(f, key, &s, err);

	if (ret)
		return ret;
	c_locale = newlocale(LC_ALL_MASK, "C", NULL);
	if (!c_locale)
		return cq_err_set(err, -ENOMEM, "out of memory");
	*out = strtod_l(s, &end, c_locale);
	freelocale(c_locale);
	if (!isdigit((unsigned char)s[0]) || *end)
		return meta_bad(key, s, "a number", err);
	return 0;
}

int cqk_meta_geom(const struct st_file *f, struct cqk_geom *out, struct cq_err *err)
{
	struct cqk_geom g = { 0 };
	int ret;

	if ((ret = cqk_meta_u32(f, "n_layers", 1, CQ_MAX_LAYERS, &g.n_layers, err)) ||
	    (ret = cqk_meta_u32(f, "n_heads", 1, CQ_MAX_HEADS, &g.n_heads, err)) ||
	    (ret = cqk_meta_u32(f, "n_kv_heads", 1, CQ_MAX_KV_HEADS, &g.n_kv_heads,
				err)) ||
	    (ret = cqk_meta_u32(f, "head_dim", 2, CQ_MAX_HEAD_DIM, &g.head_dim, err)) ||
	    (ret = cqk_meta_u32(f, "max_position", 1, CQK_MAX_POSITION,
				&g.max_position, err)) ||
	    (ret = cqk_meta_word(f, "keys", keys_names, ARRAY_SIZE(keys_names), &g.keys,
				 err)) ||
	    (ret = cqk_meta_rope(f, &g, err)))
		return ret;
	ret = cqk_geom_check(&g, err);
	if (!ret)
		*out = g;
	return ret;
}

/**
 * cqk_geom_check() - is a shape one that cq can serve?
 * @g:   shape
 * @err: text of the failure, may be NULL
 *
 * Return: 0 or -EINVAL.
 */
int cqk_geom_check(const struct cqk_geom *g, struct cq_err *err)
{
	if (!g->n_layers || g->n_layers > CQ_MAX_LAYERS)
		return cq_err_set(err, -EINVAL, "n_layers %u is not from 1 to %d",
				  g->n_layers, CQ_MAX_LAYERS);
	if (!g->n_kv_heads || g->n_kv_heads > CQ_MAX_KV_HEADS)
		return cq_err_set(err, -EINVAL, "n_kv_heads %u is not from 1 to %d",
				  g->n_kv_heads, CQ_MAX_KV_HEADS);
	if (!g->n_heads || g->n_heads > CQ_MAX_HEADS || g->n_heads % g->n_kv_heads)
		return cq_err_set(err, -EINVAL, "n_heads %u is not a multiple of "
				  "n_kv_heads (%u) up to %d", g->n_heads, g->n_kv_heads,
				  CQ_MAX_HEADS);
	if (!g->head_dim || g->head_dim % 2 || g->head_dim > CQ_MAX_HEAD_DIM)
		return cq_err_set(err, -EINVAL, "head_dim %u: an even number up to %d is "
				  "wanted", g->head_dim, CQ_MAX_HEAD_DIM);
	if (!g->max_position || g->max_position > CQK_MAX_POSITION)
		return cq_err_set(err, -EINVAL, "max_position %u is not from 1 to %u",
				  g->max_position, CQK_MAX_POSITION);
	return cqk_rope_check(g, err);
}
