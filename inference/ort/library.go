package ort

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Version is the ONNX Runtime version that Nearmiss is built for: the headers
// of onnxruntime_go v1.27.0 ask for this API, so an older library cannot load.
const Version = "1.27.0"

// EnvLibrary names the environment variable that points to another library.
const EnvLibrary = "NEARMISS_ONNXRUNTIME"

// EnvCache names the environment variable that moves the cache.
const EnvCache = "NEARMISS_CACHE"

const installHint = `run "nearmiss runtime install"`

// ErrNotInstalled says that there is no library where it was looked for.
var ErrNotInstalled = errors.New("ONNX Runtime is not installed")

// environment is the state of the one C environment of this process.
var environment struct {
	sync.Mutex
	path string // the library that was loaded; empty before
}

// CacheDir returns the folder for what Nearmiss downloads: $NEARMISS_CACHE, or
// "nearmiss" in the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv(EnvCache); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder (set %s to choose one): %w", EnvCache, err)
	}
	return filepath.Join(dir, "nearmiss"), nil
}

// locate returns the path of the library that Load would load: the file named
// by $NEARMISS_ONNXRUNTIME, else the installed one, else the one beside the
// program, as in archives. When there is none, the error wraps [ErrNotInstalled]
// and says in one line what to run.
func locate() (string, error) {
	if path := os.Getenv(EnvLibrary); path != "" {
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			return "", fmt.Errorf("%w: %s=%s is not a file: correct it, or unset it and %s",
				ErrNotInstalled, EnvLibrary, path, installHint)
		}
		return filepath.Abs(path)
	}
	path, err := installedPath()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		if beside := bundledPath(self, runtime.GOOS); fileThere(beside) {
			return beside, nil
		}
	}
	return "", fmt.Errorf("%w: no %s: %s", ErrNotInstalled, path, installHint)
}

func fileThere(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// installedPath is where Install puts the library for this platform.
func installedPath() (string, error) {
	dir, err := CacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "onnxruntime", Version, runtime.GOOS+"-"+runtime.GOARCH, libraryName(runtime.GOOS)), nil
}

func libraryName(goos string) string {
	switch goos {
	case "darwin":
		return "libonnxruntime.1.dylib"
	case "windows":
		return "onnxruntime.dll"
	}
	return "libonnxruntime.so.1"
}

// Load loads the library, once per process; later calls return at once. A
// failed Load may be tried again, for instance after an Install.
func Load() error {
	environment.Lock()
	defer environment.Unlock()
	if environment.path != "" {
		return nil
	}
	path, err := locate()
	if err != nil {
		return err
	}
	return loadLocked(path)
}

func loadLocked(path string) error {
	onnxruntime.SetSharedLibraryPath(path)
	// What goes wrong comes as an error and is logged as one: the library's own lines
	// on standard error would say it again, in a form of their own.
	if err := onnxruntime.InitializeEnvironment(onnxruntime.WithLogLevelFatal()); err != nil {
		reason := oneLine(err)
		if strings.Contains(reason, "setting ORT API base") {
			reason = "it is older than " + Version
		}
		return fmt.Errorf("load ONNX Runtime from %s: %s: %s, or point %s at a library of version %s or later",
			path, reason, installHint, EnvLibrary, Version)
	}
	environment.path = path
	return nil
}

// Loaded returns the version and the path of the library in use.
func Loaded() (version, path string, err error) {
	if err := Load(); err != nil {
		return "", "", err
	}
	environment.Lock()
	defer environment.Unlock()
	return onnxruntime.GetVersion(), environment.path, nil
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
