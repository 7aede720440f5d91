package node

import (
	"fmt"
	"strings"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

// How long a wait for a node that hands its volumes over goes on. Guesses: a node that is started anew is there again in seconds, and a
// hand-over that waits for a copy or for other sites takes minutes at most.
const (
	drainStuck = 30 * time.Second // without an access server of the site that could take them
	drainStill = 5 * time.Minute  // without a volume fewer
)

// drainWatch ends waits that would last for ever.
type drainWatch struct {
	least uint32    // volumes that were left
	since time.Time // then
	stuck time.Time // since when nobody can take them
}

// see looks at how far it is. left names some of the volumes.
func (w *drainWatch) see(now time.Time, node string, r *dozov1.DrainNodeResponse, left func() []string) error {
	if w.since.IsZero() || r.Volumes < w.least {
		w.least, w.since = r.Volumes, now
	}
	if !r.Stuck {
		w.stuck = time.Time{}
	} else if w.stuck.IsZero() {
		w.stuck = now
	}
	which := func() string {
		list := left()
		if int(r.Volumes) > len(list) {
			list = append(list, "...")
		}
		return fmt.Sprintf("%d volumes (%s)", r.Volumes, strings.Join(list, ", "))
	}
	const still = "it stays draining until dozo node undrain"
	switch {
	case r.Done:
		return nil
	case r.Stuck && now.Sub(w.stuck) >= drainStuck:
		return fmt.Errorf("node %s owns %s, and no other access server of its site is up and not draining: start one, or move them to another site with dozo volume move; %s: %w",
			node, which(), still, api.ErrTooFew)
	case now.Sub(w.since) >= drainStill:
		return fmt.Errorf("node %s still owns %s, none was handed over for %v; dozo volume show says what a volume waits for; %s: %w", node, which(), drainStill, still, api.ErrTimedOut)
	}
	return nil
}
