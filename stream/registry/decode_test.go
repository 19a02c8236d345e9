package registry

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// FuzzPointer: what is taken for a pointer names a detector and a release, and
// is taken again when it is written again.
func FuzzPointer(f *testing.F) {
	digest := strings.Repeat("ab", 32)
	f.Add("bolts", []byte(`{"detector":"bolts","release":"`+digest+`","by":"me"}`))
	f.Add("shadow/bolts", []byte(`{"release":"`+digest+`"}`))
	f.Add("a.b", []byte(`{"release":"../../etc"}`))
	f.Add("bolts", []byte(`{"stream":"NM_FRAMES","seq":158}`))
	f.Add("bolts", []byte(`{"release":null}{}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		p, err := decodePointer(key, value)
		if err != nil {
			return
		}
		if !text.IsToken(strings.TrimPrefix(key, "shadow/")) || len(p.Release) != 64 {
			t.Fatalf("%q %q was taken: %+v", key, value, p)
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodePointer(key, again); err != nil {
			t.Fatalf("%s is refused when it is written again as %s: %v", value, again, err)
		}
	})
}
