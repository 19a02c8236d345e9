package optim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
)

const childVariable = "NEARMISS_TEST_TRAIN_CHILD"

// TestMain also serves as the process that TestKilledAndResumed kills.
func TestMain(m *testing.M) {
	if path := os.Getenv(childVariable); path != "" {
		if err := trainChild(path); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	eventually.Main(m)
}

const killedSteps = 60

func killedSpec() Spec {
	s := linear()
	s.Optimizer = Optimizer{Kind: Adam, LearningRate: 0.05, EMA: 0.9, Clip: 2}
	s.Chunk = 3
	return s
}

// trainChild trains to the end, from its checkpoint if there is one, and saves
// after every chunk. It prints each save and, at the end, all losses.
func trainChild(path string) error {
	t, err := New(killedSpec())
	if err != nil {
		return err
	}
	defer t.Close()
	var losses []float64
	if extra, err := t.Load(path); err == nil {
		if err := json.Unmarshal(extra, &losses); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err = t.Run(context.Background(), source, killedSteps-t.Step(), RunOptions{Progress: func(_ context.Context, p Progress) error {
		losses = append(losses, p.Losses...)
		if err := t.Save(path, losses); err != nil {
			return err
		}
		fmt.Println("saved", p.Step)
		return nil
	}})
	if err != nil {
		return err
	}
	b, err := json.Marshal(losses)
	if err != nil {
		return err
	}
	fmt.Printf("losses %s\n", b)
	return nil
}

// TestKilledAndResumed kills the training process after some of its saves,
// whatever it is doing then, and lets the next one go on.
func TestKilledAndResumed(t *testing.T) {
	whole := newTestTrainer(t, killedSpec())
	want, _ := train(t, whole, killedSteps)
	path := filepath.Join(t.TempDir(), "checkpoint")
	var got []float64
	kills := 0
	for range 50 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		saves := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "error") {
				t.Error(lines.Text())
			}
			if b, ok := strings.CutPrefix(lines.Text(), "losses "); ok {
				if err := json.Unmarshal([]byte(b), &got); err != nil {
					t.Error(err)
				}
			}
			if saves++; saves == 3 && kills < 4 {
				kills++
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if got != nil || t.Failed() {
			break
		}
	}
	if kills == 0 || !slices.Equal(got, want) {
		t.Errorf("after %d kills the losses are %v, want %v", kills, got, want)
	}
	last := newTestTrainer(t, killedSpec())
	if _, err := last.Load(path); err != nil {
		t.Fatal(err)
	}
	if bits(last.Weights()) != bits(whole.Weights()) || bits(last.EMAWeights()) != bits(whole.EMAWeights()) {
		t.Error("the weights differ from those of an uninterrupted run")
	}
}
