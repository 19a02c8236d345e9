package trainer

import "testing"

func TestTrainersInContainersHaveNamesOfTheirOwn(t *testing.T) {
	if a, b := nameOf("node", 1), nameOf("node", 1); a == b {
		t.Errorf("two containers on the host's network have trainer %s", a)
	}
	if got := nameOf("node", 17); got != "node-17" {
		t.Error(got)
	}
}
