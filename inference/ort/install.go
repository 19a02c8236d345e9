package ort

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	onnxruntime "github.com/yalue/onnxruntime_go"

	"github.com/nearmiss/nearmiss/internal/wheel"
)

// The npm package that carries the library for all platforms. npm is run as a
// child process, so that the user's own npm configuration (registry, proxy,
// certificates, cache) decides where it comes from.
const (
	packageSpec   = "onnxruntime-node@" + Version
	packageDigest = "c3779c01c59832f8c03e2c392ac3af10bf08579f1822e8b1c63cc451edb302a2"
)

// packagedLibrary is one library in the package.
type packagedLibrary struct {
	member string // its path in the package
	digest string // SHA-256 of the library
}

// packaged has the libraries of the package by GOOS/GOARCH. There is none for
// Intel Macs: ONNX Runtime 1.27 is not released for them.
var packaged = map[string]packagedLibrary{
	"linux/amd64": {
		"package/bin/napi-v6/linux/x64/libonnxruntime.so.1",
		"d8aff4aa8abee8fb2abb2f2f2459ffc94461e781e41b9f7c072829dd0d470221",
	},
	"linux/arm64": {
		"package/bin/napi-v6/linux/arm64/libonnxruntime.so.1",
		"c36bc200e7e6c093b8abb0b34590fbdd8c52fd3fb5e33795b9523ffdde2fce0f",
	},
	"darwin/arm64": {
		"package/bin/napi-v6/darwin/arm64/libonnxruntime.1.dylib",
		"89f692a3a1a224e4ad0b796b0e7c0bd81113b0741bfe84211eceef14d05a9e59",
	},
}

// The wheel of the build for NVIDIA's accelerators. It asks for CUDA 13 and
// cuDNN 9, which it does not carry.
const cudaDigest = "b2b8d6afabf3c23c2c698639a16388816dc7298f388a9ddddf504b283990ea01"

var cudaWheel = wheel.Spec{
	Name: "onnxruntime-gpu", Version: Version,
	Python: "3.12", Platforms: []string{"manylinux_2_28_x86_64", "manylinux_2_27_x86_64"},
}

// InstallOptions says what Install installs. The zero value is the pinned
// package, through npm.
type InstallOptions struct {
	// From is a library file to install instead, or the package's own tarball
	// (.tgz) that was fetched by other means, or any wheel of onnxruntime-gpu
	// (.whl). Beside a library, its provider libraries
	// (libonnxruntime_providers_*) are installed too.
	From string
	// CUDA installs the build for NVIDIA's accelerators, from its wheel, through
	// pip. There is one for linux/amd64 only.
	CUDA bool
	// Force installs again even when the pinned library is in place, or one that
	// was chosen by From or CUDA, which otherwise stays.
	Force bool
	// Progress, if set, is called with what is being done and, where they are
	// known, the bytes done and the bytes in total.
	Progress func(stage string, done, total int64)
}

// Install puts the library into the cache and returns its path, which locate
// then finds. Nothing changes unless the new library is whole and fits this
// platform; where this process has not loaded a library yet, it loads the new
// one first. Installers may run at the same time.
func Install(ctx context.Context, o InstallOptions) (string, error) {
	return installer{
		goos: runtime.GOOS, goarch: runtime.GOARCH,
		digest: packageDigest, libraries: packaged, pack: npmPack,
		cudaDigest: cudaDigest, wheel: func(ctx context.Context, dir string) (string, error) {
			return wheel.Fetch(ctx, cudaWheel, dir, `run "nearmiss runtime install --from FILE.whl"`)
		},
	}.install(ctx, o)
}

// installer has what tests replace.
type installer struct {
	goos, goarch string
	digest       string // of the package
	libraries    map[string]packagedLibrary
	// pack puts the package's tarball into dir and returns its path.
	pack func(ctx context.Context, dir string) (string, error)
	// wheel does the same for the wheel of the build for CUDA.
	wheel      func(ctx context.Context, dir string) (string, error)
	cudaDigest string // of the wheel
}

func (i installer) install(ctx context.Context, o InstallOptions) (string, error) {
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	target, err := installedPath()
	if err != nil {
		return "", fmt.Errorf("install ONNX Runtime: %w", err)
	}
	want, pinned := i.libraries[i.goos+"/"+i.goarch]
	if o.CUDA && i.goos+"/"+i.goarch != "linux/amd64" {
		return "", fmt.Errorf("install ONNX Runtime for CUDA: there is no package for %s/%s: build it, then "+
			`run "nearmiss runtime install --from FILE"`, i.goos, i.goarch)
	}
	if o.From == "" && !pinned {
		return "", fmt.Errorf("install ONNX Runtime: %s has no library for %s/%s: build or fetch one, then "+
			`run "nearmiss runtime install --from FILE"`, packageSpec, i.goos, i.goarch)
	}
	if o.From == "" && !o.CUDA && !o.Force {
		if sum, err := fileDigest(ctx, target, nil); err == nil && (sum == want.digest || sum == chosen(target)) {
			return target, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return "", fmt.Errorf("install ONNX Runtime: %w", err)
	}
	// In the target's own file system, so that a rename puts it in place.
	staging, err := os.MkdirTemp(filepath.Dir(target), ".install-")
	if err != nil {
		return "", fmt.Errorf("install ONNX Runtime: %w", err)
	}
	defer os.RemoveAll(staging)
	staged := filepath.Join(staging, filepath.Base(target))

	switch {
	case o.From == "" && o.CUDA:
		o.Progress("download "+cudaWheel.String()+" with pip (220 MB)", 0, 0)
		file, err := i.wheel(ctx, staging)
		if err == nil {
			err = i.unpackWheel(ctx, file, staged, i.cudaDigest, o)
		}
		if err != nil {
			return "", fmt.Errorf("install ONNX Runtime for CUDA: %w", err)
		}
	case strings.HasSuffix(o.From, ".whl"):
		if err := i.unpackWheel(ctx, o.From, staged, "", o); err != nil {
			return "", fmt.Errorf("install ONNX Runtime from %s: %w", o.From, err)
		}
	case o.From == "":
		o.Progress("download "+packageSpec+" with npm", 0, 0)
		archive, err := i.pack(ctx, staging)
		if err != nil {
			return "", err
		}
		err = i.extract(ctx, archive, staged, want, o)
		if err != nil {
			return "", fmt.Errorf("install ONNX Runtime from npm's %s: %w", packageSpec, err)
		}
	case isArchive(o.From):
		if !pinned {
			return "", fmt.Errorf("install ONNX Runtime: %s has no library for %s/%s: give a library file", o.From, i.goos, i.goarch)
		}
		if err := i.extract(ctx, o.From, staged, want, o); err != nil {
			return "", fmt.Errorf("install ONNX Runtime from %s: %w", o.From, err)
		}
	default:
		if err := copyLibrary(ctx, o.From, staged, o); err != nil {
			return "", fmt.Errorf("install ONNX Runtime from %s: %w", o.From, err)
		}
	}
	o.Progress("check the library", 0, 0)
	if err := checkLibrary(staged, i.goos, i.goarch); err != nil {
		return "", fmt.Errorf("install ONNX Runtime: %w", err)
	}
	if i.goos == runtime.GOOS && i.goarch == runtime.GOARCH {
		if err := tryLoad(staged, target); err != nil {
			return "", fmt.Errorf("install ONNX Runtime: %w", err)
		}
	}
	// Providers of another build do not fit. The library goes last: once it is
	// there, its providers are.
	if err := clearOld(target); err != nil {
		return "", fmt.Errorf("install ONNX Runtime: %w", err)
	}
	if o.From != "" || o.CUDA {
		sum, err := fileDigest(ctx, staged, nil)
		if err == nil {
			err = os.WriteFile(chosenPath(target), []byte(sum+"\n"), 0o644)
		}
		if err != nil {
			return "", fmt.Errorf("install ONNX Runtime: %w", err)
		}
	}
	entries, err := os.ReadDir(staging)
	if err != nil {
		return "", fmt.Errorf("install ONNX Runtime: %w", err)
	}
	for _, e := range entries {
		if isProvider(e.Name()) {
			if err := os.Rename(filepath.Join(staging, e.Name()), filepath.Join(filepath.Dir(target), e.Name())); err != nil {
				return "", fmt.Errorf("install ONNX Runtime: %w", err)
			}
		}
	}
	if err := os.Rename(staged, target); err != nil {
		return "", fmt.Errorf("install ONNX Runtime: %w", err)
	}
	return target, nil
}

// chosenPath is where the digest of a library that somebody chose is kept.
func chosenPath(target string) string { return target + ".chosen" }

func chosen(target string) string {
	b, err := os.ReadFile(chosenPath(target))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// clearOld removes what belongs to the library that is replaced.
func clearOld(target string) error {
	old, err := filepath.Glob(filepath.Join(filepath.Dir(target), "libonnxruntime_providers_*"))
	if err != nil {
		return err
	}
	for _, f := range append(old, chosenPath(target)) {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// npmPack fetches the package as a tarball.
func npmPack(ctx context.Context, dir string) (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", errors.New("install ONNX Runtime: npm is not found: install Node.js with npm, or fetch the package " +
			packageSpec + ` elsewhere and run "nearmiss runtime install --from FILE"`)
	}
	cmd := exec.CommandContext(ctx, npm, "pack", packageSpec, "--ignore-scripts", "--loglevel=error", "--pack-destination", dir)
	cmd.Dir = dir // not in a project: its .npmrc is not ours
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("install ONNX Runtime: npm pack %s: %w", packageSpec, ctx.Err())
		}
		reason := strings.Join(strings.Fields(stderr.String()), " ")
		if len(reason) > 400 {
			reason = reason[:400] + "…"
		}
		return "", fmt.Errorf("install ONNX Runtime: npm pack %s: %w: %s: check npm's configuration and network, or "+
			`fetch the package elsewhere and run "nearmiss runtime install --from FILE"`, packageSpec, err, reason)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("install ONNX Runtime: npm pack %s left %d packages in %s, want 1", packageSpec, len(found), dir)
	}
	return found[0], nil
}

func isArchive(name string) bool {
	return strings.HasSuffix(name, ".tgz") || strings.HasSuffix(name, ".tar.gz")
}

func isProvider(name string) bool {
	return strings.HasPrefix(name, "libonnxruntime_providers_")
}

// extract checks the whole package before it reads anything out of it.
func (i installer) extract(ctx context.Context, archive, dst string, want packagedLibrary, o InstallOptions) error {
	sum, err := fileDigest(ctx, archive, func(done, total int64) { o.Progress("check the package", done, total) })
	if err != nil {
		return err
	}
	if sum != i.digest {
		return fmt.Errorf("the package's SHA-256 is %s, want %s: it is not %s", sum, i.digest, packageSpec)
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("no %s in the package", want.member)
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg && path.Clean(h.Name) == want.member {
			sum, err := writeFile(ctx, dst, tr, h.Size, func(done int64) { o.Progress("extract the library", done, h.Size) })
			if err == nil && sum != want.digest {
				err = fmt.Errorf("the SHA-256 of %s is %s, want %s", want.member, sum, want.digest)
			}
			return err
		}
	}
}

// unpackWheel takes the library and its providers out of a wheel, which is a ZIP
// archive, after its digest was checked; "" is any.
func (i installer) unpackWheel(ctx context.Context, file, dst, digest string, o InstallOptions) error {
	if digest != "" {
		sum, err := fileDigest(ctx, file, func(done, total int64) { o.Progress("check the package", done, total) })
		if err != nil {
			return err
		}
		if sum != digest {
			return fmt.Errorf("the package's SHA-256 is %s, want %s: it is not the %s that is known", sum, digest, cudaWheel)
		}
	}
	z, err := zip.OpenReader(file)
	if err != nil {
		return fmt.Errorf("read the wheel: %w", err)
	}
	defer z.Close()
	found := false
	for _, f := range z.File {
		dir, name := path.Split(f.Name)
		if dir != "onnxruntime/capi/" || !f.Mode().IsRegular() {
			continue
		}
		to := filepath.Join(filepath.Dir(dst), name)
		switch {
		case strings.HasPrefix(name, "libonnxruntime.so."):
			if found {
				return errors.New("the wheel has two libraries")
			}
			found, to = true, dst
		case !isProvider(name):
			continue
		}
		if f.UncompressedSize64 > maxLibrary {
			return fmt.Errorf("%s in the wheel is %d bytes long", name, f.UncompressedSize64)
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		size := int64(f.UncompressedSize64)
		_, err = writeFile(ctx, to, r, size, func(done int64) { o.Progress("extract "+name, done, size) })
		r.Close()
		if err != nil {
			return err
		}
	}
	if !found {
		return errors.New("no onnxruntime/capi/libonnxruntime.so.* in the wheel: give one of onnxruntime-gpu for Linux")
	}
	return nil
}

// maxLibrary bounds what is unpacked of a wheel.
const maxLibrary = 2 << 30

// copyLibrary copies a library and the provider libraries beside it.
func copyLibrary(ctx context.Context, src, dst string, o InstallOptions) error {
	siblings, err := filepath.Glob(filepath.Join(filepath.Dir(src), "libonnxruntime_providers_*"))
	if err != nil {
		return err
	}
	pairs := [][2]string{{src, dst}}
	for _, s := range siblings {
		pairs = append(pairs, [2]string{s, filepath.Join(filepath.Dir(dst), filepath.Base(s))})
	}
	for _, p := range pairs {
		f, err := os.Open(p[0])
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a file", p[0])
		}
		if err == nil {
			_, err = writeFile(ctx, p[1], f, info.Size(), func(done int64) {
				o.Progress("copy "+filepath.Base(p[0]), done, info.Size())
			})
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// writeFile copies size bytes to a new file, syncs it and returns its SHA-256.
func writeFile(ctx context.Context, dst string, r io.Reader, size int64, progress func(done int64)) (string, error) {
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	n, err := copyContext(ctx, io.MultiWriter(f, h), r, progress)
	if err == nil && n != size {
		err = fmt.Errorf("write %s: got %d bytes, want %d", dst, n, size)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return hex.EncodeToString(h.Sum(nil)), err
}

func fileDigest(ctx context.Context, name string, progress func(done, total int64)) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = copyContext(ctx, h, f, func(done int64) {
		if progress != nil {
			progress(done, info.Size())
		}
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

func copyContext(ctx context.Context, w io.Writer, r io.Reader, progress func(done int64)) (int64, error) {
	var done int64
	for {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		n, err := io.CopyN(w, r, 1<<20)
		done += n
		progress(done)
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
}

// checkLibrary looks into the file, without running anything of it: is it a
// shared library for this platform, and is it ONNX Runtime?
func checkLibrary(name, goos, goarch string) error {
	const symbol = "OrtGetApiBase"
	switch goos {
	case "linux":
		f, err := elf.Open(name)
		if err != nil {
			return fmt.Errorf("%s is not a Linux library: %w", filepath.Base(name), err)
		}
		defer f.Close()
		want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[goarch]
		if f.Machine != want {
			return fmt.Errorf("the library is for %s, this machine is %s", f.Machine, want)
		}
		symbols, err := f.DynamicSymbols()
		if err != nil {
			return fmt.Errorf("read the library's symbols: %w", err)
		}
		if !slices.ContainsFunc(symbols, func(s elf.Symbol) bool { return s.Name == symbol }) {
			return fmt.Errorf("the file is a library, but not ONNX Runtime: it has no %s", symbol)
		}
	case "darwin":
		f, err := macho.Open(name)
		if err != nil {
			return fmt.Errorf("%s is not a macOS library for one processor: %w", filepath.Base(name), err)
		}
		defer f.Close()
		want := map[string]macho.Cpu{"amd64": macho.CpuAmd64, "arm64": macho.CpuArm64}[goarch]
		if f.Cpu != want {
			return fmt.Errorf("the library is for %s, this machine is %s", f.Cpu, want)
		}
		if f.Symtab == nil || !slices.ContainsFunc(f.Symtab.Syms, func(s macho.Symbol) bool { return s.Name == "_"+symbol }) {
			return fmt.Errorf("the file is a library, but not ONNX Runtime: it has no %s", symbol)
		}
	default:
		return fmt.Errorf("%s is not supported: use Linux or macOS", goos)
	}
	return nil
}

// tryLoad loads a staged library, unless this process already has one.
func tryLoad(staged, target string) error {
	environment.Lock()
	defer environment.Unlock()
	if environment.path != "" {
		return nil
	}
	if err := loadLocked(staged); err != nil {
		return err
	}
	environment.path = target
	if v := onnxruntime.GetVersion(); v == "" {
		return errors.New("the library does not report its version")
	}
	return nil
}
