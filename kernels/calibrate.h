/* SPDX-License-Identifier: MIT */
/*
 * Learning codebooks: weighted k-means per (layer, K/V, kv head, group).
 * No I/O: the caller maps the activation dump and writes the model file.
 */
#ifndef CQK_CALIBRATE_H
#define CQK_CALIBRATE_H

#include "kernels/model.h"

/**
 * struct cqk_calib_opts - how to learn
 * @geom:       shape, as read from the dump's metadata or given by the caller; its
 *              RoPE is believed, whatever the dump says
 * @k:          coding of keys, one per layer [n_layers]
 * @v:          coding of values, one per layer [n_layers]
 * @centroids:  enum cqk_centroids of the model to be written
 * @sinks:      sinks of the model; the first @sinks tokens of every sequence
 *              of the dump are left out of the training set
 * @window:     recent window of the model
 * @fisher:     weight tokens by the squared gradients in the dump
 * @iterations: at most; stops earlier at a relative change < 1e-4
 * @threads:    worker threads
 * @seed:       same seed, same input, any thread count: same model file
 * @fingerprint: weight fingerprint to store
 * @provenance: free text to store
 * @progress:   called from one thread at a time after each finished codebook;
 *              a non-zero return cancels (-ECANCELED). NULL = none
 * @arg:        passed to @progress
 */
struct cqk_calib_opts {
	struct cqk_geom geom;
	const struct cq_code *k, *v;
	uint32_t centroids;
	uint32_t sinks, window;
	bool fisher;
	uint32_t iterations;
	uint32_t threads;
	uint64_t seed;
	uint8_t fingerprint[32];
	const char *provenance;
	int (*progress)(void *arg, uint32_t done, uint32_t total);
	void *arg;
};

/* Relative squared error of a layer after coding: sum |x - c|^2 / sum |x|^2. */
struct cqk_calib_error {
	double k, v;
};

/**
 * cqk_calibrate() - learn codebooks and build a model file image
 * @dump:   safetensors image of the activations: layers.<l>.<k|v>
 *          [kv_head][token][d] F16 or F32, optional layers.<l>.<k|v>.fisher of
 *          the same shape; metadata as in Documentation/formats.md
 * @size:   its bytes
 * @opts:   options
 * @errors: [n_layers], filled on success; may be NULL
 * @image:  malloc()ed model file on success, owned by the caller
 * @image_size: its bytes
 * @err:    text of the failure
 *
 * Source: Zhang et al., "KV Cache is 1 Bit Per Channel", NeurIPS 2024
 * (arXiv 2405.03917), section 3: weighted k-means per channel group;
 * k-means++ start (Arthur, Vassilvitskii, SODA 2007).
 *
 * Return: 0; -EINVAL bad dump or options (NaN/Inf: layer, head and token are
 * named); -EPROTO not a dump; -EOPNOTSUPP a coding this build lacks;
 * -ECANCELED; -ENOMEM.
 */
int cqk_calibrate(const void *dump, size_t size, const struct cqk_calib_opts *opts,
		  struct cqk_calib_error *errors, void **image,
		  size_t *image_size, struct cq_err *err);

/**
 * struct cqk_dump_info - what an activation dump is
 * @geom:            shape of the language model's attention
 * @tokens:          tokens per tensor
 * @sequence_tokens: tokens per sequence
 * @fisher:          squared gradients are there
 * @fingerprint:     SHA-256 of the language model's weights
 * @source:          start of its free text, printable bytes only
 */
struct cqk_dump_info {
	struct cqk_geom geom;
	uint64_t tokens;
	uint32_t sequence_tokens;
	bool fisher;
	uint8_t fingerprint[32];
	char source[160];
};

/**
 * cqk_dump_info() - read metadata and shapes of an activation dump, no values
 * @dump: image of the file
 * @size: its bytes
 * @out:  filled on success
 * @err:  text on failure
 *
 * Return: 0; -EINVAL malformed; -EPROTO not a dump; -ENOMEM. Thread-safe.
 */
int cqk_dump_info(const void *dump, size_t size, struct cqk_dump_info *out,
		  struct cq_err *err);

/* Geometry stored in an activation dump. 0, -EINVAL, -EPROTO, -ENOMEM. */
int cqk_dump_geom(const void *dump, size_t size, struct cqk_geom *out,
		  struct cq_err *err);

#endif /* CQK_CALIBRATE_H */
