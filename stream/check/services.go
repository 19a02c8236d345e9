package check

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/stream"
)

// services looks who is there to take changes, to score and to learn.
func (l *checker) services(ctx context.Context) {
	f := Finding{Check: "services", Level: OK}
	wanted := []struct{ name, called, advice string }{
		{stream.ControlService, "control", "nearmiss control takes people's changes"},
		{stream.WorkerService, "worker", "nearmiss worker scores"},
		{stream.TrainerService, "trainer", "nearmiss trainer learns"},
	}
	counts, errs := make([]int, len(wanted)), make([]error, len(wanted))
	var asked sync.WaitGroup
	for i, s := range wanted { // at the same time: each has all of the time to answer
		asked.Go(func() { counts[i], errs[i] = l.count(ctx, "$SRV.INFO."+s.name) })
		if l.limits == nil { // what is forbidden is known by the broker's last complaint
			asked.Wait()
		}
	}
	asked.Wait()
	if err := cmp.Or(errs...); err != nil {
		f.Level, f.Detail = Skipped, "which services are there: "+err.Error()
		l.report(f)
		return
	}
	var there, absent, advice []string
	for i, s := range wanted {
		switch counts[i] {
		case 0:
			absent, advice = append(absent, "no "+s.called), append(advice, s.advice)
		case 1:
			there = append(there, "1 "+s.called)
		default:
			there = append(there, fmt.Sprintf("%d %ss", counts[i], s.called))
		}
	}
	f.Detail = strings.Join(slices.Concat(there, absent), ", ")
	if len(absent) > 0 {
		f.Level, f.Advice = Warning, strings.Join(advice, ", ")+"; nearmiss up is all of them"
	}
	l.report(f)
}

// count is how many of this installation's services answer on a subject.
func (l *checker) count(ctx context.Context, subject string) (n int, err error) {
	prefix := strings.TrimSuffix(l.cfg.Topology.API(), ".api")
	err = l.ask(ctx, subject, func(ctx context.Context) error {
		return stream.Gather(ctx, l.nc, subject, l.cfg.Wait, func(m *nats.Msg) error {
			var i micro.Info
			if json.Unmarshal(m.Data, &i) == nil && i.Metadata["prefix"] == prefix {
				n++
			}
			return nil
		})
	})
	return n, err
}
