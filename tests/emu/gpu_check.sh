#!/bin/bash
# SPDX-License-Identifier: MIT
#
# make gpu-check on the emulation: every test of it runs and says that it was
# emulated. What is found here says nothing about GPUs.
set -u
top=${TOP:-$(cd "$(dirname "$0")/../.." && pwd)}
O=${O:-$top/build}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
json=$O/gpu-emulated.json
n=0

ok() {	# TEXT COMMAND...
	local what=$1

	shift
	n=$((n + 1))
	if "$@" >"$dir/out" 2>&1; then
		echo "ok $n - $what"
	else
		echo "not ok $n - $what"
		sed 's/^/# /' "$dir/out"
	fi
}

check() {
	rm -f "$json"
	GPU_MIB=8 O=$O "$top/scripts/gpu-check.sh" "$@" | tee "$dir/said"
	return "${PIPESTATUS[0]}"
}

# line TEST RESULT [TEXT]
line() {
	grep "^{\"test\":\"$1\",\"result\":\"$2\",\"value\":\"[^\"]*${3:-}" "$json" || {
		grep "\"$1\"" "$json"
		return 1
	}
}

all_say_so() {
	cat "$json"
	[ "$(grep -c '"emulated":true,"date":"20.*Z","commit":"[0-9a-f+]*"}$' "$json")" = 10 ] &&
		[ "$(grep -c '^T[0-9]* .*\[emulated\]' "$dir/said")" = 10 ] &&
		grep "emulated: no GPU was checked" "$dir/said"
}

# Not asked for, the emulation is no GPU, and leaves no results.
no_gpu() {
	local emu=$O/tests/emu

	mkdir -p "$dir/tests/gpu"
	ln -sf "$O/tests/gpu/gpu_sharing" "$dir/tests/gpu/gpu_sharing"
	LD_LIBRARY_PATH=$emu O=$dir "$top/scripts/gpu-check.sh" "$@" | tee "$dir/said"
	grep "no GPU: nothing was checked" "$dir/said" && [ ! -e "$dir/gpu.json" ]
}

refused() {
	"$top/scripts/gpu-check.sh" "$@"
	[ $? = 2 ]
}

nothing_recorded() {
	[ ! -e "$top/Documentation/gpu.json" ] ||
		! grep '"emulated":true' "$top/Documentation/gpu.json"
}

# A failure inside is a failure outside, and says what failed.
fails() {
	! CQ_EMU_FAIL=cuMemExportToShareableHandle:1 check --emulated &&
		line T1 fail cuMemExportToShareableHandle && line T4 fail && line T10 pass
}

echo "TAP version 13"
echo "1..17"
ok "a call that fails is told" fails
ok "all tests, emulated" check --emulated
for t in 1 2 3 4 5 6 7 8 10; do
	ok "T$t passes" line T$t pass
done
ok "T9 is skipped until it attends" line T9 skip "no kernels"
ok "each line says that it was emulated" all_say_so
ok "the emulation is no GPU" no_gpu
ok "nor is it recorded" no_gpu --record
ok "no emulated line is in Documentation/gpu.json" nothing_recorded
ok "unknown words are refused" refused --emulated --record
