package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	"github.com/alecthomas/kong"
	"github.com/caarlos0/env/v11"
	"github.com/goccy/go-yaml"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/nearmiss/nearmiss/stream/metrics"
)

// These tests hold the files of deployments/ against the program. `make deploy-check`
// also asks the tools of those who will read them, as far as they are installed.

const deployments = "../../deployments"

func deployed(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(deployments, path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// documents decodes all documents of a YAML file; a key that is there twice is an
// error.
func documents(t *testing.T, name string, b []byte) (all []map[string]any) {
	t.Helper()
	for d := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var v map[string]any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if v != nil {
			all = append(all, v)
		}
	}
}

func TestDeploymentsAreYAML(t *testing.T) {
	n := 0
	err := filepath.WalkDir(deployments, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == "templates" {
			return fs.SkipDir
		}
		if ext := filepath.Ext(path); d.IsDir() || ext != ".yaml" && ext != ".yml" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if len(documents(t, path, b)) == 0 {
			t.Errorf("%s is empty", path)
		}
		n++
		return nil
	})
	if err != nil || n < 8 {
		t.Errorf("%d files, %v", n, err)
	}
}

var metricName = regexp.MustCompile(`\bnearmiss_[a-z_]+\b`)

// TestMetricsOfDeploymentsExist: a dashboard with a name that is not there is empty,
// and an alert with one never fires.
func TestMetricsOfDeploymentsExist(t *testing.T) {
	known := map[string]bool{}
	for _, d := range metrics.New(metrics.Build{}).Definitions() {
		known[d.Name] = true
		if d.Kind == "histogram" {
			for _, s := range []string{"_bucket", "_count", "_sum"} {
				known[d.Name+s] = true
			}
		}
	}
	for _, file := range []string{"prometheus/rules.yml", "prometheus/rules_test.yml", "grafana/nearmiss.json", "helm/nearmiss/templates/worker.yaml"} {
		names := metricName.FindAllString(string(deployed(t, file)), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range names {
			if !known[name] {
				t.Errorf("%s: the program has no metric %s", file, name)
			}
		}
	}
}

// TestAlertsHaveARunbook: each names a heading of deployments/RUNBOOK.md.
func TestAlertsHaveARunbook(t *testing.T) {
	headings := map[string]bool{}
	for line := range strings.Lines(string(deployed(t, "RUNBOOK.md"))) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "### "); ok {
			headings[strings.ReplaceAll(strings.ToLower(text), " ", "-")] = true
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations struct {
					Summary     string
					Description string
					RunbookURL  string `yaml:"runbook_url"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(deployed(t, "prometheus/rules.yml"), &rules); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules.Groups[0].Rules {
		_, anchor, _ := strings.Cut(r.Annotations.RunbookURL, "#")
		if r.Annotations.Summary == "" || r.Annotations.Description == "" || !headings[anchor] {
			t.Errorf("%s: %+v", r.Alert, r.Annotations)
		}
	}
	if len(rules.Groups[0].Rules) < 15 {
		t.Errorf("%d alerts", len(rules.Groups[0].Rules))
	}
}

// TestTheDashboardFitsAnyGrafana: its data source is chosen there.
func TestTheDashboardFitsAnyGrafana(t *testing.T) {
	var d struct {
		UID           string
		SchemaVersion int
		Panels        []struct {
			ID         int
			Type       string
			Title      string
			Datasource *struct{ UID string }
			Targets    []struct {
				Expr       string
				Datasource struct{ UID string }
			}
		}
	}
	if err := json.Unmarshal(deployed(t, "grafana/nearmiss.json"), &d); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have id %d", p.ID)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Datasource == nil || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q: %+v", p.Title, p)
		}
		for _, q := range p.Targets {
			if q.Datasource.UID != "${datasource}" || strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") || strings.Count(q.Expr, "{") != strings.Count(q.Expr, "}") {
				t.Errorf("panel %q: %+v", p.Title, q)
			}
		}
	}
	if d.UID != "nearmiss-overview" || d.SchemaVersion == 0 || len(d.Panels) < 15 {
		t.Errorf("%s, %d, %d panels", d.UID, d.SchemaVersion, len(d.Panels))
	}
}

// TestTheServerTakesItsConfigurations: nats-server's own parser, with all checks.
func TestTheServerTakesItsConfigurations(t *testing.T) {
	t.Setenv("NAME", "n1")
	files, err := filepath.Glob(filepath.Join(deployments, "nats", "*.conf"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		o, err := server.ProcessConfigFile(file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if !o.JetStream || o.JetStreamMaxStore <= 0 || o.MaxPayload != 8<<20 || o.ServerName == "" {
			t.Errorf("%s: JetStream %v, store %d, payload %d, name %q", file, o.JetStream, o.JetStreamMaxStore, o.MaxPayload, o.ServerName)
		}
		o.StoreDir = t.TempDir()
		if _, err := server.NewServer(o); err != nil { // it is not started
			t.Errorf("%s: %v", file, err)
		}
	}
}

// understood: the program knows the command and each of its flags.
func understood(t *testing.T, where string, args []string) {
	t.Helper()
	var c cli
	exited := false
	parser, err := newParser(&c, kong.Exit(func(int) { exited = true }), kong.Writers(io.Discard, io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil && !exited {
		t.Errorf("%s: nearmiss %s: %v", where, strings.Join(args, " "), err)
	}
}

// variables are the environment variables that the program reads.
func variables(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{"NEARMISS_ONNXRUNTIME": true, "NEARMISS_CACHE": true}
	fields, err := env.GetFieldParamsWithOptions(&config{}, env.Options{Prefix: "NEARMISS_"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		all[f.Key] = true
	}
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	_ = kong.Visit(parser.Model, func(n kong.Visitable, next kong.Next) error {
		if f, ok := n.(*kong.Flag); ok {
			for _, e := range f.Envs {
				all[e] = true
			}
		}
		return next(nil)
	})
	return all
}

var variable = regexp.MustCompile(`\bNEARMISS_[A-Z_]+\b`)

func knowsVariables(t *testing.T, where string, text []byte) {
	t.Helper()
	known := variables(t)
	known["NEARMISS_IMAGE"], known["NEARMISS_CUDA_IMAGE"] = true, true // compose's own
	for _, v := range variable.FindAllString(string(text), -1) {
		if !known[v] {
			t.Errorf("%s sets %s, which nobody reads", where, v)
		}
	}
}

func TestUnitsStartCommands(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(deployments, "systemd", "*.service"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%v, %v", files, err)
	}
	fill := strings.NewReplacer("${SOURCE}", "synthetic:parts", "${DETECTOR}", "d", "%i", "one", "$OPTIONS", "")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		knowsVariables(t, file, b)
		for line := range strings.Lines(string(b)) {
			if command, ok := strings.CutPrefix(line, "ExecStart=/usr/local/bin/nearmiss "); ok {
				understood(t, file, strings.Fields(fill.Replace(command)))
			}
		}
	}
}

// startsAll: with a NATS server of one's own every service is started, each by its
// command; without control nobody could create a detector.
func startsAll(t *testing.T, where string, started map[string]bool) {
	t.Helper()
	for _, name := range []string{"broker", "control", "worker", "trainer", "sinks", "exporter"} {
		if !started[name] {
			t.Errorf("%s starts no nearmiss %s", where, name)
		}
	}
}

func TestImagesAndContainersStartCommands(t *testing.T) {
	docker := deployed(t, "Dockerfile")
	knowsVariables(t, "Dockerfile", docker)
	for _, m := range regexp.MustCompile(`CMD (\[.*\])`).FindAllSubmatch(docker, -1) {
		var args []string
		if err := json.Unmarshal(m[1], &args); err != nil {
			t.Fatalf("Dockerfile: %s: %v", m[1], err)
		}
		understood(t, "Dockerfile", slices.DeleteFunc(args, func(s string) bool { return strings.HasSuffix(s, "/nearmiss") }))
	}
	started := map[string]bool{}
	for _, file := range []string{"compose.yaml", "compose.cuda.yaml"} {
		b := deployed(t, file)
		knowsVariables(t, file, b)
		var c struct {
			Services map[string]struct {
				Image   string
				Command []string
				Volumes []string
			}
			Volumes map[string]any
		}
		if err := yaml.Unmarshal(b, &c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for name, s := range c.Services {
			if strings.Contains(s.Image, "nearmiss") && len(s.Command) > 0 {
				understood(t, file+" "+name, s.Command)
				started[s.Command[0]] = true
			}
			for _, v := range s.Volumes {
				from, _, _ := strings.Cut(v, ":")
				if local, ok := strings.CutPrefix(from, "./"); ok {
					if _, err := os.Stat(filepath.Join(deployments, local)); err != nil {
						t.Errorf("%s: %s mounts %s: %v", file, name, from, err)
					}
				} else if _, ok := c.Volumes[from]; !ok {
					t.Errorf("%s: %s mounts %s, which is no volume", file, name, from)
				}
			}
		}
	}
	startsAll(t, "compose.yaml", started)
}

// chartFiles is .Files of a chart.
type chartFiles string

func (dir chartFiles) Get(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(string(dir), name))
	return string(b), err
}

// render executes the chart's templates as helm does, with the few functions that
// they use.
func render(t *testing.T, change func(values map[string]any)) (objects []map[string]any, text string) {
	t.Helper()
	dir := filepath.Join(deployments, "helm", "nearmiss")
	var values map[string]any
	if err := yaml.Unmarshal(deployed(t, "helm/nearmiss/values.yaml"), &values); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(values)
	}
	root := template.New("chart").Option("missingkey=error")
	indent := func(n int, s string) string {
		pad := strings.Repeat(" ", n)
		return pad + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n"+pad)
	}
	root.Funcs(template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var b strings.Builder
			err := root.ExecuteTemplate(&b, name, data)
			return b.String(), err
		},
		"dict": func(kv ...any) map[string]any {
			m := map[string]any{}
			for i := 0; i+1 < len(kv); i += 2 {
				m[kv[i].(string)] = kv[i+1]
			}
			return m
		},
		"indent":  indent,
		"nindent": func(n int, s string) string { return "\n" + indent(n, s) },
		"toYaml": func(v any) (string, error) {
			b, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(b), "\n"), err
		},
		"quote": func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
		"default": func(d, v any) any {
			if v == nil || v == "" {
				return d
			}
			return v
		},
		"trunc":      func(n int, s string) string { return s[:min(n, len(s))] },
		"trimSuffix": func(suffix, s string) string { return strings.TrimSuffix(s, suffix) },
		"join": func(by string, all []any) string {
			var words []string
			for _, w := range all {
				words = append(words, fmt.Sprint(w))
			}
			return strings.Join(words, by)
		},
		"int64": func(v any) (int64, error) { return strconv.ParseInt(fmt.Sprint(v), 10, 64) },
	})
	files, err := filepath.Glob(filepath.Join(dir, "templates", "*"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%v, %v", files, err)
	}
	if _, err := root.ParseFiles(files...); err != nil {
		t.Fatal(err)
	}
	data := map[string]any{
		"Values": values, "Files": chartFiles(dir),
		"Chart": map[string]any{"AppVersion": "v1"}, "Release": map[string]any{"Name": "line", "Service": "Helm"},
	}
	var all strings.Builder
	for _, f := range files {
		if filepath.Ext(f) != ".yaml" {
			continue
		}
		var b bytes.Buffer
		if err := root.ExecuteTemplate(&b, filepath.Base(f), data); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, documents(t, f+":\n"+b.String(), b.Bytes())...)
		fmt.Fprintf(&all, "---\n%s\n", b.String())
	}
	return objects, all.String()
}

// at follows keys into an object.
func at(v any, path ...string) any {
	for _, key := range path {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// TestTheChartRenders, with its defaults and with everything on; each container
// starts a command that there is, without rights.
func TestTheChartRenders(t *testing.T) {
	for name, c := range map[string]struct {
		change func(map[string]any)
		kinds  []string
	}{
		"defaults": {nil, []string{"Deployment", "Deployment", "Deployment", "Deployment", "Job", "NetworkPolicy", "NetworkPolicy", "PodDisruptionBudget", "StatefulSet"}},
		"everything": {func(v map[string]any) {
			v["nats"].(map[string]any)["credsSecret"], v["nats"].(map[string]any)["tlsSecret"] = "keys", "tls"
			w := v["worker"].(map[string]any)
			w["detectors"] = []any{"bolts", "nuts"}
			w["keda"].(map[string]any)["enabled"], w["gpu"].(map[string]any)["enabled"] = true, true
			v["trainer"].(map[string]any)["scaledJob"].(map[string]any)["enabled"] = true
			for k := range v["metrics"].(map[string]any) {
				v["metrics"].(map[string]any)[k] = true
			}
			v["networkPolicy"].(map[string]any)["sinkCIDRs"] = []any{"10.0.0.0/8"}
			v["sinks"].(map[string]any)["secret"] = "receivers"
		}, []string{"ConfigMap", "Deployment", "Deployment", "Deployment", "Deployment", "Job", "NetworkPolicy", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "ScaledJob", "ScaledObject"}},
	} {
		t.Run(name, func(t *testing.T) {
			objects, text := render(t, c.change)
			var kinds []string
			names, started := map[string]bool{}, map[string]bool{}
			for _, o := range objects {
				kind, _ := o["kind"].(string)
				kinds = append(kinds, kind)
				id := fmt.Sprint(kind, "/", at(o, "metadata", "name"))
				if names[id] {
					t.Errorf("%s is there twice", id)
				}
				names[id] = true
				pod := at(o, "spec", "template", "spec")
				if kind == "ScaledJob" {
					pod = at(o, "spec", "jobTargetRef", "template", "spec")
				}
				if pod == nil {
					continue
				}
				if at(pod, "securityContext", "runAsNonRoot") != true || at(pod, "containers", "0", "securityContext", "readOnlyRootFilesystem") != true ||
					at(pod, "automountServiceAccountToken") != false || at(pod, "containers", "0", "resources", "limits", "memory") == nil {
					t.Errorf("%s may do too much", id)
				}
				var args []string
				for _, a := range at(pod, "containers", "0", "args").([]any) {
					args = append(args, fmt.Sprint(a))
				}
				understood(t, id, args)
				started[args[0]] = true
				mounts := map[any]bool{}
				for _, v := range at(pod, "volumes").([]any) {
					mounts[at(v, "name")] = true
				}
				for _, m := range at(pod, "containers", "0", "volumeMounts").([]any) {
					if kind != "StatefulSet" && !mounts[at(m, "name")] {
						t.Errorf("%s mounts %v, which is no volume", id, at(m, "name"))
					}
				}
			}
			slices.Sort(kinds)
			if !slices.Equal(kinds, c.kinds) {
				t.Errorf("it has %v, want %v", kinds, c.kinds)
			}
			startsAll(t, "the chart", started)
			knowsVariables(t, "the chart", []byte(text))
			if out := os.Getenv("NEARMISS_TEST_CHART"); out != "" { // for make deploy-check
				if err := os.WriteFile(filepath.Join(out, name+".yaml"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
