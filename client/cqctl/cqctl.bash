# SPDX-License-Identifier: MIT
# bash completion for cqctl(1)

# _cqctl_names KIND [OPTION...]: what cqd holds, or nothing when it cannot be asked
_cqctl_names() {
	cqctl list "$@" 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_cqctl() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
	local commands="ping status list namespaces clients top events metrics show load unload pin unpin verify evict quota"
	commands+=" save restore drain bench doctor calibrate"
	local cmd="" before="" n=0 i words socket=()

	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		before=${COMP_WORDS[i - 1]}
		[ "$before" != --socket ] || socket=(--socket "${COMP_WORDS[i]}")
		case ${COMP_WORDS[i]} in
		-*) continue ;;
		esac
		case $before in
		--socket | --k | --v | --layers | --budget | --choices | --fisher | --clip | --starts | --centroids | --sinks | --window | --iterations | \
			--threads | --seed | --rope-scaling | --rope-pairs | --output | -o | --namespace | --model | --older | \
			--bytes | --pages | --pins | --connections | --ttl | \
			--timeout | --clients | --seconds | --interval | -i | --sort | -s | -n | --count | --gpu) continue ;;
		esac
		if [ -z "$cmd" ]; then cmd=${COMP_WORDS[i]}; else n=$((n + 1)); fi
	done

	case $prev in
	--socket | -o | --output)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	--k | --v)
		mapfile -t COMPREPLY < <(compgen -W "fp16 2c8b 4c8b 8c8b" -- "$cur")
		return
		;;
	--rope-pairs)
		mapfile -t COMPREPLY < <(compgen -W "half interleaved" -- "$cur")
		return
		;;
	--rope-scaling)
		mapfile -t COMPREPLY < <(compgen -W "linear, llama3, yarn, none" -- "$cur")
		return
		;;
	--fisher)
		mapfile -t COMPREPLY < <(compgen -W "none token channel both" -- "$cur")
		return
		;;
	--centroids)
		mapfile -t COMPREPLY < <(compgen -W "i8 f16" -- "$cur")
		return
		;;
	--sort)
		mapfile -t COMPREPLY < <(compgen -W "name bytes pages pins lookups seals
			evictions" -- "$cur")
		return
		;;
	--layers | --budget | --choices | --clip | --starts | --sinks | --window | --iterations | --threads | --seed | --older | --bytes | --pages | \
		--pins | --connections | --ttl | --timeout | --interval | --count | \
		--clients | --seconds | --gpu)
		return
		;;
	--namespace | --model)
		mapfile -t COMPREPLY < <(compgen -W \
			"$(_cqctl_names "${prev#--}s" "${socket[@]}")" -- "$cur")
		return
		;;
	esac

	if [[ $cur == -* ]]; then
		words="--socket --json --help"
		case $cmd in
		"") words+=" --version" ;;
		verify) words+=" --gpu --pending" ;;
		evict) words+=" --namespace --model --older --bytes --all" ;;
		quota) words+=" --bytes --pages --pins --connections" ;;
		pin) words+=" --ttl --replace" ;;
		ping) words+=" --timeout" ;;
		top) words+=" --once --batch --interval --sort" ;;
		events) words+=" --namespace --snapshot --count" ;;
		bench) words+=" --clients --seconds --namespace --model" ;;
		drain) words+=" --timeout --undo" ;;
		calibrate) words+=" --k --v --budget --choices --layers --fisher --clip
			--centroids --sinks --window --resume --iterations --starts --threads --seed --rope-scaling --rope-pairs --output" ;;
		esac
		mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
		return
	fi

	case $cmd:$n in
	:0) words=$commands ;;
	list:0) words="models namespaces segments clients pages names" ;;
	show:0)
		words="$(_cqctl_names models "${socket[@]}")
			$(_cqctl_names namespaces "${socket[@]}")"
		;;
	quota:0) words=$(_cqctl_names namespaces "${socket[@]}") ;;
	pin:0 | unpin:0) words=$(_cqctl_names namespaces "${socket[@]}") ;;
	pin:2) words=$(_cqctl_names pages "${socket[@]}") ;;
	unpin:1) words=$(_cqctl_names names "${socket[@]}") ;;
	unload:0) words=$(_cqctl_names models "${socket[@]}") ;;
	load:1 | calibrate:0 | save:0 | restore:0)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	*) return ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -o filenames -F _cqctl cqctl
