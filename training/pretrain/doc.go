// Package pretrain makes a small backbone from nothing: a ViT that starts from
// random weights and sees drawn pictures only, those of
// internal/synthetic. The starter backbone of the repository
// (inference/backbone/starter) is its result.
//
// What it learns is what the bank will ask of it. A design is one thing to
// inspect: a part of certain proportions, a cell in a certain stain, a surface,
// under certain colours. Each batch shows several designs, each as a few normal
// images, which differ in pose, light, grain and noise, and as a few that are
// marred. The loss (after Khosla et al. 2020, "Supervised Contrastive Learning",
// arXiv 2004.11362, with a cosine as the similarity) draws the normals of a
// design together and pushes away everything else, the marred images of the same
// design first of all, since they are nearest. A marred image is never drawn to
// anything: there is no such thing as the class of all defects.
//
// The loss sees the embedding through a small head that is dropped afterwards, and
// a second loss has the embedding draw the image again at 8 × 8 pixels: both keep
// in it what the first loss has no use for, and other images may need.
//
// Colours, mirrorings and turns are drawn anew in each batch and are common to
// all images of a design, so they make new designs and are not unlearnt: to a
// bank, another colour may well be the anomaly. Several designs of a batch share
// them, so that they are not all that tells designs apart.
//
// Some families of pictures and some kinds of defect are left out of the training
// (see [HeldOut]) to measure on.
//
// Everything drawn depends on the seed and the number of the step alone, so a
// training that was interrupted goes on bit for bit as if it had not been (on the
// CPU, with the same number of threads).
package pretrain
