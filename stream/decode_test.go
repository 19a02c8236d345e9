package stream

import (
	"encoding/json"
	"testing"
)

// FuzzJob: what is taken for a job's record is that key's, and is taken again
// when it is written again.
func FuzzJob(f *testing.F) {
	f.Add("j1", []byte(`{"job":"j1","detector":"bolts","state":"done"}`))
	f.Add("j1", []byte(`{"job":"j2","state":"running"}`))
	f.Add("j1", []byte(`{"job":"j1","detector":"bolts","state":"queued","attempts":-1}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		j, err := decodeJob(key, value)
		if err != nil {
			return
		}
		if j.Job != key {
			t.Fatalf("%q was taken for the record of %q", j.Job, key)
		}
		again, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeJob(key, again); err != nil {
			t.Fatalf("%s is refused when it is written again as %s: %v", value, again, err)
		}
	})
}
