/* SPDX-License-Identifier: MIT */
/*
 * Learning codebooks: weighted k-means per (layer, K/V, kv head, group).
 * No I/O: the caller maps the activation dump and writes the model file.
 */
#ifndef CQK_CALIBRATE_H
#define CQK_CALIBRATE_H

#include "kernels/model.h"

/* What squared gradients in the dump weigh; bits. */
enum cqk_fisher {
	CQK_FISHER_NONE = 0,
	CQK_FISHER_TOKEN = 1,	/* tokens, in learning */
	CQK_FISHER_CHANNEL = 2,	/* channels, in the encoder's distance: the metric */
	CQK_FISHER_BOTH = 3,
};

#define CQK_MAX_STARTS 64u

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
 * @fisher:     enum cqk_fisher. The metric m_j of a channel is the mean of its
 *              squared gradients, with a mean of 1 in its group. A token weighs
 *              the sum over the group of its squared gradients, each over m_j
 *              where there is a metric
 * @clip:       values beyond this quantile, above 0 and at most 1, count as if they
 *              were there: of a channel's squared gradients in the metric, of a
 *              group's tokens' weights
 * @iterations: at most; stops earlier at a relative change < 1e-4
 * @starts:     k-means runs per codebook, of which the best is kept, 1 to
 *              CQK_MAX_STARTS
 * @threads:    worker threads
 * @seed:       same seed, same input, any thread count: same model file
 * @fingerprint: weight fingerprint to store
 * @provenance: free text to store
 * @progress:   called from one thread at a time after each finished codebook;
 *              a non-zero return cancels (-ECANCELED). NULL = none
 * @load:       called for each layer before anything is learnt: 1 with [@size]
 *              @data filled as @save once had it, 0 to learn the layer, or -errno
 *              to give up. NULL = learn all
 * @save:       called from one thread at a time after each finished layer; a
 *              negative return ends the run with it. The data mean
 *              something to a run with the same dump and options, on any machine
 *              of this byte order. NULL = none
 * @release:    bytes of the dump that were read and are not read again soon; from
 *              any thread. NULL = none
 * @arg:        passed to the callbacks
 */
struct cqk_calib_opts {
	struct cqk_geom geom;
	const struct cq_code *k, *v;
	uint32_t centroids;
	uint32_t sinks, window;
	uint32_t fisher;
	double clip;
	uint32_t iterations;
	uint32_t starts;
	uint32_t threads;
	uint64_t seed;
	uint8_t fingerprint[32];
	const char *provenance;
	int (*progress)(void *arg, uint32_t done, uint32_t total);
	int (*load)(void *arg, uint32_t layer, void *data, size_t size);
	int (*save)(void *arg, uint32_t layer, const void *data, size_t size);
	void (*release)(void *arg, const void *data, size_t size);
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
 * -ECANCELED; -ENOMEM; what @opts->load or @opts->save gave.
 */
int cqk_calibrate(const void *dump, size_t size, const struct cqk_calib_opts *opts,
		  struct cqk_calib_error *errors, void **image,
		  size_t *image_size, struct cq_err *err);

#define CQK_MAX_CHOICES 8

/**
 * struct cqk_budget - what a mean number of bits per channel buys
 * @bits:    at most so many bits of code per channel, in the mean of keys and values
 *           of all layers
 * @fixed:   [2 * n_layers], K of layer 0, V of layer 0, ...: true keeps what
 *           @k and @v have; NULL: all are chosen
 * @k:       [n_layers], set
 * @v:       [n_layers], set
 * @choices: [n_choices] what is chosen from, more and more bits; codings that go
 *           with head_dim
 * @n_choices: 1 to CQK_MAX_CHOICES
 * @loss:    [2 * n_layers][CQK_MAX_CHOICES], set: with gradients in the dump the
 *           mean over tokens of the sum over channels of g^2 (x - x')^2, g^2 clipped as
 *           in the metric; if there are none, or this sum is 0 for all, the relative
 *           squared error. Of tokens that codebooks were not learnt from
 * @relative: set: @loss is the relative squared error
 * @spent:   set: mean bits of what was chosen
 */
struct cqk_budget {
	double bits;
	const bool *fixed;
	struct cq_code *k, *v;
	const struct cq_code *choices;
	uint32_t n_choices;
	double (*loss)[CQK_MAX_CHOICES];
	bool relative;
	double spent;
};

/**
 * cqk_calib_budget() - choose codings for keys and values of each layer
 * @dump:   as for cqk_calibrate()
 * @size:   its bytes
 * @opts:   as for cqk_calibrate(); @k and @v are not read. Progress counts the
 *          codebooks tried
 * @budget: what is asked and the answer
 * @err:    text of the failure
 *
 * Each choice is learnt for each layer in a few iterations on four fifths of the
 * tokens, and measured on the others, which follow in the dump; of a dump with 80 and
 * more for each centroid on every n-th token, which leaves 40 to 60. Then bits go where
 * they save most per bit, until nothing more fits.
 *
 * Return: 0; -EINVAL also for a budget below the least possible and for choices as
 * they should not be; otherwise as
 * cqk_calibrate().
 */
int cqk_calib_budget(const void *dump, size_t size, const struct cqk_calib_opts *opts,
		     struct cqk_budget *budget, struct cq_err *err);

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

/**
 * cqk_dump_kept() - how many tokens of a dump are learnt from
 * @info:  dump
 * @sinks: tokens at the start of each sequence that are left out
 * @every: of the others one in so many is taken, the first to begin with
 *
 * Return: the number, 0 if no sequence is longer than @sinks. Thread-safe.
 */
uint32_t cqk_dump_kept(const struct cqk_dump_info *info, uint32_t sinks, uint32_t every);

/* Geometry stored in an activation dump. 0, -EINVAL, -EPROTO, -ENOMEM. */
int cqk_dump_geom(const void *dump, size_t size, struct cqk_geom *out,
		  struct cq_err *err);

#endif /* CQK_CALIBRATE_H */
