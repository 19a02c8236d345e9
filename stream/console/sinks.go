package console

import (
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// listSinks says where events go, and what became of them.
func (c *Console) listSinks(q *request) (any, error) {
	var all []sink.Status
	if err := sink.Ask(q.ctx, c.nc, c.cfg.Names, "status", nil, &all); err != nil {
		return nil, err
	}
	return listing[sink.Status]{Items: append([]sink.Status{}, all...)}, nil
}

// testSink has an event sent now, past all filters.
func (c *Console) testSink(q *request) (any, error) {
	return sinkDoes[sink.TestAnswer](c, q, "test", sink.TestRequest{Sink: q.PathValue("sink")})
}

// replaySink has the sink's dead letters sent again.
func (c *Console) replaySink(q *request) (any, error) {
	return sinkDoes[sink.ReplayAnswer](c, q, "replay", sink.ReplayRequest{Sink: q.PathValue("sink"), Dead: true})
}

func sinkDoes[A any](c *Console, q *request, what string, ask any) (any, error) {
	var in struct{}
	if err := q.read(&in); err != nil {
		return nil, err
	}
	var a A
	if err := sink.Ask(q.ctx, c.nc, c.cfg.Names, what, ask, &a); err != nil {
		return nil, err
	}
	c.record(q, what, "sink/"+q.PathValue("sink"), a)
	return a, nil
}

// listAudit shows who changed what, newest first.
func (c *Console) listAudit(q *request) (any, error) {
	v := q.params("by", "action", "object", "failed", "cursor", "limit")
	limit, before := v.paging(100)
	if v.err != nil {
		return nil, v.err
	}
	all, err := c.in.Audit(q.ctx, stream.AuditFilter{
		By: v.Get("by"), Action: v.Get("action"), Object: v.Get("object"), Failed: v.yes("failed"),
	}, before, limit)
	if err != nil {
		return nil, err
	}
	out := listing[stream.AuditEntry]{Items: append([]stream.AuditEntry{}, all...)}
	if len(all) == limit && all[limit-1].Sequence > 1 {
		out.Next = nextCursor(all[limit-1].Sequence)
	}
	return out, nil
}

// choices are what a detector may be configured with, as a trainer says.
func (c *Console) choices(q *request) (any, error) {
	return c.client.Choices(q.ctx)
}

// outliers are the normals in the serving bank, strangest first.
func (c *Console) outliers(q *request) (any, error) {
	v := q.params("limit")
	limit := v.number("limit", 1, 1000, 200)
	if v.err != nil {
		return nil, v.err
	}
	return c.client.Outliers(q.ctx, stream.OutliersRequest{ReleaseRequest: stream.ReleaseRequest{Detector: q.PathValue("detector")}, Limit: limit})
}
