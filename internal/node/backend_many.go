package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// CreateVolumes implements api.Volumes.
func (b *backend) CreateVolumes(ctx context.Context, req *dozov1.CreateVolumesRequest, progress func(*dozov1.CreateVolumesResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	like, sites, err := b.newVolume(c, req.Like)
	if err != nil {
		return err
	}
	for _, name := range req.Names {
		if _, taken := c.VolumeByName(like.Tenant, name); taken {
			return fmt.Errorf("volume %s/%s: %w", like.Tenant, name, control.ErrExists)
		}
	}
	r := &dozov1.CreateVolumesResponse{Total: uint32(len(req.Names))}
	return atOnce(slices.Collect(slices.Chunk(req.Names, atATime(like.Hosts))), func(names []string) ([]control.VolumeSpec, error) {
		list := make([]control.VolumeSpec, len(names))
		for i, name := range names {
			list[i] = like
			list[i].ID, list[i].Name = ident.NewJournalID(), name // an ID of ours: it is known whose the volume is
		}
		return b.patiently(ctx, func() ([]control.VolumeSpec, error) { return c.CreateVolumes(ctx, list, sites) })
	}, func(list []control.VolumeSpec) error {
		r.Made += uint32(len(list))
		r.Volumes = b.describeAll(list)
		return progress(r)
	})
}

// manyAtOnce is how many transactions of a call are under way: most of the time of one is waiting.
const manyAtOnce = 4

// atOnce does the parts, several at a time, and reports each that is done, also those that are under way when another fails. It
// begins none after the first error, which it gives.
func atOnce[P any](parts []P, do func(P) ([]control.VolumeSpec, error), done func([]control.VolumeSpec) error) error {
	type result struct {
		list []control.VolumeSpec
		err  error
	}
	results := make(chan result)
	var first error
	running := 0
	for len(parts) > 0 && first == nil || running > 0 {
		for len(parts) > 0 && first == nil && running < manyAtOnce {
			part := parts[0]
			parts = parts[1:]
			running++
			go func() {
				list, err := do(part)
				results <- result{list, err}
			}()
		}
		r := <-results
		running--
		if r.err == nil {
			r.err = done(r.list)
		}
		if first == nil {
			first = r.err
		}
	}
	return first
}

// manyPatience is how long a call for many volumes waits for a control store that does not answer: thousands are not left half
// done for a change of its leader.
const manyPatience = time.Minute

// patiently tries again while the control store does not answer; f has to be such that doing it twice is doing it once.
func (b *backend) patiently(ctx context.Context, f func() ([]control.VolumeSpec, error)) (list []control.VolumeSpec, err error) {
	ctx, cancel := context.WithTimeout(ctx, manyPatience)
	defer cancel()
	err = insist(ctx, b.n.log, "many volumes", func() (err error) {
		list, err = f()
		return err
	})
	return list, err
}

// hostsFew is up to how many hosts volumes may name to be made several in a transaction: each host is one of its conditions.
const hostsFew = 16

func atATime(hosts []string) int {
	if len(hosts) > hostsFew {
		return 1
	}
	return control.VolumesPerTxn
}

func (b *backend) describeAll(list []control.VolumeSpec) []*dozov1.Volume {
	out := make([]*dozov1.Volume, len(list))
	for i, v := range list {
		out[i] = b.describe(v, nil)
	}
	return out
}

// DeleteVolumes implements api.Volumes. With force they are deleted first, as DeleteVolume does with one.
func (b *backend) DeleteVolumes(ctx context.Context, req *dozov1.DeleteVolumesRequest, progress func(*dozov1.DeleteVolumesResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	var ids []ident.JournalID
	named := map[ident.JournalID]control.VolumeSpec{}
	for _, name := range req.Volumes {
		v, err := b.volume(name, req.Tenant)
		if req.IfExists && (errors.Is(err, control.ErrNotFound) || err == nil && v.Deleted != nil) {
			continue
		}
		if err != nil {
			return err
		}
		if _, twice := named[v.ID]; twice {
			return fmt.Errorf("volume %s is named twice, by its name and by its ID: %w", v.Name, control.ErrInvalid)
		}
		named[v.ID] = v
		ids = append(ids, v.ID)
	}
	sessions := &lookedAt{b: b}
	for _, id := range ids {
		if err := sessions.deletable(ctx, req, named[id], named[id]); err != nil {
			return err
		}
	}
	r := &dozov1.DeleteVolumesResponse{Total: uint32(len(ids))}
	if err := progress(r); err != nil { // how many there are, be it none
		return err
	}
	err = atOnce(slices.Collect(slices.Chunk(ids, control.DeletionsPerTxn)), func(some []ident.JournalID) ([]control.VolumeSpec, error) {
		sessions.again()
		tries := 0
		return b.patiently(ctx, func() ([]control.VolumeSpec, error) {
			var left []ident.JournalID
			var done []control.VolumeSpec
			tries++
			for _, id := range some {
				if _, ok := c.Volume(id); ok || tries == 1 {
					left = append(left, id)
				} else { // deleted by an attempt whose outcome was not known, and forgotten
					v, now := named[id], time.Now().UTC()
					v.Deleted = &now
					done = append(done, v)
				}
			}
			list, err := c.DeleteVolumes(ctx, left, func(v control.VolumeSpec) error { return sessions.deletable(ctx, req, v, named[v.ID]) })
			return append(list, done...), err
		})
	}, func(list []control.VolumeSpec) error {
		r.Deleted += uint32(len(list))
		r.Volumes = b.describeAll(list)
		return progress(r)
	})
	if err != nil {
		return err
	}
	if req.Force {
		b.awaitSessionsEnded(ctx, sessionsAtVolumes(ids...))
	}
	return nil
}

const (
	// lookedAtFor is how long the sessions that all access servers have told are good enough for another transaction. Asking
	// them is a connection to each; and one that begins right after it was told is ended, however short the time between.
	lookedAtFor = time.Second
	// unheardPatience is how long a node is asked again that does not tell its sessions and that the control store hears
	// of: one that is busy must not end the deletion of thousands.
	unheardPatience = 20 * time.Second
)

// lookedAt is the sessions of all access servers as they were a moment ago.
type lookedAt struct {
	b  *backend
	mu struct {
		sync.Mutex
		at      time.Time // zero: not yet
		open    map[string][]*dozov1.Session
		unheard []string
	}
}

// again lets the sessions be looked at anew if that was not just now.
func (l *lookedAt) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.mu.at) > lookedAtFor {
		l.mu.at = time.Time{}
	}
}

// deletable says why v, which was named when it was as in was, is not deleted.
func (l *lookedAt) deletable(ctx context.Context, req *dozov1.DeleteVolumesRequest, v, was control.VolumeSpec) error {
	if v.Name != was.Name {
		return fmt.Errorf("volume %s was renamed to %s meanwhile: %w", was.Name, v.Name, control.ErrInUse)
	}
	if req.Force {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.at.IsZero() {
		if err := l.lookLocked(ctx); err != nil {
			return err
		}
	}
	return deletable(v, l.mu.open[v.ID.String()], l.mu.unheard)
}

func (l *lookedAt) lookLocked(ctx context.Context) error {
	for until := time.Now().Add(unheardPatience); ; {
		sessions, unheard, err := l.b.ListSessions(ctx, &dozov1.ListSessionsRequest{})
		if err != nil {
			return err
		}
		hopeful := slices.ContainsFunc(unheard, func(name string) bool { return l.b.n.control().Alive(ident.NodeName(name)) })
		if hopeful && time.Now().Before(until) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(waitEvery):
				continue
			}
		}
		l.mu.at, l.mu.open, l.mu.unheard = time.Now(), map[string][]*dozov1.Session{}, unheard
		for _, s := range sessions {
			l.mu.open[s.VolumeId] = append(l.mu.open[s.VolumeId], s)
		}
		return nil
	}
}
