/* SPDX-License-Identifier: MIT */
/* Implementations of the inner loops of k-means, for the table in kmeans.c. */
#ifndef CQK_KMEANS_OPS_H
#define CQK_KMEANS_OPS_H

#include "kernels/kmeans.h"

extern const struct cqk_kmeans_ops cqk_kmeans_portable;
extern const struct cqk_kmeans_ops cqk_kmeans_avx2;
extern const struct cqk_kmeans_ops cqk_kmeans_avx512;

#endif /* CQK_KMEANS_OPS_H */
