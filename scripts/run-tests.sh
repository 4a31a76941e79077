#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	run-tests.sh LABEL PROGRAM...
#
# Run test programs and scripts through prove(1) side by side, the longest first,
# but those of tests/system one after the other; then say what was slowest, what
# failed, what was skipped and why, and last of all "LABEL: N passed, M failed,
# K skipped".
#
# With CI=true a skip that scripts/skips.txt does not permit is a failure.
set -u
export LC_ALL=C		# a point in numbers, for awk and printf
label=$1
shift
top=$(cd "$(dirname "$0")/.." && pwd)
export O=${O:-$top/build} TOP=$top
export TAP_DIR=$O/tap/$label
rm -rf "$TAP_DIR"
mkdir -p "$TAP_DIR"

ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1
export ASAN_OPTIONS=$ASAN_OPTIONS:suppressions=$top/scripts/asan.supp
export UBSAN_OPTIONS=print_stacktrace=1
# Of its own accord it waits a second at the end of each process, of which tests have many.
export TSAN_OPTIONS=suppressions=$top/scripts/tsan.supp:die_after_fork=0:atexit_sleep_ms=20
export LSAN_OPTIONS=suppressions=$top/scripts/lsan.supp:print_suppressions=0

if ! command -v prove >/dev/null; then
	echo "$label: no prove(1): install perl" >&2
	exit 1
fi
# What would keep one processor busy when all else is done begins first.
long='/gpu_check /gpu_bundle /race.sh /gpu_bench /test_attention system/python test_libcq_gpu'
mapfile -t ordered < <(printf '%s\n' "$@" | awk -v long="$long" '
	BEGIN { n = split(long, pattern, " ") }
	{
		for (i = 1; i <= n && !index($0, pattern[i]);)
			i++
		print i, NR, $0
	}' | sort -n -k1,1 -k2,2 | cut -d' ' -f3-)
# A sequence each: prove prefers what is in none, and those of tests/system come first.
rules=(--rules 'seq=**/system/*')
for prog in "${ordered[@]}"; do
	rules+=(--rules "seq=$prog")
done
rc=0
# Of one more than there are processors, somebody waits.
prove --exec "$top/scripts/tap-exec.sh" -j "${JOBS:-$(($(nproc) + 1))}" "${rules[@]}" \
	"${ordered[@]}" || rc=1
"$top/scripts/tally.sh" "$label" "$@" || rc=1
exit $rc
