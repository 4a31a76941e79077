#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The README's C worker, compiled against an installed libcq with pkg-config
# and run against a cqd: the second run finds what the first one published.
set -u
# shellcheck source=tests/system/lib-worker.sh
. "$(dirname "$0")/lib-worker.sh"

install_it() {
	make -C "$top" O="$O" ${CC:+CC="$CC"} DESTDIR="$dir/root" PREFIX=/usr install || return
	export PKG_CONFIG_SYSROOT_DIR=$dir/root
	PKG_CONFIG_LIBDIR=$(dirname "$(find "$dir/root" -name cq.pc)")
	libs=$(dirname "$(find "$dir/root" -name libcq.so.0)")
	export PKG_CONFIG_LIBDIR
}

# make knows no quoting: the parts of such a name are other folders
space() {
	mkdir -p "$dir/a" && ! make -C "$top" O="$dir/a b" clean >"$dir/said" 2>&1 &&
		grep "no spaces" "$dir/said" && [ -d "$dir/a" ]
}

# Under both usual prefixes
configured() {
	local file

	file=$("$O/cqd" --help | sed -n 's|.*(default \(/[^)]*cqd.conf\)).*|\1|p')
	[ -n "$file" ] && [ -e "$dir/root$file" ] &&
		make -C "$top" O="$O" ${CC:+CC="$CC"} DESTDIR="$dir/local" PREFIX=/usr/local \
			install && [ -e "$dir/local$file" ] &&
		make -C "$top" O="$O" ${CC:+CC="$CC"} DESTDIR="$dir/local" PREFIX=/usr/local \
			uninstall && [ "$(find "$dir/local" ! -type d)" = "$dir/local$file" ]
}

# With torch or without, but never without the package itself
python_tools() {
	local tool

	for tool in cq-dump cq-turn cq-eval; do
		PYTHON=/usr/bin/python3 "$dir/root/usr/bin/$tool" --help >"$dir/said" 2>&1 ||
			grep 'python3-torch' "$dir/said" || return
		grep "^usage: $tool\\|python3-torch" "$dir/said" || return
	done
}

compile_it() {
	# shellcheck disable=SC2046 # flags are words
	${CC:-cc} -Wall -Wextra -Werror ${SANITIZE:+-fsanitize=$SANITIZE} -o "$dir/example" \
		"$top/Documentation/example.c" $(pkg-config --cflags --libs cq)
}

example() {
	LD_LIBRARY_PATH=$libs "$dir/example" coded
}

absent() {
	! CQ_SOCKET=$dir/none.sock example >"$dir/absent" 2>&1 &&
		grep "$dir/none.sock" "$dir/absent"
}

says() {
	example | tee "$dir/said" && [ "$(cat "$dir/said")" = "$1" ]
}

short_one() {
	[ "$(sed 1d "$top/Documentation/example.c" | grep -c .)" -le 40 ]
}

in_readme() {
	# shellcheck disable=SC2016 # a fence, not a command
	sed -n '/^```c$/,/^```$/p' "$top/README.md" | sed '1d;$d' |
		diff - <(sed 1d "$top/Documentation/example.c")
}

plan 11
ok "a folder with a space in its name is refused" space
ok "make install" install_it
ok "the configuration is where cqd looks; it alone stays" configured
ok "installed Python programs find their package" python_tools
ok "the example compiles with pkg-config" compile_it
ok "it has 40 lines beside the licence" short_one
ok "the README shows it" in_readme
ok "without a daemon it names the socket" absent
make_models >"$dir/out" 2>&1
ok "a cqd with a coded model" start_cqd
ok "the first run finds nothing" says "0 of 200 tokens were there already"
ok "the second run finds three pages" says "192 of 200 tokens were there already"
