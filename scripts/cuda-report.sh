#!/bin/sh
# SPDX-License-Identifier: MIT
#
#	cuda-report.sh LOG...
#
# Read what ptxas said of each kernel and target ("-Xptxas -v"; logs of nvcc
# beside the fatbins) and print a table: registers for each target, then of all
# targets the most static shared memory, stack and spilled bytes. Exit status 1
# if a kernel spills registers, or waits for each of its products of a warpgroup.
set -eu

[ $# -gt 0 ] || { echo "cuda-report: no kernels for GPUs in this build"; exit 0; }
awk '
/Compiling entry function/ {
	split($0, part, "\047")
	kernel = part[2]
	arch = part[4]
	sub(/a$/, "", arch)	# sm_90a, which stands for sm_90 where a file needs it
	if (!(arch in archs)) {
		archs[arch] = 1
		order[++num_archs] = arch
	}
	if (!(kernel in seen)) {
		seen[kernel] = 1
		names[++num] = kernel
	}
}
/wgmma.mma_async instructions are serialized/ || /.setmaxnreg. ignored/ {
	print "cuda-report: " $0
	serial++
}
/bytes stack frame/ && kernel != "" {
	most(stack, $1)
	most(spill, $5 + $9)
}
/Used [0-9]+ registers/ && kernel != "" {
	regs[kernel, arch] = number("registers")
	most(shared, number("bytes smem"))
	kernel = ""
}
function most(what, n)
{
	if (!(kernel in what) || n + 0 > what[kernel])
		what[kernel] = n + 0
}
# The number before these words, 0 without them.
function number(words)
{
	return match($0, "[0-9]+ " words) ? substr($0, RSTART, RLENGTH) + 0 : 0
}
END {
	wide = 6
	for (i = 1; i <= num; i++)
		if (length(names[i]) > wide)
			wide = length(names[i])
	printf "%-" wide "s", "kernel"
	for (a = 1; a <= num_archs; a++)
		printf " %6s", order[a]
	printf " %7s %6s %6s\n", "shared", "stack", "spills"
	for (i = 1; i <= num; i++) {
		k = names[i]
		printf "%-" wide "s", k
		for (a = 1; a <= num_archs; a++)
			printf " %6s", (k, order[a]) in regs ? regs[k, order[a]] : "-"
		printf " %7d %6d %6d\n", shared[k], stack[k], spill[k]
		bad += spill[k] > 0
	}
	if (bad)
		printf "cuda-report: %d of %d kernels spill registers\n", bad, num
	exit bad + serial > 0
}' "$@"
