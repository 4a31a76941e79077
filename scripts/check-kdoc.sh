#!/bin/bash
# SPDX-License-Identifier: MIT
#
# kernel-doc: what is written is well formed (the kernel's own script says so),
# and every function that another folder calls has a comment, in a header or
# beside its body. Public ones describe each parameter and member; private ones
# those that need words.
set -u
cd "$(dirname "$0")/.." || exit 2
O=${O:-build}
bad=0

mapfile -t src < <(scripts/files.sh 'include/*.h' 'proto/*.[ch]' 'kernels/*.[ch]' \
	'daemon/*.[ch]' 'client/*.[ch]')
sed -nE 's/^[[:space:]]*\* ([a-zA-Z0-9_]+)\(\).*/\1/p' "${src[@]}" | sort -u >"$O/kdoc.have"
if [ -e "${KERNEL_DOC:-}" ]; then
	perl "$KERNEL_DOC" -none "${src[@]}" 2>&1 | awk '
		/: warning: no structured comments found/ { next }
		/Function parameter or member/ && !/^include\// { next }
		{ print; bad = 1 }
		END { exit bad }' || bad=1
elif [ "${CI:-}" = true ]; then
	echo "no kernel-doc script: install linux-kbuild-6.1"
	bad=1
fi

# "name folder" of every function defined, and of every one called from outside.
symbols() {	# nm's letter
	find "$O"/{proto,kernels,daemon,client} -name '*.o' ! -name 'cq.pb-c.o' 2>/dev/null |
		while read -r obj; do
			folder=$(dirname "${obj#"$O"/}")
			folder=${folder%/x86}
			nm -g "$obj" | awk -v t="$1" -v f="${folder%/arm}" \
				'$(NF - 1) == t { print $NF, f }'
		done | sort -u
}
symbols T >"$O/kdoc.defined"
symbols U >"$O/kdoc.called"
join "$O/kdoc.defined" "$O/kdoc.called" | awk '$2 != $3 { print $1, $2 }' |
	sort -u >"$O/kdoc.want"
while read -r name f; do
	echo "$f: $name() has no kernel-doc"
	bad=1
done < <(join -v 2 "$O/kdoc.have" "$O/kdoc.want")
exit $bad
