package steward_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/nearmiss/nearmiss/internal/brokertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, brokertest.Leaks...) }
