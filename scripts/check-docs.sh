#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What users can write or call is documented, and nothing else is:
#
#	keys of cqd.conf	the installed file and cqd.conf(5), each with a true
#				[reload] mark
#	options of cqctl	cqctl(1) and its completion, short forms included
#	symbols of libcq	libcq(3), cq.h and its comments
#	messages		protocol.md: every one, and which socket takes it
#	metrics			cqd(8)
set -u
cd "$(dirname "$0")/.." || exit 2
bad=0

# same WHAT CODE TEXT: two lists, of the code and of a text about it
same() {
	local found

	found=$(diff <(sort -u <<<"$2" | grep .) <(sort -u <<<"$3" | grep .) |
		sed -n "s|^< |$1: only in the code: |p
			s|^> |$1: only in the text: |p")
	[ -n "$found" ] || return
	echo "$found"
	bad=1
}

# "SECTION KEY", with "reload" behind it if a reload takes it over
keys_of_code() {
	awk '/^static const struct key [a-z]+_keys\[\]/ { sub(/_keys.*/, "", $5); section = $5 }
		/^};/ { section = "" }
		section && $2 ~ /^"/ {
			gsub(/[",]/, "", $2)
			print section, $2 ($4 ~ /false/ ? " reload" : "")
		}' daemon/config_file.c
}

# A comment speaks of the keys below it, up to the next comment.
keys_of_file() {
	awk '/^#?\[/ { gsub(/[][#]/, ""); section = $1 == "namespace" ? "ns" : $1; text = "" }
		/^#$|^$/ { text = "" }
		/^# / { if (key) text = ""; key = 0; text = text $0 }
		/^#[a-z_]+ = / {
			key = 1
			print section, substr($1, 2) (text ~ /\[reload\]/ ? " reload" : "")
		}' systemd/cqd.conf
}

keys_of_page() {
	awk 'function flush(i) {
			for (i = 1; i <= n; i++) print section, key[i] mark
			n = 0
			mark = ""
		}
		/^\.S[hs] |^\.El/ { flush() }
		/^\.Ss Section/ { section = $3 == "namespace" ? "ns" : $3 }
		/^\.It Cm / && section {
			flush()
			for (i = 3; i <= NF; i++) if ($i != "," && $i != "Cm") key[++n] = $i
		}
		/^\.Bq reload/ { mark = " reload" }
		/^\.Sh FILES/ { section = "" }' daemon/cqd.conf.5
}

# "cqctl --NAME" and "cqctl -C"
options_of_code() {
	sed -n '/struct ctl_opt [a-z]*\[\] = {/,/};/p' client/cqctl/*.c |
		grep -oE "\{ \"[a-z-]+\", ('.'|0)," | sed -nE "s/\{ \"([a-z-]+)\", 0.*/--\1/p
			s/\{ \"([a-z-]+)\", '(.)'.*/--\1\n-\2/p"
	printf '%s\n' -h --help --version
}

options_of_page() {
	grep -oE 'Fl -?[a-z0-9-]+' client/cqctl/cqctl.1 | sed 's/Fl /-/' | grep -vE '^-[A-Z]'
}

symbols() {
	sed -n 's/^[[:space:]]*\([A-Za-z0-9_]*\);.*/\1/p' client/libcq.map
}

# What each socket takes: "workers Hello"
takes_of_code() {
	sed -nE 's/^\t\[CQP__MSG__BODY_[A-Z_]+\] = \{ "([A-Za-z]+)", (H_[A-Z_| ]+),.*/\1 \2/p' \
		daemon/handlers.c |
		awk '!/H_ADMIN/ { print "workers", $1 } !/H_TENANT/ { print "administration", $1 }'
}

takes_of_text() {
	awk -F'|' '/^\| (workers|administration) \|/ {
		gsub(/[` ]/, "", $2)
		n = split($5, word, "`")
		for (i = 2; i <= n; i += 2) print $2, word[i]
	}' Documentation/protocol.md
}

# XOk needs no words: it answers X.
messages() {
	sed -nE '/^\toneof body/,/^\t\}/ s/^\t\t([A-Za-z]+) .*/\1/p' proto/cq.proto
}

unnamed() {
	local m all

	all=" $(messages | tr '\n' ' ')"
	for m in $all; do
		[[ $m = *Ok && $all = *" ${m%Ok} "* ]] && m=${m%Ok}
		grep -qE "(\`|\b)$m\b" Documentation/protocol.md || echo "$m"
	done
}

metrics() {
	grep -oE '"(cq|process)_[a-z_]+"' daemon/metrics.c | tr -d '"'
}

same "keys, systemd/cqd.conf" "$(keys_of_code)" "$(keys_of_file)"
same "keys, cqd.conf(5)" "$(keys_of_code)" "$(keys_of_page)"
same "options, cqctl(1)" "$(options_of_code)" "$(options_of_page)"
same "symbols, libcq(3)" "$(symbols)" \
	"$(sed -nE 's/^\.Fn (cq_[a-z_]+) ("|void).*/\1/p' client/libcq.3)"
same "symbols, comments of cq.h" "$(symbols)" \
	"$(sed -nE 's/^ \* (cq_[a-z_]+)\(\) - .*/\1/p' include/cq.h)"
same "symbols, prototypes of cq.h" "$(symbols)" \
	"$(sed -nE 's/^[a-z][A-Za-z0-9_ ]*[ *](cq_[a-z_]+)\(.*/\1/p' include/cq.h)"
same "sockets, protocol.md" "$(takes_of_code)" "$(takes_of_text)"
same "messages, protocol.md" "$(unnamed)" ""
same "metrics, cqd(8)" "$(metrics)" "$(grep -oE '\b(cq|process)_[a-z_]+' daemon/cqd.8)"
exit $bad
