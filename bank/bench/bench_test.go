package bench

import (
	"context"
	"encoding/json"
	"testing"
	"time"
)

func TestRunMeasuresEveryIndex(t *testing.T) {
	var got []string
	o := Options{Cases: []Case{{600, 24}}, Queries: 40, MinTime: time.Millisecond}
	err := Run(context.Background(), o, func(r Result) error {
		got = append(got, r.Index)
		if r.Count != 600 || r.Dim != 24 || r.K != 2 || r.BuildSeconds < 0 || r.Bytes < 600*24*4 ||
			r.QueriesPerSecond <= 0 || r.BatchPerSecond <= 0 || r.Recall <= 0 || r.Recall > 1+1e-9 || r.FirstExcess < 0 {
			t.Errorf("%+v", r)
		}
		if r.Index == "exact" && (r.Recall != 1 || !r.Served) {
			t.Errorf("%+v", r)
		}
		if r.Index == "hnsw" && (r.Recall < 0.99 || !r.Served || r.EfSearch == 0) {
			t.Errorf("%+v", r)
		}
		_, err := json.Marshal(r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(Indexes()) {
		t.Errorf("measured %v, want %v", got, Indexes())
	}
}

func TestRunRefusesNonsense(t *testing.T) {
	for name, o := range map[string]Options{
		"an unknown index": {Cases: []Case{{10, 2}}, Indexes: []string{"ivf"}},
		"too few entries":  {Cases: []Case{{1, 2}}},
	} {
		if err := Run(context.Background(), o, func(Result) error { return nil }); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
