/* SPDX-License-Identifier: MIT */
/* doctor: findings about the machine and the daemon on it. */
#ifndef CQCTL_DOCTOR_H
#define CQCTL_DOCTOR_H

#include "client/cqctl/cqctl.h"

enum doc_level {
	DOC_OK,
	DOC_WARNING,	/* works, not as well as it could */
	DOC_PROBLEM,	/* does not work */
};

/**
 * struct doc_finding - what one check says
 * @text:   what is there
 * @remedy: what to do about it, "" if nothing
 */
struct doc_finding {
	enum doc_level level;
	char text[400];
	char remedy[200];
};

/**
 * struct doc_check - one check
 * @name: as printed
 * @run:  fills a finding that says DOC_OK; must not need root or a daemon
 */
struct doc_check {
	const char *name;
	void (*run)(struct ctl *c, struct doc_finding *f);
};

/* What the machine is like (doctor_host.c); ends with a name of NULL. */
extern const struct doc_check doc_host_checks[];

__attribute__((format(printf, 2, 3)))
void doc_text(struct doc_finding *f, const char *fmt, ...);
/* Raises the level, and says what to do. */
__attribute__((format(printf, 3, 4)))
void doc_remedy(struct doc_finding *f, enum doc_level level, const char *fmt, ...);
/* First line of a small file, without its end; false if it cannot be read. */
bool doc_read(const char *path, char *buf, size_t size);

#endif /* CQCTL_DOCTOR_H */
