package training

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nearmiss/nearmiss/inference/release"
)

// A release is worse than the one that serves, by what it says of itself, when it
// was learnt from less than half as many normals, or promises no less than half
// as many false alarms more than that, and more than it was asked for.
const (
	farFewer  = 0.5
	farBehind = 1.5
)

// Worse says in a sentence why a release should not replace the one in the folder
// active without somebody's word for it, or nothing. asked is the false-alarm rate
// that was asked for, 0..1.
func Worse(active string, res *Result, asked float64) (string, error) {
	b, err := os.ReadFile(filepath.Join(active, release.ManifestName))
	if err != nil {
		return "", err
	}
	was, err := release.ParseManifest(b)
	if err != nil {
		return "", err
	}
	var why []string
	if had, has := was.Bank.Images()+was.Calibration.HeldOut-was.Calibration.Folded, res.Bank+res.HeldOut-res.Folded; float64(has) < farFewer*float64(had) {
		why = append(why, fmt.Sprintf("it was learnt from %s, and the release that serves from %d", plural(has, "normal"), had))
	}
	if had := was.Calibration.Rate(); res.Alpha > farBehind*had && res.Alpha > asked*(1+1e-9) {
		why = append(why, fmt.Sprintf("it promises %.3g %% false alarms, and the release that serves %.3g %%", 100*res.Alpha, 100*had))
	}
	return strings.Join(why, "; "), nil
}
