package core

import (
	"context"

	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Limits of a push, ours: chunks fill a frame well, and a few of them under way hide the round trip.
const (
	pushChunk = 1 << 20
	pushAhead = 4
)

// Push implements journal.Store: bytes [From, To) of a replica here are appended to the replica at Dest, in
// chunks of whole records. They are verified before they are sent, so that what is bad here is found here.
func (s *Store) Push(ctx context.Context, m *wire.Push) (reply wire.AppendReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	r := s.replica(m.Segment)
	if r == nil {
		return reply, absent(m.Segment)
	}
	if err := s.admit(ctx, r.j, m.Epoch); err != nil {
		return reply, err
	}
	if end := r.end.Load(); m.To > end || m.From > m.To {
		return reply, wire.Errorf(wire.CodeGap, "push of [%d, %d) of %s, which ends at %d", m.From, m.To, m.Segment, end)
	}
	if s.opts.Peers == nil {
		return reply, wire.Errorf(wire.CodeUnreached, "store %s knows no others", s.id)
	}
	dest, err := s.opts.Peers(m.Dest)
	if err != nil {
		return reply, err
	}
	p := pushing{s: s, r: r, m: m, dest: dest, acks: make(chan pushAck, pushAhead)}
	return p.run(ctx)
}

type pushAck struct {
	reply wire.AppendReply
	err   error
}

// pushing is one push under way.
type pushing struct {
	s    *Store
	r    *replica
	m    *wire.Push
	dest journal.Store
	acks chan pushAck
	wait int // appends whose answers are out
	last wire.AppendReply
}

func (p *pushing) run(ctx context.Context) (wire.AppendReply, error) {
	var err error
	at := p.m.From
	// An empty push asks where the other one is.
	for first := true; err == nil && (at < p.m.To || first); first = false {
		if p.wait == pushAhead {
			if err = p.ack(ctx); err != nil {
				break
			}
		}
		var n uint32
		if n, err = p.send(at); err == nil {
			at += n
		}
	}
	for p.wait > 0 {
		// Also after an error: the answers that are out refer to our buffers, which they give back.
		e := p.ack(ctx)
		if err == nil {
			err = e
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return wire.AppendReply{}, answer("push", err)
	}
	return p.last, nil
}

func (p *pushing) ack(ctx context.Context) error {
	select {
	case a := <-p.acks:
		p.wait--
		if a.err == nil && a.reply.End >= p.last.End {
			p.last = a.reply
		}
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send appends one chunk of whole records from at on and gives its length.
func (p *pushing) send(at uint32) (uint32, error) {
	length := min(uint32(pushChunk), p.m.To-at)
	for {
		raw, err := p.s.readRaw(p.r, at, length)
		if err != nil {
			return 0, err
		}
		n, err := wholeRecords(p.r, at, raw.Data)
		if err != nil {
			releaseReply(raw)
			return 0, p.s.foundCorrupt(p.r, at+uint32(n), err)
		}
		if n == 0 && length > 0 {
			releaseReply(raw)
			if most := min(uint32(journal.RecordSize(journal.RecordBodyMax)+journal.SegmentHeaderSize), p.m.To-at); length < most {
				length = most // a record larger than a chunk
				continue
			}
			return 0, wire.Errorf(wire.CodeBadRequest, "push of %s up to %d, within a record", p.r.id, p.m.To)
		}
		a := &wire.Append{Epoch: p.m.Epoch, Segment: p.r.id, Offset: at, Commit: p.m.Commit, Stable: p.m.Stable}
		if n > 0 {
			a.Data = [][]byte{raw.Data[:n]}
		}
		p.wait++
		acks := p.acks // buffered for all that can be out: done never waits
		p.dest.Append(a, func(reply wire.AppendReply, err error) {
			releaseReply(raw)
			acks <- pushAck{reply, err}
		})
		return uint32(n), nil
	}
}

func releaseReply(r wire.ReadReply) {
	if r.Release != nil {
		r.Release()
	}
}

// wholeRecords verifies headers and bodies and gives the bytes of whole records, the segment header counted as
// one. The chain is the receiver's to verify.
func wholeRecords(r *replica, at uint32, b []byte) (n int, err error) {
	if at == 0 {
		if len(b) < journal.SegmentHeaderSize {
			return 0, nil
		}
		if _, err := journal.DecodeSegmentHeader(b); err != nil {
			return 0, err
		}
		n = journal.SegmentHeaderSize
	}
	for {
		rest := b[n:]
		if len(rest) < journal.RecordHeaderSize {
			return n, nil
		}
		head, err := journal.HeadLen(rest)
		if err != nil {
			return n, err
		}
		var rec journal.Record
		if len(rest) < head {
			return n, nil
		}
		if err := rec.Decode(rest); err != nil {
			return n, err
		}
		size := journal.RecordSize(rec.StoredLen)
		if len(rest) < size {
			return n, nil
		}
		if err := rec.VerifyBody(rest[:size]); err != nil {
			return n, err
		}
		n += size
	}
}
