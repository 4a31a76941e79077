#!/bin/sh
# SPDX-License-Identifier: MIT
#
#	install.sh install|uninstall DESTDIR MODE:SOURCE:TARGET...
#
# A source that is a symbolic link is copied as one. A cqd.conf that is already
# there is the administrator's: it is kept.
set -eu
verb=$1 root=$2
shift 2
for entry; do
	mode=${entry%%:*}
	rest=${entry#*:}
	src=${rest%:*} dst=$root${rest##*:}
	if [ "$verb" = uninstall ]; then
		case $dst in
		*/cqd.conf) echo "  KEEP    $dst" ;;
		*) rm -f "$dst" ;;
		esac
		continue
	fi
	mkdir -p "${dst%/*}"
	if [ -L "$src" ]; then
		ln -sfn "$(readlink "$src")" "$dst"
		continue
	fi
	case $dst in
	*/cqd.conf) [ ! -e "$dst" ] || { echo "  KEEP    $dst"; continue; } ;;
	esac
	echo "  INSTALL $dst"
	case ${dst##*/} in
	cqd.service | cq-holder@.service) folder=${SBIN:-/usr/sbin} ;;
	cq-verify@.service) folder=${BIN:-/usr/bin} ;;
	*) folder= ;;
	esac
	if [ "$folder" ]; then
		# the unit names its program by its full path
		sed "s|^\\(Exec[A-Za-z]*=[-+!:@]*\\)/usr/s*bin/cq|\\1$folder/cq|" \
			"$src" >"$dst"
		chmod "$mode" "$dst"
	else
		${INSTALL:-install} -m "$mode" "$src" "$dst"
	fi
done
