// Package backbone turns pretrained weights of other ecosystems into ONNX
// graphs that give one embedding for an image, and says how an image has to be
// prepared for them.
//
// Sources are timm-named safetensors (ViT, ResNet, ConvNeXt and the ResNet-ViT
// hybrid), the original Vision Transformer .npz files, and any other ONNX model
// as it is. Nothing but the tensors is trusted: sizes, widths, depths and heads
// are inferred from their shapes and checked against each other.
//
// Every graph that leaves this package has the same surface:
//
//	image      uint8  [N, S, S, 3]   RGB, not normalised: mean and std are inside
//	embedding  float  [N, D]         not L2-normalised
//	tokens     float  [N, T, D]      optional, ViT family: after the final norm
//
// and carries two metadata properties, [MetadataPreprocess] (the JSON of
// imaging.Preprocess) and [MetadataBackbone] (the JSON of [Info]), so that the
// one file is enough to serve and to fine-tune.
//
// Parameters keep their timm names and layouts as ONNX initialisers. Training
// code therefore rebuilds the same forward pass, with other values in the place
// of some initialisers, through [Model.Forward].
package backbone
