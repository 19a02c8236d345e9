#!/bin/bash
# Shows that an accelerator gives the CPU's scores, in 32 and in 16 bits, and how fast it is
# beside the CPU, in a few minutes. `make gpu-check PICTURES=DIR` runs it; DIR has 20 pictures or more.
# DEVICE is cuda where nothing else is said (tensorrt, cuda:1; cpu tries the script), and
# WHEEL the onnxruntime-gpu wheel where pip reaches no index.
set -euo pipefail
program=${1:?the program} pictures=${2:?a folder of pictures} device=${DEVICE:-cuda}
# The library for accelerators does not take the place of this user's.
export NEARMISS_CACHE=${NEARMISS_CACHE:-$PWD/.cache/gpu-check} NEARMISS_LOG_LEVEL=warn
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

usable() { "$program" runtime info | grep -Eq "^${device%%:*} +usable"; }
usable || "$program" runtime install ${WHEEL:+--from "$WHEEL"} $([ -n "${WHEEL:-}" ] || echo --cuda)
"$program" runtime info
usable || { echo "gpu-check: device $device cannot be used here; runtime info says why" >&2; exit 1; }

scores() { "$program" score --release "$1" --device "$2" --json "$pictures" | sed -n 's/.*"score":\([-+.0-9eE]*\).*/\1/p'; }

# agree RELEASE ALLOWED: the device's scores are the CPU's, to this relative difference.
agree() {
  paste <(scores "$1" cpu) <(scores "$1" "$device") | awk -v device="$device" -v what="$(basename "$1")" -v allowed="$2" '
    { d = $1 - $2; if (d < 0) d = -d; s = $1 < 0 ? -$1 : $1; if (s < 1e-6) s = 1e-6; if (NF != 2 || d != d) bad = 1; if (d / s > worst) worst = d / s; n++ }
    END {
      printf "%s: scores of %d pictures by %s and by cpu: at most %.2g apart\n", what, n, device, worst
      if (n == 0 || bad || worst > allowed) { print "gpu-check: " allowed " is allowed" > "/dev/stderr"; exit 1 }
    }'
}

for arch in tiny small base; do
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

# What is not begun after so many seconds is left out and said to be.
measure() {
  [ $SECONDS -lt ${LIMIT:-420} ] || { echo "left out, for time: $*"; return; }
  "$program" bench "$@"
}

for d in "$device" cpu; do
  for arch in tiny small base; do
    for precision in fp32 fp16; do
      for batch in 1 32; do
        [ $d != cpu ] || [ $precision-$batch = fp32-1 ] || continue # slow there
        printf '%s, %s, batch %d, ' $arch $precision $batch
        measure embed --backbone "$temp/$arch.onnx" --images "$pictures" --device $d --batch $batch --precision $precision --time 3s --alone
      done
    done
  done
  measure score --release "$temp/fp32" --images "$pictures" --device $d --time 5s
  measure train --device $d --rounds 1
done
