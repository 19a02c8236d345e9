package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
)

// looks are the ways in which the page is photographed: window in CSS pixels, pixels
// of the screen for each, colours.
var looks = []struct {
	name          string
	width, height int64
	scale         float64
	theme         string
}{
	{"light", 1280, 860, 1, "light"}, {"dark", 1280, 860, 1, "dark"}, {"phone", 360, 780, 2, "light"}, {"zoom", 640, 430, 2, "dark"},
}

// TestThePageIsPhotographed takes a picture of every page into NEARMISS_SCREENSHOTS
// (make screenshots), to be looked at: with cameras, sinks that fail, a detector with a
// long name that cannot be trained, frames that cannot be read, and users.
func TestThePageIsPhotographed(t *testing.T) {
	dir := os.Getenv("NEARMISS_SCREENSHOTS")
	if dir == "" {
		t.Skip("make screenshots runs this")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	needRuntime(t)
	browser := newBrowser(t)
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer receiver.Close()
	a, nc := upWithPage(t)
	server := "--server=" + a.NATS
	b := openTab(t, browser, a.Console)
	look := func(width, height int64, scale float64) {
		t.Helper()
		if _, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: scale}); err != nil {
			t.Fatal(err)
		}
	}
	photograph := func(name string) {
		t.Helper()
		quality := int64(80)
		r, err := chromedp.Call(b.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatWebp, Quality: &quality})
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name+".webp"), string(r.Data))
	}
	all := func(name, place, text string) {
		t.Helper()
		for _, l := range looks {
			look(l.width, l.height, l.scale)
			js[any](b, fmt.Sprintf(`document.documentElement.dataset.theme = %q`, l.theme))
			if place != "" {
				b.visit(place, text)
			}
			b.see("its pictures", `[...document.images].every((i) => i.hidden || i.complete || i.loading === "lazy")`)
			later[any](b, `Promise.race([Promise.all([...document.images].filter((i) => i.getBoundingClientRect().top < innerHeight && i.checkVisibility()).map((i) => i.decode().catch(() => 0))), new Promise((f) => setTimeout(f, 3000))]).then(() => new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(() => f(1)))))`)
			photograph(name + "-" + l.name)
		}
	}

	b.goTo("#/wall")
	b.see("the page", `document.querySelector("h1")`)
	all("empty-sinks", "#/sinks", "Events go nowhere yet")
	all("empty-alarms", "#/alarms?state=seen", "Nothing")
	good := t.TempDir()
	s, err := synthetic.New(synthetic.Parts, 3, synthetic.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 120 {
		img, _ := s.Next()
		file, err := img.JPEG(95)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(good, fmt.Sprintf("%03d.jpg", i)), string(file))
	}
	program(t, 0, "detector", "create", "parts", "--description", "turned parts before the lid goes on", server)
	program(t, 0, "normals", "add", "parts", good, server)
	program(t, 0, "train", "parts", "--wait", server)
	for i, camera := range []string{"line1", "line2"} {
		start(t, "camera", "synthetic:parts", "--detector", "parts", "--camera", camera, "--fps", "2", "--defects", "0.25", "--seed", fmt.Sprint(10+i), server)
	}
	const long = "housing-left-rear-cover-with-gasket-inspection-at-station-7b"
	program(t, 0, "detector", "create", long, "--description", "Left rear cover of the housing, with its gasket, as the camera above the belt of station 7b sees it", server)
	program(t, 0, "sinks", "add", "quality-desk", "webhook", "--url", receiver.URL, "--allow-loopback", "--no-secret", server)
	program(t, 0, "sinks", "add", "notification-channel-of-the-night-shift-of-production-line-4", "webhook", "--url", "http://127.0.0.1:9/alarms", "--allow-loopback", "--no-secret", "--hours", "Mon-Sun 00:00-24:00", server)
	program(t, 0, "sinks", "add", "keep", "archive", "--url", t.TempDir(), server)
	for i := range 3 {
		m := nats.NewMsg(stream.Names{}.Frames("parts", "line9"))
		m.Data = fmt.Appendf(nil, "no image %d", i)
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	b.goTo("#/alarms?rows=frames")
	b.see("twelve alarms", `document.querySelectorAll(".row").length >= 12`)
	fetch[any](b, "POST", "api/v1/detectors/"+long+"/train", `JSON.stringify({})`)
	seq := func(i int) string { return fmt.Sprintf(`Number(document.querySelectorAll(".row")[%d].id.slice(4))`, i) }
	fetch[any](b, "POST", "api/v1/verdicts", `JSON.stringify({events: [`+seq(1)+`, `+seq(2)+`], verdict: "anomalous", hold: 0})`)
	fetch[any](b, "POST", "api/v1/verdicts", `JSON.stringify({events: [`+seq(4)+`], verdict: "normal", reason: "dirt", hold: 0})`)
	fetch[any](b, "POST", "api/v1/verdicts", `JSON.stringify({events: [`+seq(6)+`], verdict: "seen", hold: 0})`)
	fetch[any](b, "PATCH", "api/v1/detectors/parts", `JSON.stringify({false_alarm_rate: 0.05})`)
	b.visit("#/jobs", "failed")
	for _, sink := range []string{"quality-desk", "notification-channel-of-the-night-shift-of-production-line-4"} {
		eventually.True(t, "the sink", func() bool {
			status, _ := fetch[any](b, "POST", "api/v1/sinks/"+sink+"/test", "JSON.stringify({})")
			return status == http.StatusOK
		})
	}
	look(looks[0].width, looks[0].height, looks[0].scale)
	b.visit("#/wall", "line1")
	later[any](b, `new Promise((f) => setTimeout(f, 20000))`) // so that its strips have something to show
	all("wall", "", "")
	look(looks[0].width, looks[0].height, looks[0].scale)
	b.visit("#/alarms", "Facts")
	js[any](b, `[...document.querySelectorAll(".row")].map((e) => [parseFloat(e.innerText.match(/([0-9.]+) ×/)?.[1]), e]).sort((a, b) => b[0] - a[0])[0][1].click()`) // the strangest
	b.see("it", `document.querySelector(".sheet img.over")`)
	all("alarms", "", "")
	all("frames", "#/alarms?rows=frames", "Facts")
	all("judged", "#/alarms?rows=frames&state=false_alarm", "Facts")
	all("rejected", "#/alarms?kind=rejected", "Code")
	all("camera", "#/camera/parts/line1", "Last alarms")
	all("detectors", "#/detectors", long)
	all("new", "#/detectors/new", "Learn what is normal")
	for tab, text := range map[string]string{"tune": "held-out", "area": "Parts", "train": "Job", "releases": "History", "data": "normals"} {
		all(tab, "#/d/parts/"+tab, text)
	}
	b.visit("#/d/parts/data", "normals")
	b.set("select[aria-label=Order]", "strange")
	b.see("the strangest", `document.querySelector(".cell .score")`)
	all("strangest", "", "")
	all("long", "#/d/"+long+"/tune", long)
	all("jobs", "#/jobs", "failed")
	all("health", "#/health", "Workers")
	all("sinks", "#/sinks", "quality-desk")
	b.press("New sink")
	b.see("the form", `document.querySelector("dialog[open] form")`)
	all("sink", "", "")
	all("audit", "#/audit", "detector/parts")
	b.visit("#/wall", "line1")
	b.do(chromedp.KeyEvent("?"))
	b.see("the keys", `document.querySelector("dialog[open]")`)
	all("keys", "", "")
	b.visit("#/users", "Users")
	if status, _ := fetch[any](b, "POST", "api/v1/users", `JSON.stringify({name: "anna", password: "correct horse battery", role: "admin"})`); status != http.StatusCreated {
		t.Fatal(status)
	}
	b.goTo("#/wall")
	b.see("the form", `document.querySelector("form.sign")`)
	all("sign-in", "", "")
	look(looks[0].width, looks[0].height, looks[0].scale) // narrow ones do not say who is signed in
	b.do(chromedp.SendKeys("form.sign input[autocomplete=username]", "anna"), chromedp.SendKeys("form.sign input[type=password]", "correct horse battery"))
	b.press("Sign in")
	b.shows("anna ·")
	fetch[any](b, "POST", "api/v1/users", `JSON.stringify({name: "night-shift-of-production-line-4", password: "correct horse battery", role: "operator"})`)
	fetch[any](b, "POST", "api/v1/tokens", `JSON.stringify({name: "dashboard", role: "viewer", days: 90})`)
	all("users", "#/users", "dashboard")
}
