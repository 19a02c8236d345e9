//go:build !cgo || !linux

package imaging

func turboMemory(int, int) int64                  { return 0 }
func turboDecode(_ []byte, _, _ int, _ sink) bool { return false }
