// Package training turns normal images into a release: the plan and its steps.
//
// A detector learns from normal images only. Method knn keeps the pretrained
// backbone as it is and fills the bank with the normals' embeddings (the
// paper's baseline, DN2). Some normals are held out of the bank and calibrate
// it: their scores give every later score its p-value and set the threshold.
package training
