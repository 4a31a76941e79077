# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154
# A bad file changes nothing and says where it is bad; a good one is taken over.

was=$(cqctl list namespaces --json)
since=$(cursor)
echo 'colour = blue' | configure
check "check-config refuses it, with file and line" says 'unknown key "colour"' \
	cqd --check-config
check "reload" systemctl reload cqd.service
check "the journal says where" until_ok journal_has "$conf:$(wc -l <"$conf"): " "$since"
check "and what" journal_has 'unknown key "colour"' "$since"
check "and that the old one stays" journal_has "the configuration in force stays" "$since"
check "which it does" is "$(cqctl list namespaces --json)" "$was"
check "it serves" attach

since=$(cursor)
printf '[namespace default]\nuid = 4244\n' | configure
check "check-config" cqd --check-config
check "reload of a good one" systemctl reload cqd.service
check "is said" until_ok journal_has "configuration reloaded" "$since"
check "and in force" says "no namespace" worker enter
check "key that needs a restart" sh -c \
	'printf "[daemon]\nlow = 80\n" >/etc/cq/cqd.conf && systemctl reload cqd.service'
check "is named" until_ok journal_has "low changed; that takes effect when cqd is restarted"
configure </dev/null
check "back" systemctl reload cqd.service
check "pages are still there" pages 40
