//go:build !(linux || darwin)

package broker

// storeLock does nothing where there is no flock.
type storeLock struct{}

func lockStore(string) (*storeLock, error) { return &storeLock{}, nil }
func (*storeLock) release()                {}
func (*storeLock) intact() error           { return nil }
func isFull(error) bool                    { return false }
