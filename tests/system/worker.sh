#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The reference worker on a real cqd: logits, sharing, what it says when
# something is wrong; and its tokenizer against the Python one.
set -u
# shellcheck source=tests/system/lib-worker.sh
. "$(dirname "$0")/lib-worker.sh"

# key FILE NAME: a value of flat JSON lines
key() {
	sed -n 's/.*"'"$2"'": *"\{0,1\}\([^,}]*\).*/\1/p' "$1" | tail -n 1
}

run() {
	worker run --lm "$lm" --model "$1" --prefix "$dir/prefix.u16" --generate 40 \
		--ask "$ask" "${@:3}" >"$dir/$2"
}
ask=$'\nNext question: why?\n'

text() {
	sed -n 's/.*"text"://p' "$dir/$1"
}

logits() {
	worker verify --lm "$lm" --model fp16 --tolerance 0.02
}

prefix() {
	worker tokenize --lm "$lm" --limit 448 --out "$dir/prefix.u16" \
		"$top/Documentation/formats.md"
}

# Pass-through pages hold what the first reader computed: nothing may change.
shared_text() {
	run fp16 cold.json --nomatch --private && run fp16 first.json && run fp16 second.json &&
		[ "$(key "$dir/first.json" matched)" = 0 ] &&
		[ "$(key "$dir/second.json" matched)" = 448 ] &&
		[ "$(text cold.json)" = "$(text first.json)" ] &&
		[ "$(text cold.json)" = "$(text second.json)" ] && [ -n "$(text cold.json)" ]
}

coded_text() {
	run coded one.json && run coded two.json && run coded three.json &&
		[ "$(key "$dir/two.json" matched)" = 448 ] &&
		[ "$(text two.json)" = "$(text three.json)" ] && [ -n "$(text two.json)" ]
}

# Codes of 10 bits in a mixture, loaded later: attached readers agree, and are near fp16.
wide_text() {
	worker dump --lm "$lm" --ids "$lm/calibration.u16" --sequences 4 --length 512 \
		--out "$dir/more.st" &&
		"$O/cqctl" calibrate "$dir/more.st" --k 8c10b --v 4c8b --layers 5=8c8b/8c10b \
			--iterations 5 -o "$dir/wide.st" &&
		"$O/cqctl" --socket "$dir/admin.sock" load wide "$dir/wide.st" &&
		"$O/cqctl" --socket "$dir/admin.sock" list models &&
		run wide one.json && run wide two.json && run wide three.json &&
		[ "$(key "$dir/two.json" matched)" = 448 ] &&
		[ "$(text two.json)" = "$(text three.json)" ] && [ -n "$(text two.json)" ] &&
		quality wide
}

sampled() {
	run coded s1.json --temperature 1 --seed 7 && run coded s2.json --temperature 1 --seed 7 &&
		run coded s3.json --temperature 1 --seed 8 &&
		[ "$(text s1.json)" = "$(text s2.json)" ] &&
		[ "$(text s1.json)" != "$(text s3.json)" ]
}

# The codebooks of this test are from 1,024 tokens: a loose bound.
quality() {
	worker score --lm "$lm" --model "$1" --reference fp16 --prefix "$dir/prefix.u16" \
		--ids "$lm/heldout.u16" --sequences 2 --length 128 >"$dir/score.json" &&
		cat "$dir/score.json" &&
		[ "$(key "$dir/score.json" matched_tokens)" = 448 ] &&
		[ "$(key "$dir/score.json" positions)" = 254 ] &&
		awk -v kl="$(key "$dir/score.json" kl_mean)" \
			-v same="$(key "$dir/score.json" top1)" \
			'BEGIN { exit !(kl > 0 && kl < 0.05 && same > 0.8) }'
}

published() {
	worker score --lm "$lm" --model fp16 --reference fp16 --prefix "$dir/prefix.u16" \
		--ids "$lm/heldout.u16" --sequences 1 --length 192 --published >"$dir/same.json" &&
		cat "$dir/same.json" &&
		awk -v kl="$(key "$dir/same.json" kl_mean)" -v same="$(key "$dir/same.json" top1)" \
			'BEGIN { exit !(kl < 1e-6 && same == 1) }'
}

# complains STATUS TEXT COMMAND...
complains() {
	local want=$1 what=$2 rc=0

	shift 2
	"$@" >"$dir/complaint" 2>&1 || rc=$?
	cat "$dir/complaint"
	[ "$rc" = "$want" ] && grep -q -- "$what" "$dir/complaint"
}

tokenizer() {
	python3 "$top/tests/system/tokenizer.py" "$lm" "$O/cq-worker" "$dir"
}

# A figure about attached readers, with nobody to attach to, must not come out.
unpublished() {
	local c

	for c in "bench --repeat 3" \
		"score --reference fp16 --ids $lm/heldout.u16 --sequences 1 --length 64"; do
		# shellcheck disable=SC2086 # words
		complains 1 "0 of [0-9]* tokens are published.*cq-worker run --model coded" \
			worker $c --lm "$lm" --model coded --prefix "$dir/prefix.u16" || return
	done
	head -c 126 "$dir/prefix.u16" >"$dir/short.u16"
	complains 1 "63 tokens are no full page" worker score --lm "$lm" --model coded \
		--reference fp16 --ids "$lm/heldout.u16" --prefix "$dir/short.u16"
}

# Results that nobody got are a failure.
full() {
	local c

	# shellcheck disable=SC2086 # words
	for c in --help "run --help" "verify --lm $lm"; do
		! "$O/cq-worker" $c >/dev/full 2>"$dir/complaint" &&
			grep "standard output" "$dir/complaint" || return
	done
}

bad_files() {
	mkfifo "$dir/fifo" &&
		complains 1 "$dir is not a regular file" \
			worker dump --lm "$lm" --ids "$dir" --out "$dir/no" &&
		complains 1 "$dir/fifo is not a regular file" \
			timeout 20 "$O/cq-worker" dump --lm "$lm" --ids "$dir/fifo" \
			--out "$dir/no" &&
		complains 1 "worker: $dir/config.json: No such file" \
			worker verify --lm "$dir" && [ ! -e "$dir/no" ]
}

plan 18
make_models >"$dir/out" 2>&1
ok "a cqd with a coded and an fp16 model" start_cqd
ok "logits on an fp16 cache are those of the reference" logits
ok "a prefix of 448 tokens" prefix
ok "fp16 pages: attached or not, the same text" shared_text
ok "nobody to attach to: no figures" unpublished
ok "coded pages: every attached reader writes the same text" coded_text
ok "sampling with a seed repeats" sampled
ok "an attached reader is near fp16" quality coded
ok "codes of 10 bits: the same text, near fp16" wide_text
ok "published pages of an fp16 model cost nothing" published
ok "no daemon: the socket is named" complains 1 "$dir/none" \
	worker run --lm "$lm" --model coded --prefix "$dir/prefix.u16" --socket "$dir/none"
ok "no such model: it is named" complains 1 nobody \
	worker run --lm "$lm" --model nobody --prefix "$dir/prefix.u16"
ok "an unknown option is a usage error" complains 2 unrecognized worker run --frobnicate
ok "a number that is none is a usage error" complains 2 "--generate" worker run --generate x
ok "a missing option is a usage error" complains 2 "run needs --model" worker run --prefix x
ok "what cannot be printed is a failure" full
ok "no regular file: said, not waited for" bad_files
if command -v python3 >/dev/null; then
	ok "documentation and random bytes: the ids of tokenizer.py" tokenizer
else
	skip "documentation and random bytes: the ids of tokenizer.py" "no python3"
fi
