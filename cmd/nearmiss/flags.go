package main

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// mappers read the numbers of flags as people write them: 5% for 0.05, 30d for
// 720h.
func mappers() []kong.Option {
	return []kong.Option{
		kong.KindMapper(reflect.Float64, kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
			var s string
			if err := ctx.Scan.PopValueInto("number", &s); err != nil {
				return err
			}
			v, err := parseNumber(s)
			if err == nil {
				target.SetFloat(v)
			}
			return err
		})),
		kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
			var s string
			if err := ctx.Scan.PopValueInto("time", &s); err != nil {
				return err
			}
			d, err := parseTime(s)
			if err == nil {
				target.SetInt(int64(d))
			}
			return err
		})),
	}
}

// parseNumber reads a number, or a percentage as the share that it is.
func parseNumber(s string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number: write 0.05 or 5%%", s)
	}
	if percent {
		v /= 100
	}
	return v, nil
}

var daysOrWeeks = regexp.MustCompile(`([0-9]+(?:\.[0-9]+)?)([dw])`)

// parseTime reads a time as time.ParseDuration does, and days and weeks of 24
// hours and 7 days besides.
func parseTime(s string) (time.Duration, error) {
	hours := daysOrWeeks.ReplaceAllStringFunc(strings.TrimSpace(s), func(part string) string {
		n, _ := strconv.ParseFloat(part[:len(part)-1], 64)
		n *= 24
		if part[len(part)-1] == 'w' {
			n *= 7
		}
		return strconv.FormatFloat(n, 'f', -1, 64) + "h"
	})
	d, err := time.ParseDuration(hours)
	if err != nil {
		return 0, fmt.Errorf("%q is no time: write 90s, 15m, 12h, 30d or 2w", s)
	}
	return d, nil
}

// counted is a number of things in words: 1 image, 2 images. many is for plurals
// that do not end in s.
func counted(n int, one string, many ...string) string {
	switch {
	case n == 1:
		return "1 " + one
	case len(many) > 0:
		return fmt.Sprintf("%d %s", n, many[0])
	}
	return fmt.Sprintf("%d %ss", n, one)
}
