package iscsi

import (
	"context"
	"errors"
	"net/netip"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// Portal is where a target can be reached: an address and the portal group it belongs to.
type Portal struct {
	Address string // host:port or [v6]:port
	Group   uint16 // target portal group tag
}

// TargetInfo is one target in the answer to SendTargets.
type TargetInfo struct {
	Name    string
	Portals []Portal
}

// Peer is who wants something before a session exists.
type Peer struct {
	Initiator string // iSCSI name, normalized
	Remote    netip.AddrPort
	Local     netip.AddrPort // the portal it came in by
	Group     uint16
}

// Credentials say how a peer has to prove itself. With CHAP required, In is the name and secret it must know;
// Out, if it has a secret, is ours when the peer asks back (mutual CHAP).
type Credentials struct {
	Required bool
	In, Out  Secret
}

// Secret is a CHAP name and secret. It never goes to a log.
type Secret struct{ Name, Secret string }

// String keeps secrets out of formatted output.
func (s Secret) String() string { return s.Name + ":***" }

// Provider is what is behind the portals. Its methods may block, up to the context's end, which is the
// connection's login timeout.
type Provider interface {
	// Targets lists what an initiator may see.
	Targets(ctx context.Context, p Peer) ([]TargetInfo, error)
	// Credentials says how the peer proves itself, for the target it named, or for discovery if target is
	// empty. An unknown peer may get Required with an empty secret: then no answer is right.
	Credentials(ctx context.Context, p Peer, target string) (Credentials, error)
	// Login opens a target for a session. Its errors are ErrTargetNotFound and the others below.
	Login(ctx context.Context, p Peer, target string, isid [6]byte) (Target, error)
	// Opened and Closed tell of sessions, discovery sessions as well. They must not block.
	Opened(s *Session)
	Closed(s *Session)
}

// Target is a target as one session sees it.
type Target interface {
	// Admits says whether the peer may add a connection to this session, or replace one; its errors are those of
	// Provider.Login. The peer has the name and the ISID of the session, and has proved itself.
	Admits(p Peer) error
	// Units are the logical units of this session.
	Units() []scsi.UnitConfig
	// Stamp is now, for rule R9. It is called for every PDU: it must be cheap.
	Stamp() scsi.Stamp
	// Bar returns once no command of an older connection of this nexus can take effect any more. conn is the
	// new connection's RequestID.Conn.
	Bar(ctx context.Context, nexus reserve.NexusID, conn uint64) error
	// Logout tells that the session of this nexus has logged out, before the initiator has its answer; conn is that of
	// Bar. It may block up to the context's end.
	Logout(ctx context.Context, nexus reserve.NexusID, conn uint64)
	// AbortTask calls done once the command of that ID can't take effect any more, if it has not already.
	AbortTask(id scsi.RequestID, done func(error))
	// ResetLUN calls done once no command that any initiator sent to the unit before can take effect any more.
	ResetLUN(nexus reserve.NexusID, lun uint16, done func(error))
	// ClearTaskSet is the same for CLEAR TASK SET, and AbortTaskSet for the commands of one nexus only.
	ClearTaskSet(nexus reserve.NexusID, lun uint16, done func(error))
	AbortTaskSet(nexus reserve.NexusID, lun uint16, done func(error))
	// Close is called once, after the last command has completed.
	Close()
}

// Alias is implemented by Targets that have a name for people; the initiator is told at login.
type Alias interface{ Alias() string }

// Scoped is implemented by Targets whose logical units are not the same for all their sessions: they are for those of one
// scope.
type Scoped interface{ Scope() string }

// What Provider's methods fail with. Anything else is "target error" to the initiator, which tries again.
var (
	ErrTargetNotFound     = errors.New("target not found")
	ErrTargetRemoved      = errors.New("target removed")
	ErrNotAuthorized      = errors.New("not authorized")
	ErrServiceUnavailable = errors.New("service unavailable")
	ErrOutOfResources     = errors.New("out of resources")
)

// RedirectError sends the initiator to another portal; the target keeps its name.
type RedirectError struct {
	Address   string // host:port, with ",group" appended on the wire only in SendTargets
	Permanent bool
}

func (e *RedirectError) Error() string { return "target moved to " + e.Address }

// loginStatus is a class and a detail (RFC 7143 11.13.5), class in the high byte.
type loginStatus uint16

const (
	statusSuccess            loginStatus = 0x0000
	statusMovedTemporarily   loginStatus = 0x0101
	statusMovedPermanently   loginStatus = 0x0102
	statusInitiatorError     loginStatus = 0x0200
	statusAuthFailure        loginStatus = 0x0201
	statusAuthorization      loginStatus = 0x0202
	statusNotFound           loginStatus = 0x0203
	statusRemoved            loginStatus = 0x0204
	statusVersion            loginStatus = 0x0205
	statusTooManyConnections loginStatus = 0x0206
	statusMissingParameter   loginStatus = 0x0207
	statusCantInclude        loginStatus = 0x0208
	statusSessionType        loginStatus = 0x0209
	statusNoSession          loginStatus = 0x020a
	statusInvalidRequest     loginStatus = 0x020b
	statusTargetError        loginStatus = 0x0300
	statusUnavailable        loginStatus = 0x0301
	statusOutOfResources     loginStatus = 0x0302
)

// loginStatusOf is the one table from a Provider's errors to login status.
func loginStatusOf(err error) loginStatus {
	for _, e := range []struct {
		err    error
		status loginStatus
	}{
		{ErrTargetNotFound, statusNotFound},
		{ErrTargetRemoved, statusRemoved},
		{ErrNotAuthorized, statusAuthorization},
		{ErrServiceUnavailable, statusUnavailable},
		{ErrOutOfResources, statusOutOfResources},
		{context.DeadlineExceeded, statusUnavailable},
	} {
		if errors.Is(err, e.err) {
			return e.status
		}
	}
	if r, ok := errors.AsType[*RedirectError](err); ok {
		if r.Permanent {
			return statusMovedPermanently
		}
		return statusMovedTemporarily
	}
	return statusTargetError
}
