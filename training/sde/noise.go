package sde

import "math/rand/v2"

// Streams keep what is drawn for different purposes of one run apart.
const (
	streamSample uint64 = iota + 1 // noise of samplers, per image
	streamTrain                    // noise, times and flips of training, per step
	streamInit                     // initial weights
	streamData                     // order of the training set, per epoch
	streamSplit                    // halves of the normals
	streamPick                     // which normal a partial diffusion starts from
)

// newRand returns the generator of item i of a stream. Generators of different
// seeds, streams or items are independent for all purposes here: PCG's two
// words are hashed from the three numbers.
func newRand(seed, stream, i uint64) *rand.Rand {
	return rand.New(rand.NewPCG(mix(seed+mix(stream)), mix(i+mix(seed^stream<<32))))
}

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
