package sink

import (
	"context"
	"time"
)

// A Digester collects what comes within a time and sends it as one. Until then
// nothing of it is acknowledged: what a process that dies had collected is
// collected by the next one.
type Digester interface {
	Sender
	// Every is how long it collects; 0: it does not, and Send is used.
	Every() time.Duration
	SendAll(ctx context.Context, all []Notice) error
}

// maxDigest is how many events one digest has at most; then it goes out early.
const maxDigest = 500

// digest collects from in and sends in every period, until ctx ends; then it
// gives back what it has.
func (l *delivery) digest(ctx context.Context, d Digester, in <-chan taken) {
	tick := time.Tick(d.Every())
	var all []taken
	give := func() {
		for _, c := range all {
			c.release()
			l.judge.delivered(c.notice, false, time.Now())
			_ = c.Nak()
		}
	}
	for {
		select {
		case <-ctx.Done():
			give()
			return
		case c := <-in:
			if all = append(all, c); len(all) < maxDigest {
				continue
			}
		case <-tick:
		}
		if len(all) == 0 {
			continue
		}
		l.sendDigest(ctx, d, all)
		all = nil
	}
}

func (l *delivery) sendDigest(ctx context.Context, d Digester, all []taken) {
	var notices []Notice
	for _, c := range all {
		notices = append(notices, c.notice)
	}
	step, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer cancel()
	err := l.receiver.hide(d.SendAll(step, notices))
	now := time.Now()
	for _, c := range all {
		c.release()
		l.judge.delivered(c.notice, err == nil, now)
		if err != nil {
			l.failed(ctx, c, err)
			continue
		}
		l.stats.add(ResultSent, "in a digest", 1)
		l.stats.delivered(now, now.Sub(c.meta.Timestamp))
		l.ack(ctx, c)
	}
	if err == nil {
		l.retries.breaker.succeeded()
	}
}
