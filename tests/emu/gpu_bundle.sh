#!/bin/bash
# SPDX-License-Identifier: MIT
#
# TIMEOUT=600
# make gpu-bundle: what it makes runs where nothing of ours is installed. There
# are a shell and its tools, the bundle, and a driver, which is the fake one.
set -u
top=${TOP:-$(cd "$(dirname "$0")/../.." && pwd)}
O=${O:-$top/build}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
root=$dir/root bundle=$dir/root/opt/cq
# shellcheck source=tests/tap.sh
. "$top/tests/tap.sh"

skip_all() {
	echo "1..1"
	echo "ok 1 - gpu-bundle # SKIP $1"
	exit
}

make_it() {
	unset MAKEFLAGS MAKELEVEL
	make -s -C "$top" O="$O" ${CC:+CC="$CC"} ${CFLAGS:+CFLAGS="$CFLAGS"} \
		${WERROR:+WERROR="$WERROR"} gpu-bundle
}

# A file and its libraries, each where it is here.
put() {
	local file

	for file; do
		mkdir -p "$root${file%/*}"
		cp -L "$file" "$root$file"
		ldd "$file" 2>/dev/null | grep -o '/[^ ]*' | while read -r lib; do
			mkdir -p "$root${lib%/*}"
			cp -nL "$lib" "$root$lib"
		done
	done
}

machine() {
	local tool

	mkdir -p "$root"/{proc,dev,tmp,opt,etc}
	for tool in bash sh awk cat chmod cp cut date dirname grep head id ls mkdir mkfifo mktemp \
		    mv nproc rm sed setpriv sleep sort tail timeout tr; do
		put "$(readlink -f "$(command -v $tool)")"
		mkdir -p "$root/bin"
		ln -sf "$(readlink -f "$(command -v $tool)")" "$root/bin/$tool"
	done
	cp -R "$O/gpu-bundle" "$bundle"
	# The driver with what it is linked with, which is none of the bundle's.
	mkdir -p "$bundle/tests/emu"
	cp "$O"/tests/emu/{libcuda.so.1,libcqk_emu.so} "$bundle/tests/emu/"
	ldd "$O/tests/emu/libcuda.so.1" | awk '/libstdc|libgcc/ { print $3 }' |
		xargs -I{} cp -L {} "$bundle/tests/emu/"
}

# within COMMAND...: on that machine.
within() {
	env -i PATH=/bin TMPDIR=/tmp GPU_MIB=8 HOME=/ ${loader:+CQ_BUNDLE_LOADER=1} \
		${parts+GPU_PARTS="$parts"} ${kinds+GPU_KINDS="$kinds"} \
		unshare -m -- /bin/bash -c 'mount -t proc proc "$0/proc" &&
			mount --bind /dev "$0/dev" && exec "$1" "$0" "${@:2}"' \
		"$root" "$chroot" "$@"
}

program_runs() {
	within /opt/cq/run cqctl --version
}

# No library of the bundle is missed: none of ours is on the machine.
needs_the_bundle() {
	rm -rf "$bundle.away"
	mv "$bundle/lib" "$bundle.away"
	! program_runs
	local rc=$?

	mv "$bundle.away" "$bundle/lib"
	return $rc
}

check_passes() {
	within /opt/cq/run check --emulated | tee "$dir/said"
	[ "${PIPESTATUS[0]}" = 0 ] &&
		grep "^gpu-check: [0-9]* passed, 0 failed, 0 skipped" "$dir/said" &&
		grep '"commit":"[0-9a-f]*+\?"' "$bundle/gpu-emulated.json"
}

# An image that cannot be mapped is no image, and which it was is said.
bad_image() {
	local bad=$bundle/kernels/cuda/bad.fatbin

	: >"$bad"
	within /opt/cq/run tests/gpu/kernels_check --list >"$dir/said" 2>&1
	local rc=$?

	rm "$bad"
	[ $rc = 2 ] && grep "kernels/cuda/bad.fatbin: Invalid argument" "$dir/said"
}

no_driver() {
	within /opt/cq/run check | tee "$dir/said"
	grep "no GPU: nothing was checked" "$dir/said"
}

benches_need_a_gpu() {
	within /opt/cq/run bench | tee "$dir/said"
	grep "no GPU: nothing was measured" "$dir/said"
}

small_enough() {
	[ "$(du -sm "$O/gpu-bundle" | cut -f1)" -le 50 ]
}

# Nothing in it knows the folder that it was made in.
moved() {
	! grep -rIl "$O" "$O/gpu-bundle" --include='*.sh' --include=run
}

echo "TAP version 13"
[ -z "${SANITIZE:-}" ] || skip_all "a sanitizer's libraries are not in a bundle"
[ "$(uname -m)" = x86_64 ] || skip_all "a bundle is for x86-64"
unshare -m true 2>/dev/null || skip_all "no mount namespace"
echo "1..11"
parts='kernels hardening demo' loader=''
ok "make gpu-bundle" make_it
ok "at most 50 MiB" small_enough
ok "it knows no folder of the build" moved
ok "a machine with nothing of ours" machine
ok "a program runs there" program_runs
ok "but not without the bundle's libraries" needs_the_bundle
ok "gpu-check, with the machine's loader" check_passes
# Five programs of the same libraries: one shows that the loader finds them.
loader=1 parts='kernels hardening' kinds=check
ok "gpu-check, with the bundle's loader" check_passes
ok "an image that cannot be mapped is told" bad_image
ok "without a driver that is said" no_driver
ok "without a driver nothing is measured" benches_need_a_gpu
