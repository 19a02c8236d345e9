package finetune

import (
	"errors"
	"fmt"
	"math"

	"github.com/nearmiss/nearmiss/training/optim"
)

// Recipe says how to train. [Paper] is the published one.
type Recipe struct {
	// Batch is the number of images in a step, normals and fakes together.
	Batch int `json:"batch"`
	// MicroBatch splits a step into parts of so many images, whose gradients are
	// averaged. It divides Batch. 0: parts of four on the CPU where that divides Batch,
	// which are faster and take less memory; otherwise, and for foreign models, all.
	MicroBatch int `json:"micro_batch,omitempty"`
	// Epochs is the largest number of passes over the normals.
	Epochs int `json:"epochs"`
	// Optimizer updates the weights.
	Optimizer optim.Optimizer `json:"optimizer"`
	// FreezeBlocks keeps the first blocks of the backbone as they are: encoder
	// blocks of a ViT or hybrid, stages of the others. −1: half of them. What lies
	// before the first block is trained in a ViT, as in the paper, and frozen with
	// the first stage of a convolutional network.
	FreezeBlocks int `json:"freeze_blocks"`
	// Freeze keeps further weights, by name: * stands for any characters, ? for
	// one, [0-5] for one of a set. It is the only way for foreign models.
	Freeze []string `json:"freeze,omitempty"`
	// Dropout is the probability of dropping an activation after the position
	// embedding and after both layers of every MLP of a ViT or hybrid.
	Dropout float64 `json:"dropout"`
	// ZeroHead starts with a head of zeros instead of torch's random one: a random
	// head's first gradients move the backbone about without knowing where to
	// (Kumar et al. 2022, "Fine-tuning can distort pretrained features").
	ZeroHead bool `json:"zero_head,omitempty"`
	// HeadRate multiplies the learning rate of the head; 0 means 1.
	HeadRate float64 `json:"head_rate,omitempty"`
	// NoCrop takes the middle instead of a random crop; NoFlip never mirrors.
	NoCrop bool `json:"no_crop,omitempty"`
	NoFlip bool `json:"no_flip,omitempty"`
	// Patience ends training when the held-out loss has not fallen by MinFall
	// (relative) for so many epochs, and keeps the best epoch's weights; 0: all
	// epochs, the last weights, as in the paper. It needs held-out images.
	Patience int     `json:"patience,omitempty"`
	MinFall  float64 `json:"min_fall,omitempty"`
	// Seed draws everything random.
	Seed uint64 `json:"seed"`
}

// Paper is FITYMI's recipe for low-resolution data: SGD without momentum, 4e-4,
// weight decay 5e-5 on everything, batches of 16, 30 epochs, the first six
// encoder blocks (half of a ViT-B) frozen, dropout 0.1.
func Paper() Recipe {
	return Recipe{
		Batch: 16, Epochs: 30, FreezeBlocks: -1, Dropout: 0.1,
		Optimizer: optim.Optimizer{Kind: optim.SGD, LearningRate: 4e-4, WeightDecay: 5e-5},
	}
}

// PaperHigh is the recipe for high-resolution data, of the official code's notes:
// 5e-3 and 150 epochs.
func PaperHigh() Recipe {
	r := Paper()
	r.Epochs, r.Optimizer.LearningRate = 150, 5e-3
	return r
}

// Validate names everything that makes no sense.
func (r Recipe) Validate() error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf("recipe: "+format, a...)) }
	if r.Batch < 1 {
		fail("batch of %d images", r.Batch)
	} else if r.MicroBatch < 0 || r.MicroBatch > 0 && r.Batch%r.MicroBatch != 0 {
		fail("micro-batch of %d images does not divide the batch of %d", r.MicroBatch, r.Batch)
	}
	if r.Epochs < 1 {
		fail("%d epochs", r.Epochs)
	}
	if r.FreezeBlocks < -1 {
		fail("%d frozen blocks", r.FreezeBlocks)
	}
	if !(r.Dropout >= 0 && r.Dropout < 1) {
		fail("dropout %v is not in [0, 1)", r.Dropout)
	}
	if !(r.HeadRate >= 0) || math.IsInf(r.HeadRate, 0) {
		fail("%v times the learning rate for the head", r.HeadRate)
	}
	if r.Patience < 0 || !(r.MinFall >= 0) || math.IsInf(r.MinFall, 0) {
		fail("patience %d, least fall %v", r.Patience, r.MinFall)
	}
	return errors.Join(errs...)
}
