// Package frechet measures how far a set of generated images is from the set of
// normal ones, in the space of any feature extractor, and stops training by it.
//
//   - [Fit] and [Distance]: the Fréchet distance between two sets (FID is this
//     distance in one particular Inception network), exact also with fewer
//     images than features.
//   - [KID] and [CMMD]: kernel distances, unbiased or nearly so in small sets.
//   - [Reference]: the normals' own scale, from which the ratio r = (FD −
//     FD_split)/(FD_noise − FD_split) makes a stopping rule that carries over
//     from one extractor, data set and sample count to another.
//   - [Copies]: how many fakes are memorised normals.
//   - [Controller]: which checkpoints to keep and when to stop; stopping early is
//     the method, so it fails on the early side.
//   - [WriteCurve] and [Sheet]: the run as two pictures.
//
// Features are rows of float32, one per image; sums are float64.
package frechet
