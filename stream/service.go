package stream

import (
	"errors"
	"time"
)

// Names of the micro services, as $SRV knows them.
const (
	WorkerService  = "nearmiss-worker"
	TrainerService = "nearmiss-trainer"
	ControlService = "nearmiss-control"
)

// HeaderDetector names the detector of a score-now request whose payload is the
// image.
const HeaderDetector = "Nearmiss-Detector"

// HeaderBy names the person for whom a client asks.
const HeaderBy = "Nearmiss-By"

// RequestTime bounds the handling of one request.
const RequestTime = 30 * time.Second

// LimitOf is [RequestTime], or more for a request that goes through all that is stored.
func LimitOf(endpoint string) time.Duration {
	switch endpoint {
	case "collect", "delete", "remove-normals", "replay-sink":
		return 10 * time.Minute
	}
	return RequestTime
}

// ServiceError is what a service answers when it cannot do what was asked.
type ServiceError struct {
	Code    string // one of the codes
	Message string // a sentence
}

func (e *ServiceError) Error() string { return e.Message + " (" + e.Code + ")" }

// Is has errors that came over the wire be what they were: [ErrNotFound],
// [ErrConflict] and [ErrBadMessage].
func (e *ServiceError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == CodeNotFound
	case ErrConflict:
		return e.Code == CodeConflict
	case ErrBadMessage:
		return e.Code == CodeBadRequest
	}
	return false
}

// ErrNobody is returned by a [Client] when no process answers.
var ErrNobody = errors.New("nobody answers")
