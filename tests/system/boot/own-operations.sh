# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2034,SC2154
# Documentation/operations.md, command by command: each ends well and prints
# what the document says, but for figures. In an indented block a line that
# begins with "# " is a command, a here-document goes with it, and what follows is
# its output. Two comments: <!-- run: COMMAND --> is what happens meanwhile, and the
# output of the command behind <!-- varies --> is not compared. The document with
# today's output is written to /cq-out/operations.md.

ops_doc=/cq/operations.md ops_new=/cq-out/operations.md
ops_command='' ops_end='' ops_expected='' ops_varies='' ops_blank=''

# What does not depend on the day: figures, names and units of figures are gone.
ops_shape() {
	sed -E -e 's/\<[0-9a-f]{8,}\>/H/g' -e 's/[0-9]+(\.[0-9]+)?/N/g' \
		-e 's/\<N (B|KiB|MiB|GiB)\>/SIZE/g' -e 's/\<N (us|ms|s|min|h|d)\>/TIME/g' \
		-e 's/TIME TIME/TIME/g' -e 's/[ \t]+/ /g' -e 's/^ //; s/ $//'
}

# ops_like EXPECTED ACTUAL
ops_like() {
	local want got
	want=$(ops_shape <<<"$1") got=$(ops_shape <<<"$2")
	[ "$want" = "$got" ] && return 0
	diff <(echo "$want") <(echo "$got")
	return 1
}

ops_try() {	# COMMAND EXPECTED; the output goes to $ops_out
	local rc
	ops_out=$(bash -c "$1" 2>&1 </dev/null)
	rc=$?
	[ $rc -eq 0 ] || { echo "exit status $rc: $ops_out"; return 1; }
	[ -n "$ops_varies" ] || ops_like "$2" "$ops_out"
}

ops_flush() {
	[ -n "$ops_command" ] || return 0
	n=$((n + 1))
	if ops_try "$ops_command" "${ops_expected%$'\n'}" >/tmp/ops-why; then
		echo "ok $n - $scenario: ${ops_command%%$'\n'*}"
	else
		bad=1
		echo "not ok $n - $scenario: ${ops_command%%$'\n'*}"
		sed 's/^/# /' /tmp/ops-why
	fi
	[ -z "$ops_out" ] || printf '%s\n' "$ops_out" | sed 's/^/    /; s/ *$//' >>$ops_new
	[ -z "$ops_blank" ] || echo >>$ops_new
	ops_command='' ops_expected='' ops_varies='' ops_blank=''
}

ops_line() {	# one line of the document
	local line=$1
	if [ -n "$ops_end" ]; then
		ops_command+=$'\n'${line#    }
		[ "${line#    }" != "$ops_end" ] || ops_end=''
	elif [[ -n $ops_command && -z $line ]]; then
		ops_blank=$'\n'	# of the output, if more of it follows
		return
	elif [[ $line == '    # '* ]]; then
		ops_flush
		ops_command=${line#    # }
		[[ $line != *"<<'EOF'"* ]] || ops_end=EOF
	elif [[ -n $ops_command && $line == '    '* ]]; then
		ops_expected+=$ops_blank${line#    }$'\n' ops_blank=''
		return
	else
		ops_flush
		[ "$line" != '<!-- varies -->' ] || ops_varies=1
		if [[ $line == '<!-- run: '*' -->' ]]; then
			line=${line#<!-- run: }
			check "${line% -->}" eval "${line% -->}"
			line=$1
		fi
	fi
	printf '%s\n' "$line" >>$ops_new
}

systemctl stop cqd.service cqd.socket cqd-admin.socket
systemctl disable -q cqd.socket cqd-admin.socket
cp /cq/cqd.conf "$conf"
: >$ops_new
while IFS= read -r ops_text; do
	ops_line "$ops_text"
done <$ops_doc
ops_flush
