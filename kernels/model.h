/* SPDX-License-Identifier: MIT */
/*
 * A model as cq knows it: geometry, RoPE, coding per layer and codebooks.
 *
 * The file is safetensors; this library parses and writes it in memory and
 * never opens a file. Everything that computes uses the centroids exactly as
 * stored (f16, or i8 times a scale per channel).
 */
#ifndef CQK_MODEL_H
#define CQK_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "cq/err.h"
#include "cq/page.h"

enum cqk_keys {			/* what the stored keys are */
	CQK_KEYS_PRE_ROPE = 0,	/* coded before RoPE; the model rotates */
	CQK_KEYS_ROTATED = 1,	/* coded after RoPE at their absolute position */
	CQK_KEYS_NONE = 2,	/* the model has no RoPE */
};

enum cqk_centroids {
	CQK_CENTROIDS_F16 = 0,
	CQK_CENTROIDS_I8 = 1,	/* value = i8 * scale[kv_head][channel] (f32) */
};

/*
 * Which channels turn together, in what callers hand over and get back. Stored
 * keys, codebooks and the kernels' queries are in the order of CQK_PAIRS_HALF
 * whatever the model has: see cqk_given_channel().
 */
enum cqk_pairs {
	CQK_PAIRS_HALF = 0,		/* channel i with i + rope_dim/2 */
	CQK_PAIRS_INTERLEAVED = 1,	/* channel 2j with 2j + 1 */
};

enum cqk_scaling {		/* of RoPE, see cqk_rope_freq() */
	CQK_SCALING_NONE = 0,
	CQK_SCALING_LINEAR = 1,
	CQK_SCALING_LLAMA3 = 2,
	CQK_SCALING_YARN = 3,
};

/**
 * struct cqk_rope_scaling - how RoPE reaches beyond the context of pre-training
 * @type:   enum cqk_scaling; what it does not use below is 0
 * @factor: context length over the original one
 * @original_max_position: context length of pre-training, a whole number
 * @low_freq_factor:  llama3: pairs with fewer turns in that context are slowed
 *                    down by @factor
 * @high_freq_factor: llama3: pairs with more turns keep their frequency
 * @beta_fast: yarn: turns from which on a pair keeps its frequency
 * @beta_slow: yarn: turns up to which it is slowed down by @factor
 * @attention_factor: yarn: factor on cos and sin, for queries and keys alike
 * @truncate:  yarn: 1 if the ends of the ramp are rounded to whole pairs, else 0
 */
struct cqk_rope_scaling {
	uint32_t type;
	double factor;
	double original_max_position;
	double low_freq_factor, high_freq_factor;
	double beta_fast, beta_slow;
	double attention_factor;
	double truncate;
};

/**
 * struct cqk_geom - shape of the attention of a model (or of a shard of it)
 * @n_layers:     layers
 * @n_heads:      query heads, a multiple of @n_kv_heads
 * @n_kv_heads:   key/value heads
 * @head_dim:     channels per head
 * @max_position: context length the model was made for
 * @keys:         enum cqk_keys
 * @rope_dim:     leading channels that are rotated, 0 if none; even
 * @rope_theta:   RoPE base
 * @rope_pairs:   enum cqk_pairs
 * @rope_scaling: RoPE scaling
 */
struct cqk_geom {
	uint32_t n_layers;
	uint32_t n_heads;
	uint32_t n_kv_heads;
	uint32_t head_dim;
	uint32_t max_position;
	uint32_t keys;
	uint32_t rope_dim;
	double rope_theta;
	uint32_t rope_pairs;
	struct cqk_rope_scaling rope_scaling;
};

/**
 * cqk_given_channel() - where a channel of a key or query is in a caller's view
 * @geom: model
 * @ch:   channel as stored
 *
 * Return: its place in the order that the model computes.
 */
static inline uint32_t cqk_given_channel(const struct cqk_geom *geom, uint32_t ch)
{
	uint32_t half = geom->rope_dim / 2;

	if (geom->rope_pairs == CQK_PAIRS_HALF || ch >= 2 * half)
		return ch;
	return ch < half ? 2 * ch : 2 * (ch - half) + 1;
}

/**
 * struct cqk_codebook - centroids of one (layer, K or V), all kv heads
 * @code:      coding; for CQ_CODE_F16 every pointer below is NULL
 * @centroids: enum cqk_centroids
 * @head_dim:  channels per head (d)
 * @n_kv_heads: kv heads
 * @n_groups:  d / code.channels (G)
 * @stored:    as in the file: [kv_head][group][K][c], uint16_t (f16) or
 *             int8_t, K being cqk_code_centroids(); points into the caller's file image
 * @scale:     [kv_head][d] f32 for i8, else NULL; points into the file image
 * @f32:       decoded values, channel-major: [kv_head][d][K]; plane of
 *             channel ch of head h is f32 + (h * d + ch) * K
 * @metric:    [kv_head][d] f32, weights m of the channels in the encoder's
 *             distance sum_j m_j (x_j - c_kj)^2; NULL: all are 1. Points into
 *             the file image
 * @enc:       what the encoder multiplies with, m_j c_kj rounded once, in the
 *             order of @f32; @f32 itself without a metric
 * @half_norm: [kv_head][G][K]: half of sum_j c_kj (m_j c_kj), summed in channel
 *             order in f32; the encoder's constant term
 * @i8:        [kv_head][d][K] int8_t, channel-major, 64-byte aligned; NULL for f16
 */
struct cqk_codebook {
	struct cq_code code;
	uint32_t centroids;
	uint32_t head_dim;
	uint32_t n_kv_heads;
	uint32_t n_groups;
	const void *stored;
	const float *scale;
	const float *metric;
	float *f32;
	float *enc;
	float *half_norm;
	int8_t *i8;
};

/**
 * struct cqk_layer - one layer of a model
 * @k: codebook of the keys
 * @v: codebook of the values
 * @k_bytes: bytes of one kv head's K block in a page
 * @v_bytes: bytes of one kv head's V block
 * @offset:  offset of the layer inside a page's payload; kv head h starts at
 *           offset + h * (k_bytes + v_bytes), its V block k_bytes later
 */
struct cqk_layer {
	struct cqk_codebook k, v;
	uint64_t k_bytes, v_bytes;
	uint64_t offset;
};

/**
 * struct cqk_model - a parsed model; read-only after cqk_model_parse()
 * @geom:        shape
 * @sinks:       tokens at the start of a sequence kept in fp16 (sink object)
 * @window:      recent tokens the owner reads in fp16, a multiple of 64
 * @hash:        SHA-256 of the canonical header and codebooks
 * @fingerprint: SHA-256 of the language model's weights, as calibrated
 * @payload:     bytes of a page's payload
 * @slot_bytes:  bytes of a page's slot
 * @sink_payload: bytes of a sink object's payload, 0 if @sinks is 0
 * @sink_slot_bytes: bytes of its slot, 0 if @sinks is 0
 * @f16_block:   bytes of an fp16 block of 64 tokens
 * @layers:      [geom.n_layers]
 */
struct cqk_model {
	struct cqk_geom geom;
	uint32_t sinks;
	uint32_t window;
	uint8_t hash[32];
	uint8_t fingerprint[32];
	uint64_t payload, slot_bytes;
	uint64_t sink_payload, sink_slot_bytes;
	uint64_t f16_block;
	struct cqk_layer *layers;
};

/**
 * cqk_model_parse() - check a model file image and prepare its codebooks
 * @image: the whole safetensors file, 8-byte aligned; must stay mapped and
 *         unchanged until cqk_model_free() (a private copy or a sealed memfd)
 * @size:  its bytes
 * @out:   set on success only; owned by the caller
 * @err:   text of the failure, may be NULL
 *
 * Nothing in the image is trusted: offsets, shapes, types, every float
 * (NaN/Inf refused by tensor and index), metadata and counts are checked.
 *
 * Return: 0; -EINVAL malformed or unsupported value; -EPROTO not a cq model or
 * another format version; -ENOMEM; -EOPNOTSUPP a coding this build lacks.
 * Thread-safe.
 */
int cqk_model_parse(const void *image, size_t size, struct cqk_model **out,
		    struct cq_err *err);

/**
 * cqk_model_free() - free a parsed model; the file image stays the caller's
 * @model: may be NULL; no other thread may still read it
 */
void cqk_model_free(struct cqk_model *model);

/**
 * cqk_model_head() - parse and check without preparing codebooks
 * @image: as for cqk_model_parse()
 * @size:  its bytes
 * @out:   set on success only; owned by the caller
 * @err:   text of the failure, may be NULL
 *
 * As cqk_model_parse(), but @out's codebooks carry only @code, @centroids,
 * sizes, @stored, @scale and @metric: what the daemon needs (it never decodes).
 */
int cqk_model_head(const void *image, size_t size, struct cqk_model **out,
		   struct cq_err *err);

/**
 * struct cqk_model_desc - a model file to be written
 * @geom:        shape
 * @k:           coding of keys, [n_layers]
 * @v:           coding of values, [n_layers]
 * @centroids:   enum cqk_centroids
 * @sinks:       as in struct cqk_model
 * @window:      as in struct cqk_model
 * @fingerprint: SHA-256 of the language model's weights
 * @provenance:  free text, NULL for none
 * @codebooks:   [2 * n_layers]: K of layer 0, V of layer 0, K of layer 1, ...;
 *               each [kv_head][group][2^b][c], uint16_t (half) or int8_t; NULL
 *               for fp16
 * @scales:      [2 * n_layers], each [kv_head][d]; unused with f16 centroids
 * @metrics:     [2 * n_layers], each [kv_head][d] or NULL; NULL: none
 */
struct cqk_model_desc {
	struct cqk_geom geom;
	const struct cq_code *k, *v;
	uint32_t centroids;
	uint32_t sinks, window;
	uint8_t fingerprint[32];
	const char *provenance;
	const void *const *codebooks;
	const float *const *scales;
	const float *const *metrics;
};

/**
 * cqk_model_write() - build a model file image
 * @desc:  contents; not checked beyond what keeps the writer safe, parse the
 *         image to be sure of it
 * @image: malloc()ed on success, owned by the caller
 * @size:  its bytes
 * @err:   text of the failure, may be NULL
 *
 * Return: 0; -EINVAL a coded layer without codebook or scale; -ENOMEM.
 */
int cqk_model_write(const struct cqk_model_desc *desc, void **image, size_t *size,
		    struct cq_err *err);

/* Weights of channels in a metric: squares of any half times these stay finite. */
#define CQK_METRIC_MIN 0x1p-20f
#define CQK_METRIC_MAX 0x1p20f

/* "4c8b", "fp16" -> coding. 0 or -EINVAL / -EOPNOTSUPP with the reason in @err. */
int cqk_code_parse(const char *text, uint32_t head_dim, struct cq_code *out,
		   struct cq_err *err);
/* Centroids of a group. */
static inline uint32_t cqk_code_centroids(struct cq_code code)
{
	return 1u << code.bits;
}

/* Bits per channel. */
static inline double cqk_code_bits(struct cq_code code)
{
	return code.type == CQ_CODE_F16 ? 16 : (double)code.bits / code.channels;
}

/* Writes "4c8b" or "fp16"; @buf holds at least 16 bytes. Returns @buf. */
const char *cqk_code_name(struct cq_code code, char *buf);

#endif /* CQK_MODEL_H */
