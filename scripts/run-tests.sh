#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	run-tests.sh LABEL PROGRAM...
#
# Run test programs and scripts through prove(1), those of tests/system one by
# one, the others side by side; then say what failed, what was skipped and why,
# and last of all "LABEL: N passed, M failed, K skipped".
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
export TSAN_OPTIONS=suppressions=$top/scripts/tsan.supp:die_after_fork=0
export LSAN_OPTIONS=suppressions=$top/scripts/lsan.supp:print_suppressions=0

side=() alone=()
for prog in "$@"; do
	case $prog in
	*/system/*) alone+=("$prog") ;;
	*) side+=("$prog") ;;
	esac
done
prove=(prove --exec "$top/scripts/tap-exec.sh")
if ! command -v prove >/dev/null; then
	echo "$label: no prove(1): install perl" >&2
	exit 1
fi
rc=0
if [ ${#side[@]} -gt 0 ]; then
	"${prove[@]}" -j "${JOBS:-$(nproc)}" "${side[@]}" || rc=1
fi
if [ ${#alone[@]} -gt 0 ]; then
	"${prove[@]}" "${alone[@]}" || rc=1
fi
"$top/scripts/tally.sh" "$label" "$@" || rc=1
exit $rc
