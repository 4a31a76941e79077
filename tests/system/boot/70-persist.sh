# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# persist= under the unit's sandbox: a stop and a start, after which the fd store
# has nothing or is not asked, and the pages are there. save, restore, drain.

folder=/var/lib/cq/pages
persisting() {
	cat >"$conf" <<-END
		[daemon]
		persist = $folder
		[model tiny]
		path = /var/lib/cq/tiny.cqm
		[namespace default]
		uid = *
	END
	cqd --check-config
}
# The fd store must not be what brings them back, also where systemd keeps it.
emptied() {
	systemctl stop cqd.service && is "$(prop ActiveState)" inactive &&
		{ systemctl clean --what=fdstore cqd.service 2>/dev/null || :; } &&
		systemctl start cqd.service
}
unpersist() {
	configure </dev/null && systemctl restart cqd.service && rm -r $folder /root/pages.cq
}
not_drained() { cqctl drain --undo && cqctl ping; }

persist_began=$(date +%s%3N)
check "a folder of its own, and the model beside it" sh -c \
	"install -d -o cq -g cq -m 700 $folder &&
	 install -o cq -g cq -m 600 /run/tiny.cqm /var/lib/cq/tiny.cqm"
check "a configuration with persist=" persisting
check "restart" systemctl restart cqd.service
check "a worker publishes" worker publish
was=$(sealed)
check "pages to keep" at_least "$was" 20
check "stop and start" emptied
check "they are back" until_ok pages 20
check "from the folder" until_ok journal_has "came back from $folder"
check "and attachable" attach
check "checksums hold" cqctl verify
check "files are cqd's alone" is "$(mode "$(find $folder -name 'pages-*.cq' | head -n 1)")" \
	"600 cq"
check "nothing is half done" sh -c "! ls $folder/*.tmp $folder/*.bad"
check "save, as root, where cqd itself may not write" cqctl save /root/pages.cq
check "restore finds all of them there" \
	sh -c 'cqctl restore /root/pages.cq | grep "20 were there"'
check "drain" cqctl drain --timeout 5
check "which ping tells" is "$(cqctl ping >/dev/null; echo $?)" 4
check "and workers" says "draining" worker enter
check "until it is undone" not_drained
check "a worker is admitted" attach

check "and without persist=" unpersist
check "the pages stay" pages 20
check "and found by a worker" attach
took=$(($(date +%s%3N) - persist_began))
echo "# persist: $took ms"
check "in less than 8 s" at_least 8000 "$took"
