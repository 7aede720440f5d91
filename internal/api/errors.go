package api

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/pki"
)

// What a Backend says beside the control store's errors.
var (
	// ErrUnauthenticated: nobody knows who calls.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrForbidden: the caller's role does not permit it.
	ErrForbidden = errors.New("not permitted")
	// ErrRefused: it could be done, but would destroy something or is not sensible now; the message says how to
	// insist, where that is possible.
	ErrRefused = errors.New("refused")
	// ErrTooFew: there are not enough sites or core servers for what is asked.
	ErrTooFew = errors.New("not enough servers")
	// ErrNoSpace: the stores are full.
	ErrNoSpace = errors.New("no space left")
	// ErrUnavailable: the node is not ready, or one that would have to be asked can not be reached. Trying again
	// later, or at another node, may help.
	ErrUnavailable = errors.New("unavailable")
	// ErrNotReady: the node has only just begun, and has done nothing of what was asked for. Another one may be asked at
	// once, also for what changes something. It is an ErrUnavailable too.
	ErrNotReady error = notReady{}
	// ErrTimedOut: what was waited for did not happen in time.
	ErrTimedOut = errors.New("timed out")
)

// errorClass is how errors of one kind reach the caller.
type errorClass struct {
	is     error
	code   connect.Code
	reason string
}

// errorTable maps sentinels to connect's codes and to our reasons. The first that matches counts. Reasons are
// part of the API: they are never changed, and docs/reference/api.md explains them.
var errorTable = []errorClass{
	{ErrUnauthenticated, connect.CodeUnauthenticated, "UNAUTHENTICATED"},
	{pki.ErrBadToken, connect.CodeUnauthenticated, "BAD_TOKEN"},
	{pki.ErrRevoked, connect.CodeUnauthenticated, "REVOKED"},
	{ErrForbidden, connect.CodePermissionDenied, "FORBIDDEN"},
	{ErrRefused, connect.CodeFailedPrecondition, "REFUSED"},
	{ErrTooFew, connect.CodeFailedPrecondition, "TOO_FEW_SERVERS"},
	{ErrNoSpace, connect.CodeResourceExhausted, "NO_SPACE"},
	{ErrTimedOut, connect.CodeDeadlineExceeded, "TIMED_OUT"},
	{control.ErrUncertain, connect.CodeUnknown, "UNCERTAIN"},
	{control.ErrConflict, connect.CodeAborted, "CONFLICT"},
	{control.ErrNotFound, connect.CodeNotFound, "NOT_FOUND"},
	{control.ErrExists, connect.CodeAlreadyExists, "EXISTS"},
	{control.ErrInvalid, connect.CodeInvalidArgument, "INVALID"},
	{control.ErrInUse, connect.CodeFailedPrecondition, "IN_USE"},
	{control.ErrLost, connect.CodeFailedPrecondition, "LOST"},
	{control.ErrNewerFormat, connect.CodeFailedPrecondition, "NEWER_FORMAT"},
	{control.ErrNoCluster, connect.CodeUnavailable, "NO_CLUSTER"},
	{control.ErrOlderNodes, connect.CodeFailedPrecondition, "OLDER_NODES"},
	{control.ErrUnheard, connect.CodeUnavailable, "CONTROL_UNSETTLED"},
	{control.ErrAway, connect.CodeUnavailable, "CONTROL_AWAY"},
	{control.ErrClosed, connect.CodeUnavailable, "STOPPING"},
	{ErrNotReady, connect.CodeUnavailable, reasonNotReady},
	{ErrUnavailable, connect.CodeUnavailable, "UNAVAILABLE"},
	// Last: operations above may wrap them with something that says more.
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded, "TIMED_OUT"},
	{context.Canceled, connect.CodeCanceled, "CANCELED"},
}

const reasonNotReady = "NOT_READY"

type notReady struct{}

func (notReady) Error() string { return "not ready" }
func (notReady) Unwrap() error { return ErrUnavailable }

// reasonInternal is the reason of errors that no sentinel explains: a fault of ours, or of the machine.
const reasonInternal = "INTERNAL"

// toConnect makes what the caller gets of a Backend's error. What is a connect error already stays as it is.
func toConnect(err error, node string) *connect.Error {
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		return ce
	}
	code, reason := connect.CodeInternal, reasonInternal
	for _, c := range errorTable {
		if errors.Is(err, c.is) {
			code, reason = c.code, c.reason
			break
		}
	}
	ce := connect.NewError(code, err)
	if d, derr := connect.NewErrorDetail(&dozov1.ErrorInfo{Reason: reason, Node: node}); derr == nil {
		ce.AddDetail(d)
	}
	return ce
}

// Reason gives the reason that came with an error from a server, or "" where there is none.
func Reason(err error) string {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return ""
	}
	for _, d := range ce.Details() {
		if v, derr := d.Value(); derr == nil {
			if info, ok := v.(*dozov1.ErrorInfo); ok {
				return info.GetReason()
			}
		}
	}
	return ""
}
