// Package cputime tells the processor time of this process, which benchmarks
// give beside the clock's: other work on the machine changes it less.
package cputime

import (
	"syscall"
	"time"
)

// Seconds is the processor time that this process has used, or 0 where the
// system does not tell.
func Seconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return (time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Seconds()
}
