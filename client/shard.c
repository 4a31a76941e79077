// SPDX-License-Identifier: MIT
/*
 * A layer and kv-head range of a parsed model, as a model of its own: the
 * kernels then need to know nothing of shards. Tables are shared with the
 * whole model, which must outlive the shard.
 */
#include <errno.h>
#include <stdlib.h>
#include "client/internal.h"

static void shard_codebook(struct cqk_codebook *out, const struct cqk_codebook *cb,
			   uint32_t head, uint32_t n_heads)
{
	size_t planes = (size_t)head * cb->head_dim * cqk_code_centroids(cb->code);
	size_t width = cb->centroids == CQK_CENTROIDS_I8 ? 1 : 2;

	*out = *cb;
	out->n_kv_heads = n_heads;
	if (cb->code.type == CQ_CODE_F16)
		return;
	/* stored, f32 and i8 hold [head][d * 2^b] values, in other orders */
	out->stored = (const uint8_t *)cb->stored + planes * width;
	if (cb->scale)
		out->scale = cb->scale + (size_t)head * cb->head_dim;
	if (cb->metric)
		out->metric = cb->metric + (size_t)head * cb->head_dim;
	out->enc = cb->enc + planes;
	out->f32 = cb->f32 + planes;
	out->half_norm = cb->half_norm + planes / cb->code.channels;
	if (cb->i8)
		out->i8 = cb->i8 + planes;
}

/**
 * cqc_shard_make() - cut a shard out of a model
 * @whole: parsed model
 * @range: resolved range, ends exclusive
 * @out:   filled; ended with cqc_shard_free()
 *
 * Return: 0; -EINVAL outside the model; -ENOMEM.
 */
int cqc_shard_make(const struct cqk_model *whole, const struct cqp_shard *range,
		   struct cqk_model *out)
{
	uint32_t n_layers, n_heads, gqa, l;
	uint64_t at = 0;

	if (range->layer_begin >= range->layer_end ||
	    range->layer_end > whole->geom.n_layers ||
	    range->head_begin >= range->head_end ||
	    range->head_end > whole->geom.n_kv_heads)
		return cqc_fail(-EINVAL, "shard of layers %u-%u, kv heads %u-%u; the model has "
					 "%u layers, %u kv heads",
				range->layer_begin, range->layer_end, range->head_begin,
				range->head_end, whole->geom.n_layers,
				whole->geom.n_kv_heads);
	n_layers = range->layer_end - range->layer_begin;
	n_heads = range->head_end - range->head_begin;
	gqa = whole->geom.n_heads / whole->geom.n_kv_heads;
	*out = *whole;
	out->layers = calloc(n_layers, sizeof(*out->layers));
	if (!out->layers)
		return cqc_fail(-ENOMEM, "out of memory for the shard");
	out->geom.n_layers = n_layers;
	out->geom.n_kv_heads = n_heads;
	out->geom.n_heads = n_heads * gqa;
	for (l = 0; l < n_layers; l++) {
		const struct cqk_layer *from = &whole->layers[range->layer_begin + l];
		struct cqk_layer *to = &out->layers[l];

		*to = *from;
		shard_codebook(&to->k, &from->k, range->head_begin, n_heads);
		shard_codebook(&to->v, &from->v, range->head_begin, n_heads);
		to->offset = at;
		at += (to->k_bytes + to->v_bytes) * n_heads;
	}
	out->payload = at;
	out->slot_bytes = cq_slot_bytes(at);
	out->f16_block = cq_f16_block_bytes(n_layers, n_heads, out->geom.head_dim,
					    CQ_PAGE_TOKENS);
	out->sink_payload = cq_f16_block_bytes(n_layers, n_heads, out->geom.head_dim,
					       out->sinks);
	out->sink_slot_bytes = out->sinks ? cq_slot_bytes(out->sink_payload) : 0;
	return 0;
}

/**
 * cqc_shard_free() - undo cqc_shard_make()
 * @m: shard, or zeroed
 */
void cqc_shard_free(struct cqk_model *m)
{
	free(m->layers);
	m->layers = NULL;
}
