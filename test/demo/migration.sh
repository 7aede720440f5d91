#!/bin/bash
# Measures live migration with the disk behind dozo: test/demo/migration.sh [-o DIR]. Writes DIR/report.md, DIR/rate.svg and the
# raw figures (default ./demo-migration). Root; qemu-system-x86, qemu-block-extra, iproute2 (test/deps.sh).
#
# Three sites of two nodes in network namespaces, with distance between them. A guest at the first writes to its disk by
# iscsi://east and migrates to the second, where its disk is iscsi://west; nobody moves the volume: it follows. Each round has a new
# volume, and is done with a local file as well.
#
# From the environment:
#   ROUNDS=5             of each kind
#   RTTS="18ms 100ms"    between any two sites
#   LOADS="idle busy"    busy: the guest writes DIRTY of its memory a second
#   DIRTY=6M
#   BEFORE=5s SETTLE=10s AFTER=8s   what is measured before the migration; from its end on until the volume has to have followed; then
set -u
cd "$(dirname "$0")/../.." || exit 2
out=$PWD/demo-migration
while getopts o: opt; do
	case $opt in
	o) out=$OPTARG ;;
	*) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	esac
done
: "${ROUNDS:=5}" "${RTTS:=18ms 100ms}" "${LOADS:=idle busy}" "${DIRTY:=6M}" "${BEFORE:=5s}" "${SETTLE:=10s}" "${AFTER:=8s}"
dozo=${DOZO_BIN:-$PWD/bin/dozo}
[ -x "$dozo" ] || { echo "$dozo is missing; make build" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "network namespaces need root" >&2; exit 2; }
lab=migration
work=$(mktemp -d "${TMPDIR:-/tmp}/dozo-demo.XXXXXX") || exit 2
cleanup() {
	trap - EXIT INT TERM
	"$dozo" lab down --name $lab >/dev/null 2>&1
	rm -rf "$work"
}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM
fail() { echo "$*" >&2; exit 1; }
mkdir -p "$out" && rm -f "$out"/*.json "$out"/*.events "$out"/machine.txt || exit 2
at() { "$dozo" lab exec --name $lab east -- "$dozo" "$@"; }
url() { at volume targets "$1" | grep -o "iscsi://$2[^ ]*" | head -n 1; }

{
	echo "$(nproc) processors"
	sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1
	echo "load $(cut -d' ' -f1 /proc/loadavg) at the beginning"
} >"$out/machine.txt"
for rtt in $RTTS; do
	"$dozo" lab down --name $lab >/dev/null 2>&1
	rm -rf "$work/lab"
	"$dozo" lab up --name $lab --sites 3 --nodes 2 --rtt "$rtt" --rate 1gbit --dir "$work/lab" >"$work/up.txt" 2>&1 || { cat "$work/up.txt" >&2; tail -n 15 "$work"/lab/nodes/*/log >&2; exit 1; }
	for load in $LOADS; do
		for round in $(seq "$ROUNDS"); do
			v=$load-$round
			run=$out/$rtt-$v
			echo "round trip $rtt, $load, round $round of $ROUNDS"
			at volume create "$v" 256M --at east >/dev/null || fail "no volume"
			dirty=()
			[ "$load" = busy ] && dirty=(--dirty "$DIRTY")
			# A record that is lost is exit code 1, and in the report.
			"$dozo" lab guest migrate --name $lab --from east --to west --before "$BEFORE" --settle "$SETTLE" --after "$AFTER" \
				"${dirty[@]}" -o json "$(url "$v" 10.77.1.1)" "$(url "$v" 10.77.2.1)" >"$run.json" || [ $? = 1 ] || fail "$run: no result"
			at events --since 5m -o json | grep "\"volume/default/$v\"" | grep '"volume.move"' >"$run.events"
			at volume show "$v" -o json | grep -o '"owner_site": *"[^"]*"' | head -n 1 >>"$run.events"
		done
	done
done
echo "load $(cut -d' ' -f1 /proc/loadavg) at the end" >>"$out/machine.txt"
go run ./test/demo/migration "$out" && cat "$out/report.md"
