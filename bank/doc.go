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
//	results, err := b.ScoreBatch(ctx, embeddings)
//	err = b.Close()
//
// A bank that was read is searched in its file, which the system maps: reading one
// whose bytes were verified takes milliseconds whatever its size, and processes on
// one machine share its memory.
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
//
// # Locks
//
// A bank may be searched while it changes. Six locks see to that, taken in the
// order of this list and never against it; most calls take one or two.
//
//  1. Bank.change: one change at a time. Held from the first to the last step of
//     Add, Remove, Build, Measure, Readjust, Encode and Close, and never by a search.
//  2. Bank.mu: what a search begins with, the index and the calibration, and what
//     goes with them (report, queries, held-out embeddings). Held for as long as
//     it takes to copy these pointers, except by Encode. A search keeps the pair
//     that it began with, even if both are replaced meanwhile.
//  3. hnsw.writer: the graph's own Bank.change, for those who use the index alone.
//     Who holds it reads the graph without a further lock, since nobody else
//     writes it.
//  4. rows.mu: vectors, ids and links. Searches hold it for reading from their
//     first distance to their last; a writer holds it for the moment in which what
//     it has planned takes effect, so that a search waits for microseconds. All
//     indexes of a bank share one rows, and with it this lock.
//  5. sketched.making: who holds rows.mu for reading makes the sketches under it,
//     once for all that want them.
//  6. rows.preparing: the same for what a batch engine holds of the rows.
//
// Who holds rows.mu for writing needs neither of the last two: no reader is there.
// K is not guarded: [Bank.Readjust] is for a bank that nobody searches.
//
// The package starts goroutines for the length of one call only (batch search,
// building, coresets), and waits for them.
package bank
