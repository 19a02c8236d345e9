#!/bin/bash
# Shows that an accelerator gives the CPU's scores, in 32 and in 16 bits, captured in CUDA
# graphs or not, that training gives the same with its weights on the device, and how fast
# all of it is beside the CPU, in a few minutes. `make gpu-check PICTURES=DIR` runs it; DIR
# has 20 pictures or more. The tests are programs that it builds into a folder beside the
# program; without them the rest is done.
# DEVICE is cuda where nothing else is said (tensorrt, cuda:1; cpu tries the script), and
# WHEEL the onnxruntime-gpu wheel where pip reaches no index.
set -euo pipefail
program=${1:?the program} pictures=${2:?a folder of pictures} device=${DEVICE:-cuda}
# The library for accelerators does not take the place of this user's.
export NEARMISS_CACHE=${NEARMISS_CACHE:-$PWD/.cache/gpu-check} NEARMISS_LOG_LEVEL=warn
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
bad=0
complain() { echo "gpu-check: $*" >&2; bad=1; }

usable() { "$program" runtime info | grep -Eq "^${device%%:*} +usable"; }
usable || "$program" runtime install ${WHEEL:+--from "$WHEEL"} $([ -n "${WHEEL:-}" ] || echo --cuda)
"$program" runtime info
usable || { echo "gpu-check: device $device cannot be used here; runtime info says why" >&2; exit 1; }
# CUDA graphs are CUDA's; on the CPU the same way of the data is tried, with nothing recorded.
graphs=("$device+graph")
[[ $device != tensorrt* ]] || graphs=()

# What is not begun after so many seconds is left out and said to be.
late() { [ $SECONDS -ge ${LIMIT:-420} ] && echo "left out, for time: $*"; }

# Memory of the device, captured runs, swaps of releases and training, on the device.
for t in $(dirname "$program")/gpu/*.test; do
  [ -x "$t" ] && [ ${#graphs[@]} -gt 0 ] || continue
  began=$SECONDS
  if said=$(NEARMISS_TEST_DEVICE=$device timeout 90 "$t" -test.run '^Test(Memory.*|Captured.*|SwapsOfCaptured.*|PlacesAgree)$' 2>&1); then
    echo "$(basename "$t") on $device: passed in $((SECONDS - began)) s"
  else
    echo "$said" | tail -n 40
    complain "$(basename "$t") fails on $device"
  fi
done

scores() { "$program" score --release "$1" --device "$2" --batch "$3" --json "$pictures" | sed -n 's/.*"score":\([-+.0-9eE]*\).*/\1/p'; }

# agree RELEASE ALLOWED: the device's scores are the CPU's, to this relative difference, one
# by one and in batches, captured or not.
agree() {
  scores "$1" cpu 4 >"$temp/cpu"
  for d in "$device" ${graphs[@]+"${graphs[@]}"}; do
    for batch in 1 8; do
      scores "$1" "$d" $batch 2>"$temp/warned" | paste "$temp/cpu" - | awk -v device="$d" -v batch=$batch -v what="$(basename "$1")" -v allowed="$2" '
        { d = $1 - $2; if (d < 0) d = -d; s = $1 < 0 ? -$1 : $1; if (s < 1e-6) s = 1e-6; if (NF != 2 || d != d) bad = 1; if (d / s > worst) worst = d / s; n++ }
        END {
          printf "%s: scores of %d pictures by %s in batches of %d and by cpu: at most %.2g apart\n", what, n, device, batch, worst
          exit n == 0 || bad || worst > allowed
        }' || complain "$2 is allowed"
      ! grep -F 'not captured' "$temp/warned" >&2 || complain "runs of $1 are not captured on $d"
    done
  done
}

for arch in tiny base; do
  "$program" backbone random --arch $arch --out "$temp/$arch.onnx" --json >/dev/null
done
fit() { "$program" fit --normals "$pictures" --seed 1 --frame all --device "$device" "$@"; }
fit --backbone "$temp/tiny.onnx" --out "$temp/fp32" --json >/dev/null
agree "$temp/fp32" 0.001
fit --backbone "$temp/tiny.onnx" --out "$temp/fp16" --precision fp16 --json >/dev/null
agree "$temp/fp16" 0.02
# A choice takes six held-out pictures.
said=$(fit --backbone "$temp/base.onnx" --out "$temp/auto" --precision auto --score class --held-out 0.3 2>&1) || { echo "$said" >&2; exit 1; }
echo "fit --precision auto for base: $(sed -n 's/^precision: //p' <<<"$said")"

measure() {
  late "$@" && return
  "$program" bench "$@" 2>"$temp/errors" || { cat "$temp/errors" >&2; complain "bench $* fails"; }
}

embed() { # DEVICE ARCH PRECISION BATCH
  printf '%s, %s, batch %d, ' $2 $3 $4
  measure embed --backbone "$temp/$2.onnx" --images "$pictures" --device $1 --batch $4 --precision $3 --time 2s --alone
}

for arch in tiny base; do
  for precision in fp32 fp16; do
    for batch in 1 32; do
      for d in "$device" ${graphs[@]+"${graphs[@]}"}; do
        embed $d $arch $precision $batch
      done
    done
  done
done
for network in "" "--network small"; do
  for state in host device; do
    measure train --device "$device" $network --state $state ${network:+--single} --rounds 2
  done
done
for d in "$device" ${graphs[@]+"${graphs[@]}"} cpu; do
  measure score --release "$temp/fp32" --images "$pictures" --device $d --time 5s
done
if [ "$device" != cpu ]; then # slow there
  for arch in tiny base; do embed cpu $arch fp32 1; done
  measure train --device cpu --rounds 1
fi
exit $bad
