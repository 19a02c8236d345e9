// Package finetune is the paper's second stage: a pretrained backbone learns to
// tell normal images from fakes that are almost normal, and its embedding is
// then better at telling normal from anything.
//
// A linear head with two outputs is put on the embedding (normal 0, fake 1) and
// trained with cross entropy and plain SGD, by default exactly as FITYMI does
// ([Paper]): one fake for each normal, random crops and flips, dropout, the
// first half of the encoder frozen. The head is thrown away; what remains is
// the same ONNX file with other weights.
//
//	res, err := finetune.Run(ctx, finetune.Config{
//		Backbone: "vit.onnx", Out: "tuned.onnx",
//		Normals: normals, Fakes: fakes, Recipe: finetune.Paper(),
//	})
//
// Any imported backbone can be tuned. Models that inference/backbone builds are
// built again for training, with dropout at the places of the paper; any other
// ONNX model is differentiated as it is, without dropout, which an exported
// model no longer has.
//
// Everything random (order, crops, flips, the seeds of dropout masks, the
// head's first weights) is drawn in Go from Recipe.Seed and the number of the
// step, so a run can be repeated, and one that was interrupted goes on bit for
// bit. At the end the served model's scores are compared with the trainer's.
package finetune
