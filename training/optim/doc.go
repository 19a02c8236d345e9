// Package optim trains the weights of an ONNX graph on ONNX Runtime.
//
// A training step (forward pass, loss, gradients, optimiser) is one ONNX graph
// that this package builds from a [Spec]: the weights, the shapes of a batch
// and a function that appends the forward pass and its loss. Many steps run as
// one ONNX Loop whose carried values are the weights and the optimiser's state,
// so that nothing is copied between steps; Go fills the batches of the next
// chunk of steps meanwhile. Between two Loops weights and state are in Go's memory, and
// with an accelerator in the device's: only batches and losses then cross the bus, and
// what is saved or asked for.
//
//	t, err := optim.New(optim.Spec{
//		Weights:   model.Tensors(),
//		Inputs:    []optim.Input{{"image", onnx.Uint8, []int{16, 224, 224, 3}}, {"label", onnx.Int64, []int{16}}},
//		Groups:    []optim.Group{{Pattern: "blocks.[0-5].*", Freeze: true}},
//		Optimizer: optim.Optimizer{Kind: optim.SGD, LearningRate: 4e-4, WeightDecay: 5e-5},
//		Loss: func(g *onnx.Graph, batch []*onnx.Value, w optim.Weights) (optim.Loss, error) { … },
//	})
//	defer t.Close()
//	err = t.Run(ctx, source, 1000, optim.RunOptions{Progress: …})
//	weights, err := t.Weights()
//
// Batches are addressed by the number of their step and everything random is
// in them, so a run that was saved with [Trainer.Save] and resumed with
// [Trainer.Load] goes on bit for bit as if it had not been interrupted (on the
// CPU, with the same number of threads).
//
// Frozen weights stay initialisers of the graph and get no gradient.
package optim
