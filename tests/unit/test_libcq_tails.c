// SPDX-License-Identifier: MIT
/*
 * Tails of a hostile publisher: every field wrong in turn, then noise. Whoever
 * attaches gets an error and keeps what it had, or a sequence that it can read.
 */
#include "tests/unit/test_libcq_tail.h"

#define TOKENS 300

static struct rig r;
static struct shape small = SHAPE_SMALL;
static uint32_t ids[TOKENS + 1];
static struct worker evil, victim;
static uint8_t *good, *bad;	/* tails of @bytes */
static uint64_t bytes;
static struct cqp_key last;
static uint32_t full_pages;

struct got {
	int fd;
	uint64_t bytes;
	struct cqp_page page;
};

static int take(struct cqc_call *call, const Cqp__Msg *msg, struct cqp_frame *f)
{
	struct got *g = call->arg;

	g->bytes = msg->attach_ok->bytes;
	memcpy(&g->page, msg->attach_ok->page.data, sizeof(g->page));
	g->fd = cqp_frame_take(f, 0);
	return 0;
}

/* The tail as cqd keeps it. */
static void fetch(const char *name)
{
	struct got g = { .fd = -1 };
	struct cqc_call call = { .req.want = CQP__MSG__BODY_ATTACH_OK, .take = take, .arg = &g };
	Cqp__Attach body = CQP__ATTACH__INIT;
	Cqp__Msg msg = CQP__MSG__INIT;
	char text[64];

	snprintf(text, sizeof(text), "%s", name);
	body.name = text;
	body.shard = evil.model->shard;
	msg.body_case = CQP__MSG__BODY_ATTACH;
	msg.attach = &body;
	pthread_mutex_lock(&evil.ctx->lock);
	CQ_OK(cqc_call(evil.ctx, &call, &msg, NULL, 0, 0));
	cqc_release_add(evil.ctx, &g.page, evil.ctx->pin_epoch);
	pthread_mutex_unlock(&evil.ctx->lock);
	bytes = g.bytes;
	good = malloc(bytes);
	bad = malloc(bytes + 64);
	ASSERT(good && bad);
	ASSERT_EQ(pread(g.fd, good, bytes, 0), bytes);
	close(g.fd);
}

static void put(const uint8_t *tail, uint64_t n, uint64_t tokens, const struct cqp_key *key)
{
	tail_put(&evil, tail, n, tokens, key);
}

/* All of it can be read, whatever it is. */
static void read_all(struct cq_seq *seq)
{
	size_t n = cq_seq_length(seq);
	float *x = malloc(n * small.kv_heads * small.dim * sizeof(*x));
	struct cq_view v = rig_view(&victim, x, small.kv_heads);
	uint32_t l;

	ASSERT(x);
	for (l = 0; l < small.layers; l++)
		CQ_OK(cq_read(seq, l, 0, n, &v, &v));
	free(x);
}

static void begin(void)
{
	struct cq_publish_opts o = { .sz = sizeof(o) };
	struct cq_seq *x;
	struct worker w;

	rig_ids(ids, TOKENS + 1, 3);
	rig_start(&r, &small, NULL);
	worker_open(&w, &small, r.sock, 0, 0);
	x = worker_seq(&w, NULL, 0);
	worker_grow(&w, x, ids, TOKENS);
	/* codes in the part-filled page too */
	CQ_OK(cq_truncate(x, 250));
	CQ_OK(cq_publish(x, "good", &o));
	full_pages = 250 / 64;
	last = x->ents[full_pages - 1].pg->key;
	worker_open(&evil, &small, r.sock, 0, 0);
	worker_open(&victim, &small, r.sock, 0, 0);
	fetch("good");
	/* the pages stay, whatever becomes of the names */
	o.flags = CQ_PUBLISH_PIN;
	CQ_OK(cq_publish(x, "pages", &o));
	cq_close(w.ctx);
}

static void end(void)
{
	struct cq_model_info i = worker_model(&victim);

	/* nothing of all that was refused is left */
	ASSERT_EQ(i.arena_free, i.arena_bytes);
	cq_close(evil.ctx);
	cq_close(victim.ctx);
	free(good);
	free(bad);
	rig_stop(&r);
}

static struct cqp_tail_head *head(void)
{
	return (void *)bad;
}

static struct cqp_tail_entry *entry(uint32_t i)
{
	return (struct cqp_tail_entry *)(void *)(bad + sizeof(struct cqp_tail_head)) + i;
}

static struct cqp_tail_entry *last_entry(void)
{
	return entry(head()->n_entries - 1u);
}

static void magic(void)
{
	head()->magic++;
}

static void version(void)
{
	head()->version = 2;
}

static void feature(void)
{
	head()->incompat = 1;
}

static void more_entries(void)
{
	head()->n_entries++;
}

static void no_entries(void)
{
	head()->n_entries = 0;
}

static void most_entries(void)
{
	head()->n_entries = 0xffff;
}

static void model(void)
{
	head()->model_hash[31] ^= 1;
}

static void tokens(void)
{
	head()->tokens = UINT64_MAX / 2;
}

static void one_token_less(void)
{
	head()->tokens--;
}

static void size(void)
{
	head()->bytes++;
}

static void block(void)
{
	head()->f16_block += 64;
}

static void payload(void)
{
	head()->payload = 0;
}

static void sinks(void)
{
	head()->sink_bytes = UINT64_MAX;
}

static void position(void)
{
	head()->position = 0xffffffff;
}

static void far(void)
{
	head()->position = 8192 - 100;
}

static void extra(void)
{
	head()->extra_len = 2000;
}

static void extra_wraps(void)
{
	head()->extra_len = 0xffffffff;
}

static void head_pad(void)
{
	head()->pad[63] = 1;
}

static void index_far(void)
{
	last_entry()->index = 0xffffffff;
}

static void index_twice(void)
{
	entry(1)->index = entry(0)->index;
}

static void index_back(void)
{
	entry(0)->index = entry(1)->index;
}

static void parts(void)
{
	entry(0)->parts |= 8;
}

static void more_codes(void)
{
	entry(0)->parts |= CQP_TAIL_CODES;
}

static void sinks_elsewhere(void)
{
	last_entry()->parts |= CQP_TAIL_SINKS;
}

static void no_f16(void)
{
	entry(0)->parts &= ~CQP_TAIL_F16;
}

static void no_mask(void)
{
	entry(0)->f16_mask = 0;
}

static void mask_beyond(void)
{
	last_entry()->f16_mask |= 1ull << 63;
}

static void coded_beyond(void)
{
	last_entry()->n_coded = 64;
}

static void coded_wraps(void)
{
	last_entry()->n_coded = 0xffffffff;
}

static void nowhere(void)
{
	last_entry()->n_coded = 3;
	last_entry()->f16_mask = 0x10;
}

static void entry_pad(void)
{
	last_entry()->pad = 1;
}

static void full_not_coded(void)
{
	entry(0)->n_coded = 63;
}

static void nan_row(void)
{
	struct cqp_tail_head *h = head();
	uint8_t *data = bad + sizeof(*h) + h->n_entries * sizeof(struct cqp_tail_entry) +
			4 * h->tokens + h->extra_len;
	uint16_t nan = 0x7e00;
	/* a row that counts in the first block */
	uint32_t row = (uint32_t)__builtin_ctzll(entry(0)->f16_mask);

	memcpy(data + row * small.dim * 2, &nan, 2);
}

TEST(every_field)
{
	static void (*const hurt[])(void) = {
		magic, version, feature, more_entries, no_entries, most_entries, model, tokens,
		one_token_less, size, block, payload, sinks, position, far, extra, extra_wraps,
		head_pad, index_far, index_twice, index_back, parts, more_codes,
		sinks_elsewhere, no_f16, no_mask, mask_beyond, coded_beyond, coded_wraps,
		nowhere, entry_pad, full_not_coded, nan_row,
	};
	struct cq_seq *seq = (void *)8;
	unsigned int i;

	begin();
	ASSERT_GE(((struct cqp_tail_head *)(void *)good)->n_entries, 2);
	put(good, bytes, 250, &last);
	CQ_OK(cq_attach(victim.model, "evil", NULL, &seq));
	read_all(seq);
	cq_seq_close(seq);
	seq = (void *)8;
	for (i = 0; i < ARRAY_SIZE(hurt); i++) {
		memcpy(bad, good, bytes);
		hurt[i]();
		put(bad, bytes, 250, &last);
		if (cq_attach(victim.model, "evil", NULL, &seq) != -EPROTO)
			FAIL("damage %u: %s", i, cq_last_error());
		ASSERT(seq == (void *)8);
	}
	end();
}

TEST(sinks_of_nowhere)
{
	begin();
	tail_sinks_of_nowhere(&evil, &victim, ids + 1);
	end();
}

/* NaN beside the window's rows: among sinks, in codes that are halves. */
TEST(nan_beside_rows)
{
	struct cqp_tail_entry e = { .parts = CQP_TAIL_CODES | CQP_TAIL_SINKS, .n_coded = 64 };
	uint64_t half;

	small.v = "fp16";
	begin();
	half = victim.model->m.sink_payload;
	CQ_OK(tail_try(&evil, &victim, ids, &e, 64, 0));
	CQ_FAILS(tail_try(&evil, &victim, ids, &e, 64, 1), -EPROTO);
	CQ_FAILS(tail_try(&evil, &victim, ids, &e, 64, half - 1), -EPROTO);
	/* the last value of the last head of the last layer */
	CQ_FAILS(tail_try(&evil, &victim, ids, &e, 64, half + 1), -EPROTO);
	/* the last key is a code, beside which nothing is a half */
	CQ_OK(tail_try(&evil, &victim, ids, &e, 64, half + 64 * 32 * 2 + 1));
	e.parts = CQP_TAIL_CODES | CQP_TAIL_F16;
	e.f16_mask = 15;
	e.n_coded = 40;
	CQ_FAILS(tail_try(&evil, &victim, ids + 1, &e, 40, 24 * 32 * 2 + 1), -EPROTO);
	/* beyond what is coded */
	CQ_OK(tail_try(&evil, &victim, ids + 1, &e, 40, 1));
	end();
}

/* Right in itself, but not what the name holds, or of another tenant's salt. */
TEST(other_pages)
{
	struct cq_seq *seq = (void *)8;
	struct cqp_key first;
	uint32_t id;

	begin();
	memcpy(bad, good, bytes);
	head()->root[0] ^= 1;
	put(bad, bytes, 250, &last);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -ENODATA);
	/* ids of pages that nobody has published */
	memcpy(bad, good, bytes);
	id = 5;
	memcpy(bad + sizeof(struct cqp_tail_head) +
	       head()->n_entries * sizeof(struct cqp_tail_entry) + 4 * 70, &id, 4);
	put(bad, bytes, 250, &last);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -ENODATA);
	/* cut, longer */
	put(good, bytes - 1, 250, &last);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -EPROTO);
	put(good, 100, 250, &last);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -EPROTO);
	put(good, 1, 250, &last);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -EPROTO);
	memcpy(bad, good, bytes);
	put(bad, bytes + 8, 250, &last);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -EPROTO);
	/* a name without pages for a sequence with some */
	put(good, bytes, 50, NULL);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -EPROTO);
	/* a name that holds page 0 only */
	CQ_OK(cqp_key_page(&first, &victim.model->root, ids, NULL, 0));
	put(good, bytes, 64, &first);
	CQ_FAILS(cq_attach(victim.model, "evil", NULL, &seq), -EPROTO);
	ASSERT(seq == (void *)8);
	end();
}

TEST_LIMIT(noise, 60)
{
	uint64_t meta, at, rng = 1;
	struct cq_seq *seq;
	unsigned int i, j, in = 0;
	int ret;

	begin();
	meta = sizeof(struct cqp_tail_head) +
	       ((struct cqp_tail_head *)(void *)good)->n_entries *
	       sizeof(struct cqp_tail_entry);
	for (i = 0; i < 400; i++) {
		memcpy(bad, good, bytes);
		for (j = 0; j <= i % 3; j++) {
			rng = rig_mix(rng);
			/* mostly where the structure is */
			at = (rng >> 8) % (rng & 7 ? meta : bytes);
			bad[at] ^= (uint8_t)(1u << (rng >> 60) % 8);
		}
		put(bad, bytes, 250, &last);
		ret = cq_attach(victim.model, "evil", NULL, &seq);
		ASSERT(ret == 0 || ret == -EPROTO || ret == -ENODATA);
		if (ret)
			continue;
		in++;
		read_all(seq);
		cq_seq_close(seq);
	}
	printf("# %u of 400 noisy tails could be read\n", in);
	end();
}
