package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// option is one that --vary changes. Values that are numbers may be listed, with
// commas between.
type option struct {
	numbers bool
	set     func(c *evalCmd, v string) error
}

func count(field func(c *evalCmd) *int) option {
	return option{true, func(c *evalCmd, v string) (err error) { *field(c), err = strconv.Atoi(v); return err }}
}

func number(field func(c *evalCmd) *float64) option {
	return option{true, func(c *evalCmd, v string) (err error) { *field(c), err = parseNumber(v); return err }}
}

func text(field func(c *evalCmd) *string) option {
	return option{false, func(c *evalCmd, v string) error { *field(c) = v; return nil }}
}

// varied are the options that --vary changes, by name.
var varied = map[string]option{
	"backbone":   text(func(c *evalCmd) *string { return &c.Backbone }),
	"coreset":    number(func(c *evalCmd) *float64 { return &c.Coreset }),
	"edit":       number(func(c *evalCmd) *float64 { return &c.Edit }),
	"epochs":     count(func(c *evalCmd) *int { return &c.Epochs }),
	"exposure":   text(func(c *evalCmd) *string { return &c.Exposure }),
	"fake-size":  count(func(c *evalCmd) *int { return &c.FakeSize }),
	"fake-steps": count(func(c *evalCmd) *int { return &c.FakeSteps }),
	"fakes":      text(func(c *evalCmd) *string { return &c.Fakes }),
	"frame":      text(func(c *evalCmd) *string { return &c.Frame }),
	"input-size": count(func(c *evalCmd) *int { return &c.Size }),
	"k":          count(func(c *evalCmd) *int { return &c.K }),
	"light": {false, func(c *evalCmd, v string) error {
		change := evaluate.Change(v)
		switch change {
		case "usual":
			change = ""
		case evaluate.LightOther, evaluate.LightCast, evaluate.LightBlur, evaluate.LightLens:
		default:
			return errors.New("take usual, other, cast, blur or lens")
		}
		c.Light, c.change = change != "", change
		return nil
	}},
	"match":      number(func(c *evalCmd) *float64 { c.Match = new(float64); return c.Match }),
	"members":    count(func(c *evalCmd) *int { return &c.Members }),
	"method":     text(func(c *evalCmd) *string { return &c.Method }),
	"per-normal": number(func(c *evalCmd) *float64 { return &c.PerNormal }),
	"precision":  text(func(c *evalCmd) *string { return &c.Precision }),
	"rate":       number(func(c *evalCmd) *float64 { return &c.Rate }),
	"score":      text(func(c *evalCmd) *string { return &c.Score }),
	"see":        text(func(c *evalCmd) *string { return &c.See }),
	"sharpness":  text(func(c *evalCmd) *string { return &c.Sharpness }),
	"stop":       text(func(c *evalCmd) *string { return &c.Stop }),
	"symmetry":   text(func(c *evalCmd) *string { return &c.Symmetry }),
	"tiles":      text(func(c *evalCmd) *string { return &c.Tiles }),
	"turned":     text(func(c *evalCmd) *string { return &c.Turned }),
}

// variedNames are their names, for people.
func variedNames() string { return strings.Join(slices.Sorted(maps.Keys(varied)), ", ") }

// variant is the command with some options changed, and what they are.
type variant struct {
	evalCmd
	label string
}

// variants is every combination of the values that --vary names.
func (c *evalCmd) variants() ([]variant, error) {
	var names []string
	values := map[string][]string{}
	for _, item := range c.Vary {
		name, list, ok := strings.Cut(item, "=")
		option, known := varied[name]
		if !ok || !known || list == "" {
			return nil, usageError{fmt.Errorf("--vary %s: want NAME=VALUE with a name of %s", item, variedNames())}
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if option.numbers {
			values[name] = append(values[name], strings.Split(list, ",")...)
		} else {
			values[name] = append(values[name], list)
		}
	}
	out := []variant{{evalCmd: *c}}
	for _, name := range names {
		var next []variant
		for _, v := range out {
			for _, value := range values[name] {
				w := v
				if err := varied[name].set(&w.evalCmd, value); err != nil {
					return nil, usageError{fmt.Errorf("--vary %s=%s: %w", name, value, err)}
				}
				w.label = strings.TrimSpace(w.label + " " + name + "=" + value)
				next = append(next, w)
			}
		}
		out = next
	}
	return out, nil
}

// named is a method under another name.
type named struct {
	evaluate.Method
	name string
}

func (n named) Name() string { return n.name }

// runProtocol is one protocol on one set.
type runProtocol func(ctx context.Context, m evaluate.Method, f *evaluate.Features, o evaluate.Options) (*evaluate.Result, error)

// protocol opens the data and returns what is to be run on it.
func (c *evalCmd) protocol(ctx context.Context, o *output) (runProtocol, error) {
	switch c.Protocol {
	case evaluate.ProtocolMVTec:
		set, err := dataset.MVTec(c.Data)
		if err != nil {
			return nil, err
		}
		o.notes(set.Notes)
		if c.Pixels {
			notes, err := set.CheckMasks(ctx)
			if err != nil {
				return nil, err
			}
			o.notes(notes)
		}
		return func(ctx context.Context, m evaluate.Method, _ *evaluate.Features, o evaluate.Options) (*evaluate.Result, error) {
			return evaluate.MVTec(ctx, set, m, o)
		}, nil
	case evaluate.ProtocolNear:
		set, err := dataset.Classes(c.Data)
		if err != nil {
			return nil, err
		}
		others := set
		if c.Others != "" {
			if others, err = dataset.Classes(c.Others); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context, m evaluate.Method, f *evaluate.Features, o evaluate.Options) (*evaluate.Result, error) {
			return evaluate.Near(ctx, set, others, m, f, o)
		}, nil
	}
	set, err := dataset.Classes(c.Data)
	return func(ctx context.Context, m evaluate.Method, _ *evaluate.Features, o evaluate.Options) (*evaluate.Result, error) {
		return evaluate.OneVsRest(ctx, set, m, o)
	}, err
}

// protocolAlarms is no protocol of the paper's.
const protocolAlarms = "alarms"

// alarms measures the false-alarm rates of each normal class.
func (c *evalCmd) alarms(ctx context.Context, o *output, embed inference.EmbedOptions) error {
	set, err := dataset.Open(c.Data)
	if err != nil {
		return err
	}
	classes := c.Normal
	switch {
	case set.Layout == dataset.LayoutMVTec:
		classes = []string{dataset.Good}
	case set.Layout == dataset.LayoutFolder:
		classes = []string{""}
	case len(classes) == 0:
		classes = set.Labels()
	}
	all := &embedders{options: embed}
	defer all.Close()
	f, err := all.of(variant{evalCmd: *c})
	if err != nil {
		return err
	}
	quick := c.paper()
	method := evaluate.KNN(f, c.K)
	if !quick {
		shared := &training.Shared{}
		defer shared.Close()
		bar := o.progress("")
		defer bar.close()
		var end func()
		if method, end, err = c.method(o, embed, bar, f, shared); err != nil {
			return err
		}
		defer end()
	}
	for _, class := range classes {
		var r *evaluate.AlarmResult
		items, alphas := set.Select("", class), []float64{0.01, 0.05, 0.1}
		if quick {
			r, err = evaluate.FalseAlarms(ctx, items, f, c.K, alphas, c.Repeats, c.Seed)
		} else {
			r, err = evaluate.MethodAlarms(ctx, items, method, alphas, c.Repeats, c.Seed)
		}
		if err != nil {
			return err
		}
		r.Data, r.Normal, r.Method = set.Name, class, method.Name()
		if c.JSON {
			if err := o.JSON(r); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(o.Out, "%s %s, method %s: %d images in the bank, %d held out, %d tested, %d draws\n", r.Data, r.Normal, r.Method, r.Bank, r.HeldOut, r.Test, r.Draws)
		for _, a := range r.Alarms {
			fmt.Fprintf(o.Out, "  asked for %.3g %%: expected %.2f %%, measured %.2f %%; 95 %% of single calibrations within %.2f to %.2f %%; %.1f %% of draws above %.2f %%, where 2.5 %% may be\n",
				100*a.Alpha, 100*a.Expected, 100*a.Rate, 100*a.Low, 100*a.High, 100*a.Beyond, 100*a.Most)
		}
	}
	return nil
}
