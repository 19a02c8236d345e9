// Package registry keeps releases in a broker's Object Store and says which one
// is active for a detector.
//
// A release is a folder with a manifest.json whose "files" member names every
// other file with its SHA-256 and size; the registry reads nothing else of it.
// Each file is one object named by its SHA-256, so that releases share what they
// have in common, and the manifest is the object written last, named by its own
// SHA-256: the release's digest. What cannot be read back whole is never handed
// out.
//
// Pointers, the entries of the active bucket, are changed by compare-and-set
// only. Their history is the way back.
package registry
