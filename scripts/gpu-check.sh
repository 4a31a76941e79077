#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	gpu-check.sh [--emulated | --record]
#
# What sharing stands on (T1 to T10 of Documentation/gpu.md), asked of a GPU:
# lines of JSON in O/gpu.json, then a table. Without a GPU that is said, and
# nothing was checked. --record also puts them into Documentation/gpu.json.
# --emulated runs it all on the fake driver, into O/gpu-emulated.json: that
# says that the programs work, and nothing about GPUs.
set -u
export LC_ALL=C
top=$(cd "$(dirname "$0")/.." && pwd)
O=${O:-$top/build}
prog=$O/tests/gpu/gpu_sharing
emulated='' record=''

case "$*" in
'') ;;
--emulated) emulated=1 ;;
--record) record=1 ;;
*)
	echo "usage: gpu-check.sh [--emulated | --record]" >&2
	exit 2
	;;
esac

commit=$(git -C "$top" -c safe.directory='*' rev-parse --short=12 HEAD 2>/dev/null)
[ -z "$commit" ] || git -C "$top" -c safe.directory='*' diff --quiet HEAD 2>/dev/null ||
	commit=$commit+

if [ -n "$emulated" ]; then
	out=$O/gpu-emulated.json
	# One state for all processes of this run, and for no others.
	export LD_LIBRARY_PATH=$O/tests/emu CQ_EMU_STATE=check$$
	args=(--emulated --size "${GPU_MIB:-64}")
else
	out=$O/gpu.json
	args=(--size "${GPU_MIB:-1024}")
fi

timeout -k 5 460 "$prog" "${args[@]}" --commit "$commit" >"$out.tmp" 2>"$out.log"
rc=$?
if [ $rc = 3 ]; then
	rm -f "$out.tmp"
	sed 's/^gpu_sharing: //' "$out.log"
	echo "gpu-check: no GPU: nothing was checked"
	exit 0
fi
mv "$out.tmp" "$out"
cat "$out.log"
if [ $rc != 0 ] && [ $rc != 1 ]; then
	echo "gpu-check: gpu_sharing ended with status $rc"
	exit 1
fi

count() { grep -c "\"result\":\"$1\"" "$out"; }
echo "gpu-check: $(count pass) passed, $(count fail) failed, $(count skip) skipped: $out"
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
exit $rc
