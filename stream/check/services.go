package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/stream"
)

// services looks who is there to take changes, to score and to learn.
func (l *look) services(ctx context.Context) {
	f := Finding{Check: "services", Level: OK}
	var there, absent, advice []string
	for _, s := range []struct{ name, called, advice string }{
		{stream.ControlService, "control", "nearmiss control takes people's changes"},
		{stream.WorkerService, "worker", "nearmiss worker scores"},
		{stream.TrainerService, "trainer", "nearmiss trainer learns"},
	} {
		subject := "$SRV.INFO." + s.name
		var all []micro.Info
		err := l.ask(ctx, subject, func(ctx context.Context) (err error) { all, err = l.gather(ctx, subject); return err })
		if err != nil {
			f.Level, f.Detail = Skipped, "which services are there: "+err.Error()
			l.tell(f)
			return
		}
		switch n := len(all); n {
		case 0:
			absent, advice = append(absent, "no "+s.called), append(advice, s.advice)
		case 1:
			there = append(there, "1 "+s.called)
		default:
			there = append(there, fmt.Sprintf("%d %ss", n, s.called))
		}
	}
	f.Detail = strings.Join(slices.Concat(there, absent), ", ")
	if len(absent) > 0 {
		f.Level, f.Advice = Warning, strings.Join(advice, ", ")+"; nearmiss up is all of them"
	}
	l.tell(f)
}

// gather collects the answers of this installation's services of one name.
func (l *look) gather(ctx context.Context, subject string) ([]micro.Info, error) {
	sub, err := l.nc.SubscribeSync(l.nc.NewInbox())
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := l.nc.PublishRequest(subject, sub.Subject, nil); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(l.cfg.Wait)
	prefix := strings.TrimSuffix(l.cfg.Topology.API(), ".api")
	var all []micro.Info
	for {
		within, cancel := context.WithDeadline(ctx, deadline)
		m, err := sub.NextMsgWithContext(within)
		cancel()
		switch {
		case ctx.Err() != nil:
			return all, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders):
			return all, nil
		case err != nil:
			return all, err
		case m.Header.Get("Status") == "503":
			return all, nil
		}
		var i micro.Info
		if json.Unmarshal(m.Data, &i) != nil || i.Metadata["prefix"] != prefix {
			continue
		}
		all = append(all, i)
	}
}
