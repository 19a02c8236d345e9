package worker

import (
	"context"
	"errors"

	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// fallBack takes the newest release before a refused one into service, where
// none serves: after a restart the one that went on serving is not loaded any
// more. It returns false when it could not find out whether there is one, for the
// broker's sake.
func (l *detectorRunner) fallBack(ctx, work context.Context, refused registry.Pointer) bool {
	for p := refused; ctx.Err() == nil; {
		before, err := l.w.registry.Before(ctx, p)
		if errors.Is(err, registry.ErrNoPrevious) {
			return true
		}
		if err != nil {
			l.log.Warn().Err(err).Msg("cannot find the previous release")
			return false
		}
		p = before
		if !l.due(before, nil) {
			continue // it was refused, too
		}
		l.log.Warn().Str("refused", text.Short(refused.Release)).Str("release", text.Short(before.Release)).Msg("falling back to the release before")
		if !l.swap(ctx, work, before, &l.cur) {
			return false
		}
		if _, _, cur, _ := l.state(); cur != nil {
			return true
		}
	}
	return true
}
