package api

import (
	"context"

	"dozo/internal/pki"
)

// Caller is who calls, once that is known.
type Caller struct {
	Name string // of the user or node
	Role pki.Role
	Via  string // token, certificate, socket, or nothing: nobody was asked who they are
	// Remote is the caller's address; empty over a unix socket.
	Remote string
	// For is the user for whom a node passes the call on.
	For string
}

// Actor is the name that the audit log shows.
func (c Caller) Actor() string {
	switch {
	case c.For != "":
		return c.For
	case c.Role.IsNode():
		return "node/" + c.Name
	case c.Name == "":
		return "anonymous"
	}
	return c.Name
}

type callerKey struct{}

func withCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom gives the caller of a context that the server made.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
