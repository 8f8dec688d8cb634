package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zap is the logger for etcd's own code.
func (o Options) zap() *zap.Logger {
	return zap.New(logCore{o.Log},
		zap.WithFatalHook(lastWords{o.Dir, o.Log, zapcore.WriteThenFatal}),
		zap.WithPanicHook(lastWords{o.Dir, o.Log, zapcore.WriteThenPanic}))
}

// lastWords says what happened and what to do when etcd's own code is about
// to end the process.
type lastWords struct {
	dir string
	log *slog.Logger
	end zapcore.CheckWriteHook // ends it
}

var _ zapcore.CheckWriteHook = lastWords{}

// OnWrite does not return.
func (w lastWords) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	known, cause := explainEnd(w.dir, e.Message, fields)
	w.log.Error("embedded etcd ends this process", "dir", w.dir, "error", cause)
	if known { // a stack trace would only hide it
		zapcore.WriteThenFatal.OnWrite(e, fields)
	}
	w.end.OnWrite(e, fields)
}

// explainEnd makes a sentence of etcd's last message. known: it is no
// mistake of the program.
func explainEnd(dir, message string, fields []zapcore.Field) (known bool, cause error) {
	var err error
	for _, f := range fields {
		if e, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = e
		}
	}
	if err == nil {
		err = errors.New(message)
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return true, fmt.Errorf("the disk under %s is full: make room on it and start again; what was acknowledged is kept: %w", dir, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO):
		return true, fmt.Errorf("the disk under %s cannot be written: check it, and the kernel's log: %w", dir, err)
	}
	return false, fmt.Errorf("it cannot go on with the data in %s: %w: start again; if that ends the same way, %s", dir, err, startAnew(dir))
}
