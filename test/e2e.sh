#!/bin/bash
# Runs the end-to-end tests: test/e2e.sh [FLAGS OF go test]. Everything that they make is below one temporary
# directory, and whatever of it still runs when they end, in whatever way, is stopped here.
set -u
cd "$(dirname "$0")/.." || exit 1

E2E_LONG=${E2E_LONG:-} ./test/deps.sh || exit 1
if [ ! -x "${DOZO_BIN:=$PWD/bin/dozo}" ]; then
	CGO_ENABLED=0 go build -o "$DOZO_BIN" ./cmd/dozo || exit 1
fi
# Short: paths of unix sockets have at most 107 bytes.
work=$(mktemp -d "${TMPDIR:-/tmp}/dozo-e2e.XXXXXX") || exit 1
child=
cleanup() {
	trap - EXIT INT TERM
	# go test does not pass signals on; its tests' processes are in its group.
	if [ "$child" ]; then
		kill -- "-$child" 2>/dev/null && wait "$child"
		for f in /run/dozo-lab/e2e*; do
			[ -e "$f" ] && "$DOZO_BIN" lab down --grace 0 --name "$(basename "$f")"
		done
	fi
	for f in "$work"/*/up.yaml "$work"/*/*/up.yaml; do
		[ -f "$f" ] && "$DOZO_BIN" down --dir "$(dirname "$f")"
	done
	# What test/robust could not unmount.
	awk -v w="$work/" 'index($2, w) == 1 { print $2 }' /proc/mounts | while read -r m; do fsfreeze -u "$m" 2>/dev/null; umount "$m"; done
	[ "${E2E_KEEP:-}" ] && echo "kept: $work" || rm -rf "$work"
}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM

packages=./test/e2e/...
short=
# Tests of the initiator against tgt, and short forms of those of the lab and of guests, which make lab-test and
# make guest-test run whole; unless only some tests were asked for.
case " $* " in
*" -run "*) ;;
*)
	packages="$packages ./internal/initiator/... ./internal/access/isns"
	if [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ]; then
		short="./internal/lab/... ./internal/guest/... ./test/robust"
		DOZO_BIN=$DOZO_BIN ./test/guest-image.sh || exit 1
	else
		echo "test/e2e.sh: without root or /dev/net/tun the tests of the lab and of guests are left out" >&2
	fi
	;;
esac
# One package after the other: each wants the machine for itself. In the background, so that signals reach the trap.
status=0
set -m # a group for each
tests() {
	TMPDIR=$work E2E_DIR=$work DOZO_BIN=$DOZO_BIN PATH=$PATH:/usr/sbin:/sbin \
		go test -tags e2e -count=1 -p 1 "$@" </dev/null &
	child=$!
	wait $child || status=1
	child=
}
tests "$@" $packages
[ -z "$short" ] || tests -short "$@" $short
exit $status
