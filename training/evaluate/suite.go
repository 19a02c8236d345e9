package evaluate

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// Suite is several data sets that a method is to be good on: measured in one run,
// so that one number steers.
type Suite struct {
	Sets []SuiteSet `yaml:"sets"`
}

// SuiteSet is one data set and how it is measured.
type SuiteSet struct {
	// Name is the set's, for people; unique. Default: the folder's.
	Name string `yaml:"name"`
	// Data is the folder, relative to the suite's file.
	Data string `yaml:"data"`
	// Protocol is one-vs-rest, near or mvtec.
	Protocol string `yaml:"protocol"`
	// The rest is as in Options.
	Repeats    int      `yaml:"repeats"`
	Seed       uint64   `yaml:"seed"`
	Resplit    float64  `yaml:"resplit"`
	Normal     []string `yaml:"normal"`
	TrainLimit int      `yaml:"train-limit"`
	TestLimit  int      `yaml:"test-limit"`
}

// ParseSuite reads a suite in YAML; folders are relative to dir.
func ParseSuite(b []byte, dir string) (Suite, error) {
	var s Suite
	d := yaml.NewDecoder(bytes.NewReader(b), yaml.DisallowUnknownField())
	if err := d.Decode(&s); err != nil && !errors.Is(err, io.EOF) {
		return Suite{}, fmt.Errorf("read the suite: %w", err)
	}
	if len(s.Sets) == 0 {
		return Suite{}, errors.New(`read the suite: it has no sets: list them below "sets:"`)
	}
	var errs []error
	for i := range s.Sets {
		x := &s.Sets[i]
		if x.Data == "" {
			errs = append(errs, fmt.Errorf("set %d: no data folder is named", i+1))
			continue
		}
		if !filepath.IsAbs(x.Data) {
			x.Data = filepath.Join(dir, x.Data)
		}
		x.Name = cmp.Or(x.Name, filepath.Base(x.Data))
		switch x.Protocol {
		case ProtocolOneVsRest, ProtocolNear, ProtocolMVTec:
		default:
			errs = append(errs, fmt.Errorf("set %s: protocol %q: take %s, %s or %s", x.Name, x.Protocol, ProtocolOneVsRest, ProtocolNear, ProtocolMVTec))
		}
		if x.Repeats < 0 || x.TrainLimit < 0 || x.TestLimit < 0 || !(x.Resplit >= 0 && x.Resplit < 1) {
			errs = append(errs, fmt.Errorf("set %s: %d repeats, limits %d and %d, share %v for training", x.Name, x.Repeats, x.TrainLimit, x.TestLimit, x.Resplit))
		}
		if slices.ContainsFunc(s.Sets[:i], func(o SuiteSet) bool { return o.Name == x.Name }) {
			errs = append(errs, fmt.Errorf("two sets are called %s: give one a name", x.Name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Suite{}, fmt.Errorf("read the suite: %w", err)
	}
	return s, nil
}

// SuiteRow is what one method reaches on one set, or all sets. Rates are fractions
// of 1; what was not measured is nil.
type SuiteRow struct {
	Set              string   `json:"set"`
	Method           string   `json:"method"`
	AUROC            float64  `json:"auroc"`
	Std              float64  `json:"auroc_std,omitempty"`
	AveragePrecision float64  `json:"average_precision"`
	Partial          float64  `json:"auroc_to_5_percent"` // see partialAUROC
	Nearest          *float64 `json:"nearest,omitempty"`  // near: against the nearest class alone
	PixelAUROC       *float64 `json:"pixel_auroc,omitempty"`
	PRO              *float64 `json:"pro,omitempty"`
	Cost             *Cost    `json:"cost,omitempty"`
	// Light is of normals in other light, where that was asked for.
	Light *Light `json:"light,omitempty"`
}

// SuiteAlarms is the false-alarm rate up to which SuiteRow.Partial looks.
const SuiteAlarms = 0.05

// Row sums a result up.
func (r *Result) Row(set string) SuiteRow {
	out := SuiteRow{Set: set, Method: r.Method, AUROC: r.AUROC, Std: r.Std, PixelAUROC: r.PixelAUROC, PRO: r.PRO, Cost: r.Cost, Light: r.Light}
	if len(r.Nearest) > 0 {
		out.Nearest = &r.Nearest[0]
	}
	n := 0.0
	for _, run := range r.Runs {
		normal, anomalous := run.Split("")
		if len(normal) == 0 || len(anomalous) == 0 {
			continue
		}
		out.AveragePrecision += AveragePrecision(normal, anomalous)
		out.Partial += partialAUROC(normal, anomalous, SuiteAlarms)
		n++
	}
	out.AveragePrecision, out.Partial = out.AveragePrecision/n, out.Partial/n
	return out
}

// Names of the rows that sum a suite up.
const (
	SuiteMean  = "mean"
	SuiteWorst = "worst"
)

// Summary is the mean and the worst of each method over all sets, in the order in
// which methods come up.
func Summary(rows []SuiteRow) []SuiteRow {
	var out []SuiteRow
	var methods []string
	for _, r := range rows {
		if !slices.Contains(methods, r.Method) {
			methods = append(methods, r.Method)
		}
	}
	for _, method := range methods {
		mean, worst := SuiteRow{Set: SuiteMean, Method: method}, SuiteRow{Set: SuiteWorst, Method: method, AUROC: 1, AveragePrecision: 1, Partial: 1}
		n := 0.0
		for _, r := range rows {
			if r.Method != method {
				continue
			}
			n++
			mean.AUROC, mean.AveragePrecision, mean.Partial = mean.AUROC+r.AUROC, mean.AveragePrecision+r.AveragePrecision, mean.Partial+r.Partial
			worst.AUROC, worst.AveragePrecision = min(worst.AUROC, r.AUROC), min(worst.AveragePrecision, r.AveragePrecision)
			worst.Partial = min(worst.Partial, r.Partial)
		}
		mean.AUROC, mean.AveragePrecision, mean.Partial = mean.AUROC/n, mean.AveragePrecision/n, mean.Partial/n
		out = append(out, mean, worst)
	}
	return out
}

// SuiteTable is rows as a table in Markdown, in per cent.
func SuiteTable(rows []SuiteRow) string {
	var b strings.Builder
	b.WriteString("| set | method | AUROC | AP | AUROC to 5 % false alarms | nearest | pixel AUROC | PRO | ms a picture | banks, MiB | other light: AUROC, false alarms |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	percent := func(v *float64) string {
		if v == nil || math.IsNaN(*v) {
			return ""
		}
		return fmt.Sprintf("%.1f", 100**v)
	}
	for _, r := range rows {
		auroc := percent(&r.AUROC)
		if r.Std > 0 {
			auroc += fmt.Sprintf(" ± %.1f", 100*r.Std)
		}
		var time, memory, light string
		if r.Cost != nil {
			time, memory = fmt.Sprintf("%.0f", r.Cost.Milliseconds), fmt.Sprintf("%.0f", float64(r.Cost.Banks)/(1<<20))
		}
		if r.Light != nil {
			light = fmt.Sprintf("%.1f, %.1f → %.1f", 100*r.Light.AUROC, 100*r.Light.Usual, 100*r.Light.Alarms)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r.Set, strings.ReplaceAll(r.Method, "|", "\\|"), auroc,
			percent(&r.AveragePrecision), percent(&r.Partial), percent(r.Nearest), percent(r.PixelAUROC), percent(r.PRO), time, memory, light)
	}
	return b.String()
}

// Cost is what judging an image takes.
type Cost struct {
	Milliseconds float64 `json:"milliseconds"` // from file to verdict, one image at a time, at the median
	Parts        int     `json:"parts"`        // of the score
	Banks        int64   `json:"bank_bytes"`   // of all vectors in memory
	Model        int64   `json:"model_bytes"`  // of the network's file
}
