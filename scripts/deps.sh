#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Install the Debian packages that cq needs and that are missing.
#
#	deps.sh build		what "make" and "make demo" need
#	deps.sh check		what the tests and checks need as well
#	deps.sh eval		what client/python needs, for make eval and its tests
#	deps.sh neon		what make check-neon needs as well
#	deps.sh style		what CI needs beyond those
#	deps.sh -n build check	only say what is missing
#
# Says which packages, and does nothing when all are there. Without the right
# to install, missing build packages are an error; missing check packages are
# not, since each check that lacks its tool is skipped with a line saying so.
set -eu

build='gcc libc6-dev binutils pkg-config libuv1-dev libprotobuf-c-dev
protobuf-c-compiler libsystemd-dev libxxhash-dev libssl-dev libinih-dev
libjansson-dev libopenblas-dev libsimde-dev'

check='systemd systemd-container dbus procps strace time bats perl python3 git
clang clang-tidy llvm libclang-rt-14-dev cppcheck sparse codespell shellcheck
mandoc linux-kbuild-6.1 g++ valgrind'

eval='python3-torch python3-numpy python3-venv'

# A compiler for 64-bit ARM, and who runs what it makes
neon='gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user perl'

# 140 MB for the sake of checkpatch.pl
style=linux-source-6.1

missing() {
	dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
		awk -v want="$*" '
			$2 == "installed" { have[$1] = 1 }
			END {
				n = split(want, w, /[ \n]+/)
				for (i = 1; i <= n; i++)
					if (w[i] && !(w[i] in have))
						printf "%s ", w[i]
			}'
}

install_packages() {
	sudo=
	if [ "$(id -u)" -ne 0 ]; then
		command -v sudo >/dev/null || return 1
		sudo='sudo'
	fi
	apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y"
	apt="$apt -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0"
	# An empty or old package list looks like a missing package.
	# shellcheck disable=SC2086
	$apt install --no-install-recommends "$@" </dev/null >/dev/null 2>&1 ||
		{ $apt update && $apt install --no-install-recommends "$@"; } </dev/null
}

dry=
if [ "${1:-}" = -n ]; then
	dry=1
	shift
fi
if ! command -v dpkg-query >/dev/null; then
	echo "deps: not a Debian system; please see to the likes of:" "$build"
	exit 0
fi
for set in "$@"; do
	case $set in
	build) packages=$build ;;
	check) packages=$check ;;
	eval) packages=$eval ;;
	neon) packages=$neon ;;
	style) packages=$style ;;
	*) echo "deps: no set \"$set\": build, check, eval, neon or style" >&2; exit 2 ;;
	esac
	# shellcheck disable=SC2086
	lack=$(missing $packages)
	[ -n "$lack" ] || continue
	echo "deps: $set needs: $lack"
	[ -z "$dry" ] || continue
	# shellcheck disable=SC2086
	if install_packages $lack; then
		echo "deps: installed"
	elif [ "$set" = build ] || [ "${CI:-}" = true ]; then
		echo "deps: cannot install them here: as root, apt-get install $lack" >&2
		exit 1
	else
		echo "deps: going on without: what needs them is skipped"
	fi
done
