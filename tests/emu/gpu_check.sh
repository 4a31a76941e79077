#!/bin/bash
# SPDX-License-Identifier: MIT
#
# TIMEOUT=900
# make gpu-check on the emulation: every test of it runs and says that it was
# emulated. What is found here says nothing about GPUs.
set -u
top=${TOP:-$(cd "$(dirname "$0")/../.." && pwd)}
O=${O:-$top/build}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
json=$O/gpu-emulated.json
# shellcheck source=tests/tap.sh
. "$top/tests/tap.sh"

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
	local lines whole='"emulated":true,"date":"20.*Z","commit":"[0-9a-f+]*"}$'

	cat "$json"
	lines=$(wc -l <"$json")
	[ "$(grep -c "$whole" "$json")" = "$lines" ] &&
		[ "$(grep -c '^[A-Za-z0-9:_]* *[a-z]*  \[emulated\]' "$dir/said")" = "$lines" ] &&
		[ "$(grep -c '^| [a-z]* *| ' "$dir/said")" = "$lines" ] &&
		grep "emulated: no GPU was checked" "$dir/said"
}

# As many lines as the programs of the kernels have tests, and none failed.
kernels_pass() {
	local kind want got

	for kind in append attn base check few prefix; do
		want=$("$O/tests/gpu/kernels_$kind" --list | wc -l)
		got=$(grep -c "^{\"test\":\"$kind:[a-z0-9_]*\",\"result\":\"pass\"" "$json")
		[ "$want" -gt 0 ] && [ "$got" = "$want" ] || return 1
	done
}

# A tool that says what it was asked, and finds what its file says.
tool() {
	{
		printf '#!/bin/sh\nshift 6\necho "========= ERROR SUMMARY: of $*"\n'
		printf '"$@" || exit 8\nexit %s\n' "$1"
	} >"$dir/tool"
	chmod +x "$dir/tool"
}

sanitizer_clean() {
	tool 0
	COMPUTE_SANITIZER=$dir/tool GPU_PARTS=sanitizer check --emulated &&
		[ "$(grep -c '^{"test":"memcheck:.*"pass"' "$json")" = 10 ] &&
		[ "$(grep -c '^{"test":"racecheck:.*"pass","value":"=* ERROR' "$json")" = 10 ]
}

sanitizer_finds() {
	tool 9
	! COMPUTE_SANITIZER=$dir/tool GPU_PARTS=sanitizer check --emulated &&
		[ "$(grep -c '^{"test":"memcheck:.*"fail"' "$json")" = 10 ]
}

no_sanitizer() {
	line memcheck:attn:sinks_tails_masks skip "compute-sanitizer is not here"
}

# The list of refused calls is that of the unit, as this systemd has it.
calls_of_the_unit() {
	local calls=/usr/include/x86_64-linux-gnu/asm/unistd_64.h

	[ -e "$calls" ] && command -v systemd-analyze >/dev/null || return 0
	groups() {
		systemd-analyze syscall-filter "$1" | sed 1d | while read -r word _; do
			case $word in
			@*) groups "$word" ;;
			[a-z_]*) echo "$word" ;;
			esac
		done
	}
	{ groups @default; groups @system-service; } | sort -u >"$dir/taken"
	{ groups @privileged; groups @resources; groups @obsolete; } | grep -vx mbind |
		sort -u >"$dir/given"
	comm -23 "$dir/taken" "$dir/given" >"$dir/allowed"
	{ groups @default; echo mbind; } >>"$dir/allowed"
	awk '/^#define __NR_/ && $3 <= 450 { sub(/__NR_/, "", $2); print $2 }' "$calls" | sort -u |
		grep -vxFf "$dir/allowed" >"$dir/want"
	"$O/tests/gpu/gpu_hardened" --list | sort -u | diff "$dir/want" -
}

hardening_fails() {
	CQ_EMU_FAIL=cuMemCreate:1 LD_LIBRARY_PATH=$O/tests/emu \
		"$O/tests/gpu/gpu_hardened" --emulated >"$dir/json"
	[ $? = 1 ] && grep '"hardening","result":"fail","value":"[^"]*cuMemCreate' "$dir/json"
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
	! CQ_EMU_FAIL=cuMemExportToShareableHandle:1 GPU_PARTS='' check --emulated &&
		line T1 fail cuMemExportToShareableHandle && line T4 fail && line T10 pass
}

demo_passes() {
	line demo pass "5 of 5 figures met" && [ -s "$O/demo-gpu.json" ]
}

echo "TAP version 13"
# With a sanitizer the tests of the kernels run for themselves, of the same objects.
echo "1..$((${SANITIZE:+-4} + 25))"
[ -z "${SANITIZE:-}" ] || export GPU_PARTS='hardening demo'
ok "a call that fails is told" fails
[ -n "${SANITIZE:-}" ] || ok "a tool that finds nothing" sanitizer_clean
[ -n "${SANITIZE:-}" ] || ok "a tool that finds something" sanitizer_finds
ok "all tests, emulated" check --emulated
for t in 1 2 3 4 5 6 7 8 9 10; do
	ok "T$t passes" line T$t pass
done
[ -n "${SANITIZE:-}" ] || ok "the tests of the kernels pass" kernels_pass
[ -n "${SANITIZE:-}" ] || ok "without a tool that is said" no_sanitizer
ok "the driver is confined, and works" line hardening pass "confined by PrivateNetwork"
ok "the demo passes" demo_passes
ok "each line says that it was emulated" all_say_so
ok "confined like the unit" calls_of_the_unit
ok "a driver that fails when confined is told" hardening_fails
ok "the emulation is no GPU" no_gpu
ok "nor is it recorded" no_gpu --record
ok "no emulated line is in Documentation/gpu.json" nothing_recorded
ok "unknown words are refused" refused --emulated --record
