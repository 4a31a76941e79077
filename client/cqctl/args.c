// SPDX-License-Identifier: MIT
/* Options and arguments. No abbreviations: a script must keep its meaning. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "client/cqctl/cqctl.h"

int ctl_usage(struct ctl *c, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "cqctl%s%s: ", c->cmd ? " " : "", c->cmd ? c->cmd->name : "");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nTry \"cqctl %s%s--help\".\n", c->cmd ? c->cmd->name : "",
		c->cmd ? " " : "");
	return CTL_USAGE;
}

static void help(const struct ctl_command *cmd)
{
	printf("Usage: cqctl %s%s%s [--socket PATH] [--json]\n", cmd->name,
	       cmd->args[0] ? " " : "", cmd->args);
	printf("%c%s.\n", toupper((unsigned char)cmd->summary[0]), cmd->summary + 1);
	if (cmd->help)
		printf("\n%s", cmd->help);
}

/* Value of a long option "name" or "name=value"; NULL if it is another. */
static const char *long_match(const char *arg, const char *name)
{
	size_t n = strlen(name);

	if (strncmp(arg, name, n))
		return NULL;
	return arg[n] == '=' || !arg[n] ? arg + n : NULL;
}

static const struct ctl_opt *find_opt(const struct ctl_opt *opts, const char *arg,
				      const char **rest)
{
	for (; opts && opts->name; opts++) {
		if (arg[1] == '-')
			*rest = long_match(arg + 2, opts->name);
		else
			*rest = opts->letter && arg[1] == opts->letter ? arg + 2 : NULL;
		if (*rest)
			return opts;
	}
	return NULL;
}

/* One option at argv[*i]; moves *i over its value. CTL_GO_ON or exit status. */
static int take_option(struct ctl *c, int argc, char **argv, int *i,
		       const struct ctl_opt *opts)
{
	const struct ctl_opt common[] = {
		{ "json", 0, NULL, &c->json },
		{ "socket", 0, &c->socket, NULL },
		{ NULL, 0, NULL, NULL },
	};
	const char *arg = argv[*i], *rest = NULL;
	const struct ctl_opt *o;

	if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
		help(c->cmd);
		return CTL_OK;
	}
	o = find_opt(opts, arg, &rest);
	if (!o)
		o = find_opt(common, arg, &rest);
	if (!o)
		return ctl_usage(c, "unknown option %s", arg);
	if (o->flag) {
		if (rest[0])
			return ctl_usage(c, "option --%s takes no value", o->name);
		*o->flag = true;
	}
	if (!o->value)
		return CTL_GO_ON;
	if (rest[0]) {
		*o->value = arg[1] == '-' ? rest + 1 : rest;
		return CTL_GO_ON;
	}
	if (*i + 1 >= argc)
		return ctl_usage(c, "option --%s needs a value", o->name);
	*o->value = argv[++*i];
	return CTL_GO_ON;
}

int ctl_parse(struct ctl *c, int argc, char **argv, const struct ctl_opt *opts,
	      const char **pos, int min, int max)
{
	bool options = true;
	int i, n = 0, ret;

	for (i = 0; i < max; i++)
		pos[i] = NULL;
	for (i = 0; i < argc; i++) {
		if (options && !strcmp(argv[i], "--")) {
			options = false;
		} else if (options && argv[i][0] == '-' && argv[i][1]) {
			ret = take_option(c, argc, argv, &i, opts);
			if (ret != CTL_GO_ON)
				return ret;
		} else {
			if (n == max)
				return ctl_usage(c, "too many arguments: %s", argv[i]);
			pos[n++] = argv[i];
		}
	}
	if (n < min)
		return ctl_usage(c, "an argument is missing: %s", c->cmd->args);
	return CTL_GO_ON;
}

/* Number with a unit out of @units [@n]; the first one is "". */
struct unit {
	const char *name;
	uint64_t factor;
};

static int with_unit(const char *text, const struct unit *units, size_t n, uint64_t *out)
{
	size_t digits = strspn(text, "0123456789"), i;
	char number[24];
	uint64_t x;

	if (digits >= sizeof(number))
		return -EINVAL;
	memcpy(number, text, digits);
	number[digits] = '\0';
	if (ctl_number(number, 0, UINT64_MAX, &x))
		return -EINVAL;
	for (i = 0; i < n && strcmp(units[i].name, text + digits); i++)
		;
	if (i == n || __builtin_mul_overflow(x, units[i].factor, &x))
		return -EINVAL;
	*out = x;
	return 0;
}

int ctl_size(const char *text, uint64_t *bytes)
{
	static const struct unit units[] = {
		{ "", 1 }, { "k", 1ull << 10 }, { "K", 1ull << 10 }, { "M", 1ull << 20 },
		{ "G", 1ull << 30 }, { "T", 1ull << 40 },
	};

	return with_unit(text, units, ARRAY_SIZE(units), bytes);
}

int ctl_duration(const char *text, uint64_t *us)
{
	static const struct unit units[] = {
		{ "", 1000000 }, { "s", 1000000 }, { "ms", 1000 }, { "m", 60000000 },
		{ "h", 3600000000 }, { "d", 86400000000 },
	};

	return with_unit(text, units, ARRAY_SIZE(units), us);
}

int ctl_real(const char *text, double *out)
{
	char *end;
	double x = strtod(text, &end);

	if (end == text || *end || isspace((unsigned char)text[0]) || !isfinite(x))
		return -EINVAL;
	*out = x;
	return 0;
}

int ctl_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
	uint64_t x = 0;
	const char *s;

	for (s = text; isdigit((unsigned char)*s); s++)
		if (__builtin_mul_overflow(x, 10, &x) ||
		    __builtin_add_overflow(x, (uint64_t)(*s - '0'), &x))
			return -EINVAL;
	if (s == text || *s || x < min || x > max)
		return -EINVAL;
	*out = x;
	return 0;
}
