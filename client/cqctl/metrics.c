// SPDX-License-Identifier: MIT
/* metrics: the figures that Prometheus collects, over the admin socket. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/cqctl/cqctl.h"

/* Text of all answers, NUL at its end. */
struct text {
	char *buf;
	size_t len;
};

static int append(struct ctl *c, struct text *t, const ProtobufCBinaryData *piece)
{
	char *p = realloc(t->buf, t->len + piece->len + 1);

	if (!p)
		return cq_err_set(&c->err, -ENOMEM, "no memory for the metrics");
	if (piece->len)		/* else there may be no data at all */
		memcpy(p + t->len, piece->data, piece->len);
	t->buf = p;
	t->len += piece->len;
	p[t->len] = '\0';
	return 0;
}

static int get_text(struct ctl *c, struct text *t)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Metrics metrics = CQP__METRICS__INIT;
	bool more = true;
	int ret = 0;

	msg.body_case = CQP__MSG__BODY_METRICS;
	msg.metrics = &metrics;
	while (more && !ret) {
		reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_METRICS, &ret);
		if (!reply)
			break;
		more = reply->metrics->has_cursor;
		if (more && metrics.has_cursor && reply->metrics->cursor <= metrics.cursor)
			ret = cq_err_set(&c->err, -EPROTO, "cqd's metrics do not end");
		metrics.has_cursor = true;
		metrics.cursor = reply->metrics->cursor;
		if (!ret)
			ret = append(c, t, &reply->metrics->text);
		cqp_free(reply);
	}
	return ret;
}

/* Labels at @s, behind the brace: "a="b",..." to the closing one; NULL: not so. */
static const char *parse_labels(const char *s, json_t *out)
{
	char name[64], value[256];
	bool escaped;
	size_t n;

	while (*s && *s != '}') {
		n = strcspn(s, "=");
		if (n >= sizeof(name) || s[n] != '=' || s[n + 1] != '"')
			return NULL;
		snprintf(name, sizeof(name), "%.*s", (int)n, s);
		for (s += n + 2, n = 0; *s && *s != '"'; s++) {
			escaped = *s == '\\' && s[1];
			s += escaped;
			if (n + 1 < sizeof(value))
				value[n++] = escaped && *s == 'n' ? '\n' : *s;
		}
		value[n] = '\0';
		if (*s++ != '"')
			return NULL;
		json_object_set_new(out, name, ctl_json_text(value));
		s += *s == ',';
	}
	return *s == '}' ? s + 1 : NULL;
}

/* One sample as an object; NULL for comments and what cannot be read. */
static json_t *parse_line(const char *line)
{
	size_t n = strcspn(line, "{ ");
	json_t *labels = json_object(), *o;
	const char *at = line + n;
	char *end, *whole;
	long long count;
	double x;

	if (*at == '{')
		at = parse_labels(at + 1, labels);
	if (line[0] == '#' || !at || *at != ' ') {
		json_decref(labels);
		return NULL;
	}
	x = strtod(at, &end);
	count = strtoll(at, &whole, 10);
	o = json_pack("{s:o, s:o, s:o}", "name", json_stringn(line, n), "labels", labels,
		      "value", whole == end ? json_integer(count) : json_real(x));
	return o;
}

static int print_json(char *text)
{
	json_t *list = json_array(), *o;
	char *line, *save = NULL;

	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		o = parse_line(line);
		if (o)
			json_array_append_new(list, o);
	}
	return ctl_print_json(json_pack("{s:o}", "metrics", list));
}

int ctl_cmd_metrics(struct ctl *c, int argc, char **argv)
{
	struct text t = { NULL, 0 };
	int ret = ctl_parse(c, argc, argv, NULL, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	ret = get_text(c, &t);
	if (ret) {
		free(t.buf);
		return ctl_fail(c, ret, "%s", c->err.text);
	}
	ret = CTL_OK;
	if (c->json && t.buf)
		ret = print_json(t.buf);
	else if (t.buf)
		fwrite(t.buf, 1, t.len, stdout);
	free(t.buf);
	return ret;
}
