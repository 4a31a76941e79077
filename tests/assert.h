/* SPDX-License-Identifier: MIT */
/*
 * Assertions, for whoever says what FAIL(format, ...) does: the harness of tests, and rigs of
 * programs that are none.
 */
#ifndef TEST_ASSERT_H
#define TEST_ASSERT_H

#include <errno.h>
#include <math.h>
#include <string.h>

#define ASSERT(c) do { if (!(c)) FAIL("%s", #c); } while (0)
#define TEST_COMPARE(a, op, b) do {						\
	long long _a = (long long)(a), _b = (long long)(b);			\
	if (!(_a op _b))							\
		FAIL("%s = %lld, want %s %lld", #a, _a, #op, _b);		\
} while (0)
#define ASSERT_EQ(a, b) TEST_COMPARE(a, ==, b)
#define ASSERT_NE(a, b) TEST_COMPARE(a, !=, b)
#define ASSERT_LT(a, b) TEST_COMPARE(a, <, b)
#define ASSERT_LE(a, b) TEST_COMPARE(a, <=, b)
#define ASSERT_GT(a, b) TEST_COMPARE(a, >, b)
#define ASSERT_GE(a, b) TEST_COMPARE(a, >=, b)
/* A call that returns 0 or -errno. */
#define ASSERT_OK(call) do {							\
	int _r = (int)(call);							\
	if (_r < 0)								\
		FAIL("%s = %d (%s)", #call, _r, strerror(-_r));			\
} while (0)
/* A system call that returns -1 and sets errno. */
#define ASSERT_SYS(call) do {							\
	if ((long long)(call) < 0)						\
		FAIL("%s: %s", #call, strerror(errno));				\
} while (0)
#define ASSERT_STREQ(a, b) do {							\
	const char *_a = (a), *_b = (b);					\
	if (!_a || !_b || strcmp(_a, _b))					\
		FAIL("%s = \"%s\", want \"%s\"", #a, _a ? _a : "(null)",	\
		     _b ? _b : "(null)");					\
} while (0)
#define ASSERT_STRHAS(a, b) do {						\
	const char *_a = (a), *_b = (b);					\
	if (!_a || !_b || !strstr(_a, _b))					\
		FAIL("%s = \"%s\", want \"%s\" in it", #a,			\
		     _a ? _a : "(null)", _b ? _b : "(null)");			\
} while (0)
#define ASSERT_NEAR(a, b, eps) do {						\
	double _a = (a), _b = (b);						\
	if (!(fabs(_a - _b) <= (eps)))						\
		FAIL("%s = %g, want %g within %g", #a, _a, _b, (double)(eps));	\
} while (0)

#endif /* TEST_ASSERT_H */
