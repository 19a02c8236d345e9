package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/lease"
	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Topology says how large and how old things may grow in the broker. The zero
// value of a field means its default; streams without a byte limit share what
// the broker's max_file_store leaves.
type Topology struct {
	Names

	// FramesMaxBytes bounds the frame queue. When it is full the broker refuses
	// new frames and the camera gets an error. Default 2 GiB.
	FramesMaxBytes int64
	// FramesMaxAge drops frames that nobody took. Default 7 days.
	FramesMaxAge time.Duration
	// EventsMaxBytes and EventsMaxAge bound the events; the oldest go first.
	// Default 1 GiB and 90 days.
	EventsMaxBytes int64
	EventsMaxAge   time.Duration
	// DeadMaxBytes bounds the dead letters; the oldest go first, and all go after 30
	// days. Default 1 GiB.
	DeadMaxBytes int64
	// LargeMaxBytes bounds the images of waiting frames that are too large for a
	// message; cameras get an error when it is full. Default 1 GiB.
	LargeMaxBytes int64
	// Replicas of everything, for a cluster of brokers. Default 1.
	Replicas int
	// Cluster and Tags say on which servers of a cluster everything lies. Default:
	// wherever there is room.
	Cluster string
	Tags    []string

	scale float64 // of the limits that have no field; 0: as they are
}

// Fit makes the limits smaller, all by the same factor, where together they are
// more than three quarters of what the broker's store may take: the server would
// refuse them. It returns the factor, 1 where nothing had to be changed.
func (t Topology) Fit(store int64) (Topology, float64) {
	t = t.WithDefaults()
	sum := t.Reserved()
	factor := 0.75 * float64(store) / float64(sum)
	if store <= 0 || factor >= 1 {
		return t, 1
	}
	for _, v := range []*int64{&t.FramesMaxBytes, &t.LargeMaxBytes, &t.EventsMaxBytes, &t.DeadMaxBytes} {
		*v = max(int64(float64(*v)*factor), 1<<20)
	}
	t.scale = factor
	return t, factor
}

// Reserved is what the limits take of the store, in bytes: the server reserves it.
func (t Topology) Reserved() int64 {
	t = t.WithDefaults()
	return t.FramesMaxBytes + t.LargeMaxBytes + t.EventsMaxBytes + t.DeadMaxBytes +
		t.scaled(feedbackMaxBytes) + t.scaled(trainingMaxBytes) + t.scaled(incidentsMaxBytes) + t.scaled(auditBytes)
}

// EnsureWithin is [Ensure] for a server whose store may be small. Such a one refuses
// the limits that do not fit beside the others: then all are made smaller, by the
// same factor, until they do and a quarter is left. It returns what was set up, and
// the factor, 1 where nothing had to be changed.
func EnsureWithin(ctx context.Context, js jetstream.JetStream, t Topology) (Topology, float64, error) {
	a, err := js.AccountInfo(ctx)
	if err != nil {
		return t, 1, fmt.Errorf("ask what this account may store: %w", err)
	}
	wanted := t.Reserved()
	most := a.Limits.MaxStore
	if tier, ok := a.Tiers[fmt.Sprintf("R%d", t.WithDefaults().Replicas)]; ok { // limits are of one copy then
		most = tier.Limits.MaxStore
	} else if most > 0 {
		most /= int64(t.WithDefaults().Replicas)
	}
	fitted, _ := t.Fit(most)
	// An account without a limit does not show the server's.
	for store := fitted.Reserved(); ; {
		err = Ensure(ctx, js, fitted)
		refused, ok := errors.AsType[*jetstream.APIError](err)
		if !ok || refused.ErrorCode != storageExceeded && refused.ErrorCode != accountExceeded || store < 64<<20 {
			return fitted, float64(fitted.Reserved()) / float64(wanted), err
		}
		store = store * 3 / 4
		fitted, _ = t.Fit(store)
	}
}

// Error codes of nats-server: JSStorageResourcesExceededErr, JSAccountResourcesExceededErr.
const (
	storageExceeded jetstream.ErrorCode = 10047
	accountExceeded jetstream.ErrorCode = 10002
)

// scaled is a limit that has no field.
func (t Topology) scaled(n int64) int64 {
	if t.scale == 0 {
		return n
	}
	return max(int64(float64(n)*t.scale), 1<<20)
}

// SessionAge is the most that a session of the console lasts.
const SessionAge = 7 * 24 * time.Hour

const (
	feedbackMaxBytes  = 256 << 20
	trainingMaxBytes  = 64 << 20
	incidentsMaxBytes = 256 << 20

	// eventsDuplicates is how long the broker remembers event ids, so that a frame
	// delivered again raises no second event. It costs about 100 bytes of broker memory
	// for each event of that time.
	eventsDuplicates = 2 * time.Hour

	// unbounded is a stream or bucket without a limit of its own: training sets, where
	// new normals are refused when the store is full; releases and checkpoints; images
	// that are kept whole, and pictures of anomalies, which each detector bounds.
	unbounded = -1
)

// WithDefaults has the defaults in place of zeros.
func (t Topology) WithDefaults() Topology {
	t.FramesMaxBytes = cmp.Or(t.FramesMaxBytes, 2<<30)
	t.EventsMaxBytes = cmp.Or(t.EventsMaxBytes, 1<<30)
	t.DeadMaxBytes = cmp.Or(t.DeadMaxBytes, 1<<30)
	t.LargeMaxBytes = cmp.Or(t.LargeMaxBytes, 1<<30)
	t.FramesMaxAge = cmp.Or(t.FramesMaxAge, 7*24*time.Hour)
	t.EventsMaxAge = cmp.Or(t.EventsMaxAge, 90*24*time.Hour)
	t.Replicas = cmp.Or(t.Replicas, 1)
	return t
}

// Validate reports every setting that the broker would refuse.
func (t Topology) Validate() error {
	err := t.Names.Validate()
	d := t.WithDefaults()
	if eventsDuplicates > d.EventsMaxAge {
		err = errors.Join(err, fmt.Errorf("event ids are remembered for %v, longer than events are to be kept (%v)", eventsDuplicates, d.EventsMaxAge))
	}
	if d.FramesMaxAge < time.Second {
		err = errors.Join(err, fmt.Errorf("frames are to be kept for %v: use 1s or more", d.FramesMaxAge))
	}
	if d.Replicas < 1 || d.Replicas > 5 {
		err = errors.Join(err, fmt.Errorf("%d replicas: the broker takes 1 to 5", d.Replicas))
	}
	return err
}

// Streams are the eight streams as the broker gets them.
func (t Topology) Streams() []jetstream.StreamConfig {
	t = t.WithDefaults()
	p := t.Root()
	all := []jetstream.StreamConfig{
		{
			Name: t.FramesStream(), Description: "frames waiting to be scored",
			Subjects:  []string{p + ".frames.*.*"},
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxBytes: t.FramesMaxBytes, MaxAge: t.FramesMaxAge,
			// Message ids must not count here: with those of another camera anybody
			// could have its frames taken for duplicates. The server remembers none
			// where there is a source and no window (nats-server 2.15, checkStreamCfg);
			// this source never has anything.
			// For who counts what is stored and what is not; see Steward.
			RePublish: &jetstream.RePublish{Source: p + ".frames.*.*", Destination: p + ".stored.{{wildcard(1)}}.{{wildcard(2)}}", HeadersOnly: true},
			Sources:   []*jetstream.StreamSource{{Name: t.DeadStream(), FilterSubject: t.Dead("-")}},
		},
		{
			Name: t.EventsStream(), Description: "CloudEvents about frames, detectors and releases",
			Subjects:  []string{p + ".events.*.*.*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: t.EventsMaxBytes, MaxAge: t.EventsMaxAge, Duplicates: eventsDuplicates,
			AllowDirect: true,
		},
		{
			Name: t.NormalsStream(), Description: "training sets: normal images, and labelled anomalies apart from them",
			Subjects:  []string{p + ".normals.*", p + ".anomalies.*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
			MaxBytes: unbounded, Duplicates: time.Hour,
			AllowDirect: true,
		},
		{
			Name: t.FeedbackStream(), Description: "what operators said of frames",
			Subjects:  []string{p + ".feedback.*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: t.scaled(feedbackMaxBytes), Duplicates: time.Hour,
			AllowDirect: true,
		},
		{
			Name: t.TrainingStream(), Description: "training requests waiting for a trainer",
			Subjects:  []string{p + ".train.*"},
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxMsgs: 10_000, MaxBytes: t.scaled(trainingMaxBytes), Duplicates: time.Hour,
		},
		{
			Name: t.IncidentsStream(), Description: "alarms with a beginning and an end",
			Subjects:  []string{p + ".incidents.*.*.*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: t.scaled(incidentsMaxBytes), MaxAge: 90 * 24 * time.Hour, Duplicates: 2 * time.Hour,
			AllowDirect: true,
		},
		{
			Name: t.AuditStream(), Description: "who changed what, when and why not",
			Subjects:  []string{p + ".audit.*.*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: t.scaled(auditBytes), MaxAge: auditAge, Duplicates: time.Hour,
			AllowDirect: true,
			// Nobody takes an entry out, whatever their rights.
			DenyDelete: true, DenyPurge: true,
		},
		{
			Name: t.DeadStream(), Description: "what could not be handled, with the reason",
			// The advisories are stored too: one that nobody received would leave
			// its message in the work queue for ever.
			Subjects: []string{
				p + ".dead.*",
				AdvisoryMaxDeliver + t.FramesStream() + ".*",
			},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: t.DeadMaxBytes, MaxAge: 30 * 24 * time.Hour, Duplicates: time.Hour,
			AllowDirect: true,
		},
	}
	for i := range all {
		all[i].Storage = jetstream.FileStorage
		all[i].Replicas, all[i].Placement = t.Replicas, t.placement()
	}
	return all
}

// placement is where streams lie; nil: wherever there is room.
func (t Topology) placement() *jetstream.Placement {
	if t.Cluster == "" && len(t.Tags) == 0 {
		return nil
	}
	return &jetstream.Placement{Cluster: t.Cluster, Tags: t.Tags}
}

// Ensure creates what is missing in the broker and brings what is there to this
// configuration. It is safe to call from every process at every start, of several at
// once, too: they do it one after the other. Whom a steward refuses at the time stays
// refused. A stream of another use that has one of the names is refused rather than
// changed.
func Ensure(ctx context.Context, js jetstream.JetStream, t Topology) error {
	if err := t.Validate(); err != nil {
		return err
	}
	t = t.WithDefaults()
	return Exclusively(ctx, js, t, func(ctx context.Context) error { return ensure(ctx, js, t) })
}

// Exclusively changes streams while no other program does. The bucket of the lease is
// made where it is missing.
func Exclusively(ctx context.Context, js jetstream.JetStream, t Topology, change func(context.Context) error) error {
	bucket, err := js.KeyValue(ctx, t.WorkBucket())
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if err = ensureBucket(ctx, js, t.WithDefaults(), t.workBucket()); err == nil {
			bucket, err = js.KeyValue(ctx, t.WorkBucket())
		}
	}
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", t.WorkBucket(), err)
	}
	return lease.Of(bucket, StreamsLease).HoldIfPossible(ctx, change)
}

// StreamsLease is a key of the work bucket, which is there while a program changes streams.
const StreamsLease = "turn"

// ReleasesLease is the same for releases, a key of the bucket of pointers.
const ReleasesLease = registry.CollectLease

func (t Topology) workBucket() jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{Bucket: t.WorkBucket(), Description: "what workers have in hand, and frames that are tried again", History: 1, TTL: workAge}
}

func ensure(ctx context.Context, js jetstream.JetStream, t Topology) error {
	all := t.Streams()
	for _, cfg := range append(all[1:], all[0]) { // frames last: others are its source
		if err := ensureStream(ctx, js, t.Names, cfg); err != nil {
			return err
		}
	}
	if err := sourced(ctx, js, t.FramesStream()); err != nil {
		return err
	}
	for _, kv := range []jetstream.KeyValueConfig{
		t.workBucket(),
		{Bucket: t.DetectorsBucket(), Description: "detector configurations", History: 16},
		{Bucket: t.ActiveBucket(), Description: "detector → active release, with its history", History: 64},
		{Bucket: t.JobsBucket(), Description: "training jobs and their state", History: 1, TTL: 90 * 24 * time.Hour},
		{Bucket: t.IncidentsBucket(), Description: "detector and camera → the incident that goes on", History: 4, TTL: 90 * 24 * time.Hour},
		{Bucket: t.SinksBucket(), Description: "sinks: where events go besides NATS", History: 16},
		{Bucket: t.UsersBucket(), Description: "people of the console, and tokens for scripts", History: 4},
		{Bucket: t.SessionsBucket(), Description: "who is signed in at the console", History: 1, TTL: SessionAge},
	} {
		if err := ensureBucket(ctx, js, t, kv); err != nil {
			return err
		}
	}
	for _, o := range []jetstream.ObjectStoreConfig{
		{Bucket: t.ArtifactsBucket(), Description: "releases by SHA-256, and checkpoints", MaxBytes: unbounded},
		// A worker removes what it has scored; what was left behind goes with its frame.
		{Bucket: t.LargeBucket(), Description: "images of waiting frames that are too large for a message", MaxBytes: t.LargeMaxBytes, TTL: t.FramesMaxAge + time.Hour},
		{Bucket: t.ImagesBucket(), Description: "images of anomalies, large normals and dead letters", MaxBytes: unbounded},
		{Bucket: t.EvidenceBucket(), Description: "pictures of anomalies, by detector and event", MaxBytes: unbounded},
	} {
		o.Storage, o.Replicas, o.Placement = jetstream.FileStorage, t.Replicas, t.placement()
		if err := ensureObjects(ctx, js, o); err != nil {
			return fmt.Errorf("create object store %s: %w", o.Bucket, err)
		}
	}
	return nil
}

func ensureBucket(ctx context.Context, js jetstream.JetStream, t Topology, kv jetstream.KeyValueConfig) error {
	kv.Replicas, kv.Storage, kv.Placement = t.Replicas, jetstream.FileStorage, t.placement()
	_, err := js.CreateOrUpdateKeyValue(ctx, kv)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process was faster
		_, err = js.CreateOrUpdateKeyValue(ctx, kv)
	}
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", kv.Bucket, err)
	}
	return nil
}

// sourced waits until the server has set up a stream's source, a matter of 200 ms:
// one that is stopped in the middle of it waits for half a minute.
func sourced(ctx context.Context, js jetstream.JetStream, stream string) error {
	for begin := time.Now(); time.Since(begin) < 2*time.Second && ctx.Err() == nil; wait.Pause(ctx, 10*time.Millisecond) {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return fmt.Errorf("find stream %s: %w", stream, err)
		}
		if src := s.CachedInfo().Sources; len(src) == 0 || src[0].Active >= 0 {
			break
		}
	}
	return nil
}

// FramesBytes is the metadata in which a steward apart from the broker keeps how much
// the frame queue may hold while it refuses somebody: then it may hold more for others.
const FramesBytes = "nearmiss-frames-max-bytes"

func ensureStream(ctx context.Context, js jetstream.JetStream, n Names, cfg jetstream.StreamConfig) error {
	s, err := js.Stream(ctx, cfg.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		if _, err = js.CreateStream(ctx, cfg); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return ensureStream(ctx, js, n, cfg) // another process was faster
		}
		if err != nil {
			return fmt.Errorf("create stream %s: %w", cfg.Name, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("find stream %s: %w", cfg.Name, err)
	}
	have := s.CachedInfo().Config
	first := strings.Join(have.Subjects[:min(len(have.Subjects), 1)], "")
	// A steward that refuses a detector has written other subjects, of which the first is
	// nobody's. It goes on from these, also where it was killed.
	shares := cfg.Name == n.FramesStream() && first == n.Frames(NoCamera, NoCamera)
	if have.Retention != cfg.Retention || first != cfg.Subjects[0] && !shares {
		return fmt.Errorf("stream %s holds %v and is not Nearmiss's: choose another prefix or remove it", cfg.Name, have.Subjects)
	}
	if shares {
		cfg.Metadata = maps.Clone(have.Metadata)
		if cfg.Metadata[FramesBytes] != "" {
			cfg.Metadata[FramesBytes] = strconv.FormatInt(cfg.MaxBytes, 10)
		}
		cfg.Subjects, cfg.MaxBytes = have.Subjects, have.MaxBytes
	}
	cfg.Sources = append(cfg.Sources, ofEdges(have.Sources)...)
	if _, err := js.UpdateStream(ctx, cfg); err != nil {
		return fmt.Errorf("update stream %s: %w", cfg.Name, err)
	}
	return nil
}

// ensureObjects is js.CreateOrUpdateObjectStore, which would take no more of edges.
func ensureObjects(ctx context.Context, js jetstream.JetStream, o jetstream.ObjectStoreConfig) error {
	s, err := js.Stream(ctx, object.StreamOf(o.Bucket))
	if err != nil || len(ofEdges(s.CachedInfo().Config.Sources)) == 0 {
		_, err = js.CreateOrUpdateObjectStore(ctx, o)
		return err
	}
	cfg := s.CachedInfo().Config
	cfg.MaxBytes, cfg.MaxAge, cfg.Replicas, cfg.Placement = o.MaxBytes, o.TTL, o.Replicas, o.Placement
	_, err = js.UpdateStream(ctx, cfg)
	return err
}

// AdvisoryMaxDeliver, stream and consumer name the subject on which the server
// says that a message has been delivered as often as allowed (nats-server,
// JSAdvisoryConsumerMaxDeliveryExceedPre).
const AdvisoryMaxDeliver = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES."

// workAge is how long a record of the work bucket is kept that nobody removes.
const workAge = 7 * 24 * time.Hour
