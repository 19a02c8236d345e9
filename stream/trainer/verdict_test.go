package trainer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// activeFake is the fake that a detector's active release is made of.
func activeFake(r *streamtest.Rig, detector string) (f streamtest.Fake) {
	r.T.Helper()
	p, err := r.Registry.Active(r.T.Context(), detector)
	if err != nil {
		r.T.Fatal(err)
	}
	dir, err := r.Registry.Get(r.T.Context(), p.Release)
	if err != nil {
		r.T.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "fake.json"))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		r.T.Fatal(err)
	}
	return f
}

// countMarks says what the verdicts on a detector's events have made.
func countMarks(r *streamtest.Rig, detector string) (normals, anomalies int) {
	r.T.Helper()
	s := r.In.Normals()
	for what, n := range map[bool]*int{false: &normals, true: &anomalies} {
		all, err := s.List(r.T.Context(), detector, what)
		if err != nil {
			r.T.Fatal(err)
		}
		*n = len(all)
	}
	return normals, anomalies
}

// TestTheLastVerdictWins: one that is taken back leaves the training set and the
// bank, and can be given again at once.
func TestTheLastVerdictWins(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Worker(worker.Config{}, streamtest.LoadFake)
	stop := r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "alarm", Image: streamtest.Image(0.95)})
	eventually.True(t, "it is announced", func() bool { return len(r.Events()) == 1 })
	e := r.Events()[0]
	say := func(verdict string) {
		t.Helper()
		if err := r.In.SendFeedback(t.Context(), stream.Feedback{Detector: "bolts", Verdict: verdict, Event: e.ID, Sequence: e.Sequence}); err != nil {
			t.Fatal(err)
		}
	}
	becomes := func(what string, normals, anomalies int, inBank bool) {
		t.Helper()
		eventually.True(t, fmt.Sprintf("%s: %d normals, %d anomalies, in the bank: %v", what, normals, anomalies, inBank), func() bool {
			n, a := countMarks(r, "bolts")
			return n == normals && a == anomalies && (len(activeFake(r, "bolts").Normal) > 0) == inBank
		})
	}
	say(stream.FeedbackNormal)
	becomes("normal", 1, 0, true)
	say(stream.FeedbackAnomalous)
	becomes("anomalous after all", 0, 1, false)
	say(stream.FeedbackNormal)
	becomes("normal, for the second time within an hour", 1, 0, true)
	say(stream.FeedbackNormal)
	say(stream.FeedbackWithdrawn)
	becomes("withdrawn", 0, 0, false)
	say(stream.FeedbackAnomalous)
	becomes("anomalous", 0, 1, false)
	say(stream.FeedbackSeen)
	becomes("only seen", 0, 0, false)
	stop()

	// Verdicts that are there together, in whatever order they are taken.
	for _, v := range []string{stream.FeedbackNormal, stream.FeedbackWithdrawn, stream.FeedbackAnomalous, stream.FeedbackNormal, stream.FeedbackAnomalous} {
		say(v)
	}
	r.Trainer(trainer.Config{Name: "a"}, streamtest.FakeTrainer{T: t})
	r.Trainer(trainer.Config{Name: "b"}, streamtest.FakeTrainer{T: t})
	becomes("the last of five", 0, 1, false)
	for _, j := range mustList(t, r) {
		if j.State == stream.JobFailed {
			t.Errorf("job %s failed: %s", j.Job, j.Error)
		}
	}
}

func mustList(t *testing.T, r *streamtest.Rig) []stream.Job {
	t.Helper()
	all, err := r.Jobs().List(t.Context(), "bolts")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestWhatIsWithdrawnDuringATraining does not come back with its release.
func TestWhatIsWithdrawnDuringATraining(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Worker(worker.Config{}, streamtest.LoadFake)
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	training, trained := make(chan struct{}), make(chan struct{})
	fake := streamtest.FakeTrainer{T: t, OnTrain: func(context.Context, *trainer.Task) error {
		close(training)
		<-trained
		return nil
	}, Model: func(*trainer.Task) streamtest.Fake {
		return streamtest.Fake{Name: "trained", Normal: [][]byte{streamtest.Image(0.95)}}
	}}
	r.Trainer(trainer.Config{Name: "a"}, fake)
	r.Trainer(trainer.Config{Name: "b"}, fake)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "alarm", Image: streamtest.Image(0.95)})
	eventually.True(t, "it is announced", func() bool { return len(r.Events()) == 1 })
	f := stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackNormal, Event: r.Events()[0].ID}
	if err := r.In.SendFeedback(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "it is in the bank", func() bool { return len(activeFake(r, "bolts").Normal) == 1 })
	if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "train", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	<-training
	f.Verdict, f.At = stream.FeedbackWithdrawn, time.Time{}
	if err := r.In.SendFeedback(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "it has left the bank", func() bool { return len(activeFake(r, "bolts").Normal) == 0 })
	close(trained)
	r.Wait("train")
	eventually.True(t, "it has left the trained one, too", func() bool {
		now := activeFake(r, "bolts")
		return now.Name == "trained" && len(now.Normal) == 0
	})
}

// TestFeedbackOfBefore: an event's id was once called event.
func TestFeedbackOfBefore(t *testing.T) {
	for _, text := range []string{`{"detector":"bolts","verdict":"normal","id":"e1"}`, `{"detector":"bolts","verdict":"normal","event":"e1"}`} {
		f, err := stream.ParseFeedback([]byte(text))
		if err != nil || f.Event != "e1" {
			t.Errorf("%s: %+v, %v", text, f, err)
		}
		if b, err := json.Marshal(f); err != nil || !strings.Contains(string(b), `"id":"e1"`) || strings.Contains(string(b), `"event"`) {
			t.Errorf("%s becomes %s, %v", text, b, err)
		}
	}
	if _, err := stream.ParseFeedback([]byte(`{"detector":"bolts","verdict":"normal","id":"e1","why":1}`)); err == nil {
		t.Error("an unknown field is taken")
	}
}
