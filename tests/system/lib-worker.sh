# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# shellcheck disable=SC2034 # $top is for those who source this
#
# For scripts that run the reference worker: a folder that goes away,
# and a cqd with the models they made. Sourced by worker.sh and example.sh.

O=${O:-build}
[ -n "${CC:-}" ] || unset CC
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/cq-test.XXXXXX")
lm=$top/client/worker/lm
started=()
# shellcheck source=tests/tap.sh
. "$top/tests/tap.sh"

finish() {
	local pid

	for pid in "${started[@]}"; do
		kill -KILL "$pid" 2>/dev/null
	done
	wait 2>/dev/null
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

worker() {
	"$O/cq-worker" "$@"
}

ctl() {
	"$O/cqctl" "$@"
}

# gives STATUS TEXT COMMAND...: its exit status, and a text in what it says
gives() {
	local want=$1 what=$2 rc=0

	shift 2
	"$@" >"$dir/said" 2>&1 </dev/null || rc=$?
	cat "$dir/said"
	[ "$rc" = "$want" ] && grep -q -e "$what" "$dir/said"
}

# Codebooks from 2 x 512 tokens, and a model that passes fp16 through
make_models() {
	worker dump --lm "$lm" --ids "$lm/calibration.u16" --sequences 2 --length 512 \
		--out "$dir/acts.st" &&
		"$O/cqctl" calibrate "$dir/acts.st" --k 4c8b --v 4c8b -o "$dir/coded.st" &&
		"$O/cqctl" calibrate "$dir/acts.st" --k fp16 --v fp16 -o "$dir/fp16.st"
}

# A cqd with both of them, and the lines of $EXTRA for [daemon]
start_cqd() {
	local i

	cat >"$dir/cqd.conf" <<-END
		[daemon]
		socket = $dir/cqd.sock
		admin_socket = $dir/admin.sock
		pool_bytes = 64M
		${EXTRA:-}
		[namespace test]
		uid = $(id -u)
		[model coded]
		path = $dir/coded.st
		[model fp16]
		path = $dir/fp16.st
	END
	: >"$dir/cqd.log"	# it is looked at before the shell in the background made it
	"$O/cqd" --config "$dir/cqd.conf" </dev/null >"$dir/cqd.log" 2>&1 &
	started+=($!)
	export CQ_SOCKET=$dir/cqd.sock
	for ((i = 0; i < 400; i++)); do
		[ "$(grep -c ' loaded' "$dir/cqd.log")" -lt 2 ] || return 0
		sleep 0.05
	done
	cat "$dir/cqd.log"
	return 1
}
