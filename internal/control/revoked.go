package control

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"dozo/internal/pki"
)

// etcd looks at certificates, and at the list of revoked ones, only when a connection begins. Whoever has a
// connection when its certificate is revoked is refused here: at its next call, and at the next message of a watch or
// lease in either direction.

// revokedGuard checks whom each call and message is from.
type revokedGuard struct {
	revoked pki.Revoked
}

// options are what etcd's server takes.
func (g revokedGuard) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(g.unary), grpc.ChainStreamInterceptor(g.stream)}
}

func (g revokedGuard) check(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil // of this process: a listener takes nobody without a certificate
	}
	if serial := pki.SerialText(info.State.PeerCertificates[0].SerialNumber); g.revoked(serial) {
		return status.Error(codes.PermissionDenied, "certificate "+serial+" was revoked")
	}
	return nil
}

func (g revokedGuard) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (g revokedGuard) stream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := g.check(s.Context()); err != nil {
		return err
	}
	return next(srv, guardedStream{s, g})
}

// guardedStream is a stream that ends when its certificate is revoked.
type guardedStream struct {
	grpc.ServerStream
	guard revokedGuard
}

func (s guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.guard.check(s.Context())
}

func (s guardedStream) SendMsg(m any) error {
	if err := s.guard.check(s.Context()); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}
