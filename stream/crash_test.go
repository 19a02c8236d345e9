package stream_test

// child is what the test binary does when a test starts it as another process.
func child(string) int { return 2 }
