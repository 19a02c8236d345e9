// Package corrupt spoils normal images locally: pieces pasted in, smooth warps,
// scratches, stains; and a few changes of the whole picture. The results are near-normal images that no generative
// model had to learn, used as fakes to compare others with, and as anomalies
// whose kind a fine-tune has not seen.
//
// Everything is a pure function of its arguments: equal images, strengths and
// seeds give equal bytes on every machine that computes float64 alike.
package corrupt
