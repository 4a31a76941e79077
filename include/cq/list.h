/* SPDX-License-Identifier: MIT */
/* Intrusive circular doubly linked list. Not thread-safe. */
#ifndef CQ_LIST_H
#define CQ_LIST_H

#include <stdbool.h>
#include "cq/util.h"

struct list_head {
	struct list_head *next, *prev;
};

static inline void list_init(struct list_head *h)
{
	h->next = h;
	h->prev = h;
}

static inline bool list_empty(const struct list_head *h)
{
	return h->next == h;
}

static inline void list_insert(struct list_head *n, struct list_head *prev,
			       struct list_head *next)
{
	next->prev = n;
	n->next = next;
	n->prev = prev;
	prev->next = n;
}

static inline void list_add(struct list_head *n, struct list_head *h)
{
	list_insert(n, h, h->next);
}

static inline void list_add_tail(struct list_head *n, struct list_head *h)
{
	list_insert(n, h->prev, h);
}

/* The node is left pointing at itself, so a second list_del() is harmless. */
static inline void list_del(struct list_head *n)
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	list_init(n);
}

/* Everything in @from goes to @to, which need not be initialised; @from is empty then. */
static inline void list_take(struct list_head *to, struct list_head *from)
{
	list_init(to);
	list_add(to, from);
	list_del(from);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)
#define list_first(h, type, member) list_entry((h)->next, type, member)

#define list_for_each(pos, h) \
	for ((pos) = (h)->next; (pos) != (h); (pos) = (pos)->next)

/* @tmp holds the next node, so that @pos may be deleted in the body. */
#define list_for_each_safe(pos, tmp, h)					\
	for ((pos) = (h)->next, (tmp) = (pos)->next; (pos) != (h);	\
	     (pos) = (tmp), (tmp) = (pos)->next)

#endif /* CQ_LIST_H */
