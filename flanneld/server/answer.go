package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// maxBody is what a request may bring: a service of a thousand endpoints fits.
const maxBody = 64 << 10

// answer turns a function into a handler: its value becomes JSON, its error an
// api.Error.
func answer(f func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		status := http.StatusOK
		v, err := f(r)
		if err != nil {
			e := explain(err)
			v, status = e, e.Status
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // a client that went away needs no answer
	}
}

// explain makes any error one for the client.
func explain(err error) *api.Error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*service.FieldError](err); ok {
		return &api.Error{Status: http.StatusBadRequest, Message: e.Error(), Field: e.Field, Value: e.Value}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return api.Unavailable("no answer within %v: flanneld status says whether etcd is in reach; asking again does no harm", editPatience)
	}
	return &api.Error{Status: http.StatusInternalServerError, Message: err.Error()}
}

// read takes a request's body: one JSON value, all of whose fields are known.
func read(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("more than one value")
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &api.Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the request is larger than %d bytes", e.Limit)}
	}
	return &api.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("the request's body: %v", err), Field: "body"}
}
