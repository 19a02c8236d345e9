package sink_test

import (
	"encoding/base64"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// linked is what a link says: what it is of, and its query.
func linked(t *testing.T, link string) (detector, event, name string, q url.Values) {
	t.Helper()
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	rest, ok := strings.CutPrefix(u.EscapedPath(), "/base/api/v1/pictures/")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		t.Fatalf("link %s", link)
	}
	for i, p := range parts {
		if parts[i], err = url.PathUnescape(p); err != nil {
			t.Fatal(err)
		}
	}
	return parts[0], parts[1], parts[2], u.Query()
}

// A link is good for what it was made for, and until its time is over; nothing else
// is.
func TestLinksAreOfOnePictureForAWhile(t *testing.T) {
	path := sink.LinkKeyFile(t.TempDir())
	if err := sink.EnsureLinkKey(path); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	l := &sink.Links{Key: "file:" + path, Now: func() time.Time { return now }}
	e := stream.Event{Detector: "bolts", ID: `a/b "c"`, Pictures: "NM_EVIDENCE/x"}
	link, err := l.Picture("https://nearmiss.example.org/base/", e, sink.Overlay)
	if err != nil {
		t.Fatal(err)
	}
	d, id, name, q := linked(t, link)
	if err := l.Verify(d, id, name, q); d != "bolts" || id != e.ID || name != sink.Overlay || err != nil {
		t.Fatalf("%s: %q %q %q, %v", link, d, id, name, err)
	}
	with := func(k, v string) url.Values {
		out := url.Values{}
		for name := range q {
			out.Set(name, q.Get(name))
		}
		out.Set(k, v)
		return out
	}
	s := q.Get("s")
	for what, err := range map[string]error{
		"another detector":  l.Verify("nuts", id, name, q),
		"another event":     l.Verify(d, id+"1", name, q),
		"another picture":   l.Verify(d, id, "heat.png", q),
		"parts moved":       l.Verify(d, id+`" "`+name, "", q),
		"a longer life":     l.Verify(d, id, name, with("e", q.Get("e")+"0")),
		"no end":            l.Verify(d, id, name, with("e", "")),
		"a cut signature":   l.Verify(d, id, name, with("s", s[:len(s)-1])),
		"another signature": l.Verify(d, id, name, with("s", strings.ToUpper(s))),
		"no signature":      l.Verify(d, id, name, with("s", "")),
		"nothing":           l.Verify(d, id, name, nil),
	} {
		if !errors.Is(err, sink.ErrBadLink) {
			t.Errorf("%s: %v", what, err)
		}
	}
	now = now.Add(sink.LinkAge)
	if err := l.Verify(d, id, name, q); err != nil {
		t.Errorf("at its last second: %v", err)
	}
	now = now.Add(time.Second)
	if err := l.Verify(d, id, name, q); !errors.Is(err, sink.ErrLinkExpired) {
		t.Errorf("after its time: %v", err)
	}
	if link, err := l.Picture("https://c", stream.Event{Detector: "bolts", ID: "a"}, sink.Overlay); link != "" || err != nil {
		t.Errorf("an event without pictures has the link %q, %v", link, err)
	}
	for what, none := range map[string]*sink.Links{"nil": nil, "no key": {}} {
		if err := none.Verify(d, id, name, q); !errors.Is(err, sink.ErrNoLinks) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A key is replaced while links of the one before are out; the one before that is
// known no more, and with drop none is.
func TestLinksOutliveOneNewKey(t *testing.T) {
	path := sink.LinkKeyFile(filepath.Join(t.TempDir(), "data"))
	l := &sink.Links{Key: "file:" + path}
	e := stream.Event{Detector: "bolts", ID: "a", Pictures: "p"}
	var links []string
	made := func() {
		t.Helper()
		link, err := l.Picture("http://c/base", e, sink.Overlay)
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, link)
	}
	good := func() (out string) {
		for _, link := range links {
			d, id, name, q := linked(t, link)
			if err := l.Verify(d, id, name, q); err == nil {
				out += "y"
			} else {
				out += "n"
			}
		}
		return out
	}
	for i, step := range []struct {
		drop bool
		want string
	}{{false, "y"}, {false, "yy"}, {false, "nyy"}, {true, "nnny"}} {
		if err := sink.NewLinkKey(path, step.drop); err != nil {
			t.Fatal(err)
		}
		made()
		if got := good(); got != step.want {
			t.Errorf("after key %d: %s, want %s", i+1, got, step.want)
		}
	}
	before, _ := os.ReadFile(path)
	if err := sink.EnsureLinkKey(path); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("a key that is there was replaced")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	for what, text := range map[string]string{"short": base64.StdEncoding.EncodeToString([]byte("hunter2")), "not base64": "hunter2!", "empty": " \n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.Check(); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a key that is %s: %v", what, err)
		}
		if err := errors.Join(sink.NewLinkKey(path, false), l.Check()); err != nil {
			t.Errorf("a new key in the place of one that is %s: %v", what, err)
		}
	}
}
