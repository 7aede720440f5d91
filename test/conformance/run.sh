#!/bin/bash
# Runs libiscsi's conformance suite (Debian: libiscsi-bin) test by test and says what passed, failed and was skipped.
#
#   test/conformance/run.sh [-o FILE] [-k] [-x TEST] [-n NET] [-r DIR] [-c COLUMNS]   units of its own, and tgt's beside them
#   test/conformance/run.sh [-k] [-x TEST] URL [SECOND-URL]                               a unit that is there
#
# Without a URL it starts a dozo of two sites of two nodes, in a temporary directory, and runs everything against each of
# the units that the list below names (COLUMNS: only those, or none). With one, THE TESTS DESTROY WHAT IS ON THE UNIT. SECOND-URL is
# another path to the same unit, for the tests of multipathing.
# -o FILE writes a Markdown table there. -k prints only counts. -n NET is the 127.NET.0.0/16 to use; otherwise the first
# from 60 on that is free. -r DIR keeps the results there, and takes those of columns that are not run from there, so that
# one column can be run again. -x TEST leaves a test out. The exit code is 1 if dozo fails a test that known.txt does not
# list, or fewer than 210 tests pass on a disk of 1 GiB (209, if one was left out).
#
# iscsi-test-cu counts a skipped test as passed and may end with 0 where a test failed, so its exit code is not looked at:
#   fail  an assertion failed, or it did not end within its time, or it did not run at all ([FAILED] alone is no failure:
#         some tests log it where a command fails as it should)
#   skip  it said [SKIPPED], wherever: it did not do what it is for, or not all of it
#   pass  it ran, and none of these
set -u
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.." || exit 2

# The units. A volume of its own is made for each.
columns="owner beside far small readonly 4k tgt tgt-thin"
meaning() {
	case $1 in
	given) echo "the unit that was given" ;;
	owner) echo "1 GiB, by the owner; second path: the server beside it" ;;
	beside) echo "1 GiB, by a server of the owner's site that does not own it; second path: the other site" ;;
	far) echo "1 GiB, by a server of the other site; second path: the owner" ;;
	small) echo "100 MiB, by the owner; second path: the server beside it" ;;
	readonly) echo "100 MiB, mapped read-only to a host, by the owner; second path: the server beside it. Without \`--dataloss\` but for ReadOnly and reservations" ;;
	4k) echo "1 GiB with blocks of 4,096 bytes, by the owner; second path: the server beside it" ;;
	tgt) echo "tgt $(dpkg-query -W -f '${Version}' tgt 2>/dev/null), a file of 1 GiB" ;;
	tgt-thin) echo "the same with thin provisioning" ;;
	esac
}

out='' counts_only='' nets=$(seq 60 99) chosen='' results='' without=''
while getopts o:kn:r:c:x: opt; do
	case $opt in
	o) out=$OPTARG ;;
	k) counts_only=1 ;;
	n) nets=$OPTARG ;;
	r) results=$OPTARG ;;
	c) chosen=$OPTARG ;;
	x) without=$OPTARG ;;
	*) sed -n '2,21s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))

passes_min=210
seconds_each=60
# Sanitize.Reset sleeps for a minute between looks, and overwriting 1 GiB three times takes a while on a busy machine.
seconds_sanitize=240
PATH=$PATH:/usr/sbin:/sbin
command -v iscsi-test-cu >/dev/null || { echo "iscsi-test-cu is missing; test/deps.sh installs it" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/dozo-conf.XXXXXX") || exit 2
dozo=${DOZO_BIN:-$PWD/bin/dozo}
mkdir -p "${results:=$work}" || exit 2
tgt_pid='' # a tgtd with targets ignores SIGTERM
tgt_control=$((20000 + RANDOM % 10000)) # names tgtd's socket
cleanup() {
	trap - EXIT INT TERM
	[ -f "$work/sys/up.yaml" ] && "$dozo" down --dir "$work/sys" >/dev/null
	if [ "$tgt_pid" ]; then
		kill -9 "$tgt_pid" 2>/dev/null
		wait "$tgt_pid" 2>/dev/null
	fi
	rm -rf "$work" "/var/run/tgtd/socket.$tgt_control" "/var/run/tgtd/socket.$tgt_control.lock"
}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM

# up starts the system that the units are made in.
up() {
	local net
	[ -x "$dozo" ] || { echo "$dozo is missing; make build" >&2; exit 2; }
	for net in $nets; do # dozo up says if one is not free
		"$dozo" up --detach --dir "$work/sys" --sites 2 --nodes 2 --net "$net" >"$work/up" 2>&1 && return
		rm -rf "$work/sys"
	done
	cat "$work/up" >&2
	exit 2
}

# volume NAME SIZE FLAGS...: a volume that stays where it is, and its targets in the order owner, beside it, other site.
volume() {
	local name=$1 size=$2 owner='' all
	shift 2
	"$dozo" volume create "$name" "$size" --at site-1 --ownership pin --dir "$work/sys" "$@" >/dev/null || exit 2
	for _ in $(seq 100); do
		owner=$("$dozo" volume show "$name" -o json --dir "$work/sys" | sed -n 's/^ *"owner": "\(.*\)",*$/\1/p' | head -n 1)
		[ "$owner" ] && break
		sleep 0.1
	done
	case $owner in
	s1n1) all='1.1 1.2 2.1' ;;
	s1n2) all='1.2 1.1 2.1' ;;
	*) echo "the owner of $name is ${owner:-nobody}" >&2; exit 2 ;;
	esac
	"$dozo" volume targets "$name" --dir "$work/sys" >"$work/targets" || exit 2
	for n in $all; do grep -F "$(printf '.%s:' "$n")" "$work/targets"; done
}

# tgt starts tgtd with a unit of a kind, and prints its URL. Its sockets are in /var/run/tgtd.
tgt() {
	local port _
	mkdir -p /var/run/tgtd
	for _ in 1 2 3 4 5; do
		port=$((13000 + RANDOM % 10000))
		tgtd -f -C "$tgt_control" --iscsi portal=127.0.0.1:$port >"$work/tgt.log" 2>&1 &
		tgt_pid=$!
		for _ in $(seq 50); do
			kill -0 "$tgt_pid" 2>/dev/null || break
			if tgtadm -C "$tgt_control" --lld iscsi --op show --mode sys >/dev/null 2>&1; then
				break 2
			fi
			sleep 0.1
		done
		kill -9 "$tgt_pid" 2>/dev/null
		wait "$tgt_pid" 2>/dev/null
		tgt_pid=
	done
	[ "$tgt_pid" ] || { cat "$work/tgt.log" >&2; return 1; }
	set -- "$1" tgtadm -C "$tgt_control" --lld iscsi
	rm -f "$work/tgt.img"
	truncate -s 1G "$work/tgt.img"
	"${@:2}" --op new --mode target --tid 1 -T iqn.2026-01.dozo:conformance &&
		"${@:2}" --op new --mode logicalunit --tid 1 --lun 1 -b "$work/tgt.img" &&
		"${@:2}" --op bind --mode target --tid 1 -I ALL || return 1
	[ "$1" != tgt-thin ] || "${@:2}" --op update --mode logicalunit --tid 1 --lun 1 --params thin_provisioning=1 || return 1
	tgt_url=iscsi://127.0.0.1:$port/iqn.2026-01.dozo:conformance/1
}

# run_one COLUMN NAME URL [SECOND-URL]: prints "RESULT<tab>REASON".
run_one() {
	local column=$1 name=$2 log=$work/log status reason seconds flags=(--dataloss --allow-sanitize)
	shift 2
	if [ "$column" = readonly ]; then
		flags+=(-i "$readonly_initiator" -I "$readonly_initiator-2")
		# What has to be written before it is read can't be tested here. Reservations count as loss of data.
		case $name in *ReadOnly* | *.Prin* | *.Prout*) ;; *) flags=("${flags[@]:2}") ;; esac
	fi
	case $name in
	*.Sanitize.*) seconds=$seconds_sanitize ;;
	*.LUNResetSimpleAsync) seconds=10 ;; # after its failure it may hang in memory that it has freed
	*) seconds=$seconds_each ;;
	esac
	timeout -k 5 "$seconds" iscsi-test-cu -t "$name" "${flags[@]}" -V "$@" </dev/null >"$log" 2>&1
	status=$?
	# Before the line "Test:" it looks at the unit; "passed" or "FAILED" ends the test, then it cleans up and sums up.
	sed -n '/^  *Test: /,$p' "$log" >"$log.test"
	sed '/^\(passed\|FAILED\)/,$d' "$log.test" >"$log.own"
	reason=$(grep -aE '\[FAIL(ED)?\]' "$log.own" | head -n 1)
	if [ $status = 124 ] || [ $status = 137 ]; then
		printf 'fail\tno end within %d s. %s\n' $seconds "$reason"
	elif ! grep -qaE '^ *tests +1 +1 ' "$log.test"; then
		printf 'fail\tdid not run: %s\n' "$(grep -aiE 'fail|error|can.t|cannot' "$log" | head -n 1)"
	elif ! grep -qaE '^ *tests +1 +1 +1 +0 ' "$log.test" || ! grep -qaE '^ *asserts +[0-9]+ +[0-9]+ +[0-9]+ +0 ' "$log.test"; then
		printf 'fail\t%s\n' "$(grep -aE '^ +[0-9]+\. ' "$log.test" | head -n 1 | sed 's/^ *1\. *//; s/    Send PRIN.*//')"
	elif grep -qaF '[SKIPPED]' "$log.own"; then
		printf 'skip\t%s\n' "$(grep -aF '[SKIPPED]' "$log.own" | head -n 1 | sed 's/.*\[SKIPPED\] *//')"
	else
		printf 'pass\t\n'
	fi
}

# suite COLUMN URL [SECOND-URL]: every test, into results.COLUMN.
suite() {
	local column=$1 name result known begun
	begun=$(date +%s)
	shift
	rm -f "$results/results.$column"
	while read -r name <&3; do
		result=$(run_one "$column" "$name" "$@")
		known=$(known "$column" | awk -F '\t' -v n="$name" '$1 == n { print $2 }')
		case $result in fail*) [ "$known" ] && result=$(printf 'fail\t%s' "$known") ;; esac
		printf '%s\t%s\n' "$name" "$result" >>"$results/results.$column"
		[ "$counts_only" ] || printf '%-9s %-48s %s\n' "$column" "$name" "$result"
	done 3<"$work/names"
	echo "$column: $total tests: $(count "$column" pass) pass, $(count "$column" fail) fail, $(count "$column" skip) skipped, in $(($(date +%s) - begun)) s"
}
# known COLUMN: what of known.txt is about a column.
known() { awk -F '\t' -v c="$1" '!/^#/ && c !~ /^tgt/ && ($3 == "" || $3 == c)' "$here/known.txt"; }
count() { awk -F '\t' -v r="$2" '$2 == r' "$results/results.$1" | wc -l; }

iscsi-test-cu -l 2>/dev/null | grep -E '^(SCSI|iSCSI)\.[^.]+\.[^.]+$' | grep -vxF "${without:-none}" >"$work/names"
[ -z "$without" ] || passes_min=$((passes_min - 1))
total=$(wc -l <"$work/names")
[ "$total" -gt 0 ] || { echo "iscsi-test-cu -l lists no tests" >&2; exit 2; }
readonly_initiator=iqn.2026-01.dozo.test:readonly

if [ $# -gt 0 ]; then
	columns=given
	suite given "$@"
else
	all=$columns
	columns=${chosen:-$columns}
	[ "$chosen" != none ] || columns=
	case " $columns" in *' owner'* | *' beside'* | *' far'* | *' small'* | *' readonly'* | *' 4k'*) up ;; esac
	for column in $columns; do
		urls=()
		case $column in
		owner | beside | far) mapfile -t urls < <(volume "$column" 1G) ;;
		small) mapfile -t urls < <(volume small 100M) ;;
		4k) mapfile -t urls < <(volume blocks 1G --block-size 4096) ;;
		readonly)
			mapfile -t urls < <(volume readonly 100M)
			"$dozo" host add readonly --initiator $readonly_initiator --initiator $readonly_initiator-2 --dir "$work/sys" >/dev/null &&
				"$dozo" volume map readonly readonly --read-only --dir "$work/sys" -o json >"$work/map" || exit 2
			iqn=$(sed -n 's/^ *"iqn": "\(.*\)",*$/\1/p' "$work/map")
			for i in "${!urls[@]}"; do urls[i]=$(printf '%s' "${urls[i]}" | sed "s,/iqn.*,/$iqn/0,"); done
			;;
		tgt*)
			command -v tgtd >/dev/null || { echo "tgtd is missing: no column $column" >&2; continue; }
			tgt "$column" || { echo "tgtd does not start: no column $column" >&2; continue; }
			urls=("$tgt_url" "$tgt_url")
			;;
		*) echo "no column is called $column" >&2; exit 2 ;;
		esac
		[ "${#urls[@]}" -ge 2 ] || exit 2
		case $column in
		beside) suite "$column" "${urls[1]}" "${urls[2]}" ;;
		far) suite "$column" "${urls[2]}" "${urls[0]}" ;;
		*) suite "$column" "${urls[0]}" "${urls[1]}" ;;
		esac
		if [ "$tgt_pid" ]; then
			kill -9 "$tgt_pid"
			wait "$tgt_pid" 2>/dev/null
			tgt_pid=
		fi
	done
	columns=
	for column in $all; do [ -f "$results/results.$column" ] && columns="$columns $column"; done
fi

if [ "$out" ]; then
	{
		cat <<END
# iSCSI conformance

Made by \`test/conformance/run.sh -o docs/conformance.md\` (\`make conformance\`), which anybody can run again; do not edit.

libiscsi's \`iscsi-test-cu\` (Debian package libiscsi-bin $(dpkg-query -W -f '${Version}' libiscsi-bin 2>/dev/null || echo 'of unknown version')), every test in a run of its own with
\`--dataloss --allow-sanitize\`, against two sites of two nodes; dozo $("$dozo" version --client -o json 2>/dev/null | sed -n 's/.*"version": "\([^"]*\)".*/\1/p' | head -n 1), $(date -u +%Y-%m-%d). $total tests:

| column | unit | pass | fail | skip |
| --- | --- | --: | --: | --: |
END
		for column in $columns; do
			echo "| $column | $(meaning "$column") | $(count "$column" pass) | $(count "$column" fail) | $(count "$column" skip) |"
		done
		cat <<END

iscsi-test-cu itself counts a skipped test as passed. Here *skip* means that it said \`[SKIPPED]\` somewhere: it did not do
what it is for, or not all of it. *Fail* means that an assertion failed or that it did not come to an end. What fails against dozo is
in \`test/conformance/known.txt\` with the reason; anything else would make the script fail.

END
		cat "$here/notes.md"
		printf '\n## Each test\n\nThe reason is that of the first column of dozo in which the test does not pass, but for what *readonly* skips.\n\n| test |'
		for column in $columns; do printf ' %s |' "$column"; done
		printf ' reason |\n| --- |'
		for column in $columns; do printf ' --- |'; done
		printf ' --- |\n'
		while read -r name; do
			printf '| %s |' "$name"
			reason=
			for column in $columns; do
				IFS=$'\t' read -r _ result why < <(awk -F '\t' -v n="$name" '$1 == n' "$results/results.$column")
				printf ' %s |' "$result"
				case $column in tgt*) ;; *) [ "$result" = pass ] || [ "$reason" ] || [ "$column $result" = 'readonly skip' ] || reason="$column: $why" ;; esac
			done
			printf ' %s |\n' "$(printf '%s' "$reason" | sed 's/|/\\|/g; s/</\&lt;/g; s/ *$//')"
		done <"$work/names"
	} >"$work/table" && cat "$work/table" >"$out"
fi

status=0
for column in $columns; do
	case $column in tgt*) continue ;; esac
	known "$column" >"$work/known"
	broken=$(awk -F '\t' 'NR == FNR { known[$1] = 1; next } $2 == "fail" && !($1 in known) { print "  " $1 ": " $3 }' "$work/known" "$results/results.$column")
	if [ "$broken" ]; then
		echo "$column: failures that known.txt does not list:"
		echo "$broken"
		status=1
	fi
	case $column in
	given | owner | beside | far)
		if [ "$(count "$column" pass)" -lt $passes_min ]; then
			echo "$column: fewer than $passes_min tests pass"
			status=1
		fi
		;;
	esac
done
exit $status
