package main

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"sync"
	"time"

	"github.com/flanneld/flanneld/test/vm/plan"
	"golang.org/x/sys/unix"
)

// answers is the way to the host.
type answers struct {
	mu  sync.Mutex // guards both: a step's output is written by a goroutine of exec's
	to  *json.Encoder
	err error // the first one
}

func (a *answers) say(what plan.Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.to.Encode(what); err != nil && a.err == nil {
		a.err = err
	}
}

// output is what a step writes.
type output struct {
	step int
	to   *answers
}

func (o output) Write(text []byte) (int, error) {
	o.to.say(plan.Answer{Step: o.step, Output: text})
	return len(text), nil
}

// run runs a step to its end and kills what it leaves in its process group.
func (a *answers) run(number int, s plan.Step, env []string) {
	ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
	cmd.Dir, cmd.Env = s.Dir, env
	o := output{number, a}
	cmd.Stdout, cmd.Stderr = o, o
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	// A child that outlives it and holds the pipe is waited for this long.
	cmd.WaitDelay = 5 * time.Second
	began := time.Now()
	err := cmd.Run()
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		code = -1
	}
	if err != nil {
		a.say(plan.Answer{Step: number, Output: []byte(describe(ctx, s, err) + "\n")})
	}
	if cmd.Process != nil {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // ESRCH: all are gone
	}
	a.say(plan.Answer{Step: number, Ended: true, Code: code, Took: time.Since(began)})
}

// describe says why a step ended; the exit code of a test is its own matter.
func describe(ctx context.Context, s plan.Step, err error) string {
	if ctx.Err() != nil {
		return "killed after " + s.Timeout.String() + " in the VM"
	}
	return err.Error()
}
