package main

import (
	"context"
	"errors"
	"io/fs"

	"connectrpc.com/connect"

	"dozo/internal/api"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/guest"
	"dozo/internal/initiator"
	"dozo/internal/initiator/bench"
	"dozo/internal/lab"
	"dozo/internal/lab/router"
	"dozo/internal/up"
)

// Exit codes: part of the interface of scripts, never changed.
const (
	exitOK           = 0
	exitFailed       = 1   // it was tried and went wrong
	exitUsage        = 2   // the command or what it asks for makes no sense
	exitNotFound     = 3   // what it speaks of is not there
	exitConflict     = 4   // exists already, is in use, was changed by somebody else, or refused as it destroys something
	exitUnreachable  = 5   // no node could be asked, or it can not answer now
	exitUnauthorised = 6   // not authenticated, or not permitted
	exitTimeout      = 7   // what was waited for did not happen in time
	exitUnhealthy    = 8   // dozo status --check: there are problems
	exitInterrupted  = 130 // by a signal
)

// exitHelp stands in the help of the root command.
const exitHelp = `Exit codes:
  0    done
  1    failed
  2    wrong usage, or a request that makes no sense
  3    not found
  4    conflict: exists already, in use, changed by somebody else, or refused because it would destroy something
  5    no node can be reached, or the cluster can not answer now
  6    not authenticated or not permitted
  7    timed out
  8    not healthy (dozo status --check)
  130  interrupted`

// usageError is wrong usage found by a command itself.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitError is an outcome that is no error to be printed.
type exitError struct{ code int }

func (e exitError) Error() string { return "" }

// exitTable maps connect's codes; what is not there is exitFailed.
var exitTable = map[connect.Code]int{
	connect.CodeInvalidArgument:    exitUsage,
	connect.CodeOutOfRange:         exitUsage,
	connect.CodeNotFound:           exitNotFound,
	connect.CodeAlreadyExists:      exitConflict,
	connect.CodeFailedPrecondition: exitConflict,
	connect.CodeAborted:            exitConflict,
	connect.CodeUnavailable:        exitUnreachable,
	connect.CodeUnauthenticated:    exitUnauthorised,
	connect.CodePermissionDenied:   exitUnauthorised,
	connect.CodeDeadlineExceeded:   exitTimeout,
	connect.CodeCanceled:           exitInterrupted,
}

// exitCode says how the process ends after err.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[bench.UsageError](err); ok {
		return exitUsage
	}
	if le, ok := errors.AsType[*initiator.LoginError](err); ok && le.NoTarget() {
		return exitNotFound
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok && !errors.Is(err, api.ErrUnreachable) {
		if code, ok := exitTable[ce.Code()]; ok {
			return code
		}
		return exitFailed
	}
	for _, c := range []struct {
		is   error
		code int
	}{
		{api.ErrUnreachable, exitUnreachable}, {api.ErrNoContext, exitUnreachable},
		{lab.ErrUsage, exitUsage}, {router.ErrSetting, exitUsage}, {lab.ErrExists, exitConflict}, {lab.ErrNoRouter, exitUnreachable},
		{guest.ErrUsage, exitUsage}, {guest.ErrNoImage, exitNotFound}, {guest.ErrTool, exitNotFound}, {guest.ErrTimeout, exitTimeout},
		{lab.ErrNoLab, exitNotFound}, {lab.ErrRoot, exitUnauthorised},
		{up.ErrShape, exitUsage}, {up.ErrOtherShape, exitConflict}, {up.ErrNoSystem, exitNotFound},
		{up.ErrVoterRuns, exitConflict}, {control.ErrInUse, exitConflict}, {control.ErrExists, exitConflict}, {control.ErrInvalid, exitUsage},
		{initiator.ErrAuthentication, exitUnauthorised}, {core.ErrNotSegment, exitUsage},
		{context.DeadlineExceeded, exitTimeout}, {context.Canceled, exitInterrupted},
		{fs.ErrNotExist, exitNotFound}, {fs.ErrPermission, exitUnauthorised},
	} {
		if errors.Is(err, c.is) {
			return c.code
		}
	}
	if _, ok := errors.AsType[*up.RunningError](err); ok {
		return exitConflict
	}
	if _, ok := errors.AsType[*up.PortError](err); ok {
		return exitConflict
	}
	return exitFailed
}

// message is what a person reads of an error: connect puts the code before the text, which says it already.
func message(err error) string {
	if errors.Is(err, api.ErrUnreachable) {
		return err.Error()
	}
	text := err.Error()
	if ce, ok := errors.AsType[*connect.Error](err); ok && ce.Message() != "" {
		text = ce.Message()
	}
	if text == context.DeadlineExceeded.Error() { // nobody has said what was waited for
		return "it did not happen in time; what was begun may go on: see dozo status"
	}
	return text
}
