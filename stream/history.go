package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// What is kept of a job in the bucket of artifacts, beside its record and as long:
// JobObjects, its name, "/" and one of these.
const (
	JobObjects = "jobs/"
	// JobHistory is its progress, a JSON array of [Progress], oldest first.
	JobHistory = "history.json"
	// JobSheet is a picture of the trainer's choice, JPEG: what a generator draws.
	JobSheet = "sheet.jpg"
)

// MaxJobSheet bounds what is kept of a job, in bytes of each.
const MaxJobSheet = 512 << 10

// JobFile is what is kept of a job: [JobHistory] or [JobSheet].
func (in *Installation) JobFile(ctx context.Context, job, name string) ([]byte, error) {
	if err := CheckToken("job", job); err != nil {
		return nil, err
	}
	return fetchObject(ctx, in.js, in.names.ArtifactsBucket(), JobObjects+job+"/"+name, MaxJobSheet)
}

// History is the progress of a job as far as it is kept, oldest first; nothing is
// kept of jobs that only change a release, nor of earlier versions.
func (in *Installation) History(ctx context.Context, job string) ([]Progress, error) {
	b, err := in.JobFile(ctx, job, JobHistory)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Progress
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("history of job %s: %v: %w", job, err, ErrBadMessage)
	}
	return all, nil
}
