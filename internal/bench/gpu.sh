#!/bin/bash
# Shows that an accelerator gives the CPU's scores, and how fast it is beside the CPU, in
# a few minutes. `make gpu-check PICTURES=DIR` runs it; DIR has 20 pictures or more.
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

scores() { "$program" score --release "$temp/release" --device "$1" --json "$pictures" | sed -n 's/.*"score":\([-+.0-9eE]*\).*/\1/p'; }

for arch in tiny small base; do
  "$program" backbone random --arch $arch --out "$temp/$arch.onnx" --json >/dev/null
done
"$program" fit --normals "$pictures" --backbone "$temp/tiny.onnx" --out "$temp/release" --seed 1 --frame all --json >/dev/null
paste <(scores cpu) <(scores "$device") | awk -v device="$device" '
  { d = $1 - $2; if (d < 0) d = -d; s = $1 < 0 ? -$1 : $1; if (s < 1e-6) s = 1e-6; if (NF != 2 || d != d) bad = 1; if (d / s > worst) worst = d / s; n++ }
  END {
    printf "scores of %d pictures by %s and by cpu: at most %.2g apart\n", n, device, worst
    if (n == 0 || bad || worst > 1e-3) { print "gpu-check: 0.001 is allowed" > "/dev/stderr"; exit 1 }
  }'

for d in cpu "$device"; do
  for arch in tiny small base; do
    for batch in 1 32; do
      [ $d-$batch != cpu-32 ] || continue
      printf '%s, batch %d, ' $arch $batch
      "$program" bench embed --backbone "$temp/$arch.onnx" --images "$pictures" --device $d --batch $batch --time 3s --alone
    done
  done
  "$program" bench score --release "$temp/release" --images "$pictures" --device $d --time 5s
  "$program" bench train --device $d --rounds 1
done
