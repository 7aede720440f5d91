#!/bin/bash
# Compares dozo with tgt (Debian package): test/bench/iscsi.sh [-o FILE]. Prints Markdown; -o writes it to a file too.
#
# Same client (dozo bench compare), same backing file system, write cache on in both, alternating runs, medians, CPU
# seconds of all servers for 100,000 I/Os. dozo has every write on two nodes before it answers, tgt on one. It is run
# with TLS between the nodes and with --plain-data.
#
# From the environment:
#   DIR=/dev/shm   file system for the data of both; 10 GiB must be free
#   SITES=1        sites of the dozo system, of two nodes each
#   SIZE=512M      of the region that the loads use
#   ROUNDS=3       runs of each load on each side
#   RUNTIME=2s     length of a run
#   RAMP=300ms     what goes before each run and is not counted
#   WARMUP=5s      how long each side is written to before the first run: a system that was just made takes its memory for the first time
#   PRECONDITION=1 write the region in order before each run that writes, of either side; 0: only once
#   MODES="tls plain"
#   SESSIONS=1     sessions of the client, several numbers for a table of each: SESSIONS="1 16 64 256"
#   WORKLOADS=     loads, as KIND:SIZE:DEPTH with commas between; the standard ones by default
set -u
cd "$(dirname "$0")/../.." || exit 2
out=
while getopts o: opt; do
	case $opt in
	o) out=$OPTARG ;;
	*) sed -n '2,21s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	esac
done

: "${DIR:=/dev/shm}" "${SITES:=1}" "${SIZE:=512M}" "${ROUNDS:=3}" "${RUNTIME:=2s}" "${RAMP:=300ms}" "${WARMUP:=5s}" "${PRECONDITION:=1}" "${MODES:=tls plain}" "${SESSIONS:=1}" "${WORKLOADS:=}"
dozo=${DOZO_BIN:-$PWD/bin/dozo}
PATH=$PATH:/usr/sbin:/sbin
for c in tgtd tgtadm; do
	command -v $c >/dev/null || { echo "$c is missing; test/deps.sh installs it" >&2; exit 2; }
done
[ -x "$dozo" ] || { echo "$dozo is missing; make build" >&2; exit 2; }

work=$(mktemp -d "$DIR/dozo-bench.XXXXXX") || exit 2
tgt_pid= # a tgtd with targets ignores SIGTERM
control=$((20000 + RANDOM % 10000)) # names tgtd's socket
cleanup() {
	trap - EXIT INT TERM
	[ -f "$work/sys/up.yaml" ] && "$dozo" down --dir "$work/sys" >/dev/null
	if [ "$tgt_pid" ]; then
		kill -9 "$tgt_pid" 2>/dev/null
		wait "$tgt_pid" 2>/dev/null
	fi
	rm -rf "$work" "/var/run/tgtd/socket.$control" "/var/run/tgtd/socket.$control.lock"
}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM
fail() { echo "$*" >&2; exit 1; }

# Unix sockets of tgtd are here.
mkdir -p /var/run/tgtd
start_tgt() {
	local try port
	for try in 1 2 3 4 5; do
		port=$((13000 + RANDOM % 10000))
		tgtd -f -C $control --iscsi portal=127.0.0.1:$port >"$work/tgt.log" 2>&1 &
		tgt_pid=$!
		for _ in $(seq 50); do
			kill -0 $tgt_pid 2>/dev/null || break
			if tgtadm -C $control --lld iscsi --op show --mode sys >/dev/null 2>&1; then
				tgt_url=iscsi://127.0.0.1:$port/iqn.2026-01.dozo:bench/1
				return 0
			fi
			sleep 0.1
		done
		kill -9 $tgt_pid 2>/dev/null
		wait $tgt_pid 2>/dev/null
	done
	cat "$work/tgt.log" >&2
	return 1
}
start_tgt || fail "tgtd does not start"
truncate -s "$SIZE" "$work/tgt.img"
admin() { tgtadm -C $control --lld iscsi "$@" || fail "tgtadm $*"; }
admin --op new --mode target --tid 1 -T iqn.2026-01.dozo:bench
admin --op new --mode logicalunit --tid 1 --lun 1 -b "$work/tgt.img"
admin --op bind --mode target --tid 1 -I ALL

args=()
for mode in $MODES; do
	flags=()
	heading="TLS between the nodes"
	if [ "$mode" = plain ]; then
		flags=(--plain-data)
		heading="data frames within a site without TLS (--plain-data)"
	fi
	rm -rf "$work/sys"
	for net in $(seq 30 59); do
		"$dozo" up --detach --dir "$work/sys" --sites "$SITES" --nodes 2 --net "$net" "${flags[@]}" >"$work/up" 2>&1 && break
		rm -rf "$work/sys"
	done
	[ -f "$work/sys/up.yaml" ] || { cat "$work/up" >&2; exit 1; }
	"$dozo" volume create bench "$SIZE" --dir "$work/sys" >/dev/null || exit 1
	# The access server that owns the volume, as the hypervisor's own node does when ownership has followed the I/O.
	owner=
	for _ in $(seq 100); do
		owner=$("$dozo" volume show bench -o json --dir "$work/sys" | sed -n 's/^ *"owner": "\(.*\)",*$/\1/p' | head -n 1)
		[ "$owner" ] && break
		sleep 0.1
	done
	[ "$owner" ] || fail "the volume has no owner"
	n=${owner#s*n} i=${owner#s} i=${i%n*}
	url=$("$dozo" volume targets bench --dir "$work/sys" | grep -F "//127.$net.$i.$n:") || fail "no target at $owner"
	pids=$(cat "$work"/sys/nodes/*/pid | awk '{ print $1 }' | paste -sd,)
	for u in "$url" "$tgt_url"; do
		"$dozo" bench iscsi --workload write:1M:4 --size "$SIZE" --runtime "$WARMUP" --quiet "$u" >/dev/null </dev/null || fail "dozo bench iscsi failed ($mode)"
	done
	for sessions in $SESSIONS; do
		"$dozo" bench compare --prefill --precondition="$PRECONDITION" --size "$SIZE" --rounds "$ROUNDS" --runtime "$RUNTIME" --ramp "$RAMP" --quiet --sessions "$sessions" \
			${WORKLOADS:+--workload "$WORKLOADS"} --pids-a "$pids" --pids-b "$tgt_pid" -o json "$url" "$tgt_url" \
			>"$work/$mode-$sessions.json" </dev/null || fail "dozo bench compare failed ($mode, $sessions sessions)"
		[ "$SESSIONS" = 1 ] && title=$heading || title="$heading, $sessions session(s)"
		args+=("$title=$work/$mode-$sessions.json")
	done
	"$dozo" down --dir "$work/sys" >/dev/null
done

{
	echo "dozo $("$dozo" version --client -o json | sed -n 's/.*"version": "\(.*\)",*$/\1/p'), $SITES site(s) of 2 nodes; tgt $(dpkg-query -W -f '${Version}' tgt 2>/dev/null);"
	echo "$(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), Linux $(uname -r), data on $(df --output=fstype "$DIR" | tail -n 1), $(date -u +%Y-%m-%d)."
	echo "Each side is written to for $WARMUP before the first run."
	[ "$PRECONDITION" = 0 ] || echo "The region is written in order before each run that writes."
	echo "Region $SIZE, $ROUNDS runs of $RUNTIME on each side in turn; medians (minimum to maximum); CPU seconds of all server processes for 100,000 I/Os."
	go run ./test/bench/table "${args[@]}"
} >"$work/result" || exit 1
cat "$work/result"
[ -z "$out" ] || cp "$work/result" "$out"
