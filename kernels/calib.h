/* SPDX-License-Identifier: MIT */
/* Inside calibration: one run, its jobs, and what they leave behind. */
#ifndef CQK_CALIB_H
#define CQK_CALIB_H

#include <pthread.h>
#include "kernels/calibrate.h"
#include "kernels/dump.h"
#include "kernels/kmeans.h"

/**
 * struct cqk_job - one codebook of one group, or one scan of a head
 * @entry: 2 * layer, + 1 for V
 * @head:  kv head
 * @group: channel group
 * @code:  coding of it
 * @every: one token in so many is learnt from
 * @held:  so many of the last ones weigh nothing
 * @err:   set: sum of squared errors
 * @norm:  set: sum of squares
 * @loss:  set by a budget: squared errors times squared gradients, of a token
 */
struct cqk_job {
	uint32_t entry;
	uint32_t head;
	uint32_t group;
	struct cq_code code;
	uint32_t every;
	uint32_t held;
	double err;
	double norm;
	double loss;
};

/**
 * struct cqk_calib - one run
 * @opts:      options
 * @dump:      opened
 * @gradients: those of the dump are read
 * @n_tokens:  tokens that sinks leave
 * @max_c:     most channels in a group
 * @layer:     [n_layers] what each comes to: see cqk_calib_part()
 * @jobs:      in the order of their layers
 * @n_jobs:    their number
 * @fn:        what the threads do with each job
 * @report:    progress counts @fn's jobs
 * @left:      [n_layers] jobs that are not finished
 * @finish:    called with a layer's number when none of its jobs is left
 * @lock:      guards what follows, @left too
 * @next:      next job to be taken
 * @done:      jobs finished
 * @failed:    lowest job that failed, so that the message does not depend on the
 *             threads
 * @ret:       of the run
 * @err:       its text
 */
struct cqk_calib {
	const struct cqk_calib_opts *opts;
	struct cqk_dump dump;
	bool gradients;
	uint32_t n_tokens;
	uint32_t max_c;
	uint8_t **layer;
	struct cqk_job *jobs;
	uint32_t n_jobs;
	int (*fn)(struct cqk_calib *c, struct cqk_job *job, struct cqk_kmeans *km,
		  struct cq_err *err);
	bool report;
	uint32_t *left;
	int (*finish)(struct cqk_calib *c, uint32_t layer);
	pthread_mutex_t lock;
	uint32_t next, done, failed;
	int ret;
	struct cq_err err;
};

/* Parts of what is kept of K or V of a layer. */
enum cqk_calib_part {
	CQK_PART_SUMS,		/* squared error, squares: two doubles */
	CQK_PART_STORED,	/* centroids as in the file */
	CQK_PART_SCALE,		/* [kv_head][d] f32, with 8-bit centroids */
	CQK_PART_METRIC,	/* [kv_head][d] f32, if there is a metric */
	CQK_PART_END,
};

/**
 * cqk_calib_part() - where a part lies among what is kept of a layer
 * @opts:  options
 * @entry: 2 * layer, + 1 for V
 * @part:  enum cqk_calib_part; CQK_PART_END of V gives the bytes of the layer
 *
 * Return: offset in the layer's bytes.
 */
size_t cqk_calib_part(const struct cqk_calib_opts *opts, uint32_t entry, uint32_t part);

/* Coding of an entry. */
static inline struct cq_code cqk_calib_code(const struct cqk_calib_opts *o, uint32_t entry)
{
	return entry % 2 ? o->v[entry / 2] : o->k[entry / 2];
}

/* Checks the options, opens the dump, counts tokens. 0 or -errno; free in any case. */
int cqk_calib_open(struct cqk_calib *c, const void *dump, size_t size, struct cq_err *err);
void cqk_calib_free(struct cqk_calib *c);

/* Looks at all of the dump that will be read, and refuses what cannot be coded. */
int cqk_calib_scan(struct cqk_calib *c, struct cq_err *err);

/* Tells the caller that the bytes of an entry, or of one head of it, were read. */
void cqk_calib_release(const struct cqk_calib *c, uint32_t entry, int head);

/* Empties the list of jobs and makes room for @n. 0 or -ENOMEM. */
int cqk_jobs_new(struct cqk_calib *c, uint32_t n, struct cq_err *err);
/* Appends a job for each head and each of @groups groups of @entry. */
void cqk_jobs_add(struct cqk_calib *c, uint32_t entry, struct cq_code code, uint32_t groups);

/**
 * cqk_jobs_run() - @c->fn on every job, shared out over threads
 * @c:   run, with @fn, @report and @finish (or NULL) set
 * @err: text of the failure
 *
 * Threads that cannot be had are done without. Return: 0, what a job or @finish
 * failed with, -ECANCELED or -ENOMEM.
 */
int cqk_jobs_run(struct cqk_calib *c, struct cq_err *err);

/*
 * Learns @job's centroids with at most @iterations: left in @km, not rounded. @km->g
 * has the squared gradients if @c->gradients.
 */
void cqk_learn(const struct cqk_calib *c, const struct cqk_job *job, struct cqk_kmeans *km,
	       uint32_t iterations);
/* The same as a job: stores them, and sets the job's error and norm. */
int cqk_learn_job(struct cqk_calib *c, struct cqk_job *job, struct cqk_kmeans *km,
		  struct cq_err *err);

#endif /* CQK_CALIB_H */
