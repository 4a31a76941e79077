#!/bin/sh
# SPDX-License-Identifier: MIT
#
#	files.sh PATTERN...	files of the project, by git's pathspecs
#
# Without a repository (an unpacked tarball) the names are matched by find.
cd "$(dirname "$0")/.." || exit 2
if git -c safe.directory='*' rev-parse --git-dir >/dev/null 2>&1; then
	git -c safe.directory='*' ls-files -- "$@"
else
	for pattern; do
		case $pattern in
		*/*) match=-path name=./$pattern ;;
		*) match=-name name=$pattern ;;
		esac
		find . -path './build*' -prune -o -type f "$match" "$name" -print
	done | sed 's|^\./||' | sort -u
fi | while read -r f; do
	# deleted, but not yet in a commit
	[ ! -e "$f" ] || echo "$f"
done
