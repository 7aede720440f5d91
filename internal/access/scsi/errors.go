package scsi

import (
	"errors"
	"fmt"
)

// What a Disk's calls fail with. Anything else that a Disk returns is an internal target failure.
var (
	// ErrStale refuses a command whose stamp is too old (protocol rule R9); the initiator retries by itself.
	ErrStale = errors.New("command is stale")
	// ErrBusy asks the initiator to come again: a resource is short or ownership is moving.
	ErrBusy = errors.New("busy")
	// ErrQueueFull is ErrBusy for want of room in a queue.
	ErrQueueFull = errors.New("queue full")
	// ErrNotReady says that the disk can't be reached yet, but will be.
	ErrNotReady = errors.New("not ready")
	// ErrTransition, ErrStandby and ErrUnavailable refuse a command because of the path's access state.
	ErrTransition  = errors.New("access state transition")
	ErrStandby     = errors.New("path is standby")
	ErrUnavailable = errors.New("path is unavailable")
	// ErrGroupsNotSet fails SET TARGET PORT GROUPS: the logical unit could not be handed over.
	ErrGroupsNotSet = errors.New("target port groups not set")
	// ErrNoSpace fails a write for want of space below; it was not done.
	ErrNoSpace = errors.New("no space")
	// ErrWriteProtected refuses a write to a read-only disk.
	ErrWriteProtected = errors.New("write protected")
	// ErrReservationConflict refuses a command because of another initiator's reservation.
	ErrReservationConflict = errors.New("reservation conflict")
	// ErrSoftwareProtected refuses a write because of the mode parameter SWP.
	ErrSoftwareProtected = errors.New("software write protected")
	// ErrSanitizing refuses a command because of a sanitize operation.
	ErrSanitizing = errors.New("sanitize operation")
	// ErrTokenUnknown, ErrTokenCorrupt, ErrTokenExpired, ErrTokenCancelled and ErrTokenDeleted refuse a token: nobody knows it, or not any
	// more; it has other bytes than it was made with; its time is over; what it stands for has changed or can't be vouched for;
	// who used it has ended it. ErrTokenNoRoom refuses to make one.
	ErrTokenUnknown   = errors.New("token unknown")
	ErrTokenCorrupt   = errors.New("token corrupt")
	ErrTokenExpired   = errors.New("token expired")
	ErrTokenCancelled = errors.New("token cancelled")
	ErrTokenDeleted   = errors.New("token deleted")
	ErrTokenNoRoom    = errors.New("too many tokens")
	// ErrAborted ends a command that was aborted below; the transport decides whether anybody hears of it.
	ErrAborted = errors.New("command aborted")
	// ErrOutOfRange is an access past the end of a disk that shrank.
	ErrOutOfRange = errors.New("out of range")
	// ErrForked bars a port whose view of the disk's history is not the one served (protocol rule R11).
	ErrForked = errors.New("history was forked")
	// ErrNotSupported says that this disk doesn't do what was asked.
	ErrNotSupported = errors.New("not supported")
	// ErrInternal is a failure of dozo itself.
	ErrInternal = errors.New("internal failure")
	// ErrTransfer ends a command whose data-out did not arrive as it has to.
	ErrTransfer = errors.New("data transfer failed")
	// ErrMedium is data that can't be read back; a MediumError says where.
	ErrMedium = errors.New("medium error")
	// ErrWriteFailed is a write that could not be stored, for a reason other than space.
	ErrWriteFailed = errors.New("write failed")
)

// MediumError is ErrMedium at a byte offset of the disk.
type MediumError struct {
	Offset int64
	Err    error
}

func (e *MediumError) Error() string { return fmt.Sprintf("medium error at %d: %v", e.Offset, e.Err) }

// Unwrap lets errors.Is find both the kind and the cause.
func (e *MediumError) Unwrap() []error { return []error{ErrMedium, e.Err} }

// outcome is how a command ends: a status, and with CHECK CONDITION a sense.
type outcome struct {
	status Status
	key    SenseKey
	code   Code
}

// outcomes is the one table from errors to SCSI. Order matters where an error wraps several: the first match
// counts.
var outcomes = []struct {
	err error
	outcome
}{
	{ErrStale, outcome{status: StatusBusy}},
	{ErrBusy, outcome{status: StatusBusy}},
	{ErrQueueFull, outcome{status: StatusTaskSetFull}},
	{ErrReservationConflict, outcome{status: StatusReservationConflict}},
	{ErrNotReady, outcome{StatusCheckCondition, NotReady, codeNotReadyBecomingReady}},
	{ErrTransition, outcome{StatusCheckCondition, NotReady, 0x040a}},
	{ErrStandby, outcome{StatusCheckCondition, NotReady, 0x040b}},
	{ErrUnavailable, outcome{StatusCheckCondition, NotReady, 0x040c}},
	{ErrGroupsNotSet, outcome{StatusCheckCondition, HardwareError, codeSetGroupsFailed}},
	// SBC-3 4.7.3.6: the sense of an exhausted thin provisioned unit; initiators pause instead of failing.
	{ErrNoSpace, outcome{StatusCheckCondition, DataProtect, 0x2707}},
	{ErrWriteProtected, outcome{StatusCheckCondition, DataProtect, codeWriteProtected}},
	{ErrSoftwareProtected, outcome{StatusCheckCondition, DataProtect, codeSoftwareProtected}},
	{ErrSanitizing, outcome{StatusCheckCondition, NotReady, codeSanitizeInProgress}},
	{ErrTokenUnknown, outcome{StatusCheckCondition, IllegalRequest, codeTokenUnknown}},
	{ErrTokenCorrupt, outcome{StatusCheckCondition, IllegalRequest, codeTokenCorrupt}},
	{ErrTokenExpired, outcome{StatusCheckCondition, IllegalRequest, codeTokenExpired}},
	{ErrTokenCancelled, outcome{StatusCheckCondition, IllegalRequest, codeTokenCancelled}},
	{ErrTokenDeleted, outcome{StatusCheckCondition, IllegalRequest, codeTokenDeleted}},
	{ErrTokenNoRoom, outcome{StatusCheckCondition, IllegalRequest, codeNoTokenResources}},
	{ErrAborted, outcome{StatusCheckCondition, AbortedCommand, codeNone}},
	{ErrTransfer, outcome{StatusCheckCondition, AbortedCommand, 0x4705}},
	{ErrOutOfRange, outcome{StatusCheckCondition, IllegalRequest, codeLBAOutOfRange}},
	{ErrForked, outcome{StatusCheckCondition, IllegalRequest, codeLUNotSupported}},
	{ErrNotSupported, outcome{StatusCheckCondition, IllegalRequest, codeInvalidOpcode}},
	{ErrMedium, outcome{StatusCheckCondition, MediumErrorKey, 0x1100}},
	{ErrWriteFailed, outcome{StatusCheckCondition, MediumErrorKey, 0x0c00}},
	{ErrInternal, outcome{StatusCheckCondition, HardwareError, codeInternalTargetFailure}},
}

// outcomeOf looks an error up; what is not in the table is an internal target failure.
func outcomeOf(err error) outcome {
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			return o.outcome
		}
	}
	return outcome{StatusCheckCondition, HardwareError, codeInternalTargetFailure}
}
