// Package starter holds the backbone that comes with the program: a small ViT
// for the demo and for first trials, so that everything works before anybody has
// downloaded a model.
//
// It was trained by "nearmiss backbone train-starter", with the engine of this
// repository and on drawn pictures only (internal/synthetic): no
// photograph went into it, and no weights of others. training/RESULTS.md says how
// well it does. A backbone that was pretrained on photographs does better on
// photographs: for real work, import one with "nearmiss backbone import".
package starter

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/nearmiss/nearmiss/inference/backbone"
)

//go:embed starter.safetensors
var file []byte

// Digest is the SHA-256 of the weights' file, in hexadecimal.
var Digest = sync.OnceValue(func() string {
	sum := sha256.Sum256(file)
	return hex.EncodeToString(sum[:])
})

// Bytes returns a copy of the weights' file: safetensors with timm's names, in half
// precision.
func Bytes() []byte { return bytes.Clone(file) }

// Load returns the backbone. It needs no ONNX Runtime.
func Load() (*backbone.Model, error) {
	w, err := backbone.ReadWeights(Bytes())
	if err != nil {
		return nil, fmt.Errorf("load the starter backbone: %w", err)
	}
	m, err := backbone.FromWeights(w, backbone.LoadOptions{})
	if err != nil {
		return nil, fmt.Errorf("load the starter backbone: %w", err)
	}
	return m, nil
}

// Write makes the ONNX file of the backbone, with float32 weights.
func Write(path string, o backbone.Options) (backbone.Info, error) {
	m, err := Load()
	if err != nil {
		return backbone.Info{}, err
	}
	return m.Write(path, o)
}

// File returns the path of the backbone's ONNX file in the folder, which both are
// made unless they are there. The name holds the digest, so a new version of the
// program does not take an old version's file.
func File(folder string) (string, error) {
	path := filepath.Join(folder, fmt.Sprintf("starter-%.12s.onnx", Digest()))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	if _, err := Write(path, backbone.Options{}); err != nil {
		return "", err
	}
	return path, nil
}
