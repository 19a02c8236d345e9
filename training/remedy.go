package training

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/nearmiss/nearmiss/training/evaluate"
)

// effect is what is known of a score: what 5 % of false alarms become in other light and
// with a slight blur, and the AUROC of normals against slightly spoilt ones; NaN: nothing.
type effect struct{ light, blur, found float64 }

const (
	// sensitiveAlarms is what 5 % of false alarms may become.
	sensitiveAlarms = 2 * evaluate.SuiteAlarms
	// muchFewer is how many times fewer alarms make a remedy worth its price: evened-out
	// light hides what is wholly too dark or too bright, and copies make the normals less alike.
	muchFewer = 1.5
	// mostBlind is how much AUROC of spoilt normals a remedy may cost: what sees less
	// also has fewer false alarms.
	mostBlind = 0.05
)

// remedy is one of the things that can be done.
type remedy struct {
	choice, how string
	alarms      **float64 // of the report
	above       float64   // how many have to be left for it to be tried; 0: sensitiveAlarms
}

// remedies are in the order in which they are tried, the first of which does nothing; what
// became of them is put into a report.
type remedies struct {
	all    []remedy
	choice *string
	found  *map[string]float64
}

// try builds a score by each of the remedies that are wanted, until one keeps the false
// alarms of its effect low, and gives back the best; a later one must be much better, and see
// defects as well. The others are closed.
func try[T io.Closer](r remedies, wanted func(choice string) bool, alarmsOf func(effect) float64, build func(choice string) (T, effect, error)) (best T, err error) {
	least := math.NaN()
	for _, m := range r.all {
		if !wanted(m.choice) || *r.choice != "" && !(least > cmp.Or(m.above, sensitiveAlarms)) {
			continue
		}
		one, e, err := build(m.choice)
		if err == nil && !math.IsNaN(e.found) {
			if *r.found == nil {
				*r.found = map[string]float64{}
			}
			(*r.found)[m.choice] = e.found
		}
		alarms := alarmsOf(e)
		if err == nil && *r.choice != "" && (!(alarms*muchFewer < least) || r.blind(m.choice)) {
			err = one.Close()
		} else if err == nil {
			if *r.choice != "" {
				err = best.Close()
			}
			best, *r.choice, least = one, m.choice, alarms
		}
		if err != nil {
			if *r.choice != "" && *r.choice != m.choice {
				err = errors.Join(err, best.Close())
			}
			return best, err
		}
		if !math.IsNaN(alarms) {
			*m.alarms = &alarms
		}
	}
	return best, nil
}

// blind says whether slight defects are much harder to see with a remedy.
func (r remedies) blind(choice string) bool {
	usual, known := (*r.found)[r.all[0].choice]
	found, tried := (*r.found)[choice]
	return known && tried && found < usual-mostBlind
}

// String is what 5 % of false alarms become by those that were tried; nothing where none was.
func (r remedies) String() string {
	var tried []string
	for _, m := range r.all {
		if v := *m.alarms; v != nil {
			how := m.how
			if m.choice == *r.choice {
				how += " (this release)"
			} else if r.blind(m.choice) {
				how += fmt.Sprintf(" (but slight defects are harder to see then: AUROC %.2f, %.2f as they are)", (*r.found)[m.choice], (*r.found)[r.all[0].choice])
			}
			tried = append(tried, fmt.Sprintf("%.0f %% %s", 100**v, how))
		}
	}
	return strings.Join(tried, ", ")
}
