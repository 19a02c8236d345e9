package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// taker takes a consumer's messages for one goroutine. It keeps one subscription,
// so that a message that the link needs long for is taken when it is there, and
// not lost with the request that asked for it: a lost one would come again, and
// again take as long.
type taker struct {
	nc      *nats.Conn
	sub     *nats.Subscription
	inbox   string
	subject string // where pulls are asked for
	pulls   int
}

// beatEvery is how often the broker says that it still waits with a pull, and
// silence after how much of it, twice, a pull is given up: its consumer has lost its
// leader.
const (
	beatEvery = time.Second
	silence   = 3 * beatEvery
)

// newTaker prepares a taker for a consumer; close ends it.
func newTaker(nc *nats.Conn, n stream.Names, stream, consumer string) (*taker, error) {
	t := &taker{nc: nc, inbox: nc.NewInbox(), subject: n.JetStreamRequest("CONSUMER.MSG.NEXT." + stream + "." + consumer)}
	var err error
	if t.sub, err = nc.SubscribeSync(t.inbox + ".*"); err != nil {
		return nil, fmt.Errorf("take messages of %s: %w", stream, err)
	}
	if err := t.sub.SetPendingLimits(-1, -1); err != nil { // no more comes than was asked for
		return nil, errors.Join(err, t.sub.Unsubscribe())
	}
	return t, nil
}

func (t *taker) close() { _ = t.sub.Unsubscribe() }

// take takes up to most messages: what is there at once, or else the first that
// comes within pull.FetchWait and what is there with it, but no more than the pacer
// lets. A batch thus fills by itself when frames come faster than they are scored,
// and a single frame does not wait for others. No message and no error means that
// none came.
func (t *taker) take(ctx context.Context, p *pacer, most int) (msgs []jetstream.Msg, err error) {
	for {
		n := min(most, p.batch()) - len(msgs)
		if n <= 0 {
			return msgs, nil
		}
		more, err := t.pull(ctx, p, n, 0)
		msgs = append(msgs, more...)
		if err != nil || len(more) < n && len(msgs) > 0 || ctx.Err() != nil {
			return msgs, err
		}
		if len(more) < n {
			if msgs, err = t.pull(ctx, nil, 1, pull.FetchWait); len(msgs) == 0 {
				return nil, err
			}
		}
	}
}

// errGone is returned when the broker says that there is no such consumer, or that
// it has no leader now, or nothing at all.
var errGone = errors.New("the consumer does not answer")

// pull asks for n messages and waits for them: for those that are there, or for
// as long as wait for the first. The pacer, when given, learns how long they took.
func (t *taker) pull(ctx context.Context, p *pacer, n int, wait time.Duration) (msgs []jetstream.Msg, err error) {
	request := struct {
		Batch    int           `json:"batch"`
		MaxBytes int64         `json:"max_bytes,omitempty"`
		Expires  time.Duration `json:"expires,omitempty"`
		Beat     time.Duration `json:"idle_heartbeat,omitempty"`
		NoWait   bool          `json:"no_wait,omitempty"`
	}{Batch: n, Expires: wait, NoWait: wait == 0}
	if p != nil && n > 1 {
		request.MaxBytes = p.memory
	}
	if wait >= 2*beatEvery {
		request.Beat = beatEvery
	}
	data, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	t.pulls++
	reply := t.inbox + "." + strconv.Itoa(t.pulls)
	begin := time.Now()
	if err := t.nc.PublishRequest(t.subject, reply, data); err != nil {
		return nil, err
	}
	asked := false
	for len(msgs) < n {
		step, cancel := context.WithTimeout(ctx, silence)
		m, err := t.sub.NextMsgWithContext(step)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return msgs, nil
		case errors.Is(err, nats.ErrNoResponders):
			return msgs, fmt.Errorf("%w: %w", errGone, err)
		case !errors.Is(err, context.DeadlineExceeded):
			return msgs, err
		case asked:
			return msgs, fmt.Errorf("%w after %v", errGone, time.Since(begin).Round(time.Second))
		default:
			// What is on its way is there before the answer to a ping.
			asked = true
			step, cancel := context.WithTimeout(ctx, 10*time.Minute)
			err := t.nc.FlushWithContext(step)
			cancel()
			if err != nil && ctx.Err() == nil {
				return msgs, err
			}
			continue
		}
		if m.Reply != "" { // a message, maybe one that an earlier pull asked for
			asked = false
			msgs = append(msgs, taken{m})
			continue
		}
		if m.Subject != reply {
			continue // about an earlier pull
		}
		code, about := m.Header.Get("Status"), m.Header.Get("Description")
		switch {
		case code == "409" && strings.HasPrefix(about, "Message Size Exceeds"):
			code = "404" // the next one is for the next pull
		case code == "409" && about == "Batch Completed":
			// Word that all messages were sent; with several copies it overtakes them,
			// which wait until those agree (nats-server 2.15.2, consumer.deliverMsg).
			code = "100"
		}
		switch code {
		case "100": // idle heartbeat
			asked = false
		case "404", "408": // no more messages
			if p != nil && len(msgs) > 0 {
				p.took(len(msgs), time.Since(begin))
			}
			return msgs, nil
		default:
			return msgs, fmt.Errorf("%w: %s %s", errGone, code, text.Clip(about))
		}
	}
	if p != nil {
		p.took(len(msgs), time.Since(begin))
	}
	return msgs, nil
}

// pacer finds out how many messages a consumer may be asked for at once, so that
// the last of them is there long before the broker thinks it lost, and that they
// do not take too much memory.
type pacer struct {
	within time.Duration // that a batch may take on its way
	memory int64         // bytes that a batch of several messages may have
	most   int

	mu sync.Mutex
	n  int // 0: nothing is known yet
}

// batch is how many messages to ask for.
func (p *pacer) batch() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.n, 1)
}

// took says that n messages took d from the request to the
// last.
func (p *pacer) took(n int, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.most
	if each := d / time.Duration(n); each > 0 {
		next = min(next, int(p.within/each))
	}
	p.n = min(max(next, 1), p.most)
}

// taken is a message that a taker took.
type taken struct{ m *nats.Msg }

func (t taken) Data() []byte         { return t.m.Data }
func (t taken) Headers() nats.Header { return t.m.Header }
func (t taken) Subject() string      { return t.m.Subject }
func (t taken) Reply() string        { return t.m.Reply }
func (t taken) Ack() error           { return t.m.Ack() }
func (t taken) Nak() error           { return t.m.Nak() }
func (t taken) InProgress() error    { return t.m.InProgress() }
func (t taken) Term() error          { return t.m.Term() }

func (t taken) NakWithDelay(d time.Duration) error  { return t.m.NakWithDelay(d) }
func (t taken) DoubleAck(ctx context.Context) error { return t.m.AckSync(nats.Context(ctx)) }

// TermWithReason is Term: nobody reads the reason.
func (t taken) TermWithReason(string) error { return t.m.Term() }

func (t taken) Metadata() (*jetstream.MsgMetadata, error) {
	m, err := t.m.Metadata()
	if err != nil {
		return nil, err
	}
	return &jetstream.MsgMetadata{
		Sequence:     jetstream.SequencePair{Consumer: m.Sequence.Consumer, Stream: m.Sequence.Stream},
		NumDelivered: m.NumDelivered, NumPending: m.NumPending, Timestamp: m.Timestamp,
		Stream: m.Stream, Consumer: m.Consumer, Domain: m.Domain,
	}, nil
}
