package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/evaldata"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// asProgram, when set, makes the test binary the program itself, so that tests
// can start real processes of exactly this code.
const asProgram = "NEARMISS_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	os.Setenv("NEARMISS_CONSOLE_LISTEN", "127.0.0.1:0") // others may have the default
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Setenv("NEARMISS_HTTP_LISTEN", "off") // many tests, one port
	os.Exit(m.Run())
}

// process is a running nearmiss.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  chan string // of standard output
	exited chan struct{}

	mu  sync.Mutex
	log bytes.Buffer // standard error
}

// start runs nearmiss with the arguments until the test ends or stop is called.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "NEARMISS_LOG_FORMAT=json")
	return launch(t, cmd)
}

// launch runs any program until the test ends.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, lines: make(chan string, 10_000), exited: make(chan struct{})}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(stdout); s.Scan(); {
			p.lines <- s.Text()
		}
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s wrote:\n%s", strings.Join(cmd.Args, " "), p.stderr())
		}
	})
	return p
}

// Write collects standard error.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// patience is how long tests wait for what must come. It decides nothing but
// when a test that hangs fails.
const patience = 5 * time.Minute

// line returns the next line of standard output that want accepts.
func (p *process) line(what string, want func(string) bool) string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case l := <-p.lines:
			if want(l) {
				return l
			}
		case <-p.exited:
			select {
			case l := <-p.lines:
				if want(l) {
					return l
				}
				continue
			default:
			}
			p.t.Fatalf("the process ended before %s", what)
		case <-deadline:
			p.t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// logged waits until standard error has the text.
func (p *process) logged(text string) {
	p.t.Helper()
	eventually.True(p.t, fmt.Sprintf("%q is logged", text), func() bool { return strings.Contains(p.stderr(), text) })
}

// stop ends the process as Ctrl-C does, and demands that it ends well.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Fatalf("%v does not stop", p.cmd.Args[1:])
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("nearmiss %s: exit code %d after an interrupt", p.cmd.Args[1], code)
	}
	if log := p.stderr(); strings.Contains(log, "goroutine ") || strings.Contains(log, "panic") {
		p.t.Errorf("nearmiss %s left a stack trace", p.cmd.Args[1])
	}
}

// program runs nearmiss in this process to its end and demands the exit code.
func program(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(t.Context(), args, &out, &errs); got != code {
		t.Fatalf("nearmiss %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, errs.String())
	}
	return out.String(), errs.String()
}

// startBroker returns the address of a broker with a folder of its own.
func startBroker(t *testing.T) string {
	t.Helper()
	p, at := runBroker(t, "--data", t.TempDir())
	t.Cleanup(p.stop)
	return at
}

// runBroker starts a broker at any free port and returns it with its address.
func runBroker(t *testing.T, args ...string) (*process, string) {
	t.Helper()
	p := start(t, append([]string{"broker", "--port=-1", "--json"}, args...)...)
	return p, p.natsAddress()
}

// lasting is an address of a broker's that stays the same when the broker is started
// again, at another port: the one that it had may be somebody else's by then.
type lasting struct {
	*brokertest.Relay
	scheme string
}

// lastingFor leads to the broker at an address.
func lastingFor(t *testing.T, at string) lasting {
	t.Helper()
	scheme, host, _ := strings.Cut(at, "://")
	return lasting{brokertest.NewRelay(t, host), scheme}
}

// url is the address.
func (l lasting) url() string { return l.scheme + "://" + l.Addr() }

// lead has it lead to another broker.
func (l lasting) lead(to string) {
	_, host, _ := strings.Cut(to, "://")
	l.Lead(host)
}

// away has it lead nowhere, before its broker ends: another test's may listen there next.
func (l lasting) away() { l.Lead("") }

// printed are the addresses that up and broker print with --json.
type printed struct{ NATS, MQTT, Console string }

// addresses waits for them.
func (p *process) addresses() (a printed) {
	p.t.Helper()
	l := p.line("its addresses", func(l string) bool { return strings.HasPrefix(l, "{") })
	if err := json.Unmarshal([]byte(l), &a); err != nil {
		p.t.Fatal(err)
	}
	return a
}

func (p *process) natsAddress() string {
	p.t.Helper()
	return p.addresses().NATS
}

// material is what a detector can learn from and be tried with: the shared data
// where it is, and else a ViT with random weights and procedural images.
type material struct{ backbone, normals, test string }

func newMaterial(t *testing.T) material {
	t.Helper()
	needRuntime(t)
	dir := t.TempDir()
	m := material{backbone: filepath.Join(dir, "backbone.onnx")}
	if shared, ok := evaldata.Find(); ok {
		shared = filepath.Join(shared, "data")
		program(t, 0, "backbone", "import", filepath.Join(shared, "vit_tiny_patch16_224.safetensors"), "--out", m.backbone)
		m.normals, m.test = filepath.Join(shared, "wbc/train/neutrophil"), filepath.Join(shared, "wbc/test")
		return m
	}
	m.backbone = randomModel(t)
	m.normals, m.test = filepath.Join(dir, "normals"), filepath.Join(dir, "test")
	drawImages(t, m.normals, 60, 0)
	drawImages(t, m.test, 40, 0.5)
	return m
}

// needRuntime fails the test where the ONNX Runtime library is missing.
func needRuntime(t *testing.T) {
	t.Helper()
	if err := ort.Load(); err != nil {
		t.Fatal(err)
	}
}

// randomSpec is the ViT that stands in for a pretrained one: small, so that tests are
// fast.
var randomSpec = backbone.Spec{
	Family: backbone.ViT, Dim: 192, Depth: 1, Heads: 3, Hidden: 768, Patch: 16, Size: 128, ClassPos: true, NormEps: 1e-6,
}

// randomSeed draws its weights, the same on every machine.
const randomSeed = 1

// randomBackbone returns the stand-in model's file in the data folder.
func randomBackbone(data string) (string, error) {
	file := filepath.Join(data, "models", fmt.Sprintf("random-%d.onnx", randomSeed))
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	if _, err := writeRandomBackbone(randomSpec, randomSeed, file); err != nil {
		return "", err
	}
	return file, nil
}

func randomModel(t *testing.T) string {
	t.Helper()
	file, err := randomBackbone(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// drawImages writes n synthetic images of cells, a share of them with a defect.
func drawImages(t *testing.T, dir string, n int, defects float64) {
	t.Helper()
	drawKind(t, dir, synthetic.Cells, n, defects)
}

func drawKind(t *testing.T, dir, kind string, n int, defects float64) {
	t.Helper()
	s, err := synthetic.New(kind, 3, synthetic.Options{Size: 96, DefectRate: defects})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		img, _ := s.Next()
		b, err := img.PNG()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.png", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// readLines decodes JSON lines.
func readLines[T any](t *testing.T, text string) (all []T) {
	t.Helper()
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var v T
		err := d.Decode(&v)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
}
