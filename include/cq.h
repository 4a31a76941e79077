/* SPDX-License-Identifier: MIT */
/*
 * libcq - attach to, extend and attend over key/value caches that cqd shares.
 *
 * A worker opens a context, a model, and sequences. Opening a sequence with
 * token ids finds the longest prefix that any worker of its namespace has
 * published and maps it in place. Every layer then appends its keys and
 * values; commit makes the tokens part of the sequence and encodes each full
 * page of 64; sealing publishes it to others. Attention reads the shared codes
 * where they are.
 *
 *	cq_open()        context: one connection, at most one own thread
 *	cq_model_open()  model (or shard), arena
 *	cq_seq_open()    sequence, with the prefix already matched
 *	cq_batch_new()   a batch; cq_step() says which sequences and rows
 *	cq_append(), cq_attention() per layer; cq_commit()
 *
 * A model is in host memory or on a GPU. On a GPU views, lse and what kernels
 * read are that device's memory; a call puts its work on a CUDA stream and returns. The
 * work of a model is meant to be done in the order of the calls: streams other
 * than the model's are the caller's to order. Pages are published by the engine
 * when the device has written them.
 *
 * Threads: all calls on a context and on what was opened from it are made by
 * one thread at a time, except that cq_attention() calls on kv-head ranges
 * that do not overlap, or on different parts of a step's pages, may run
 * concurrently, and so may cq_merge() calls on such kv-head ranges. The library
 * makes no thread for them.
 *
 * Errors: functions return 0 or a negative errno and leave outputs untouched
 * on failure; cq_last_error() has the sentence. After fork() every call in the
 * child returns -EOWNERDEAD: open anew there.
 */
#ifndef CQ_H
#define CQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cq_ctx;
struct cq_model;
struct cq_seq;
struct cq_batch;

enum cq_dtype {
	CQ_F32 = 0,
	CQ_F16 = 1,	/* IEEE half */
	CQ_BF16 = 2,
};

/**
 * struct cq_view - [token][head][channel] in the caller's memory
 * @data:         first element
 * @dtype:        enum cq_dtype
 * @pad:          0
 * @stride_token: elements between tokens (rows)
 * @stride_head:  elements between heads
 *
 * Channels are contiguous, and in the model's own order, whichever of them RoPE
 * turns together. NHD and HND layouts differ in strides only.
 */
struct cq_view {
	void *data;
	uint32_t dtype;
	uint32_t pad;
	int64_t stride_token;
	int64_t stride_head;
};

/* Device of a call; others are GPUs, by their ordinal in this process. */
#define CQ_DEVICE_HOST (-1)

#define CQ_OPEN_POLL (1u << 0)	/* no own thread: the caller drives cq_poll() */

/**
 * struct cq_open_opts - options of cq_open()
 * @sz:      sizeof(struct cq_open_opts)
 * @socket:  path of cqd's socket; NULL: $CQ_SOCKET, else /run/cq/cqd.sock
 * @name:    shown by cqctl; NULL: the program's name
 * @tenant:  namespace by name; NULL: decided by cqd
 * @flags:   CQ_OPEN_*
 * @timeout_ms: for each request that waits for cqd; 0: 5000
 */
struct cq_open_opts {
	size_t sz;
	const char *socket;
	const char *name;
	const char *tenant;
	uint32_t flags;
	uint32_t timeout_ms;
};

/**
 * struct cq_model_opts - options of cq_model_open()
 * @sz:          sizeof(struct cq_model_opts)
 * @device:      CQ_DEVICE_HOST, or a GPU
 * @pad:         0
 * @arena_bytes: memory for this worker's own tokens (window, tails, pages not
 *               sealed yet), reserved at once; 0: 256 blocks of 64 tokens
 * @layer_begin: shard: first layer
 * @layer_end:   one past its last layer; 0: the model's last
 * @head_begin:  shard: first kv head
 * @head_end:    one past its last kv head; 0: the model's last
 * @gpu:         UUID of a GPU, instead of @device; NULL: as @device says
 * @stream:      CUDA stream of its primary context on which the model's work is
 *               done; NULL: the default stream
 */
struct cq_model_opts {
	size_t sz;
	int32_t device;
	uint32_t pad;
	uint64_t arena_bytes;
	uint32_t layer_begin, layer_end;
	uint32_t head_begin, head_end;
	const char *gpu;
	void *stream;
};

/**
 * struct cq_model_info - what a model is
 * @sz:           set by the caller to sizeof(struct cq_model_info)
 * @n_layers:     layers of the shard
 * @n_heads:      query heads of the shard
 * @n_kv_heads:   kv heads of the shard
 * @head_dim:     channels per head
 * @max_position: positions the model was made for
 * @sinks:        tokens at the start of a sequence that stay in fp16
 * @window:       recent tokens that their owner reads in fp16
 * @pad:          0
 * @slot_bytes:   bytes of one shared page of 64 tokens
 * @file_bytes:   bytes of the model file (codebooks)
 * @arena_bytes:  bytes of this worker's arena
 * @arena_free:   bytes of it that are free
 * @hash:         SHA-256 that names the model
 * @k:            coding of keys in layer 0, "4c8b" or "fp16"
 * @v:            coding of values in layer 0
 * @kernels:      implementation in use
 */
struct cq_model_info {
	size_t sz;
	uint32_t n_layers, n_heads, n_kv_heads, head_dim;
	uint32_t max_position;
	uint32_t sinks, window;
	uint32_t pad;
	uint64_t slot_bytes;
	uint64_t file_bytes;
	uint64_t arena_bytes, arena_free;
	uint8_t hash[32];
	char k[16], v[16];
	char kernels[16];
};

/**
 * struct cq_seq_opts - options of cq_seq_open()
 * @sz:       sizeof(struct cq_seq_opts)
 * @flags:    CQ_SEQ_*
 * @position: position of token 0 (added to every position)
 * @extra:    bytes mixed into the key of every page (image hashes and the like)
 * @extra_len: at most 1024
 * @priority: of the pages it publishes, 0 to 255: the higher, the longer they
 *            stay when cqd needs room
 * @ttl_s:    seconds after which a page that nobody used is dropped; 0: never
 */
struct cq_seq_opts {
	size_t sz;
	uint32_t flags;
	uint32_t position;
	const void *extra;
	size_t extra_len;
	uint32_t priority;
	uint32_t ttl_s;
};

#define CQ_SEQ_NOMATCH (1u << 0)	/* attach to nothing: start empty */
#define CQ_SEQ_PRIVATE (1u << 1)	/* publish nothing */

#define CQ_PUBLISH_REPLACE (1u << 0)	/* take a name in use over */
#define CQ_PUBLISH_ONCE (1u << 1)	/* the first cq_attach() takes the name away */
#define CQ_PUBLISH_PIN (1u << 2)	/* keep the full pages resident, nothing else */

/**
 * struct cq_publish_opts - options of cq_publish()
 * @sz:    sizeof(struct cq_publish_opts)
 * @flags: CQ_PUBLISH_*
 * @ttl_s: seconds after which the name goes by itself; 0: never
 */
struct cq_publish_opts {
	size_t sz;
	uint32_t flags;
	uint32_t ttl_s;
};

/* Keys come as the model's RoPE leaves them, with its scaling, at their positions. */
#define CQ_APPEND_ROTATED (1u << 0)

/**
 * struct cq_append_opts - options of cq_append()
 * @sz:     sizeof(struct cq_append_opts)
 * @flags:  CQ_APPEND_*
 * @device: of the model: CQ_DEVICE_HOST, or the GPU's ordinal
 * @stream: CUDA stream; NULL: the model's, or the host
 */
struct cq_append_opts {
	size_t sz;
	uint32_t flags;
	int32_t device;
	void *stream;
};

/* Queries come as the model's RoPE leaves them, with its scaling, at their positions. */
#define CQ_ATTN_Q_ROTATED (1u << 0)
#define CQ_ATTN_LSE_BASE2 (1u << 1)	/* lse in log2 units; default natural */

/**
 * struct cq_attn_opts - options of cq_attention()
 * @sz:         sizeof(struct cq_attn_opts)
 * @flags:      CQ_ATTN_*
 * @device:     of the model: CQ_DEVICE_HOST, or the GPU's ordinal
 * @stream:     CUDA stream; NULL: the model's, or the host
 * @scale:      0: 1/sqrt(head_dim)
 * @soft_cap:   0: none
 * @sliding_window: tokens; 0: none
 * @head_begin: first kv head of this call
 * @head_end:   one past the last; both 0: all
 * @pad:        0
 * @lse:        [rows][n_heads] f32, NULL: not wanted
 * @lse_stride: floats between rows; 0: n_heads
 * @part:       part of the pages that this call reads, 0 to @n_parts - 1
 * @n_parts:    parts that the pages are split into, each a call, at most as many
 *              as cq_batch_split() made room for; 0 or 1: one call reads all
 */
struct cq_attn_opts {
	size_t sz;
	uint32_t flags;
	int32_t device;
	void *stream;
	float scale;
	float soft_cap;
	uint32_t sliding_window;
	uint32_t head_begin, head_end;
	uint32_t pad;
	float *lse;
	size_t lse_stride;
	uint32_t part, n_parts;
};

/**
 * struct cq_part - what cq_attention() gave for a part of the pages
 * @o:          [rows][n_heads][head_dim], as it was given; f32, lest it is rounded
 *              twice
 * @lse:        [rows][n_heads]
 * @lse_stride: floats between rows; 0: n_heads
 */
struct cq_part {
	struct cq_view o;
	const float *lse;
	size_t lse_stride;
};

/**
 * struct cq_seq_info - what a sequence holds
 * @sz:        set by the caller
 * @tokens:    committed tokens
 * @matched:   tokens found published when it was opened
 * @sealed:    tokens in pages that others can attach to
 * @coded:     tokens read from codes (sealed or still private)
 * @pages:     full pages
 * @shared_bytes: bytes of shared slots it reads
 * @private_bytes: bytes of this worker's arena it holds
 */
struct cq_seq_info {
	size_t sz;
	uint64_t tokens, matched, sealed, coded;
	uint64_t pages;
	uint64_t shared_bytes, private_bytes;
};

/**
 * cq_version() - version of the library
 *
 * Return: "0.1.0".
 */
const char *cq_version(void);

/**
 * cq_last_error() - the sentence of this thread's last failure
 *
 * Return: text owned by the library, valid until the thread's next cq call;
 * "" if nothing failed yet.
 */
const char *cq_last_error(void);

/**
 * cq_open() - connect to cqd
 * @opts: NULL for all defaults
 * @out:  context, ended with cq_close()
 *
 * Return: 0; -ENOENT or -ECONNREFUSED no daemon (the path is in the text);
 * -EPROTO other protocol version or feature; -EACCES not a member of the
 * namespace; -EUSERS or -ENOSPC cqd has as many connections as it may; -E2BIG
 * options newer than this library; -EINVAL; -ENOMEM; -ETIMEDOUT.
 */
int cq_open(const struct cq_open_opts *opts, struct cq_ctx **out);

/**
 * cq_close() - end everything opened from a context, release every pin
 * @ctx: context or NULL; pages that are not published yet stay unpublished
 */
void cq_close(struct cq_ctx *ctx);

/**
 * cq_poll() - do what the own thread would do (CQ_OPEN_POLL)
 * @ctx:        context
 * @timeout_ms: how long to wait for something to do; 0: do not wait
 *
 * Return: number of events handled; -EINVAL the context has its own thread;
 * -ENOTCONN cqd is away (tokens stay private, calls go on).
 */
int cq_poll(struct cq_ctx *ctx, int timeout_ms);

/**
 * cq_event_fd() - eventfd that tells when to go on
 * @ctx: context
 *
 * Readable after something was sealed and arena memory can be had again. The
 * caller reads it; it stays the context's.
 *
 * Return: the descriptor; -EOWNERDEAD; -EINVAL.
 */
int cq_event_fd(struct cq_ctx *ctx);

/**
 * cq_model_open() - get a model and reserve an arena
 * @ctx:  context
 * @name: as loaded with cqctl
 * @opts: NULL for all defaults
 * @out:  model, ended with cq_model_close()
 *
 * Return: 0; -ENOENT no such model; -EACCES not for this namespace; -EDQUOT
 * arena over the namespace's quota; -ENOSPC more models at once than a context
 * may have; -ENOMEM; -EINVAL shard outside the model, arena too small;
 * -ENODEV no NVIDIA driver, no such GPU, or one that cqd has no pool on (the text
 * says which); -EOPNOTSUPP this library or the GPU lacks kernels for the model;
 * -ENOTCONN cqd is away; -ETIMEDOUT; -EPROTO cqd's answer cannot be right; other
 * -errno of the driver's failures.
 */
int cq_model_open(struct cq_ctx *ctx, const char *name,
		  const struct cq_model_opts *opts, struct cq_model **out);

/**
 * cq_model_get_info() - shape, coding, sizes
 * @model: model
 * @info:  filled up to its sz
 *
 * Return: 0; -EINVAL; -EOWNERDEAD.
 */
int cq_model_get_info(struct cq_model *model, struct cq_model_info *info);

/**
 * cq_model_close() - end a model, its sequences and batches
 * @model: model or NULL
 */
void cq_model_close(struct cq_model *model);

/**
 * cq_seq_open() - start a sequence on the longest published prefix
 * @model: model
 * @ids: token ids of the prompt, [n]; at most n - 1 of them are matched, in
 *       whole pages, since a row must be left to compute
 * @n:   0 is allowed: an empty sequence
 * @opts: NULL for all defaults
 * @out: sequence, ended with cq_seq_close()
 *
 * The sequence then has cq_seq_length() tokens; the caller appends and commits
 * the rest. When cqd is away, nothing matches and the sequence starts empty; a
 * connection that is coming back is waited for, timeout_ms of cq_open() at most.
 *
 * Return: 0; -ENOMEM; -EINVAL.
 */
int cq_seq_open(struct cq_model *model, const uint32_t *ids, size_t n,
		const struct cq_seq_opts *opts, struct cq_seq **out);

/**
 * cq_seq_close() - end a sequence
 * @seq: sequence or NULL; its forks live on
 */
void cq_seq_close(struct cq_seq *seq);

/**
 * cq_seq_length() - committed tokens
 * @seq: sequence
 *
 * Return: their number; 0 for a handle that is none.
 */
size_t cq_seq_length(const struct cq_seq *seq);

/**
 * cq_seq_get_info() - what a sequence holds
 * @seq:  sequence
 * @info: filled up to its sz
 *
 * Return: 0; -EINVAL; -EOWNERDEAD.
 */
int cq_seq_get_info(struct cq_seq *seq, struct cq_seq_info *info);

/**
 * cq_append() - keys and values of @n new tokens, one layer
 * @seq:   sequence
 * @layer: layer of the shard; every layer gets the same @n before cq_commit()
 * @k:     [n][n_kv_heads][head_dim], pre-RoPE unless CQ_APPEND_ROTATED
 * @v:     the same shape
 * @n:     tokens
 * @opts:  NULL for all defaults
 *
 * Appending the same layer again before commit continues after what it
 * already has. Values are rounded to fp16. No system call, no lock. On a GPU codes
 * are made at once, where the page will be published, and a bad value is met
 * later: it keeps its page, and those forked from that, from being published.
 *
 * Return: 0; -EINVAL a NaN, Inf or value beyond fp16 (layer, head and token
 * are named), or a view that is not in the GPU's memory; -ENOBUFS arena full, or
 * no slot of the GPU leased (nothing changed; wait on cq_event_fd() or close
 * something); -ERANGE beyond max_position; -ESTALE cqd has forgotten the slots of
 * a GPU, and only these (close the sequence and open it anew); -EOWNERDEAD; -errno of the driver's
 * failures.
 */
int cq_append(struct cq_seq *seq, uint32_t layer, const struct cq_view *k,
	      const struct cq_view *v, size_t n, const struct cq_append_opts *opts);

/**
 * cq_append_rows() - keys and values of all rows of a step, one layer
 * @batch: batch, after cq_step(); none of its sequences has uncommitted tokens
 * @layer: layer of the shard
 * @k:     [rows][n_kv_heads][head_dim], in the order of the step's rows
 * @v:     the same shape
 * @opts:  as for cq_append()
 *
 * The same as cq_append() for one sequence of the step after the other; on a GPU
 * one launch, which reads where the rows go from what cq_step() brings over.
 *
 * Return: as cq_append(). In host memory sequences before one that is refused have
 * their rows.
 */
int cq_append_rows(struct cq_batch *batch, uint32_t layer, const struct cq_view *k,
		   const struct cq_view *v, const struct cq_append_opts *opts);

/**
 * cq_replayed() - a CUDA graph with the appends of a step was launched
 * @batch: batch, after cq_step()
 *
 * cq_append_rows() and cq_attention() may be captured, on a stream given in their
 * options or on the model's; other calls may not. Such a graph serves every later
 * step of the batch: cq_step(), launch on the model's stream or in its order,
 * cq_replayed(), cq_commit(). The rows count as appended to every layer from here on.
 *
 * Return: 0; -EINVAL no step, or a sequence has uncommitted tokens; -EOWNERDEAD.
 */
int cq_replayed(struct cq_batch *batch);

/**
 * cq_commit() - make the first @n appended tokens part of the sequence
 * @seq: sequence
 * @ids: their token ids
 * @n:   tokens
 *
 * Full pages are encoded here and handed over for sealing: at most one eventfd
 * write per page, no other system call.
 *
 * Return: 0; -EINVAL a layer has fewer than @n tokens (it is named); -ENOMEM;
 * nothing changed on failure. Memory for codes was taken with that for the
 * tokens: the arena being full is met by append or step.
 */
int cq_commit(struct cq_seq *seq, const uint32_t *ids, size_t n);

/**
 * cq_seal() - wait until every full page is published
 * @seq:        sequence
 * @timeout_ms: -1: without limit
 *
 * Return: 0; -ETIMEDOUT; -ENOTCONN cqd is away; or what kept a page from being
 * published, which stays private and usable: -EDQUOT or -ENOSPC the daemon has
 * no room, -ENOENT it has lost the page before, -ENODATA another model has the
 * name now.
 */
int cq_seal(struct cq_seq *seq, int timeout_ms);

/**
 * cq_fork() - a second sequence with the same tokens
 * @seq:  sequence
 * @opts: flags, priority and ttl_s count; position and extra bytes are
 *        inherited; NULL: all is
 * @out:  sequence, ended with cq_seq_close()
 *
 * Pages and window blocks are shared, only the part-filled block is copied.
 *
 * Return: 0; -ENOBUFS; -EBUSY uncommitted tokens; -ENOMEM; -EINVAL; -ESTALE.
 */
int cq_fork(struct cq_seq *seq, const struct cq_seq_opts *opts, struct cq_seq **out);

/**
 * cq_truncate() - keep the first tokens of a sequence
 * @seq: sequence; uncommitted tokens are dropped
 * @n:   tokens to keep
 *
 * Inside a coded page its codes are kept verbatim.
 *
 * Return: 0; -EINVAL @n beyond the length; -ENOBUFS or -ESTALE nothing changed.
 */
int cq_truncate(struct cq_seq *seq, size_t n);

/**
 * cq_publish() - hand a sequence to whoever attaches to its name
 * @seq:  sequence, without uncommitted tokens, not CQ_SEQ_PRIVATE; it goes on as
 *        before, but steps that name it end
 * @name: 1 to 63 printable characters without space, in the namespace of this
 *        worker
 * @opts: NULL for all defaults
 *
 * Waits until the full pages are published, then hands the rest over: token
 * ids, position, extra bytes, window, and the part-filled page. cqd keeps both,
 * counted to the namespace's quotas, until the name goes, whatever becomes of
 * this process and of cqd itself.
 *
 * Return: 0; -EEXIST the name is in use; -EBUSY uncommitted tokens; -EINVAL;
 * -ENOBUFS arena full; -EDQUOT, -ENOSPC no room for pages, tail, pin or name;
 * -ENOENT cqd has lost a page; -EMSGSIZE more pieces than a message names;
 * -EIO; -ENOTCONN; -ETIMEDOUT; -ENOMEM; -ESTALE on a GPU, cqd has forgotten this
 * worker's slots; -EOWNERDEAD. After -ENOTCONN and -ETIMEDOUT the name may be
 * there: try again with CQ_PUBLISH_REPLACE. On a GPU it waits for the device, and
 * the quota has to hold the rest twice for a moment.
 */
int cq_publish(struct cq_seq *seq, const char *name, const struct cq_publish_opts *opts);

/**
 * cq_attach() - go on with a published sequence
 * @model: model and shard that it was published from
 * @name:  name
 * @opts:  flags (CQ_SEQ_PRIVATE), priority and ttl_s of pages to come; position
 *         and extra bytes are those of the sequence; NULL for all defaults
 * @out:   sequence, ended with cq_seq_close()
 *
 * It reads what the publisher read, bit for bit: pages in place, window and
 * part-filled page from copies in this worker's arena. Nothing that the
 * publisher wrote is believed: it is checked, and keys are derived anew.
 *
 * Return: 0; -ENOENT no such name; -ENODATA it only keeps pages, or was made with
 * another salt, or a page is gone; -ENOBUFS arena full; -EPROTO what was
 * published cannot be right; -EDQUOT, -ENOSPC no pin; -ENOTCONN; -ETIMEDOUT;
 * -ENOMEM; -EINVAL; -EOWNERDEAD. A name of CQ_PUBLISH_ONCE is gone then, except
 * after -ENOENT, -EINVAL, and -ENOBUFS of a tail larger than the arena's room or of
 * a GPU on which no slot is leased yet.
 */
int cq_attach(struct cq_model *model, const char *name, const struct cq_seq_opts *opts,
	      struct cq_seq **out);

/**
 * cq_unpublish() - take a name away
 * @ctx:  context
 * @name: name in its namespace; sequences attached to it go on
 *
 * Return: 0; -ENOENT; -EINVAL; -ENOTCONN; -ETIMEDOUT; -EOWNERDEAD.
 */
int cq_unpublish(struct cq_ctx *ctx, const char *name);

/**
 * cq_tokens() - token ids of a sequence
 * @seq:  sequence
 * @from: first token
 * @n:    tokens, all committed
 * @ids:  [n]
 *
 * Return: 0; -EINVAL; -EOWNERDEAD.
 */
int cq_tokens(struct cq_seq *seq, size_t from, size_t n, uint32_t *ids);

/**
 * cq_batch_new() - memory for steps
 * @model:    model
 * @max_seqs: sequences in one step
 * @max_rows: query rows in one step, all sequences together
 * @max_tokens: tokens of the longest sequence; 0: the model's max_position
 * @out:      batch, ended with cq_batch_free()
 *
 * Return: 0; -ENOMEM; -EINVAL.
 */
int cq_batch_new(struct cq_model *model, uint32_t max_seqs, uint32_t max_rows,
		 uint64_t max_tokens, struct cq_batch **out);

/**
 * cq_batch_free() - end a batch
 * @batch: batch or NULL
 */
void cq_batch_free(struct cq_batch *batch);

#define CQ_MAX_PARTS 1024

/**
 * cq_batch_split() - room for calls on parts of the pages
 * @batch:   batch; no call on it is running
 * @n_parts: parts that run at once on the same kv heads, 1 to CQ_MAX_PARTS; a
 *           batch begins with 1
 *
 * Each part takes as much memory as the batch took for attention. Steps go on.
 *
 * Return: 0; -EINVAL; -ENOMEM, nothing changed; -EOPNOTSUPP on a GPU, which splits
 * every call by itself; -EOWNERDEAD.
 */
int cq_batch_split(struct cq_batch *batch, uint32_t n_parts);

/**
 * cq_step() - what the next attention calls are about
 * @batch: batch
 * @seqs: [n], each at most once
 * @rows: [n] tokens of each sequence in this step: the @rows[i] tokens that
 *        follow its committed ones. They are appended to layer l before
 *        cq_attention() on layer l, and are its query rows: the first stands
 *        at position cq_seq_length(). Rows of a sequence follow each other in
 *        q and o, sequences in the order of @seqs
 * @n:    sequences
 *
 * Updates the one block of memory that append and attention read about the
 * batch, and reserves arena memory for the rows, so that cq_append() of them
 * cannot fail with -ENOBUFS. A step holds until the next cq_step() on the batch
 * or the next commit, truncate or close of one of its sequences.
 *
 * On a GPU that block is brought to its place by one asynchronous copy on the
 * model's stream; this call waits for the device only if it is three steps behind,
 * or if @n is 0: then until all earlier steps of the batch are over.
 *
 * Return: 0; -EINVAL; -ENOSPC batch too small; -ENOBUFS arena full (nothing
 * changed); -ERANGE beyond max_position; -ESTALE on a GPU a shared page was taken
 * back while an earlier step read it, whose results are void; -errno of the
 * driver's failures.
 */
int cq_step(struct cq_batch *batch, struct cq_seq *const *seqs,
	    const uint32_t *rows, uint32_t n);

/**
 * cq_attention() - one layer of attention over the batch
 * @batch: batch, after cq_step()
 * @layer: layer of the shard
 * @q:     [rows][n_heads][head_dim]
 * @o:     the same shape; may be f32, f16 or bf16
 * @opts:  NULL for all defaults
 *
 * No system call, no lock, no allocation. A query vector with a NaN, Inf or
 * value beyond 1e15 / scale gives NaN in its own o and lse. Source: Dao et al.,
 * FlashAttention, arXiv 2205.14135, algorithm 1 (online softmax), over decoded
 * centroids.
 *
 * With opts->n_parts calls for every opts->part, equal but for @o and lse, read
 * all pages between them, each about the same share of the work: threads of the
 * caller's that have no kv heads of their own. @o and lse are those of the part
 * alone, 0 and -inf where it has nothing that a row sees; cq_merge() makes them
 * one. -ESTALE is about the pages of the part: the merged result stands if no part
 * has met it.
 *
 * Return: 0; -ESTALE a shared page was taken back meanwhile, o and lse are
 * void (close the sequence and open it anew; on a GPU it is the next cq_step()
 * that tells); -EINVAL; -EOWNERDEAD; -errno of the driver's failures.
 */
int cq_attention(struct cq_batch *batch, uint32_t layer, const struct cq_view *q,
		 const struct cq_view *o, const struct cq_attn_opts *opts);

/**
 * cq_merge() - one result of attention over parts
 * @batch: batch, its step not over
 * @parts: [n] results of the same rows, all there: the caller has waited for the
 *         threads that made them
 * @n:     parts
 * @o:     [rows][n_heads][head_dim], f32, f16 or bf16; may be the view of one of
 *         @parts
 * @opts:  head_begin and head_end, lse and lse_stride of the result, and whether
 *         every lse is in log2 units count; NULL for all defaults
 *
 * No system call, no lock, no allocation; in f32. What else has a log-sum-exp over
 * other tokens can be merged as well. NaN goes through. Source: Dao et al.,
 * Flash-Decoding, 2023, the reduction over splits of the keys; Milakov and
 * Gimelshein, arXiv 1805.02867, section 3.1.
 *
 * Return: 0; -EINVAL; -EOPNOTSUPP on a GPU; -EOWNERDEAD.
 */
int cq_merge(struct cq_batch *batch, const struct cq_part *parts, uint32_t n,
	     const struct cq_view *o, const struct cq_attn_opts *opts);

/**
 * cq_read() - keys and values as attention sees them
 * @seq:   sequence
 * @layer: layer of the shard
 * @from:  first token
 * @n:     tokens, all committed
 * @k:    [n][n_kv_heads][head_dim], pre-RoPE, f32/f16/bf16, in the host's memory;
 *        NULL: not wanted
 * @v:    the same
 *
 * Of a sequence on a GPU, codes and rows are copied over the model's stream, which
 * is waited for, and decoded by the host.
 *
 * Return: 0; -ESTALE a shared page was taken back meanwhile, @k and @v are void;
 * -ENOMEM or -errno of the driver on a GPU; -EINVAL; -EOWNERDEAD.
 */
int cq_read(struct cq_seq *seq, uint32_t layer, size_t from, size_t n,
	    const struct cq_view *k, const struct cq_view *v);

struct cq_codec;

/**
 * struct cq_codec_info - what a model file holds
 * @sz:           set by the caller to sizeof(struct cq_codec_info)
 * @n_layers:     layers
 * @n_heads:      query heads
 * @n_kv_heads:   kv heads
 * @head_dim:     channels per head
 * @max_position: positions the model was made for
 * @sinks:        tokens at the start of a sequence that stay in fp16
 * @window:       recent tokens that their owner reads in fp16
 * @rotated:      1 if keys are coded as RoPE leaves them, else 0
 * @file_bytes:   bytes of the file, codebooks for the most part
 * @page_bytes:   bytes of the codes of 64 tokens, all layers and heads
 * @hash:         SHA-256 that names the model
 * @fingerprint:  SHA-256 of the language model's weights
 * @kernels:      implementation in use
 */
struct cq_codec_info {
	size_t sz;
	uint32_t n_layers, n_heads, n_kv_heads, head_dim;
	uint32_t max_position;
	uint32_t sinks, window;
	uint32_t rotated;
	uint64_t file_bytes;
	uint64_t page_bytes;
	uint8_t hash[32];
	uint8_t fingerprint[32];
	char kernels[16];
};

/**
 * struct cq_codec_part - coding of the keys or the values of one layer
 * @sz:          set by the caller to sizeof(struct cq_codec_part)
 * @channels:    channels that share a code; 0: fp16
 * @bits:        bits of a code; 0: fp16
 * @block_bytes: bytes of the codes of up to 64 tokens of one kv head
 * @name:        "4c8b" or "fp16"
 */
struct cq_codec_part {
	size_t sz;
	uint32_t channels, bits;
	uint64_t block_bytes;
	char name[16];
};

enum cq_kv {
	CQ_K = 0,
	CQ_V = 1,
};

/**
 * cq_codec_open() - read a model file, to code without a daemon
 * @path: regular file as cqctl calibrate writes it
 * @out:  set on success, owned by the caller until cq_codec_close()
 *
 * The file is read whole and may change afterwards. Nothing in it is trusted.
 * Calls on one codec may be made from several threads at the same time, except
 * for cq_codec_close().
 *
 * Return: 0; -errno of opening and reading the file; -EINVAL not a regular file,
 * malformed, or $CQ_KERNELS names none; -EFBIG more than 4 GiB; -EPROTO not a
 * cq model or another format; -EOPNOTSUPP a coding that this library lacks;
 * -ENOMEM.
 */
int cq_codec_open(const char *path, struct cq_codec **out);

/**
 * cq_codec_close() - free a codec
 * @codec: may be NULL
 */
void cq_codec_close(struct cq_codec *codec);

/**
 * cq_codec_get_info() - shape, sizes and names
 * @codec: codec
 * @info:  filled
 *
 * Return: 0 or -EINVAL.
 */
int cq_codec_get_info(const struct cq_codec *codec, struct cq_codec_info *info);

/**
 * cq_codec_get_part() - how keys or values of a layer are coded
 * @codec: codec
 * @layer: layer
 * @kv:    enum cq_kv
 * @part:  filled
 *
 * Return: 0 or -EINVAL.
 */
int cq_codec_get_part(const struct cq_codec *codec, uint32_t layer, uint32_t kv,
		      struct cq_codec_part *part);

/**
 * cq_codec_encode() - codes of keys or values
 * @codec: codec
 * @layer: layer
 * @kv:    enum cq_kv
 * @head:  kv head, which says whose codebook is used
 * @x:     rows [n][head_dim] of that head; stride_head is not used. Keys are as
 *         the model file says (info.rotated), channels in the model's own order
 * @n:     tokens, at most 2^30
 * @codes: room for ceil(n / 64) blocks of part.block_bytes, laid out as in a
 *         page; the part of the last one that has no tokens is zero
 *
 * The codes are those that a worker's pages hold: each row is rounded to fp16
 * and then coded.
 *
 * Return: 0; -EINVAL an argument, or a value that is NaN, infinite or beyond
 * fp16 (named by token and channel), @codes may have changed by then; -ENOMEM.
 */
int cq_codec_encode(const struct cq_codec *codec, uint32_t layer, uint32_t kv, uint32_t head,
		    const struct cq_view *x, size_t n, void *codes);

/**
 * cq_codec_decode() - keys or values as attention computes with them
 * @codec: codec
 * @layer: layer
 * @kv:    enum cq_kv
 * @head:  kv head
 * @codes: as cq_codec_encode() fills it; any bytes are legal where codes are
 *         coupled
 * @n:     tokens, at most 2^30
 * @out:   rows [n][head_dim], f32, f16 or bf16; stride_head is not used
 *
 * Return: 0; -EINVAL; -ENOMEM.
 */
int cq_codec_decode(const struct cq_codec *codec, uint32_t layer, uint32_t kv, uint32_t head,
		    const void *codes, size_t n, const struct cq_view *out);

#ifdef __cplusplus
}
#endif

#endif /* CQ_H */
