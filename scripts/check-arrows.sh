#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Dependencies between folders go one way:
#
#	include <- proto   <- { daemon, client }
#	include <- kernels <- { daemon, client }
#
# proto and kernels do not know each other, nor do daemon and client; the
# reference worker knows cq.h alone; tests see all. Kernels for GPUs that are
# compiled for the CPU take in the emulation, which belongs to the tests. Includes are written from
# the root of the tree, so that the first component names the folder.
set -u
cd "$(dirname "$0")/.." || exit 2
bad=0

# allow FOLDER REGEX: what the sources under FOLDER may include in quotes
allow() {
	local folder=$1 regex=$2 f line name

	while read -r f; do
		while IFS=: read -r line name; do
			name=${name#*\"}
			name=${name%%\"*}
			[[ $name =~ ^($regex)$ ]] && continue
			echo "$f:$line: $folder may not include \"$name\""
			bad=1
		done < <(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$f")
	done < <(scripts/files.sh "$folder/*.c" "$folder/*.h" "$folder/*.cu" "$folder/*.cuh")
}

low='cq\.h|cq/[a-z0-9_]+\.h'
pb='cq\.pb-c\.h'
allow include	"$low"
allow proto	"$low|$pb|proto/.*"
allow kernels	"$low|kernels/.*|tests/emu/cuemu\.h"
allow daemon	"$low|$pb|proto/.*|kernels/.*|daemon/.*"
allow client/worker "cq\.h|client/worker/.*"
for d in client client/cqctl; do
	while read -r f; do
		while IFS=: read -r line name; do
			name=${name#*\"}
			name=${name%%\"*}
			[[ $name =~ ^($low|$pb|proto/.*|kernels/.*|client/.*)$ ]] && continue
			echo "$f:$line: client may not include \"$name\""
			bad=1
		done < <(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$f")
	done < <(scripts/files.sh "$d/*.c" "$d/*.h" | grep -v '^client/worker/')
done
exit $bad
