package training

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Part is a part of a score: vectors of the model, which are compared with those
// of normals. It says what (the class token, the mean or the spread of the patch
// tokens, or every patch), where (after how many layers), how (scaled to length 1, whitened)
// and, of patches, which statistic of their distances counts.
type Part struct {
	backbone.Tap
	// Frozen takes the vectors of the backbone before it was fine-tuned; serving
	// then computes both networks. Without a fine-tune it means nothing.
	Frozen bool
	// Unit scales vectors to length 1. Patches always are.
	Unit bool
	// White, above 0 to 1, compares by Mahalanobis distances, of the normals'
	// covariance with this shrinkage. 0: plain distances.
	White float64
	// Statistic makes an image's score of its patches' distances: one of
	// release.PatchStatistics, or several with colons between, each of which counts.
	// Empty where there are no patches.
	Statistic string
	// Placed divides each patch's distance by what normals show at its place.
	Placed bool
}

// usualLayer stands for the backbone's usual layer for patches.
const usualLayer = -1

// Often used parts. The class token of the last layer is the paper's score;
// pooled is the mean of the patch tokens there, and patch the means of
// neighbouring patches in the middle of the backbone.
var (
	classPart  = Part{Tap: backbone.Tap{What: backbone.TapClass}}
	pooledPart = Part{Tap: backbone.Tap{What: backbone.TapPooled}}
	patchPart  = Part{Tap: backbone.Tap{What: backbone.TapPatch, Layer: usualLayer, Around: 3}, Statistic: release.StatisticMean}
)

// shrinkage is that of white without a number.
const shrinkage = 0.1

const frozenPrefix = "frozen-"

// parsePart reads a part such as "class", "pooled@6:unit:white", "patch@4x3:placed:top1:mean"
// or "frozen-class@9:white=0.2".
func parsePart(text string) (Part, error) {
	fail := func(err error) (Part, error) { return Part{}, fmt.Errorf("part %q of the score: %w", text, err) }
	words := strings.Split(strings.TrimSpace(text), ":")
	name, frozen := strings.CutPrefix(words[0], frozenPrefix)
	p := Part{Frozen: frozen}
	if name == backbone.TapPatch {
		p = patchPart
		p.Frozen = frozen
	} else {
		var err error
		if p.Tap, err = backbone.ParseTap(name); err != nil {
			return fail(err)
		}
	}
	switch p.What {
	case backbone.TapClass, backbone.TapPooled, backbone.TapSpread:
	case backbone.TapPatch:
		p.Statistic = release.StatisticMean
	default:
		return fail(errors.New("unknown, take class, pooled, spread or patch, as in class, pooled@6 or patch@4"))
	}
	var statistics []string
	for _, w := range words[1:] {
		word, value, given := strings.Cut(w, "=")
		switch {
		case w == "unit":
			p.Unit = true
		case word == "white":
			p.White = shrinkage
			if given {
				var err error
				if p.White, err = strconv.ParseFloat(value, 64); err != nil {
					return fail(fmt.Errorf("shrinkage %q is no number", value))
				}
			}
		case p.What == backbone.TapPatch && w == "placed":
			p.Placed = true
		case p.What == backbone.TapPatch && slices.Contains(release.PatchStatistics, w) && !slices.Contains(statistics, w):
			statistics = append(statistics, w)
		default:
			return fail(fmt.Errorf("%q is unknown: vectors are unit or white, patches are placed or have one or some of %s", w, strings.Join(release.PatchStatistics, ", ")))
		}
	}
	if len(statistics) > 0 {
		p.Statistic = strings.Join(statistics, ":")
	}
	if !(p.White >= 0 && p.White <= 1) {
		return fail(fmt.Errorf("shrinkage %g of the covariance: use a number from 0, which whitens nothing, to 1", p.White))
	}
	return p, nil
}

// String is the part as parsePart reads it.
func (p Part) String() string {
	var b strings.Builder
	if p.Frozen {
		b.WriteString(frozenPrefix)
	}
	if p.Layer == usualLayer {
		b.WriteString(p.What)
	} else {
		b.WriteString(p.Tap.String())
	}
	if p.Unit {
		b.WriteString(":unit")
	}
	switch p.White {
	case 0:
	case shrinkage:
		b.WriteString(":white")
	default:
		fmt.Fprintf(&b, ":white=%g", p.White)
	}
	if p.Placed {
		b.WriteString(":placed")
	}
	if p.Statistic != "" && p.Statistic != release.StatisticMean {
		b.WriteString(":" + p.Statistic)
	}
	return b.String()
}

// MarshalText and UnmarshalText write parts as people do.
func (p Part) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is parsePart.
func (p *Part) UnmarshalText(b []byte) (err error) {
	*p, err = parsePart(string(b))
	return err
}

// statistics are those of a part of patches.
func (p Part) statistics() []string { return strings.Split(p.Statistic, ":") }

// isPatch says whether the part has a vector for each patch.
func (p Part) isPatch() bool { return p.What == backbone.TapPatch }

// selected is where the part is taken: of the served network, which is the first,
// or of the frozen one.
func (p Part) selected() backbone.Selected {
	s := backbone.Selected{Tap: p.Tap}
	if p.Frozen {
		s.Network = 1
	}
	return s
}

// name is the part's in a release: letters, digits, _ and -.
func (p Part) name() string {
	return strings.NewReplacer("@", "-", ":", "-", "=", "-", ".", "_").Replace(p.String())
}
