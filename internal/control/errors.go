package control

import (
	"errors"
	"fmt"

	"dozo/internal/ident"
)

var (
	// ErrConflict: the key changed since the revision that the write was decided upon. The write has had no
	// effect that still stands; read again and decide again.
	ErrConflict = errors.New("control store: changed by somebody else meanwhile")
	// ErrUncertain: the write may or may not take effect, now or later. See UncertainError and Store.Settle.
	ErrUncertain = errors.New("control store: outcome unknown")
	// ErrNotFound: there is no such object.
	ErrNotFound = errors.New("not found")
	// ErrExists: an object of that name or ID exists already.
	ErrExists = errors.New("exists already")
	// ErrInvalid: the specification breaks a rule; the message says which.
	ErrInvalid = errors.New("invalid")
	// ErrInUse: the object can not be removed while others refer to it.
	ErrInUse = errors.New("in use")
	// ErrLost: the store was declared lost by an operator, for good.
	ErrLost = errors.New("declared lost")
	// ErrNewerFormat: what is stored was written by a newer dozo than this one can read.
	ErrNewerFormat = errors.New("written by a newer dozo")
	// ErrNoCluster: the control store has not been initialised.
	ErrNoCluster = errors.New("control store holds no cluster")
	// ErrAway: the control store does not answer, and nothing was changed.
	ErrAway = errors.New("the control store does not answer: changes wait until more than half of its voters do")
	// ErrUnheard: the control store was restored or rebuilt, and who may hold something of the journal has not been
	// heard yet, so nobody may take it over.
	ErrUnheard = errors.New("the control store was restored, and not every store of the cluster has answered yet")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("control store: closed")
)

// UncertainError is a change of a journal key whose outcome is not known. It matches ErrUncertain. Giving it
// to Store.Settle repeats the very same transaction, under the same change ID, until the outcome is known:
// that is the only proof R3 accepts, since a key that merely contains the change proves nothing.
type UncertainError struct {
	Journal  ident.JournalID
	ChangeID string
	Cause    error
	pending  journalChange
}

func (e *UncertainError) Error() string {
	return fmt.Sprintf("change %s of journal %s: %v: %v", e.ChangeID, e.Journal, ErrUncertain, e.Cause)
}

// Is makes errors.Is(err, ErrUncertain) true.
func (e *UncertainError) Is(target error) bool { return target == ErrUncertain }

// Unwrap gives what the control store's client said.
func (e *UncertainError) Unwrap() error { return e.Cause }

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}
