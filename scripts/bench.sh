#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	bench.sh OUT PROGRAM...
#
# Run each bench program; collect the JSON lines of their stdout in OUT.
set -u
out=$1
shift
rc=0
: >"$out.tmp"
for prog; do
	echo "bench: ${prog##*/}" >&2
	timeout 900 "$prog" </dev/null | tee -a "$out.tmp"
	if [ "${PIPESTATUS[0]}" -ne 0 ]; then
		echo "bench: ${prog##*/} failed" >&2
		rc=1
	fi
done
mv "$out.tmp" "$out"
echo "bench: $(wc -l <"$out") lines in $out" >&2
exit $rc
