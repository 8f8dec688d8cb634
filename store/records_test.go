package store_test

import (
	"errors"
	"strconv"
	"testing"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

func TestRecordsKeepTheirPointersUntilTheyAreWritten(t *testing.T) {
	st := mem.New()
	put := func(key, value string) {
		t.Helper()
		if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte(value)}}}); err != nil {
			t.Fatal(err)
		}
	}
	parsed := 0
	parse := func(kv store.KV) (*int, error) {
		parsed++
		n, err := strconv.Atoi(string(kv.Value))
		if err != nil {
			return nil, errors.New(kv.Key + " is no number")
		}
		return &n, nil
	}
	put("/a/1", "1")
	put("/a/2", "two")
	put("/a/3", "3")
	var one, three *int
	step := 0
	for r, err := range store.WatchRecords(t.Context(), st, "/a/", parse) {
		if err != nil {
			t.Fatal(err)
		}
		step++
		switch step {
		case 1:
			if len(r.Values) != 2 || len(r.Problems) != 1 || r.Problems[0].Error() != "/a/2 is no number" || parsed != 3 {
				t.Fatalf("%+v, parsed %d", r, parsed)
			}
			one, three = r.Values[0], r.Values[1]
			put("/a/3", "33")
		case 2:
			if len(r.Values) != 2 || r.Values[0] != one || r.Values[1] == three || *r.Values[1] != 33 || len(r.Problems) != 1 || parsed != 4 {
				t.Fatalf("%+v, parsed %d", r, parsed)
			}
			if _, err := st.Commit(t.Context(), store.Txn{Delete: []string{"/a/2"}}); err != nil {
				t.Fatal(err)
			}
		case 3:
			if len(r.Values) != 2 || len(r.Problems) != 0 || r.Values[0] != one || parsed != 4 {
				t.Fatalf("%+v, parsed %d", r, parsed)
			}
			return
		}
	}
}
