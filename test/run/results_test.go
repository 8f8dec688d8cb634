package main

import (
	"strings"
	"testing"
)

// feed runs the results over lines of "go test -json".
func feed(t *testing.T, ci bool, lines ...string) (*results, string) {
	t.Helper()
	var out strings.Builder
	r := &results{out: &out, ci: ci, excused: map[string]string{"subnet/TestExcused": "no such kernel"}}
	r.read(strings.NewReader(strings.Join(lines, "\n") + "\n"))
	summary := r.finish()
	return r, out.String() + summary
}

const prefix = `"Package":"github.com/flanneld/flanneld/subnet"`

func TestPassesAreCountedAndShownInALine(t *testing.T) {
	r, said := feed(t, true,
		`{"Action":"start",`+prefix+`}`,
		`{"Action":"output",`+prefix+`,"Test":"TestA","Output":"chatter\n"}`,
		`{"Action":"pass",`+prefix+`,"Test":"TestA"}`,
		`{"Action":"pass",`+prefix+`,"Elapsed":1.25}`)
	if r.failed != 0 || said != "ok    subnet 1.2 s (1 passed, 0 failed, 0 skipped)\n1 passed, 0 failed, 0 skipped" {
		t.Errorf("said\n%s", said)
	}
}

func TestFailuresAreShownWithTheirOutput(t *testing.T) {
	r, said := feed(t, false,
		`{"Action":"output",`+prefix+`,"Test":"TestA/sub","Output":"want 1\n"}`,
		`{"Action":"fail",`+prefix+`,"Test":"TestA/sub"}`,
		`{"Action":"fail",`+prefix+`,"Test":"TestA"}`,
		`{"Action":"pass",`+prefix+`,"Test":"TestB"}`,
		`{"Action":"fail",`+prefix+`}`)
	if r.failed != 2 || !strings.Contains(said, "want 1") || !strings.HasSuffix(said, "failed:\n  subnet/TestA/sub\n  subnet/TestA\n1 passed, 2 failed, 0 skipped") {
		t.Errorf("said\n%s", said)
	}
}

func TestPackageThatFailsAsAWholeIsOneFailure(t *testing.T) {
	for name, lines := range map[string][]string{
		"does not compile": {
			`{"ImportPath":"github.com/flanneld/flanneld/subnet","Action":"build-output","Output":"x.go:1: wrong\n"}`,
			`{"ImportPath":"github.com/flanneld/flanneld/subnet","Action":"build-fail"}`,
			`{"Action":"start",` + prefix + `}`,
			`{"Action":"fail",` + prefix + `,"FailedBuild":"github.com/flanneld/flanneld/subnet"}`},
		"exits outside of a test": {
			`{"Action":"output",` + prefix + `,"Output":"x.go:1: wrong\n"}`,
			`{"Action":"fail",` + prefix + `}`},
		"never ends": {`x.go:1: wrong`, `{"Action":"start",` + prefix + `}`},
	} {
		t.Run(name, func(t *testing.T) {
			r, said := feed(t, false, lines...)
			if r.failed != 1 || !strings.Contains(said, "x.go:1: wrong") {
				t.Errorf("%d failed, said\n%s", r.failed, said)
			}
		})
	}
}

func TestSkipsAreFailuresInCIUnlessExcused(t *testing.T) {
	skip := func(test string) []string {
		return []string{
			`{"Action":"output",` + prefix + `,"Test":"` + test + `","Output":"    a_test.go:1: needs GRE\n"}`,
			`{"Action":"output",` + prefix + `,"Test":"` + test + `","Output":"--- SKIP: ` + test + ` (0.00s)\n"}`,
			`{"Action":"skip",` + prefix + `,"Test":"` + test + `"}`,
			`{"Action":"pass",` + prefix + `}`,
		}
	}
	for name, c := range map[string]struct {
		ci           bool
		test         string
		fails, tells string
	}{
		"on a developer's machine": {ci: false, test: "TestPlain", tells: "a_test.go:1: needs GRE"},
		"in CI":                    {ci: true, test: "TestPlain", fails: "subnet/TestPlain", tells: "needs GRE"},
		"excused in CI":            {ci: true, test: "TestExcused", tells: "no such kernel"},
	} {
		t.Run(name, func(t *testing.T) {
			r, said := feed(t, c.ci, skip(c.test)...)
			if (r.failed > 0) != (c.fails != "") || r.skipped != 1 || !strings.Contains(said, c.tells) || !strings.Contains(said, c.fails) {
				t.Errorf("%d failed, said\n%s", r.failed, said)
			}
		})
	}
}

func TestSkippedTestThatPassedUnderAnotherKernelHasRun(t *testing.T) {
	const vm = `"Package":"github.com/flanneld/flanneld/subnet (Linux 6.1.0)"`
	here, there := func(action, test string) string {
		return `{"Action":"` + action + `",` + prefix + `,"Test":"` + test + `"}`
	}, func(action, test string) string {
		return `{"Action":"` + action + `",` + vm + `,"Test":"` + test + `"}`
	}
	for name, c := range map[string]struct {
		lines []string
		want  string // counts
		tells string
	}{
		"passed in the VM later":     {[]string{here("skip", "TestGRE"), there("pass", "TestGRE")}, "1 passed, 0 failed, 0 skipped", ""},
		"a test within it":           {[]string{here("skip", "TestA/GRE"), there("pass", "TestA/GRE")}, "1 passed, 0 failed, 0 skipped", ""},
		"passed here, not in the VM": {[]string{here("pass", "TestNew"), there("skip", "TestNew")}, "1 passed, 0 failed, 0 skipped", ""},
		"skipped in both":            {[]string{here("skip", "TestGRE"), there("skip", "TestGRE")}, "0 passed, 2 failed, 2 skipped", "subnet/TestGRE (Linux 6.1.0)"},
		"failed in the VM":           {[]string{here("skip", "TestGRE"), there("fail", "TestGRE")}, "0 passed, 2 failed, 1 skipped", "subnet/TestGRE (Linux 6.1.0)"},
		"another test passed":        {[]string{here("skip", "TestGRE"), there("pass", "TestIPIP")}, "1 passed, 1 failed, 1 skipped", "subnet/TestGRE"},
		"passed in another package":  {[]string{here("skip", "TestGRE"), `{"Action":"pass","Package":"github.com/flanneld/flanneld/lab","Test":"TestGRE"}`}, "1 passed, 1 failed, 1 skipped", "subnet/TestGRE"},
		"not in the VM, not excused": {[]string{here("skip", "TestGRE")}, "0 passed, 1 failed, 1 skipped", "subnet/TestGRE"},
		"excused, skipped in both":   {[]string{here("skip", "TestExcused"), there("skip", "TestExcused")}, "0 passed, 0 failed, 2 skipped", "no such kernel"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := append(c.lines, `{"Action":"pass",`+prefix+`}`, `{"Action":"pass",`+vm+`}`, `{"Action":"pass","Package":"github.com/flanneld/flanneld/lab"}`)
			_, said := feed(t, true, lines...)
			if !strings.HasSuffix(said, c.want) || !strings.Contains(said, c.tells) {
				t.Errorf("said\n%s\nwant %s", said, c.want)
			}
		})
	}
}

func TestTestThatNeverEndedShowsWhatItSaid(t *testing.T) {
	_, said := feed(t, false,
		`{"Action":"output",`+prefix+`,"Test":"TestA","Output":"all is well\n"}`,
		`{"Action":"pass",`+prefix+`,"Test":"TestA"}`,
		`{"Action":"output",`+prefix+`,"Test":"TestB","Output":"panic: test timed out\n"}`,
		`{"Action":"fail",`+prefix+`}`)
	if !strings.Contains(said, "panic: test timed out") || strings.Contains(said, "all is well") {
		t.Errorf("said\n%s", said)
	}
}

func TestStagesCoverEveryPackageOnce(t *testing.T) {
	pkgs := []string{module + "subnet", module + "lab", module + "test/arch", module + "test/e2e", module + "test/engines", module + "test/docs", module + "kernel/nft"}
	seen := map[string]int{}
	for _, s := range stages(pkgs) {
		if s.vm { // picks what to run again
			continue
		}
		for _, a := range s.args {
			seen[strings.Replace(a, "./", module, 1)]++
		}
	}
	for _, p := range pkgs {
		if seen[p] != 1 {
			t.Errorf("%s runs %d times", p, seen[p])
		}
	}
}
