// Package report writes the results of an evaluation: JSON lines for programs,
// a Markdown table for documents, and one self-contained HTML page with curves,
// histograms and the images that were judged worst.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/training/evaluate"
)

// JSONLines writes one object a result, one a line. Field names are those of
// [evaluate.Result].
func JSONLines(w io.Writer, results []evaluate.Result) error {
	enc := json.NewEncoder(w)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("write result of %s on %s: %w", r.Protocol, r.Data, err)
		}
	}
	return nil
}

// Markdown writes a table for each data set and protocol, one line a method:
// AUROC in per cent, by class or defect and overall.
func Markdown(w io.Writer, results []evaluate.Result) error {
	var b strings.Builder
	for i, g := range group(results) {
		if i > 0 {
			b.WriteString("\n")
		}
		first := g[0]
		columns := columnsOf(g)
		fmt.Fprintf(&b, "%s, %s: %s, AUROC in %%\n\n", first.Data, first.Protocol, splits(first))
		b.WriteString("| method |")
		for _, c := range columns {
			fmt.Fprintf(&b, " %s |", strings.ReplaceAll(c, "|", "\\|"))
		}
		fmt.Fprintf(&b, " %s |", overall(first))
		pixels := slices.ContainsFunc(g, func(r evaluate.Result) bool { return r.PixelAUROC != nil })
		if pixels {
			b.WriteString(" pixels | PRO |")
		}
		b.WriteString(" seconds |\n|---|")
		b.WriteString(strings.Repeat("---|", len(columns)+2))
		if pixels {
			b.WriteString("---|---|")
		}
		b.WriteString("\n")
		for _, r := range g {
			fmt.Fprintf(&b, "| %s |", r.Method)
			named := figures(r)
			for _, c := range columns {
				if v, ok := named[c]; ok {
					fmt.Fprintf(&b, " %.1f |", 100*v)
				} else {
					b.WriteString(" |")
				}
			}
			fmt.Fprintf(&b, " %s |", percent(r.AUROC, r.Std, r.Repeats))
			if pixels {
				for _, v := range []*float64{r.PixelAUROC, r.PRO} {
					if v == nil {
						b.WriteString(" |")
					} else {
						fmt.Fprintf(&b, " %.1f |", 100**v)
					}
				}
			}
			fmt.Fprintf(&b, " %.1f |\n", r.Seconds)
		}
		if len(first.Bottom) > 0 {
			b.WriteString("\n| method | order | 1 class | ")
			for n := 2; n <= len(first.Bottom); n++ {
				fmt.Fprintf(&b, "%d | ", n)
			}
			b.WriteString("\n|---|---|" + strings.Repeat("---|", len(first.Bottom)) + "\n")
			for _, r := range g {
				for _, row := range []struct {
					name string
					v    []float64
				}{{"closest", r.Nearest}, {"hardest (bottom-i)", r.Bottom}} {
					fmt.Fprintf(&b, "| %s | %s |", r.Method, row.name)
					for _, v := range row.v {
						fmt.Fprintf(&b, " %.1f |", 100*v)
					}
					b.WriteString("\n")
				}
			}
		}
	}
	for _, r := range results {
		markdownPixels(&b, r)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// markdownPixels writes the pixel measures of each kind of anomaly.
func markdownPixels(b *strings.Builder, r evaluate.Result) {
	if len(r.Pixels) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s, %s, %s: pixels in %%; what the method does not look at counts as missed\n\n", r.Data, r.Protocol, r.Method)
	b.WriteString("| anomaly | regions | pixel AUROC | PRO | seen | AUROC of what is seen | PRO of what is seen |\n|---|---|---|---|---|---|---|\n")
	for _, label := range PixelLabels(r) {
		f := r.Pixels[label]
		fmt.Fprintf(b, "| %s | %d | %.1f | %.1f | %.1f | %.1f | %.1f |\n", label, f.Regions, 100*f.AUROC, 100*f.PRO, 100*f.Covered, 100*f.CoveredAUROC, 100*f.CoveredPRO)
	}
}

// PixelLabels are the kinds of anomaly with pixel measures, all together last.
func PixelLabels(r evaluate.Result) []string {
	names := slices.Sorted(maps.Keys(r.Pixels))
	if i := slices.Index(names, evaluate.All); i >= 0 {
		names = append(slices.Delete(names, i, i+1), evaluate.All)
	}
	return names
}

// group puts results of the same question together, in the order given.
func group(results []evaluate.Result) [][]evaluate.Result {
	var out [][]evaluate.Result
	at := map[string]int{}
	for _, r := range results {
		k := fmt.Sprint(r.Data, "\x00", r.Protocol, "\x00", r.Resplit, r.Repeats)
		if i, ok := at[k]; ok {
			out[i] = append(out[i], r)
			continue
		}
		at[k] = len(out)
		out = append(out, []evaluate.Result{r})
	}
	return out
}

func figures(r evaluate.Result) map[string]float64 {
	if r.PerDefect != nil {
		return r.PerDefect
	}
	return r.PerClass
}

func columnsOf(g []evaluate.Result) []string {
	seen := map[string]bool{}
	for _, r := range g {
		for c := range figures(r) {
			seen[c] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func overall(r evaluate.Result) string {
	if r.Protocol == evaluate.ProtocolMVTec {
		return "all defects"
	}
	return "mean"
}

func splits(r evaluate.Result) string {
	switch {
	case r.Resplit > 0:
		return fmt.Sprintf("%d random splits, %.0f %% for training", r.Repeats, 100*r.Resplit)
	case r.Repeats > 1:
		return fmt.Sprintf("the set's own split, %d seeds", r.Repeats)
	}
	return "the set's own split"
}

func percent(mean, std float64, repeats int) string {
	if repeats > 1 {
		return fmt.Sprintf("%.1f ± %.1f", 100*mean, 100*std)
	}
	return fmt.Sprintf("%.1f", 100*mean)
}
