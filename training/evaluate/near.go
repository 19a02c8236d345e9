package evaluate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/training/dataset"
)

// Near takes each class of set as normal and tests it against every class of
// others alone (which may be the same set; a class is not tested against
// itself). Two orders say which classes are near:
//
//   - closeness: a classifier learns to tell the normal class and the others
//     apart from their training images' features. A class is the nearer, the
//     higher the logarithm of the probability that it gives the normal class,
//     averaged over that class's test images (the confusion log probability
//     of Winkens et al. 2020, which the paper uses).
//   - bottom-i: the i classes with the lowest AUROC, which is known by hindsight.
//
// Result.AUROC is the mean over the normal classes of the AUROC against the
// closest class.
func Near(ctx context.Context, set, others *dataset.Set, m Method, f *Features, o Options) (*Result, error) {
	if set.Layout != dataset.LayoutClasses || others.Layout != dataset.LayoutClasses {
		return nil, fmt.Errorf("near on %s and %s: %w: it takes {train,test}/<class>/ folders", set.Root, others.Root, ErrWrongLayout)
	}
	if f == nil {
		return nil, errors.New("near: features for the closeness of classes are missing")
	}
	normals, err := o.normals(set)
	if n := len(others.Labels()); err == nil && (n == 0 || n == 1 && set == others) {
		err = fmt.Errorf("data set %s: %d classes are too few, one is normal and the others are not", others.Root, n)
	}
	if err != nil {
		return nil, err
	}
	res, t := begin(ProtocolNear, set, m, o)
	if others != set {
		res.Data += " against " + others.Name
	}
	var means []float64
	var bottoms, nearests [][]float64
	closes := map[[2]string][]float64{}
	for r := range o.repeats() {
		seed := o.Seed + uint64(r)
		s, err := o.prepare(set, seed)
		if err != nil {
			return nil, err
		}
		p := s
		if others != set {
			if p, err = o.prepare(others, seed); err != nil {
				return nil, err
			}
		}
		var sum float64
		var order *closeness
		for i, class := range normals {
			o.progress(r*len(normals)+i, o.repeats()*len(normals), class)
			var far []string
			test := s.Select(dataset.Test, class)
			for _, l := range p.Labels() {
				if l != class || others != set {
					far = append(far, l)
					for _, it := range p.Select(dataset.Test, l) {
						it.Label = foreign(l, others != set)
						test = append(test, it)
					}
				}
			}
			run, err := fitAndScore(ctx, m, s.Select(dataset.Train, class), test, class, seed, nil, o)
			if err != nil {
				return nil, err
			}
			if order == nil || s != p {
				if order, err = newCloseness(ctx, f, s, p, class); err != nil {
					return nil, err
				}
			}
			near, aurocs := make([]float64, len(far)), make([]float64, len(far))
			for j, l := range far {
				name := foreign(l, others != set)
				aurocs[j] = t.add(*run, class, name, name)
				if near[j], err = order.of(ctx, class, l); err != nil {
					return nil, err
				}
				closes[[2]string{class, name}] = append(closes[[2]string{class, name}], near[j])
			}
			at := make([]int, len(far))
			for j := range at {
				at[j] = j
			}
			slices.SortStableFunc(at, func(a, b int) int { return cmp.Compare(near[b], near[a]) })
			byCloseness := make([]float64, len(far))
			for j, k := range at {
				byCloseness[j] = aurocs[k]
			}
			slices.Sort(aurocs)
			bottoms, nearests = append(bottoms, running(aurocs)), append(nearests, running(byCloseness))
			sum += byCloseness[0]
			res.Runs = append(res.Runs, *run)
		}
		means = append(means, sum/float64(len(normals)))
	}
	res.Parts = t.parts()
	res.PerClass = map[string]float64{}
	for i, p := range res.Parts {
		c, _ := meanStd(closes[[2]string{p.Normal, p.Anomaly}])
		res.Parts[i].Closeness = &c
	}
	for i, class := range slices.Concat(slices.Repeat([][]string{normals}, o.repeats())...) {
		res.PerClass[class] += nearests[i][0] / float64(o.repeats())
	}
	res.Bottom, res.Nearest = columnMeans(bottoms), columnMeans(nearests)
	return t.end(res, means)
}

// foreign keeps the names of two sets' classes apart.
func foreign(label string, two bool) string {
	if two {
		return "other/" + label
	}
	return label
}

// running gives the means of the first 1, 2, … values.
func running(v []float64) []float64 {
	out := make([]float64, len(v))
	sum := 0.0
	for i, x := range v {
		sum += x
		out[i] = sum / float64(i+1)
	}
	return out
}

// columnMeans averages rows, as far as the shortest reaches.
func columnMeans(rows [][]float64) []float64 {
	n := len(rows[0])
	for _, r := range rows {
		n = min(n, len(r))
	}
	out := make([]float64, n)
	for _, r := range rows {
		for i := range out {
			out[i] += r[i] / float64(len(rows))
		}
	}
	return out
}

// closenessImages bounds the training images of a class that the classifier
// learns from: more only take longer.
const closenessImages = 500

// closeness holds the classifier over one set's classes and their features, or
// over one class of a set and all of another's.
type closeness struct {
	f       *Features
	others  *dataset.Set
	model   *softmaxModel
	classes []string // of others, in the model's order, after the first if two sets
	two     bool
}

// newCloseness trains the classifier. Within one set it is the same for every
// normal class; normal is only used with two sets.
func newCloseness(ctx context.Context, f *Features, set, others *dataset.Set, normal string) (*closeness, error) {
	c := &closeness{f: f, others: others, classes: others.Labels(), two: others != set}
	var groups [][]dataset.Item
	if c.two {
		groups = append(groups, set.Select(dataset.Train, normal))
	}
	for _, l := range c.classes {
		groups = append(groups, others.Select(dataset.Train, l))
	}
	var x [][]float32
	var y []int
	for class, items := range groups {
		if n := len(items); n > closenessImages { // evenly spread over the names
			kept := make([]dataset.Item, closenessImages)
			for i := range kept {
				kept[i] = items[i*n/closenessImages]
			}
			items = kept
		}
		v, err := f.Of(ctx, items)
		if err != nil {
			return nil, err
		}
		x = append(x, v...)
		y = append(y, slices.Repeat([]int{class}, len(v))...)
	}
	c.model = fitSoftmax(x, y, len(groups))
	return c, nil
}

// of asks about the test images of another class: the mean log probability
// that they get for the normal class.
func (c *closeness) of(ctx context.Context, normal, far string) (float64, error) {
	class := 0
	if !c.two {
		class = slices.Index(c.classes, normal)
	}
	rows, err := c.f.Of(ctx, c.others.Select(dataset.Test, far))
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, row := range rows {
		sum += c.model.logProbability(row, class)
	}
	return sum / float64(len(rows)), nil
}

// softmaxModel is a multinomial logistic regression on standardised features.
type softmaxModel struct {
	mean, scale []float64 // of the features
	w           []float64 // classes × (features + 1), the last is the bias
	classes     int
}

// fitSoftmax minimises the mean cross entropy, every class weighing the same,
// plus 1e-3·½‖w‖², by accelerated gradient descent. The problem is convex: the
// result does not depend on where it starts.
func fitSoftmax(x [][]float32, y []int, classes int) *softmaxModel {
	n, d := len(x), len(x[0])
	m := &softmaxModel{mean: make([]float64, d), scale: make([]float64, d), w: make([]float64, classes*(d+1)), classes: classes}
	for _, row := range x {
		for j, v := range row {
			m.mean[j] += float64(v) / float64(n)
		}
	}
	for _, row := range x {
		for j, v := range row {
			e := float64(v) - m.mean[j]
			m.scale[j] += e * e / float64(n)
		}
	}
	for j, v := range m.scale {
		m.scale[j] = 1 / math.Sqrt(v+1e-12)
	}
	count := make([]float64, classes)
	for _, c := range y {
		count[c]++
	}
	z := make([]float64, n*(d+1))
	for i, row := range x {
		m.standardise(z[i*(d+1):(i+1)*(d+1)], row)
	}
	// The gradient's Lipschitz constant is at most ½·λmax(ZᵀDZ) + decay, D
	// being the samples' weights; the power method finds λmax.
	const decay = 1e-3
	weight := make([]float64, n)
	for i, c := range y {
		weight[i] = 1 / (count[c] * float64(classes))
	}
	v := slices.Repeat([]float64{1 / math.Sqrt(float64(d+1))}, d+1)
	lambda := 1.0
	for range 30 {
		next := make([]float64, d+1)
		for i := range n {
			row := z[i*(d+1) : (i+1)*(d+1)]
			s := dot(row, v) * weight[i]
			for j, zj := range row {
				next[j] += s * zj
			}
		}
		lambda = math.Sqrt(dot(next, next))
		if lambda == 0 {
			break
		}
		for j := range v {
			v[j] = next[j] / lambda
		}
	}
	step := 1 / (0.55*lambda + decay)

	ahead := slices.Clone(m.w) // Nesterov's look-ahead
	grad := make([]float64, len(m.w))
	p := make([]float64, classes)
	t := 1.0
	for range 500 {
		for j := range grad {
			grad[j] = decay * ahead[j]
		}
		for i := range n {
			row := z[i*(d+1) : (i+1)*(d+1)]
			softmax(p, ahead, row)
			p[y[i]]--
			for c := range p {
				g := p[c] * weight[i]
				if math.Abs(g) < 1e-12 {
					continue
				}
				dst := grad[c*(d+1) : (c+1)*(d+1)]
				for j, zj := range row {
					dst[j] += g * zj
				}
			}
		}
		next := (1 + math.Sqrt(1+4*t*t)) / 2
		beta := (t - 1) / next
		t = next
		largest := 0.0
		for j, g := range grad {
			largest = max(largest, math.Abs(g))
			w := ahead[j] - step*g
			ahead[j] = w + beta*(w-m.w[j])
			m.w[j] = w
		}
		if largest < 1e-5 {
			break
		}
	}
	return m
}

func (m *softmaxModel) standardise(dst []float64, row []float32) {
	for j, v := range row {
		dst[j] = (float64(v) - m.mean[j]) * m.scale[j]
	}
	dst[len(row)] = 1
}

func dot(a, b []float64) float64 {
	b = b[:len(a)]
	sum := 0.0
	for i, v := range a {
		sum += v * b[i]
	}
	return sum
}

// softmax fills p with the classes' probabilities.
func softmax(p, w, row []float64) {
	d := len(row)
	top := math.Inf(-1)
	for c := range p {
		p[c] = dot(w[c*d:(c+1)*d], row)
		top = max(top, p[c])
	}
	sum := 0.0
	for c := range p {
		p[c] = math.Exp(p[c] - top)
		sum += p[c]
	}
	for c := range p {
		p[c] /= sum
	}
}

// logProbability is that of a class, given a feature vector.
func (m *softmaxModel) logProbability(row []float32, class int) float64 {
	z := make([]float64, len(row)+1)
	m.standardise(z, row)
	p := make([]float64, m.classes)
	softmax(p, m.w, z)
	return math.Log(max(p[class], 1e-300))
}
