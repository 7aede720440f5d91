package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
)

// TestFollowGoesOn: a stream that is cut off is asked for again, until an answer says that this is of no use, or nobody
// has answered for a while.
func TestFollowGoesOn(t *testing.T) {
	cut := connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("protocol error: incomplete envelope: %w", io.ErrUnexpectedEOF))
	away := connect.NewError(connect.CodeUnavailable, errors.New("no endpoint can be reached"))
	forbidden := connect.NewError(connect.CodeUnauthenticated, errors.New("revoked"))
	type answer struct {
		heard bool
		err   error
	}
	for _, c := range []struct {
		what    string
		answers []answer // the last one again and again
		want    error
		streams int
		lost    int
	}{
		{"cut twice, then forbidden", []answer{{true, cut}, {false, away}, {true, nil}, {false, forbidden}}, forbidden, 4, 2},
		{"never there", []answer{{false, away}}, away, 1, 0},
		{"gone for good", []answer{{true, cut}, {false, away}}, away, 5, 1},
		{"a request that makes no sense", []answer{{false, connect.NewError(connect.CodeInvalidArgument, errors.New("bad"))}}, nil, 1, 0},
		{"output that is gone", []answer{{true, printError{io.ErrClosedPipe}}}, io.ErrClosedPipe, 1, 0},
	} {
		var clock time.Time
		streams, lost := 0, 0
		f := follower{patience: 3 * time.Second, now: func() time.Time { return clock }, lost: func(error) { lost++ }}
		err := f.run(context.Background(), func() (bool, error) {
			a := c.answers[min(streams, len(c.answers)-1)]
			streams++
			clock = clock.Add(time.Second)
			return a.heard, a.err
		})
		if err == nil || c.want != nil && !errors.Is(err, c.want) || streams != c.streams || lost != c.lost {
			t.Errorf("%s: %v after %d streams, %d losses told; want %v, %d, %d", c.what, err, streams, lost, c.want, c.streams, c.lost)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := follower{patience: time.Hour, pause: time.Hour, now: time.Now, lost: func(error) { cancel() }}
	if err := f.run(ctx, func() (bool, error) { return true, away }); !errors.Is(err, context.Canceled) {
		t.Errorf("told to end: %v", err)
	}
}

func TestChanges(t *testing.T) {
	for _, c := range []struct{ before, after, want string }{
		{``, `{"a":1}`, ""}, // made
		{`{"a":1}`, ``, ""}, // gone
		{`{"a":1,"b":"x"}`, `{"a":2,"b":"x"}`, "a 1 to 2"},
		{`{"a":1,"b":"x"}`, `{"b":"y","c":true}`, "a 1 to none, b x to y, c none to true"},
		{`{"a":1}`, `{"a":1}`, ""},
		{`null`, `{"a":1}`, ""},
		{`[1]`, `[2]`, ""},
	} {
		if got := changes(c.before, c.after); got != c.want {
			t.Errorf("%s to %s: %q, want %q", c.before, c.after, got, c.want)
		}
	}
	if got := changes(`{"a":"`+strings.Repeat("é", 100)+`"}`, `{"a":1}`); len(got) > changeMax+20 || !strings.HasSuffix(got, "... to 1") || strings.ToValidUTF8(got, "?") != got {
		t.Errorf("a long value: %q", got)
	}
}
