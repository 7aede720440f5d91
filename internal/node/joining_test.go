package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
)

// A node that starts asks a control store again that does not answer; a refusal ends it, and so does a stop.
func TestInsist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []error{fmt.Errorf("1: %w", control.ErrAway), fmt.Errorf("2: %w", control.ErrUncertain), control.ErrAway, nil}
		began := time.Now()
		err := insist(t.Context(), slog.New(slog.DiscardHandler), "try", func() error {
			err := answers[0]
			answers = answers[1:]
			return err
		})
		if took := time.Since(began); err != nil || len(answers) != 0 || took != 3*insistEvery {
			t.Errorf("after %v: %v, %d answers are left", took, err, len(answers))
		}
		asked := 0
		err = insist(t.Context(), slog.New(slog.DiscardHandler), "try", func() error { asked++; return control.ErrConflict })
		if !errors.Is(err, control.ErrConflict) || asked != 1 {
			t.Errorf("refused: asked %d times, %v", asked, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*insistEvery+insistEvery/2)
		defer cancel()
		asked = 0
		err = insist(ctx, slog.New(slog.DiscardHandler), "try", func() error { asked++; return control.ErrAway })
		if !errors.Is(err, control.ErrAway) || asked != 11 {
			t.Errorf("stopped: asked %d times, %v", asked, err)
		}
	})
}
