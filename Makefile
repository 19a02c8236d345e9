# Everything a developer or a user runs. `make help` lists the targets.
SHELL := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION) -X main.commit=$(COMMIT)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: build
build: ## build bin/nearmiss
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/nearmiss ./cmd/nearmiss

.PHONY: lint
lint: ## formatting, go vet and staticcheck
	@bad=$$(go tool gofumpt -l cmd stream inference bank training 2>/dev/null | grep -v '\.pb\.go$$'); \
	  if [ -n "$$bad" ]; then echo "not formatted (run: go tool gofumpt -w .):"; echo "$$bad"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

.PHONY: test
test: build ## run all tests
	go test -race ./...
