// Package resample sums pixels with weights by vector instructions. It is apart from
// package imaging because a package that uses C has no assembly of its own. Sums are
// whole numbers of which 22 bits are a fraction, rounded and held within 0..255: they
// come out the same on every machine, and as plain loops have them.
package resample
