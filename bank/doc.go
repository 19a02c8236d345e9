// Package bank keeps the embeddings of normal images and answers how far a new
// one lies from them: nearest neighbours, novelty score, p-value, decision.
//
// The score of an embedding is the sum of its squared Euclidean distances to
// its k nearest bank entries (FITYMI, arXiv 2205.14297, eq. 4; k = 2 unless
// set). A score becomes a p-value by comparison with the scores of normals that
// were held out from the bank (split conformal prediction), and an anomaly when
// that p-value is at most the wanted false-alarm rate.
//
// A bank is filled, indexed, calibrated, written, and then serves:
//
//	b, err := bank.New(bank.Options{Dim: 192})
//	err = b.AddBatch(ids, rows)               // n embeddings, row-major n×192
//	report, err := b.Build(ctx, queries)      // picks and measures the index
//	cal, err := b.Calibrate(ctx, heldOut, 0.01)
//	err = b.WriteFile("bank.nmb")
//	...
//	b, err = bank.ReadFile("bank.nmb", bank.ReadOptions{})
//	result, err := b.Score(embedding)
//
// Exact search is the truth and the default below a cut-off. An approximate
// index (our own HNSW graph, or the coder/hnsw library for those who ask for
// it) serves only while its measured recall stays at or above
// [Gate.MinRecall]; otherwise the bank warns and answers exactly.
//
// A bank of patches answers hundreds of queries an image. [Sketch] does so through a
// [BlockEngine]: a short description of every entry leaves few to be compared in
// full. It is approximate too, and passes through the same gate.
//
// The package knows nothing of images, ONNX or NATS. Large batches may be
// handed to a [BatchEngine], which package inference implements with a matrix
// product on ONNX Runtime; every distance it proposes is computed again here.
package bank
