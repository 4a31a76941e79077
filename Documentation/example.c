/* SPDX-License-Identifier: MIT */
#include <cq.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	struct cq_model_info m = { .sz = sizeof(m) };
	uint32_t ids[200], rows, layer, i, width;
	struct cq_batch *batch;
	struct cq_model *model;
	struct cq_ctx *ctx = NULL;
	struct cq_seq *seq;

	for (i = 0; i < 200; i++)
		ids[i] = i;	/* an engine has its tokenizer's ids here */
	if (argc != 2 || cq_open(NULL, &ctx) || cq_model_open(ctx, argv[1], NULL, &model) ||
	    cq_model_get_info(model, &m) || cq_seq_open(model, ids, 200, NULL, &seq) ||
	    cq_batch_new(model, 1, 200, 0, &batch))
		return fprintf(stderr, "%s\n", cq_last_error()), 1;
	printf("%zu of 200 tokens were there already\n", cq_seq_length(seq));

	rows = 200 - (uint32_t)cq_seq_length(seq);	/* at least one is left to compute */
	width = (m.n_heads + 2 * m.n_kv_heads) * m.head_dim;
	float qkv[rows * width], out[rows * m.n_heads * m.head_dim];
	struct cq_view q = { qkv, CQ_F32, 0, width, m.head_dim };
	struct cq_view k = { qkv + m.n_heads * m.head_dim, CQ_F32, 0, width, m.head_dim };
	struct cq_view v = { (float *)k.data + m.n_kv_heads * m.head_dim, CQ_F32, 0, width, m.head_dim };
	struct cq_view o = { out, CQ_F32, 0, m.n_heads * m.head_dim, m.head_dim };
	int ret = cq_step(batch, &seq, &rows, 1);	/* the next 200 rows of one sequence */
	for (layer = 0; layer < m.n_layers && !ret; layer++) {
		for (i = 0; i < rows * width; i++)
			qkv[i] = (float)rand() / (float)RAND_MAX;	/* an engine projects here */
		ret = cq_append(seq, layer, &k, &v, rows, NULL) ||
		      cq_attention(batch, layer, &q, &o, NULL);
	}
	if (ret || cq_commit(seq, ids + cq_seq_length(seq), rows) || cq_seal(seq, 5000))
		return fprintf(stderr, "%s\n", cq_last_error()), 1;
	cq_close(ctx);
	return 0;
}
