#!/bin/bash
# Runs libiscsi's conformance suite (Debian: libiscsi-bin) test by test and says what passed, failed and was skipped.
#
#   test/conformance/run.sh [-o FILE] [-k] [URL [SECOND-URL]]
#
# Without a URL it starts a dozo of one site and two nodes, in a temporary directory, with a volume of its own: THE TESTS
# DESTROY WHAT IS ON THE UNIT. SECOND-URL is another path to the same unit, for the tests of multipathing.
# -o FILE writes a Markdown table there. -k prints only counts. The exit code is 1 if a family of must-pass.txt has a
# failure, or fewer than 210 tests pass.
#
# iscsi-test-cu counts a skipped test as passed and may end with 0 where a test failed, so its exit code is not looked at:
#   fail  an assertion failed, or it did not end within its time, or it did not run at all ([FAILED] alone is no failure:
#         some tests log it where a command fails as it should)
#   skip  it said [SKIPPED], wherever: it did not do what it is for, or not all of it
#   pass  it ran, and none of these
set -u
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.." || exit 2

out='' counts_only=
while getopts o:k opt; do
	case $opt in
	o) out=$OPTARG ;;
	k) counts_only=1 ;;
	*) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))

passes_min=210
seconds_each=60
# Sanitize.Reset sleeps for a minute between looks.
seconds_sanitize=150
command -v iscsi-test-cu >/dev/null || { echo "iscsi-test-cu is missing; test/deps.sh installs it" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/dozo-conf.XXXXXX") || exit 2
dozo=${DOZO_BIN:-$PWD/bin/dozo}
cleanup() {
	trap - EXIT INT TERM
	[ -f "$work/sys/up.yaml" ] && "$dozo" down --dir "$work/sys" >/dev/null
	rm -rf "$work"
}
trap cleanup EXIT
trap 'cleanup; exit 130' INT TERM

what=${1:-}
if [ -z "$what" ]; then
	[ -x "$dozo" ] || { echo "$dozo is missing; make build" >&2; exit 2; }
	# A 127.N.0.0/16 that is free: dozo up says so if it is not.
	for net in $(seq 60 99); do
		"$dozo" up --detach --dir "$work/sys" --sites 1 --nodes 2 --net "$net" >"$work/up" 2>&1 && break
		rm -rf "$work/sys"
	done
	[ -f "$work/sys/up.yaml" ] || { cat "$work/up" >&2; exit 2; }
	"$dozo" volume create conformance 1G --dir "$work/sys" >/dev/null || exit 2
	mapfile -t urls < <("$dozo" volume targets conformance --dir "$work/sys")
	set -- "${urls[@]:0:2}"
	what="a new volume of 1 GiB, one site of two nodes"
else
	what="$1"
fi

# run_one NAME: prints "RESULT<tab>REASON".
run_one() {
	local log=$work/log status reason seconds
	case $1 in *.Sanitize.Reset) seconds=$seconds_sanitize ;; *) seconds=$seconds_each ;; esac
	timeout -k 5 "$seconds" iscsi-test-cu -t "$1" --dataloss --allow-sanitize -V "${@:2}" </dev/null >"$log" 2>&1
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

iscsi-test-cu -l 2>/dev/null | grep -E '^(SCSI|iSCSI)\.[^.]+\.[^.]+$' >"$work/names"
total=$(wc -l <"$work/names")
[ "$total" -gt 0 ] || { echo "iscsi-test-cu -l lists no tests" >&2; exit 2; }
begun=$(date +%s)
while read -r name <&3; do
	result=$(run_one "$name" "$@")
	known=$(awk -F '\t' -v n="$name" '$1 == n { print $2 }' "$here/known.txt")
	case $result in fail*) [ "$known" ] && result=$(printf 'fail\t%s' "$known") ;; esac
	printf '%s\t%s\n' "$name" "$result" >>"$work/results"
	[ "$counts_only" ] || printf '%-48s %s\n' "$name" "$result"
done 3<"$work/names"

count() { awk -F '\t' -v r="$1" '$2 == r' "$work/results" | wc -l; }
pass=$(count pass) fail=$(count fail) skip=$(count skip)
grep -vE '^ *(#|$)' "$here/must-pass.txt" >"$work/must"
cut -f 1 "$here/known.txt" | grep -vE '^ *(#|$)' >"$work/known"
broken=$(awk -F '\t' 'FILENAME == ARGV[1] { must[$1] = 1; next } FILENAME == ARGV[2] { known[$1] = 1; next } { f = $1; sub(/\.[^.]*$/, "", f) }
	$2 == "fail" && f in must && !($1 in known) { print "  " $1 ": " $3 }' "$work/must" "$work/known" "$work/results")

if [ "$out" ]; then
	{
		cat <<END
# iSCSI conformance

Made by \`test/conformance/run.sh -o docs/conformance.md\` (\`make conformance\`), which anybody can run again; do not edit.

libiscsi's \`iscsi-test-cu\` (Debian package libiscsi-bin $(dpkg-query -W -f '${Version}' libiscsi-bin 2>/dev/null || echo 'of unknown version')), every test in a run of its own with
\`--dataloss --allow-sanitize\`, against $what; dozo $("$dozo" version --client -o json 2>/dev/null | sed -n 's/.*"version": "\([^"]*\)".*/\1/p' | head -n 1), $(date -u +%Y-%m-%d).

**Of $total tests $pass pass, $fail fail, $skip are skipped.** iscsi-test-cu itself counts a skipped test as passed. Here *skip* means
that it said \`[SKIPPED]\` somewhere: it did not do what it is for, or not all of it. *Fail* means that an assertion failed or
that it did not come to an end. Families in **bold** are those of \`test/conformance/must-pass.txt\`, in which nothing may fail,
except for the faults of tests that \`test/conformance/known.txt\` lists.

| family | pass | fail | skip |
| --- | --: | --: | --: |
END
		awk -F '\t' 'NR == FNR { must[$1] = 1; next }
			{ f = $1; sub(/\.[^.]*$/, "", f); if (!(f in seen)) { seen[f] = 1; order[++n] = f }; c[f, $2]++ }
			END { for (i = 1; i <= n; i++) { f = order[i]; name = f in must ? "**" f "**" : f
				printf "| %s | %d | %d | %d |\n", name, c[f, "pass"], c[f, "fail"], c[f, "skip"] } }' "$work/must" "$work/results"
		printf '\n## Each test\n\n| test | result | reason |\n| --- | --- | --- |\n'
		awk -F '\t' '{ r = $3; gsub(/\|/, "\\|", r); gsub(/^ +| +$/, "", r); gsub(/</, "\\&lt;", r); printf "| %s | %s | %s |\n", $1, $2, r }' "$work/results"
		printf '\n'; cat "$here/notes.md"
	} >"$work/table" && cat "$work/table" >"$out"
fi

echo "$total tests: $pass pass, $fail fail, $skip skipped, in $(($(date +%s) - begun)) s"
status=0
if [ "$broken" ]; then
	echo "failures in families of must-pass.txt:"
	echo "$broken"
	status=1
fi
if [ "$pass" -lt $passes_min ]; then
	echo "fewer than $passes_min tests pass"
	status=1
fi
exit $status
