#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Read the TAP that run-tests.sh kept in $TAP_DIR and print the closing lines.
set -u
label=$1
shift
top=$(cd "$(dirname "$0")/.." && pwd)
passed=0 failed=0 skipped=0
declare -a failures=() skips=()

# Patterns of scripts/skips.txt: the first word of each line.
permitted=()
while read -r pattern _; do
	case $pattern in
	'' | '#'*) ;;
	*) permitted+=("$pattern") ;;
	esac
done <"$top/scripts/skips.txt"

may_skip() {
	local p

	[ "${CI:-}" = true ] || return 0
	for p in "${permitted[@]}"; do
		# shellcheck disable=SC2053
		[[ $1 == $p ]] && return 0
	done
	return 1
}

skip() {	# name reason
	skips+=("skip $1: ${2:-no reason given}")
	skipped=$((skipped + 1))
	if ! may_skip "$1"; then
		failures+=("FAIL $1: skipped, and scripts/skips.txt does not permit that")
		failed=$((failed + 1))
	fi
}

fail() {	# name why
	failures+=("FAIL $1${2:+: $2}")
	failed=$((failed + 1))
}

read_tap() {	# file.tap name
	local line planned='' ran=0 bad=0 name reason

	while IFS= read -r line; do
		name=${line#*[0-9] - }
		reason=${line#*\# [Ss][Kk][Ii][Pp]}
		reason=${reason# }
		case $line in
		'1..0'*) planned=0; skip "$2" "$reason" ;;
		1..*) planned=${line#1..}; planned=${planned%% *} ;;
		'not ok '*) ran=$((ran + 1)) bad=1; fail "$2:${name%% #*}" ;;
		'ok '*'# '[Ss][Kk][Ii][Pp]*) ran=$((ran + 1)); skip "$2:${name%% #*}" "$reason" ;;
		'ok '*) ran=$((ran + 1)) passed=$((passed + 1)) ;;
		esac
	done <"$1"
	if [ "$planned" != "$ran" ]; then
		fail "$2" "planned ${planned:-nothing}, ran $ran"
		bad=1
	fi
	[ "$bad" = 0 ]
}

slowest() {	# what a test took is the last line of its .sec
	for prog; do
		name=${prog#"$O"/}
		tail -qn 1 "$TAP_DIR/$(echo "$name" | tr / _).sec" 2>/dev/null | sed "s|$| $name|"
	done | awk '{ printf "%8.1f %8.1f  %s\n", $1, $2 + $3, $4; wall += $1; cpu += $2 + $3 }
		END { printf "%8.1f %8.1f  all\n", wall, cpu }' | sort -rn | head -n 16
}

for prog in "$@"; do
	name=${prog#"$O"/}
	log=$TAP_DIR/$(echo "$name" | tr / _)
	if [ ! -e "$log.tap" ]; then
		fail "$name" "did not run"
		continue
	fi
	rc=$(cat "$log.rc" 2>/dev/null || echo '?')
	good=1
	read_tap "$log.tap" "$name" || good=0
	if [ "$rc" != 0 ] && [ $good = 1 ]; then
		fail "$name" "exit status $rc"
		good=0
	fi
	if [ $good = 0 ]; then
		echo "--- $name"
		grep -v '^ok ' "$log.tap" | tail -n 40
		tail -n 60 "$log.err" 2>/dev/null
	fi
done
if [ $# -gt 1 ]; then
	echo "seconds, those of processors, the slowest tests"
	slowest "$@"
fi
[ ${#skips[@]} -eq 0 ] || printf '%s\n' "${skips[@]}"
[ ${#failures[@]} -eq 0 ] || printf '%s\n' "${failures[@]}"
echo "$label: $passed passed, $failed failed, $skipped skipped" | tee "$TAP_DIR/closing"
[ $failed -eq 0 ] && [ $((passed + skipped)) -gt 0 ]
