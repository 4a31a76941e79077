#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The tests of kernels for GPUs once more, on the emulation that watches each
# access to shared memory: one line for each program. A race shows there
# whatever the order of threads, also where the results happen to be right.
set -u
O=${O:-build}
export CQ_EMU_KERNELS=$O/tests/emu/libcqk_race.so

programs=()
for prog in "$O"/tests/kernels/test_cuda_*; do
	[ -x "$prog" ] && [ -f "$prog" ] && programs+=("$prog")
done
echo "TAP version 13"
if [ ${#programs[@]} -eq 0 ] || [ ! -e "$CQ_EMU_KERNELS" ]; then
	echo "1..1"
	echo "not ok 1 - no test of a kernel, or no $CQ_EMU_KERNELS"
	exit 1
fi
echo "1..${#programs[@]}"
n=0 failed=0
for prog in "${programs[@]}"; do
	n=$((n + 1))
	if out=$("$prog"); then
		echo "ok $n - $(basename "$prog")"
	else
		echo "not ok $n - $(basename "$prog")"
		failed=1
	fi
	grep -v '^ok' <<<"$out" | sed 's/^/# /'
done
exit $failed
