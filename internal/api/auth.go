package api

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dozo/internal/control"
	"dozo/internal/pki"
)

// OnBehalfHeader is set by a node that passes a call on: the user for whom. Only nodes are believed.
const OnBehalfHeader = "Dozo-On-Behalf-Of"

// How a caller was known.
const (
	viaToken       = "token"
	viaCertificate = "certificate"
	viaSocket      = "socket"
)

// socketKey holds, in the context of connections over the unix socket, the name of the user at the other end.
type socketKey struct{}

// socketContext notes who is at the other end of a unix socket. Who may open the socket may do everything:
// file permission is the authentication, the name is for the audit log.
func socketContext(ctx context.Context, c net.Conn) context.Context {
	name := "local"
	if uc, ok := c.(*net.UnixConn); ok {
		if raw, err := uc.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					name = localName(cred.Uid)
				}
			})
		}
	}
	return context.WithValue(ctx, socketKey{}, name)
}

func localName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return "local/" + u.Username
	}
	return "local/uid" + id
}

// identify says who makes a request. No credentials at all is no error: the caller has then no role. Wrong ones
// are an error even where others would do, so that a caller sees that what it gave does not count.
func (s *Server) identify(ctx context.Context, h http.Header, state *tls.ConnectionState, remote string) (Caller, error) {
	c := Caller{Remote: remote}
	if name, ok := ctx.Value(socketKey{}).(string); ok {
		return Caller{Name: name, Role: pki.RoleAdmin, Via: viaSocket}, nil
	}
	if auth := h.Get("Authorization"); auth != "" {
		scheme, token, _ := strings.Cut(auth, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return c, fmt.Errorf("authorization scheme: want Bearer and a token: %w", ErrUnauthenticated)
		}
		hash, err := pki.HashAPIToken(token)
		if err != nil {
			return c, err
		}
		rec, ok, err := s.backend.APIToken(hash)
		if err != nil {
			return c, fmt.Errorf("API token: %w", err)
		}
		if !ok {
			return c, fmt.Errorf("API token: %w: unknown or revoked", pki.ErrBadToken)
		}
		if !rec.Valid(s.now()) {
			return c, fmt.Errorf("API token %s: %w: expired at %s", rec.Name, pki.ErrBadToken, rec.Expires.UTC().Format(time.RFC3339))
		}
		c.Name, c.Role, c.Via = rec.Name, rec.Role, viaToken
		return c, nil
	}
	if state != nil && len(state.PeerCertificates) > 0 && s.peer != nil {
		p, err := s.peer(*state)
		if err != nil {
			return c, fmt.Errorf("client certificate: %w: %w", ErrUnauthenticated, err)
		}
		c.Name, c.Role, c.Via = p.Name, p.Role, viaCertificate
		if p.Role.IsNode() {
			c.For = h.Get(OnBehalfHeader)
		}
	}
	return c, nil
}

// authenticated is what identify found, with what it takes to ask again: long answers are cut off when the
// credentials end.
type authenticated struct {
	caller Caller
	err    error
	again  func() error
}

type authKey struct{}

// authenticate is the outermost handler: it puts the caller, or why there is none, in the context. What a
// method needs is decided later, where the method is known and errors have the protocol's form.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		remote := r.RemoteAddr
		caller, err := s.identify(r.Context(), r.Header, r.TLS, remote)
		ctx := r.Context()
		a := authenticated{caller: caller, err: err, again: func() error {
			_, err := s.identify(ctx, r.Header, r.TLS, remote)
			return err
		}}
		ctx = context.WithValue(ctx, authKey{}, a)
		ctx = control.WithActor(withCaller(ctx, caller), caller.Actor())
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// permit decides whether the caller of the context may call the method.
func permit(ctx context.Context, method string) error {
	p, ok := methods[method]
	if !ok {
		return fmt.Errorf("%s: %w", method, ErrForbidden)
	}
	if p.public {
		return nil
	}
	a, _ := ctx.Value(authKey{}).(authenticated)
	return a.require(p)
}

// require checks the caller against a permission.
func (a authenticated) require(p permission) error {
	if a.err != nil {
		return a.err
	}
	c := a.caller
	switch {
	case c.Role == "":
		return fmt.Errorf("%w: give an API token (Authorization: Bearer ...), a client certificate, or use the node's unix socket", ErrUnauthenticated)
	case p.node && c.Role.IsNode():
		return nil
	case p.node:
		return fmt.Errorf("%w: only nodes may, and %s is %s", ErrForbidden, c.Name, c.Role)
	case c.Role.IsNode(), c.Role.Allows(p.need):
		// A node could write to the control store itself: refusing it here would protect nothing.
		return nil
	}
	return fmt.Errorf("%w: needs role %s, and %s has role %s", ErrForbidden, p.need, c.Name, c.Role)
}
