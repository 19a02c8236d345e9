// Package predictions writes what was said of each image as a table for notebooks:
// CSV, JSON lines or Parquet, by the end of the file's name.
//
// Columns, the same in all three:
//
//	path       of the image
//	label      class or defect by the data set's folders; empty where there is none
//	score      novelty score; null for what could not be read
//	p          conformal p-value; in an evaluation, which holds nothing out, the share
//	           of its normal test images that score as high or higher
//	parts      what the score is made of: each part's own score by its name
//	regions    where the image is strange, hottest first: boxes in its own pixels
//	truth      whether it is an anomaly; null where nobody knows
//	anomalous  what the release calls it; null in an evaluation
//	threshold  of the release; null in an evaluation, or where nothing is anomalous
//	method, normal, seed   which run of an evaluation this is
//	reason     why there is no score
//
// In CSV, parts and regions are JSON. In Parquet, parts is a list of name and
// score.
package predictions

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/parquet-go/parquet-go"

	"github.com/nearmiss/nearmiss/inference/heatmap"
)

// Row is what was said of one image.
type Row struct {
	Path      string             `json:"path"`
	Label     string             `json:"label"`
	Score     *float64           `json:"score"`
	P         *float64           `json:"p"`
	Parts     map[string]float64 `json:"parts"`
	Regions   []heatmap.Region   `json:"regions"`
	Truth     *bool              `json:"truth"`
	Anomalous *bool              `json:"anomalous"`
	Threshold *float64           `json:"threshold"`
	Method    string             `json:"method,omitempty"`
	Normal    string             `json:"normal,omitempty"`
	Seed      *uint64            `json:"seed,omitempty"`
	Reason    string             `json:"reason,omitempty"`
}

// Formats are the ends of names that Create knows.
var Formats = []string{".csv", ".jsonl", ".parquet"}

// CheckName says whether a file's name tells its format.
func CheckName(path string) error {
	if !slices.Contains(Formats, strings.ToLower(filepath.Ext(path))) {
		return fmt.Errorf("%s: name a file that ends in %s", path, strings.Join(Formats, ", "))
	}
	return nil
}

// Table is a file that is being written. It appears whole, when Close succeeds, or
// not at all.
type Table struct {
	file *renameio.PendingFile
	to   encoder
}

type encoder interface {
	write(Row) error
	end() error
}

// Create begins a table. The end of the name says which format it has.
func Create(path string) (*Table, error) {
	if err := CheckName(path); err != nil {
		return nil, err
	}
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err != nil {
		return nil, err
	}
	return &Table{f, newEncoder(strings.ToLower(filepath.Ext(path)), f)}, nil
}

func newEncoder(format string, w io.Writer) encoder {
	switch format {
	case ".csv":
		return &csvTable{w: csv.NewWriter(w)}
	case ".parquet":
		return &parquetTable{parquet.NewGenericWriter[parquetRow](w, parquet.Compression(&parquet.Zstd))}
	}
	return jsonTable{json.NewEncoder(w)}
}

// Write appends a row.
func (t *Table) Write(r Row) error { return t.to.write(r) }

// Close writes what is left and gives the file its name.
func (t *Table) Close() error {
	if err := t.to.end(); err != nil {
		return errors.Join(err, t.file.Cleanup())
	}
	return t.file.CloseAtomicallyReplace()
}

// Abort leaves no file. After Close it does nothing.
func (t *Table) Abort() { _ = t.file.Cleanup() }

type jsonTable struct{ *json.Encoder }

func (t jsonTable) write(r Row) error {
	if r.Parts == nil {
		r.Parts = map[string]float64{}
	}
	if r.Regions == nil {
		r.Regions = []heatmap.Region{}
	}
	return t.Encode(r)
}

func (jsonTable) end() error { return nil }

var columns = []string{"path", "label", "score", "p", "parts", "regions", "truth", "anomalous", "threshold", "method", "normal", "seed", "reason"}

type csvTable struct {
	w     *csv.Writer
	begun bool
}

func (t *csvTable) write(r Row) error {
	if !t.begun {
		t.begun = true
		if err := t.w.Write(columns); err != nil {
			return err
		}
	}
	nested := func(v any, n int) (string, error) {
		if n == 0 {
			return "", nil
		}
		b, err := json.Marshal(v)
		return string(b), err
	}
	parts, err := nested(r.Parts, len(r.Parts))
	if err != nil {
		return err
	}
	regions, err := nested(r.Regions, len(r.Regions))
	if err != nil {
		return err
	}
	number := func(v *float64) string {
		if v == nil {
			return ""
		}
		return strconv.FormatFloat(*v, 'g', -1, 64)
	}
	truth := func(v *bool) string {
		if v == nil {
			return ""
		}
		return strconv.FormatBool(*v)
	}
	seed := ""
	if r.Seed != nil {
		seed = strconv.FormatUint(*r.Seed, 10)
	}
	return t.w.Write([]string{
		r.Path, r.Label, number(r.Score), number(r.P), parts, regions, truth(r.Truth), truth(r.Anomalous), number(r.Threshold),
		r.Method, r.Normal, seed, r.Reason,
	})
}

func (t *csvTable) end() error {
	if !t.begun {
		_ = t.w.Write(columns)
	}
	t.w.Flush()
	return t.w.Error()
}

// parquetRow is a Row in Parquet.
type parquetRow struct {
	Path      string          `parquet:"path,dict"`
	Label     string          `parquet:"label,dict"`
	Score     *float64        `parquet:"score,optional"`
	P         *float64        `parquet:"p,optional"`
	Parts     []parquetPart   `parquet:"parts,list"`
	Regions   []parquetRegion `parquet:"regions,list"`
	Truth     *bool           `parquet:"truth,optional"`
	Anomalous *bool           `parquet:"anomalous,optional"`
	Threshold *float64        `parquet:"threshold,optional"`
	Method    string          `parquet:"method,dict"`
	Normal    string          `parquet:"normal,dict"`
	Seed      *uint64         `parquet:"seed,optional"`
	Reason    string          `parquet:"reason,dict"`
}

type parquetPart struct {
	Name  string  `parquet:"name,dict"`
	Score float64 `parquet:"score"`
}

type parquetRegion struct {
	X      int32   `parquet:"x"`
	Y      int32   `parquet:"y"`
	Width  int32   `parquet:"width"`
	Height int32   `parquet:"height"`
	Area   int32   `parquet:"area"`
	Peak   float64 `parquet:"peak"`
	Faint  bool    `parquet:"faint"`
}

type parquetTable struct {
	w *parquet.GenericWriter[parquetRow]
}

func (t *parquetTable) write(r Row) error {
	row := parquetRow{
		Path: r.Path, Label: r.Label, Score: r.Score, P: r.P, Truth: r.Truth, Anomalous: r.Anomalous, Threshold: r.Threshold,
		Method: r.Method, Normal: r.Normal, Seed: r.Seed, Reason: r.Reason,
	}
	for _, name := range slices.Sorted(maps.Keys(r.Parts)) {
		row.Parts = append(row.Parts, parquetPart{name, r.Parts[name]})
	}
	for _, g := range r.Regions {
		row.Regions = append(row.Regions, parquetRegion{int32(g.X), int32(g.Y), int32(g.Width), int32(g.Height), int32(g.Area), g.Peak, g.Faint})
	}
	_, err := t.w.Write([]parquetRow{row})
	return err
}

func (t *parquetTable) end() error { return t.w.Close() }
