package stream

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// An edge is an installation that works alone, on a NATS server with a JetStream
// domain of its own. A hub, to which that server has a leaf node link, takes the
// edge's events, pictures and dead letters as sources of its own streams: what
// happens while the link is down comes when it is back.

// Edge is one edge of a hub.
type Edge struct {
	Name    string       `json:"edge"`    // its JetStream domain
	Here    bool         `json:"here"`    // it answers now
	Waiting uint64       `json:"waiting"` // messages that it has and the hub not yet, as far as known: while it is away, what waited at last
	Streams []EdgeStream `json:"streams"`
}

// EdgeStream is what the hub takes of one of an edge's streams.
type EdgeStream struct {
	Stream  string        `json:"stream"`
	Waiting uint64        `json:"waiting"`
	Quiet   time.Duration `json:"quiet_ns"`        // since the edge's last sign of life; negative: none yet
	Error   string        `json:"error,omitempty"` // of the server
}

// edgeQuiet is how long an edge that is there gives no sign of life, at most: sources send
// a heartbeat each second.
const edgeQuiet = 10 * time.Second

// EdgeParts are what a hub takes of an edge besides events and dead letters.
type EdgeParts struct {
	Pictures bool // drawn of anomalies; NM_EVIDENCE
	Images   bool // kept whole; NM_IMAGES, which has large normals, too
}

// taken are the streams that a hub takes.
func (p EdgeParts) taken(n Names) []string {
	all := []string{n.EventsStream(), n.DeadStream()}
	if p.Pictures {
		all = append(all, object.StreamOf(n.EvidenceBucket()))
	}
	if p.Images {
		all = append(all, object.StreamOf(n.ImagesBucket()))
	}
	return all
}

// edgeOf is the edge that a source is of; empty: none.
func edgeOf(s *jetstream.ExternalStream) string {
	if s == nil {
		return ""
	}
	name, whole := strings.CutSuffix(strings.TrimPrefix(s.APIPrefix, "$JS."), ".API")
	if !whole || !ValidToken(name) {
		return ""
	}
	return name
}

// ofEdges are the sources that [Installation.AddEdge] has added.
func ofEdges(all []*jetstream.StreamSource) []*jetstream.StreamSource {
	return slices.DeleteFunc(slices.Clone(all), func(s *jetstream.StreamSource) bool { return edgeOf(s.External) == "" })
}

// AddEdge has this installation take the events, dead letters and more of the edge
// with that JetStream domain, from the beginning of what it has, and go on for ever.
// The edge need not be there yet. What is taken of it already goes on.
//
// Both sides have the same prefix. What is removed at the edge stays here as long as
// this installation's limits say.
func (in *Installation) AddEdge(ctx context.Context, domain string, parts EdgeParts) error {
	if err := CheckToken("edge", domain); err != nil {
		return err
	}
	if a, err := in.js.AccountInfo(ctx); err != nil {
		return fmt.Errorf("add edge %s: ask for this server's JetStream domain: %w", domain, err)
	} else if a.Domain == domain {
		return fmt.Errorf("%s is the JetStream domain of this server itself, not of an edge: %w", domain, ErrBadName)
	}
	err := in.changeSources(ctx, parts, func(name string, all []*jetstream.StreamSource) []*jetstream.StreamSource {
		if slices.ContainsFunc(all, func(s *jetstream.StreamSource) bool { return edgeOf(s.External) == domain }) {
			return all
		}
		return append(all, &jetstream.StreamSource{Name: name, External: &jetstream.ExternalStream{APIPrefix: DomainAPI(domain)}})
	})
	if err != nil {
		return fmt.Errorf("add edge %s: %w", domain, err)
	}
	return nil
}

// RemoveEdge takes nothing more of an edge; what was taken stays.
func (in *Installation) RemoveEdge(ctx context.Context, domain string) error {
	found := false
	err := in.changeSources(ctx, EdgeParts{Pictures: true, Images: true}, func(_ string, all []*jetstream.StreamSource) []*jetstream.StreamSource {
		return slices.DeleteFunc(all, func(s *jetstream.StreamSource) bool {
			mine := edgeOf(s.External) == domain
			found = found || mine
			return mine
		})
	})
	if err != nil {
		return fmt.Errorf("take no more of edge %s: %w", text.Clip(domain), err)
	}
	if !found {
		return fmt.Errorf("edge %s: %w", text.Clip(domain), ErrNotFound)
	}
	return nil
}

// changeSources changes what is taken from edges, of each stream.
func (in *Installation) changeSources(ctx context.Context, parts EdgeParts, change func(name string, all []*jetstream.StreamSource) []*jetstream.StreamSource) error {
	return Exclusively(ctx, in.js, Topology{Names: in.names}, func(ctx context.Context) error {
		for _, name := range parts.taken(in.names) {
			s, err := in.js.Stream(ctx, name)
			if err != nil {
				return fmt.Errorf("find the sources of %s: %w", name, err)
			}
			cfg := s.CachedInfo().Config
			was := len(cfg.Sources)
			if cfg.Sources = change(name, cfg.Sources); len(cfg.Sources) == was {
				continue
			}
			if _, err := in.js.UpdateStream(ctx, cfg); err != nil {
				return fmt.Errorf("change what %s is taken from: %w", name, err)
			}
		}
		return nil
	})
}

// Edges are the edges that this installation takes from, by name.
func (in *Installation) Edges(ctx context.Context) ([]Edge, error) {
	edges := map[string]*Edge{}
	for _, name := range (EdgeParts{Pictures: true, Images: true}).taken(in.names) {
		s, err := in.js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("find the sources of %s: %w", name, err)
		}
		for _, src := range s.CachedInfo().Sources {
			domain := edgeOf(src.External)
			if domain == "" {
				continue
			}
			e := edges[domain]
			if e == nil {
				e = &Edge{Name: domain, Here: true}
				edges[domain] = e
			}
			es := EdgeStream{Stream: name, Waiting: src.Lag, Quiet: src.Active}
			if src.Error != nil {
				es.Error = src.Error.Description
			}
			e.Streams = append(e.Streams, es)
			e.Waiting += src.Lag
			e.Here = e.Here && src.Active >= 0 && src.Active < edgeQuiet
		}
	}
	all := make([]Edge, 0, len(edges))
	for _, e := range edges {
		all = append(all, *e)
	}
	slices.SortFunc(all, func(a, b Edge) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
