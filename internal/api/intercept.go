package api

import (
	"context"
	"log/slog"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// callTimeout bounds a call whose caller set no deadline. Calls that ask every node wait for the slowest of
// them, which may be one that is paused; a minute is far beyond what any answer takes.
const callTimeout = time.Minute

// gate is the interceptor that every call of the server goes through, in this order: permission, validation,
// the call, error mapping, audit, log and metrics.
type gate struct{ s *Server }

// WrapUnary implements connect.Interceptor.
func (g gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.Spec().IsClient {
			return next(ctx, req)
		}
		arrived(ctx)
		started := g.s.now()
		method := req.Spec().Procedure
		msg, _ := req.Any().(proto.Message)
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, callTimeout)
			defer cancel()
		}
		var resp connect.AnyResponse
		err := permit(ctx, method)
		if err == nil {
			err = validate(msg)
		}
		if err == nil {
			resp, err = next(ctx, req)
		}
		g.s.finish(ctx, method, msg, started, err)
		if err != nil {
			return nil, toConnect(err, g.s.node)
		}
		return resp, nil
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (g gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor. Streams validate their one request in the handler.
func (g gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		started := g.s.now()
		method := conn.Spec().Procedure
		a, _ := ctx.Value(authKey{}).(authenticated)
		// Server.Close ends streams: they may otherwise last as long as the client likes.
		sctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(g.s.life, cancel)
		guarded := &guardedConn{StreamingHandlerConn: conn, permit: func() error { return permit(ctx, method) }, again: a.again, arrived: func() { arrived(ctx) }}
		err := next(sctx, guarded)
		stop()
		cancel()
		g.s.finish(ctx, method, guarded.request, started, err)
		if err != nil {
			return toConnect(err, g.s.node)
		}
		return nil
	}
}

// guardedConn gives the handler the request only if the caller may make it, and keeps it, since the audit log says what was asked for
// also of who may not. It asks before every message whether the caller's credentials still count, so that revoking them ends
// what they see.
type guardedConn struct {
	connect.StreamingHandlerConn
	permit, again func() error
	arrived       func()
	request       proto.Message
}

// Receive implements connect.StreamingHandlerConn.
func (c *guardedConn) Receive(msg any) error {
	if err := c.StreamingHandlerConn.Receive(msg); err != nil || c.request != nil {
		return err
	}
	c.request, _ = msg.(proto.Message)
	c.arrived()
	return c.permit()
}

// Send implements connect.StreamingHandlerConn.
func (c *guardedConn) Send(msg any) error {
	if c.request == nil { // a handler that says something before it has heard anything
		if err := c.permit(); err != nil {
			return err
		}
	}
	if c.again != nil {
		if err := c.again(); err != nil {
			return err
		}
	}
	return c.StreamingHandlerConn.Send(msg)
}

// finish records what became of a call.
func (s *Server) finish(ctx context.Context, method string, msg proto.Message, started time.Time, err error) {
	took := s.now().Sub(started)
	caller := CallerFrom(ctx)
	code := "ok"
	if err != nil {
		code = toConnect(err, s.node).Code().String()
	}
	s.metrics.observe(method, code, took)

	action := methods[method].action
	attrs := []slog.Attr{slog.String("method", method), slog.String("caller", caller.Actor()), slog.String("code", code), slog.Duration("took", took)}
	if caller.Remote != "" {
		attrs = append(attrs, slog.String("remote", caller.Remote))
	}
	// Strangers are logged when somebody looks for them, and not audited: whoever reaches the port could fill the
	// audit log otherwise.
	stranger := err != nil && caller.Role == ""
	if action != "" && msg != nil {
		object := auditObject(msg)
		attrs = append(attrs, slog.String("object", object))
		if !stranger {
			// The call's own context may have ended, and what was done is recorded all the same.
			s.backend.Audit(context.WithoutCancel(ctx), AuditRecord{Time: started, Caller: caller, Action: action, Object: object, Err: err})
		}
	}
	level := slog.LevelDebug
	switch {
	case err != nil && code == connect.CodeInternal.String():
		level = slog.LevelError
	case action != "" && !stranger:
		level = slog.LevelInfo
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	s.log.LogAttrs(ctx, level, "api call", attrs...)
}
