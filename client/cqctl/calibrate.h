/* SPDX-License-Identifier: MIT */
/* Inside calibrate: its options, its files, what it says. */
#ifndef CQCTL_CALIBRATE_H
#define CQCTL_CALIBRATE_H

#include <sys/types.h>
#include "client/cqctl/cqctl.h"
#include "client/cqctl/partial.h"
#include "kernels/calibrate.h"

/**
 * struct calib - one calibration
 * @c:       the run of the program
 * @acts:    name of the dump
 * @output:  name of the model file
 * @text:    options as given
 * @resume:  --resume
 * @dump:    mapped
 * @size:    its bytes
 * @stamp:   seconds and nanoseconds of its last change
 * @dev:     where it is
 * @ino:     which file there
 * @info:    what it is
 * @code:    [K, V][layer]
 * @fixed:   [2 * layer + V]: coded as --layers says, whatever the budget
 * @budget:  bits per channel, 0 if there is none
 * @choices: codings the budget chooses from, more and more bits
 * @n_choices: their number
 * @loss:    [2 * layer + V] of each choice of a budget
 * @relative: these are relative squared errors
 * @opts:    for the kernels
 * @error:   [layer] found
 * @partial: layers that are kept until all are learnt
 * @provenance: text for the model file
 * @start:   when the work began, seconds
 * @shown:   when progress was last shown
 * @step:    lines of it that were written
 * @tried:   progress counts what a budget tries
 * @unkept:  the partial file failed, as @c->err says
 * @terminal: standard error is one
 */
struct calib {
	struct ctl *c;
	const char *acts, *output;
	struct {
		const char *k, *v, *layers, *budget, *centroids, *sinks, *window;
		const char *fisher, *clip, *iterations, *starts, *threads, *seed;
		const char *scaling, *pairs, *choices;
	} text;
	bool resume;
	void *dump;
	size_t size;
	int64_t stamp[2];
	dev_t dev;
	ino_t ino;
	struct cqk_dump_info info;
	struct cq_code code[2][CQ_MAX_LAYERS];
	bool fixed[2 * CQ_MAX_LAYERS];
	double budget;
	struct cq_code choices[CQK_MAX_CHOICES];
	uint32_t n_choices;
	double loss[2 * CQ_MAX_LAYERS][CQK_MAX_CHOICES];
	struct cqk_calib_opts opts;
	struct cqk_calib_error error[CQ_MAX_LAYERS];
	struct ctl_partial partial;
	char provenance[768];
	double start, shown;
	uint32_t step;
	bool relative, tried, unkept, terminal;
};

/* Seconds of a clock that only goes on. */
double ctl_calib_now(void);

/* Maps the dump. 0, or -errno with the text in cal->c->err, as those below. */
int ctl_calib_map(struct calib *cal);
/* What was read of the dump need not stay in memory. */
void ctl_calib_release(void *arg, const void *data, size_t size);
/*
 * Known before the work that takes long: a file can be made beside the output, no other
 * process works at the same, and the dump stays. Opens the partial file.
 */
int ctl_calib_check_output(struct calib *cal);
/* Writes the model file, after which no partial file is left. */
int ctl_calib_write(struct calib *cal, const void *image, size_t size);
/* The partial file is of this dump and these options, to go on or anew. */
int ctl_calib_partial(struct calib *cal);

/* Options to cal->opts, before and after the dump is known. CTL_GO_ON or exit status. */
int ctl_calib_options(struct calib *cal);
int ctl_calib_codings(struct calib *cal);

int ctl_calib_progress(void *arg, uint32_t done, uint32_t total);
/* Says what became of it. Returns enum ctl_exit. */
int ctl_calib_report(const struct calib *cal, const struct cqk_model *m, size_t size,
		     double seconds);

#endif /* CQCTL_CALIBRATE_H */
