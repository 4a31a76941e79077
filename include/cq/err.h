/* SPDX-License-Identifier: MIT */
/*
 * The text of a failure, carried beside its -errno.
 *
 * Libraries never log. The function that knows what failed writes one
 * sentence here (what, where, remedy); the program that meets the error
 * prints it once. A NULL buffer is allowed everywhere and drops the text.
 */
#ifndef CQ_ERR_H
#define CQ_ERR_H

#include <stdarg.h>
#include <stdio.h>

#define CQ_ERR_TEXT 256

/**
 * struct cq_err - text of the last failure
 * @text: one line without a final newline, always terminated
 */
struct cq_err {
	char text[CQ_ERR_TEXT];
};

/**
 * cq_err_set() - describe a failure and pass its code through
 * @e:    where to write, may be NULL
 * @code: negative errno
 * @fmt:  printf format: what failed, where, what to do
 *
 * Return: @code, so that "return cq_err_set(...)" reads well.
 */
__attribute__((format(printf, 3, 4)))
static inline int cq_err_set(struct cq_err *e, int code, const char *fmt, ...)
{
	va_list ap;

	if (e) {
		va_start(ap, fmt);
		vsnprintf(e->text, sizeof(e->text), fmt, ap);
		va_end(ap);
	}
	return code;
}

#endif /* CQ_ERR_H */
