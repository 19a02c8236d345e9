package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/nearmiss/nearmiss/internal/synthetic"
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

// goTo shows a place of the page.
func (b *tab) goTo(place string) {
	b.t.Helper()
	b.do(chromedp.Navigate("about:blank"), chromedp.Navigate(b.base+place))
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

// press clicks the button with a text, when it is there and can be pressed.
func (b *tab) press(text string) {
	b.t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll("dialog[open] button, button, a.button")].find((e) => e.innerText.trim().startsWith(%q) && !e.disabled)`, text)
	b.see("the button "+text, find)
	js[any](b, find+".click()")
}

// fetch asks the API in the page's name and waits for the answer.
func fetch[T any](b *tab, method, path, body string) (status int, v T) {
	b.t.Helper()
	js[any](b, fmt.Sprintf(`window.answer = null, fetch(%q, {method: %q, body: %s, headers: {"Content-Type": "application/json"}}).then(async (r) => { window.answer = JSON.stringify({status: r.status, text: await r.text()}); }), 0`, path, method, body))
	b.see("an answer on "+path, "window.answer")
	var a struct {
		Status int
		Text   string
	}
	if err := json.Unmarshal([]byte(js[string](b, "window.answer")), &a); err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(a.Text), &v); err != nil && a.Status < 300 && a.Text != "" {
		b.t.Fatalf("%s %s: %v: %.200s", method, path, err, a.Text)
	}
	return a.Status, v
}

// served counts the releases that have served detector cells.
func (b *tab) served() int {
	b.t.Helper()
	_, r := fetch[struct{ History []any }](b, "GET", "api/v1/detectors/cells/releases", "null")
	return len(r.History)
}

// TestTheOperatorsStoryOnThePage makes a detector from images, trains it, judges an
// alarm, tunes and goes back, all in a browser; and looks at the page below another
// path, in many tabs, and as somebody who may only look.
func TestTheOperatorsStoryOnThePage(t *testing.T) {
	needRuntime(t)
	browser := newBrowser(t)
	good, odd := filepath.Join(t.TempDir(), "good"), filepath.Join(t.TempDir(), "odd")
	drawImages(t, good, 60, 0)
	drawKind(t, odd, synthetic.Parts, 6, 0) // such as no cell looks like
	up := start(t, "up", "--data", t.TempDir(), "--port=-1", "--json")
	var a struct{ NATS, Console string }
	if err := json.Unmarshal([]byte(up.line("its addresses", func(l string) bool { return strings.HasPrefix(l, "{") })), &a); err != nil {
		t.Fatal(err)
	}
	server := "--server=" + a.NATS
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
	})

	t.Run("an alarm is judged", func(t *testing.T) {
		b.t = t
		b.goTo("#/alarms")
		b.shows("No open alarms")
		program(t, 0, "camera", odd, "--detector", "cells", "--camera", "scope", server)
		b.see("six alarms", `document.querySelectorAll(".row").length === 6`)
		b.see("the frame with its heat", `document.querySelector(".sheet img.over")`)
		b.do(chromedp.KeyEvent("f"))
		b.see("five open alarms", `document.querySelector("h1 + .num").innerText === "5 open" && document.querySelector(".chip.false_alarm")`)
		b.do(chromedp.KeyEvent("u"))
		b.see("six open alarms", `document.querySelector("h1 + .num").innerText === "6 open" && !document.querySelector(".row .chip.false_alarm")`)
		type page struct {
			Items []struct{ State string }
			Open  int
		}
		if _, p := fetch[page](b, "GET", "api/v1/events?kind=anomaly", "null"); p.Open != 6 {
			t.Errorf("after the undo %d alarms are open", p.Open)
		}
		b.do(chromedp.KeyEvent("f"))
		eventually(t, "the release with the frame in its bank", func() bool { return b.served() >= 2 })
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
		eventually(t, "the release with the new threshold", func() bool { return b.served() > served })
		b.goTo("#/d/cells/releases")
		b.press("Roll back")
		b.see("the dialog", `document.querySelector("dialog[open] input")`)
		b.do(chromedp.SendKeys("dialog[open] input", "too many alarms"))
		b.press("Roll back")
		b.shows("too many alarms")
	})

	t.Run("a mask by keys", func(t *testing.T) {
		b.t = t
		b.goTo("#/d/cells/area")
		b.see("the picture's place", `document.querySelector(".area")`)
		js[any](b, `document.querySelector(".area").focus()`)
		b.do(chromedp.KeyEvent("a"))
		b.see("a part", `document.querySelector(".area .mask")`)
		js[any](b, `document.querySelector(".area .mask").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}))`)
		b.press("Save")
		b.shows("saved")
		_, d := fetch[struct {
			Ignore []struct{ X, Y, Width, Height float64 }
		}](b, "GET", "api/v1/detectors/cells", "null")
		if got := fmt.Sprint(d.Ignore); got != "[{0.41 0.4 0.2 0.2}]" {
			t.Errorf("stored is %s", got)
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
		for place, text := range map[string]string{
			"#/wall": "scope", "#/alarms": "open", "#/detectors": "cells", "#/d/cells/tune": "False alarms", "#/d/cells/data": "normals", "#/d/cells/train": "Job", "#/jobs": "training", "#/health": "Workers", "#/users": "Users", "#/camera/cells/scope": "Last alarms",
		} {
			p.goTo(place)
			p.see(place, fmt.Sprintf(`document.querySelector("h1") && document.querySelector("main").innerText.includes(%q)`, text))
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.foreign) > 0 {
			t.Errorf("the page asks elsewhere: %q", p.foreign)
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
			b.goTo("#/wall")
			b.see("the form", `document.querySelector("form.sign")`)
			b.do(chromedp.SendKeys("form.sign input[autocomplete=username]", user), chromedp.SendKeys("form.sign input[type=password]", password))
			b.press("Sign in")
			b.shows(user + " ·")
		}
		signIn("root")
		add("vera", "viewer")
		b.press("Sign out")
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
