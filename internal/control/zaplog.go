package control

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger gives etcd's code a logger that writes to ours, a level lower than etcd thinks: what it warns of
// (a peer that is slow or restarting) is its daily business, and nobody has to act upon its errors as long as
// the others of the majority are there. end, if given, is what happens when etcd's code wants to end the process.
func zapLogger(log *slog.Logger, end zapcore.CheckWriteHook) *zap.Logger {
	var o []zap.Option
	if end != nil {
		o = []zap.Option{zap.WithFatalHook(end), zap.WithPanicHook(end)}
	}
	return zap.New(&slogCore{log: log.With("part", "etcd")}, o...)
}

// lastWords is what happens when etcd's code says that it can not go on, because its disk is full or fails: it means to
// end the process, in which there is more than a voter. The goroutine that says it ends, and with it the voter: without that
// goroutine it neither votes nor answers, which is what a voter does that has died.
type lastWords struct{ failed chan<- error }

// OnWrite implements zapcore.CheckWriteHook.
func (h lastWords) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := fmt.Errorf("%w: %s", ErrVoterDied, ce.Message)
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = fmt.Errorf("%w: %w", err, cause)
		}
	}
	select {
	case h.failed <- err:
	default: // one is enough
	}
	runtime.Goexit()
}

// slogCore is a zapcore.Core upon a slog.Logger.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.DPanicLevel:
		return slog.LevelError
	case l == zapcore.ErrorLevel:
		return slog.LevelWarn
	case l == zapcore.WarnLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (c *slogCore) Enabled(l zapcore.Level) bool {
	return c.log.Enabled(context.Background(), slogLevel(l))
}

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{c.log, append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	attrs := make([]slog.Attr, 0, len(c.fields)+len(fields))
	for _, group := range [][]zapcore.Field{c.fields, fields} {
		for _, f := range group {
			clear(enc.Fields)
			f.AddTo(enc)
			for key, v := range enc.Fields {
				attrs = append(attrs, slog.Any(key, v))
			}
		}
	}
	c.log.LogAttrs(context.Background(), slogLevel(e.Level), e.Message, attrs...)
	return nil
}

func (c *slogCore) Sync() error { return nil }
