package evaluate

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// How far light changes, in Light: the gain by up to 10 % and the offset by up to 5 %
// of the range, which exposure, lamps and dust do in a day.
const (
	lightGain   = 0.1
	lightOffset = 0.05
)

// Light says what other light does: the normal test images are seen once more, each
// with a gain and an offset of its own, and the anomalies as they are.
type Light struct {
	// AUROC is of these normals against the anomalies.
	AUROC float64 `json:"auroc"`
	// Alarms is the share of them above the threshold that a share of 0.05 of the
	// normals in usual light is above.
	Alarms float64 `json:"alarms"`
}

// otherLight are items in another light, the same at every call.
func otherLight(items []dataset.Item) []dataset.Item {
	out := make([]dataset.Item, len(items))
	for i, it := range items {
		b, err := it.Read()
		if err == nil {
			b, err = relit(b, it.Name)
		}
		if err != nil { // the protocol has read it before, so this is told when it is read
			out[i] = it
			continue
		}
		out[i] = dataset.FromBytes("other light: "+it.Name, it.Split, it.Label, b)
	}
	return out
}

// relit is an image file in the light that its name draws.
func relit(file []byte, name string) ([]byte, error) {
	m, err := imaging.Decode(file, imaging.Limits{})
	if err != nil {
		return nil, fmt.Errorf("light %s otherwise: %w", name, err)
	}
	Relight(m, name)
	return m.PNG()
}

// Relight changes a picture's light, by a gain and an offset that the name draws.
func Relight(m *imaging.Image, name string) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	r := rand.New(rand.NewPCG(h.Sum64(), 0x6c69676874))
	gain, offset := 1+lightGain*(2*r.Float64()-1), 255*lightOffset*(2*r.Float64()-1)
	for i, v := range m.Pix {
		m.Pix[i] = uint8(min(max(math.Round(gain*float64(v)+offset), 0), 255))
	}
}

// light scores the normals of a run in other light.
func (r *Run) light(ctx context.Context, scorer Scorer) (*Light, error) {
	var items []dataset.Item
	for _, s := range r.Scored {
		if !s.Anomalous {
			items = append(items, s.Item)
		}
	}
	scores, err := scorer.Score(ctx, otherLight(items))
	if err != nil {
		return nil, fmt.Errorf("score normals in other light: %w", err)
	}
	usual, anomalous := r.Split("")
	if len(usual) == 0 || len(anomalous) == 0 {
		return nil, nil
	}
	sorted := slices.Sorted(slices.Values(usual))
	threshold := sorted[min(int(math.Ceil((1-SuiteAlarms)*float64(len(sorted))))-1, len(sorted)-1)]
	l := &Light{AUROC: AUROC(scores, anomalous)}
	for _, s := range scores {
		if s > threshold {
			l.Alarms += 1 / float64(len(scores))
		}
	}
	return l, nil
}

// meanLight averages over runs; nil where none was measured.
func meanLight(runs []Run) *Light {
	var out *Light
	n := 0.0
	for _, r := range runs {
		if r.Light != nil {
			if out == nil {
				out = &Light{}
			}
			out.AUROC, out.Alarms, n = out.AUROC+r.Light.AUROC, out.Alarms+r.Light.Alarms, n+1
		}
	}
	if out != nil {
		out.AUROC, out.Alarms = out.AUROC/n, out.Alarms/n
	}
	return out
}
