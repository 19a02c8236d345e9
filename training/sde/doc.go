// Package sde makes images by score-based generation: it adds noise to images
// along a stochastic differential equation and learns to walk back (Song et
// al., "Score-Based Generative Modeling through Stochastic Differential
// Equations", ICLR 2021; Karras et al., "Elucidating the Design Space of
// Diffusion-Based Generative Models", NeurIPS 2022).
//
// The parts, from the inside out:
//
//   - [SDE]: the four diffusions (variance preserving, sub-variance preserving,
//     variance exploding, and EDM's), by their drift, diffusion, marginal,
//     prior and discretisation.
//   - [Model]: whatever estimates the score ∇ log p_t(x): a network, or in tests
//     the closed form of a Gaussian or a mixture.
//   - [Sample]: the samplers, from noise to images or from images through a
//     partial diffusion and back (SDEdit).
//   - [Network]: the score networks DDPM++ and NCSN++ as ONNX graphs of any size;
//     [Preset] has the published ones.
//   - [Trainer]: denoising score matching on ONNX Runtime, by package optim.
//   - [Generate]: all of it: from a folder of normal images to a folder of fakes
//     that are nearly normal, by training that is stopped early on purpose.
//
// Images are float32 in N, C, H, W order, in the range that [SDE.Range] names.
// Every random number comes from a seed: image i of a run draws the same noise
// whatever the batch size.
package sde
