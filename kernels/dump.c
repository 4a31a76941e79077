// SPDX-License-Identifier: MIT
/*
 * Activation dumps: metadata, shapes, and the values of one channel group at a
 * time. Documentation/formats.md describes the file.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "kernels/dump.h"
#include "kernels/f16.h"
#include "kernels/meta.h"

#define MAX_TOKENS (1u << 30)

static void tensor_name(char *buf, size_t n, uint32_t i, bool fisher)
{
	snprintf(buf, n, "layers.%u.%c%s", i / 2, i % 2 ? 'v' : 'k',
		 fisher ? ".fisher" : "");
}

static int check_tensor(const struct cqk_dump *d, const struct st_tensor *t,
			struct cq_err *err)
{
	const struct cqk_geom *g = &d->info.geom;

	if (t->dtype != ST_F16 && t->dtype != ST_F32)
		return cq_err_set(err, -EINVAL, "tensor %s: neither F16 nor F32", t->name);
	if (t->n_dims != 3 || t->shape[0] != g->n_kv_heads ||
	    t->shape[2] != g->head_dim)
		return cq_err_set(err, -EINVAL, "tensor %s: its shape is not [%u][tokens]"
				  "[%u], as the metadata says", t->name, g->n_kv_heads,
				  g->head_dim);
	if (t->shape[1] < 1 || t->shape[1] > MAX_TOKENS)
		return cq_err_set(err, -EINVAL, "tensor %s: %llu tokens, 1 to %u are "
				  "wanted", t->name, (unsigned long long)t->shape[1],
				  MAX_TOKENS);
	if (d->info.tokens && t->shape[1] != d->info.tokens)
		return cq_err_set(err, -EINVAL, "tensor %s: %llu tokens, layers.0.k has "
				  "%llu", t->name, (unsigned long long)t->shape[1],
				  (unsigned long long)d->info.tokens);
	return 0;
}

static int take_tensor(struct cqk_dump *d, uint32_t i, bool fisher, struct cq_err *err)
{
	const struct st_tensor *t;
	char name[40];
	int ret;

	tensor_name(name, sizeof(name), i, fisher);
	t = st_find(d->file, name);
	if (!t && fisher && !i)
		return 0;
	if (!t)
		return cq_err_set(err, -EINVAL, "tensor %s is missing", name);
	ret = check_tensor(d, t, err);
	if (ret)
		return ret;
	d->info.tokens = t->shape[1];
	if (fisher) {
		d->fisher[i] = t;
		d->info.fisher = true;
	} else {
		d->x[i] = t;
	}
	return 0;
}

static int read_meta(struct cqk_dump *d, struct cq_err *err)
{
	const char *source;
	size_t i;
	int ret;

	if ((ret = cqk_meta_format(d->file, CQK_DUMP_FORMAT, "an activation dump", err)) ||
	    (ret = cqk_meta_geom(d->file, &d->info.geom, err)) ||
	    (ret = cqk_meta_u32(d->file, "sequence_tokens", 1, MAX_TOKENS,
				&d->info.sequence_tokens, err)) ||
	    (ret = cqk_meta_hash(d->file, "fingerprint", d->info.fingerprint, err)))
		return ret;
	source = st_meta(d->file, "source");
	for (i = 0; source && source[i] && i + 1 < sizeof(d->info.source); i++)
		d->info.source[i] = source[i] >= 0x20 && source[i] < 0x7f ? source[i] :
				    '?';
	return 0;
}

static int take_tensors(struct cqk_dump *d, struct cq_err *err)
{
	uint32_t i, n = 2 * d->info.geom.n_layers;
	int ret = 0;

	d->x = calloc(n, sizeof(*d->x));
	d->fisher = calloc(n, sizeof(*d->fisher));
	if (!d->x || !d->fisher)
		return cq_err_set(err, -ENOMEM, "no memory for a dump's tensors");
	for (i = 0; !ret && i < n; i++)
		ret = take_tensor(d, i, false, err);
	for (i = 0; !ret && i < n && (!i || d->info.fisher); i++)
		ret = take_tensor(d, i, true, err);
	return ret;
}

int cqk_dump_open(const void *image, size_t size, struct cqk_dump *out,
		  struct cq_err *err)
{
	struct cqk_dump d = { 0 };
	int ret;

	ret = st_open(image, size, &d.file, err);
	if (ret)
		return ret;
	ret = read_meta(&d, err);
	if (!ret)
		ret = take_tensors(&d, err);
	if (ret) {
		cqk_dump_close(&d);
		return ret;
	}
	*out = d;
	return 0;
}

void cqk_dump_close(struct cqk_dump *d)
{
	free(d->x);
	free(d->fisher);
	st_close(d->file);
	*d = (struct cqk_dump){ 0 };
}

int cqk_dump_info(const void *dump, size_t size, struct cqk_dump_info *out,
		  struct cq_err *err)
{
	struct cqk_dump d;
	int ret = cqk_dump_open(dump, size, &d, err);

	if (ret)
		return ret;
	*out = d.info;
	cqk_dump_close(&d);
	return 0;
}

int cqk_dump_geom(const void *dump, size_t size, struct cqk_geom *out,
		  struct cq_err *err)
{
	struct cqk_dump_info info;
	int ret = cqk_dump_info(dump, size, &info, err);

	if (!ret)
		*out = info.geom;
	return ret;
}

static float value(const struct st_tensor *t, uint64_t at)
{
	if (t->dtype == ST_F32)
		return ((const float *)t->data)[at];
	return cqk_f16_to_f32(((const uint16_t *)t->data)[at]);
}

static uint64_t place(const struct st_tensor *t, uint32_t head, uint64_t token)
{
	return (head * t->shape[1] + token) * t->shape[2];
}

/* Where the stored channels [@first, @first + @c) of entry @i are in a tensor's rows. */
static void channels_of(const struct cqk_dump *d, uint32_t i, uint32_t first, uint32_t c,
			uint32_t *at)
{
	uint32_t j;

	for (j = 0; j < c; j++)
		at[j] = i % 2 ? first + j : cqk_given_channel(&d->info.geom, first + j);
}

/* Index of the first bad value of @n, or @n. The sign bit alone is no error. */
static uint64_t first_bad(const struct st_tensor *t, uint64_t at, uint64_t n, bool fisher)
{
	const uint16_t *h = (const uint16_t *)t->data + at;
	const float *f = (const float *)t->data + at;
	float limit = fisher ? __FLT_MAX__ : CQK_F16_MAX;
	uint64_t i;

	for (i = 0; t->dtype == ST_F16 && i < n; i++)
		if (!cqk_f16_finite(h[i]) || (fisher && h[i] > 0x8000))
			return i;
	for (i = 0; t->dtype == ST_F32 && i < n; i++)
		if (!(f[i] <= limit && f[i] >= (fisher ? 0 : -limit)))
			return i;
	return n;
}

int cqk_dump_scan(const struct cqk_dump *d, uint32_t i, uint32_t head, bool fisher,
		  struct cq_err *err)
{
	const struct st_tensor *t = fisher ? d->fisher[i] : d->x[i];
	uint64_t n = t->shape[1] * t->shape[2];
	uint64_t bad = first_bad(t, place(t, head, 0), n, fisher);

	if (bad == n)
		return 0;
	return cq_err_set(err, -EINVAL, "layer %u, %s%s, head %u, token %llu, channel "
			  "%llu: %g cannot be used; drop the sequence from the dump",
			  i / 2, i % 2 ? "values" : "keys", fisher ? " (fisher)" : "",
			  head, (unsigned long long)(bad / t->shape[2]),
			  (unsigned long long)(bad % t->shape[2]),
			  (double)value(t, place(t, head, 0) + bad));
}

uint32_t cqk_dump_kept(const struct cqk_dump_info *info, uint32_t sinks, uint32_t every)
{
	uint64_t seq = info->sequence_tokens, full = info->tokens / seq;
	uint64_t rest = info->tokens % seq;
	uint64_t kept = full * (seq - MIN(seq, sinks)) + rest - MIN(rest, sinks);

	return (uint32_t)((kept + every - 1) / every);
}

/*
 * The next token of @part from *@tok on, which is moved behind it; *@n counts
 * what is no sink. Returns false at the end.
 */
static bool next_token(const struct cqk_dump *d, const struct cqk_dump_part *part,
		       uint64_t *tok, uint64_t *n)
{
	for (; *tok < d->info.tokens; ++*tok) {
		if (*tok % d->info.sequence_tokens < part->sinks || (*n)++ % part->every)
			continue;
		++*tok;
		return true;
	}
	return false;
}

/* -0 + 0 is +0: squared gradients are ordered by their bits. */
void cqk_dump_group(const struct cqk_dump *d, const struct cqk_dump_part *part, float *x,
		    size_t stride)
{
	const struct st_tensor *t = part->fisher ? d->fisher[part->entry] : d->x[part->entry];
	uint32_t ch[CQ_MAX_HEAD_DIM], j;
	uint64_t tok = 0, seen = 0, at;
	size_t n = 0;
	float v;

	channels_of(d, part->entry, part->first, part->c, ch);
	for (; next_token(d, part, &tok, &seen); n++) {
		at = place(t, part->head, tok - 1);
		for (j = 0; j < part->c; j++) {
			v = value(t, at + ch[j]);
			x[j * stride + n] = part->fisher ? v + 0.0f : v;
		}
	}
	for (; n < stride; n++)
		for (j = 0; j < part->c; j++)
			x[j * stride + n] = 0;
}

const void *cqk_dump_bytes(const struct cqk_dump *d, uint32_t i, bool fisher, int head,
			   size_t *bytes)
{
	const struct st_tensor *t = fisher ? d->fisher[i] : d->x[i];

	*bytes = head < 0 ? t->bytes : t->bytes / t->shape[0];
	return (const uint8_t *)t->data + (head < 0 ? 0 : (size_t)head * *bytes);
}
