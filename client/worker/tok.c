// SPDX-License-Identifier: MIT
/*
 * The model's byte-pair tokenizer; lm/tokenizer.py is its specification.
 *
 * Text is cut into pieces, the first that fits of
 *	" ?[A-Za-z]+"  " ?[0-9]"  " ?[^\sA-Za-z0-9]+"  "\s+"
 * and in each piece the pair with the lowest rank is merged until none is
 * left. A merge's parts have lower ids than itself (checked), so merging makes
 * no pair of an equal or lower rank, and all places of the lowest rank can be
 * merged in one pass from the left.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "client/worker/worker.h"

#define MAX_MERGES 65280u	/* ids fit in 16 bits */
#define MAX_TOKEN 4096		/* bytes of one token */
#define NO_RANK UINT32_MAX

/**
 * struct wk_tok - merges by pair, bytes by id
 * @n_ids:  256 + merges
 * @mask:   slots of the table - 1
 * @pairs:  open addressing: first id << 32 | second id
 * @ranks:  id of the merge; NO_RANK: slot is empty
 * @start:  [n_ids + 1] where an id's bytes start in @bytes
 * @bytes:  of all ids
 */
struct wk_tok {
	size_t n_ids;
	size_t mask;
	uint64_t *pairs;
	uint32_t *ranks;
	size_t *start;
	char *bytes;
};

static size_t pair_slot(const struct wk_tok *tok, uint64_t pair)
{
	size_t i = (size_t)((pair * 0x9e3779b97f4a7c15ull) >> 32) & tok->mask;

	while (tok->ranks[i] != NO_RANK && tok->pairs[i] != pair)
		i = (i + 1) & tok->mask;
	return i;
}

static uint32_t pair_rank(const struct wk_tok *tok, uint32_t a, uint32_t b)
{
	return tok->ranks[pair_slot(tok, (uint64_t)a << 32 | b)];
}

static int tok_alloc(struct wk_tok *tok, size_t n_merges)
{
	size_t slots = 1024;

	while (slots < 4 * n_merges)
		slots *= 2;
	tok->mask = slots - 1;
	tok->n_ids = 256 + n_merges;
	tok->pairs = calloc(slots, sizeof(*tok->pairs));
	tok->ranks = malloc(slots * sizeof(*tok->ranks));
	tok->start = calloc(tok->n_ids + 1, sizeof(*tok->start));
	if (!tok->pairs || !tok->ranks || !tok->start)
		return wk_error(-ENOMEM, "tokenizer: out of memory");
	memset(tok->ranks, 0xff, slots * sizeof(*tok->ranks));
	return 0;
}

static int pair_ids(const json_t *pair, size_t id, uint32_t *a, uint32_t *b)
{
	const json_t *x = json_array_get(pair, 0), *y = json_array_get(pair, 1);
	json_int_t i = json_integer_value(x), j = json_integer_value(y);

	if (json_array_size(pair) != 2 || !json_is_integer(x) ||
	    !json_is_integer(y) || i < 0 || j < 0 || i >= (json_int_t)id ||
	    j >= (json_int_t)id)
		return -EINVAL;
	*a = (uint32_t)i;
	*b = (uint32_t)j;
	return 0;
}

/* Bytes of all ids, one after the other: id's are those of its parts. */
static int tok_bytes(struct wk_tok *tok, const json_t *merges)
{
	size_t id, la, lb;
	uint32_t a, b;

	for (id = 0; id < tok->n_ids; id++) {
		la = 1;
		lb = 0;
		if (id >= 256) {
			if (pair_ids(json_array_get(merges, id - 256), id, &a, &b))
				return -EINVAL;
			la = tok->start[a + 1] - tok->start[a];
			lb = tok->start[b + 1] - tok->start[b];
		}
		if (la + lb > MAX_TOKEN)
			return -EINVAL;
		tok->start[id + 1] = tok->start[id] + la + lb;
	}
	tok->bytes = malloc(tok->start[tok->n_ids]);
	if (!tok->bytes)
		return -ENOMEM;
	for (id = 0; id < 256; id++)
		tok->bytes[id] = (char)id;
	for (; id < tok->n_ids; id++) {
		pair_ids(json_array_get(merges, id - 256), id, &a, &b);
		la = tok->start[a + 1] - tok->start[a];
		lb = tok->start[b + 1] - tok->start[b];
		memcpy(tok->bytes + tok->start[id], tok->bytes + tok->start[a], la);
		memcpy(tok->bytes + tok->start[id] + la,
		       tok->bytes + tok->start[b], lb);
	}
	return 0;
}

static int tok_build(struct wk_tok *tok, const json_t *merges, const char *path)
{
	size_t n = json_array_size(merges), i, slot;
	uint32_t a, b;
	int ret;

	if (!json_is_array(merges) || n > MAX_MERGES)
		return wk_error(-EINVAL, "%s: not an array of at most %u merges",
				path, MAX_MERGES);
	ret = tok_alloc(tok, n);
	if (ret)
		return ret;
	for (i = 0; i < n; i++) {
		if (pair_ids(json_array_get(merges, i), 256 + i, &a, &b))
			return wk_error(-EINVAL, "%s: merge %zu is no pair of lower ids",
					path, i);
		slot = pair_slot(tok, (uint64_t)a << 32 | b);
		tok->pairs[slot] = (uint64_t)a << 32 | b;
		tok->ranks[slot] = (uint32_t)(256 + i);
	}
	ret = tok_bytes(tok, merges);
	if (ret)
		return wk_error(ret, "%s: a token of more than %d bytes, or out of memory",
				path, MAX_TOKEN);
	return 0;
}

int wk_tok_load(const char *path, struct wk_tok **out)
{
	json_t *merges = wk_json_read(path);
	struct wk_tok *tok;
	int ret;

	if (!merges)
		return -EINVAL;
	tok = calloc(1, sizeof(*tok));
	ret = tok ? tok_build(tok, merges, path) :
		    wk_error(-ENOMEM, "tokenizer: out of memory");
	json_decref(merges);
	if (ret) {
		wk_tok_free(tok);
		return ret;
	}
	*out = tok;
	return 0;
}

void wk_tok_free(struct wk_tok *tok)
{
	if (!tok)
		return;
	free(tok->pairs);
	free(tok->ranks);
	free(tok->start);
	free(tok->bytes);
	free(tok);
}

enum kind { LETTER, DIGIT, SPACE, OTHER };

/*
 * Kind of the character at @s, and its bytes: 1 unless it is white space
 * beyond ASCII. A byte that starts no white space is "other" by itself, be it
 * part of a character or no UTF-8 at all: those pieces are cut alike.
 */
static enum kind char_kind(const unsigned char *s, size_t len, size_t *bytes)
{
	*bytes = 1;
	if ((s[0] | 32) >= 'a' && (s[0] | 32) <= 'z')
		return LETTER;
	if (s[0] >= '0' && s[0] <= '9')
		return DIGIT;
	if (s[0] == ' ' || (s[0] >= 9 && s[0] <= 13) || (s[0] >= 28 && s[0] <= 31))
		return SPACE;
	if (len >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0)) {
		*bytes = 2;
		return SPACE;		/* U+0085, U+00A0 */
	}
	if (len < 3)
		return OTHER;
	*bytes = 3;
	if (s[0] == 0xe1 && s[1] == 0x9a && s[2] == 0x80)
		return SPACE;		/* U+1680 */
	if (s[0] == 0xe2 && s[1] == 0x80 && ((s[2] >= 0x80 && s[2] <= 0x8a) ||
	    s[2] == 0xa8 || s[2] == 0xa9 || s[2] == 0xaf))
		return SPACE;		/* U+2000 to U+200A, U+2028, U+2029, U+202F */
	if (s[0] == 0xe2 && s[1] == 0x81 && s[2] == 0x9f)
		return SPACE;		/* U+205F */
	if (s[0] == 0xe3 && s[1] == 0x80 && s[2] == 0x80)
		return SPACE;		/* U+3000 */
	*bytes = 1;
	return OTHER;
}

/* Bytes of the piece at @s. */
static size_t piece_len(const unsigned char *s, size_t len)
{
	size_t at = 0, bytes;
	enum kind kind = char_kind(s, len, &bytes);

	if (s[0] == ' ' && len > 1) {
		kind = char_kind(s + 1, len - 1, &bytes);
		if (kind != SPACE)
			at = 1;
		else
			char_kind(s, len, &bytes);
	}
	at += bytes;
	if (kind == DIGIT)
		return at;
	while (at < len && char_kind(s + at, len - at, &bytes) == kind)
		at += bytes;
	return at;
}

/* Merge one piece in place. Return: its tokens. */
static size_t merge_piece(const struct wk_tok *tok, uint32_t *q, size_t n)
{
	size_t i, out;
	uint32_t best, rank;

	for (;;) {
		best = NO_RANK;
		for (i = 0; i + 1 < n; i++) {
			rank = pair_rank(tok, q[i], q[i + 1]);
			if (rank < best)
				best = rank;
		}
		if (best == NO_RANK)
			return n;
		for (i = 0, out = 0; i < n; out++) {
			if (i + 1 < n && pair_rank(tok, q[i], q[i + 1]) == best) {
				q[out] = best;
				i += 2;
			} else {
				q[out] = q[i++];
			}
		}
		n = out;
	}
}

int wk_tok_encode(const struct wk_tok *tok, const char *text, size_t len,
		  uint32_t **ids, size_t *n)
{
	const unsigned char *s = (const unsigned char *)text;
	uint32_t *out = malloc((len + 1) * sizeof(*out));
	size_t at = 0, count = 0, piece, i;

	if (!out)
		return wk_error(-ENOMEM, "tokenizer: out of memory");
	while (at < len) {
		piece = piece_len(s + at, len - at);
		for (i = 0; i < piece; i++)
			out[count + i] = s[at + i];
		count += merge_piece(tok, out + count, piece);
		at += piece;
	}
	*ids = out;
	*n = count;
	return 0;
}

int wk_tok_decode(const struct wk_tok *tok, const uint32_t *ids, size_t n,
		  char **text, size_t *len)
{
	size_t i, size = 0;
	char *out;

	for (i = 0; i < n; i++) {
		if (ids[i] >= tok->n_ids)
			return wk_error(-EINVAL, "token %zu is %u, there are %zu",
					i, ids[i], tok->n_ids);
		size += tok->start[ids[i] + 1] - tok->start[ids[i]];
	}
	out = malloc(size + 1);
	if (!out)
		return wk_error(-ENOMEM, "tokenizer: out of memory");
	for (i = 0, size = 0; i < n; i++) {
		memcpy(out + size, tok->bytes + tok->start[ids[i]],
		       tok->start[ids[i] + 1] - tok->start[ids[i]]);
		size += tok->start[ids[i] + 1] - tok->start[ids[i]];
	}
	out[size] = '\0';
	*text = out;
	*len = size;
	return 0;
}
