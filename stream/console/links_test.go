package console

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// A link shows its picture to who has not signed in, in pages of other sites, too,
// and that one only; whatever else is asked in its way tells nothing of what there is.
func TestALinkShowsItsPicture(t *testing.T) {
	path := sink.LinkKeyFile(t.TempDir())
	if err := sink.EnsureLinkKey(path); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	links := &sink.Links{Key: "file:" + path}
	cfg := config()
	cfg.Links = &sink.Links{Key: links.Key, Now: func() time.Time { return now }}
	h := newHall(t, cfg)
	h.person("root", Admin) // from now on who asks must sign in
	h.alarm("a")
	var events []stream.Event
	for _, id := range []string{"a", "b"} {
		e := stream.Event{Detector: "parts", ID: id, Pictures: h.names.EvidenceBucket() + "/parts/" + id}
		archive, err := (stream.Evidence{Event: e, Pictures: []stream.Picture{{Name: sink.Overlay, Data: pixels()}, {Name: "heat.png", Data: pixels()}}}).Archive()
		if err != nil {
			t.Fatal(err)
		}
		store, err := h.js.ObjectStore(t.Context(), h.names.EvidenceBucket())
		if err == nil {
			_, err = store.PutBytes(t.Context(), "parts/"+id, archive)
		}
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	link := func(e stream.Event) string {
		t.Helper()
		s, err := links.Picture(h.url, e, sink.Overlay)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	get := func(link string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, link, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Sec-Fetch-Site", "cross-site") // a mailbox's page
		a, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		b, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		h.check(r, a, b)
		return a, string(b)
	}
	good := link(events[0])
	a, body := get(good)
	if a.StatusCode != 200 || body != string(pixels()) || a.Header.Get("Content-Type") != "image/jpeg" || a.Header.Get("Cross-Origin-Resource-Policy") != "cross-origin" {
		t.Fatalf("%s: %s %q\n%.100q", good, a.Status, a.Header, body)
	}
	if cookie := a.Header.Get("Set-Cookie"); cookie != "" {
		t.Errorf("a link signs in: %s", cookie)
	}
	said := map[string]bool{}
	for what, at := range map[string]string{
		"another event":    strings.Replace(good, "/parts/a/", "/parts/b/", 1),
		"no event":         strings.Replace(good, "/parts/a/", "/parts/none/", 1),
		"another detector": strings.Replace(good, "/parts/", "/bolts/", 1),
		"another picture":  strings.Replace(good, "overlay.jpg", "heat.png", 1),
		"unsigned":         good[:strings.Index(good, "&s=")],
		"no parameters":    good[:strings.Index(good, "?")],
	} {
		a, body := get(at)
		if a.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s %.200s", what, a.Status, body)
		}
		said[body] = true
	}
	if len(said) != 1 {
		t.Errorf("refusals tell what there is: %v", said)
	}
	// What is gone, with its event's evidence, is not found; then all is over.
	store, err := h.js.ObjectStore(t.Context(), h.names.EvidenceBucket())
	if err == nil {
		err = store.Delete(t.Context(), "parts/b")
	}
	if err != nil {
		t.Fatal(err)
	}
	if a, body := get(link(events[1])); a.StatusCode != http.StatusNotFound {
		t.Errorf("deleted evidence: %s %.100q", a.Status, body)
	}
	if err := sink.NewLinkKey(path, false); err != nil {
		t.Fatal(err)
	}
	if a, _ := get(good); a.StatusCode != 200 {
		t.Errorf("after a new key: %s", a.Status)
	}
	if err := sink.NewLinkKey(path, true); err != nil {
		t.Fatal(err)
	}
	if a, _ := get(good); a.StatusCode != http.StatusForbidden {
		t.Errorf("after its key was dropped: %s", a.Status)
	}
	late := link(events[0])
	h.stop()
	now = now.Add(sink.LinkAge + time.Minute)
	h.start(cfg)
	late = h.url + strings.SplitN(late, "/", 4)[3]
	if a, _ := get(late); a.StatusCode != http.StatusGone {
		t.Errorf("after its time: %s", a.Status)
	}
}
