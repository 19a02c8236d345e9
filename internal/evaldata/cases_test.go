package evaldata

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tried names the tests that try each case. Where the folder holds inputs, the test
// reads them; where it holds a description and programs in Python only, the test
// makes the same inputs itself.
var tried = map[string][]string{
	"bmp-unsupported":           {"TestCasesOfImages"},
	"jpeg-no-huffman-tables":    {"TestCasesOfImages"},
	"jpeg-odd-sampling":         {"TestCasesOfImages"},
	"jpeg-progressive-cut":      {"TestCasesOfACutJPEG"},
	"png-16bit-range":           {"TestCasesOfImages", "TestCasesOfAnUnknownDepth"},
	"tiff-bilevel":              {"TestCasesOfImages"},
	"tiff-thumbnail-first":      {"TestCasesOfImages"},
	"tiff-valid-called-corrupt": {"TestCasesOfImages"},
	"camera-name-stalls":        {"TestCasesOfCameraNames", "TestFramesOfCamerasWithoutAGoodNameAreRejectedAtOnce"},
	"mqtt-lost-frames":          {"TestCasesOfFramesLostOverMQTT", "TestWhatIsPublishedAndNotStoredIsCountedAndTold"},
	"mean-zero":                 {"TestCasesOfAZeroMean", "TestNormalisationIsGivenOrTold"},
	"video-frames":              {"TestCasesOfVideos"},
	"web-camera":                {"TestCasesOfCamerasOnTheWeb"},
	"eval-masks":                {"TestCasesOfMasks", "TestMasksOfEveryKind", "TestMasksThatDoNotFitAreTold"},
	"fit-mvtec-root":            {"TestNormalsOfADataSet"},
	"folder-links":              {"TestLinksAreFollowed", "TestLinksAreFollowedAndOddEntriesCostThemselves"},
	"onnx-external-data":        {"TestExternalData", "TestAReleaseIsWhole"},
	"reused-frame-id":           {"TestAnotherPictureIsAnotherFrameWhateverItsId"},
	"weights-left-over":         {"TestEveryTensorCounts"},
	"failing-tests": {
		"TestThePromiseHoldsOnVideo", "TestAStationaryCameraDoesNotDrift", "TestReadjustThatFailsChangesNothing",
		"TestAResumedExtensionDoesNotUndoAPromotion", "TestConflicts", "TestProgressDoesNotWaitForTheBroker",
		"TestEventsThatCannotBeStoredAreNotTheFramesFault", "TestSketchesAreClosed", "TestSketchesStayWhileTheBankGrows",
	},
}

// TestCasesAreAllTried: each folder of cases has a test, each of these exists, and
// `make cases` runs it.
func TestCasesAreAllTried(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root(), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\t.*-run '(\^\(TestCases[^']*)' \./\.\.\.$`).FindSubmatch(makefile)
	if m == nil {
		t.Fatal("no go test -run '^(TestCases…' ./... in the Makefile")
	}
	run, err := regexp.Compile(strings.ReplaceAll(string(m[1]), "$$", "$"))
	if err != nil {
		t.Fatal(err)
	}
	var source []string
	err = filepath.WalkDir(root(), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, "_test.go") {
			var b []byte
			b, err = os.ReadFile(path)
			source = append(source, string(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, tests := range tried {
		for _, test := range tests {
			if !run.MatchString(test) {
				t.Errorf("%s: make cases does not run %s", name, test)
			}
			if !slices.ContainsFunc(source, func(s string) bool { return strings.Contains(s, "\nfunc "+test+"(") }) {
				t.Errorf("%s: there is no %s", name, test)
			}
		}
	}
	shared, _ := Find()
	folders, err := os.ReadDir(filepath.Join(shared, "cases"))
	if err != nil {
		t.Skipf("no cases in %s: set NEARMISS_SHARED to the folder that holds cases/", shared)
	}
	for _, f := range folders {
		if f.IsDir() && !strings.HasPrefix(f.Name(), "_") && tried[f.Name()] == nil {
			t.Errorf("no test tries the case %s", f.Name())
		}
	}
}
