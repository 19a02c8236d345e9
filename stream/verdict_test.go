package stream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// active is the fake that a detector's active release is made of.
func (r *rig) active(detector string) (f fake) {
	r.t.Helper()
	p, err := r.reg.Active(r.t.Context(), detector)
	if err != nil {
		r.t.Fatal(err)
	}
	dir, err := r.reg.Get(r.t.Context(), p.Release)
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "fake.json"))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// marks says what the verdicts on a detector's events have made.
func (r *rig) marks(detector string) (normals, anomalies int) {
	r.t.Helper()
	s := r.in.Normals()
	for what, n := range map[bool]*int{false: &normals, true: &anomalies} {
		all, err := s.List(r.t.Context(), detector, what)
		if err != nil {
			r.t.Fatal(err)
		}
		*n = len(all)
	}
	return normals, anomalies
}

// TestTheLastVerdictWins: one that is taken back leaves the training set and the
// bank, and can be given again at once.
func TestTheLastVerdictWins(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.detector(stream.Detector{Name: "bolts"})
	r.release("bolts", fake{Name: "one"})
	r.worker(stream.WorkerConfig{}, loadFake)
	stop := r.trainer(stream.TrainerConfig{}, fakeTrainer{t: t})
	r.publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "alarm", Image: image(0.95)})
	eventually(t, "it is announced", func() bool { return len(r.events()) == 1 })
	e := r.events()[0]
	say := func(verdict string) {
		t.Helper()
		if err := r.in.SendFeedback(t.Context(), stream.Feedback{Detector: "bolts", Verdict: verdict, Event: e.ID, Sequence: e.Sequence}); err != nil {
			t.Fatal(err)
		}
	}
	becomes := func(what string, normals, anomalies int, inBank bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s: %d normals, %d anomalies, in the bank: %v", what, normals, anomalies, inBank), func() bool {
			n, a := r.marks("bolts")
			return n == normals && a == anomalies && (len(r.active("bolts").Known) > 0) == inBank
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
	r.trainer(stream.TrainerConfig{Name: "a"}, fakeTrainer{t: t})
	r.trainer(stream.TrainerConfig{Name: "b"}, fakeTrainer{t: t})
	becomes("the last of five", 0, 1, false)
	for _, j := range mustList(t, r) {
		if j.State == stream.JobFailed {
			t.Errorf("job %s failed: %s", j.Job, j.Error)
		}
	}
}

func mustList(t *testing.T, r *rig) []stream.Job {
	t.Helper()
	all, err := r.jobs().List(t.Context(), "bolts")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestWhatIsWithdrawnDuringATraining does not come back with its release.
func TestWhatIsWithdrawnDuringATraining(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.detector(stream.Detector{Name: "bolts"})
	r.release("bolts", fake{Name: "one"})
	r.worker(stream.WorkerConfig{}, loadFake)
	if _, err := r.in.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Image: image(0.1)}); err != nil {
		t.Fatal(err)
	}
	training, trained := make(chan struct{}), make(chan struct{})
	trainer := fakeTrainer{t: t, train: func(context.Context, *stream.Task) error {
		close(training)
		<-trained
		return nil
	}, model: func(*stream.Task) fake { return fake{Name: "trained", Known: [][]byte{image(0.95)}} }}
	r.trainer(stream.TrainerConfig{Name: "a"}, trainer)
	r.trainer(stream.TrainerConfig{Name: "b"}, trainer)
	r.publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "alarm", Image: image(0.95)})
	eventually(t, "it is announced", func() bool { return len(r.events()) == 1 })
	f := stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackNormal, Event: r.events()[0].ID}
	if err := r.in.SendFeedback(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is in the bank", func() bool { return len(r.active("bolts").Known) == 1 })
	if _, err := r.jobs().Request(t.Context(), stream.TrainRequest{Job: "train", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	<-training
	f.Verdict, f.At = stream.FeedbackWithdrawn, time.Time{}
	if err := r.in.SendFeedback(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has left the bank", func() bool { return len(r.active("bolts").Known) == 0 })
	close(trained)
	r.wait("train")
	eventually(t, "it has left the trained one, too", func() bool {
		now := r.active("bolts")
		return now.Name == "trained" && len(now.Known) == 0
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
