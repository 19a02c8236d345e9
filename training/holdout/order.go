package holdout

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"
)

// Shot says where and when a normal was taken.
type Shot struct {
	// Name is its file's, with slashes. Where Camera or At is not known, shots
	// whose names differ in their last number only are taken for one camera's, in
	// the order of these numbers.
	Name   string
	Camera string
	At     time.Time
}

// fewest shots that are taken as a sequence of its own; shorter ones are
// strung together.
const fewest = 12

// sequences are the shots, by places, of one camera after the other, each in the
// order in which they were taken.
func sequences(shots []Shot) [][]int {
	by := map[string][]int{}
	for i, s := range shots {
		key := "camera " + s.Camera
		if s.Camera == "" {
			key = "files " + series(s.Name)
		}
		by[key] = append(by[key], i)
	}
	earlier := func(a, b int) int {
		x, y := shots[a], shots[b]
		if !x.At.IsZero() && !y.At.IsZero() {
			if c := x.At.Compare(y.At); c != 0 {
				return c
			}
		}
		return cmp.Or(natural(x.Name, y.Name), cmp.Compare(a, b))
	}
	var out [][]int
	var rest []int
	for _, seq := range by {
		if len(seq) < fewest {
			rest = append(rest, seq...)
			continue
		}
		slices.SortFunc(seq, earlier)
		out = append(out, seq)
	}
	slices.SortFunc(out, func(a, b []int) int { return cmp.Compare(slices.Min(a), slices.Min(b)) })
	if len(rest) > 0 {
		slices.SortFunc(rest, func(a, b int) int {
			return cmp.Or(strings.Compare(shots[a].Camera, shots[b].Camera), earlier(a, b))
		})
		out = append(out, rest)
	}
	return out
}

// series is a file's name without its end and its last number.
func series(name string) string {
	name = strings.TrimSuffix(name, path.Ext(name))
	return strings.TrimRight(name, "0123456789")
}

// natural compares names so that numbers in them count as numbers: frame-9
// comes before frame-10.
func natural(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x > 0 && y > 0 {
			p, q := strings.TrimLeft(a[:x], "0"), strings.TrimLeft(b[:y], "0")
			if c := cmp.Or(cmp.Compare(len(p), len(q)), strings.Compare(p, q)); c != 0 {
				return c
			}
			a, b = a[x:], b[y:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits counts those that s begins with.
func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}
