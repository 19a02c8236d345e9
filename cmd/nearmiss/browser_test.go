package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// tab is a page of a browser.
type tab struct {
	t    *testing.T
	ctx  context.Context
	base string // where the console is, with a slash at its end

	mu      sync.Mutex
	foreign []string // requests that went elsewhere
}

// browserPatience is how long what a page must show is waited for; a training is
// among it.
const browserPatience = 3 * time.Minute

// newBrowser starts Chromium, or skips the test where there is none that starts.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Skip("no Chromium on this machine (Debian: apt-get install chromium): the page is not tried in a browser")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Skipf("Chromium does not start here, so that the page is not tried in a browser: %v", err)
	}
	return ctx
}

// openTab is another tab of the browser.
func openTab(t *testing.T, browser context.Context, base string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx, base: base}
	if err := chromedp.Listen(ctx, func(ev any) {
		if r, ok := ev.(*network.EventRequestWillBeSent); ok && !strings.HasPrefix(r.Request.URL, base) && !strings.HasPrefix(r.Request.URL, "about:") && !strings.HasPrefix(r.Request.URL, "blob:") {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.foreign = append(b.foreign, r.Request.URL)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// upWithPage starts all that up does, and a connection to its broker.
func upWithPage(t *testing.T) (printed, *nats.Conn) {
	t.Helper()
	a := start(t, "up", "--data", t.TempDir(), "--port=-1", "--json").addresses()
	nc, err := stream.Connect(a.NATS, "test", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return a, nc
}

// goTo loads the page at a place.
func (b *tab) goTo(place string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserPatience)
	defer cancel()
	for {
		err := chromedp.Do(ctx, chromedp.Navigate("about:blank"), chromedp.Navigate(b.base+place))
		if err == nil {
			return
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "ERR_ABORTED") { // the page was about to load itself again
			b.t.Fatal(err)
		}
	}
}

// visit goes from one place of the page to another, without loading it again, and
// waits until it shows a text.
func (b *tab) visit(place, text string) {
	b.t.Helper()
	js[any](b, fmt.Sprintf(`(() => { document.getElementById("main").replaceChildren(); if (location.hash === %q) dispatchEvent(new HashChangeEvent("hashchange")); else location.hash = %q; })()`, place, place))
	b.see(place, fmt.Sprintf(`document.querySelector("h1") && document.querySelector("main").innerText.includes(%q)`, text))
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserPatience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// js computes an expression in the page; a page that is about to change gives the
// zero value.
func js[T any](b *tab, expression string) T {
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		var none T
		return none
	}
	return v
}

// see waits until an expression is true in the page.
func (b *tab) see(what, expression string) {
	b.t.Helper()
	for end := time.Now().Add(browserPatience); !js[bool](b, "Boolean("+expression+")"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("the page does not show %s; it shows:\n%.2000s", what, js[string](b, "document.body.innerText"))
		}
	}
}

// shows waits until the page's text has a part.
func (b *tab) shows(text string) {
	b.t.Helper()
	b.see(fmt.Sprintf("%q", text), fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

// later computes an expression that is a promise.
func later[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserPatience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// listens keeps what the page says at its foot, which does not stay there.
func (b *tab) listens() {
	b.t.Helper()
	js[any](b, `(() => { window.said = ""; new MutationObserver((all) => { for (const m of all) for (const e of m.addedNodes) window.said += e.innerText + "\n"; }).observe(document.getElementById("toasts"), {childList: true}); })()`)
}

// says waits until the page has said something since listens.
func (b *tab) says(text string) {
	b.t.Helper()
	b.see(fmt.Sprintf("that it says %q", text), fmt.Sprintf("window.said.includes(%q)", text))
}

// set writes into a field, as if it had been typed or dragged, when it is there.
func (b *tab) set(selector, value string) {
	b.t.Helper()
	b.see("the field "+selector, fmt.Sprintf(`(() => { const e = document.querySelector(%q); if (!e) return false; e.value = %q; e.dispatchEvent(new Event("input", {bubbles: true})); e.dispatchEvent(new Event("change", {bubbles: true})); return true; })()`, selector, value))
}

// mouse moves the pointer to a place of an element's box, given as shares of its
// sides, and there does something with the left button.
func (b *tab) mouse(what input.DispatchMouseEventType, selector string, x, y float64) {
	b.t.Helper()
	at := js[[]float64](b, fmt.Sprintf(`(() => { const r = document.querySelector(%q).getBoundingClientRect(); return [r.left + %v * r.width, r.top + %v * r.height]; })()`, selector, x, y))
	if len(at) != 2 {
		b.t.Fatalf("there is no %s", selector)
	}
	if _, err := chromedp.Call(b.ctx, input.DispatchMouseEvent, input.DispatchMouseEventParams{Type: what, X: at[0], Y: at[1], Button: input.MouseButtonLeft, Buttons: 1, ClickCount: 1}); err != nil {
		b.t.Fatal(err)
	}
}

// press clicks the button with a text, when it is there and can be pressed.
func (b *tab) press(text string) {
	b.t.Helper()
	b.click("the button "+text, fmt.Sprintf(`[...(document.querySelector("dialog[open]") || document).querySelectorAll("button, a.button")].find((e) => e.innerText.trim().startsWith(%q) && !e.disabled)`, text))
}

// click clicks an element when it is there: at once, for a page that draws itself anew has
// another one then.
func (b *tab) click(what, element string) {
	b.t.Helper()
	b.see(what, fmt.Sprintf(`(() => { const e = %s; e?.click(); return e; })()`, element))
}

// fetch asks the API in the page's name and waits for the answer.
func fetch[T any](b *tab, method, path, body string) (status int, v T) {
	b.t.Helper()
	a := later[struct {
		Status int    `json:"status"`
		Text   string `json:"text"`
	}](b, fmt.Sprintf(`fetch(%q, {method: %q, body: %s, headers: {"Content-Type": "application/json"}}).then(async (r) => ({status: r.status, text: await r.text()}))`, path, method, body))
	if err := json.Unmarshal([]byte(a.Text), &v); err != nil && a.Status < 300 && a.Text != "" {
		b.t.Fatalf("%s %s: %v: %.200s", method, path, err, a.Text)
	}
	return a.Status, v
}

// axe is axe-core, which finds what keeps people from using a page. It is fetched by
// npm for tests alone; without it nothing is found.
type axe string

const (
	axePackage = "axe-core@4.14.1"
	axeDigest  = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745" // SHA-256 of the package
)

// newAxe fetches it, or returns nothing where it is not to be had.
func newAxe(t *testing.T) axe {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "pack", axePackage, "--ignore-scripts", "--prefer-offline", "--loglevel=error", "--pack-destination", dir)
	cmd.Dir = dir // not in a project
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Logf("npm pack %s: %v: %.300s", axePackage, err, said)
		return ""
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(found) != 1 {
		t.Fatalf("npm pack %s leaves %q: %v", axePackage, found, err)
	}
	f, err := os.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	z, err := gzip.NewReader(io.TeeReader(f, sum))
	if err != nil {
		t.Fatal(err)
	}
	script := ""
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "package/axe.min.js" {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			script = string(b)
		}
	}
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != axeDigest || script == "" {
		t.Fatalf("the SHA-256 of %s is %s, want %s", axePackage, got, axeDigest)
	}
	return axe(script)
}

// serious returns what is serious or critical on the page as it is shown in colours
// light or dark.
func (a axe) serious(b *tab, theme string) []string {
	b.t.Helper()
	if a == "" {
		return nil
	}
	if !js[bool](b, "Boolean(window.axe)") {
		b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := chromedp.Evaluate[any](string(a)+"; 0")(ctx, t)
			return err
		}))
	}
	return later[[]string](b, fmt.Sprintf(`(async () => {
		document.documentElement.dataset.theme = %q;
		const found = await axe.run(document, {resultTypes: ["violations"]});
		return found.violations.filter((v) => v.impact === "serious" || v.impact === "critical").map((v) => v.id + ": " + v.nodes.slice(0, 3).map((n) => n.target.join(" ") + " " + n.failureSummary.slice(0, 200)).join("; "));
	})()`, theme))
}

// served counts the releases that have served detector cells.
func (b *tab) served() int {
	b.t.Helper()
	_, r := fetch[struct{ History []any }](b, "GET", "api/v1/detectors/cells/releases", "null")
	return len(r.History)
}

// drawStill writes n images of one part, as a camera sees one that does not move.
func drawStill(t *testing.T, dir string, n int) {
	t.Helper()
	drawKind(t, dir, synthetic.Parts, 1, 0)
	first, err := os.ReadFile(filepath.Join(dir, "000.png"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := imaging.Decode(first, imaging.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		img.Pix[300*i] ^= 1 // noise
		b, err := img.PNG()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.png", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheOperatorsStoryOnThePage makes a detector from images, trains it, judges an
// alarm, tunes and goes back, all in a browser; and looks at the page below another
// path, in many tabs, and as somebody who may only look.
func TestTheOperatorsStoryOnThePage(t *testing.T) {
	needRuntime(t)
	browser := newBrowser(t)
	good, odd := filepath.Join(t.TempDir(), "good"), filepath.Join(t.TempDir(), "odd")
	drawImages(t, good, 60, 0)
	drawStill(t, odd, 6) // such as no cell looks like
	a, nc := upWithPage(t)
	server := "--server=" + a.NATS
	broker := brokertest.StreamsOn(t, nc)
	b := openTab(t, browser, a.Console)

	t.Run("a new detector from images", func(t *testing.T) {
		b.t = t
		b.goTo("#/wall")
		b.shows("No camera has sent a frame yet")
		b.goTo("#/detectors/new")
		b.see("the form", `document.querySelector("form input[required]")`)
		files, err := filepath.Glob(filepath.Join(good, "*"))
		if err != nil || len(files) != 60 {
			t.Fatalf("%d images: %v", len(files), err)
		}
		b.do(chromedp.SendKeys("form input[required]", "cells"), chromedp.SetUploadFiles("input[type=file]", files))
		b.press("Create and train")
		b.see("the job's end", `location.hash === "#/d/cells/train" && document.querySelector("main .chip.done")`)
		b.visit("#/d/cells/data", "60 normals")
		b.set("select[aria-label=Order]", "strange")
		b.see("the normals of the bank, strangest first", `(() => { const all = [...document.querySelectorAll(".cell .score")].map((e) => Number(e.innerText)); return all.length === 48 && all.every((v, i) => !i || v <= all[i - 1]); })()`)
		if status, c := fetch[stream.Choices](b, "GET", "api/v1/choices", "null"); status != http.StatusOK || !slices.Contains(c.Methods, "knn") {
			t.Errorf("choices: %d %+v", status, c)
		}
	})

	t.Run("an alarm is judged", func(t *testing.T) {
		b.t = t
		b.goTo("#/alarms?rows=frames")
		b.shows("No open alarms")
		if status, _ := fetch[any](b, "PATCH", "api/v1/detectors/cells", `JSON.stringify({quiet: "1h"})`); status != http.StatusOK { // however long its frames take
			t.Fatalf("what an incident is: %d", status)
		}
		program(t, 0, "camera", odd, "--detector", "cells", "--camera", "scope", server)
		b.see("six alarms", `document.querySelectorAll(".row").length === 6`)
		b.see("the frame with its heat", `document.querySelector(".sheet img.over[src$='heat.png']")?.naturalWidth === 64`)
		b.set(".pane input[type=range]", "0.3")
		b.see("the heat fade", `getComputedStyle(document.querySelector(".sheet img.over")).opacity === "0.3"`)
		b.do(chromedp.KeyEvent("h"))
		b.see("the heat go", `getComputedStyle(document.querySelector(".sheet img.over")).opacity === "0"`)
		said := func() uint64 {
			s, err := broker.Stream(t.Context(), stream.Names{}.FeedbackStream())
			if err != nil {
				t.Fatal(err)
			}
			return s.CachedInfo().State.Msgs
		}
		hold := func(seconds int) { js[any](b, fmt.Sprintf(`localStorage.setItem("nm-hold", %d)`, seconds)) }
		open := func(n int) {
			t.Helper()
			b.see(fmt.Sprint(n, " open alarms"), fmt.Sprintf(`document.querySelector("h1 + .num").innerText === "%d open"`, n))
		}
		// Its frames are one incident, which is judged as a whole.
		hold(60) // however slow this machine is
		b.visit("#/alarms", "1 incident open")
		b.see("one row of six alarms", `document.querySelectorAll(".row").length === 1 && document.querySelector(".row").innerText.includes("6 alarms") && document.querySelectorAll(".strip button").length === 6`)
		b.do(chromedp.KeyEvent("f"))
		b.see("the verdict on all", `document.querySelector("h1 + .num").innerText === "0 incidents open" && document.querySelector(".verdict .chip.false_alarm") && [...document.querySelectorAll(".toast")].some((e) => e.innerText.includes("6 alarms: false alarm"))`)
		b.do(chromedp.KeyEvent("u"))
		b.see("that it is taken back", `document.querySelector("h1 + .num").innerText === "1 incident open" && document.querySelector(".verdict .chip.open")`)
		other := js[string](b, `(() => { const e = document.querySelector(".strip button[aria-pressed=false]"); e.click(); return e.dataset.of; })()`)
		b.see("another of its frames", fmt.Sprintf(`document.querySelector('.strip button[data-of="%s"][aria-pressed=true]')`, other))
		b.visit("#/alarms?rows=frames", "6 open")
		b.see("six alarms, the newest chosen", `document.querySelectorAll(".row").length === 6 && document.querySelector(".row:first-child.on") && document.querySelector(".verdict .chip.open")`)
		b.do(chromedp.KeyEvent("f"))
		open(5)
		b.see("the verdict", `document.querySelector(".row .chip.false_alarm")`)
		b.do(chromedp.KeyEvent("u"))
		open(6)
		b.shows("taken back")
		b.see("no verdict", `!document.querySelector(".row .chip.false_alarm")`)
		type page struct {
			Items []struct{ State string }
			Open  int
		}
		if _, p := fetch[page](b, "GET", "api/v1/events?kind=anomaly", "null"); p.Open != 6 {
			t.Errorf("after the undo %d alarms are open", p.Open)
		}
		if n := said(); n != 0 {
			t.Errorf("after the undo there are %d verdicts in the stream", n)
		}

		// All six are false alarms. When they are in the bank they do not alarm again.
		hold(0)
		b.see("the newest alarm", `document.querySelector(".row:first-child.on")`)
		b.do(chromedp.KeyEvent("x"))
		for range 5 {
			b.do(chromedp.KeyEvent("J", chromedp.KeyModifiers(chromedp.ModifierShift)))
		}
		b.shows("6 selected")
		begun := time.Now()
		b.do(chromedp.KeyEvent("f"))
		open(0)
		normals := func() int {
			_, p := fetch[struct{ Total int }](b, "GET", "api/v1/detectors/cells/normals", "null")
			return p.Total
		}
		eventually.True(t, "the frames among the normals", func() bool { return normals() == 66 })
		idle := func() bool {
			_, j := fetch[struct{ Items []stream.Job }](b, "GET", "api/v1/jobs?detector=cells", "null")
			return !slices.ContainsFunc(j.Items, func(j stream.Job) bool { return !j.Finished() })
		}
		served := func() int {
			_, d := fetch[struct {
				Facts struct{ Normals int }
			}](b, "GET", "api/v1/detectors/cells", "null")
			return d.Facts.Normals
		}
		eventually.True(t, "the release with the frames in its bank", func() bool { return served() == 48+6 && idle() })
		t.Logf("a verdict on six frames is in the serving bank after %v", time.Since(begun).Round(10*time.Millisecond))
		eventually.True(t, "the worker with that release", func() bool {
			p, err := openRegistry(t, broker).Active(t.Context(), "cells")
			_, s := fetch[struct{ Workers []stream.WorkerStatus }](b, "GET", "api/v1/status", "null")
			return err == nil && len(s.Workers) == 1 && s.Workers[0].Serving["cells"] == p.Release
		})
		program(t, 0, "camera", odd, "--detector", "cells", "--camera", "again", server)
		type scores struct {
			Alarms []int
			Ranks  []float64 `json:"p_values"`
		}
		var again scores
		eventually.True(t, "the scores of the frames that are shown again", func() bool {
			_, again = fetch[scores](b, "GET", "api/v1/cameras/cells/again/scores", "null")
			return len(again.Ranks) == 6
		})
		for _, n := range again.Alarms {
			if n > 0 {
				t.Errorf("frames of the bank raise alarms: %+v", again)
			}
		}

		// Taken back after it was sent, it leaves the normals and the bank again.
		b.visit("#/alarms?rows=frames&state=false_alarm", "Facts")
		b.see("a false alarm", `document.querySelector(".row.on .chip.false_alarm")`)
		b.listens()
		b.press("Score it again")
		b.says("would not alarm any more")
		b.do(chromedp.KeyEvent("u"))
		open(1)
		eventually.True(t, "the normals without the frame", func() bool { return normals() == 65 })
		eventually.True(t, "the release without the frame", func() bool { return served() == 48+5 && idle() })
	})

	t.Run("the threshold is tuned, and back", func(t *testing.T) {
		b.t = t
		b.goTo("#/d/cells/tune")
		b.see("the slider", `document.querySelector("input[type=range]")`)
		before := js[string](b, `document.querySelector("[data-test=promise]").innerText`)
		js[any](b, `(() => { const e = document.querySelector("input[type=range]"); e.value = 0.95; e.dispatchEvent(new Event("input")); })()`)
		if after := js[string](b, `document.querySelector("[data-test=promise]").innerText`); after == before || !strings.HasPrefix(after, "threshold") {
			t.Errorf("the slider changes nothing: %q, then %q", before, after)
		}
		served := b.served()
		b.press("Apply")
		eventually.True(t, "the release with the new threshold", func() bool { return b.served() > served })
		b.goTo("#/d/cells/releases")
		b.press("Roll back")
		b.see("the dialog", `document.querySelector("dialog[open] input")`)
		b.do(chromedp.SendKeys("dialog[open] input", "too many alarms"))
		b.press("Roll back")
		b.shows("too many alarms")
	})

	t.Run("who is late with a promotion is told", func(t *testing.T) {
		b.t = t
		type list struct {
			Items []struct {
				Release string
				Active  bool
			}
		}
		_, l := fetch[list](b, "GET", "api/v1/detectors/cells/releases", "null")
		var others []string
		for _, r := range l.Items {
			if !r.Active {
				others = append(others, r.Release)
			}
		}
		if len(others) < 2 {
			t.Fatalf("only %d other releases", len(others))
		}
		b.visit("#/d/cells/releases", "History")
		b.press("Promote")
		b.see("the dialog", `document.querySelector("dialog[open] input")`)
		body := fmt.Sprintf(`JSON.stringify({release: %q, reason: "it was first"})`, others[1])
		if status, _ := fetch[any](b, "POST", "api/v1/detectors/cells/promote", body); status != http.StatusOK {
			t.Fatalf("the other one's promotion: %d", status)
		}
		served := b.served()
		b.do(chromedp.SendKeys("dialog[open] input", "mine is better"))
		b.press("Promote")
		b.see("who was faster", `document.querySelector("dialog[open] [data-test=conflict]")?.innerText.includes("it was first")`)
		b.press("I see")
		if n := b.served(); n != served {
			t.Errorf("%d releases have served, want %d: the late one acts", n, served)
		}
	})

	t.Run("a mask by keys, and the same by mouse", func(t *testing.T) {
		b.t = t
		camera := start(t, "camera", odd, "--loop", "--fps", "5", "--detector", "cells", "--camera", "again", server)
		defer camera.stop()
		type rect struct{ X, Y, Width, Height float64 }
		saved := func() (ignored []rect) {
			b.see("a change", `document.querySelector("main .chip.warn")?.innerText === "not saved"`)
			b.press("Save")
			b.see("that it is saved", `document.querySelector("main .chip.ok")?.innerText === "saved"`)
			_, d := fetch[struct{ Ignore []rect }](b, "GET", "api/v1/detectors/cells", "null")
			return d.Ignore
		}
		b.visit("#/d/cells/area", "Parts")
		b.see("the picture", `document.querySelector(".area img")?.naturalWidth > 0`)
		js[any](b, `document.querySelector(".area").focus()`)
		b.do(chromedp.KeyEvent("a"))
		b.see("a part", `document.querySelector(".area .mask")`)
		js[any](b, `document.querySelector(".area .mask").focus()`)
		b.do(chromedp.KeyEvent(kb.ArrowRight), chromedp.KeyEvent(kb.ArrowUp, chromedp.KeyModifiers(chromedp.ModifierShift)))
		keys := saved()
		if got := fmt.Sprint(keys); got != "[{0.41 0.4 0.2 0.19}]" {
			t.Errorf("stored is %s", got)
		}
		js[any](b, `document.querySelector(".area .mask").focus()`)
		b.do(chromedp.KeyEvent(kb.Delete))
		if all := saved(); len(all) != 0 {
			t.Errorf("after the removal %v are stored", all)
		}

		b.mouse(chromedp.MousePressed, ".area img", 0.41, 0.4)
		b.mouse(chromedp.MouseMoved, ".area img", 0.7, 0.7)
		b.mouse(chromedp.MouseMoved, ".area img", 0.61, 0.59)
		b.mouse(chromedp.MouseReleased, ".area img", 0.61, 0.59)
		mouse := saved()
		if len(mouse) != 1 {
			t.Fatalf("by mouse %v are stored", mouse)
		}
		m, k, pixel := mouse[0], keys[0], 1.5/js[float64](b, `document.querySelector(".area img").getBoundingClientRect().height`)
		for what, d := range map[string]float64{"x": m.X - k.X, "y": m.Y - k.Y, "width": m.Width - k.Width, "height": m.Height - k.Height} {
			if math.Abs(d) > pixel+0.001 { // shares are stored in thousandths
				t.Errorf("%s differs by %v: by mouse %v, by keys %v", what, d, m, k)
			}
		}
	})

	t.Run("a sink is made, tried and paused", func(t *testing.T) {
		b.t = t
		keep := t.TempDir()
		write(t, filepath.Join(keep, ".nearmiss-archive"), "")
		b.visit("#/sinks", "Events go nowhere yet")
		b.press("New sink")
		b.see("the form", `document.querySelector("dialog[open] input[pattern]")`)
		kinds := js[[]string](b, `[...document.querySelectorAll("dialog[open] option")].map((e) => e.value).sort()`)
		if want := slices.Sorted(maps.Keys(sinkKinds(stream.Names{}, nil, nil))); !slices.Equal(kinds, want) {
			t.Errorf("the form offers %q, there are %q", kinds, want)
		}
		b.set("dialog[open] input[pattern]", "keep")
		b.set("dialog[open] select", "archive")
		b.set("dialog[open] input[placeholder^='/mnt']", keep)
		b.press("Create")
		eventually.True(t, "who runs the sinks with this one", func() bool {
			status, _ := fetch[any](b, "POST", "api/v1/sinks/keep/test", "JSON.stringify({})")
			return status == http.StatusOK
		})
		b.visit("#/sinks", "keep")
		b.listens()
		b.press("Test")
		b.says("arrived after")
		b.press("Change")
		b.see("what it is", fmt.Sprintf(`document.querySelector("dialog[open] input[placeholder^='/mnt']")?.value === %q`, keep))
		b.press("Cancel")
		b.press("Pause")
		b.see("that it is paused", `document.querySelector("main .chip")?.innerText === "paused"`)

		// A change through the form takes away what was taken away, and nothing else.
		if status, _ := fetch[any](b, "POST", "api/v1/sinks", `JSON.stringify({name: "desk", kind: "webhook", enabled: false, kinds: ["disagreement", "one-day"], config: {url: "https://desk.example.org/a", headers: {a: "1", b: "2"}}})`); status != http.StatusCreated {
			t.Fatal(status)
		}
		change := `[...document.querySelectorAll("main section")].find((e) => e.querySelector("h2")?.innerText === "desk")?.querySelectorAll("button")[1]`
		b.visit("#/sinks", "desk")
		b.click("the button", change)
		b.set("dialog[open] textarea", `{"headers": {"b": "3"}}`)
		b.press("Save")
		b.see("the form close", `!document.querySelector("dialog[open]")`)
		_, desk := fetch[sink.Sink](b, "GET", "api/v1/sinks/desk", "null")
		if got := string(desk.Config); !slices.Equal(desk.Kinds, []string{"disagreement", "one-day"}) || got != `{"headers":{"b":"3"},"url":"https://desk.example.org/a"}` {
			t.Errorf("after the change: %q, %s", desk.Kinds, got)
		}
		if status, _ := fetch[any](b, "DELETE", "api/v1/sinks/desk", "null"); status != http.StatusNoContent {
			t.Error(status)
		}
	})

	t.Run("every page below another path, and nothing from elsewhere", func(t *testing.T) {
		target, err := url.Parse(a.Console)
		if err != nil {
			t.Fatal(err)
		}
		proxy := httptest.NewServer(http.StripPrefix("/sub/path", &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, ErrorLog: log.New(io.Discard, "", 0), // of pages that were left
		}))
		defer proxy.Close()
		defer proxy.CloseClientConnections() // the live stream has no end
		p := openTab(t, browser, proxy.URL+"/sub/path/")
		p.goTo("#/wall")
		a11y := newAxe(t)
		for place, text := range map[string]string{
			"#/wall": "scope", "#/alarms": "open", "#/alarms?state=false_alarm&rows=frames": "Facts", "#/detectors": "cells", "#/detectors/new": "Learn what is normal", "#/d/cells/tune": "held-out", "#/d/cells/area": "Parts", "#/d/cells/releases": "History",
			"#/d/cells/data": "normals", "#/d/cells/train": "Job", "#/jobs": "training", "#/health": "Workers", "#/users": "Users", "#/sinks": "keep", "#/audit": "detector/cells", "#/camera/cells/scope": "Last alarms",
		} {
			p.visit(place, text)
			for _, theme := range []string{"light", "dark"} {
				for _, found := range a11y.serious(p, theme) {
					t.Errorf("axe on %s, %s: %s", place, theme, found)
				}
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.foreign) > 0 {
			t.Errorf("the page asks elsewhere: %q", p.foreign)
		}
		if a11y == "" {
			t.Skip("axe-core is not to be had by npm here: only its part is skipped")
		}
	})

	t.Run("eight tabs", func(t *testing.T) {
		var all []*tab
		for range 8 {
			p := openTab(t, browser, a.Console)
			p.goTo("#/detectors")
			all = append(all, p)
		}
		for _, p := range all {
			p.shows("cells")
		}
	})

	t.Run("little motion", func(t *testing.T) {
		p := openTab(t, browser, a.Console)
		if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-reduced-motion", Value: "reduce"}}}); err != nil {
			t.Fatal(err)
		}
		p.goTo("#/wall")
		p.shows("scope")
		if got := js[string](p, `(() => { const e = document.createElement("div"); e.className = "toast"; document.getElementById("toasts").append(e); return getComputedStyle(e).animationName; })()`); got != "none" {
			t.Errorf("a message moves: %q", got)
		}
	})

	t.Run("a viewer sees no button that writes", func(t *testing.T) {
		const password = "correct horse battery"
		b.t = t
		add := func(user, role string) {
			t.Helper()
			body := fmt.Sprintf(`JSON.stringify({name: %q, password: %q, role: %q})`, user, password, role)
			if status, _ := fetch[any](b, "POST", "api/v1/users", body); status != http.StatusCreated {
				t.Fatalf("user %s: %d", user, status)
			}
		}
		add("root", "admin")
		signIn := func(user string) {
			b.see("the form", `document.querySelector("form.sign")`)
			b.do(chromedp.SendKeys("form.sign input[autocomplete=username]", user), chromedp.SendKeys("form.sign input[type=password]", password))
			b.press("Sign in")
			b.shows(user + " ·")
		}
		b.goTo("#/wall")
		signIn("root")
		add("vera", "viewer")
		js[any](b, "window.signedIn = true")
		b.press("Sign out")
		b.see("the page load anew", "!window.signedIn") // a form that is there before is not the one
		signIn("vera")
		b.goTo("#/alarms")
		b.see("the alarms", `document.querySelector(".row") && document.querySelector(".panes")`)
		for _, place := range []string{"#/alarms", "#/detectors", "#/d/cells/train", "#/d/cells/releases", "#/d/cells/data"} {
			b.goTo(place)
			b.see(place, `document.querySelector("h1") && !document.querySelector("main").innerText.includes("Loading")`)
			if got := js[string](b, `[...document.querySelectorAll("main button")].map((e) => e.innerText).filter((w) => /False alarm|Confirm|Seen|New|Train|Promote|Roll|Pin|Shadow|Remove|Delete|Save/.test(w)).join()`); got != "" {
				t.Errorf("%s offers a viewer %s", place, got)
			}
		}
		if status, _ := fetch[any](b, "POST", "api/v1/verdicts", `JSON.stringify({events: [1], verdict: "seen"})`); status != http.StatusForbidden {
			t.Errorf("a viewer's verdict is answered with %d", status)
		}
	})
}
