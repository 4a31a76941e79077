#!/bin/bash
# SPDX-License-Identifier: MIT
#
#	gpu-bundle.sh FILE...
#
# O/gpu-bundle: programs and what they need, to be copied to a machine that has a driver
# for GPUs and not much else (a shell with the usual tools), and run there by
# gpu-bundle/run. The files are programs and libraries below O, the kernels that the
# programs of tests/gpu share, and reports of the kernels' registers.
#
# Libraries are in two folders. Those of glibc are used only where the machine's are too
# old, since a tool that looks into a program wants its own loader.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
O=${O:-$top/build}
dir=$O/gpu-bundle
limit=$((50 << 20))

rm -rf "$dir"
mkdir -p "$dir/lib" "$dir/glibc" "$dir/scripts" "$dir/systemd" "$dir/kernels/cuda"

programs=()
for file; do
	case $file in
	*.txt) cp "$file" "$dir/kernels/"; continue ;;
	*.fatbin) cp "$file" "$dir/kernels/cuda/"; continue ;;
	*.a) continue ;;
	esac
	[ "${file#/}" != "$file" ] || file=$top/$file
	to=$dir/${file#"$O"/}
	mkdir -p "${to%/*}"
	"${OBJCOPY:-objcopy}" --strip-debug "$file" "$to"
	chmod 755 "$to"
	programs+=("$to")
done
# libcq.so.0 and libcq.so, for programs that are linked with it
for link in "$O"/libcq.so*; do
	[ ! -L "$link" ] || cp -P "$link" "$dir/"
done

# --- their libraries ---

glibc='ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1'
needed() {	# of all programs: "NAME PATH"
	for prog in "${programs[@]}"; do
		LD_LIBRARY_PATH=$O ldd "$prog" 2>/dev/null || :
	done | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }
		$1 ~ /^\/.*\/ld-/ { n = split($1, part, "/"); print part[n], $1 }' | sort -u
}
needed | while read -r name path; do
	case " $glibc " in
	*" $name "*) cp -L "$path" "$dir/glibc/$name" ;;
	*)	case $name in
		libcq.so*) ;;
		*) cp -L "$path" "$dir/lib/$name" ;;
		esac ;;
	esac
done
# What a driver is linked with, needed by a program or not.
libc=$(needed | awk '$1 == "libc.so.6" { print $2 }')
for name in $glibc; do
	[ -e "$dir/glibc/$name" ] || [ ! -e "${libc%/*}/$name" ] ||
		cp -L "${libc%/*}/$name" "$dir/glibc/$name"
done

# --- the rest ---

cp "$top"/scripts/{gpu-{check,bench,lib},demo,demo-lib}.sh \
	"$top"/scripts/gpu-{bench.awk,baselines.py} "$dir/scripts/"
mv "$dir/tests/gpu/cq-worker" "$dir/cq-worker"
mkdir -p "$dir/client/worker/lm" "$dir/Documentation"
cp "$top"/client/worker/lm/{config.json,merges.json,model.safetensors,calibration.u16,heldout.u16} \
	"$dir/client/worker/lm/"
cp "$top"/Documentation/{formats,protocol}.md "$dir/Documentation/"
cp "$top/systemd/cqd.service" "$dir/systemd/"
cp "$top/scripts/gpu-run.sh" "$dir/run"
cp "$top/LICENSE" "$dir/"
cp "$top/Documentation/gpu.md" "$dir/README.md"
commit=$(git -C "$top" -c safe.directory='*' rev-parse --short=12 HEAD 2>/dev/null) || commit=
[ -z "$commit" ] || git -C "$top" -c safe.directory='*' diff --quiet HEAD || commit=$commit+
echo "$commit" >"$dir/commit"

bytes=$(du -sb "$dir" | cut -f1)
echo "gpu-bundle: $dir: $((bytes >> 20)) MiB, ${#programs[@]} programs," \
	"$(find "$dir/lib" "$dir/glibc" -type f | wc -l) libraries"
if [ -z "$(ls "$dir/kernels/cuda")" ]; then
	echo "gpu-bundle: built without nvcc: no kernels for GPUs are in it" >&2
fi
if [ "$bytes" -gt "$limit" ]; then
	echo "gpu-bundle: more than $((limit >> 20)) MiB" >&2
	exit 1
fi
