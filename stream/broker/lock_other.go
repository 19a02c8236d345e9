//go:build !(linux || darwin)

package broker

// lockStore does nothing where there is no flock.
func lockStore(string) (release func(), err error) { return func() {}, nil }
