// SPDX-License-Identifier: MIT
/* list, show: what the daemon holds. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "client/cqctl/cqctl.h"

#define MAX_COLUMNS 12
#define CELL 96

enum column {
	NAME, HASH, K, V, LAYERS, HEADS, DIM, SINKS, WINDOW, SLOT, BYTES, LIMIT, PAGES,
	SLOTS, PINS, ID, SESSION, PID, UID, TENANT, MODEL, STATE, BACKEND, POOL, AGE, DEPTH,
	TOKENS, LEFT, MADE,
};

enum cell_kind {
	TEXT, NUMBER32, NUMBER64, SIZE, SIZE_OR_NONE, TIME, TIME_OR_NONE, HEX, RATIO, WORD
};

/* A text of Cqp__Item; a number and the flag that says it is there. */
#define T(field) offsetof(Cqp__Item, field), 0
#define F(field) offsetof(Cqp__Item, field), offsetof(Cqp__Item, has_##field)

static const struct column_def {
	const char *title;
	enum cell_kind kind;
	size_t at, has;
} columns[] = {
	[NAME] = { "NAME", TEXT, T(name) },
	[TENANT] = { "NAMESPACE", TEXT, T(tenant) },
	[MODEL] = { "MODEL", TEXT, T(model) },
	[STATE] = { "STATE", TEXT, T(state) },
	[BACKEND] = { "BACKEND", TEXT, T(backend) },
	[POOL] = { "POOL", TEXT, T(pool) },
	[K] = { "KEYS", TEXT, T(k) },
	[V] = { "VALUES", TEXT, T(v) },
	[HASH] = { "HASH", HEX, F(hash) },
	[HEADS] = { "HEADS", RATIO, F(heads) },
	[LAYERS] = { "LAYERS", NUMBER32, F(layers) },
	[DIM] = { "DIM", NUMBER32, F(head_dim) },
	[SINKS] = { "SINKS", NUMBER32, F(sinks) },
	[WINDOW] = { "WINDOW", NUMBER32, F(window) },
	[PID] = { "PID", NUMBER32, F(pid) },
	[UID] = { "UID", NUMBER32, F(uid) },
	[DEPTH] = { "DEPTH", NUMBER32, F(depth) },
	[PAGES] = { "PAGES", NUMBER64, F(pages) },
	[SLOTS] = { "SLOTS", NUMBER64, F(slots) },
	[PINS] = { "PINS", NUMBER64, F(pins) },
	[ID] = { "ID", NUMBER64, F(id) },
	[SESSION] = { "SESSION", WORD, F(id) },
	[SLOT] = { "SLOT", SIZE, F(slot_bytes) },
	[BYTES] = { "BYTES", SIZE, F(bytes) },
	[LIMIT] = { "LIMIT", SIZE_OR_NONE, F(limit) },
	[AGE] = { "IDLE", TIME, F(age_us) },
	[TOKENS] = { "TOKENS", NUMBER64, F(tokens) },
	[MADE] = { "AGE", TIME, F(age_us) },
	[LEFT] = { "LEFT", TIME_OR_NONE, F(left_us) },
};

/* In the order of Cqp__Kind. */
static const struct listing {
	const char *name;
	uint8_t column[MAX_COLUMNS];
	uint8_t n;
} listings[] = {
	{ "models", { NAME, K, V, LAYERS, HEADS, DIM, SINKS, WINDOW, SLOT, BYTES, PAGES,
		      HASH }, 12 },
	{ "namespaces", { NAME, BYTES, LIMIT, PAGES, PINS }, 5 },
	{ "segments", { ID, TENANT, MODEL, STATE, BACKEND, POOL, BYTES, SLOTS, PAGES }, 9 },
	{ "clients", { NAME, PID, UID, TENANT, STATE, PINS, SESSION }, 7 },
	{ "pages", { NAME, TENANT, MODEL, DEPTH, STATE, PINS, BYTES, AGE }, 8 },
	{ "names", { NAME, TENANT, MODEL, STATE, TOKENS, PAGES, BYTES, MADE, LEFT }, 9 },
};

void ctl_items_free(struct ctl_items *it)
{
	size_t i;

	for (i = 0; i < it->n_replies; i++)
		cqp_free(it->reply[i]);
	free(it->reply);
	free(it->item);
	*it = (struct ctl_items){ 0 };
}

static int items_add(struct ctl *c, struct ctl_items *it, Cqp__Msg *reply)
{
	const Cqp__ListOk *ok = reply->list_ok;
	void *p = realloc(it->reply, (it->n_replies + 1) * sizeof(*it->reply));
	size_t i;

	if (p) {
		it->reply = p;
		p = realloc(it->item, (it->n + ok->n_items + 1) * sizeof(*it->item));
	}
	if (!p) {
		cqp_free(reply);
		return cq_err_set(&c->err, -ENOMEM, "no memory for the listing");
	}
	it->item = p;
	it->reply[it->n_replies++] = reply;
	for (i = 0; i < ok->n_items; i++)
		it->item[it->n++] = ok->items[i];
	return 0;
}

/* All of a kind, however many messages it takes. */
int ctl_items_get(struct ctl *c, Cqp__Kind kind, struct ctl_items *it)
{
	Cqp__List list = CQP__LIST__INIT;
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	bool more = true;
	int ret = 0;

	*it = (struct ctl_items){ 0 };
	list.kind = kind;
	msg.body_case = CQP__MSG__BODY_LIST;
	msg.list = &list;
	while (more && !ret) {
		reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_LIST_OK, &ret);
		if (!reply)
			break;
		more = reply->list_ok->has_cursor;
		if (more && list.has_cursor && reply->list_ok->cursor <= list.cursor)
			ret = cq_err_set(&c->err, -EPROTO, "cqd's listing does not end");
		list.has_cursor = more;
		list.cursor = reply->list_ok->cursor;
		if (ret)
			cqp_free(reply);
		else
			ret = items_add(c, it, reply);
	}
	if (ret)
		ctl_items_free(it);
	return ret;
}

static void put_text(char *cell, const char *s)
{
	size_t i;

	if (!s || !s[0])
		s = "-";
	for (i = 0; i + 1 < CELL && s[i]; i++)
		cell[i] = (unsigned char)s[i] < 0x20 || s[i] == 0x7f ? '?' : s[i];
	cell[i] = '\0';
}

/* A number of @it, 0 if it is not there. */
static uint64_t number_at(const Cqp__Item *it, size_t at, size_t has, bool wide)
{
	const char *base = (const char *)it;
	protobuf_c_boolean set;
	uint64_t x = 0;
	uint32_t small;

	memcpy(&set, base + has, sizeof(set));
	if (set && wide) {
		memcpy(&x, base + at, sizeof(x));
	} else if (set) {
		memcpy(&small, base + at, sizeof(small));
		x = small;
	}
	return x;
}

static void put_hash(char *cell, const Cqp__Item *it, size_t max)
{
	char hex[65];

	put_text(cell, ctl_hex(it->hash.data, it->has_hash ? MIN(it->hash.len, max) : 0,
			       hex));
}

/* What people read. */
static void put_cell(const Cqp__Item *it, enum column col, char *cell)
{
	const struct column_def *def = &columns[col];
	uint64_t x = 0;
	char *text;

	if (def->kind != TEXT && def->kind != HEX)
		x = number_at(it, def->at, def->has,
			      def->kind != NUMBER32 && def->kind != RATIO);
	switch (def->kind) {
	case TEXT:
		memcpy(&text, (const char *)it + def->at, sizeof(text));
		put_text(cell, text);
		break;
	case HEX:
		put_hash(cell, it, 8);
		break;
	case RATIO:
		snprintf(cell, CELL, "%" PRIu64 ":%u", x,
			 it->has_kv_heads ? it->kv_heads : 0);
		break;
	case WORD:
		snprintf(cell, CELL, "%016" PRIx64, x);
		break;
	case TIME:
		ctl_time(x, cell);
		break;
	case TIME_OR_NONE:
		put_text(cell, x ? ctl_time(x, cell) : "none");
		break;
	case SIZE:
		ctl_bytes(x, cell);
		break;
	case SIZE_OR_NONE:
		put_text(cell, x ? ctl_bytes(x, cell) : "none");
		break;
	case NUMBER32:
	case NUMBER64:
		snprintf(cell, CELL, "%" PRIu64, x);
		break;
	}
}

/* Numbers to the right. */
static bool to_the_right(enum column col)
{
	enum cell_kind kind = columns[col].kind;

	return kind != TEXT && kind != HEX && kind != WORD;
}

static void print_row(const struct listing *l, const int *width, const Cqp__Item *it)
{
	char cell[CELL];
	int i, w;

	for (i = 0; i < l->n; i++) {
		if (it)
			put_cell(it, l->column[i], cell);
		else
			put_text(cell, columns[l->column[i]].title);
		/* Nothing behind the last column. */
		w = i + 1 < l->n || to_the_right(l->column[i]) ? width[i] : 0;
		if (to_the_right(l->column[i]))
			printf("%s%*s", i ? "  " : "", w, cell);
		else
			printf("%s%-*s", i ? "  " : "", w, cell);
	}
	putchar('\n');
}

static void print_table(const struct listing *l, const struct ctl_items *it)
{
	int width[MAX_COLUMNS], i, n;
	char cell[CELL];
	size_t row;

	for (i = 0; i < l->n; i++) {
		width[i] = (int)strlen(columns[l->column[i]].title);
		for (row = 0; row < it->n; row++) {
			put_cell(it->item[row], l->column[i], cell);
			n = (int)strlen(cell);
			width[i] = MAX(width[i], n);
		}
	}
	print_row(l, width, NULL);
	for (row = 0; row < it->n; row++)
		print_row(l, width, it->item[row]);
}

static void put_json(json_t *o, const char *key, const char *text)
{
	if (text)
		json_object_set_new(o, key, ctl_json_text(text));
}

/*
 * Numbers as proto/cq.proto names them. cqd leaves out those that are 0 or do not
 * apply; what a listing has a column for does apply.
 */
static const struct {
	const char *name;
	size_t at, has;
	bool wide;
} numbers[] = {
	{ "bytes", F(bytes), true }, { "limit", F(limit), true },
	{ "pages", F(pages), true }, { "pins", F(pins), true },
	{ "slots", F(slots), true }, { "pid", F(pid), false },
	{ "uid", F(uid), false }, { "layers", F(layers), false },
	{ "heads", F(heads), false }, { "kv_heads", F(kv_heads), false },
	{ "head_dim", F(head_dim), false }, { "age_us", F(age_us), true },
	{ "depth", F(depth), false }, { "sinks", F(sinks), false },
	{ "window", F(window), false }, { "slot_bytes", F(slot_bytes), true },
	{ "tokens", F(tokens), true }, { "left_us", F(left_us), true },
	{ "lookups", F(lookups), true }, { "hits", F(hits), true },
	{ "misses", F(misses), true }, { "seals", F(seals), true },
	{ "restored", F(restored), true }, { "evictions", F(evictions), true },
};

static bool has_column(const struct listing *l, size_t at)
{
	int i;

	for (i = 0; i < l->n; i++)
		if (columns[l->column[i]].at == at)
			return columns[l->column[i]].kind != SIZE_OR_NONE &&
			       columns[l->column[i]].kind != TIME_OR_NONE;
	return false;
}

static void put_numbers(json_t *o, const Cqp__Item *it, const struct listing *l)
{
	protobuf_c_boolean set;
	uint64_t x;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(numbers); i++) {
		memcpy(&set, (const char *)it + numbers[i].has, sizeof(set));
		x = number_at(it, numbers[i].at, numbers[i].has, numbers[i].wide);
		if (set || has_column(l, numbers[i].at))
			json_object_set_new(o, numbers[i].name, ctl_json_u64(x));
	}
}

static json_t *item_json(const Cqp__Item *it, const struct listing *l)
{
	json_t *o = json_object();
	char hex[65];

	put_json(o, "name", it->name);
	put_json(o, "namespace", it->tenant);
	put_json(o, "model", it->model);
	put_json(o, "state", it->state);
	put_json(o, "backend", it->backend);
	put_json(o, "pool", it->pool);
	put_json(o, "k", it->k);
	put_json(o, "v", it->v);
	put_json(o, "rope", it->rope);
	if (it->has_hash)
		put_json(o, "hash", ctl_hex(it->hash.data, it->hash.len, hex));
	put_numbers(o, it, l);
	if (it->has_id) {	/* all 64 bits: JSON readers may have 53 */
		snprintf(hex, sizeof(hex), "%016" PRIx64, it->id);
		put_json(o, "id", hex);
	}
	return o;
}

static json_t *items_json(const struct ctl_items *it, const struct listing *l)
{
	json_t *list = json_array();
	size_t i;

	for (i = 0; i < it->n; i++)
		json_array_append_new(list, item_json(it->item[i], l));
	return list;
}

static int list(struct ctl *c, size_t kind)
{
	struct ctl_items it;
	int ret = ctl_items_get(c, (Cqp__Kind)kind, &it);

	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	if (c->json)
		ret = ctl_print_json(json_pack("{s:o}", listings[kind].name,
					       items_json(&it, &listings[kind])));
	else
		print_table(&listings[kind], &it);
	ctl_items_free(&it);
	return ret;
}

int ctl_cmd_list(struct ctl *c, int argc, char **argv)
{
	const char *pos[1];
	size_t kind = 0;
	int ret = ctl_parse(c, argc, argv, NULL, pos, 0, 1);

	if (ret != CTL_GO_ON)
		return ret;
	while (pos[0] && kind < ARRAY_SIZE(listings) &&
	       strcmp(pos[0], listings[kind].name))
		kind++;
	if (kind == ARRAY_SIZE(listings))
		return ctl_usage(c, "%s is none of models, namespaces, segments, clients, "
				 "pages, names", pos[0]);
	return list(c, kind);
}

/* "clients" and "namespaces": the command's name says what to list. */
int ctl_cmd_list_named(struct ctl *c, int argc, char **argv)
{
	size_t kind = 0;
	int ret = ctl_parse(c, argc, argv, NULL, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	while (strcmp(c->cmd->name, listings[kind].name))
		kind++;
	return list(c, kind);
}

/* --- show --- */

/* Keeps what belongs to @name: a model, or else a namespace. */
static void keep(struct ctl_items *it, const char *name, bool is_model)
{
	const char *of;
	size_t i, n = 0;

	for (i = 0; i < it->n; i++) {
		of = is_model ? it->item[i]->model : it->item[i]->tenant;
		if (of && !strcmp(of, name))
			it->item[n++] = it->item[i];
	}
	it->n = n;
}

static void print_fields(const struct listing *l, const Cqp__Item *it, const char *what)
{
	char cell[CELL];
	int i;

	printf("%-10s", what);
	ctl_put_text(stdout, it->name);
	putchar('\n');
	for (i = 0; i < l->n; i++) {
		if (l->column[i] == NAME)
			continue;
		if (l->column[i] == HASH)
			put_hash(cell, it, 32);
		else
			put_cell(it, l->column[i], cell);
		printf("%-10s%s\n", columns[l->column[i]].title, cell);
	}
	if (!it->rope)
		return;
	printf("%-10s", "ROPE");
	ctl_put_text(stdout, it->rope);
	putchar('\n');
}

/* What is shown below a model or namespace. */
static const Cqp__Kind below[] = { CQP__KIND__SEGMENTS, CQP__KIND__CLIENTS };

static int show_item(struct ctl *c, const Cqp__Item *item, Cqp__Kind kind)
{
	bool is_model = kind == CQP__KIND__MODELS;
	json_t *o = c->json ? item_json(item, &listings[kind]) : NULL;
	size_t i, n = is_model ? 1 : ARRAY_SIZE(below);
	struct ctl_items it;
	int ret;

	if (!c->json)
		print_fields(&listings[kind], item, is_model ? "MODEL" : "NAMESPACE");
	for (i = 0; i < n; i++) {
		ret = ctl_items_get(c, below[i], &it);
		if (ret) {
			json_decref(o);
			return ctl_fail(c, ret, "%s", c->err.text);
		}
		keep(&it, item->name, is_model);
		if (c->json) {
			json_object_set_new(o, listings[below[i]].name,
					    items_json(&it, &listings[below[i]]));
		} else if (it.n) {
			putchar('\n');
			print_table(&listings[below[i]], &it);
		}
		ctl_items_free(&it);
	}
	if (!c->json)
		return CTL_OK;
	json_object_set_new(o, "kind", json_string(is_model ? "model" : "namespace"));
	return ctl_print_json(o);
}

/* Shows the item of @kind called @name. CTL_GO_ON if there is none. */
static int show_named(struct ctl *c, Cqp__Kind kind, const char *name)
{
	struct ctl_items it;
	size_t i;
	int ret = ctl_items_get(c, kind, &it);

	if (ret)
		return ctl_fail(c, ret, "%s", c->err.text);
	ret = CTL_GO_ON;
	for (i = 0; ret == CTL_GO_ON && i < it.n; i++)
		if (it.item[i]->name && !strcmp(it.item[i]->name, name))
			ret = show_item(c, it.item[i], kind);
	ctl_items_free(&it);
	return ret;
}

int ctl_cmd_show(struct ctl *c, int argc, char **argv)
{
	const char *pos[1];
	int ret = ctl_parse(c, argc, argv, NULL, pos, 1, 1);

	if (ret != CTL_GO_ON)
		return ret;
	ret = show_named(c, CQP__KIND__MODELS, pos[0]);
	if (ret == CTL_GO_ON)
		ret = show_named(c, CQP__KIND__NAMESPACES, pos[0]);
	if (ret != CTL_GO_ON)
		return ret;
	return ctl_fail(c, -ENOENT, "no model and no namespace is called %s: see "
			"\"cqctl list\" and \"cqctl list namespaces\"", pos[0]);
}
