// Package inference turns images into embeddings and embeddings into scores.
//
// An [Embedder] is one backbone on one device. Images go in from any number of
// goroutines; they are checked, decoded and resized by a few workers while the
// model computes, and the model takes whatever is ready as one batch, up to
// [EmbedOptions].Batch. Its queues are bounded: a caller that is faster than the
// model waits.
//
// A [Detector] is a loaded release: an Embedder together with the bank and the
// calibration that were made for it. It scores images:
//
//	d, err := inference.Open(ctx, "releases/bolts", inference.Options{})
//	scores, err := d.Score(ctx, files)
//	for i, s := range scores {
//		if s.Err != nil { … } // this image cannot be used: why is in s.Err
//		if s.Anomalous { … }
//	}
//
// A score has one or several parts: slices of the embedding with k-NN banks, and
// patches with a bank of theirs, see [CombineScores]. Where a release has patches,
// a score may say where an image is strange: [Score.Map].
//
// An image that cannot be used is refused alone, with its reason; it never
// counts as normal. An embedding that is not finite is an error too.
package inference
