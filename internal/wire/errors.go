package wire

import (
	"fmt"

	"dozo/internal/ident"
)

// Code classifies what went wrong, so that the other side can branch on it. The numbers are part of the wire
// format (docs/wire.md).
type Code uint16

// Codes of an Error. 0 is success and never sent as an error.
const (
	CodeFenced     Code = 1  // the sender's epoch is older than the receiver's fence
	CodeConflict   Code = 2  // an equal epoch of another lineage, or a replica opened with another header
	CodeNoSpace    Code = 3  // the disk is full
	CodeIO         Code = 4  // the disk failed; the store takes no more appends
	CodeCorrupt    Code = 5  // a checksum did not match
	CodeAbsent     Code = 6  // no such journal, segment or store here
	CodeGap        Code = 7  // an append or a seal behind the replica's end
	CodeMismatch   Code = 8  // bytes that differ from those there, or a broken hash chain
	CodeSealed     Code = 9  // an append to a sealed replica
	CodeFork       Code = 10 // the tail may not be discarded (R14)
	CodeNotOwner   Code = 11 // the node does not own the journal
	CodeStale      Code = 12 // a late command (R9): never run
	CodeBusy       Code = 13 // cannot serve now; ask again
	CodeBadRequest Code = 14 // malformed or out of range
	CodeShutdown   Code = 15 // the process is ending
	CodeUnreached  Code = 16 // no connection; whether the request ran is not known
	CodeVersion    Code = 17 // a version that the receiver does not speak
	CodeDenied     Code = 18 // reservation, write protection or access list
	CodeMiscompare Code = 19 // COMPARE AND WRITE found other bytes
	CodeUnproven   Code = 20 // served only with R11's errors
	CodeProtected  Code = 21 // the unit is write protected by a mode parameter
	CodeSanitizing Code = 22 // a sanitize operation is under way, or the last one failed
)

var codeNames = [...]string{"ok", "fenced", "conflict", "no space", "I/O error", "corrupt", "absent", "gap", "mismatch",
	"sealed", "fork", "not owner", "stale command", "busy", "bad request", "shutting down", "unreached", "version",
	"denied", "miscompare", "unproven", "write protected", "sanitizing"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// Error is an answer that says no. errors.Is matches two Errors by their Code alone, so
// errors.Is(err, ErrFenced) asks for the class.
type Error struct {
	Code   Code
	Epoch  ident.Epoch // the receiver's fence, with CodeFenced and CodeConflict; the owner's epoch with CodeNotOwner
	Detail string      // for people: what was tried on what, and why not
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Detail
}

// Is compares codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Sentinels, one a code, for errors.Is.
var (
	ErrFenced     = &Error{Code: CodeFenced}
	ErrConflict   = &Error{Code: CodeConflict}
	ErrNoSpace    = &Error{Code: CodeNoSpace}
	ErrIO         = &Error{Code: CodeIO}
	ErrCorrupt    = &Error{Code: CodeCorrupt}
	ErrAbsent     = &Error{Code: CodeAbsent}
	ErrGap        = &Error{Code: CodeGap}
	ErrMismatch   = &Error{Code: CodeMismatch}
	ErrSealed     = &Error{Code: CodeSealed}
	ErrFork       = &Error{Code: CodeFork}
	ErrNotOwner   = &Error{Code: CodeNotOwner}
	ErrStale      = &Error{Code: CodeStale}
	ErrBusy       = &Error{Code: CodeBusy}
	ErrBadRequest = &Error{Code: CodeBadRequest}
	ErrShutdown   = &Error{Code: CodeShutdown}
	ErrUnreached  = &Error{Code: CodeUnreached}
	ErrVersion    = &Error{Code: CodeVersion}
	ErrDenied     = &Error{Code: CodeDenied}
	ErrMiscompare = &Error{Code: CodeMiscompare}
	ErrUnproven   = &Error{Code: CodeUnproven}
	ErrProtected  = &Error{Code: CodeProtected}
	ErrSanitizing = &Error{Code: CodeSanitizing}
)

// Errorf makes an Error of a code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}
