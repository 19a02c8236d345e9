package stream_test

import (
	"os"
	"testing"

	"github.com/nearmiss/nearmiss/internal/brokertest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("NEARMISS_TEST_ROLE"); role != "" {
		os.Exit(child(role))
	}
	brokertest.Main(m)
}
