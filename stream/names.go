package stream

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// DefaultPrefix is the first token of every subject unless another is set.
const DefaultPrefix = "nearmiss"

const maxToken = text.MaxToken

// ValidToken says whether s can name a detector or a camera: 1 to 64 of
// [A-Za-z0-9_-].
func ValidToken(s string) bool { return text.IsToken(s) }

// CheckToken is [ValidToken] with the sentence for the user; what is "detector"
// or "camera".
func CheckToken(what, s string) error {
	if ValidToken(s) {
		return nil
	}
	return fmt.Errorf("%s name %q: use 1 to %d letters, digits, - and _: %w", what, s, maxToken, ErrBadName)
}

// Names derives every subject, stream and bucket name from one prefix. The zero
// value uses [DefaultPrefix].
type Names struct {
	// Prefix is the first subject token, lower case. Two installations on one
	// broker account need two prefixes. Empty means "nearmiss".
	Prefix string
	// JetStreamAPI is what the subjects of JetStream's requests begin with, where the
	// streams lie in another JetStream domain than the server that a client is
	// connected to ("$JS.hub.API", from a leaf node), or in another account
	// ("NM.API"). Empty: "$JS.API".
	JetStreamAPI string
}

// DomainAPI is the [Names.JetStreamAPI] of a JetStream domain.
func DomainAPI(domain string) string { return "$JS." + domain + ".API" }

// JetStreamOn is a client of the streams that have these names.
func (n Names) JetStreamOn(nc *nats.Conn, opts ...jetstream.JetStreamOpt) (jetstream.JetStream, error) {
	if n.JetStreamAPI == "" {
		return jetstream.New(nc, opts...)
	}
	return jetstream.NewWithAPIPrefix(nc, n.JetStreamAPI, opts...)
}

// JetStreamRequest is the subject of one of JetStream's requests.
func (n Names) JetStreamRequest(rest string) string {
	if n.JetStreamAPI == "" {
		return jetstream.DefaultAPIPrefix + rest
	}
	return strings.TrimSuffix(n.JetStreamAPI, ".") + "." + rest
}

// Validate refuses prefixes that cannot be the first token of a subject, "nm",
// whose streams would be those of the default prefix, and what cannot begin the
// subjects of requests.
func (n Names) Validate() error {
	p := n.Root()
	if !ValidToken(p) || p != strings.ToLower(p) {
		return fmt.Errorf("subject prefix %q: use 1 to %d lower-case letters, digits, - and _: %w", p, maxToken, ErrBadName)
	}
	for token := range strings.SplitSeq(strings.TrimPrefix(strings.TrimSuffix(n.JetStreamAPI, "."), "$"), ".") {
		if n.JetStreamAPI != "" && !ValidToken(token) {
			return fmt.Errorf("JetStream's subjects begin with %q: use tokens of letters, digits, - and _, such as $JS.hub.API: %w", n.JetStreamAPI, ErrBadName)
		}
	}
	if p == "nm" {
		return fmt.Errorf("subject prefix %q: its streams would be those of %q, choose another: %w", p, DefaultPrefix, ErrBadName)
	}
	return nil
}

// Root is the first token of every subject.
func (n Names) Root() string {
	return cmp.Or(n.Prefix, DefaultPrefix)
}

// asset makes the name of a stream or bucket: NM_<kind> for the default prefix,
// <PREFIX>_<kind> for others.
func (n Names) asset(kind string) string {
	if n.Root() == DefaultPrefix {
		return "NM_" + kind
	}
	return strings.ToUpper(n.Root()) + "_" + kind
}

// Streams.

func (n Names) FramesStream() string    { return n.asset("FRAMES") }    // work queue of frames
func (n Names) EventsStream() string    { return n.asset("EVENTS") }    // anomaly, rejected, drift and release events
func (n Names) NormalsStream() string   { return n.asset("NORMALS") }   // the training sets
func (n Names) FeedbackStream() string  { return n.asset("FEEDBACK") }  // what operators said of frames
func (n Names) TrainingStream() string  { return n.asset("TRAINING") }  // work queue of training requests
func (n Names) IncidentsStream() string { return n.asset("INCIDENTS") } // alarms with a beginning and an end
func (n Names) DeadStream() string      { return n.asset("DEAD") }      // what could not be handled
func (n Names) AuditStream() string     { return n.asset("AUDIT") }     // who changed what

// Buckets.

func (n Names) DetectorsBucket() string { return n.asset("DETECTORS") } // KV: detector → configuration
func (n Names) ActiveBucket() string    { return n.asset("ACTIVE") }    // KV: detector → active release
func (n Names) JobsBucket() string      { return n.asset("JOBS") }      // KV: training job → its state
func (n Names) IncidentsBucket() string { return n.asset("INCIDENTS") } // KV: detector and camera → the incident that goes on
func (n Names) SinksBucket() string     { return n.asset("SINKS") }     // KV: sink → where events go
func (n Names) UsersBucket() string     { return n.asset("USERS") }     // KV: people of the console
func (n Names) SessionsBucket() string  { return n.asset("SESSIONS") }  // KV: who is signed in there
func (n Names) ArtifactsBucket() string { return n.asset("ARTIFACTS") } // objects: releases and checkpoints, which trainers and operators write
func (n Names) ImagesBucket() string    { return n.asset("IMAGES") }    // objects: whole images that are kept: of anomalies, large normals, dead letters
func (n Names) LargeBucket() string     { return n.asset("LARGE") }     // objects: large frames, which cameras write
func (n Names) EvidenceBucket() string  { return n.asset("EVIDENCE") }  // objects: pictures of anomalies, by detector and event

// WorkBucket is KV: what workers have in hand, and the tries of frames that were
// not handled at once.
func (n Names) WorkBucket() string { return n.asset("WORK") }

// BucketStreams are the streams behind all buckets, as every client names them.
func (n Names) BucketStreams() []string {
	var all []string
	for _, b := range []string{
		n.DetectorsBucket(), n.ActiveBucket(), n.JobsBucket(), n.WorkBucket(), n.IncidentsBucket(), n.SinksBucket(), n.UsersBucket(), n.SessionsBucket(),
	} {
		all = append(all, "KV_"+b)
	}
	for _, b := range []string{n.ArtifactsBucket(), n.EvidenceBucket(), n.LargeBucket(), n.ImagesBucket()} {
		all = append(all, object.StreamOf(b))
	}
	return all
}

// Subjects.

// Frames is where a camera of a detector publishes.
func (n Names) Frames(detector, camera string) string {
	return n.Root() + ".frames." + detector + "." + camera
}

// Events is where events of a detector's camera appear; kind is [KindAnomaly],
// [KindRejected] or another token, "*" subscribes to all.
func (n Names) Events(detector, camera, kind string) string {
	return n.Root() + ".events." + detector + "." + camera + "." + kind
}

// Incidents is where the phases of a camera's incidents appear: new, update and end.
func (n Names) Incidents(detector, camera, phase string) string {
	return n.Root() + ".incidents." + detector + "." + camera + "." + phase
}

// Audit is the subject of the records of who changed an object: of kind detector, job, user and
// so on, and its name.
func (n Names) Audit(kind, name string) string { return n.Root() + ".audit." + kind + "." + name }

// Scores is where the score of every frame is published on core NATS.
func (n Names) Scores(detector, camera string) string {
	return n.Root() + ".scores." + detector + "." + camera
}

func (n Names) Normals(detector string) string   { return n.Root() + ".normals." + detector }   // one normal image
func (n Names) Anomalies(detector string) string { return n.Root() + ".anomalies." + detector } // one labelled anomaly, kept apart
func (n Names) Feedback(detector string) string  { return n.Root() + ".feedback." + detector }  // one operator's verdict
func (n Names) Train(detector string) string     { return n.Root() + ".train." + detector }     // one training request
func (n Names) Dead(stream string) string        { return n.Root() + ".dead." + stream }        // what a stream could not get handled

// Progress is where a training job reports on core NATS.
func (n Names) Progress(detector, job string) string {
	return n.Root() + ".progress." + detector + "." + job
}

// Shed is where a camera asks that its old frames be dropped.
func (n Names) Shed(detector, camera string) string {
	return n.API() + ".worker.shed." + detector + "." + camera
}

// API is the root of the micro services' request subjects.
func (n Names) API() string { return n.Root() + ".api" }

// Steward is where the steward beside an embedded broker says why no frames are taken,
// or nothing.
func (n Names) Steward() string { return n.API() + ".steward" }

// ParseFrames splits a frame subject. ok is false for anything else.
func (n Names) ParseFrames(subject string) (detector, camera string, ok bool) {
	t, ok := n.parse(subject, "frames", 2)
	if !ok {
		return "", "", false
	}
	return t[0], t[1], true
}

// parse returns the tokens of a subject behind its kind; ok is false where it is of another
// kind, or has others than count names.
func (n Names) parse(subject, kind string, count int) (tokens []string, ok bool) {
	rest, found := strings.CutPrefix(subject, n.Root()+"."+kind+".")
	tokens = strings.Split(rest, ".")
	return tokens, found && len(tokens) == count && !slices.ContainsFunc(tokens, func(t string) bool { return !ValidToken(t) })
}

// SafeToken makes a token that can name a camera in a subject of what names
// none: the frames of such a camera are rejected under it.
func SafeToken(s string) string {
	if len(s) > maxToken {
		s = s[:maxToken]
	}
	b := []byte(s)
	for i, c := range b {
		if !ValidToken(string(c)) {
			b[i] = '_'
		}
	}
	if len(b) == 0 {
		return "_"
	}
	return string(b)
}

// ParseEvents splits an event subject. ok is false for anything else.
func (n Names) ParseEvents(subject string) (detector, camera, kind string, ok bool) {
	t, ok := n.parse(subject, "events", 3)
	if !ok {
		return "", "", "", false
	}
	return t[0], t[1], t[2], true
}

// ParseIncidents returns the phase of an incident's subject. ok is false for
// anything else.
func (n Names) ParseIncidents(subject string) (phase string, ok bool) {
	t, ok := n.parse(subject, "incidents", 3)
	if !ok {
		return "", false
	}
	return t[2], true
}

// FramesConsumer is the durable consumer from which every worker of a detector
// pulls.
func FramesConsumer(detector string) string { return "frames-" + detector }
