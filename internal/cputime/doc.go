// Package cputime tells the processor time of this process, which benchmarks
// give beside the clock's: other work on the machine changes it less.
package cputime
