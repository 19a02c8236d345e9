package main

import (
	"context"
	"fmt"
	"os"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training"
)

type scoreCmd struct {
	Release string   `required:"" type:"existingdir" placeholder:"DIR" help:"Release folder, from nearmiss fit."`
	Images  []string `arg:"" name:"image" type:"existingpath" help:"Image files, or folders of them."`
	JSON    bool     `name:"json" help:"Print one JSON object a line for each image."`
	deviceFlags
}

func (*scoreCmd) Help() string {
	return "Exits with 0 when every image has a score, whatever the scores are, and with 1 when some could not be read.\n\n" +
		examples(
			"nearmiss score --release releases/bolts part.jpg",
			"nearmiss score --release releases/bolts today/ --json",
		)
}

// scoreLine is the JSON of one image.
type scoreLine struct {
	Image     string      `json:"image"`
	Score     *float64    `json:"score,omitempty"`
	Threshold *float64    `json:"threshold,omitempty"` // absent where nothing is called anomalous
	PValue    *float64    `json:"p_value,omitempty"`
	Anomalous *bool       `json:"anomalous,omitempty"`
	K         int         `json:"k,omitempty"`
	Nearest   []namedNear `json:"nearest,omitempty"`
	Width     int         `json:"width,omitempty"`
	Height    int         `json:"height,omitempty"`
	Release   string      `json:"release"`
	Rejected  string      `json:"rejected,omitempty"` // code of why there is no score
	Reason    string      `json:"reason,omitempty"`
}

type namedNear struct {
	ID       uint64  `json:"id"`
	Distance float64 `json:"distance"`
	Name     string  `json:"name,omitempty"` // of the normal image
}

func (c *scoreCmd) Run(ctx context.Context, o *output) error {
	embed, err := c.options()
	if err != nil {
		return err
	}
	paths, err := listImages(c.Images)
	if err != nil {
		return err
	}
	d, err := inference.Open(ctx, c.Release, inference.Options{Embed: embed, Log: o.Log})
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := normalNames(c.Release)
	if err != nil {
		return err
	}
	bar := o.progress("scoring")
	defer bar.close()
	unread := 0
	const chunk = 64 // images in memory at a time
	for at := 0; at < len(paths); at += chunk {
		some := paths[at:min(at+chunk, len(paths))]
		files := make([][]byte, len(some))
		for i, p := range some {
			if files[i], err = os.ReadFile(p); err != nil {
				return err
			}
		}
		scores, err := d.Score(ctx, files)
		if err != nil {
			return err
		}
		bar.close() // lines and bar do not mix on one terminal
		for i, s := range scores {
			if s.Err != nil {
				unread++
			}
			if err := c.print(o, some[i], d.Info().Release, s, names); err != nil {
				return err
			}
		}
		bar.report(int64(at+len(some)), int64(len(paths)))
	}
	if unread > 0 {
		return fmt.Errorf("%d of %d images could not be read", unread, len(paths))
	}
	return nil
}

func (c *scoreCmd) print(o *output, path, digest string, s inference.Score, names map[uint64]string) error {
	v := verdict(s)
	if !c.JSON {
		text := fmt.Sprintf("%-9s score %-10.4g threshold %-10.4g p %-8.3g %s\n", word(s.Anomalous), s.Score, s.Threshold, s.PValue, path)
		if v.Reject != "" {
			text = fmt.Sprintf("%-9s %s: %s: %s\n", "rejected", path, v.Reject, v.Reason)
		}
		_, err := fmt.Fprint(o.Out, text)
		return err
	}
	l := scoreLine{Image: path, Release: digest, Width: s.Width, Height: s.Height}
	if v.Reject != "" {
		l.Rejected, l.Reason = v.Reject, v.Reason
		return o.JSON(l)
	}
	l.Score, l.PValue, l.Anomalous, l.K = &s.Score, &s.PValue, &s.Anomalous, s.K
	if v.Threshold == s.Threshold {
		l.Threshold = &s.Threshold
	}
	for _, n := range s.Nearest {
		l.Nearest = append(l.Nearest, namedNear{ID: n.ID, Distance: float64(n.Distance), Name: names[n.ID]})
	}
	return o.JSON(l)
}

func word(anomalous bool) string {
	if anomalous {
		return "ANOMALY"
	}
	return "normal"
}

// normalNames are the names of the images behind a bank's entries. A release
// that does not list them gives none.
func normalNames(release string) (map[uint64]string, error) {
	all, err := training.ReadNormals(release)
	if err != nil {
		return nil, err
	}
	names := make(map[uint64]string, len(all))
	for _, n := range all {
		names[n.ID] = n.Name
	}
	return names, nil
}
