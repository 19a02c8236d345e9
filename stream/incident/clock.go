package incident

import "time"

// clock is the broker's, as it was told with its last answer: the clocks of the machines
// that run engines may be minutes apart, and each would end what another holds open.
// Its owner alone uses it.
type clock struct {
	local   func() time.Time // this machine's
	instead func() time.Time // the time, if it is not nil
	asked   time.Time        // by this machine's clock
	told    time.Time        // by the broker, in answer
}

// set takes note of the broker's time in an answer to what was asked at asked. A server
// that does not tell its time changes nothing.
func (c *clock) set(asked, told time.Time) {
	if !told.IsZero() {
		c.asked, c.told = asked, told
	}
}

// now is the broker's time, or this machine's before the broker has told any. It may
// be ahead by what the answer took.
func (c *clock) now() time.Time {
	switch {
	case c.instead != nil:
		return c.instead()
	case c.told.IsZero():
		return c.local()
	}
	return c.told.Add(c.local().Sub(c.asked))
}
