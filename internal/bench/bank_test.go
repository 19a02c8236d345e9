package bench

import (
	"context"
	"encoding/json"
	"testing"
	"time"
)

func TestBankMeasuresEveryIndex(t *testing.T) {
	var got []string
	o := BankOptions{Cases: []BankCase{{600, 24}}, Queries: 40, MinTime: time.Millisecond}
	err := Bank(context.Background(), o, func(r BankResult) error {
		got = append(got, r.Index)
		if r.Count != 600 || r.Dim != 24 || r.K != 2 || r.BuildSeconds < 0 || r.Bytes < 600*24*4 ||
			r.QueriesPerSecond <= 0 || r.BatchPerSecond <= 0 || r.Recall <= 0 || r.Recall > 1+1e-9 || r.FirstExcess < 0 {
			t.Errorf("%+v", r)
		}
		if loaded := r.LoadSeconds > 0; loaded != (r.Served && r.Index != "coder") {
			t.Errorf("%s was loaded: %v", r.Index, loaded)
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
	if len(got) != len(bankIndexes()) {
		t.Errorf("measured %v, want %v", got, bankIndexes())
	}
}

func TestBankRefusesNonsense(t *testing.T) {
	for name, o := range map[string]BankOptions{
		"an unknown index": {Cases: []BankCase{{10, 2}}, Indexes: []string{"ivf"}},
		"too few entries":  {Cases: []BankCase{{1, 2}}},
	} {
		if err := Bank(context.Background(), o, func(BankResult) error { return nil }); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
