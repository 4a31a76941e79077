/* SPDX-License-Identifier: MIT */
/*
 * Keys: the worked example of Documentation/protocol.md, computed by another
 * implementation (Python's hashlib), and what must change a key.
 */
#include "proto/key.h"
#include "tests/harness.h"

static uint8_t model_hash[32], fingerprint[32];
static uint32_t tokens[2][CQ_PAGE_TOKENS];
static const struct cqp_shard whole = { 0, 8, 0, 2 };

static void setup(void)
{
	uint32_t i;

	for (i = 0; i < 32; i++) {
		model_hash[i] = (uint8_t)i;
		fingerprint[i] = (uint8_t)(32 + i);
	}
	for (i = 0; i < CQ_PAGE_TOKENS; i++) {
		tokens[0][i] = i;
		tokens[1][i] = CQ_PAGE_TOKENS + i;
	}
}

static int is(const struct cqp_key *key, const char *hex)
{
	char buf[65];

	return !strcmp(cqp_key_hex(key, buf), hex);
}

static struct cqp_key root(const char *lora, const struct cqp_shard *shard,
			   const char *salt)
{
	struct cqp_key k;

	ASSERT_EQ(cqp_key_root(&k, model_hash, fingerprint, shard, lora,
			       lora ? strlen(lora) : 0, salt, salt ? strlen(salt) : 0), 0);
	return k;
}

static struct cqp_key page(struct cqp_key parent, const uint32_t *ids, const char *extra)
{
	struct cqp_key k;

	ASSERT_EQ(cqp_key_page(&k, &parent, ids, extra, extra ? strlen(extra) : 0), 0);
	return k;
}

static int same(struct cqp_key a, struct cqp_key b)
{
	return !memcmp(a.b, b.b, sizeof(a.b));
}

TEST(worked_example)
{
	static const struct cqp_shard part = { 4, 8, 1, 2 };
	struct cqp_key r, k;

	setup();
	r = root("adapter-7", &part, "s3cret");
	ASSERT(is(&r, "547ae933c6d930ea3014d6adbbe71f075c8c1f3ff910eb96dd51c209f449c8b1"));
	r = root(NULL, &whole, NULL);
	ASSERT(is(&r, "04e680a495b21fefeec8f319b14f30a69896562533d6f26cad7612232c136668"));
	k = page(r, tokens[0], NULL);
	ASSERT(is(&k, "128e61978a9a23ad0aee4c6caaf8d6850c75d6e83cc783e9d7ec23ac632f89a1"));
	r = page(k, tokens[1], NULL);
	ASSERT(is(&r, "fc073ae63b6ead62bc620effa2d8bc51efeed600419cedab1ae1f37abcbf4516"));
	r = page(k, tokens[1], "image:0001");
	ASSERT(is(&r, "995437f81e69dee980366c145fb590e880c8321022ab4b9a387c097f71f86eb2"));
}

TEST(every_field_counts)
{
	struct cqp_shard s = whole;
	struct cqp_key base, k;
	uint32_t ids[CQ_PAGE_TOKENS];
	unsigned int i;

	setup();
	base = root(NULL, &whole, NULL);
	ASSERT(same(base, root(NULL, &whole, "")));
	ASSERT(!same(base, root("a", &whole, NULL)));
	ASSERT(!same(base, root(NULL, &whole, "a")));
	/* a byte that moves from one field to the next is another key */
	ASSERT(!same(root("ab", &whole, "c"), root("a", &whole, "bc")));
	s.layer_end = 7;
	ASSERT(!same(base, root(NULL, &s, NULL)));
	s = whole;
	s.head_begin = 1;
	ASSERT(!same(base, root(NULL, &s, NULL)));
	model_hash[31] ^= 1;
	ASSERT(!same(base, root(NULL, &whole, NULL)));
	model_hash[31] ^= 1;
	fingerprint[0] ^= 1;
	ASSERT(!same(base, root(NULL, &whole, NULL)));

	k = page(base, tokens[0], NULL);
	for (i = 0; i < CQ_PAGE_TOKENS; i++) {
		memcpy(ids, tokens[0], sizeof(ids));
		ids[i] ^= 0x80000000u;
		ASSERT(!same(k, page(base, ids, NULL)));
	}
	ASSERT(!same(k, page(k, tokens[0], NULL)));
	ASSERT(!same(k, page(base, tokens[0], "x")));
}

TEST(output_may_be_the_parent)
{
	struct cqp_key k, want;

	setup();
	k = root(NULL, &whole, NULL);
	want = page(k, tokens[0], NULL);
	ASSERT_EQ(cqp_key_page(&k, &k, tokens[0], NULL, 0), 0);
	ASSERT(same(k, want));
}
