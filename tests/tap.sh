# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# shellcheck disable=SC2154 # $dir is of who sources this
#
# Lines of TAP for scripts, which source it: $dir is a folder of theirs.
n=0

# plan N: the first line
plan() {
	echo "TAP version 13"
	echo "1..$1"
}

# ok TEXT COMMAND...: one line; what the command said, if it failed
ok() {
	local what=$1

	shift
	n=$((n + 1))
	if "$@" >"$dir/out" 2>&1; then
		echo "ok $n - $what"
	else
		echo "not ok $n - $what"
		sed 's/^/# /' "$dir/out"
		[ ! -s "$dir/cqd.log" ] || tail -n 5 "$dir/cqd.log" | sed 's/^/# cqd: /'
	fi
}

skip() {
	n=$((n + 1))
	echo "ok $n - $1 # SKIP $2"
}
