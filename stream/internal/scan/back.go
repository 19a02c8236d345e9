package scan

import (
	"context"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
)

// Back calls f for the messages of a stream on a subject, newest first, from
// those before the sequence before (0: from the last), until f returns false. It
// reads the stream in windows, each twice as long as the one after it.
func Back(ctx context.Context, js jetstream.JetStream, stream, subject string, before uint64, headers bool, f func(m jetstream.Msg, seq uint64) bool) error {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	state := s.CachedInfo().State
	end := state.LastSeq + 1
	if before > 0 {
		end = min(end, before)
	}
	type held struct {
		m   jetstream.Msg
		seq uint64
	}
	most := uint64(1 << 12) // a window is held in memory
	if headers {
		most = 1 << 14
	}
	for size := uint64(256); end > max(state.FirstSeq, 1); size = min(2*size, most) {
		begin := max(state.FirstSeq, 1)
		if end-begin > size {
			begin = end - size
		}
		var window []held
		err := Run(ctx, js, stream, jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{subject}, HeadersOnly: headers,
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: begin,
		}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) error {
			if meta.Sequence.Stream >= end {
				return ErrStop
			}
			window = append(window, held{m, meta.Sequence.Stream})
			return nil
		})
		if err != nil {
			return err
		}
		for _, h := range slices.Backward(window) {
			if !f(h.m, h.seq) {
				return nil
			}
		}
		end = begin
	}
	return nil
}
