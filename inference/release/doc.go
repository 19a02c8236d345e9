// Package release reads and writes releases: folders that hold one model, the
// bank of its embeddings, the calibration of its scores and a manifest, and
// that never change once they are written.
//
//	manifest.json     what the release is; names every other file by its SHA-256
//	backbone.onnx     image → embedding (external data, if any, beside it)
//	bank.nmb          embeddings of the normal images, index, calibration
//	bank-….nmb        the same for further parts of the score, and for patches
//	check/…           a few images whose scores the manifest foretells
//
// The SHA-256 of manifest.json is the release's digest, and names it
// everywhere. A model is never used with another model's bank: they are
// written, published, loaded and rolled back only as one release.
//
// [Create] collects files in a staging folder and puts the finished release in
// place by one rename. [Open] reads the manifest and checks sizes;
// [Release.Verify] reads every byte.
//
// The package does not run models: package inference loads a release to score
// with it.
package release
