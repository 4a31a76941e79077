#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Run one test program or script for prove(1): with a limit in time, without
# stdin or make's own environment, its TAP kept in $TAP_DIR for the tally.
# A script may ask for another limit with a line "# TIMEOUT=seconds".
set -u
prog=$1
log=$TAP_DIR/$(echo "${prog#"$O"/}" | tr / _)
limit=$(sed -n 's/^# TIMEOUT=\([0-9]*\)$/\1/p;20q' "$prog" 2>/dev/null | head -n 1)
limit=$((${limit:-600} * ${TEST_TIMEOUT_SCALE:-1}))
unset MAKEFLAGS MAKELEVEL MFLAGS MAKEOVERRIDES

# A program for another processor has somebody to run it.
cmd=(${TEST_RUNNER:+"$TEST_RUNNER"} "$prog")
case $prog in
*.bats) cmd=(bats --tap "$prog") ;;
esac
# Old sanitizer runtimes do not cope with all of the kernel's random layouts.
if [ -n "${SANITIZE:-}" ] && setarch -R true 2>/dev/null; then
	cmd=(setarch -R "${cmd[@]}")
fi
# The search for leaks cannot walk the stacks of the emulation's fibers.
case $prog in
*/tests/emu/* | tests/emu/* | */test_cuda_*) export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0 ;;
esac
# of the clock, then of processors
TIMEFORMAT='%R %U %S'
{ time timeout -k 10 "$limit" "${cmd[@]}" </dev/null 2>"$log.err"; } 2>"$log.sec" | tee "$log.tap"
rc=${PIPESTATUS[0]}
echo "$rc" >"$log.rc"
[ "$rc" -ne 124 ] || echo "# stopped after $limit s" | tee -a "$log.tap"
exit "$rc"
