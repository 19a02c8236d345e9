package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
)

// TestABatchIsTakenWholeWhateverOvertakesIt: a consumer with several copies holds its
// messages until those agree, and says meanwhile that the batch is complete.
func TestABatchIsTakenWholeWhateverOvertakesIt(t *testing.T) {
	nc := brokertest.Client(t, brokertest.Server(t, &server.Options{}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tk, err := newTaker(nc, stream.Names{JetStreamAPI: stream.DomainAPI("edge1")}, "NM_FRAMES", "frames-bolts")
	if err != nil {
		t.Fatal(err)
	}
	defer tk.close()
	p := &pacer{within: time.Second, memory: 1 << 20, most: 16, n: 3}
	if msgs, err := tk.pull(ctx, p, 3, 0); !errors.Is(err, errGone) || len(msgs) != 0 {
		t.Fatalf("where nobody answers: %d messages, %v", len(msgs), err)
	}

	status := func(m *nats.Msg, code, about string) error {
		a := nats.NewMsg(m.Reply)
		a.Header.Set("Status", code)
		a.Header.Set("Description", about)
		return nc.PublishMsg(a)
	}
	sub, err := nc.Subscribe("$JS.edge1.API.CONSUMER.MSG.NEXT.NM_FRAMES.frames-bolts", func(m *nats.Msg) {
		var r struct {
			Batch    int   `json:"batch"`
			MaxBytes int64 `json:"max_bytes"`
		}
		err := json.Unmarshal(m.Data, &r)
		if r.MaxBytes > 0 {
			err = errors.Join(err, status(m, "409", "Batch Completed"))
		}
		for i := range r.Batch {
			err = errors.Join(err, nc.PublishMsg(&nats.Msg{Subject: m.Reply, Reply: fmt.Sprint("ack.", i), Data: []byte("frame")}))
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	for range 2 {
		if msgs, err := tk.pull(ctx, p, 3, 0); err != nil || len(msgs) != 3 {
			t.Fatalf("%d messages of 3, %v", len(msgs), err)
		}
	}
}
