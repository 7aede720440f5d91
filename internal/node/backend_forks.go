package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/access"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// forkStep is how much of a volume is looked at, read or written at once, in blocks: 1 MiB.
const forkStep = 256

// clonePatience bounds how long a command of a clone waits for the new volume's owner.
const clonePatience = 30 * time.Second

// cutsOf asks a volume's owner which forks there may be.
func (b *backend) cutsOf(ctx context.Context, v control.VolumeSpec) (wire.JournalStatus, error) {
	all, _ := b.ownerStatus(ctx, v.ID)
	st, ok := all[v.ID]
	if !ok || st.Recovering > 0 {
		return st, fmt.Errorf("volume %s is not served, so what has been left behind can not be told: %w", v.Name, api.ErrUnavailable)
	}
	return st, nil
}

// forksOf lists the forks of a volume without what is in them.
func (b *backend) forksOf(ctx context.Context, v control.VolumeSpec, cuts []wire.Cut) (out []*dozov1.Fork) {
	c := b.n.control()
	byCut := map[ident.Epoch]*dozov1.Fork{}
	var unheard []string
	for _, x := range c.Nodes() {
		for _, s := range x.Stores {
			list, err := b.inventoryOf(ctx, s.ID, v.ID)
			if err != nil {
				unheard = append(unheard, string(x.Name))
				continue
			}
			for i := range list {
				r := &list[i]
				if r.State != wire.ReplicaFork {
					continue
				}
				cut, ok := access.LeftBy(cuts, r)
				if !ok || cut.Forgotten {
					continue
				}
				f := byCut[cut.At.Epoch]
				if f == nil {
					f = &dozov1.Fork{VolumeId: v.ID.String(), Tenant: v.Tenant, Volume: v.Name, Id: cut.At.Epoch.String(), BaseSeq: uint64(cut.Before.Seq)}
					byCut[cut.At.Epoch] = f
					out = append(out, f)
				}
				if uint64(r.Last.Seq) > f.LastSeq {
					f.LastSeq, f.Epoch = uint64(r.Last.Seq), r.Last.Epoch.String()
				}
				f.Replicas = append(f.Replicas, &dozov1.ForkReplica{Segment: r.Segment.Original().String(), Store: s.ID.String(), Node: string(x.Name), Site: b.siteName(x.Site),
					LastSeq: uint64(r.Last.Seq), SizeBytes: uint64(r.End)})
			}
		}
	}
	slices.Sort(unheard)
	unheard = slices.Compact(unheard)
	for _, f := range out {
		f.Unheard = unheard
	}
	slices.SortFunc(out, func(a, b *dozov1.Fork) int { return cmp.Compare(a.BaseSeq, b.BaseSeq) })
	return out
}

// inventoryOf lists what a store has of a journal.
func (b *backend) inventoryOf(ctx context.Context, store ident.StoreID, id ident.JournalID) (list []wire.Replica, err error) {
	st, ok := b.n.Store(store)
	if !ok || !b.n.Up(store) {
		return nil, api.ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, nodeCallTimeout)
	defer cancel()
	for m := (&wire.Inventory{Journal: id}); ; {
		r, err := st.Inventory(ctx, m)
		if err != nil {
			return nil, err
		}
		list = append(list, r.Replicas...)
		if !r.More || len(r.Replicas) == 0 {
			return list, nil
		}
		m.After = r.Replicas[len(r.Replicas)-1].Segment
	}
}

// count fills in what is in a fork.
func (b *backend) count(ctx context.Context, v control.VolumeSpec, cuts []wire.Cut, f *dozov1.Fork) error {
	p, err := b.past(ctx, v, cuts, f, access.PastFork)
	if err != nil {
		return err
	}
	defer p.Close()
	writes, bytes, first, last, err := p.Sum()
	if err != nil {
		return err
	}
	f.Writes, f.SizeBytes = writes, bytes
	if !first.IsZero() {
		f.FirstTime, f.LastTime = timestamppb.New(first), timestamppb.New(last)
	}
	return nil
}

// past opens a history of a fork's volume.
func (b *backend) past(ctx context.Context, v control.VolumeSpec, cuts []wire.Cut, f *dozov1.Fork, kind access.PastKind) (*access.Past, error) {
	srv, err := b.accessServer()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(cuts, func(c wire.Cut) bool { return c.At.Epoch.String() == f.Id })
	p, err := srv.Past(ctx, v.ID, cuts, cuts[i], kind)
	if err != nil {
		return nil, fmt.Errorf("fork %s of volume %s: %w", f.Id, v.Name, storeError(err))
	}
	return p, nil
}

// storeError says what a store's refusal is to the API's callers.
func storeError(err error) error {
	var e *wire.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%w: %w", err, api.ErrUnavailable)
	}
	return err
}

// fork finds a fork by its ID, its number alone, or as the only one.
func (b *backend) fork(ctx context.Context, ref, tenant, id string) (v control.VolumeSpec, cuts []wire.Cut, f *dozov1.Fork, err error) {
	if v, err = b.volume(ref, tenant); err != nil {
		return v, nil, nil, err
	}
	st, err := b.cutsOf(ctx, v)
	if err != nil {
		return v, nil, nil, err
	}
	list := b.forksOf(ctx, v, st.Cuts)
	if id == "" && len(list) > 1 {
		return v, nil, nil, fmt.Errorf("volume %s has %d forks, dozo fork list shows them: say which: %w", v.Name, len(list), control.ErrInvalid)
	}
	f, err = pickFork(v.Name, list, id)
	return v, st.Cuts, f, err
}

// pickFork finds the fork that is meant. The number alone may stand for forks of two lineages: then it names none of them.
func pickFork(volume string, list []*dozov1.Fork, id string) (found *dozov1.Fork, err error) {
	for _, f := range list {
		number, _, _ := cutString(f.Id)
		switch {
		case id == "" || f.Id == id:
			return f, nil
		case number != id:
		case found != nil:
			return nil, fmt.Errorf("volume %s has forks %s and %s: give the whole name: %w", volume, found.Id, f.Id, control.ErrInvalid)
		default:
			found = f
		}
	}
	switch {
	case found != nil:
		return found, nil
	case id == "":
		return nil, fmt.Errorf("volume %s has no fork: %w", volume, control.ErrNotFound)
	}
	return nil, fmt.Errorf("volume %s has no fork %s: %w", volume, id, control.ErrNotFound)
}

// cutString takes a fork's ID apart.
func cutString(id string) (number, lineage string, ok bool) {
	for i := range id {
		if id[i] == '.' {
			return id[:i], id[i+1:], true
		}
	}
	return id, "", false
}

// ListForks implements api.Forks.
func (b *backend) ListForks(ctx context.Context, req *dozov1.ListForksRequest) (out []*dozov1.Fork, unheard []string, _ error) {
	c, err := b.ctl()
	if err != nil {
		return nil, nil, err
	}
	list := func(v control.VolumeSpec, cuts []wire.Cut) {
		for _, f := range b.forksOf(ctx, v, cuts) {
			if err := b.count(ctx, v, cuts, f); err != nil {
				b.n.log.Warn("what is in a fork can not be counted", "volume", v.Name, "fork", f.Id, "err", err)
			}
			out = append(out, f)
		}
	}
	if req.Volume != "" {
		v, err := b.volume(req.Volume, req.Tenant)
		if err != nil {
			return nil, nil, err
		}
		st, err := b.cutsOf(ctx, v)
		if err != nil {
			return nil, nil, err
		}
		if len(st.Cuts) > 0 {
			list(v, st.Cuts)
		}
		return out, nil, nil
	}
	all, _ := b.ownerStatus(ctx)
	for _, v := range c.Volumes() {
		if req.Tenant != "" && v.Tenant != req.Tenant {
			continue
		}
		st, ok := all[v.ID]
		switch state, _, known := c.Journal(v.ID); {
		case ok && st.Recovering == 0 && len(st.Cuts) > 0:
			list(v, st.Cuts)
		case (!ok || st.Recovering > 0) && known && state.Epoch.Number > 0: // what nobody has ever owned has none
			unheard = append(unheard, v.Tenant+"/"+v.Name)
		}
	}
	return out, unheard, nil
}

// GetFork implements api.Forks.
func (b *backend) GetFork(ctx context.Context, req *dozov1.GetForkRequest) (*dozov1.Fork, error) {
	v, cuts, f, err := b.fork(ctx, req.Volume, req.Tenant, req.Fork)
	if err != nil {
		return nil, err
	}
	return f, b.count(ctx, v, cuts, f)
}

// place is where a block lies; the zero place is a hole.
type place struct {
	segment ident.SegmentID
	record  uint32
	block   uint16
}

func places(list []volume.Piece, dst []place) []place {
	dst = dst[:0]
	for i := range list {
		for n := range list[i].Count {
			if list[i].Hole() {
				dst = append(dst, place{})
			} else {
				dst = append(dst, place{list[i].Segment, list[i].Record, list[i].First + uint16(n)})
			}
		}
	}
	return dst
}

// readAt reads the blocks from first on as they lie in pieces; holes are zeroes.
func readAt(ctx context.Context, p *access.Past, pieces []volume.Piece, first uint64, dst []byte) error {
	clear(dst)
	for i := range pieces {
		if !pieces[i].Hole() {
			at := (pieces[i].Block - first) * journal.BlockSize
			if err := p.Read(ctx, &pieces[i], dst[at:at+uint64(pieces[i].Count)*journal.BlockSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

// DiffFork implements api.Forks: blocks that lie in one place in both histories are the same; the others are read.
func (b *backend) DiffFork(ctx context.Context, req *dozov1.DiffForkRequest, send func(*dozov1.DiffForkResponse) error) error {
	v, cuts, f, err := b.fork(ctx, req.Volume, req.Tenant, req.Fork)
	if err != nil {
		return err
	}
	fork, err := b.past(ctx, v, cuts, f, access.PastFork)
	if err != nil {
		return err
	}
	defer fork.Close()
	kind := access.PastHead
	if req.Against == "base" {
		kind = access.PastBase
	}
	other, err := b.past(ctx, v, cuts, f, kind)
	if err != nil {
		return err
	}
	defer other.Close()
	blocks := uint64(v.SizeBytes) / journal.BlockSize
	r := &dozov1.DiffForkResponse{SizeBytes: uint64(v.SizeBytes)}
	var one, two []volume.Piece
	var x, y []place
	bufs := [2][]byte{make([]byte, forkStep*journal.BlockSize), make([]byte, forkStep*journal.BlockSize)}
	said := time.Now()
	for at := uint64(0); at < blocks; at += forkStep {
		n := uint32(min(forkStep, blocks-at))
		if one, err = fork.Pieces(at, n, one[:0]); err == nil {
			two, err = other.Pieces(at, n, two[:0])
		}
		if err != nil {
			return storeError(err)
		}
		x, y = places(one, x), places(two, y)
		if !slices.Equal(x, y) {
			if err = readAt(ctx, fork, one, at, bufs[0]); err == nil {
				err = readAt(ctx, other, two, at, bufs[1])
			}
			if err != nil {
				return storeError(err)
			}
			for i := range x {
				from := i * journal.BlockSize
				if x[i] == y[i] || string(bufs[0][from:from+journal.BlockSize]) == string(bufs[1][from:from+journal.BlockSize]) {
					continue
				}
				offset := at*journal.BlockSize + uint64(from)
				r.DifferingBytes += journal.BlockSize
				if k := len(r.Ranges); k > 0 && r.Ranges[k-1].Offset+r.Ranges[k-1].Length == offset {
					r.Ranges[k-1].Length += journal.BlockSize
				} else {
					r.Ranges = append(r.Ranges, &dozov1.ByteRange{Offset: offset, Length: journal.BlockSize})
				}
			}
		}
		r.ComparedBytes = (at + uint64(n)) * journal.BlockSize
		// The last range may go on.
		if k := len(r.Ranges); k > 1024 || k > 1 && time.Since(said) > time.Second {
			said = time.Now()
			last := r.Ranges[k-1]
			m := &dozov1.DiffForkResponse{Ranges: r.Ranges[:k-1], DifferingBytes: r.DifferingBytes, ComparedBytes: r.ComparedBytes, SizeBytes: r.SizeBytes}
			if err := send(m); err != nil {
				return err
			}
			r.Ranges = []*dozov1.ByteRange{last}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	r.Done = true
	return send(r)
}

// content calls put with the runs of a fork that hold data, in order, and with none now and then to say how far it is.
func content(ctx context.Context, p *access.Past, size int64, put func(offset int64, data []byte) error) error {
	blocks := uint64(size) / journal.BlockSize
	var pieces []volume.Piece
	var err error
	buf := make([]byte, forkStep*journal.BlockSize)
	for at := uint64(0); at < blocks; at += forkStep {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := uint32(min(forkStep, blocks-at))
		if pieces, err = p.Pieces(at, n, pieces[:0]); err != nil {
			return storeError(err)
		}
		for i := 0; i < len(pieces); {
			if pieces[i].Hole() {
				i++
				continue
			}
			end := i
			for end < len(pieces) && !pieces[end].Hole() {
				end++
			}
			run := pieces[i:end]
			bytes := (run[len(run)-1].Block + uint64(run[len(run)-1].Count) - run[0].Block) * journal.BlockSize
			if err := readAt(ctx, p, run, run[0].Block, buf[:bytes]); err != nil {
				return storeError(err)
			}
			if err := put(int64(run[0].Block)*journal.BlockSize, buf[:bytes]); err != nil {
				return err
			}
			i = end
		}
		if err := put(int64(at+uint64(n))*journal.BlockSize, nil); err != nil {
			return err
		}
	}
	return nil
}

// ExportFork implements api.Forks.
func (b *backend) ExportFork(ctx context.Context, req *dozov1.ExportForkRequest, send func(*dozov1.ExportForkResponse) error) error {
	v, cuts, f, err := b.fork(ctx, req.Volume, req.Tenant, req.Fork)
	if err != nil {
		return err
	}
	p, err := b.past(ctx, v, cuts, f, access.PastFork)
	if err != nil {
		return err
	}
	defer p.Close()
	said := time.Now()
	err = content(ctx, p, v.SizeBytes, func(offset int64, data []byte) error {
		if data == nil && time.Since(said) < time.Second {
			return nil
		}
		said = time.Now()
		return send(&dozov1.ExportForkResponse{SizeBytes: uint64(v.SizeBytes), Offset: uint64(offset), Data: data})
	})
	if err != nil {
		return err
	}
	return send(&dozov1.ExportForkResponse{Done: true, SizeBytes: uint64(v.SizeBytes), Offset: uint64(v.SizeBytes)})
}

// CloneFork implements api.Forks. Until all of it is there the new volume says what it is to be, and no initiator may use it: whoever
// makes it may die.
func (b *backend) CloneFork(ctx context.Context, req *dozov1.CloneForkRequest, send func(*dozov1.CloneForkResponse) error) error {
	v, cuts, f, err := b.fork(ctx, req.Volume, req.Tenant, req.Fork)
	if err != nil {
		return err
	}
	p, err := b.past(ctx, v, cuts, f, access.PastFork)
	if err != nil {
		return err
	}
	defer p.Close()
	clone, err := b.beginClone(ctx, v, f, req.Name)
	if err != nil {
		return err
	}
	r := &dozov1.CloneForkResponse{SizeBytes: uint64(v.SizeBytes), Id: clone.ID.String(), Name: clone.Name}
	if err = b.copyInto(ctx, clone, p, r, send); err == nil {
		_, err = b.n.control().FinishClone(ctx, clone.ID)
	}
	if err != nil {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if derr := b.dropClone(dctx, clone); derr != nil {
			return fmt.Errorf("%w; volume %s, which has a part of it, could not be deleted: %w", err, clone.Name, derr)
		}
		return err
	}
	r.Done, r.CopiedBytes = true, r.SizeBytes
	return send(r)
}

// beginClone makes the volume that is to become a clone. One that is in its place, and that somebody has begun to make of the same
// fork, goes: should he be at it still, he hears of that with his next write.
func (b *backend) beginClone(ctx context.Context, v control.VolumeSpec, f *dozov1.Fork, name string) (control.VolumeSpec, error) {
	c := b.n.control()
	of := control.CloneOf{Volume: v.ID, Fork: f.Id}
	if old, ok := c.VolumeByName(v.Tenant, name); ok && old.Cloning != nil && *old.Cloning == of {
		if b.maybeCloned(old) {
			return old, fmt.Errorf("volume %s: %s: %w", old.Name, b.cloneReason(old), api.ErrRefused)
		}
		if err := b.dropClone(ctx, old); err != nil {
			return old, err
		}
	}
	state, _, _ := c.Journal(v.ID)
	return c.CreateVolume(ctx, control.VolumeSpec{Name: name, Tenant: v.Tenant, SizeBytes: v.SizeBytes, BlockSize: v.BlockSize, Sites: v.Sites, AtSite: v.AtSite,
		Durability: v.Durability, Partition: v.Partition, Ownership: v.Ownership, ALUARemote: v.ALUARemote, Redirect: v.Redirect, Ack: v.Ack,
		Labels: v.Labels, Hosts: v.Hosts, Cloning: &of}, state.Sites)
}

// maybeCloned reports that a clone which is not complete by what the control store says may have been completed all the same, and used
// since: the control store was restored from a backup.
func (b *backend) maybeCloned(v control.VolumeSpec) bool {
	r, ok := b.n.control().Restoration()
	return ok && v.Created.Before(r.Time)
}

// cloneReason says what there is to know of a clone that is not complete.
func (b *backend) cloneReason(v control.VolumeSpec) string {
	of := fmt.Sprintf("volume %s as its fork %s has it", b.volumeName(v.Cloning.Volume), v.Cloning.Fork)
	if b.maybeCloned(v) {
		return fmt.Sprintf("it was becoming %s when the backup was made from which the control store was restored, and nobody knows whether it was completed after that; if it was, say dozo volume set %s --cloned, else delete it", of, v.Name)
	}
	return fmt.Sprintf("it has a part of %s; if nobody makes it any more, repeat dozo fork clone, or delete it", of)
}

// dropClone deletes a clone, unless it is complete.
func (b *backend) dropClone(ctx context.Context, clone control.VolumeSpec) error {
	_, err := b.n.control().DeleteVolumes(ctx, []ident.JournalID{clone.ID}, func(v control.VolumeSpec) error {
		if v.Cloning == nil {
			return fmt.Errorf("volume %s is complete: %w", v.Name, control.ErrExists)
		}
		return nil
	})
	return err
}

// copyInto writes a fork's content to a new volume and waits until it is stable.
func (b *backend) copyInto(ctx context.Context, clone control.VolumeSpec, p *access.Past, r *dozov1.CloneForkResponse, send func(*dozov1.CloneForkResponse) error) error {
	var vol *access.Volume
	for ok := false; !ok; {
		if vol, ok = b.n.access.Volume(clone.ID); ok {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond): // this node has not heard of it yet
		}
	}
	vol.Open()
	defer vol.Close()
	// A new volume's owner may be at another node, and change: a command that was not done is made again, under another
	// number.
	forwarder, number := rand.Uint64(), uint64(0)
	do := func(set func(op *access.Op)) (err error) {
		for until := time.Now().Add(clonePatience); ; {
			op := access.NewOp()
			set(op)
			number++
			op.Request, op.Stamp = wire.RequestID{Forwarder: forwarder, Number: number}, vol.Stamp()
			done := make(chan error, 1)
			op.Done = func(op *access.Op, err error) {
				done <- err
				op.Release()
			}
			vol.Submit(op)
			if err = <-done; err == nil {
				return nil
			}
			if !errors.Is(err, wire.ErrBusy) && !errors.Is(err, wire.ErrStale) || time.Now().After(until) {
				return fmt.Errorf("write to volume %s: %w", clone.Name, storeError(err))
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	said := time.Now()
	err := content(ctx, p, clone.SizeBytes, func(offset int64, data []byte) error {
		if data == nil {
			if time.Since(said) < time.Second/2 {
				return nil
			}
			said = time.Now()
			r.CopiedBytes = uint64(offset)
			return send(&dozov1.CloneForkResponse{CopiedBytes: r.CopiedBytes, SizeBytes: r.SizeBytes, Id: r.Id, Name: r.Name})
		}
		return do(func(op *access.Op) {
			op.Kind, op.Offset, op.Length = wire.OpWrite, offset, int64(len(data))
			op.Buf = access.NewWriteBuf(offset, len(data))
			copy(op.Buf.Bytes(), data)
		})
	})
	if err != nil {
		return err
	}
	return do(func(op *access.Op) { op.Kind = wire.OpFlush })
}

// DeleteFork implements api.Forks.
func (b *backend) DeleteFork(ctx context.Context, req *dozov1.DeleteForkRequest) (*dozov1.Fork, error) {
	v, cuts, f, err := b.fork(ctx, req.Volume, req.Tenant, req.Fork)
	if err != nil {
		return nil, err
	}
	if err := b.count(ctx, v, cuts, f); err != nil {
		b.n.log.Warn("what is in a fork can not be counted", "volume", v.Name, "fork", f.Id, "err", err)
	}
	number, lineage, _ := cutString(f.Id)
	m := &wire.Bar{Kind: wire.BarForget, Journal: v.ID}
	m.First, _ = strconv.ParseUint(number, 10, 64)
	m.Last, _ = strconv.ParseUint(cmp.Or(lineage, "0"), 16, 32)
	state, _, _ := b.n.control().Journal(v.ID)
	if state.Owner == b.n.cfg.Node && b.n.access != nil {
		_, err = b.n.access.Bar(ctx, m)
	} else if p, ok := b.n.accessPeer(state.Owner); ok {
		_, err = p.Bar(ctx, m)
	} else {
		err = api.ErrUnavailable
	}
	if err != nil {
		return nil, fmt.Errorf("delete fork %s of volume %s at %s: %w", f.Id, v.Name, state.Owner, storeError(err))
	}
	return f, nil
}
