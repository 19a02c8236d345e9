package trainer_test

import (
	"testing"

	"github.com/nearmiss/nearmiss/internal/brokertest"
)

func TestMain(m *testing.M) { brokertest.Main(m) }
