// SPDX-License-Identifier: MIT
/*
 * Reader of cqd.conf. libinih splits the lines; what it would silently cut
 * (lines over 200 bytes, sections over 50) is handled or refused here, before
 * it sees them. A file is taken whole or not at all.
 */
#include <errno.h>
#include <ini.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "cq/util.h"
#include "daemon/config.h"

#define MAX_SOCKET_PATH 107	/* sun_path less its NUL */
#define SECTION_BYTES 256

enum kind {
	K_PATH,		/* char *, absolute */
	K_SOCKET,	/* the same, short enough for a socket */
	K_ADDRESS,	/* char *, of an address and port */
	K_WORD,		/* char *, as a name */
	K_TEXT,		/* char * */
	K_BYTES,	/* uint64_t */
	K_SHARE,	/* struct cqd_size */
	K_U32,
	K_U64,
	K_MODE,		/* uint32_t */
	K_SECONDS,	/* uint32_t */
	K_PRESSURE,	/* uint32_t, us */
	K_HUGE,		/* struct cqd_mem_policy, as the next */
	K_NUMA,
	K_SHARING,	/* uint32_t, as the next */
	K_BOOL,
	K_UIDS,
	K_NAMES,
};

/*
 * struct key - one key of a section
 * @name:   as written
 * @kind:   of its value
 * @fixed:  changing it needs a restart
 * @offset: of the field in the section's struct
 * @min, @max: of numbers and bytes
 */
struct key {
	const char *name;
	enum kind kind;
	bool fixed;
	size_t offset;
	uint64_t min, max;
};

#define D(field) offsetof(struct cqd_config, field)
#define N(field) offsetof(struct cqd_ns_config, field)

static const struct key daemon_keys[] = {
	{ "socket", K_SOCKET, true, D(socket), 0, 0 },
	{ "admin_socket", K_SOCKET, true, D(admin_socket), 0, 0 },
	{ "metrics_socket", K_SOCKET, true, D(metrics_socket), 0, 0 },
	{ "metrics_listen", K_ADDRESS, true, D(metrics_listen), 0, 0 },
	{ "socket_mode", K_MODE, true, D(socket_mode), 0, 0 },
	{ "pool_bytes", K_SHARE, true, D(pool_bytes), 0, 0 },
	{ "max_pages", K_U32, true, D(max_pages), 16, 1u << 28 },
	{ "max_clients", K_U32, true, D(max_clients), 1, 1u << 20 },
	{ "max_pins", K_U32, true, D(max_pins), 16, 1u << 28 },
	{ "segment_min", K_BYTES, true, D(segment_min), 1ull << 16, 1ull << 40 },
	{ "segment_max", K_BYTES, true, D(segment_max), 1ull << 16, 1ull << 40 },
	{ "low", K_U32, true, D(low), 1, 99 },
	{ "high", K_U32, true, D(high), 2, 100 },
	{ "half_life", K_SECONDS, true, D(half_life_s), 1, 7 * 86400 },
	{ "pressure", K_PRESSURE, true, D(pressure_us), 0, 0 },
	{ "verify_rate", K_BYTES, true, D(verify_rate), 0, 1ull << 50 },
	{ "hugepages", K_HUGE, true, D(policy), 0, 0 },
	{ "numa", K_NUMA, true, D(policy), 0, 0 },
	{ "persist", K_PATH, true, D(persist), 0, 0 },
	{ "persist_rate", K_BYTES, true, D(persist_rate), 0, 1ull << 50 },
	{ "backend", K_WORD, true, D(backend), 0, 0 },
	{ "max_connections", K_U32, false, D(max_connections), 1, 1u << 20 },
	{ "uid_connections", K_U32, false, D(uid_connections), 1, 1u << 20 },
	{ NULL, 0, false, 0, 0, 0 },
};

static const struct key ns_keys[] = {
	{ "uid", K_UIDS, false, N(uid), 0, 0 },
	{ "socket", K_SOCKET, true, N(socket), 0, 0 },
	{ "quota_bytes", K_SHARE, false, N(quota_bytes), 0, 0 },
	{ "quota_pages", K_U64, false, N(quota_pages), 0, 1ull << 40 },
	{ "quota_pins", K_U64, false, N(quota_pins), 0, 1ull << 40 },
	{ "connections", K_U32, false, N(connections), 0, 1u << 20 },
	{ "priority", K_U32, false, N(priority), 0, 255 },
	{ "priority_max", K_U32, false, N(priority_max), 0, 255 },
	{ "ttl", K_SECONDS, false, N(ttl_s), 0, UINT32_MAX },
	{ "salt", K_TEXT, true, N(salt), 0, 0 },
	{ "models", K_NAMES, false, N(models), 0, 0 },
	{ "readable_by", K_NAMES, false, N(readable_by), 0, 0 },
	{ NULL, 0, false, 0, 0, 0 },
};

static const struct key model_keys[] = {
	{ "path", K_PATH, false, offsetof(struct cqd_model_config, path), 0, 0 },
	{ NULL, 0, false, 0, 0, 0 },
};

#define G(field) offsetof(struct cqd_gpu_config, field)

static const struct key gpu_keys[] = {
	{ "uuid", K_TEXT, true, G(uuid), 0, 0 },
	{ "pool_bytes", K_SHARE, true, G(pool_bytes), 0, 0 },
	{ "sharing", K_SHARING, true, G(sharing), 0, 0 },
	{ "holder", K_SOCKET, true, G(holder), 0, 0 },
	{ "trust_readers", K_BOOL, true, G(trust_readers), 0, 0 },
	{ NULL, 0, false, 0, 0, 0 },
};

/*
 * struct reader - state of one pass over a file
 * @line:    number of the line that libinih is at
 * @section: of that line, uncut
 * @seen:    keys that the section already has, by bit
 * @daemon:  [daemon] was there
 * @keys:    of the section; NULL before the first one
 * @base:    struct that they fill
 */
struct reader {
	FILE *f;
	const char *path;
	unsigned int line;
	char section[SECTION_BYTES];
	uint32_t seen;
	bool daemon;
	const struct key *keys;
	void *base;
	struct cqd_config *cfg;
	int ret;
	struct cq_err *err;
};

/* Only the first failure of a file is reported. */
static int refuse(struct reader *r, int code, const char *what)
{
	if (!r->ret)
		r->ret = cq_err_set(r->err, code, "%s:%u: %s", r->path, r->line, what);
	return 0;
}

static int set_text(const struct key *k, const char *value, char **out,
		    struct cq_err *err)
{
	struct cqd_address address;
	char *copy;
	int ret;

	if (!value[0])
		return cq_err_set(err, -EINVAL, "no value");
	if ((k->kind == K_PATH || k->kind == K_SOCKET) && value[0] != '/')
		return cq_err_set(err, -EINVAL, "\"%s\" is not an absolute path", value);
	if (k->kind == K_SOCKET && strlen(value) > MAX_SOCKET_PATH)
		return cq_err_set(err, -EINVAL, "over %d characters: a socket's path cannot "
				  "be longer", MAX_SOCKET_PATH);
	if (k->kind == K_WORD && !cqd_name_ok(value))
		return cq_err_set(err, -EINVAL, "bad name \"%s\"", value);
	ret = k->kind == K_ADDRESS ? cqd_value_address(value, &address, err) : 0;
	if (ret)
		return ret;
	copy = strdup(value);
	if (!copy)
		return cq_err_set(err, -ENOMEM, "out of memory");
	free(*out);
	*out = copy;
	return 0;
}

static int set_number(const struct key *k, const char *value, void *field,
		      struct cq_err *err)
{
	struct cqd_size size;
	uint64_t v;
	int ret;

	if (k->kind == K_BYTES) {
		ret = cqd_value_size(value, false, &size, err);
		if (ret)
			return ret;
		if (size.bytes < k->min || size.bytes > k->max)
			return cq_err_set(err, -EINVAL, "%s is outside %llu to %llu bytes",
					  value, (unsigned long long)k->min,
					  (unsigned long long)k->max);
		*(uint64_t *)field = size.bytes;
		return 0;
	}
	ret = cqd_value_u64(value, k->min, k->max, &v, err);
	if (ret)
		return ret;
	if (k->kind == K_U32)
		*(uint32_t *)field = (uint32_t)v;
	else
		*(uint64_t *)field = v;
	return 0;
}

static int set_seconds(const struct key *k, const char *value, uint32_t *field,
		       struct cq_err *err)
{
	uint64_t us;
	int ret = cqd_value_time(value, &us, err);

	if (ret)
		return ret;
	if (us % 1000000)
		return cq_err_set(err, -EINVAL, "%s: whole seconds only", value);
	if (us / 1000000 < k->min || us / 1000000 > k->max)
		return cq_err_set(err, -EINVAL, "%s is outside %llu to %llu seconds", value,
				  (unsigned long long)k->min, (unsigned long long)k->max);
	*field = (uint32_t)(us / 1000000);
	return 0;
}

static int set_value(const struct key *k, const char *value, void *base,
		     struct cq_err *err)
{
	void *field = (char *)base + k->offset;

	switch (k->kind) {
	case K_PATH:
	case K_SOCKET:
	case K_ADDRESS:
	case K_WORD:
	case K_TEXT:
		return set_text(k, value, field, err);
	case K_BYTES:
	case K_U32:
	case K_U64:
		return set_number(k, value, field, err);
	case K_SHARE:
		return cqd_value_size(value, true, field, err);
	case K_MODE:
		return cqd_value_mode(value, field, err);
	case K_SECONDS:
		return set_seconds(k, value, field, err);
	case K_PRESSURE:
		return cqd_value_pressure(value, field, err);
	case K_HUGE:
		return cqd_value_huge(value, field, err);
	case K_NUMA:
		return cqd_value_numa(value, field, err);
	case K_SHARING:
		return cqd_value_sharing(value, field, err);
	case K_BOOL:
		return cqd_value_bool(value, field, err);
	case K_UIDS:
		return cqd_value_uids(value, field, err);
	case K_NAMES:
		return cqd_value_names(value, field, err);
	default:
		return cq_err_set(err, -EINVAL, "key without a kind");
	}
}

/* Grow @array of @n entries by one, zeroed. */
static void *grow(void *array, unsigned int n, size_t each)
{
	char *p = realloc(array, (n + 1) * each);

	if (p)
		memset(p + n * each, 0, each);
	return p;
}

static int add_ns(struct reader *r, const char *name)
{
	struct cqd_config *cfg = r->cfg;
	struct cqd_ns_config *ns;

	if (cqd_config_ns(cfg, name))
		return refuse(r, -EINVAL, "this namespace already has a section");
	ns = grow(cfg->ns, cfg->n_ns, sizeof(*ns));
	if (!ns)
		return refuse(r, -ENOMEM, "out of memory");
	cfg->ns = ns;
	ns += cfg->n_ns;
	ns->priority_max = UINT8_MAX;
	ns->name = strdup(name);
	if (!ns->name)
		return refuse(r, -ENOMEM, "out of memory");
	cfg->n_ns++;
	r->keys = ns_keys;
	r->base = ns;
	return 1;
}

static int add_model(struct reader *r, const char *name)
{
	struct cqd_config *cfg = r->cfg;
	struct cqd_model_config *m;
	unsigned int i;

	for (i = 0; i < cfg->n_models; i++)
		if (!strcmp(cfg->model[i].name, name))
			return refuse(r, -EINVAL, "this model already has a section");
	m = grow(cfg->model, cfg->n_models, sizeof(*m));
	if (!m)
		return refuse(r, -ENOMEM, "out of memory");
	cfg->model = m;
	m += cfg->n_models;
	m->name = strdup(name);
	if (!m->name)
		return refuse(r, -ENOMEM, "out of memory");
	cfg->n_models++;
	r->keys = model_keys;
	r->base = m;
	return 1;
}

static int add_gpu(struct reader *r, const char *name)
{
	struct cqd_config *cfg = r->cfg;
	struct cqd_gpu_config *g;
	unsigned int i;

	for (i = 0; i < cfg->n_gpus; i++)
		if (!strcmp(cfg->gpu[i].name, name))
			return refuse(r, -EINVAL, "this gpu already has a section");
	g = grow(cfg->gpu, cfg->n_gpus, sizeof(*g));
	if (!g)
		return refuse(r, -ENOMEM, "out of memory");
	cfg->gpu = g;
	g += cfg->n_gpus;
	g->name = strdup(name);
	if (!g->name)
		return refuse(r, -ENOMEM, "out of memory");
	cfg->n_gpus++;
	r->keys = gpu_keys;
	r->base = g;
	return 1;
}

/* "[daemon]", "[namespace NAME]", "[model NAME]", "[gpu NAME]" */
static int open_section(struct reader *r)
{
	const char *name = strchr(r->section, ' ');

	r->seen = 0;
	if (!strcmp(r->section, "daemon")) {
		if (r->daemon)
			return refuse(r, -EINVAL, "[daemon] is there already");
		r->daemon = true;
		r->keys = daemon_keys;
		r->base = r->cfg;
		return 1;
	}
	if (name) {
		name += strspn(name, " ");
		if (!cqd_name_ok(name))
			return refuse(r, -EINVAL, "bad name: 1 to 63 of A-Z a-z 0-9 . _ - "
				      "not starting with . or -");
		if (!strncmp(r->section, "namespace ", 10))
			return add_ns(r, name);
		if (!strncmp(r->section, "model ", 6))
			return add_model(r, name);
		if (!strncmp(r->section, "gpu ", 4))
			return add_gpu(r, name);
	}
	return refuse(r, -EINVAL, "unknown section: there are [daemon], [namespace NAME], "
		      "[model NAME] and [gpu NAME]");
}

/* libinih's own idea of the section may be cut: it is not used. */
static int on_key(void *arg, const char *section, const char *name, const char *value)
{
	struct reader *r = arg;
	struct cq_err why = { "" };
	char what[CQ_ERR_TEXT];
	unsigned int i;
	int ret;

	if (r->ret)
		return 0;
	if (!r->keys)
		return refuse(r, -EINVAL, "a key before the first section");
	for (i = 0; r->keys[i].name && strcmp(r->keys[i].name, name); i++)
		;
	if (!r->keys[i].name) {
		snprintf(what, sizeof(what), "unknown key \"%s\" in [%.80s]", name, r->section);
		return refuse(r, -EINVAL, what);
	}
	if (r->seen & 1u << i) {
		snprintf(what, sizeof(what), "\"%s\" is set twice in [%.80s]", name, r->section);
		return refuse(r, -EINVAL, what);
	}
	r->seen |= 1u << i;
	ret = set_value(&r->keys[i], value, r->base, &why);
	if (ret) {
		snprintf(what, sizeof(what), "%s: %.200s", name, why.text);
		return refuse(r, ret, what);
	}
	return 1;
}

/* Remember the section of "[...]": @line has no blanks in front. */
static void note_section(struct reader *r, const char *line)
{
	const char *end = strchr(line, ']');
	size_t len;

	if (!end) {
		refuse(r, -EINVAL, "a section without its ]");
		return;
	}
	len = (size_t)(end - line) - 1;
	memcpy(r->section, line + 1, len);
	r->section[len] = '\0';
	end += 1 + strspn(end + 1, " \t\r\n");
	if (*end && *end != ';' && *end != '#')
		refuse(r, -EINVAL, "text after the section's ]");
	else
		open_section(r);
}

/*
 * One line for libinih, from fgets(3)'s contract. Blanks in front go: libinih
 * would take such a line as going on with the value above.
 */
static char *read_line(char *buf, int size, void *arg)
{
	struct reader *r = arg;
	size_t len, skip;

	if (r->ret || !fgets(buf, size, r->f))
		return NULL;
	r->line++;
	len = strlen(buf);
	if ((!len || buf[len - 1] != '\n') && !feof(r->f)) {
		refuse(r, -EINVAL, "line too long (200 bytes) or with a NUL byte");
		return NULL;
	}
	skip = strspn(buf, " \t");
	memmove(buf, buf + skip, len - skip + 1);
	if (buf[0] == '[')
		note_section(r, buf);
	return r->ret ? NULL : buf;
}

/**
 * cqd_config_read() - what a file sets
 * @path: file
 * @cfg:  defaults, filled in; may be half filled on failure
 * @err:  what is wrong, with file and line
 *
 * Return: 0; -EINVAL; -ENOMEM; other -errno of reading.
 */
int cqd_config_read(const char *path, struct cqd_config *cfg, struct cq_err *err)
{
	struct reader r = { .path = path, .cfg = cfg, .err = err };
	int line;

	r.f = fopen(path, "re");
	if (!r.f)
		return cq_err_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	line = ini_parse_stream(read_line, &r, on_key, &r);
	if (!r.ret && ferror(r.f))
		r.ret = cq_err_set(err, -EIO, "cannot read %s", path);
	if (!r.ret && line) {
		if (line > 0)
			r.line = (unsigned int)line;
		refuse(&r, -EINVAL, "neither [section] nor key = value");
	}
	fclose(r.f);
	return r.ret;
}

/**
 * cqd_same_text() - are two texts the same?
 * @a: text, NULL: none
 * @b: likewise
 */
bool cqd_same_text(const char *a, const char *b)
{
	return a == b || (a && b && !strcmp(a, b));
}

static const struct cqd_mem_policy *policy_of(const void *field)
{
	return field;
}

static bool same_size(const struct cqd_size *a, const struct cqd_size *b)
{
	return a->bytes == b->bytes && a->percent == b->percent;
}

static bool same_value(const struct key *k, const void *a, const void *b)
{
	const char *fa = (const char *)a + k->offset;
	const char *fb = (const char *)b + k->offset;

	switch (k->kind) {
	case K_U32:
	case K_MODE:
	case K_SECONDS:
	case K_PRESSURE:
	case K_SHARING:
	case K_BOOL:
		return !memcmp(fa, fb, sizeof(uint32_t));
	case K_HUGE:
		return policy_of(fa)->huge == policy_of(fb)->huge;
	case K_NUMA:
		return policy_of(fa)->numa == policy_of(fb)->numa &&
		       policy_of(fa)->nodes == policy_of(fb)->nodes;
	case K_BYTES:
	case K_U64:
		return !memcmp(fa, fb, sizeof(uint64_t));
	case K_SHARE:
		return same_size((const void *)fa, (const void *)fb);
	case K_PATH:
	case K_SOCKET:
	case K_ADDRESS:
	case K_WORD:
	case K_TEXT:
		return cqd_same_text(*(char *const *)(const void *)fa,
				 *(char *const *)(const void *)fb);
	case K_UIDS:
	case K_NAMES:
	default:
		return false;	/* never fixed */
	}
}

static bool same_gpus(const struct cqd_config *a, const struct cqd_config *b)
{
	const struct key *k;
	unsigned int i;

	if (a->n_gpus != b->n_gpus)
		return false;
	for (i = 0; i < a->n_gpus; i++) {
		if (strcmp(a->gpu[i].name, b->gpu[i].name))
			return false;
		for (k = gpu_keys; k->name; k++)
			if (!same_value(k, &a->gpu[i], &b->gpu[i]))
				return false;
	}
	return true;
}

/**
 * cqd_config_fixed() - first key that differs and that a reload cannot take
 * @old: in use
 * @new: just read
 *
 * Return: name of the key, NULL if there is none.
 */
const char *cqd_config_fixed(const struct cqd_config *old,
			     const struct cqd_config *new)
{
	const struct cqd_ns_config *was;
	const struct key *k;
	unsigned int i;

	for (k = daemon_keys; k->name; k++)
		if (k->fixed && !same_value(k, old, new))
			return k->name;
	for (i = 0; i < new->n_ns; i++) {
		was = cqd_config_ns(old, new->ns[i].name);
		if (!was && new->ns[i].socket)
			return "socket of a new namespace";
		for (k = ns_keys; was && k->name; k++)
			if (k->fixed && !same_value(k, was, &new->ns[i]))
				return k->name;
	}
	return same_gpus(old, new) ? NULL : "a section [gpu NAME]";
}

