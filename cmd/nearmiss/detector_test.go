package main

import (
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/training"
)

// What fit --score takes, a detector takes too; nothing else gets into its record.
func TestADetectorTakesTheScoresThatFitTakes(t *testing.T) {
	for score, good := range map[string]bool{
		"":      true,
		"full":  true,
		"class": true,
		"class:unit:white+pooled@6:unit:white=0.25|patch@4x3:placed:top1:mean": true,
		"frozen-class@9":                        true,
		"class\n":                               false,
		"../class":                              false,
		strings.Repeat("class+", 200) + "class": false,
		"class+<b>":                             false,
	} {
		err := stream.Detector{Name: "bolts", Score: score}.Validate()
		if (err == nil) != good {
			t.Errorf("score %q of a detector: error %v", score, err)
		}
		if _, err := training.ParseScore(score); good && err != nil {
			t.Errorf("score %q is none: %v", score, err)
		}
	}
}
