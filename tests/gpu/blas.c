// SPDX-License-Identifier: MIT
/*
 * The three functions of OpenBLAS that cq-worker calls, for a bundle that has no room
 * for all of it. Row-major, not transposed A, as called; sums in the order of memory.
 */
#include <cblas.h>

void openblas_set_num_threads(int n)
{
	(void)n;
}

/* Products of two rows, in eight sums that the compiler can keep side by side. */
static float dot(const float *a, const float *b, int n)
{
	float s[8] = { 0 };
	int i, j;

	for (i = 0; i + 8 <= n; i += 8)
		for (j = 0; j < 8; j++)
			s[j] += a[i + j] * b[i + j];
	for (; i < n; i++)
		s[0] += a[i] * b[i];
	return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

void cblas_sgemv(const enum CBLAS_ORDER order, const enum CBLAS_TRANSPOSE trans,
		 const blasint m, const blasint n, const float alpha, const float *a,
		 const blasint lda, const float *x, const blasint incx, const float beta,
		 float *y, const blasint incy)
{
	blasint i;

	for (i = 0; i < m; i++)
		y[i * incy] = alpha * dot(a + (long)i * lda, x, n) +
			      (beta == 0.0f ? 0.0f : beta * y[i * incy]);
}

static float column(const float *a, const float *b, int n, long ldb)
{
	float s = 0;
	int i;

	for (i = 0; i < n; i++)
		s += a[i] * b[i * ldb];
	return s;
}

void cblas_sgemm(const enum CBLAS_ORDER order, const enum CBLAS_TRANSPOSE transa,
		 const enum CBLAS_TRANSPOSE transb, const blasint m, const blasint n,
		 const blasint k, const float alpha, const float *a, const blasint lda,
		 const float *b, const blasint ldb, const float beta, float *c,
		 const blasint ldc)
{
	blasint i, j;

	for (i = 0; i < m; i++)
		for (j = 0; j < n; j++) {
			float *to = c + (long)i * ldc + j;
			float sum = transb == CblasTrans ?
				dot(a + (long)i * lda, b + (long)j * ldb, k) :
				column(a + (long)i * lda, b + j, k, ldb);

			*to = alpha * sum + (beta == 0.0f ? 0.0f : beta * *to);
		}
}
