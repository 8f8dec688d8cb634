package embedded

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// logCore hands on what etcd's logger says: errors as warnings, warnings (a
// slow disk, a client that went away) for debugging, the rest not at all.
type logCore struct{ log *slog.Logger }

var _ zapcore.Core = logCore{}

func (c logCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && c.log.Enabled(context.Background(), level(l))
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.WarnLevel:
		return slog.LevelDebug
	case l == zapcore.ErrorLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func (c logCore) With([]zapcore.Field) zapcore.Core { return c }
func (c logCore) Sync() error                       { return nil }

func (c logCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// harmless are errors to etcd that belong to every start and end here.
func harmless(message string) bool {
	switch message {
	case "setting up serving from embedded etcd failed.", // a listener was closed
		"failed to update storage version": // of a new database
		return true
	}
	return false
}

func (c logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if harmless(e.Message) {
		return nil
	}
	attrs := []slog.Attr{slog.String("message", e.Message)}
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	if err, ok := m.Fields["error"]; ok {
		attrs = append(attrs, slog.Any("error", err))
	}
	c.log.LogAttrs(context.Background(), level(e.Level), "embedded etcd", attrs...)
	return nil
}
