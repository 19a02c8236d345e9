package access

import (
	"cmp"
	"slices"

	"github.com/nearmiss/nearmiss/stream"
)

// Rights are what a client may publish and subscribe, in its own account.
type Rights struct {
	Publish, Subscribe []string
	// Respond allows one answer to each request that the client received, on
	// whatever subject the asker named.
	Respond bool
}

// Rights of u. Each list was found by tracing what the role does in a whole
// story (learn, score, mark, train, promote, roll back, collect, …); the tests
// run that story with exactly these.
func (u User) Rights(n stream.Names) Rights {
	d := cmp.Or(u.Detector, "*")
	r := subjects{n}
	var out Rights
	switch u.Role {
	case Camera:
		out.Publish = []string{n.Frames(u.Detector, u.CameraName())}
		if !u.MQTT {
			out.Publish = append(out.Publish, n.Shed(u.Detector, u.CameraName()))
		}
		if u.Large {
			out.Publish = append(out.Publish, large(n)...)
		}
	case Subscriber:
		out = r.subscriber(u, d)
	case Worker:
		out = r.worker(d)
	case Trainer:
		out = r.trainer()
	case Sinks:
		out = r.sinks()
	case Control:
		out = r.control()
	case Operator:
		out = r.operator()
	case Console:
		out = r.console()
	case Setup:
		out.Publish = r.setup()
	case Metrics:
		out.Publish = []string{"$SYS.REQ.SERVER.PING.*", "$SYS.REQ.ACCOUNT.PING.*", "$SYS.REQ.SERVER.*.*"}
	}
	if !u.MQTT { // MQTT clients have no inbox
		out.Publish = append(out.Publish, OwnRights)
		for _, k := range []*Key{&u.Key, u.Old} {
			if k != nil && k.Public != "" {
				out.Subscribe = append(out.Subscribe, Inbox(k.Public)+".>")
			}
		}
	}
	return out
}

// OwnRights is where a server tells a client what this may do.
const OwnRights = "$SYS.REQ.USER.INFO"

// Inbox is the prefix of the reply subjects of the client with that public key.
// Nobody else may subscribe to them: who reads another's inbox reads its frames
// and answers.
func Inbox(public string) string { return "_INBOX_" + public }

// subjects builds the lists for one prefix.
type subjects struct{ stream.Names }

// service is what a NATS micro service subscribes to besides its own requests.
var service = []string{
	"$SRV.PING", "$SRV.PING.*", "$SRV.PING.*.*",
	"$SRV.INFO", "$SRV.INFO.*", "$SRV.INFO.*.*",
	"$SRV.STATS", "$SRV.STATS.*", "$SRV.STATS.*.*",
}

const api = "$JS.API."

func info(streams ...string) []string {
	var out []string
	for _, s := range streams {
		out = append(out, api+"STREAM.INFO."+s)
	}
	return out
}

// reads are the requests of a consumer that its user makes, pulls from and
// deletes.
func reads(streamName, filter string) []string {
	c := api + "CONSUMER."
	return []string{
		c + "CREATE." + streamName + ".*." + filter,
		c + "INFO." + streamName + ".*",
		c + "MSG.NEXT." + streamName + ".*",
		c + "DELETE." + streamName + ".*",
	}
}

// pulls are the requests of a durable consumer with a fixed name.
func pulls(streamName, durable string) []string {
	return []string{
		api + "CONSUMER.CREATE." + streamName + "." + durable,
		api + "CONSUMER.MSG.NEXT." + streamName + "." + durable,
		"$JS.ACK." + streamName + "." + durable + ".>",
	}
}

// readKV opens, gets, lists and watches a bucket.
func readKV(bucket string) []string {
	s := "KV_" + bucket
	return []string{
		api + "STREAM.INFO." + s,
		api + "DIRECT.GET." + s, api + "DIRECT.GET." + s + ".$KV." + bucket + ".>",
		api + "CONSUMER.CREATE." + s + ".*.$KV." + bucket + ".>",
		api + "CONSUMER.DELETE." + s + ".*",
		api + "CONSUMER.INFO." + s + ".*",
		api + "CONSUMER.MSG.NEXT." + s + ".*",
	}
}

// readObjects gets, lists and watches objects.
func readObjects(bucket string) []string {
	s := "OBJ_" + bucket
	return []string{
		api + "STREAM.INFO." + s,
		api + "DIRECT.GET." + s + ".$O." + bucket + ".M.*",
		api + "CONSUMER.CREATE." + s + ".*.$O." + bucket + ".>",
		api + "CONSUMER.DELETE." + s + ".*",
		api + "CONSUMER.INFO." + s + ".*",
		api + "CONSUMER.MSG.NEXT." + s + ".*",
		"$JS.FC." + s + ".>",
	}
}

// writeObjects stores and deletes objects of a bucket that may be read.
func writeObjects(bucket string) []string {
	return []string{
		"$O." + bucket + ".C.*", "$O." + bucket + ".M.*",
		api + "STREAM.PURGE.OBJ_" + bucket,
	}
}

// lastChunks asks when an upload that is not finished went on last.
func lastChunks(buckets ...string) []string {
	var out []string
	for _, b := range buckets {
		out = append(out, api+"DIRECT.GET.OBJ_"+b+".$O."+b+".C.*")
	}
	return out
}

// large is what the parts of a large frame are published on ([stream.Frame.Large]).
func large(n stream.Names) []string {
	b := n.LargeBucket()
	return []string{"$O." + b + ".C.*", "$O." + b + ".M.*"}
}

func (r subjects) worker(d string) Rights {
	frames, events, dead := r.FramesStream(), r.EventsStream(), r.DeadStream()
	advisories := "advisories-" + frames
	durable := "*"
	if d != "*" {
		durable = "frames-" + d
	}
	return Rights{
		Publish: slices.Concat(
			info(frames, events, r.NormalsStream(), dead),
			[]string{
				api + "CONSUMER.CREATE." + frames + "." + durable + "." + r.Frames(d, "*"),
				api + "CONSUMER.MSG.NEXT." + frames + "." + durable,
				"$JS.ACK." + frames + "." + durable + ".>",
				api + "STREAM.MSG.GET." + frames, api + "STREAM.MSG.DELETE." + frames, api + "STREAM.PURGE." + frames,
				api + "CONSUMER.CREATE." + dead + "." + advisories + ".$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES." + frames + ".*",
				api + "CONSUMER.MSG.NEXT." + dead + "." + advisories,
				"$JS.ACK." + dead + "." + advisories + ".>",
				api + "STREAM.MSG.DELETE." + dead,
				api + "DIRECT.GET." + events + "." + r.Events(d, "*", stream.KindAnomaly),
			},
			reads(events, r.Events(d, "*", stream.KindAnomaly)),
			readKV(r.ActiveBucket()), readKV(r.DetectorsBucket()),
			readKV(r.JobsBucket()), []string{"$KV." + r.JobsBucket() + ".*"},
			readKV(r.WorkBucket()), []string{"$KV." + r.WorkBucket() + ".>", r.API() + ".worker.alive.*"},
			readObjects(r.ArtifactsBucket()), // releases, and what earlier versions kept there
			readObjects(r.LargeBucket()), writeObjects(r.LargeBucket()),
			readObjects(r.ImagesBucket()), writeObjects(r.ImagesBucket()),
			readObjects(r.EvidenceBucket()), writeObjects(r.EvidenceBucket()),
			[]string{r.Events(d, "*", "*"), r.Scores(d, "*"), r.Normals(d), r.Train(d), r.Dead(frames)},
		),
		Subscribe: append([]string{r.API() + ".worker.>"}, service...),
		Respond:   true,
	}
}

func (r subjects) trainer() Rights {
	frames, events, normals, dead := r.FramesStream(), r.EventsStream(), r.NormalsStream(), r.DeadStream()
	return Rights{
		Publish: slices.Concat(
			info(frames, events, normals, dead, r.FeedbackStream(), r.TrainingStream()),
			pulls(r.TrainingStream(), "trainers"), pulls(r.FeedbackStream(), "feedback"),
			reads(normals, r.Normals("*")), reads(r.FeedbackStream(), r.Feedback("*")),
			[]string{ // of what is withdrawn, too
				api + "CONSUMER.CREATE." + normals + ".*." + r.Anomalies("*"),
				api + "DIRECT.GET." + normals, api + "STREAM.MSG.DELETE." + normals,
			},
			reads(events, r.Events("*", "*", stream.KindAnomaly)),
			[]string{api + "DIRECT.GET." + events, api + "DIRECT.GET." + events + "." + r.Events("*", "*", stream.KindDrift)},
			readKV(r.ActiveBucket()), []string{"$KV." + r.ActiveBucket() + ".*"},
			readKV(r.DetectorsBucket()),
			readKV(r.JobsBucket()), []string{"$KV." + r.JobsBucket() + ".*"},
			readKV(r.WorkBucket()),
			readObjects(r.ArtifactsBucket()), writeObjects(r.ArtifactsBucket()),
			readObjects(r.ImagesBucket()), writeObjects(r.ImagesBucket()),
			lastChunks(r.ArtifactsBucket(), r.ImagesBucket()),
			readObjects(r.EvidenceBucket()), writeObjects(r.EvidenceBucket()),
			[]string{
				r.Events("*", "*", "*"),
				r.Train("*"), r.Normals("*"), r.Anomalies("*"), r.Feedback("*"), r.Progress("*", "*"),
				r.Dead(r.TrainingStream()), r.Dead(r.FeedbackStream()),
			},
		),
		Subscribe: append([]string{r.API() + ".trainer.calibration", r.API() + ".trainer.outliers", r.API() + ".trainer.choices"}, service...),
		Respond:   true,
	}
}

// sinks may make any consumer of the events: its filter is not part of the
// request's subject when there are several.
func (r subjects) sinks() Rights {
	events, dead := r.EventsStream(), r.DeadStream()
	return Rights{
		Publish: slices.Concat(
			info(events, dead),
			reads(events, r.prefixed("events.>")),
			[]string{
				api + "CONSUMER.CREATE." + events + ".*", "$JS.ACK." + events + ".*.>",
				api + "DIRECT.GET." + events, api + "DIRECT.GET." + events + "." + r.Events("*", "*", stream.KindAnomaly),
			},
			readKV(r.SinksBucket()), []string{"$KV." + r.SinksBucket() + ".*"},
			readKV(r.DetectorsBucket()),            // when incidents are over
			pulls(r.FeedbackStream(), "incidents"), // people's verdicts
			info(r.IncidentsStream()), reads(r.IncidentsStream(), r.prefixed("incidents.>")),
			[]string{
				api + "CONSUMER.CREATE." + r.IncidentsStream() + ".*", "$JS.ACK." + r.IncidentsStream() + ".*.>",
				r.Incidents("*", "*", "*"),
			},
			readKV(r.IncidentsBucket()), []string{"$KV." + r.IncidentsBucket() + ".>"},
			reads(dead, r.Dead("*")),
			[]string{api + "STREAM.MSG.DELETE." + dead, r.Dead(events), r.Dead(r.IncidentsStream())},
			// Pictures, for mail and archives.
			readObjects(r.EvidenceBucket()), readObjects(r.ImagesBucket()),
			// For controllers: is there somebody who scores? And of what was lost.
			[]string{"$SRV.PING." + stream.WorkerService, r.Events("*", stream.NoCamera, stream.KindLost)},
		),
		// Controllers follow scores, and get a notice of what has none.
		Subscribe: append([]string{r.API() + ".sinks.>", r.Scores("*", "*"), r.Events("*", "*", stream.KindRejected), r.Incidents("*", "*", "*")}, service...),
		Respond:   true,
	}
}

// control writes what people change; nobody else does.
func (r subjects) control() Rights {
	frames, events, normals := r.FramesStream(), r.EventsStream(), r.NormalsStream()
	return Rights{
		Publish: slices.Concat(
			info(frames, events, normals, r.DeadStream(), r.TrainingStream(), r.FeedbackStream(), "KV_"+r.WorkBucket(), "KV_"+r.DetectorsBucket()),
			readKV(r.ActiveBucket()), []string{"$KV." + r.ActiveBucket() + ".*"},
			readKV(r.DetectorsBucket()), []string{"$KV." + r.DetectorsBucket() + ".*"},
			readKV(r.JobsBucket()), []string{"$KV." + r.JobsBucket() + ".*"},
			readKV(r.SinksBucket()), []string{"$KV." + r.SinksBucket() + ".*", r.API() + ".sinks.*"},
			readKV(r.WorkBucket()),
			reads(events, r.Events("*", "*", stream.KindAnomaly)), // what a verdict is about
			[]string{
				api + "DIRECT.GET." + events, api + "DIRECT.GET." + events + "." + r.Events("*", "*", stream.KindDrift),
				api + "DIRECT.GET." + normals, api + "STREAM.MSG.DELETE." + normals,
				api + "CONSUMER.CREATE." + frames + ".*." + r.Frames("*", "*"), // before a worker comes
				api + "CONSUMER.CREATE." + r.TrainingStream() + ".trainers",
				api + "CONSUMER.DELETE." + frames + ".*",
				api + "STREAM.PURGE." + frames, api + "STREAM.PURGE." + normals, api + "STREAM.PURGE." + r.TrainingStream(),
				api + "STREAM.PURGE.KV_" + r.WorkBucket(), api + "STREAM.PURGE.KV_" + r.DetectorsBucket(),
			},
			readObjects(r.ArtifactsBucket()), writeObjects(r.ArtifactsBucket()),
			readObjects(r.ImagesBucket()), writeObjects(r.ImagesBucket()),
			lastChunks(r.ArtifactsBucket(), r.ImagesBucket()),
			readObjects(r.EvidenceBucket()), writeObjects(r.EvidenceBucket()),
			[]string{r.Feedback("*"), r.Train("*"), r.Audit("*", "*")},
			// Of the queue's shares: who is above its own is refused, and gets the reason.
			[]string{
				api + "STREAM.UPDATE." + frames, r.changeLease(), r.Steward(), r.Events("*", stream.NoCamera, stream.KindLost),
				api + "DIRECT.GET." + events + "." + r.Events("*", stream.NoCamera, stream.KindLost),
			},
		),
		Subscribe: append([]string{r.API() + ".control.>", r.API() + ".trainer.>", r.prefixed("stored.*.*"), r.Frames("*", "*")}, service...),
		Respond:   true,
	}
}

// operator reads, asks, and brings normals and releases, which are too large to
// be asked for.
func (r subjects) operator() Rights {
	frames, events, normals, dead := r.FramesStream(), r.EventsStream(), r.NormalsStream(), r.DeadStream()
	return Rights{
		Publish: slices.Concat(
			info(frames, events, normals, dead, r.TrainingStream(), r.FeedbackStream(), r.IncidentsStream()),
			[]string{api + "INFO", api + "CONSUMER.INFO." + frames + ".*", api + "STREAM.MSG.GET." + frames}, // levels
			readKV(r.ActiveBucket()), readKV(r.DetectorsBucket()), readKV(r.JobsBucket()), readKV(r.WorkBucket()),
			readKV(r.SinksBucket()),
			reads(dead, r.Dead("*")),
			info(r.AuditStream()), reads(r.AuditStream(), r.Audit("*", "*")),
			reads(events, r.prefixed("events.>")),
			[]string{
				api + "DIRECT.GET." + events, api + "DIRECT.GET." + events + "." + r.Events("*", "*", stream.KindDrift),
				"$JS.ACK." + events + ".*.>",
				api + "CONSUMER.CREATE." + events + ".*", // of subscribers, with several filters
			},
			reads(normals, r.Normals("*")),
			[]string{api + "CONSUMER.CREATE." + normals + ".*." + r.Anomalies("*"), api + "DIRECT.GET." + normals},
			readObjects(r.ArtifactsBucket()), writeObjects(r.ArtifactsBucket()),
			readObjects(r.ImagesBucket()), writeObjects(r.ImagesBucket()),
			readObjects(r.EvidenceBucket()),
			readObjects(r.LargeBucket()),                                     // normals are taken from frames
			[]string{"$KV." + r.ActiveBucket() + "." + stream.ReleasesLease}, // brings releases while nobody collects
			[]string{r.Normals("*"), r.Anomalies("*"), r.API() + ".>", "$SRV.PING.*", "$SRV.INFO.*", "$SRV.STATS.*"},
		),
		Subscribe: []string{r.Progress("*", "*"), r.Frames("*", "*"), r.Scores("*", "*")},
	}
}

// console does what operators do, shows all verdicts, and keeps those who sign in.
func (r subjects) console() Rights {
	out := r.operator()
	out.Publish = slices.Concat(out.Publish,
		reads(r.FeedbackStream(), r.Feedback("*")),
		readKV(r.UsersBucket()), []string{"$KV." + r.UsersBucket() + ".>"},
		readKV(r.SessionsBucket()), []string{"$KV." + r.SessionsBucket() + ".*"},
		[]string{r.Audit("*", "*")}, // of users, sinks and what else it changes itself
	)
	return out
}

// subscriber's requests go to JetStream in account NM by the names that its own
// account imports them under ([subscriberAPI]).
func (r subjects) subscriber(u User, d string) Rights {
	if u.Live {
		out := Rights{Subscribe: []string{r.Scores(d, "*"), r.Incidents(d, "*", "*")}}
		if len(u.Kinds) == 0 {
			out.Subscribe = append(out.Subscribe, r.Events(d, "*", "*"))
		}
		for _, k := range u.Kinds {
			out.Subscribe = append(out.Subscribe, r.Events(d, "*", k))
		}
		return out
	}
	s, c := r.EventsStream(), u.Durable()
	return Rights{Publish: []string{
		subscriberAPI + "CONSUMER.INFO." + s + "." + c,
		subscriberAPI + "CONSUMER.MSG.NEXT." + s + "." + c,
		"$JS.ACK." + s + "." + c + ".>",
	}}
}

func (r subjects) setup() []string {
	names := append([]string{
		r.FramesStream(), r.EventsStream(), r.NormalsStream(), r.FeedbackStream(), r.TrainingStream(), r.DeadStream(), r.AuditStream(), r.IncidentsStream(),
	}, r.BucketStreams()...)
	out := []string{api + "INFO"}
	passing := []string{r.FramesStream(), r.TrainingStream(), "KV_" + r.WorkBucket(), "OBJ_" + r.LargeBucket()} // is not backed up
	for _, n := range names {
		verbs := []string{"INFO", "CREATE", "UPDATE"}
		if !slices.Contains(passing, n) { // to back up, and to restore into what is missing; nobody may delete
			verbs = append(verbs, "SNAPSHOT", "RESTORE")
			out = append(out, "$JS.SNAPSHOT.ACK."+n+".>", "$JS.SNAPSHOT.RESTORE."+n+".*")
		}
		for _, verb := range verbs {
			out = append(out, api+"STREAM."+verb+"."+n)
		}
	}
	// It changes streams while no other program does.
	out = append(out, r.changeLease(), api+"DIRECT.GET.KV_"+r.WorkBucket()+"."+r.changeLease())
	// A restore looks whether each active release loads.
	out = append(out, readKV(r.ActiveBucket())...)
	return append(out, readObjects(r.ArtifactsBucket())...)
}

// changeLease is the subject of the lease for changes of streams.
func (r subjects) changeLease() string { return "$KV." + r.WorkBucket() + "." + stream.StreamsLease }

func (r subjects) prefixed(rest string) string { return r.Root() + "." + rest }
