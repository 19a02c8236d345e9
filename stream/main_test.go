package stream_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/nearmiss/nearmiss/internal/brokertest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("NEARMISS_TEST_ROLE"); role != "" {
		os.Exit(child(role))
	}
	goleak.VerifyTestMain(m, brokertest.Leaks...)
}
