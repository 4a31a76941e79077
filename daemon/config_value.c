// SPDX-License-Identifier: MIT
/*
 * Values of cqd.conf: numbers, sizes, modes, lists. Everything is refused that
 * is not understood to its last character.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "daemon/config.h"
#include "proto/proto.h"

#define SEPARATORS ", \t"

/* Decimal digits at @s; @end after them. False: none, or over 64 bits. */
static bool digits(const char *s, uint64_t *out, const char **end)
{
	uint64_t v = 0;

	if (!isdigit((unsigned char)*s))
		return false;
	for (; isdigit((unsigned char)*s); s++)
		if (__builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
			return false;
	*out = v;
	*end = s;
	return true;
}

/**
 * cqd_value_u64() - whole decimal number
 * @s:   text
 * @min: smallest value allowed
 * @max: largest
 * @out: number
 * @err: reason of a failure
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_u64(const char *s, uint64_t min, uint64_t max, uint64_t *out,
		  struct cq_err *err)
{
	const char *end;
	uint64_t v;

	if (!digits(s, &v, &end) || *end)
		return cq_err_set(err, -EINVAL, "\"%s\" is not a whole number", s);
	if (v < min || v > max)
		return cq_err_set(err, -EINVAL, "%s is outside %llu to %llu", s,
				  (unsigned long long)min, (unsigned long long)max);
	*out = v;
	return 0;
}

static uint64_t unit_of(char c)
{
	switch (c) {
	case '\0':
		return 1;
	case 'k':
	case 'K':
		return 1ull << 10;
	case 'M':
		return 1ull << 20;
	case 'G':
		return 1ull << 30;
	case 'T':
		return 1ull << 40;
	default:
		return 0;
	}
}

/**
 * cqd_value_size() - bytes or a share
 * @s:     "4096", "16M", "25%"
 * @share: a percentage is allowed
 * @out:   size
 * @err:   reason of a failure
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_size(const char *s, bool share, struct cqd_size *out,
		   struct cq_err *err)
{
	const char *end;
	uint64_t v, unit;

	if (!digits(s, &v, &end))
		return cq_err_set(err, -EINVAL, "\"%s\" is not a size: write bytes, "
				  "or a number with k, M, G or T", s);
	if (end[0] == '%' && !end[1]) {
		if (!share)
			return cq_err_set(err, -EINVAL, "%s: no percentage here", s);
		if (v < 1 || v > 100)
			return cq_err_set(err, -EINVAL, "%s is outside 1%% to 100%%", s);
		*out = (struct cqd_size){ .percent = (uint32_t)v };
		return 0;
	}
	unit = unit_of(*end);
	if (!unit || (*end && end[1]))
		return cq_err_set(err, -EINVAL, "\"%s\" is not a size: unknown unit \"%s\", "
				  "use k, M, G or T%s", s, end, share ? " or %" : "");
	if (__builtin_mul_overflow(v, unit, &v))
		return cq_err_set(err, -EINVAL, "%s is more than 64 bits", s);
	*out = (struct cqd_size){ .bytes = v };
	return 0;
}

static uint64_t us_of(const char *unit)
{
	static const struct {
		const char *name;
		uint64_t us;
	} units[] = {
		{ "", 1000000 }, { "s", 1000000 }, { "ms", 1000 }, { "m", 60000000 },
		{ "h", 3600000000 }, { "d", 86400000000 },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(units); i++)
		if (!strcmp(units[i].name, unit))
			return units[i].us;
	return 0;
}

/**
 * cqd_value_time() - length of time
 * @s:   "90", "90s", "150ms", "15m", "2h", "7d"
 * @us:  in microseconds
 * @err: reason of a failure
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_time(const char *s, uint64_t *us, struct cq_err *err)
{
	const char *end;
	uint64_t v, unit;

	if (!digits(s, &v, &end))
		return cq_err_set(err, -EINVAL, "\"%s\" is not a time: write a number with ms, "
				  "s, m, h or d", s);
	unit = us_of(end);
	if (!unit)
		return cq_err_set(err, -EINVAL, "\"%s\" is not a time: unknown unit \"%s\", "
				  "use ms, s, m, h or d", s, end);
	if (__builtin_mul_overflow(v, unit, &v))
		return cq_err_set(err, -EINVAL, "%s is too long", s);
	*us = v;
	return 0;
}

/**
 * cqd_value_pressure() - when memory is given back
 * @s:   "off", or "some TIME": tasks stalled for so long in 2 s
 * @us:  0, or the time in microseconds
 * @err: reason of a failure
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_pressure(const char *s, uint32_t *us, struct cq_err *err)
{
	uint64_t v;
	int ret;

	if (!strcmp(s, "off")) {
		*us = 0;
		return 0;
	}
	if (strncmp(s, "some ", 5))
		return cq_err_set(err, -EINVAL, "\"%s\" is neither off nor \"some TIME\"", s);
	s += 5 + strspn(s + 5, " \t");
	ret = cqd_value_time(s, &v, err);
	if (ret)
		return ret;
	if (v < 1000 || v > 2000000)
		return cq_err_set(err, -EINVAL, "some %s is outside 1ms to 2s", s);
	*us = (uint32_t)v;
	return 0;
}

/**
 * cqd_value_huge() - which pages memory is made of
 * @s:   "never", "auto" or "always"
 * @out: its huge is set
 * @err: reason of a failure
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_huge(const char *s, struct cqd_mem_policy *out, struct cq_err *err)
{
	static const char *const names[] = {
		[CQD_HUGE_NEVER] = "never", [CQD_HUGE_AUTO] = "auto",
		[CQD_HUGE_ALWAYS] = "always",
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(s, names[i])) {
			out->huge = i;
			return 0;
		}
	return cq_err_set(err, -EINVAL, "\"%s\" is none of never, auto, always", s);
}

/* "0,2-3" as bits; 0 if it is no such list. */
static uint64_t node_list(const char *s)
{
	uint64_t from, to, bits = 0;

	for (;; s++) {
		if (!digits(s, &from, &s))
			return 0;
		to = from;
		if (*s == '-' && !digits(s + 1, &to, &s))
			return 0;
		if (from > to || to > 63)
			return 0;
		bits |= (to == 63 ? 0 : 1ull << (to + 1)) - (1ull << from);
		if (!*s)
			return bits;
		if (*s != ',')
			return 0;
	}
}

/**
 * cqd_value_numa() - on which nodes memory is taken
 * @s:   "default", "interleave", "bind:NODES" or "preferred:NODE"
 * @out: its numa and nodes are set
 * @err: reason of a failure
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_numa(const char *s, struct cqd_mem_policy *out, struct cq_err *err)
{
	const char *list = strchr(s, ':');
	uint64_t nodes = list ? node_list(list + 1) : 0;
	bool one = nodes && !(nodes & (nodes - 1));

	if (!strcmp(s, "default"))
		out->numa = CQD_NUMA_DEFAULT;
	else if (!strcmp(s, "interleave"))
		out->numa = CQD_NUMA_INTERLEAVE;
	else if (!strncmp(s, "bind:", 5) && nodes)
		out->numa = CQD_NUMA_BIND;
	else if (!strncmp(s, "preferred:", 10) && one)
		out->numa = CQD_NUMA_PREFERRED;
	else
		return cq_err_set(err, -EINVAL, "\"%s\" is none of default, interleave, "
				  "bind:NODES (0,2-3; up to 63), preferred:NODE", s);
	out->nodes = nodes;
	return 0;
}

/**
 * cqd_value_mode() - octal permission bits
 * @s:   up to four digits, "0660"
 * @out: mode
 * @err: reason of a failure
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_mode(const char *s, uint32_t *out, struct cq_err *err)
{
	size_t len = strspn(s, "01234567");
	unsigned long v;

	if (!len || len > 4 || s[len])
		return cq_err_set(err, -EINVAL, "\"%s\" is not an octal mode like 0660", s);
	v = strtoul(s, NULL, 8);
	if (v > 0777)
		return cq_err_set(err, -EINVAL, "mode %s is over 0777", s);
	*out = (uint32_t)v;
	return 0;
}

static int one_uid(const char *word, uid_t *out, struct cq_err *err)
{
	const struct passwd *pw;
	uint64_t v;

	if (isdigit((unsigned char)*word)) {
		/* (uid_t)-1 is nobody's */
		if (cqd_value_u64(word, 0, UINT32_MAX - 1, &v, err) < 0)
			return -EINVAL;
		*out = (uid_t)v;
		return 0;
	}
	/* cppcheck-suppress getpwnamCalled ; the loop's thread alone asks */
	pw = getpwnam(word);
	if (!pw)
		return cq_err_set(err, -EINVAL, "no user \"%s\" on this machine", word);
	*out = pw->pw_uid;
	return 0;
}

/**
 * cqd_value_uids() - "*", or uids and user names
 * @s:   words separated by commas or spaces
 * @out: list, @out->uid is malloced
 * @err: reason of a failure
 *
 * Return: 0, -EINVAL or -ENOMEM.
 */
int cqd_value_uids(const char *s, struct cqd_uids *out, struct cq_err *err)
{
	struct cqd_uids list = { 0 };
	char *copy, *word, *save = NULL;
	int ret = 0;

	copy = strdup(s);
	list.uid = calloc(strlen(s) + 1, sizeof(*list.uid));
	if (!copy || !list.uid) {
		ret = cq_err_set(err, -ENOMEM, "out of memory");
		goto out;
	}
	for (word = strtok_r(copy, SEPARATORS, &save); word && !ret;
	     word = strtok_r(NULL, SEPARATORS, &save)) {
		if (!strcmp(word, "*"))
			list.any = true;
		else
			ret = one_uid(word, &list.uid[list.n++], err);
	}
	if (!ret && !list.n && !list.any)
		ret = cq_err_set(err, -EINVAL, "no uid given; \"*\" means everybody");
	if (!ret) {
		*out = list;
		list.uid = NULL;
	}
out:
	free(list.uid);
	free(copy);
	return ret;
}

static void names_free(struct cqd_names *list)
{
	unsigned int i;

	for (i = 0; i < list->n; i++)
		free(list->name[i]);
	free(list->name);
}

/**
 * cqd_value_names() - list of names
 * @s:   words separated by commas or spaces
 * @out: list, malloced
 * @err: reason of a failure
 *
 * Return: 0, -EINVAL or -ENOMEM.
 */
int cqd_value_names(const char *s, struct cqd_names *out, struct cq_err *err)
{
	struct cqd_names list = { 0 };
	char *copy, *word, *save = NULL;
	int ret = 0;

	copy = strdup(s);
	list.name = calloc(strlen(s) + 1, sizeof(*list.name));
	if (!copy || !list.name) {
		ret = cq_err_set(err, -ENOMEM, "out of memory");
		goto out;
	}
	for (word = strtok_r(copy, SEPARATORS, &save); word && !ret;
	     word = strtok_r(NULL, SEPARATORS, &save)) {
		if (!cqd_name_ok(word))
			ret = cq_err_set(err, -EINVAL, "bad name \"%s\"", word);
		else if (!(list.name[list.n] = strdup(word)))
			ret = cq_err_set(err, -ENOMEM, "out of memory");
		else
			list.n++;
	}
	if (!ret && !list.n)
		ret = cq_err_set(err, -EINVAL, "empty list");
out:
	free(copy);
	if (ret)
		names_free(&list);
	else
		*out = list;
	return ret;
}

/**
 * cqd_name_ok() - may this be the name of a namespace or model?
 * @name: text
 *
 * Return: true for 1 to 63 of [A-Za-z0-9._-] that start with neither '.' nor
 * '-': names become parts of paths and arguments.
 */
bool cqd_name_ok(const char *name)
{
	size_t i;

	if (!name[0] || name[0] == '.' || name[0] == '-')
		return false;
	for (i = 0; name[i]; i++)
		if (i >= CQP_MAX_NAME - 1 ||
		    (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i])))
			return false;
	return true;
}

/**
 * cqd_uids_match() - is @uid in the list?
 * @uids: list
 * @uid:  of a peer
 */
bool cqd_uids_match(const struct cqd_uids *uids, uid_t uid)
{
	unsigned int i;

	if (uids->any)
		return true;
	for (i = 0; i < uids->n; i++)
		if (uids->uid[i] == uid)
			return true;
	return false;
}

/* The part of "host:port" or "[host]:port" before the colon, and the port. */
static int split_address(const char *s, char host[64], uint64_t *port)
{
	const char *colon = strrchr(s, ':');
	size_t n = colon ? (size_t)(colon - s) : 0;
	bool brackets = s[0] == '[';

	if (!colon || n < 3 || n >= 64 || brackets != (s[n - 1] == ']'))
		return -EINVAL;
	snprintf(host, 64, "%.*s", (int)n - 2 * brackets, s + brackets);
	return cqd_value_u64(colon + 1, 1, 65535, port, NULL);
}

/**
 * cqd_value_address() - a TCP address
 * @s:   "127.0.0.1:9464" or "[::1]:9464"; no names
 * @out: set on success
 * @err: what is wrong
 *
 * Return: 0 or -EINVAL.
 */
int cqd_value_address(const char *s, struct cqd_address *out, struct cq_err *err)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
	struct sockaddr_in four = { .sin_family = AF_INET };
	char host[64];
	uint64_t port = 0;
	bool is6 = s[0] == '[';

	if (split_address(s, host, &port) ||
	    inet_pton(is6 ? AF_INET6 : AF_INET, host,
		      is6 ? (void *)&six.sin6_addr : (void *)&four.sin_addr) != 1)
		return cq_err_set(err, -EINVAL, "\"%s\" is no address and port, as in "
				  "127.0.0.1:9464 or [::1]:9464", s);
	six.sin6_port = htons((uint16_t)port);
	four.sin_port = htons((uint16_t)port);
	memset(out, 0, sizeof(*out));
	out->len = is6 ? sizeof(six) : sizeof(four);
	memcpy(&out->sa, is6 ? (const void *)&six : (const void *)&four, out->len);
	return 0;
}
