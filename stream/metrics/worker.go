package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// Worker counts what a [worker.Worker] does.
func (m *Metrics) Worker() worker.Meter { return m.worker }

// Trainer counts what a [trainer.Worker] does.
func (m *Metrics) Trainer() trainer.Meter { return m.trainer }

type workerMeter struct {
	cameras  cameras
	frames   frameCounters
	drift    driftGauges
	releases releaseMetrics

	delay, queue, stage, batch, ratio, pvalue *prometheus.HistogramVec
	pictures, events                          *prometheus.CounterVec
	last                                      *prometheus.GaugeVec
}

// frameCounters count frames by what became of them.
type frameCounters struct {
	scored, anomalous, rejected, retried, dropped, learned *prometheus.CounterVec
}

// driftGauges say how far what cameras see has moved.
type driftGauges struct{ evidence, level, alarms *prometheus.GaugeVec }

// releaseMetrics are about the releases that judge.
type releaseMetrics struct {
	swaps, shadow   *prometheus.CounterVec
	swap            *prometheus.HistogramVec
	info, threshold *prometheus.GaugeVec
}

func newWorker(m *Metrics) *workerMeter {
	seconds := []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	return &workerMeter{
		frames: frameCounters{
			scored:    m.counter("frames_scored_total", "Frames with a score.", "detector", "camera"),
			anomalous: m.counter("frames_anomalous_total", "Frames that were judged anomalous.", "detector", "camera"),
			rejected:  m.counter("frames_rejected_total", "Frames that could not be judged, by the code of the reason.", "detector", "code"),
			retried:   m.counter("frames_retried_total", "Frames that were given back to be tried again.", "detector"),
			dropped:   m.counter("frames_dropped_total", "Frames of live detectors that were too old.", "detector"),
			learned:   m.counter("frames_learned_total", "Frames that have become normals.", "detector"),
		},
		drift: driftGauges{
			evidence: m.gauge("drift_evidence", "Evidence that what a camera sees as normal has moved; 1 and above means so.", "detector", "camera"),
			level:    m.gauge("drift_level", "Mean rank of a camera's recent scores: 0.5 as calibrated, less where scores rise.", "detector", "camera"),
			alarms:   m.gauge("drift_alarm_ratio", "Share of anomalous frames among a camera's recent ones.", "detector", "camera"),
		},
		releases: releaseMetrics{
			swaps:     m.counter("release_swaps_total", "Releases that came into service or were refused.", "detector", "result"),
			swap:      m.histogram("release_swap_seconds", "Time to load a release.", []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60}, "detector"),
			info:      m.gauge("release_info", "Releases in service, active or candidate; always 1.", "detector", "release", "role"),
			shadow:    m.counter("shadow_frames_total", "Frames that a candidate has judged alongside: both, neither, only_active, only_candidate, failed.", "detector", "outcome"),
			threshold: m.gauge("release_threshold", "Threshold that the last frame was judged by.", "detector"),
		},
		delay:    m.histogram("frame_delay_seconds", "From the time when a frame was taken to its score.", seconds, "detector"),
		queue:    m.histogram("frame_queue_seconds", "From the time when a frame was stored to its delivery to a worker.", seconds, "detector"),
		stage:    m.histogram("stage_seconds", "Time of a batch: score (decode, embed and search), publish; time of an anomaly: evidence, pictures.", []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, "stage"),
		batch:    m.histogram("batch_frames", "Frames that were scored at once.", []float64{1, 2, 4, 8, 16, 32, 64, 128}, "detector"),
		ratio:    m.histogram("score_ratio", "Score divided by threshold; above 1 is anomalous.", []float64{.25, .5, .75, .9, 1, 1.1, 1.25, 1.5, 2, 4}, "detector"),
		pvalue:   m.histogram("p_value", "Share of normals that are at least as strange as the frame.", []float64{.001, .005, .01, .05, .1, .25, .5, .75, 1}, "detector"),
		pictures: m.counter("pictures_total", "Anomalies by what became of their pictures: kept, busy, failed, privacy, storage.", "result"),
		events:   m.counter("events_total", "Events that were stored.", "kind"),
		last:     m.gauge("camera_last_frame_timestamp_seconds", "When the last frame of a camera was stored that this worker has taken.", "detector", "camera"),
	}
}

func (w *workerMeter) Frame(e *stream.Event, stored, delivered time.Time) {
	w.queue.WithLabelValues(e.Detector).Observe(positive(delivered.Sub(stored)))
	if e.Score == nil || e.Anomalous == nil {
		w.frames.rejected.WithLabelValues(e.Detector, e.Code).Inc()
		return
	}
	camera := w.cameras.label(e.Detector, e.Camera)
	w.frames.scored.WithLabelValues(e.Detector, camera).Inc()
	if anomalous := w.frames.anomalous.WithLabelValues(e.Detector, camera); *e.Anomalous { // there with 0 before the first
		anomalous.Inc()
	}
	w.delay.WithLabelValues(e.Detector).Observe(positive(e.ScoredAt.Sub(e.CapturedAt)))
	if e.Threshold != nil {
		w.releases.threshold.WithLabelValues(e.Detector).Set(*e.Threshold)
	}
	if r, ok := e.Ratio(); ok {
		w.ratio.WithLabelValues(e.Detector).Observe(r)
	}
	if e.PValue != nil {
		w.pvalue.WithLabelValues(e.Detector).Observe(*e.PValue)
	}
}

// positive is a duration in seconds; clocks of two machines may disagree.
func positive(d time.Duration) float64 { return max(d, 0).Seconds() }

func (w *workerMeter) Frames(detector, what string, n uint64) {
	switch what {
	case worker.FramesRetried:
		w.frames.retried.WithLabelValues(detector).Add(float64(n))
	case worker.FramesDropped:
		w.frames.dropped.WithLabelValues(detector).Add(float64(n))
	case worker.FramesLearned:
		w.frames.learned.WithLabelValues(detector).Add(float64(n))
	}
}

func (w *workerMeter) Batch(detector string, frames int) {
	w.batch.WithLabelValues(detector).Observe(float64(frames))
}

func (w *workerMeter) Stage(stage string, took time.Duration) {
	w.stage.WithLabelValues(stage).Observe(took.Seconds())
}

func (w *workerMeter) CameraFrame(detector, camera string, at time.Time) {
	w.last.WithLabelValues(detector, w.cameras.label(detector, camera)).Set(float64(at.UnixNano()) / 1e9)
}

func (w *workerMeter) Drift(detector, camera string, s stream.DriftStatus) {
	camera = w.cameras.label(detector, camera)
	w.drift.evidence.WithLabelValues(detector, camera).Set(s.Evidence)
	w.drift.level.WithLabelValues(detector, camera).Set(s.Level)
	w.drift.alarms.WithLabelValues(detector, camera).Set(s.AlarmShare)
}

func (w *workerMeter) Swap(detector, role, release, result string, took time.Duration) {
	w.releases.swaps.WithLabelValues(detector, result).Inc()
	if result != stream.ReleaseInService {
		return
	}
	w.releases.swap.WithLabelValues(detector).Observe(took.Seconds())
	w.Left(detector, role)
	w.releases.info.WithLabelValues(detector, release[:min(12, len(release))], role).Set(1)
}

func (w *workerMeter) Left(detector, role string) {
	w.releases.info.DeletePartialMatch(prometheus.Labels{"detector": detector, "role": role})
}

func (w *workerMeter) Shadow(detector, outcome string, n int) {
	w.releases.shadow.WithLabelValues(detector, outcome).Add(float64(n))
}

func (w *workerMeter) Pictures(result string) { w.pictures.WithLabelValues(result).Inc() }
func (w *workerMeter) Stored(kind string)     { w.events.WithLabelValues(kind).Inc() }

// Gone takes the rows of a detector away: a gauge that nobody sets any more is a
// lie, and a camera that is not watched cannot be silent.
func (w *workerMeter) Gone(detector string) {
	of := prometheus.Labels{"detector": detector}
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
		w.frames.scored, w.frames.anomalous, w.frames.rejected, w.frames.retried, w.frames.dropped, w.frames.learned, w.releases.swaps, w.releases.shadow,
		w.delay, w.queue, w.batch, w.ratio, w.pvalue, w.releases.swap, w.drift.evidence, w.drift.level, w.drift.alarms, w.last, w.releases.info, w.releases.threshold,
	} {
		v.DeletePartialMatch(of)
	}
	w.cameras.forget(detector)
}

type trainerMeter struct {
	jobs                                       *prometheus.CounterVec
	seconds                                    *prometheus.HistogramVec
	progress, loss, frechet, reported, running *prometheus.GaugeVec
}

func newTrainer(m *Metrics) *trainerMeter {
	return &trainerMeter{
		jobs:     m.counter("jobs_total", "Attempts at training jobs that are over, by result: done, failed, cancelled, back (in the queue), lost (to another trainer).", "kind", "result"),
		seconds:  m.histogram("job_seconds", "Time of an attempt.", []float64{1, 5, 15, 60, 300, 900, 3600, 14400, 43200, 86400}, "kind"),
		running:  m.gauge("jobs_running", "Jobs that this trainer works at: 0 or 1.", "detector", "kind"),
		progress: m.gauge("job_progress_ratio", "Share of the phase of the job under way that is done; 0 where nobody knows.", "detector", "kind"),
		loss:     m.gauge("job_loss", "Loss of the last steps.", "detector", "kind"),
		frechet:  m.gauge("job_frechet_distance", "Last distance between the generator's samples and the normals.", "detector", "kind"),
		reported: m.gauge("job_last_report_timestamp_seconds", "When the job under way last gave a sign of progress.", "detector", "kind"),
	}
}

func (t *trainerMeter) Took(detector, kind string) {
	t.running.WithLabelValues(detector, kind).Set(1)
	t.reported.WithLabelValues(detector, kind).SetToCurrentTime()
}

func (t *trainerMeter) Ended(detector, kind, result string, took time.Duration) {
	t.jobs.WithLabelValues(kind, result).Inc()
	t.seconds.WithLabelValues(kind).Observe(took.Seconds())
	for _, v := range []*prometheus.GaugeVec{t.running, t.progress, t.loss, t.frechet, t.reported} {
		v.DeleteLabelValues(detector, kind)
	}
}

func (t *trainerMeter) Progress(kind string, p stream.Progress) {
	share := 0.0
	if p.Steps > 0 {
		share = float64(p.Step) / float64(p.Steps)
	}
	t.progress.WithLabelValues(p.Detector, kind).Set(share)
	t.reported.WithLabelValues(p.Detector, kind).SetToCurrentTime()
	if p.Loss != nil {
		t.loss.WithLabelValues(p.Detector, kind).Set(*p.Loss)
	}
	if p.Frechet != nil {
		t.frechet.WithLabelValues(p.Detector, kind).Set(*p.Frechet)
	}
}
