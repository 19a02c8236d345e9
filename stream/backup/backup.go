// Package backup copies an installation out of a NATS server and into another,
// stream by stream, by JetStream's own snapshots: sequences, revisions and times
// are as they were, so that whatever names another by its sequence still does.
//
// It works while everything runs. Pointers are copied before the releases that they
// name, and both before what is said of them: what is copied later may know more
// than what was copied before, never less. Should a release be collected in between that a
// pointer of the copy names, there is no backup.
package backup

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// What is to be kept.
const (
	Config = "config" // detectors, active releases, sinks
	Models = "models" // also releases, training sets, jobs and verdicts
	All    = "all"    // also events, incidents, pictures, dead letters and the audit
)

// streams are the names of what is kept. Waiting frames, training requests and the
// notes of workers are of the moment.
func streams(n stream.Names, what string) ([]string, error) {
	all := []string{"KV_" + n.DetectorsBucket(), "KV_" + n.ActiveBucket(), "KV_" + n.SinksBucket(), "KV_" + n.UsersBucket()}
	if what == Config {
		return all, nil
	}
	all = append(all, "OBJ_"+n.ArtifactsBucket(), n.NormalsStream(), "OBJ_"+n.ImagesBucket(), n.FeedbackStream(), "KV_"+n.JobsBucket())
	if what == Models {
		return all, nil
	}
	if what != All {
		return nil, fmt.Errorf("%q is none of config, models, all", what)
	}
	return append(all, n.EventsStream(), "OBJ_"+n.EvidenceBucket(), n.IncidentsStream(), "KV_"+n.IncidentsBucket(), n.DeadStream(), n.AuditStream()), nil
}

// Manifest says what is in a backup.
type Manifest struct {
	SchemaVersion int       `json:"schema_version"` // 1
	Tool          string    `json:"tool"`           // program that made it
	CreatedAt     time.Time `json:"created_at"`
	Prefix        string    `json:"prefix"`
	What          string    `json:"what"`
	Server        string    `json:"server"` // its version
	Streams       []Entry   `json:"streams"`
}

// Entry is one stream of a backup.
type Entry struct {
	Stream   string          `json:"stream"`
	File     string          `json:"file"`
	Bytes    int64           `json:"bytes"` // of the file
	SHA256   string          `json:"sha256"`
	Messages uint64          `json:"messages"`
	Config   json.RawMessage `json:"config"` // as the server gave them, for its restore
	State    json.RawMessage `json:"state"`
}

const (
	schemaVersion = 1
	manifestFile  = "manifest.json"
	maxManifest   = 16 << 20
	chunkSize     = 128 << 10
	silence       = 30 * time.Second // after which the server is given up
)

// Source is where a backup comes from or goes to.
type Source struct {
	Conn  *nats.Conn
	Names stream.Names
	Tool  string
	// Done, when given, is called with each stream that is done.
	Done func(Entry)
}

// Save writes a backup into the folder dir, which must be empty or new. The
// manifest comes last: a folder without one is no backup.
func (s Source) Save(ctx context.Context, dir, what string) (Manifest, error) {
	names, err := streams(s.Names, what)
	if err != nil {
		return Manifest{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Manifest{}, fmt.Errorf("back up: %w", err)
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) > 0 {
		return Manifest{}, errors.Join(err, fmt.Errorf("back up: folder %s is not empty", dir))
	}
	m := Manifest{
		SchemaVersion: schemaVersion, Tool: s.Tool, CreatedAt: time.Now().UTC(), Prefix: s.Names.Root(), What: what,
		Server: s.Conn.ConnectedServerVersion(),
	}
	there := func() error { return nil }
	for _, name := range names {
		save := s.save
		if name == "KV_"+s.Names.ActiveBucket() && what != Config {
			save = func(ctx context.Context, dir, name string) (e Entry, err error) {
				e, there, err = s.savePointers(ctx, dir, name)
				return e, err
			}
		}
		e, err := save(ctx, dir, name)
		if err != nil {
			return m, fmt.Errorf("back up stream %s: %w", name, err)
		}
		m.Streams = append(m.Streams, e)
		if s.Done != nil {
			s.Done(e)
		}
	}
	if err := there(); err != nil {
		return m, fmt.Errorf("back up: %w", err)
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	return m, renameio.WriteFile(filepath.Join(dir, manifestFile), b, 0o600)
}

// savePointers saves the stream of pointers, again until none has changed meanwhile: it is
// known then which releases those of the copy name. there says whether what was in the store
// of these still is: one that was replaced since may have been collected before it was copied.
func (s Source) savePointers(ctx context.Context, dir, name string) (e Entry, there func() error, err error) {
	js, err := s.Names.JetStreamOn(s.Conn)
	if err != nil {
		return e, nil, err
	}
	reg, err := stream.NewInstallation(js, s.Names).Registry(ctx)
	if err != nil {
		return e, nil, err
	}
	pointers, err := pointed(ctx, reg)
	for changed := true; err == nil && changed; {
		if e, err = s.save(ctx, dir, name); err != nil {
			break
		}
		was := pointers
		pointers, err = pointed(ctx, reg)
		if changed = !slices.Equal(was, pointers); err == nil && changed {
			err = os.Remove(filepath.Join(dir, e.File))
		}
	}
	return e, func() error {
		for _, p := range pointers {
			if _, err := reg.Show(ctx, p.Release); err != nil {
				return fmt.Errorf("a release of detector %s was replaced and removed meanwhile: back up again: %w", p.Detector, err)
			}
		}
		return nil
	}, err
}

// pointed are the pointers, in the order in which they were written, whose releases are in the
// store: others were lost before, and all else is to be backed up.
func pointed(ctx context.Context, reg *registry.Registry) ([]registry.Pointer, error) {
	active, shadow, _, err := reg.Pointers(ctx)
	if err != nil {
		return nil, err
	}
	var all []registry.Pointer
	for _, p := range slices.Concat(slices.Collect(maps.Values(active)), slices.Collect(maps.Values(shadow))) {
		switch _, err := reg.Show(ctx, p.Release); {
		case err == nil:
			all = append(all, p)
		case !errors.Is(err, registry.ErrNoRelease) && !errors.Is(err, registry.ErrCorrupt) && !errors.Is(err, registry.ErrBadManifest):
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b registry.Pointer) int { return cmp.Compare(a.Revision, b.Revision) })
	return all, nil
}

// apiError is how JetStream refuses.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string {
	return fmt.Sprintf("the server answers %q (%d)", e.Description, e.ErrCode)
}

// understand reads an answer of JetStream's API into answer, unless that is nil.
func understand(m *nats.Msg, answer any) error {
	var failed struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &failed); err != nil {
		return fmt.Errorf("the server's answer cannot be understood: %w", err)
	}
	if failed.Error != nil {
		return failed.Error
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(m.Data, answer)
}

// ask is one request of JetStream's API.
func (s Source) ask(ctx context.Context, subject string, request, answer any) error {
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	m, err := s.Conn.RequestWithContext(ctx, subject, b)
	if err != nil {
		if stream.IsForbidden(s.Conn, subject) {
			return fmt.Errorf("this identity may not: use one with role setup: %w", nats.ErrPermissionViolation)
		}
		return err
	}
	return understand(m, answer)
}

// save writes a stream's snapshot into a file: an archive of the server's, which
// answers chunk by chunk.
func (s Source) save(ctx context.Context, dir, name string) (e Entry, err error) {
	inbox := s.Conn.NewInbox()
	sub, err := s.Conn.SubscribeSync(inbox)
	if err != nil {
		return e, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := sub.SetPendingLimits(-1, -1); err != nil { // the server waits for acknowledgements
		return e, err
	}
	var answer struct {
		Config json.RawMessage `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	request := map[string]any{"deliver_subject": inbox, "chunk_size": chunkSize, "jsck": true}
	if err := s.ask(ctx, s.Names.JetStreamRequest("STREAM.SNAPSHOT."+name), request, &answer); err != nil {
		return e, err
	}
	e = Entry{Stream: name, File: name + ".snapshot", Config: answer.Config, State: answer.State}
	var state struct {
		Messages uint64 `json:"messages"`
	}
	if err := json.Unmarshal(answer.State, &state); err != nil {
		return e, fmt.Errorf("the server's answer cannot be understood: %w", err)
	}
	e.Messages = state.Messages
	f, err := os.OpenFile(filepath.Join(dir, e.File), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	to := io.MultiWriter(f, sum)
	for {
		step, cancel := context.WithTimeout(ctx, silence)
		m, err := sub.NextMsgWithContext(step)
		cancel()
		if err != nil {
			return e, fmt.Errorf("after %d bytes the server is silent: %w", e.Bytes, err)
		}
		if len(m.Data) == 0 {
			if status := m.Header.Get("Status"); status != "" && status != "204" {
				return e, fmt.Errorf("the server gave up: %s %s", status, m.Header.Get("Description"))
			}
			break
		}
		if _, err := to.Write(m.Data); err != nil {
			return e, err
		}
		e.Bytes += int64(len(m.Data))
		if m.Reply != "" {
			if err := s.Conn.Publish(m.Reply, nil); err != nil {
				return e, err
			}
		}
	}
	e.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return e, f.Sync()
}

// Read reads the manifest of the backup in dir and checks that all that it names is
// there, byte by byte.
func Read(dir string) (Manifest, error) {
	var m Manifest
	f, err := os.Open(filepath.Join(dir, manifestFile))
	if err != nil {
		return m, fmt.Errorf("%s is no backup: %w", dir, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return m, err
	}
	if m, err = Parse(b); err != nil {
		return m, err
	}
	for _, e := range m.Streams {
		if err := e.verify(dir); err != nil {
			return m, fmt.Errorf("backup %s: %w", dir, err)
		}
	}
	return m, nil
}

// Parse understands a manifest. Anybody may have written it: nothing in it names a
// file outside its folder.
func Parse(b []byte) (Manifest, error) {
	var m Manifest
	if len(b) > maxManifest {
		return m, fmt.Errorf("the manifest of a backup has at most %d bytes", maxManifest)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("the manifest of the backup cannot be understood: %w", err)
	}
	if m.SchemaVersion != schemaVersion {
		return m, fmt.Errorf("the backup is of format %d, this program knows %d: use the program that made it (%.40q)", m.SchemaVersion, schemaVersion, m.Tool)
	}
	known, err := streams(stream.Names{Prefix: m.Prefix}, All)
	if err := errors.Join(err, (stream.Names{Prefix: m.Prefix}).Validate()); err != nil {
		return m, fmt.Errorf("the manifest of the backup: %w", err)
	}
	seen := map[string]bool{}
	for _, e := range m.Streams {
		if !slices.Contains(known, e.Stream) || e.File != e.Stream+".snapshot" || seen[e.Stream] || e.Bytes < 0 {
			return m, fmt.Errorf("the manifest of the backup names %.60q in file %.60q", e.Stream, e.File)
		}
		seen[e.Stream] = true
	}
	return m, nil
}

func (e Entry) verify(dir string) error {
	f, err := os.Open(filepath.Join(dir, e.File))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != e.Bytes || got != e.SHA256 {
		return fmt.Errorf("file %s is not what the manifest says: %d bytes, SHA-256 %.12s; want %d, %.12s", e.File, n, got, e.Bytes, e.SHA256)
	}
	return nil
}

// ErrNotEmpty is returned where a restore would overwrite something.
var ErrNotEmpty = errors.New("is not empty")

// Restore brings the backup in dir, which was made under the same prefix, into an
// installation that has nothing of what the backup has: its streams are missing or
// empty. What the backup lacks is left as it is; [stream.Ensure] makes what is
// missing. The server gives streams the replicas that are asked for: those of target.
// Meanwhile no other program changes streams.
func (s Source) Restore(ctx context.Context, dir string, replicas int) (Manifest, error) {
	m, err := Read(dir)
	if err != nil {
		return m, err
	}
	if m.Prefix != s.Names.Root() {
		return m, fmt.Errorf("the backup is of prefix %q, its subjects are in every message: restore it with --prefix %s", m.Prefix, m.Prefix)
	}
	js, err := s.Names.JetStreamOn(s.Conn)
	if err != nil {
		return m, err
	}
	return m, stream.Exclusively(ctx, js, stream.Topology{Names: s.Names, Replicas: replicas}, func(ctx context.Context) error {
		return s.restoreAll(ctx, js, dir, m, replicas)
	})
}

// restoreAll restores all streams, none of which may have anything.
func (s Source) restoreAll(ctx context.Context, js jetstream.JetStream, dir string, m Manifest, replicas int) error {
	var empty []string
	for _, e := range m.Streams {
		st, err := js.Stream(ctx, e.Stream)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
		case err != nil:
			return fmt.Errorf("find stream %s: %w", e.Stream, err)
		case st.CachedInfo().State.Msgs > 0 && !markersOnly(ctx, js, e.Stream):
			return fmt.Errorf("stream %s %w: it has %d messages; restore into an installation that has nothing, such as a broker with a new data folder", e.Stream, ErrNotEmpty, st.CachedInfo().State.Msgs)
		default:
			empty = append(empty, e.Stream)
		}
	}
	for _, name := range empty {
		if err := js.DeleteStream(ctx, name); err != nil {
			if subject := s.Names.JetStreamRequest("STREAM.DELETE." + name); stream.IsForbidden(s.Conn, subject) {
				err = fmt.Errorf("no identity may delete streams: restore before the first user is added, then copy the auth folder: %w", nats.ErrPermissionViolation)
			}
			return fmt.Errorf("make room for stream %s: %w", name, err)
		}
	}
	for _, e := range m.Streams {
		if err := s.restore(ctx, dir, e, replicas); err != nil {
			return fmt.Errorf("restore stream %s: %w", e.Stream, err)
		}
		if s.Done != nil {
			s.Done(e)
		}
	}
	return nil
}

// markersOnly says whether nothing is in the stream but what a bucket keeps of keys that are
// gone, as of a trainer's leases.
func markersOnly(ctx context.Context, js jetstream.JetStream, name string) bool {
	bucket, is := strings.CutPrefix(name, "KV_")
	if !is {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return false
	}
	all, err := kv.WatchAll(ctx, jetstream.IncludeHistory())
	if err != nil {
		return false
	}
	defer func() { _ = all.Stop() }()
	for e := range all.Updates() {
		switch {
		case e == nil:
			return true
		case e.Operation() == jetstream.KeyValuePut:
			return false
		}
	}
	return false
}

func (s Source) restore(ctx context.Context, dir string, e Entry, replicas int) error {
	var config map[string]any
	d := json.NewDecoder(bytes.NewReader(e.Config))
	d.UseNumber()
	if err := d.Decode(&config); err != nil {
		return fmt.Errorf("its configuration: %w", err)
	}
	config["num_replicas"] = max(replicas, 1)
	delete(config, "placement")
	var answer struct {
		Deliver string `json:"deliver_subject"`
	}
	if err := s.ask(ctx, s.Names.JetStreamRequest("STREAM.RESTORE."+e.Stream), map[string]any{"config": config, "state": e.State}, &answer); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, e.File))
	if err != nil {
		return err
	}
	defer f.Close()
	for chunk := make([]byte, chunkSize); ; {
		n, err := io.ReadFull(f, chunk)
		if n > 0 {
			if err := s.send(ctx, answer.Deliver, chunk[:n], nil); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	var done struct {
		State struct {
			Messages uint64 `json:"messages"`
		} `json:"state"`
	}
	if err := s.send(ctx, answer.Deliver, nil, &done); err != nil {
		return err
	}
	if done.State.Messages < e.Messages {
		return fmt.Errorf("%d of %d messages are there", done.State.Messages, e.Messages)
	}
	return nil
}

// send gives the server a chunk, or the end, and waits until it has it.
func (s Source) send(ctx context.Context, to string, chunk []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 4*silence)
	defer cancel()
	m, err := s.Conn.RequestWithContext(ctx, to, chunk)
	if err != nil {
		return err
	}
	if len(m.Data) == 0 {
		return nil
	}
	return understand(m, answer)
}
