// Package walls holds the test that keeps the packages apart. What may import
// what is written in internal/README.md.
package walls
