/* SPDX-License-Identifier: MIT */
/*
 * cq-worker, the reference worker: a small language model whose key/value
 * cache is libcq's. Of this project it uses cq.h alone, as an inference engine
 * outside the tree would.
 *
 * It is a program: the function that meets an error prints its sentence once
 * (wk_error()) and returns -errno, which callers pass on.
 */
#ifndef CQ_WORKER_H
#define CQ_WORKER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WK_PAGE 64	/* tokens of a page */

/* --- errors, files, time (util.c) --- */

/* Print "cq-worker: ..." on stderr. Return: @code. */
__attribute__((format(printf, 2, 3)))
int wk_error(int code, const char *fmt, ...);

/* The same for a failed libcq call: @what, then cq_last_error(). */
int wk_cq_error(int code, const char *what);

/**
 * wk_file_read() - a whole file in memory
 * @path: its name, for errors too
 * @max:  bytes; a longer file is refused
 * @data: malloc()ed, with a NUL behind the last byte
 * @size: its bytes
 *
 * Return: 0; -errno of open or read; -EFBIG; -ENOMEM.
 */
int wk_file_read(const char *path, size_t max, char **data, size_t *size);

/* A JSON file; NULL after a message. */
json_t *wk_json_read(const char *path);

#define WK_PATH 1024
/* "@dir/@name" into @path[WK_PATH]. 0; -ENAMETOOLONG. */
int wk_path(char *path, const char *dir, const char *name);

/* Token ids of a file of little-endian uint16; each is below @vocab. */
int wk_ids_read(const char *path, uint32_t vocab, uint32_t **ids, size_t *n);

/* Monotonic time in milliseconds. */
double wk_now_ms(void);

/* Median; sorts @x. 0 for n = 0. */
double wk_median(double *x, size_t n);

/* Order of doubles, for qsort(). */
int wk_cmp_double(const void *a, const void *b);

float wk_f16_to_f32(uint16_t h);
/* Round to nearest even; beyond the range gives infinity. */
uint16_t wk_f32_to_f16(float f);

/* A JSON string of any bytes: what is no UTF-8 becomes U+FFFD. */
json_t *wk_json_text(const char *text, size_t len);

/* --- safetensors (st.c) --- */

/**
 * struct wk_st - a safetensors file in memory
 * @image:  the file
 * @size:   its bytes
 * @header: its parsed header
 * @data:   first byte of the tensors
 * @path:   its name, for errors
 */
struct wk_st {
	char *image;
	size_t size;
	json_t *header;
	const char *data;
	const char *path;
};

/* Read and check @path, which must outlive @st. 0; -EINVAL; -errno. */
int wk_st_open(struct wk_st *st, const char *path);
void wk_st_close(struct wk_st *st);

/**
 * wk_st_tensor() - find a tensor and check its type, shape and place
 * @name:  as in the header
 * @dtype: "F16", "F32", "U16", "I32"
 * @rows:  first dimension
 * @cols:  second dimension; 0: the tensor has one dimension
 * @out:   its bytes
 *
 * Return: 0; -EINVAL missing, or not what was asked for.
 */
int wk_st_tensor(const struct wk_st *st, const char *name, const char *dtype,
		 size_t rows, size_t cols, const void **out);

/* --- tokenizer (tok.c) --- */

struct wk_tok;

/* Read merges.json: pairs of ids, the i-th makes id 256 + i. */
int wk_tok_load(const char *path, struct wk_tok **out);
void wk_tok_free(struct wk_tok *tok);	/* accepts NULL */

/**
 * wk_tok_encode() - text to token ids
 * @text: any bytes; UTF-8 white space counts as such
 * @len:  bytes
 * @ids:  malloc()ed
 * @n:    number of ids
 *
 * Return: 0; -ENOMEM.
 */
int wk_tok_encode(const struct wk_tok *tok, const char *text, size_t len,
		  uint32_t **ids, size_t *n);

/* Token ids to bytes, malloc()ed. 0; -ENOMEM; -EINVAL unknown id. */
int wk_tok_decode(const struct wk_tok *tok, const uint32_t *ids, size_t n,
		  char **text, size_t *len);

/* --- the model (lm.c) --- */

/**
 * struct wk_config - shape of the language model, from config.json
 */
struct wk_config {
	uint32_t n_layers, n_heads, n_kv_heads, head_dim;
	uint32_t hidden, ff, vocab, max_position;
	double eps, rope_theta;
};

/**
 * struct wk_rows - rows of one layer's attention, f32
 * @n:      rows
 * @stride: floats between rows of @q, @k and @v
 * @q:      [n][n_heads][head_dim], pre-RoPE
 * @k:      [n][n_kv_heads][head_dim], pre-RoPE
 * @v:      the same shape
 * @o:      [n][n_heads][head_dim], contiguous
 */
struct wk_rows {
	size_t n;
	size_t stride;
	float *q, *k, *v;
	float *o;
};

struct wk_cache;

/**
 * struct wk_cache_ops - where keys and values live
 * @begin:  the next @n tokens are about to go through all layers
 * @attend: append k and v of one layer, then attention of the rows over all
 *          tokens up to their own
 * @commit: the @n tokens are part of the sequence now
 * @length: committed tokens
 *
 * All are mandatory and called by the forward pass, in this order, on its
 * thread. They return 0 or -errno, having printed why.
 */
struct wk_cache_ops {
	int (*begin)(struct wk_cache *cache, size_t n);
	int (*attend)(struct wk_cache *cache, uint32_t layer,
		      const struct wk_rows *rows);
	int (*commit)(struct wk_cache *cache, const uint32_t *ids, size_t n);
	size_t (*length)(const struct wk_cache *cache);
};

struct wk_cache {
	const struct wk_cache_ops *ops;
};

struct wk_lm;

/* Read config.json and model.safetensors of a folder. @chunk: rows at once. */
int wk_lm_load(const char *dir, size_t chunk, struct wk_lm **out);
void wk_lm_free(struct wk_lm *lm);	/* accepts NULL */
const struct wk_config *wk_lm_config(const struct wk_lm *lm);

/**
 * wk_lm_forward() - read @n tokens, in chunks
 * @cache:  gets their keys and values
 * @ids:    tokens
 * @wanted: logits of the last @wanted rows are written; 0 to @n
 * @logits: [wanted][vocab]
 *
 * Return: 0; -EINVAL a token outside the vocabulary; errors of the cache.
 */
int wk_lm_forward(struct wk_lm *lm, struct wk_cache *cache, const uint32_t *ids,
		  size_t n, size_t wanted, float *logits);

/* --- caches --- */

/* In this process, f32, plain (local.c): before there are codebooks. */
struct wk_local;
/* Sees pre-RoPE keys and values of each layer as they are computed. */
typedef void wk_tap_fn(void *arg, uint32_t layer, const struct wk_rows *rows);
int wk_local_new(const struct wk_config *cfg, size_t max_rows,
		 struct wk_local **out);
void wk_local_free(struct wk_local *local);	/* accepts NULL */
struct wk_cache *wk_local_cache(struct wk_local *local);
void wk_local_reset(struct wk_local *local);
void wk_local_tap(struct wk_local *local, wk_tap_fn *fn, void *arg);

/* Rows on a GPU (device.c). */
struct wk_device;
/* @max_rows: rows at once; @uuid: of the GPU. 0; -ENODEV; -ENOMEM; -EIO. */
int wk_device_new(const char *uuid, const struct wk_config *cfg, size_t max_rows,
		  struct wk_device **out);
void wk_device_free(struct wk_device *dv);	/* accepts NULL */
void *wk_device_stream(const struct wk_device *dv);
/* Copy queries, keys and values over; @on: the same rows, on the device. */
int wk_device_in(struct wk_device *dv, const struct wk_rows *rows, struct wk_rows *on);
/* Copy @n floats of results back to @o, and wait for all. */
int wk_device_out(struct wk_device *dv, float *o, size_t n);

/* libcq's (shared.c). */
struct cq_ctx;
struct cq_model;
struct cq_seq;
struct cq_batch;

/**
 * struct wk_shared - a model of cqd and one sequence at a time
 * @dev: NULL: in the host's memory
 */
struct wk_shared {
	struct wk_cache cache;
	struct wk_device *dev;
	const struct wk_config *cfg;
	struct cq_ctx *ctx;		/* not owned */
	struct cq_model *model;
	struct cq_batch *batch;
	struct cq_seq *seq;
};

/* Open model @name and check that it fits @cfg. @gpu: UUID; NULL: the host. */
int wk_shared_open(struct wk_shared *sh, struct cq_ctx *ctx, const char *name, const char *gpu,
		   const struct wk_config *cfg, size_t max_rows);
void wk_shared_close(struct wk_shared *sh);
/* Start the sequence @ids; @flags: CQ_SEQ_*. @matched: tokens found. */
int wk_shared_start(struct wk_shared *sh, const uint32_t *ids, size_t n,
		    uint32_t flags, size_t *matched);
/* Close the sequence. */
void wk_shared_end(struct wk_shared *sh);

/* --- sampling (sample.c) --- */

/**
 * struct wk_sampler - greedy (temperature 0) or seeded
 * @temperature: 0: the most likely token, lowest id among equals
 * @state:       of the generator; the seed at first
 */
struct wk_sampler {
	double temperature;
	uint64_t state;
};

uint32_t wk_sample(struct wk_sampler *s, const float *logits, size_t n);

double wk_log_sum_exp(const float *x, size_t n);
/* KL(softmax(p) || softmax(q)) in nats, computed in double. */
double wk_kl(const float *p, const float *q, size_t n);
size_t wk_argmax(const float *x, size_t n);

/* --- commands --- */

/**
 * struct wk_opts - the command line
 */
struct wk_opts {
	const char *lm, *socket, *model, *gpu, *reference, *name;
	const char *ids, *prefix, *ask, *out, *kl;
	const char *publish, *attach;
	uint64_t sequences, length, skip, generate, repeat, limit, pace;
	uint64_t chunk, threads, seed;
	double temperature, tolerance;
	bool private, nomatch, hold, published;
	char *const *args;
	int n_args;
};

/* --- what run, bench and score share (session.c) --- */

/**
 * struct wk_session - language model, connection, prompt
 * @n_prefix: tokens of --prefix, the first of @ids
 * @ids:      [n] the prompt, and what was generated
 * @flags:    CQ_SEQ_* of the sequence
 * @logits:   [vocab] of the last row
 */
struct wk_session {
	struct wk_lm *lm;
	const struct wk_config *cfg;
	struct wk_tok *tok;
	struct cq_ctx *ctx;
	struct wk_shared sh;
	size_t n_prefix, n;
	uint32_t *ids;
	uint32_t flags;
	float *logits;
};

/**
 * struct wk_first - up to the first token
 * @matched:   tokens found published
 * @token:     sampled
 * @ttft_ms:   from token ids in hand to the sampled token
 */
struct wk_first {
	size_t matched;
	uint32_t token;
	double ttft_ms;
};

/* Load, connect, open --model, read --prefix. wk_session_close() always. */
int wk_session_open(struct wk_session *s, const struct wk_opts *o);
void wk_session_close(struct wk_session *s);
/* @text behind the prompt. */
int wk_session_ask(struct wk_session *s, const char *text);
/* Start a sequence, read what was not matched, sample. */
int wk_session_first(struct wk_session *s, uint32_t flags, struct wk_sampler *sampler,
		     struct wk_first *out);
/* The same for a published sequence: its last token is computed again. */
int wk_session_attach(struct wk_session *s, const char *name, uint32_t flags,
		      struct wk_sampler *sampler, struct wk_first *out);
/* @token: in: the last one; out: the next one. */
int wk_session_next(struct wk_session *s, struct wk_sampler *sampler, uint32_t *token);
/*
 * Whether a reader of @n tokens that found @matched has the full pages of
 * --prefix from others, as a figure about attached readers demands. 0; -EINVAL
 * the prefix fills no page; -ENODATA it is not published. --nomatch: 0.
 */
int wk_session_attached(const struct wk_session *s, const struct wk_opts *o, size_t n,
			size_t matched);
/* Bytes of shared slots and of the own arena that the sequence holds. */
int wk_session_bytes(struct wk_session *s, uint64_t *shared, uint64_t *own);

int wk_cmd_tokenize(const struct wk_opts *o);
int wk_cmd_dump(const struct wk_opts *o);
int wk_cmd_verify(const struct wk_opts *o);
int wk_cmd_run(const struct wk_opts *o);
int wk_cmd_bench(const struct wk_opts *o);
int wk_cmd_score(const struct wk_opts *o);

#endif /* CQ_WORKER_H */
