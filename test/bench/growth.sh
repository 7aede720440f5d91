#!/bin/bash
# Measures how the throughput of one site grows with its core servers, each of whose disks is held to RATE bytes a second
# (stores[].throttle): test/bench/growth.sh [-o FILE]. Markdown on standard output. Needs some 4 GB below TMPDIR and the
# addresses 127.NET.0.0/16; some minutes.
set -eu
cd "$(dirname "$0")/../.."
D=${DOZO_BIN:-$PWD/bin/dozo}
RATE=${RATE:-50000000}
NET=${NET:-77}
VOLUMES=${VOLUMES:-8}
SECONDS_EACH=${SECONDS_EACH:-12}
out=
while getopts o: f; do case $f in o) out=$OPTARG ;; *) exit 2 ;; esac; done
work=$(mktemp -d "${TMPDIR:-/tmp}/dozo-growth.XXXXXX")
trap '"$D" down --dir "$work/sys" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT

# rate prints the bytes a second, in MB, of one run of dozo bench iscsi.
rate() { "$D" bench iscsi -q -o json "$@" | sed -n 's/.*"mb_per_s": \([0-9]*\).*/\1/p'; }

move() { # volume, node, directory; a new volume is not served yet
	for _ in $(seq 50); do
		"$D" volume move "$1" --to "$2" --timeout 30s --dir "$3" >/dev/null 2>&1 && return
		sleep 0.3
	done
	echo "growth.sh: $1 does not move to $2" >&2
	return 1
}

measure() { # nodes
	local n=$1 dir=$work/sys urls= big
	"$D" up --detach --sites 1 --nodes "$n" --net "$NET" --dir "$dir" >/dev/null
	"$D" down --dir "$dir" >/dev/null
	# A disk that slow has a queue: it is not taken for one that hangs. Small segments let one reader have several pairs.
	for f in "$dir"/nodes/s1n*/dozo.yaml; do
		sed -i -e "s/^\( *\)- path: .*/&\n\1  throttle: $RATE/" -e 's/^\( *\)append: .*/\1append: 10s/' -e 's/^\( *\)segment_size: .*/\1segment_size: 8MiB/' "$f"
		grep -q "throttle: $RATE" "$f" && grep -q 'append: 10s' "$f" && grep -q 'segment_size: 8MiB' "$f"
	done
	"$D" up --detach --dir "$dir" >/dev/null
	for i in $(seq "$VOLUMES"); do
		"$D" volume create "v$i" 128M --dir "$dir" >/dev/null
		move "v$i" "s1n$((i % n + 1))" "$dir"
		urls="$urls $("$D" volume targets "v$i" --dir "$dir" | sed -n "$((i % n + 1))p")"
	done
	"$D" volume create big 512M --dir "$dir" >/dev/null
	move big s1n1 "$dir"
	big=$("$D" volume targets big --dir "$dir" | sed -n 1p)
	local w r one
	# shellcheck disable=SC2086 # one URL each
	w=$(rate --workload write:1M:2 --prefill --runtime "${SECONDS_EACH}s" $urls)
	# shellcheck disable=SC2086
	r=$(rate --workload read:1M:4 --runtime "${SECONDS_EACH}s" $urls)
	one=$(rate --workload read:1M:32 --prefill --runtime "${SECONDS_EACH}s" "$big")
	"$D" down --dir "$dir" >/dev/null
	rm -rf "$dir"
	echo "$w $r $one"
}

measure 2 >"$work/2"
measure 4 >"$work/4"
read -r w2 r2 o2 <"$work/2"
read -r w4 r4 o4 <"$work/4"
x() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a ? b / a : 0 }'; }
table() {
	echo "| 1 MiB I/Os, disks of $((RATE / 1000000)) MB/s | 2 core servers, MB/s | 4 core servers, MB/s | growth |"
	echo "| --- | ---: | ---: | ---: |"
	echo "| $VOLUMES volumes, sequential writes, depth 2 each | $w2 | $w4 | $(x "$w2" "$w4") |"
	echo "| $VOLUMES volumes, sequential reads, depth 4 each | $r2 | $r4 | $(x "$r2" "$r4") |"
	echo "| one volume, sequential reads, depth 32 | $o2 | $o4 | $(x "$o2" "$o4") |"
}
table
[ -z "$out" ] || table >"$out"
