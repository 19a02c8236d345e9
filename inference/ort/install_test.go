package ort

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

const childVariable = "NEARMISS_TEST_INSTALL_CHILD"

// TestMain also serves as the child process of the tests below: an install
// loads the library only in a process that has none.
func TestMain(m *testing.M) {
	if from := os.Getenv(childVariable); from != "" {
		path, err := Install(context.Background(), InstallOptions{From: from})
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		version, loaded, err := Loaded()
		fmt.Println(path, version, loaded == path, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child installs from a file in a process of its own.
func child(t *testing.T, cache, from string) (string, error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+from, EnvCache+"="+cache, EnvLibrary+"=")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func located(t *testing.T) string {
	t.Helper()
	path, err := locate()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInstallFromALibrary(t *testing.T) {
	cache := t.TempDir()
	lib := located(t)
	want := filepath.Join(cache, "onnxruntime", Version, runtime.GOOS+"-"+runtime.GOARCH, libraryName(runtime.GOOS))
	var wg sync.WaitGroup
	for range 3 { // at the same time
		wg.Go(func() {
			out, err := child(t, cache, lib)
			if err != nil || out != want+" "+Version+" true <nil>" {
				t.Errorf("got %q, %v", out, err)
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(filepath.Dir(want))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 2 || left[1].Name() != filepath.Base(chosenPath(want)) {
		t.Errorf("the installs left %v", left)
	}
	t.Setenv(EnvCache, cache)
	t.Setenv(EnvLibrary, "")
	if got, err := locate(); err != nil || got != want {
		t.Errorf("located %s, %v, want %s", got, err, want)
	}
}

func TestInstallRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole, err := os.ReadFile(located(t))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, want string }{
		"a file that is no library":      {write("text.so", []byte("hello")), "not a"},
		"half a library":                 {write("half.so", whole[:len(whole)/2]), "error"},
		"a program":                      {self, ""},
		"a file that is not there":       {filepath.Join(dir, "none.so"), "no such file"},
		"a folder":                       {dir, "is not a file"},
		"a package with another digest":  {write("other.tgz", []byte("not the package")), "SHA-256"},
		"an empty file named as package": {write("empty.tgz", nil), "SHA-256"},
	} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			out, err := child(t, cache, c.from)
			if err == nil || !strings.Contains(out, c.want) || strings.Contains(out, "\n") {
				t.Errorf("got %q, %v", out, err)
			}
			left, _ := filepath.Glob(filepath.Join(cache, "onnxruntime", "*", "*", "*"))
			if len(left) != 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

// archive writes a package with one member and returns its path and digest.
func archive(t *testing.T, member string, content []byte) (path, digest string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "p.tgz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zw, err := gzip.NewWriterLevel(f, gzip.NoCompression) // quick
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(zw)
	for _, m := range []struct {
		name string
		data []byte
	}{{"package/README.md", []byte("text")}, {member, content}} {
		if err := errors.Join(tw.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.data)), Typeflag: tar.TypeReg})); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return path, hex.EncodeToString(sum[:])
}

func TestInstallFromThePackage(t *testing.T) {
	lib, err := os.ReadFile(located(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := Load(); err != nil { // before the cache moves
		t.Fatal(err)
	}
	sum := sha256.Sum256(lib)
	member := "package/bin/" + libraryName(runtime.GOOS)
	path, digest := archive(t, member, lib)
	platform := runtime.GOOS + "/" + runtime.GOARCH
	in := installer{
		goos: runtime.GOOS, goarch: runtime.GOARCH, digest: digest,
		libraries: map[string]packagedLibrary{platform: {member, hex.EncodeToString(sum[:])}},
	}
	packs := 0
	in.pack = func(context.Context, string) (string, error) { packs++; return path, nil }
	ctx := context.Background()
	t.Run("it is fetched, checked and put in place once", func(t *testing.T) {
		t.Setenv(EnvCache, t.TempDir())
		stages := map[string]bool{}
		for range 2 {
			got, err := in.install(ctx, InstallOptions{Progress: func(s string, done, total int64) {
				stages[s] = true
				if total > 0 && done > total {
					t.Errorf("%s: %d of %d", s, done, total)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(got)
			if err != nil || len(b) != len(lib) {
				t.Fatalf("read %d bytes, %v", len(b), err)
			}
		}
		if packs != 1 {
			t.Errorf("it was fetched %d times", packs)
		}
		for _, s := range []string{"check the package", "extract the library", "check the library"} {
			if !stages[s] {
				t.Errorf("no progress was told of %q", s)
			}
		}
	})
	t.Run("another library in it is refused", func(t *testing.T) {
		t.Setenv(EnvCache, t.TempDir())
		in := in
		in.libraries = map[string]packagedLibrary{platform: {member, "00"}}
		if _, err := in.install(ctx, InstallOptions{}); err == nil || !strings.Contains(err.Error(), "SHA-256") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a missing library in it is named", func(t *testing.T) {
		t.Setenv(EnvCache, t.TempDir())
		in := in
		in.libraries = map[string]packagedLibrary{platform: {"package/other.so", "00"}}
		if _, err := in.install(ctx, InstallOptions{}); err == nil || !strings.Contains(err.Error(), "no package/other.so") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a platform without a library is told what to do", func(t *testing.T) {
		t.Setenv(EnvCache, t.TempDir())
		in := in
		in.goos, in.goarch = "darwin", "amd64"
		if _, err := in.install(ctx, InstallOptions{}); err == nil || !strings.Contains(err.Error(), "--from FILE") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a cancelled install leaves nothing", func(t *testing.T) {
		cache := t.TempDir()
		t.Setenv(EnvCache, cache)
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := in.install(ctx, InstallOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		left, _ := filepath.Glob(filepath.Join(cache, "onnxruntime", "*", "*", "*"))
		if len(left) != 0 {
			t.Errorf("it left %v", left)
		}
	})
}

func TestWhatProvidersLack(t *testing.T) {
	for said, want := range map[string]string{
		"Error loading provider: Failed to load library /x/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: No such file or directory": "its library libcublasLt.so.13 is not found: install it, or name its folder in LD_LIBRARY_PATH",
		"Failed to load /x/libonnxruntime_providers_shared.so with error: /x/libonnxruntime_providers_shared.so: cannot open shared object file: No such file or directory":           `the library is built without it: "nearmiss runtime install --cuda" gets one that has it`,
		"CUDA execution provider is not enabled in this build.": `the library is built without it: "nearmiss runtime install --cuda" gets one that has it`,
		"CUDA failure 100: no CUDA-capable device is detected":  "CUDA failure 100: no CUDA-capable device is detected",
	} {
		if got := reason(deviceError(Device{Kind: "cuda"}, errors.New(said))); got != want {
			t.Errorf("%q:\n%s, want\n%s", said, got, want)
		}
	}
}

// wheelWith writes a wheel with these members and returns its path and digest.
func wheelWith(t *testing.T, members map[string][]byte) (path, digest string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "onnxruntime_gpu.whl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	for name, b := range members {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	digest, err = fileDigest(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return path, digest
}

func TestInstallForCUDA(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the wheel's library is one for Linux")
	}
	lib, err := os.ReadFile(located(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := Load(); err != nil { // before the cache moves
		t.Fatal(err)
	}
	const capi = "onnxruntime/capi/"
	whole := map[string][]byte{
		capi + "libonnxruntime.so." + Version:                           lib,
		capi + "libonnxruntime_providers_cuda.so":                       []byte("cuda"),
		capi + "libonnxruntime_providers_shared.so":                     []byte("shared"),
		capi + "onnxruntime_pybind11_state.cpython-312-x86_64-linux.so": []byte("python"),
		"elsewhere/libonnxruntime_providers_tensorrt.so":                []byte("no"),
		"onnxruntime/capi/../../../libonnxruntime_providers_evil.so":    []byte("no"),
	}
	path, digest := wheelWith(t, whole)
	sum := sha256.Sum256(lib)
	tgz, tgzDigest := archive(t, "package/lib.so", lib)
	in := installer{
		goos: "linux", goarch: "amd64", cudaDigest: digest, digest: tgzDigest,
		libraries: map[string]packagedLibrary{"linux/amd64": {"package/lib.so", hex.EncodeToString(sum[:])}},
		wheel:     func(context.Context, string) (string, error) { return path, nil },
		pack:      func(context.Context, string) (string, error) { return tgz, nil },
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the wheel is for amd64")
	}
	files := func(target string) (names []string) {
		entries, err := os.ReadDir(filepath.Dir(target))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	cuda := []string{libraryName("linux"), libraryName("linux") + ".chosen", "libonnxruntime_providers_cuda.so", "libonnxruntime_providers_shared.so"}
	t.Run("its library and providers, and nothing else of it", func(t *testing.T) {
		for name, o := range map[string]InstallOptions{"fetched": {CUDA: true}, "given": {From: path}} {
			t.Run(name, func(t *testing.T) {
				t.Setenv(EnvCache, t.TempDir())
				got, err := in.install(t.Context(), o)
				if err != nil || !slices.Equal(files(got), cuda) {
					t.Fatalf("%v, %v", files(got), err)
				}
			})
		}
	})
	t.Run("it stays until it is forced away, whole", func(t *testing.T) {
		t.Setenv(EnvCache, t.TempDir())
		got, err := in.install(t.Context(), InstallOptions{CUDA: true})
		if err != nil {
			t.Fatal(err)
		}
		other := in
		other.libraries = map[string]packagedLibrary{"linux/amd64": {"package/lib.so", "00"}} // another than what is there
		if _, err := other.install(t.Context(), InstallOptions{}); err != nil || !slices.Equal(files(got), cuda) {
			t.Errorf("%v, %v", files(got), err)
		}
		if _, err := in.install(t.Context(), InstallOptions{Force: true}); err != nil || !slices.Equal(files(got), cuda[:1]) {
			t.Errorf("%v, %v", files(got), err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		withoutLibrary, _ := wheelWith(t, map[string][]byte{capi + "libonnxruntime_providers_cuda.so": nil})
		half := filepath.Join(t.TempDir(), "half.whl")
		if err := os.WriteFile(half, lib[:1000], 0o600); err != nil {
			t.Fatal(err)
		}
		wrong, mac := in, in
		wrong.cudaDigest = strings.Repeat("0", 64)
		mac.goos = "darwin"
		for name, c := range map[string]struct {
			in   installer
			o    InstallOptions
			want string
		}{
			"another wheel than the known one": {wrong, InstallOptions{CUDA: true}, "SHA-256"},
			"a wheel without a library":        {in, InstallOptions{From: withoutLibrary}, "libonnxruntime.so"},
			"half a wheel":                     {in, InstallOptions{From: half}, "read the wheel"},
			"another platform":                 {mac, InstallOptions{CUDA: true}, "no package for darwin"},
		} {
			t.Run(name, func(t *testing.T) {
				cache := t.TempDir()
				t.Setenv(EnvCache, cache)
				if _, err := c.in.install(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v", err)
				}
				if left, _ := filepath.Glob(filepath.Join(cache, "onnxruntime", "*", "*", "*")); len(left) != 0 {
					t.Errorf("it left %v", left)
				}
			})
		}
	})
}

func TestInstallWithoutNpm(t *testing.T) {
	t.Setenv(EnvCache, t.TempDir())
	t.Setenv("PATH", t.TempDir())
	if _, err := npmPack(context.Background(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "npm is not found") {
		t.Errorf("got %v", err)
	}
}

// TestFetchForAnArchive: the library of another platform goes to a file, and the
// program finds one that lies beside it.
func TestFetchForAnArchive(t *testing.T) {
	lib, err := os.ReadFile(located(t))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(lib)
	path, digest := archive(t, "package/lib", lib)
	platform := runtime.GOOS + "/" + runtime.GOARCH
	in := installer{
		digest:    digest,
		libraries: map[string]packagedLibrary{platform: {"package/lib", hex.EncodeToString(sum[:])}, "plan9/mips": {"package/lib", hex.EncodeToString(sum[:])}},
		pack:      func(context.Context, string) (string, error) { return path, nil },
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "nearmiss")
	file := bundledPath(program, runtime.GOOS)
	quiet := func(string, int64, int64) {}
	if err := in.fetch(t.Context(), platform, file, quiet); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || sha256.Sum256(b) != sum {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := in.fetch(t.Context(), "plan9/mips", filepath.Join(dir, "other"), quiet); err == nil {
		t.Error("a library for this machine passed for one of another")
	}
	if err := in.fetch(t.Context(), "windows/amd64", filepath.Join(dir, "other"), quiet); err == nil || !strings.Contains(err.Error(), "windows/amd64") {
		t.Error(err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	// A link on the search path leads to the program's own folder.
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "nearmiss")
	if err := os.Symlink(program, link); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := bundledPath(link, runtime.GOOS); got != real {
		t.Errorf("%s, want %s", got, real)
	}
}
