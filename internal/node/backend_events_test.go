package node

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/pki"
)

// A removal that was interrupted, or whose node died, after the entry was gone and before the certificates were revoked is finished by the
// same command. A certificate that a node of that name got since is none of its business.
func TestAnInterruptedRemovalIsFinished(t *testing.T) {
	b := newBench(t)
	hour := time.Now().Add(time.Hour)
	issue := func(serial string) {
		t.Helper()
		if err := recordIssue(b.ctx, b.ctl, "n2", issuedCert{serial, hour}); err != nil {
			t.Fatal(err)
		}
	}
	issue("0abc")
	if err := b.ctl.RemoveNode(b.ctx, "n2"); err != nil {
		t.Fatal(err)
	}
	if err := b.DecommissionNode(b.ctx, &dozov1.DecommissionNodeRequest{Node: "n2", DryRun: true}, func(*dozov1.EmptyProgress) error { return nil }); !errors.Is(err, control.ErrNotFound) || b.ctl.Revoked("0abc") {
		t.Errorf("a dry run: %v", err)
	}
	var last *dozov1.EmptyProgress
	if err := b.DecommissionNode(b.ctx, &dozov1.DecommissionNodeRequest{Node: "n2"}, func(p *dozov1.EmptyProgress) error { last = p; return nil }); err != nil || !last.GetDone() {
		t.Errorf("the same command again: %v, %v", last, err)
	}
	if !b.ctl.Revoked("0abc") {
		t.Error("the removed node's certificate counts still")
	}
	issue("0def") // it joins again
	if err := b.RemoveNode(b.ctx, &dozov1.RemoveNodeRequest{Node: "n2", Force: true}); !errors.Is(err, control.ErrNotFound) || b.ctl.Revoked("0def") {
		t.Errorf("a node that has not registered yet: %v", err)
	}
	if err := b.RemoveNode(b.ctx, &dozov1.RemoveNodeRequest{Node: "n9"}); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("a node that never was: %v", err)
	}
}

// Whoever gives up waiting once a node is being taken out does not leave it half out.
func TestTakingOutIsNotInterrupted(t *testing.T) {
	b := newBench(t)
	x, _ := b.ctl.Node("n2")
	if err := recordIssue(b.ctx, b.ctl, "n2", issuedCert{"0abc", time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if err := b.takeOut(ctx, b.ctl, x, nil); err != nil {
		t.Error(err)
	}
	if _, ok := b.ctl.Node("n2"); ok || !b.ctl.Revoked("0abc") {
		t.Errorf("the node is there: %v, its certificate is revoked: %v", ok, b.ctl.Revoked("0abc"))
	}
}

// Who follows the events goes on after a restore of the control store, whose revisions begin anew: with what has happened since. So does one whose stream
// was interrupted by that and who asks for what comes behind the last revision that it saw.
func TestEventsGoOnAfterARestore(t *testing.T) {
	b := newBench(t)
	say := func(action string) {
		t.Helper()
		if err := b.ctl.AppendEvent(b.ctx, control.Event{Action: action}); err != nil {
			t.Fatal(err)
		}
	}
	backup, err := b.ctl.Backup(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		say("before")
	}
	list, err := b.ctl.Events(b.ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(list[0].Rev)
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	enough := errors.New("enough")
	follow := func() <-chan error {
		ended := make(chan error, 1)
		go func() {
			var seen []string
			err := b.Events(ctx, &dozov1.EventsRequest{Follow: true, AfterRevision: last}, func(e *dozov1.Event) error {
				if seen = append(seen, e.Action); e.Action == "after" {
					return enough
				}
				return nil
			})
			if len(seen) != 1 || !errors.Is(err, enough) {
				err = fmt.Errorf("%v, then %w", seen, err)
			} else {
				err = nil
			}
			ended <- err
		}()
		return ended
	}
	running := follow()
	time.Sleep(100 * time.Millisecond)
	anew, err := backup.Anew(control.NewLineage(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b.mem.Renew(anew)
	eventually(t, "the restored control store is not read", func() error {
		if c, err := b.ctl.Cluster(); err != nil || c.Lineage != anew.Cluster.Lineage {
			return fmt.Errorf("%v, %v", c, err)
		}
		return nil
	})
	say("after")
	if err := <-running; err != nil {
		t.Errorf("a stream that was there: %v", err)
	}
	if err := <-follow(); err != nil {
		t.Errorf("one that begins again: %v", err)
	}
}

// What is done by no transaction of the control store is put into the log when it was done; everything else is there by its transaction.
func TestWhatIsDoneElsewhereIsAudited(t *testing.T) {
	b := newBench(t)
	for _, action := range []string{"reservation.clear", "store.scrub", "session.kill", "fork.delete", "control.backup", "volume.delete"} {
		b.Audit(b.ctx, api.AuditRecord{Time: time.Now(), Caller: api.Caller{Name: "root", Role: pki.RoleAdmin}, Action: action, Object: "x"})
	}
	b.n.wg.Wait()
	events, err := b.ctl.Events(b.ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, e := range events {
		if e.Object == "x" {
			seen[e.Action]++
		}
	}
	for action, want := range map[string]int{"reservation.clear": 1, "store.scrub": 1, "session.kill": 1, "fork.delete": 1, "control.backup": 1, "volume.delete": 0} {
		if seen[action] != want {
			t.Errorf("%s is there %d times, want %d", action, seen[action], want)
		}
	}
}

// A store that was declared lost is not used again, whatever is said of it.
func TestALostStoreIsNotKept(t *testing.T) {
	b := newBench(t)
	x, _ := b.ctl.Node("n2")
	id := x.Stores[0].ID
	if _, err := b.ctl.LoseStore(b.ctx, id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store is not lost", func() error {
		if !b.ctl.StoreLost(id) {
			return errors.New("not yet")
		}
		return nil
	})
	if err := b.KeepStore(b.ctx, &dozov1.KeepStoreRequest{Store: id.String()}); !errors.Is(err, control.ErrLost) {
		t.Errorf("keeping it: %v", err)
	}
	ctx, cancel := context.WithTimeout(b.ctx, time.Second)
	defer cancel()
	if err := b.ReplaceStore(ctx, &dozov1.ReplaceStoreRequest{Store: "n2/disk0"}, func(*dozov1.EmptyProgress) error { return nil }); !errors.Is(err, control.ErrLost) {
		t.Errorf("emptying it: %v", err)
	}
	if err := b.ReplaceStore(ctx, &dozov1.ReplaceStoreRequest{Store: "n2/disk0", Lost: true}, func(*dozov1.EmptyProgress) error { return nil }); err != nil {
		t.Errorf("declaring it lost again: %v", err)
	}
}

// A removal is called off by another operator while it waits, for the vote of the node that goes to be with another one: the node stays, as that one was told.
func TestARemovalThatWasCalledOff(t *testing.T) {
	b := newBench(t)
	if err := recordIssue(b.ctx, b.ctl, "n2", issuedCert{"0abc", time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	x, err := b.ctl.SetLeaving(b.ctx, "n2", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.UndrainNode(b.ctx, &dozov1.UndrainNodeRequest{Node: "n2"}); err != nil {
		t.Fatal(err)
	}
	if err := b.takeOut(b.ctx, b.ctl, x, leaving); !errors.Is(err, api.ErrRefused) {
		t.Errorf("taken out: %v", err)
	}
	if _, ok := b.ctl.Node("n2"); !ok || b.ctl.Revoked("0abc") {
		t.Errorf("the node is there: %v, its certificate is revoked: %v", ok, b.ctl.Revoked("0abc"))
	}
	if _, err := b.ctl.SetLeaving(b.ctx, "n2", true); err != nil {
		t.Fatal(err)
	}
	if err := b.takeOut(b.ctx, b.ctl, x, leaving); err != nil {
		t.Error(err)
	}
	if _, ok := b.ctl.Node("n2"); ok || !b.ctl.Revoked("0abc") {
		t.Errorf("the node is there: %v, its certificate is revoked: %v", ok, b.ctl.Revoked("0abc"))
	}
}
