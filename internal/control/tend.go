package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// A voter whose database has reached its quota has the whole control store refuse what would make it grow, leases too, until somebody takes
// that alarm back, and etcd leaves that to whoever runs it: the alarm outlives what has caused it. And a database never gets smaller by
// itself, what compaction has freed counts in full. So each voter tends its own:
//
//	most of the quota is taken, and most of that is free ──> it is written anew without the free part
//	the alarm was raised for this voter ──> everything but the present is dropped, it is written anew; once there is room the alarm goes
//	the alarm was raised for a voter that is none any more ──> the leader takes it back
//
// Where what there is fills the database, the alarm stays, and dozo control status and dozo status say so.

const (
	tendEvery   = 10 * time.Second
	tendTimeout = 30 * time.Second // for compaction, which waits until all of it is done
	tendSpare   = 32 << 20         // bytes that have to be free on the disk beside the database that is written anew
)

// alarmNoSpace is the one that a voter raises whose database has reached its quota.
const alarmNoSpace = etcdserverpb.AlarmType_NOSPACE

// tend is the goroutine that does that.
func (e *Embedded) tend(log *slog.Logger) {
	life, end := context.WithCancel(context.Background())
	e.wg.Go(func() {
		<-e.done
		end()
	})
	t := time.NewTicker(e.tendEvery)
	defer t.Stop()
	for {
		select {
		case <-life.Done():
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(life, tendTimeout)
		if err := e.tendOnce(ctx, log); err != nil && life.Err() == nil {
			log.Warn("the database of the control store could not be tended", "err", err)
		}
		cancel()
	}
}

func (e *Embedded) tendOnce(ctx context.Context, log *slog.Logger) error {
	srv := e.etcd.Server
	self := uint64(srv.MemberID())
	own := false
	for _, a := range srv.Alarms() {
		switch {
		case a.Alarm != alarmNoSpace: // corruption is nothing to be taken back
		case a.MemberID == self:
			own = true
		case srv.Lead() == self && srv.Cluster().Member(types.ID(a.MemberID)) == nil:
			if err := e.disarm(ctx, a.MemberID); err != nil {
				return err
			}
			log.Info("the control store takes changes again: a voter whose database was full has gone")
		}
	}
	be := srv.Backend()
	if own {
		// Those who watch from further back list anew.
		_, err := srv.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: srv.KV().Rev(), Physical: true})
		if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
			return fmt.Errorf("compact: %w", err)
		}
		be.ForceCommit() // what is free is known then
	}
	size, used := be.Size(), be.SizeInUse()
	worth := e.quota / 2
	if own {
		worth = e.quota / 4 * 3
	}
	if size > e.quota/4*3 && used < worth {
		if e.free != nil {
			if free, err := e.free(); err == nil && free < uint64(used)+tendSpare {
				return fmt.Errorf("its database has %d bytes, most of them free, and there is no room to write the rest anew: %d bytes are free on its disk", size, free)
			}
		}
		if err := be.Defrag(); err != nil {
			return fmt.Errorf("write the database anew: %w", err)
		}
		log.Info("the database of the control store was written anew", "was", size, "size", be.Size())
	}
	if own && be.Size() < e.quota/8*7 {
		if err := e.disarm(ctx, self); err != nil {
			return err
		}
		log.Info("the control store takes changes again: the database of this voter was full", "size", be.Size(), "quota", e.quota)
	}
	return nil
}

func (e *Embedded) disarm(ctx context.Context, member uint64) error {
	_, err := e.etcd.Server.Alarm(ctx, &etcdserverpb.AlarmRequest{MemberID: member, Action: etcdserverpb.AlarmRequest_DEACTIVATE, Alarm: alarmNoSpace})
	if err != nil {
		return fmt.Errorf("take back the alarm of a full database: %w", err)
	}
	return nil
}

// Full says why the control store takes no changes because of this voter; empty if it does.
func (e *Embedded) Full() string {
	srv := e.etcd.Server
	for _, a := range srv.Alarms() {
		if a.Alarm == alarmNoSpace && a.MemberID == uint64(srv.MemberID()) {
			be := srv.Backend()
			return fullText(be.Size(), be.SizeInUse(), e.quota)
		}
	}
	return ""
}

func fullText(size, used, quota int64) string {
	return fmt.Sprintf("its database is full: %d of %d MiB, %d MiB of them in use; the control store takes no changes until there is room, which the voter makes by itself, in seconds, if less than three quarters are in use and its disk has room for them once more",
		size>>20, quota>>20, used>>20)
}
