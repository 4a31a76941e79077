#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	fuzz.sh smoke NAME...		each fuzzer for $FUZZ_SECONDS
#	fuzz.sh cover NAME=FILE[,FILE]...	lines of FILE that the corpus reaches
#
# Seeds of fuzz_foo are read from tests/fuzz/corpus/{fuzz_foo,foo}; what a run
# finds goes to $O/corpus and what crashes to $O/artifacts. Coverage below 80 %
# is a failure.
set -u
mode=$1
shift
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 2
export ASAN_OPTIONS=suppressions=$top/scripts/asan.supp
export LSAN_OPTIONS=suppressions=$top/scripts/lsan.supp:print_suppressions=0
passed=0 failed=0

randomless() {
	if setarch -R true 2>/dev/null; then setarch -R "$@"; else "$@"; fi
}

corpora() {	# name
	local d

	for d in "$O/corpus/$1" "tests/fuzz/corpus/$1" "tests/fuzz/corpus/${1#fuzz_}"; do
		[ ! -d "$d" ] || echo "$d"
	done
}

smoke() {	# name
	local log=$O/$1.log dirs

	mkdir -p "$O/corpus/$1" "$O/artifacts"
	mapfile -t dirs < <(corpora "$1")
	export LLVM_PROFILE_FILE=$O/$1.smoke.raw
	if randomless "$O/tests/fuzz/$1" -max_total_time="${FUZZ_SECONDS:-15}" -timeout=10 \
		-rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$O/artifacts/$1-" \
		"${dirs[@]}" >"$log" 2>&1 </dev/null; then
		echo "ok $1: $(sed -n 's/^stat::number_of_executed_units: */runs /p' "$log")," \
			"corpus $(find "${dirs[@]}" -type f | wc -l)"
		return 0
	fi
	echo "FAIL $1:"
	tail -n 40 "$log"
	return 1
}

cover() {	# name=file,file
	local name=${1%%=*} aims=${1#*=} bin dirs prof percent

	if [ -z "$aims" ]; then
		echo "FAIL $name: its Build file sets no FUZZ_AIM_$name"
		return 1
	fi
	bin=$O/tests/fuzz/$name
	prof=$O/$name.cover
	mapfile -t dirs < <(corpora "$name")
	export LLVM_PROFILE_FILE=$prof.raw
	if ! randomless "$bin" -runs=0 "${dirs[@]}" >"$prof.log" 2>&1 ||
	   ! llvm-profdata merge -o "$prof.data" "$prof.raw" 2>>"$prof.log"; then
		tail "$prof.log"
		return 1
	fi
	# shellcheck disable=SC2086
	llvm-cov report "$bin" -instr-profile="$prof.data" ${aims//,/ } >"$prof.txt"
	percent=$(awk '/^TOTAL/ { sub(/%/, "", $10); print int($10) }' "$prof.txt")
	echo "$name: ${percent:-no} % of the lines of $aims"
	[ "${percent:-0}" -ge 80 ]
}

# As many at a time as there are processors; each says what it has to say whole.
running=0
for arg; do
	[ $running -lt "$(nproc)" ] || wait -n || :
	running=$((running + 1))
	(
		"$mode" "$arg" >"$O/${arg%%=*}.out" 2>&1
		echo $? >"$O/${arg%%=*}.rc"
	) &
done
wait
for arg; do
	cat "$O/${arg%%=*}.out"
	if [ "$(cat "$O/${arg%%=*}.rc")" = 0 ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
	fi
done
echo "fuzz-$mode: $passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
