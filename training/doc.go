// Package training turns normal images into a release: the plan and its steps.
//
// A detector learns from normal images only. Method knn keeps the pretrained
// backbone as it is and fills the bank with the normals' embeddings (the
// paper's baseline, DN2). Some normals are held out of the bank and calibrate
// it: their scores give every later score its p-value and set the threshold.
//
// # What is promised
//
// Where the held-out normals alone calibrate (--held-out SHARE, scores of one part,
// fitymi, and frames that resemble those before them) this is split conformal
// prediction: a new normal that is exchangeable with them raises an alarm with a
// probability of at most the rate that was asked for, exactly, in the mean over
// what was held out.
//
// Else all normals calibrate, as in cross-conformal prediction (Vovk, Annals of
// Mathematics and Artificial Intelligence 74, 2015; CV+ in Barber et al., Annals of
// Statistics 49, 2021): each fifth of them is held out in turn and scored by banks
// that are made of the other four, of the same size and in the same way as the
// release's own, which are those of one of the folds. Scales, weights and places are those
// that other normals alone set: a normal that helps to set these makes little of that in
// which it stands out, and a new one that is as odd does not. They are set by 19 of 20, for
// the release by all, since the fewer set them the odder all the rest seems by them. Each
// score is then distributed as that of a new normal, and there are five times as many: were they
// independent, 95 % of single thresholds for 2 % would raise alarms on 0.5 to 3.6 % of
// normals with 240 of them, and on 0.1 to 7.4 % with 48. It is not exact, because the
// folds share normals. For that only twice the rate is proved in general (CV+, where a
// new picture is compared with each fold's banks, which a release does not do); what is
// measured, which is about the rate itself, is in RESULTS.md.
//
// Method fitymi tunes the backbone first (arXiv 2205.14297):
//
//	normals ─┬─ held out:   calibrate the release, seen by nothing before
//	         ├─ validation: the fine-tune's curve and the gate; join the bank
//	         └─ fitted ─▶ fakes ─▶ fine-tunes ─▶ average ─▶ gate ─▶ bank
//
// Fakes come from any mix of [Source]s. Several fine-tunes with different seeds
// are averaged, weight by weight. The [Gate] publishes the average, or one half
// way to the frozen weights, only where validation normals and anomalies of kinds that
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
// Fit goes in one line: size → embed → split → frame → orient → tune → build → draw →
// calibrate → write, each a function from what came before to what comes next. What the frame, how
// the normals lie, or a tuned model change is embedded again, once; light, sharpness and
// precision each may have the banks built again.
//
// Each step leaves its result in the work folder under a digest of everything it
// depends on, so an interrupted run goes on, and runs that share steps (ablations
// of k, of the score, of the gate) do them once.
package training
