#!/bin/bash
# Runs the long form of all that sinks must show and prints the figures as a table;
# make sinks. DOWN is for how many seconds the receiver of the first bar is down; the
# others run meanwhile. The status is 1 where one of them failed.
set -u
cd "$(git rev-parse --show-toplevel)" || exit 1
DOWN=${DOWN:-600} FUZZ=${FUZZ:-20s} PYTHON=${PYTHON:-python3}
out=$(mktemp -d) && trap 'rm -rf "$out"' EXIT

# bar NAME PACKAGE TESTS [VARIABLE=VALUE…]: runs the tests, writes a row.
bar() {
	local name=$1 package=$2 tests=$3 began=$SECONDS log state figures
	shift 3
	log=$(mktemp "$out/log.XXXXXX")
	if env "$@" go test -count 1 -v -timeout 25m -run "$tests" "$package" >"$log" 2>&1; then
		state=passed
		! grep -q '^ *--- PASS' "$log" && state='nothing ran'
		grep -q '^ *--- SKIP' "$log" && state=skipped
	else
		state=FAILED
		cp "$log" "$out/failed.$(basename "$log")"
	fi
	figures=$(sed -nE 's/^ +[a-z_]+_test\.go:[0-9]+: //p' "$log" | paste -sd '|' | sed 's/|/; /g')
	printf '| %s | %s | %d s | %s |\n' "$name" "$state" $((SECONDS - began)) "$figures" >>"$out/rows"
}

# fuzz NAME PACKAGE FUNCTION: looks for inputs for FUZZ.
fuzz() {
	local began=$SECONDS log state=passed
	log=$(mktemp "$out/log.XXXXXX")
	if ! go test -run '^$' -fuzz "^$3\$" -fuzztime "$FUZZ" -fuzzminimizetime 1x "$2" >"$log" 2>&1; then
		state=FAILED
		cp "$log" "$out/failed.$3"
	fi
	printf '| %s | %s | %d s | %s |\n' "$1" "$state" $((SECONDS - began)) "$(sed -nE 's/.*execs: ([0-9]+) .*/\1 inputs/p' "$log" | tail -1)" >>"$out/rows"
}

bar '1 a receiver down, processes killed' ./cmd/nearmiss '^TestSinksKilledLoseNothing$' \
	NEARMISS_TEST_SINK_EVENTS=1000 NEARMISS_TEST_SINK_KILLS=7 NEARMISS_TEST_SINK_DOWN="$DOWN" &
bar '2 receivers that misbehave' ./stream/sink/webhook '^(TestAnswersOfAllKinds|TestReceiversThatTakeForever|TestLongAnswersCostNothing)$'
bar '2 when a failed event comes again' ./stream/sink '^TestWhenAFailedEventComesAgain$'
bar '3 signatures' ./stream/sink/webhook '^TestSignaturesVerifyByTheReferenceLibrary$'
bar '4 Mosquitto killed before its answer' ./stream/sink/mqtt '^(TestMosquittoIsKilledBetweenPublishAndAcknowledgement|TestOnlyWhatIsAcknowledgedIsDelivered)$'
bar '5 a flood is few alarms' ./stream/sink/mail '^TestAFloodIsAMailACameraAndItsEnd$' NEARMISS_TEST_SINK_FLOOD=10000
bar '6 secrets are nowhere' ./cmd/nearmiss '^TestSecretsAreNowhere$'
bar '6 secrets in errors' ./stream/sink '^TestBadSinksCostThemselves$'
bar '7 templates and addresses' ./stream/sink/webhook '^(TestTemplatesAreBounded|TestNamesDoNotLeadAroundTheGuard|TestForbiddenAddressesAreNotDialled)$'
fuzz '7 templates, at random' ./stream/sink/webhook FuzzTemplate
fuzz '7 addresses, at random' ./stream/sink/webhook FuzzURL
bar '8 what the role may' ./stream/broker '^TestDenialMatrix$'
bar '8 and that it is enough' ./cmd/nearmiss '^TestEachRoleDoesItsJobWithItsRights$'
bar 'PLC: score to coil' ./stream/sink/plc '^TestAModbusControllerGetsEveryVerdict$' NEARMISS_TEST_PLC_FRAMES=10000
bar 'PLC: nothing stale' ./stream/sink/plc 'Stale' NEARMISS_TEST_PLC_FRAMES=10000
if "$PYTHON" -c 'import asyncua' 2>/dev/null; then
	bar 'PLC: encrypted OPC UA' ./stream/sink/plc '^TestAnEncryptedOPCUASession$' NEARMISS_TEST_OPCUA="$PYTHON"
else
	echo "| PLC: encrypted OPC UA | skipped | 0 s | needs Python with asyncua |" >>"$out/rows"
fi
wait

printf '%s, %d s in all, %s cores\n\n| bar | result | time | figures |\n|---|---|---|---|\n' "$(date -u +%F)" "$SECONDS" "$(nproc)"
sort "$out/rows"
cat "$out"/failed.* 2>/dev/null
! grep -qE '\| (FAILED|nothing ran) \|' "$out/rows"
