package main

import (
	"testing"
	"time"
)

const printed = `DNS Performance Testing Tool
Version 2.10.0

> NOERROR n000001.default.cluster.local A 0.000250
> NOERROR n000002.default.cluster.local A 0.001000
> T n000003.default.cluster.local A

  Queries sent:         3
  Queries completed:    2 (66.67%)
  Queries lost:         1 (33.33%)

  Response codes:       NOERROR 2 (100.00%)
  Run time (s):         0.500000
  Queries per second:   4.000000
`

func TestReportOfDnsperfIsRead(t *testing.T) {
	r, err := report([]byte(printed), "NOERROR")
	if err != nil {
		t.Fatal(err)
	}
	if r.completed != 2 || r.lost != 1 || r.perSecond() != 4 || r.quantile(0) != 250*time.Microsecond || r.quantile(1) != time.Millisecond {
		t.Errorf("read %+v", r)
	}
	if _, err := report([]byte(printed), "NXDOMAIN"); err == nil {
		t.Error("answers of another code are taken for those of the load")
	}
	if _, err := report(nil, "NOERROR"); err == nil {
		t.Error("no answers are no error")
	}
}
