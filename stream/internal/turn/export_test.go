package turn

import "time"

// Lasting are the turns when others are given up after so long.
func (t *Turns) Lasting(d time.Duration) *Turns {
	t.lasts = d
	return t
}
