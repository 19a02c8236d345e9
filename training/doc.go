// Package training turns normal images into a release: the plan and its steps.
//
// A detector learns from normal images only. Method knn keeps the pretrained
// backbone as it is and fills the bank with the normals' embeddings (the
// paper's baseline, DN2). Some normals are held out of the bank and calibrate
// it: their scores give every later score its p-value and set the threshold.
//
// Method fitymi tunes the backbone first (arXiv 2205.14297):
//
//	normals ─┬─ held out: calibrate the release, seen by nothing before
//	         ├─ unseen:   the fine-tune's curve and the gate; join the bank
//	         └─ fitted ─▶ fakes ─▶ fine-tunes ─▶ average ─▶ gate ─▶ bank
//
// Fakes come from any mix of [Source]s. Several fine-tunes with different seeds
// are averaged, weight by weight. The [Gate] publishes the average, or one half
// way to the frozen weights, only where unseen normals and anomalies of kinds that
// nothing was trained on show no harm beyond a margin, and without a generator's
// fakes only where it is surely better; else the release has the frozen backbone,
// and says so.
//
// A score is made of [Part]s, each with banks of its own, in groups: see [Score].
// The full one, the default, reads the whole picture at every layer and patches of
// several; class is the paper's. Banks of patches are coresets, and give heatmaps
// also where they are not scored. One builder makes scores, for releases, for the
// gate and for the protocols of package evaluate. [Orientation] says whether it
// matters how the normals lie.
//
// Fit is one walk: embed → split → tune → build → calibrate → write, each a function
// from what came before to what comes next.
//
// Each step leaves its result in the work folder under a digest of everything it
// depends on, so an interrupted run goes on, and runs that share steps (ablations
// of k, of the score, of the gate) do them once.
package training
