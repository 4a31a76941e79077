#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	gpu-check.sh [--emulated | --record]
#
# All that is to be known of a GPU (Documentation/gpu.md): what sharing stands on, the
# tests of the kernels, the same under compute-sanitizer, the driver under the unit's
# hardening, the demo. Lines of JSON in O/gpu.json, then a table. Without a GPU that is
# said, and nothing was checked. --record also puts the lines into Documentation/gpu.json.
# --emulated runs it all on the fake driver, into O/gpu-emulated.json: that says that the
# programs work, and nothing about GPUs.
#
# In the environment: GPU_MIB, size of what is shared; GPU_UUID, another GPU than the
# first; GPU_SECONDS (450) for everything; GPU_PARTS="kernels sanitizer hardening demo", what
# beside sharing; GPU_KINDS="append attn base check few prefix", kernels to test;
# COMPUTE_SANITIZER, where that is; CQ_RUN, words before each program of ours, and
# CQ_COMMIT, both of a bundle.
# shellcheck source=scripts/gpu-lib.sh
. "$(dirname "$0")/gpu-lib.sh"
budget=${GPU_SECONDS:-450}

if [ -n "$emulated" ]; then
	out=$O/gpu-emulated.json
	args+=(--size "${GPU_MIB:-64}")
else
	out=$O/gpu.json
	args+=(--size "${GPU_MIB:-1024}")
	# The tests of the kernels take the first GPU that they see.
	[ -z "${GPU_UUID:-}" ] || export CUDA_VISIBLE_DEVICES=$GPU_UUID
	export CQ_TEST_GPU=1
fi
log=$out.log
parts=" ${GPU_PARTS-kernels sanitizer hardening demo} "
part() { [[ $parts == *" $1 "* ]]; }

# within SECONDS COMMAND...: or what is left of the time for everything.
within() {
	local left=$((budget - SECONDS + began)) most=$1

	shift
	[ "$left" -gt 0 ] || return 124
	timeout -k 5 "$((left < most ? left : most))" "$@"
}

# put TEST RESULT VALUE: a line like those of the programs.
put() {
	local value=${3//[^ -~]/ }

	value=${value//\\/\\\\}
	value=${value//\"/\\\"}
	printf '%-4s %s  %s%s\n' "$1" "$2" "${emulated:+[emulated] }" "${3:0:160}"
	printf '{"test":"%s","result":"%s","value":"%s",%s,"date":"%s","commit":"%s"}\n' \
		"$1" "$2" "${value:0:500}" "$who" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$commit" \
		>>"$out.tmp"
}

# --- T1 to T10 ---

within "$budget" "${run[@]}" "$O/tests/gpu/gpu_sharing" "${args[@]}" >"$out.tmp" 2>"$log"
rc=$?
if [ $rc = 3 ]; then
	rm -f "$out.tmp"
	sed 's/^gpu_sharing: //' "$log"
	echo "gpu-check: no GPU: nothing was checked"
	exit 0
fi
cat "$log"
who=$(sed -n '1s/.*\("device":.*"emulated":[a-z]*\).*/\1/p' "$out.tmp")
if [ -z "$who" ]; then
	echo "gpu-check: gpu_sharing ended with status $rc"
	exit 1
fi
[ $rc = 0 ] || [ $rc = 1 ] || put sharing fail "gpu_sharing ended with status $rc"

# --- the tests of the kernels ---

# tap NAME: TAP from stdin to lines "TEST<tab>RESULT<tab>VALUE"; what is said before a test
# that failed is why, and a plan that was not kept is a failure.
tap() {
	awk -v name="$1" '
	/^1\.\.[0-9]+/ { planned = substr($0, 4) + 0 }
	/^# / && !/^# took/ { why = why (why == "" ? "" : "; ") substr($0, 3) }
	/^(not )?ok / {
		done++
		result = /^ok/ ? (/ # SKIP/ ? "skip" : "pass") : "fail"
		text = $0
		sub(/^(not )?ok [0-9]+ - /, "", text)
		if (result == "skip") {
			why = text
			sub(/.* # SKIP */, "", why)
		}
		sub(/ # SKIP.*/, "", text)
		print name ":" text "\t" result "\t" (result == "pass" ? "" : why)
		why = ""
	}
	END {
		if (!planned || done < planned)
			print name "\tfail\tended after " done + 0 " of " planned + 0 " tests"
	}'
}

for kind in ${GPU_KINDS:-append attn base check few prefix}; do
	part kernels || break
	while IFS=$'\t' read -r test result value; do
		put "$test" "$result" "$value"
	done < <(within 120 "${run[@]}" "$O/tests/gpu/kernels_$kind" 2>>"$log" </dev/null |
		tap "$kind")
done

# --- and under compute-sanitizer ---

tool=${COMPUTE_SANITIZER:-}
[ -n "$tool" ] || [ -n "$emulated" ] || tool=$(command -v compute-sanitizer ||
	ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)

# Small tests that have each kernel with all its barriers.
sanitize() {	# TOOL KIND TEST
	local name=$1:$2:$3 text rc

	if [ -z "$tool" ]; then
		put "$name" skip "compute-sanitizer is not here${emulated:+: it watches GPUs only}"
		return
	fi
	text=$(within 60 "$tool" --tool "$1" --error-exitcode 9 --report-api-errors no \
		"${run[@]}" "$O/tests/gpu/kernels_$2" "$3" 2>&1 </dev/null)
	rc=$?
	printf '%s\n' "$text" >>"$log"
	case $rc in
	0) put "$name" pass "$(grep -m1 'SUMMARY' <<<"$text")" ;;
	9) put "$name" fail "$(grep -m3 '^========= [A-Z]' <<<"$text" | tr '\n' ';')" ;;
	124) put "$name" skip "not done in time" ;;
	*) put "$name" fail "status $rc: $(tail -n 3 <<<"$text" | tr '\n' ';')" ;;
	esac
}

for kind in memcheck racecheck; do
	part sanitizer || break
	sanitize $kind attn sinks_tails_masks
	sanitize $kind attn batches_share_pages_at_other_positions
	sanitize $kind prefix wide_batches
	sanitize $kind few few_vectors
	sanitize $kind few few_vectors_by_bytes
	sanitize $kind few few_vectors_by_tables
	sanitize $kind few few_vectors_over_halves
	sanitize $kind prefix books_by_warpgroups
	sanitize $kind append ties_take_the_lowest_code
	sanitize $kind check lengths_around_stripes_and_blocks
done

# --- the driver, confined like cqd ---

# What cqd.service says of confinement, with the drop-in of cqd.conf(5) for GPUs.
properties() {
	sed -n '/^CapabilityBoundingSet=/,/^UMask=/p' "$top/systemd/cqd.service" |
		grep -v '^#\|^$\|^PrivateDevices=\|^ProcSubset=\|^RemoveIPC=' |
		sed 's/^/--property=/'
	printf -- '--property=DeviceAllow=%s rw\n' char-nvidia char-nvidia-frontend \
		char-nvidia-uvm char-nvidia-caps
	printf -- '--property=%s\n' PrivateDevices=no ProcSubset=all SupplementaryGroups=video \
		User=nobody
}

hardened() {
	local dir opts rc

	if [ -d /run/systemd/system ] && [ "$(id -u)" = 0 ] && [ -z "$emulated" ] &&
	   command -v systemd-run >/dev/null && [ ${#run[@]} = 0 ]; then
		# Where ProtectHome= and PrivateTmp= do not hide it.
		dir=$(mktemp -d /run/cq-gpu-check.XXXXXX)
		chmod 755 "$dir"
		cp "$O/tests/gpu/gpu_hardened" "$dir/"
		mapfile -t opts < <(properties)
		within 60 systemd-run --quiet --wait --pipe --collect "${opts[@]}" \
			"$dir/gpu_hardened" "${args[@]}" --confined >"$out.one" 2>>"$log"
		rc=$?
		rm -rf "$dir"
		[ -s "$out.one" ] && return $rc
		echo "gpu-check: systemd-run ended with status $rc: see $log"
	fi
	within 60 "${run[@]}" "$O/tests/gpu/gpu_hardened" "${args[@]}" >"$out.one" 2>>"$log"
}

check_hardening() {
	local rc

	hardened
	rc=$?
	if [ -s "$out.one" ]; then
		cat "$out.one" >>"$out.tmp"
		tail -n 1 "$log"
	else
		put hardening fail "gpu_hardened ended with status $rc: $(tail -n 1 "$log")"
	fi
	rm -f "$out.one"
}
part hardening && check_hardening

# --- the demo ---

check_demo() {
	local uuid

	uuid=$(sed -n 's/.*"uuid":"\([^"]*\)".*/\1/p' <<<"$who")
	if within 150 "$top/scripts/demo.sh" --gpu "$uuid" ${emulated:+--small} \
			>"$out.demo" 2>&1; then
		put demo pass "$(tail -n 1 "$out.demo")"
	else
		put demo fail "$(grep -e FAILED -e failed "$out.demo" | head -n 3 | tr '\n' ';')"
	fi
}
part demo && check_demo

# --- the table ---

mv "$out.tmp" "$out"
count() { grep -c "\"result\":\"$1\"" "$out"; }
echo
sed 's/^{"test":"\([^"]*\)","result":"\([^"]*\)","value":"\(.*\)","device":.*/\2\t\1\t\3/' "$out" |
	while IFS=$'\t' read -r result test value; do
		printf '| %-4s | %-60s | %s\n' "$result" "$test" "${value:0:110}"
	done
echo
passed=$(count pass) failed=$(count fail) skipped=$(count skip)
echo "gpu-check: $passed passed, $failed failed, $skipped skipped," \
	"$((SECONDS - began)) s: $out"
if [ -n "$emulated" ]; then
	echo "gpu-check: emulated: no GPU was checked"
elif [ -n "$record" ]; then
	if grep -q '"emulated":true' "$out"; then
		echo "gpu-check: $out has emulated lines: not recorded" >&2
		exit 1
	fi
	cp "$out" "$top/Documentation/gpu.json"
	echo "gpu-check: recorded in Documentation/gpu.json"
fi
[ "$failed" = 0 ]
