#!/bin/bash
# usage: deployments/dist.sh VERSION LDFLAGS OS/ARCH…      (make dist calls it)
#
# Writes dist/nearmiss-VERSION-OS-ARCH.tar.gz: the program, ONNX Runtime's library,
# which it finds beside itself, licences, and the SHA-256 of each file; and
# dist/SHA256SUMS of the archives. Whoever unpacks one needs neither Go nor npm.
#
# cgo needs a C compiler for the target. For this machine's own it is the usual one;
# for linux/arm64 on another, Debian's gcc-aarch64-linux-gnu; others are named by
# CC_OS_ARCH. Archives for macOS are made on a Mac: its linker needs Apple's SDK.
# ONNX Runtime is not released for Intel Macs any more: such an archive has no library,
# and takes one of the user's own (nearmiss runtime install --from FILE).
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1 ldflags=$2
shift 2
sums() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }

licences() { # of the modules that the program is made of, into a folder
	go list -deps -f '{{with .Module}}{{if .Dir}}{{.Path}} {{.Dir}}{{end}}{{end}}' ./cmd/nearmiss | sort -u | while read -r path dir; do
		for f in "$dir"/LICEN[CS]E* "$dir"/COPYING* "$dir"/NOTICE*; do
			if [ -f "$f" ]; then install -m 644 -D "$f" "$1/$path/$(basename "$f")"; fi
		done
	done
	install -m 644 -D "$(go env GOROOT)/LICENSE" "$1/go/LICENSE"
	mkdir -p "$1/onnxruntime"
	cat >"$1/onnxruntime/LICENSE" <<-'MIT'
	ONNX Runtime
	MIT License

	Copyright (c) Microsoft Corporation

	Permission is hereby granted, free of charge, to any person obtaining a copy
	of this software and associated documentation files (the "Software"), to deal
	in the Software without restriction, including without limitation the rights
	to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
	copies of the Software, and to permit persons to whom the Software is
	furnished to do so, subject to the following conditions:

	The above copyright notice and this permission notice shall be included in all
	copies or substantial portions of the Software.

	THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
	IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
	FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
	AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
	LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
	OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
	SOFTWARE.
	MIT
}

for target in "$@"; do
	os=${target%/*} arch=${target#*/}
	name=nearmiss-$version-$os-$arch
	compiler=CC_${os}_$arch
	cc=${!compiler:-}
	if [ -z "$cc" ]; then
		case "$(go env GOHOSTOS)/$(go env GOHOSTARCH) $target" in
		"$target $target") cc=$(go env CC) ;;
		*" linux/arm64") cc=aarch64-linux-gnu-gcc ;;
		*" linux/amd64") cc=x86_64-linux-gnu-gcc ;;
		esac
	fi
	if [ -z "$cc" ] || ! command -v "${cc%% *}" >/dev/null; then
		echo "dist: $target needs a C compiler for it, ${cc:-which is not known here}: name it by $compiler" >&2
		exit 1
	fi
	case $os in
	linux) library=libonnxruntime.so.1 ;;
	darwin) library=libonnxruntime.1.dylib ;;
	*)
		echo "dist: $os is not supported; a camera or an alarm there can be any NATS client, such as stream/examples/nearmiss.py" >&2
		exit 1
		;;
	esac
	rm -rf "dist/$name" "dist/$name.tar.gz"
	mkdir -p "dist/$name"
	CGO_ENABLED=1 GOOS=$os GOARCH=$arch CC=$cc go build -trimpath -ldflags "$ldflags" -o "dist/$name/nearmiss" ./cmd/nearmiss
	if [ "$target" != darwin/amd64 ]; then bin/nearmiss runtime fetch "$target" --out "dist/$name/$library"; fi
	cp LICENSE README.md stream/examples/nearmiss.py "dist/$name"
	licences "dist/$name/LICENSES"
	(cd "dist/$name" && find . -type f ! -name SHA256SUMS | sort | while read -r f; do sums "$f"; done >SHA256SUMS)
	tar -C dist -czf "dist/$name.tar.gz" "$name"
	rm -rf "dist/${name:?}"
done
(cd dist && sums ./*.tar.gz | tee SHA256SUMS)
