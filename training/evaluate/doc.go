// Package evaluate measures how well a method tells normal from anomalous
// images: the area under the receiver operating characteristic and its kin, and
// the protocols of the paper (arXiv 2205.14297, section 4).
//
// A [Method] learns from normal images and gives a [Scorer]; the protocols
// choose what is normal and what is not:
//
//	OneVsRest   every class in turn is normal, the other classes' test images
//	            are anomalies
//	MVTec       good images are normal, each defect, and all together, anomalies
//	Near        a class is normal, each other class alone is anomalous; which of
//	            them are near is found by a classifier (closeness) and by the
//	            results themselves (bottom-i)
//
// Each can be repeated with other seeds and other random splits. A [Result]
// holds the figures and the scores behind them; package report writes them out.
//
// Scores are compared by rank only: AUROC and its kin are computed in float64
// from the scores as they are, never clamped.
package evaluate
