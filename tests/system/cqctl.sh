#!/bin/bash
# SPDX-License-Identifier: MIT
#
# cqctl as people use it: calibration of real activations, what it says to
# wrong use and bad files, and its commands on a real cqd.
set -u
# shellcheck source=tests/system/lib-worker.sh
. "$(dirname "$0")/lib-worker.sh"

acts() {
	worker dump --lm "$lm" --ids "$lm/calibration.u16" --sequences 2 --length 512 \
		--out "$dir/acts.st"
}

cal() {
	ctl calibrate "$dir/acts.st" "$@"
}

layers() {
	cal --k 4c8b --v 8c8b -o "$dir/a.st" >"$dir/layers" && cat "$dir/layers" &&
		[ "$(awk '$2 == "4c8b" && $4 == "8c8b" && $3 > 0 && $3 < $5 && $5 < 0.5' \
			"$dir/layers" | wc -l)" = 6 ] &&
		grep -q '1.50 bits per value, 1024 tokens' "$dir/layers"
}

same_file() {
	cal --k 4c8b --v 8c8b -o "$dir/b.st" --threads 1 && cmp "$dir/a.st" "$dir/b.st" &&
		cal --k 4c8b --v 8c8b -o "$dir/c.st" --seed 2 &&
		! cmp -s "$dir/a.st" "$dir/c.st"
}

finer() {	# per-layer codings, halves, no sinks
	cal --k 2c8b,2c8b,4c8b,4c8b,4c8b,4c8b --v fp16 --centroids f16 --sinks 0 --window 0 \
		--iterations 3 --json -o "$dir/d.st" >"$dir/d.json" && cat "$dir/d.json" &&
		grep -q '"k":"2c8b".*"v":"fp16","v_error":0.0.*"k":"4c8b"' "$dir/d.json" &&
		[ "$(head -c 400 "$dir/d.st" | grep -ac '"k":"2c8b,2c8b,4c8b')" = 1 ]
}

# Bits where they save most; a layer that is named stays as it was told
budget() {
	cal --budget 2.25 --layers 0=2c8b/4c8b,4-5=8c8b/4c8b --json -o "$dir/e.st" \
		>"$dir/e.json" && cat "$dir/e.json" &&
		python3 - "$dir/e.json" <<-'EOF' &&
			import json, sys
			got = json.load(open(sys.argv[1]))
			layers = got["layers"]
			bits = {"8c8b": 1, "4c8b": 2, "2c8b": 4}
			codes = [(y["k"], y["v"]) for y in layers]
			assert codes[0] == ("2c8b", "4c8b") and codes[4:] == [("8c8b", "4c8b")] * 2
			mean = sum(bits[k] + bits[v] for k, v in codes) / 12
			assert abs(mean - got["bits"]) < 1e-9 and 2.25 - 1 / 6 <= mean <= 2.25
			assert got["effective_bits"] > mean
			for y in layers[1:4]:
			    assert y["k_losses"][0] > y["k_losses"][1] > y["k_losses"][2] > 0
		EOF
		gives 1 "at least 1" cal --budget 0.99 -o "$dir/no.st" &&
		gives 1 "1016 tokens .* at least 1024" cal --budget 2 --choices 4c8b,8c10b \
			-o "$dir/no.st" &&
		nothing_left
}

choices() {	# of a budget, in any order
	worker dump --lm "$lm" --ids "$lm/calibration.u16" --sequences 3 --length 512 \
		--out "$dir/more.st" >/dev/null &&
		gives 0 "loss 8c10b .*loss 4c8b  *choice" ctl calibrate "$dir/more.st" \
			--budget 1.5 --iterations 1 --choices 4c8b,8c10b -o "$dir/ten.st" &&
		grep ", 1.50 bits" "$dir/said" &&
		grep -a "budget 1.5 of 4c8b,8c10b" "$dir/ten.st" >/dev/null
}

few_tokens() {	# a word, and a model all the same
	worker dump --lm "$lm" --ids "$lm/calibration.u16" --sequences 1 --length 512 \
		--out "$dir/few.st" >/dev/null &&
		gives 0 "508 tokens .* for 256 centroids.*1024 or more" ctl calibrate \
			"$dir/few.st" --k 8c8b --v 8c8b -o "$dir/few.cq" &&
		gives 0 . ctl calibrate "$dir/few.st" --k fp16 --v fp16 -o "$dir/few.cq" &&
		! grep centroids "$dir/said" &&	# there are none
		gives 0 "508 tokens .* for 256" ctl calibrate "$dir/few.st" --k fp16 --v fp16 \
			--layers 5=fp16/8c8b -o "$dir/few.cq"
}

too_few_tokens() {	# sinks do not count; none are needed where nothing is learnt
	worker dump --lm "$lm" --ids "$lm/calibration.u16" --sequences 4 --length 66 \
		--out "$dir/less.st" >/dev/null &&
		gives 1 "248 tokens .* at least 256 are needed" ctl calibrate "$dir/less.st" \
			--k 8c8b --v fp16 -o "$dir/no.st" && ! grep codebooks "$dir/said" &&
		gives 1 "248 tokens .* at least 256" ctl calibrate "$dir/less.st" --budget 2 \
			-o "$dir/no.st" &&
		gives 1 "248 tokens .* at least 1024 are needed, 4096" ctl calibrate \
			"$dir/less.st" --budget 2 --layers 5=8c10b/4c8b -o "$dir/no.st" &&
		gives 1 "/less.st has 8 tokens .* at least 256" ctl calibrate "$dir/less.st" \
			--budget 2 --sinks 64 --layers 0-5=fp16/8c8b -o "$dir/no.st" &&
		nothing_left &&
		gives 0 . ctl calibrate "$dir/less.st" --k fp16 --v fp16 -o "$dir/less.cq" &&
		gives 0 "256 tokens .*1024 or more" ctl calibrate "$dir/less.st" --k 8c8b \
			--v 8c8b --sinks 2 -o "$dir/less.cq"
}

zero_gradients() {	# of no use to a budget, as those that are not there
	python3 - "$dir/few.st" "$dir/zero.st" <<-'EOF' &&
		import json, struct, sys
		raw = open(sys.argv[1], "rb").read()
		n = struct.unpack("<Q", raw[:8])[0]
		head, data = json.loads(raw[8:8 + n]), raw[8 + n:]
		for name in [x for x in head if x != "__metadata__"]:
		    new = dict(head[name])
		    at, end = new["data_offsets"]
		    new["data_offsets"] = [len(data), len(data) + end - at]
		    data += bytes(end - at)
		    head[name + ".fisher"] = new
		text = json.dumps(head).encode()
		text += b" " * (-len(text) % 8)
		open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + data)
	EOF
		gives 0 "squared gradients of 0 alone" ctl calibrate "$dir/zero.st" --budget 2 \
			--iterations 2 -o "$dir/zero.cq" && grep ", 2.00 bits" "$dir/said"
}

# Killed after three layers, and again while it is at it
resume() {
	local rc=0 part=$dir/f.st.part

	strace -qq -f -o "$dir/trace" -e trace=fdatasync -e inject=fdatasync:signal=KILL:when=3 \
		"$O/cqctl" calibrate "$dir/acts.st" --k 4c8b --v 8c8b --threads 1 \
		-o "$dir/f.st" || rc=$?
	echo "status $rc" && cat "$dir/trace"
	[ $rc = 137 ] && [ -s "$part" ] && [ ! -e "$dir/f.st" ] &&
		gives 1 "of another dump, other options" cal --k 4c8b --v 4c8b --resume \
			-o "$dir/f.st" && cp "$part" "$dir/part" &&
		gives 0 "144 of 144 codebooks" cal --k 4c8b --v 8c8b --resume -o "$dir/f.st" &&
		cmp "$dir/a.st" "$dir/f.st" && [ ! -e "$part" ] &&
		head -c -100 "$dir/part" >"$part" &&	# a record cut short
		gives 0 "192 of 192 codebooks" cal --k 4c8b --v 8c8b --resume -o "$dir/f.st" &&
		cmp "$dir/a.st" "$dir/f.st" &&
		printf 'x' | dd of="$dir/part" bs=1 seek=500 conv=notrunc status=none &&
		cp "$dir/part" "$part" &&	# and one that has changed
		gives 0 "192 of 192 codebooks" cal --k 4c8b --v 8c8b --resume -o "$dir/f.st" &&
		cmp "$dir/a.st" "$dir/f.st" && [ ! -e "$part" ] && cp "$dir/part" "$part" &&
		gives 0 "288 of 288 codebooks" cal --k 4c8b --v 8c8b -o "$dir/f.st" &&
		cmp "$dir/a.st" "$dir/f.st" && [ ! -e "$part" ] &&
		gives 0 "288 of 288 codebooks" cal --k 4c8b --v 8c8b --resume -o "$dir/f.st" &&
		cmp "$dir/a.st" "$dir/f.st"
}

# Another process at the same output, and a name that is no file
part_in_use() {
	local part=$dir/g.st.part way

	for way in --resume ""; do	# said before the work
		# shellcheck disable=SC2086 # no word if it is empty
		gives 1 ": $part is in use: .*choose another" flock "$part" "$O/cqctl" calibrate \
			"$dir/acts.st" --k 4c8b --v 8c8b $way -o "$dir/g.st" &&
			! grep codebooks "$dir/said" && [ ! -s "$part" ] && rm "$part" &&
			mkdir "$part" &&
			gives 1 ": cannot keep finished layers in $part: .*remove it" \
				cal --k 4c8b --v 8c8b $way -o "$dir/g.st" &&
			! grep codebooks "$dir/said" && rmdir "$part" && mkfifo "$part" &&
			gives 1 ": $part is not a regular file: remove it" \
				cal --k 4c8b --v 8c8b $way -o "$dir/g.st" &&
			! grep codebooks "$dir/said" && rm "$part" || return
	done
	[ ! -e "$dir/g.st" ]
}

# Nothing of a run is there: it goes on from the first layer; a whole head must fit
nothing_kept() {
	local part=$dir/i.st.part

	: >"$part" &&
		gives 0 "288 of 288 codebooks" cal --k 4c8b --v 8c8b --resume -o "$dir/i.st" &&
		cmp "$dir/a.st" "$dir/i.st" && [ ! -e "$part" ] && printf CALCQRT1 >"$part" &&
		gives 0 "288 of 288 codebooks" cal --k 4c8b --v 8c8b --resume -o "$dir/i.st" &&
		cmp "$dir/a.st" "$dir/i.st" && [ ! -e "$part" ] &&
		head -c 100 /dev/zero >"$part" &&
		gives 1 ": $part is of another dump" cal --k 4c8b --v 8c8b --resume \
			-o "$dir/i.st" && [ "$(stat -c %s "$part")" = 100 ]
}

# No room for the second layer; what is kept of the first is of use
no_room() {
	local part=$dir/j.st.part
	local what=": layer 1 is learnt and cannot be kept in $part: File too large: .*--resume"

	gives 1 "$what" bash -c 'trap "" XFSZ && ulimit -f "$1" && shift && exec "$@"' - \
		96 "$O/cqctl" calibrate "$dir/acts.st" --k 4c8b --v 8c8b \
		--threads 1 -o "$dir/j.st" && [ -s "$part" ] && [ ! -e "$dir/j.st" ] &&
		gives 0 "240 of 240 codebooks" cal --k 4c8b --v 8c8b --resume \
			-o "$dir/j.st" &&
		cmp "$dir/a.st" "$dir/j.st" && [ ! -e "$part" ]
}

# By its name, by another, and as the partial file
dump_stays() {
	local name

	cp "$dir/acts.st" "$dir/own.part" && ln "$dir/own.part" "$dir/hard.st" &&
		ln -s own.part "$dir/soft.st" || return
	for name in own.part hard.st soft.st; do
		gives 1 ": $dir/$name is the dump $dir/own.part, .*choose another" \
			ctl calibrate "$dir/own.part" --k 4c8b --v 4c8b -o "$dir/$name" &&
			! grep codebooks "$dir/said" || return
	done
	gives 1 ": $dir/own.part is the dump $dir/hard.st" ctl calibrate "$dir/hard.st" \
		--k 4c8b --v 4c8b -o "$dir/own" && cmp "$dir/acts.st" "$dir/own.part"
}

# Memory of a process of its own: a sixth of a dump and what learning needs
little_memory() {
	local most

	worker dump --lm "$lm" --ids "$lm/calibration.u16" --sequences 24 --length 1024 \
		--out "$dir/large.st" >/dev/null &&
		most=$(/usr/bin/time -f %M "$O/cqctl" calibrate "$dir/large.st" --k 8c8b \
			--v 8c8b --iterations 1 --threads 1 -o "$dir/h.st" 2>&1 >/dev/null |
			tail -1) && echo "$most KiB, dump $(stat -c %s "$dir/large.st")" &&
		# a sanitizer takes more than either
		{ [ -n "${SANITIZE:-}" ] ||
			[ $((most * 1024)) -lt $(($(stat -c %s "$dir/large.st") / 2)) ]; }
}

meta() {	# FILE KEY: its value
	head -c 2000 "$1" | grep -aoE "\"$2\":\"[^\"]*\"" | head -1
}

rope() {	# in words, as config.json has it, with YaRN's defaults
	local yarn='yarn factor 4 original_max_position 2048 beta_fast 32 beta_slow 1'
	local max=original_max_position=8192
	local json='{"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
		"original_max_position_embeddings":8192,"rope_type":"llama3"}'

	cal --k fp16 --v fp16 -o "$dir/r0.st" && [ -z "$(meta "$dir/r0.st" rope_scaling)" ] &&
		cal --k fp16 --v fp16 -o "$dir/r1.st" --rope-scaling "$json" &&
		cal --k fp16 --v fp16 -o "$dir/r2.st" --rope-scaling \
			"llama3,factor=8,low_freq_factor=1,high_freq_factor=4,$max" &&
		cmp "$dir/r1.st" "$dir/r2.st" &&
		[ "$(meta "$dir/r1.st" rope_scaling)" = '"rope_scaling":"llama3"' ] &&
		[ "$(meta "$dir/r1.st" rope_low_freq_factor)" = '"rope_low_freq_factor":"1"' ] &&
		gives 0 "interleaved, .* $yarn attention_factor 1.138629436 truncate 0\"" \
			cal --k fp16 --v fp16 --json -o "$dir/r3.st" --rope-pairs interleaved \
			--rope-scaling '{"type":"yarn","factor":4,"truncate":false,
				"original_max_position_embeddings":2048}' &&
		[ "$(meta "$dir/r3.st" rope)" = '"rope":"interleaved"' ] &&
		gives 0 'RoPE: half, dim 64, theta 10000, linear factor 2.5' \
			cal --k fp16 --v fp16 -o "$dir/r4.st" --rope-scaling linear,factor=2.5 &&
		cal --k fp16 --v fp16 -o "$dir/r5.st" --rope-scaling none &&
		cmp "$dir/r0.st" "$dir/r5.st"
}

wrong_rope() {
	local text scaling

	while IFS='|' read -r text scaling; do
		gives 2 "$text" cal --k fp16 --v fp16 -o "$dir/no.st" --rope-scaling "$scaling" ||
			return
	done <<-'EOF'
		"dynamic" is not supported|dynamic,factor=2
		"longrope" is not supported|{"rope_type":"longrope"}
		no rope_type|
		no rope_type|{"factor":2}
		no rope_type|{"type":7}
		JSON|{"type":"linear"
		JSON|{"type":"linear","type":"yarn"}
		linear needs factor|linear
		needs original_max_position|yarn,factor=4
		needs low_freq_factor|llama3,factor=8,original_max_position=8192
		low_freq_factor is nothing that|linear,factor=2,low_freq_factor=1
		mscale is nothing|{"type":"yarn","mscale":1}
		"factor" is not like|linear,factor
		"x" is not a number|linear,factor=x
		"nan" is not a number|linear,factor=nan
		factor is given twice|linear,factor=2,factor=3
		factor is not a number|{"type":"linear","factor":"2"}
		rope_factor 0.5 is not|linear,factor=0.5
		not below|yarn,factor=4,original_max_position=100,beta_slow=32
		whole number|yarn,factor=4,original_max_position=100.5
	EOF
	gives 2 "half or interleaved" cal --k fp16 --v fp16 -o "$dir/no.st" --rope-pairs odd &&
		nothing_left
}

nothing_left() {	# no temporary file, no output
	[ ! -e "$dir/no.st" ] && ! ls "$dir"/no.st.* 2>/dev/null
}

# A NaN at layer 0, keys, head 0, token 100, channel 3
nan() {
	local head

	head=$(od -An -t u8 -N 8 "$dir/acts.st")
	cp "$dir/acts.st" "$dir/nan.st" &&
		printf '\000\176' |
			dd of="$dir/nan.st" bs=1 seek=$((8 + head + (100 * 64 + 3) * 2)) \
			conv=notrunc status=none &&
		gives 1 'layer 0, keys, head 0, token 100, channel 3' \
			ctl calibrate "$dir/nan.st" --k 4c8b --v 4c8b -o "$dir/no.st" &&
		nothing_left
}

cut() {
	head -c 100000 "$dir/acts.st" >"$dir/cut.st" &&
		gives 1 "$dir/cut.st.*cut short" \
			ctl calibrate "$dir/cut.st" --k 4c8b --v 4c8b -o "$dir/no.st" &&
		nothing_left
}

keeps_old() {	# a failure leaves the output as it was
	echo old >"$dir/old.st"
	gives 1 . ctl calibrate "$dir/nan.st" --k 4c8b --v 4c8b -o "$dir/old.st" &&
		[ "$(cat "$dir/old.st")" = old ]
}

bad_output() {	# said before the work, and what is there stays
	mkfifo "$dir/fifo" && mkdir "$dir/folder" &&
		gives 1 "$dir/fifo is there and not a regular" \
			cal --k 4c8b --v 4c8b -o "$dir/fifo" && [ -p "$dir/fifo" ] &&
		! grep codebooks "$dir/said" &&
		gives 1 "$dir/folder is there and not a regular" \
			cal --k 4c8b --v 4c8b -o "$dir/folder" &&
		gives 1 "$dir/none/no.st: No such file" \
			cal --k 4c8b --v 4c8b -o "$dir/none/no.st" &&
		! grep codebooks "$dir/said" &&
		gives 2 "a file name is wanted" cal --k 4c8b --v 4c8b -o "" &&
		gives 1 "$dir/fifo is not a regular file" \
			timeout 20 "$O/cqctl" calibrate "$dir/fifo" --k fp16 --v fp16 \
			-o "$dir/no.st" && nothing_left
}

ended() {	# by a signal while the file is written: it is whole, or none
	local rc=0

	strace -qq -o "$dir/trace" -e inject=fsync:signal=TERM:when=1 "$O/cqctl" calibrate \
		"$dir/acts.st" --k fp16 --v fp16 -o "$dir/ended.st" || rc=$?
	cat "$dir/trace"
	[ $rc = 143 ] && grep fsync "$dir/trace" && cmp "$dir/ended.st" "$dir/fp16.st" &&
		! ls "$dir"/ended.st.* 2>/dev/null
}

# any bytes in a name: an object that a parser takes
not_utf8() {
	! cal --k fp16 --v fp16 --json -o "$dir/"$'none\xff/x' 2>/dev/null >"$dir/utf8.json" &&
		grep '^{"error":".*none?/x' "$dir/utf8.json" &&
		cal --k fp16 --v fp16 --json -o "$dir/"$'\xff.st' >"$dir/utf8.json" &&
		grep '^{"model":".*?\.st"' "$dir/utf8.json"
}

full() {	# what nobody got is a failure
	local c

	# shellcheck disable=SC2086 # words
	for c in --help --version "ping --help"; do
		! ctl $c >/dev/full 2>"$dir/said" && grep "standard output" "$dir/said" || return
	done
}

wrong_use() {
	gives 2 "unknown command frob" ctl frob &&
		gives 2 "unknown option --frob" ctl status --frob &&
		gives 2 "unknown option --frob" ctl --frob status &&
		gives 2 "too many arguments" ctl ping pong &&
		gives 2 "argument is missing" ctl load name &&
		gives 2 "a command is missing" ctl &&
		gives 2 "none of models" ctl list things &&
		gives 2 "output is missing" cal --k 4c8b --v 4c8b &&
		gives 2 "v is missing" cal --k 4c8b -o "$dir/no.st" &&
		gives 2 "5 channels per group" cal --k 5c8b --v 4c8b -o "$dir/no.st" &&
		gives 2 "10 bits" cal --k 4c10b --v 4c8b -o "$dir/no.st" &&
		gives 2 "6 layers" cal --k 4c8b,4c8b --v 4c8b -o "$dir/no.st" &&
		gives 2 "6 layers" cal --k 4c8b,4c8b,4c8b,4c8b,4c8b,4c8b,4c8b --v 4c8b \
			-o "$dir/no.st" &&
		gives 2 "0 to 64" cal --k 4c8b --v 4c8b --sinks 65 -o "$dir/no.st" &&
		gives 2 "multiple of 64" cal --k 4c8b --v 4c8b --window 65 -o "$dir/no.st" &&
		gives 2 "f16 or i8" cal --k 4c8b --v 4c8b --centroids i4 -o "$dir/no.st" &&
		gives 2 "instead\|one or the other" cal --k 4c8b --budget 2 -o "$dir/no.st" &&
		gives 2 "none, token, channel or both" cal --k 4c8b --v 4c8b --fisher x \
			-o "$dir/no.st" &&
		gives 2 "above 0 and up to 1" cal --k 4c8b --v 4c8b --clip 1.5 -o "$dir/no.st" &&
		gives 2 "above 0 and up to 1" cal --k 4c8b --v 4c8b --clip nan -o "$dir/no.st" &&
		gives 2 "above 0 and up to 16" cal --budget 0 -o "$dir/no.st" &&
		gives 2 "1 to 64" cal --k 4c8b --v 4c8b --starts 65 -o "$dir/no.st" &&
		gives 2 "is for --budget" cal --k 4c8b --v 4c8b --choices 4c8b -o "$dir/no.st" &&
		gives 2 "is for --layers" cal --budget 2 --choices 4c8b,fp16 -o "$dir/no.st" &&
		gives 2 "same bits" cal --budget 2 --choices 4c8b,8c8b,4c8b -o "$dir/no.st" &&
		gives 2 "5 channels" cal --budget 2 --choices 4c8b,5c8b -o "$dir/no.st" &&
		gives 2 "choices: .*coding" cal --budget 2 --choices 4c8b, -o "$dir/no.st" &&
		gives 2 "layers 0 to 5" cal --budget 2 --layers 6=4c8b/4c8b -o "$dir/no.st" &&
		gives 2 "layers 0 to 5" cal --budget 2 --layers 3-2=4c8b/4c8b -o "$dir/no.st" &&
		gives 2 "like 0=2c8b/4c8b" cal --budget 2 --layers 0=4c8b -o "$dir/no.st" &&
		gives 2 "like 0=2c8b/4c8b" cal --budget 2 --layers 0=4c8b/4c8b, -o "$dir/no.st" &&
		gives 2 "5 channels" cal --budget 2 --layers 0=4c8b/5c8b -o "$dir/no.st" &&
		gives 1 "squared gradients" cal --k 4c8b --v 4c8b --fisher both -o "$dir/no.st" &&
		gives 1 "$dir/none" ctl calibrate "$dir/none" --k 4c8b --v 4c8b -o "$dir/no.st" &&
		gives 1 "$dir/no/such" cal --k fp16 --v fp16 -o "$dir/no/such" &&
		nothing_left
}

help() {
	local c

	gives 0 "Usage: cqctl" ctl --help && gives 0 "cqctl [0-9]" ctl --version || return
	for c in $(ctl --help | sed -n 's/^  \([a-z]\+\) .*/\1/p'); do
		gives 0 "Usage: cqctl $c" ctl "$c" --help || return
		grep -q "^  $c " <(ctl --help) || return
	done
}

# Every command and option is in the manual page and in the completion.
documented() {
	local page=$top/client/cqctl/cqctl.1 bash=$top/client/cqctl/cqctl.bash c o words

	words=$(ctl --help | sed -n 's/^  \([a-z]\+\) .*/\1/p')
	for c in $words; do
		echo "$c"
		grep -qE "Cm $c( |\$)" "$page" || return
		for o in $(ctl "$c" --help | grep -oE -e '--[a-z0-9-]+' | sort -u); do
			echo "$c $o"
			grep -qE "Fl ${o#-}( |\$)" "$page" || return
			case " $(complete_words cqctl "$c" --) " in
			*[[:space:]]"$o"[[:space:]]*) ;;
			*) return 1 ;;
			esac
		done
	done
	for o in $(ctl --help | grep -oE -e '--[a-z0-9-]+' | sort -u); do
		grep -qE "Fl ${o#-}( |\$)" "$page" && grep -q -e "$o\>" "$bash" || return
	done
	[ "${words//$'\n'/ }" = "$(sed -n 's/.*commands+*="\(.*\)"/\1/p' "$bash" | tr -d '\n')" ]
}

# complete WORD...: what bash proposes for the last word
complete_words() {
	# shellcheck source=/dev/null
	(. "$top/client/cqctl/cqctl.bash" && PATH=$O:$PATH && COMP_WORDS=("$@") &&
		COMP_CWORD=$(($# - 1)) && _cqctl && echo "${COMPREPLY[*]}")
}

completes() {
	[ "$(complete_words cqctl unl)" = unload ] &&
		[ "$(complete_words cqctl list p)" = pages ] &&
		[ "$(complete_words cqctl calibrate --centroids "")" = "i8 f16" ] &&
		[ "$(complete_words cqctl unload c)" = coded ] &&
		[ "$(CQ_ADMIN_SOCKET=$dir/none complete_words cqctl --socket "$dir/admin.sock" \
			show t)" = test ]
}

absent() {
	local c

	gives 3 "no cqd at $dir/none.sock.*--socket" ctl --socket "$dir/none.sock" ping || return
	for c in status list verify "unload x" "show x" "load x $dir/a.st"; do
		# shellcheck disable=SC2086 # words
		gives 1 "no cqd at $dir/none.sock.*--socket" ctl --socket "$dir/none.sock" $c &&
			gives 1 "^{\"error\":.*$dir/none.sock.*\"code\":-2}" \
				ctl --json --socket "$dir/none.sock" $c || return
	done
}

daemon() {
	cp "$dir/a.st" "$dir/coded.st" && start_cqd
}

asks() {
	gives 0 "answered in" ctl ping && gives 0 '"round_trip_us":' ctl ping --json &&
		gives 0 "answered in" ctl ping --socket "$dir/cqd.sock" &&
		gives 0 "limit 64.0 MiB" ctl status &&
		gives 0 '"pool_limit":67108864' ctl --json status &&
		gives 1 "use the admin socket" ctl status --socket "$dir/cqd.sock" &&
		gives 1 "needs the path of a socket" ctl ping --socket ""
}

lists() {
	local kind

	for kind in models namespaces segments clients pages; do
		gives 0 . ctl list $kind && gives 0 "^{\"$kind\":\[" ctl list $kind --json || return
	done
	gives 0 '^coded *4c8b *8c8b *6 *4:2 *64 *4 *128 ' ctl list &&
		gives 0 '"name":"test","bytes":0,"limit":67108864,"pages":0,"pins":0' \
			ctl list namespaces --json
}

loads() {
	gives 0 "other loaded, hash" ctl load other "$dir/c.st" &&
		gives 0 "was loaded already" ctl load other "$dir/c.st" &&
		gives 1 "another model" ctl load other "$dir/d.st" &&
		gives 0 '^KEYS *4c8b' ctl show other &&
		gives 0 '"kind":"model"' ctl show other --json &&
		gives 0 "other unloaded" ctl unload other &&
		gives 1 "no model and no namespace is called other" ctl show other &&
		gives 1 "other" ctl unload other &&
		gives 1 "$dir/acts.st: not a cq model" ctl load acts "$dir/acts.st" &&
		gives 1 "not a regular file" ctl load dir "$dir" &&
		gives 1 "bad model name" ctl load -- -x "$dir/a.st"
}

# What a worker has published, as seen from here
pages() {
	worker tokenize --lm "$lm" --limit 448 --out "$dir/prefix.u16" \
		"$top/Documentation/formats.md" &&
		worker run --lm "$lm" --model coded --prefix "$dir/prefix.u16" --generate 2 \
			--ask "why?" >"$dir/run.json" &&
		gives 0 ' 7 sealed' ctl status &&
		[ "$(ctl list pages | awk '$3 == "coded"' | wc -l)" = 7 ] &&
		gives 0 '^test ' ctl list namespaces && gives 0 ' coded ' ctl list segments &&
		gives 0 '^PAGES *7$' ctl show test &&
		gives 0 ' coded ' ctl show coded &&
		gives 0 '^ROPE *half, dim 64, theta 10000$' ctl show coded &&
		gives 0 ' 0 wrong' ctl verify && gives 0 '"failed":0' ctl verify --json
}

# Names: what the administrator and a worker keep
names() {
	local key one two

	key=$(ctl list pages | awk '$3 == "coded" && $4 == 6 { print $1 }')
	gives 0 "kept pinned in namespace test" ctl pin test kept "$key" &&
		gives 1 "has a name 'kept'" ctl pin test kept "$key" &&
		gives 0 '"pinned":"kept"' ctl pin --replace --ttl 2h test kept "$key" --json &&
		gives 0 ' 1 h 59 min$' ctl list names &&
		gives 2 "ttl 10ms: whole seconds" ctl pin --ttl 10ms test kept "$key" &&
		gives 2 "ttl 0: whole seconds" ctl pin --ttl 0 test kept "$key" &&
		gives 1 "no namespace" ctl pin nobody kept "$key" &&
		gives 1 "has no page 0000" ctl pin test none "${key//?/0}" &&
		gives 2 "is no key" ctl pin test kept "${key}0" &&
		gives 0 '^kept  *test  *coded  *pin  *448  *7  *0 B' ctl list names &&
		gives 0 '"tokens":448' ctl list names --json || return
	# one worker hands over, two go on: with the same words
	worker run --lm "$lm" --model coded --prefix "$dir/prefix.u16" --generate 8 \
		--publish live >"$dir/run.json" &&
		gives 0 '^live .* sequence ' ctl list names &&
		gives 1 "its pages are read or have a name" ctl unload coded || return
	for c in one two; do
		worker run --lm "$lm" --model coded --attach live --generate 8 >"$dir/$c.json" ||
			return
	done
	one=$(sed -n 's/.*"text":"\(.*\)"}$/\1/p' "$dir/one.json")
	two=$(sed -n 's/.*"text":"\(.*\)"}$/\1/p' "$dir/two.json")
	echo "$one / $two"
	[ -n "$one" ] && [ "$one" = "$two" ] &&
		gives 0 "live unpinned" ctl unpin test live &&
		gives 1 "has no name 'live'" ctl unpin test live &&
		gives 1 "no sequence 'live'" worker run --lm "$lm" --model coded --attach live \
			--generate 1 && gives 0 "kept unpinned" ctl unpin test kept
}

# Limits in JSON that JSON's integers have no room for
huge() {
	gives 0 '"limit":9223372036854775807' \
		ctl quota test --bytes 18446744073709551615 --json &&
		gives 0 '"limit":67108864' ctl quota test --bytes 0 --json
}

# Standard descriptors that are not there: nothing goes to cqd or a file instead
closed() {
	local c

	for c in "top --once" "events --snapshot --count 2" "list pages" status; do
		# shellcheck disable=SC2086 # words
		gives 1 "standard output: Bad file" ctl_closed $c || return
	done
	"$O/cqd" --config "$dir/none" <&- >&- 2>&-
	[ $? = 78 ] && cal --k fp16 --v fp16 -o "$dir/closed.st" <&- >&- 2>&-
	cmp "$dir/closed.st" "$dir/fp16.st"
}

ctl_closed() {
	"$O/cqctl" "$@" <&- >&-
}

plan 37
ok "activations of two sequences" acts
ok "calibration: an error for each layer" layers
ok "the same file whatever the threads, another with another seed" same_file
ok "codings per layer, halves, JSON" finer
ok "a budget chooses codings" budget
ok "of codings that are named" choices
ok "few tokens: said" few_tokens
ok "too few tokens: refused, with how many are needed" too_few_tokens
ok "gradients of 0: said, and a budget is spent" zero_gradients
if command -v strace >/dev/null; then
	ok "a calibration that was killed goes on" resume
else
	skip "a calibration that was killed goes on" "no strace"
fi
ok "one process at a partial file" part_in_use
ok "a partial file that holds nothing" nothing_kept
ok "no room for a partial file: named, and it goes on" no_room
ok "the dump is no output" dump_stays
ok "a dump is not kept in memory" little_memory
ok "RoPE scaling and pairs" rope
ok "RoPE that cannot be is named" wrong_rope
ok "NaN: layer, head and token are named, nothing is written" nan
ok "a dump cut short: named, nothing is written" cut
ok "a failure leaves the old output" keeps_old
ok "an output that cannot be: known at once" bad_output
cal --k fp16 --v fp16 -o "$dir/fp16.st" >"$dir/out" 2>&1
if command -v strace >/dev/null; then
	ok "a signal leaves no temporary file" ended
else
	skip "a signal leaves no temporary file" "no strace"
fi
ok "names that are not UTF-8 in JSON" not_utf8
ok "what cannot be printed is a failure" full
ok "wrong use: status 2, what and why" wrong_use
ok "help for every command" help
ok "the manual page and the completion know them and their options" documented
ok "no daemon: the socket is named" absent
ok "a cqd with two models" daemon
export CQ_ADMIN_SOCKET=$dir/admin.sock
ok "ping and status" asks
ok "lists" lists
ok "completion, also with names that cqd holds" completes
ok "load, show, unload" loads
ok "pages of a worker; verify" pages
ok "names: pinned, handed over, unpinned" names
ok "a limit of 64 bits in JSON" huge
ok "no standard output" closed
