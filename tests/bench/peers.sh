#!/bin/bash
# SPDX-License-Identifier: MIT
#
# ggml beside us in make bench: found by GGML_DIR, left out in one line where it
# is not there or not as expected. What is measured of it is no test's business.
set -u
here=$(dirname "$0")
# shellcheck source=tests/tap.sh
. "$here/../tap.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
unset GGML_DIR
peers=$here/peers.py

# Nothing on stdout, one line on stderr that says $1.
left_out() {
	"$peers" ggml >"$dir/figures" 2>"$dir/words" || return 1
	cat "$dir/figures" "$dir/words"
	[ ! -s "$dir/figures" ] && [ "$(wc -l <"$dir/words")" -eq 1 ] &&
		grep -q "^peers: ggml: .*$1.*left out$" "$dir/words"
}

install_fake() {
	mkdir -p "$1/lib"
	${CC:-gcc} -shared -fPIC -O2 "${@:2}" -o "$1/lib/libggml.so" "$here/fake_ggml.c" -lm
}

attends() {
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$here GGML_DIR=$1 /usr/bin/python3 - <<-'END'
		import ggml_peer
		import numpy
		errors = {}
		def measure(what, call, error):
		    call(1)
		    errors[what] = error
		ggml_peer.run(ggml_peer.load(), numpy, (2, 3, 32), 100, 1 << 20, measure)
		assert len(errors) == 4, errors
		assert max(errors.values()) < 1e-5, errors
	END
}

plan 4
ok "without GGML_DIR ggml is left out, and said to be" left_out 'GGML_DIR names no folder'
export GGML_DIR=$dir/empty
ok "so it is where the folder has none" left_out "$dir/empty: no libggml"
export GGML_DIR=$dir/lacking
install_fake "$GGML_DIR" -DLACKING
ok "what a library lacks is named" left_out 'no ggml_backend_cpu_init() in libggml.so'
export GGML_DIR=$dir/whole
install_fake "$GGML_DIR"
ok "queries, keys and values arrive as they should" attends "$GGML_DIR"
