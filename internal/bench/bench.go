// Package bench measures on this machine how fast the program's parts are: the
// way of an image to its embedding ([Embed]) and to its verdict ([Score]), the
// bank's indexes ([Bank]), the broker ([Stream]), a training step ([Train]). It
// prints nothing; command nearmiss bench does. Speeds of parts that are compared are taken in turns, so
// that a disturbance of the machine meets them all.
package bench
