package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/pki"
	"dozo/internal/version"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// controlDir, in the state directory, has a voter's data.
const controlDir = "control"

// startControl starts the voter that runs here, if any, connects, and registers the node.
func (n *Node) startControl(ctx context.Context, onClose func(func()), fatal chan<- error) error {
	c := n.cfg.Control
	endpoints := n.voterURLs()
	tlsConf := n.id.NodeClient("", n.revoked)
	crl := filepath.Join(n.cfg.StateDir, pki.CRLFile)
	onClose(func() {
		if e := n.voter.Load(); e != nil {
			_ = e.Close()
		}
	})
	if c.Embedded {
		if err := n.startVoter(ctx, c, fatal); err != nil {
			return err
		}
	}
	if c.External {
		conf, err := externalTLS(c)
		if err != nil {
			return err
		}
		tlsConf = conf
		endpoints = externalURLs(c, conf != nil)
	}
	ctl, err := control.OpenEtcd(ctx, control.EtcdConfig{Endpoints: endpoints, TLS: tlsConf, Prefix: c.Prefix},
		control.Options{Log: n.log, Timeout: time.Duration(n.cfg.Timeouts.Control)})
	if err != nil {
		return fmt.Errorf("control store: %w", err)
	}
	onClose(func() { _ = ctl.Close() })
	if err := insist(ctx, n.log, "register the node", func() error {
		return n.register(control.WithActor(ctx, "node/"+string(n.cfg.Node)), ctl)
	}); err != nil {
		return err
	}
	n.ctl.Store(ctl)
	n.wg.Go(func() { n.keepRevocations(ctx, ctl, crl) })
	n.wg.Go(func() { n.settleControl(ctx) })
	if !c.External {
		n.wg.Go(func() { n.keepVoters(ctx, ctl) })
		n.wg.Go(func() { n.keepAppointed(ctx, ctl, fatal) })
	}
	return nil
}

// startVoter starts the voter of the control store that runs here.
func (n *Node) startVoter(ctx context.Context, c config.Control, fatal chan<- error) error {
	files, err := n.id.Etcd(n.cfg.TLS.CAFile, filepath.Join(n.cfg.StateDir, pki.CRLFile))
	if err != nil {
		return err
	}
	voter := control.EmbeddedConfig{Name: n.cfg.Node, Dir: filepath.Join(n.cfg.StateDir, controlDir), ListenPeer: addrPort(c.PeerAddress),
		ListenClient: addrPort(c.ClientAddress), Join: c.Join, ClusterID: n.id.ClusterID(), TLS: files, Revoked: n.revoked, Log: n.log}
	for _, v := range c.InitialCluster {
		voter.Initial = append(voter.Initial, control.VoterAddr{Name: v.Node, Peer: addrPort(v.Peer)})
	}
	if _, err := finishRestore(n.cfg.StateDir, time.Now()); err != nil {
		return fmt.Errorf("control store: %w", err)
	}
	if _, err := os.Stat(filepath.Join(n.cfg.StateDir, joinFile)); err == nil {
		c.Join, voter.Join = true, true // it was restored on another voter
	}
	switch {
	case c.Join && !control.HasVoterData(voter.Dir):
		if err := n.joinVoters(ctx, &voter, n.voterURLs(), n.id.NodeClient("", n.revoked)); err != nil {
			return err
		}
	case c.Join: // it may have been stopped before it got its vote
		n.wg.Go(func() { n.takeVote(ctx) })
	}
	voter.Free = func() (uint64, error) {
		u, err := vfs.Default.Usage(voter.Dir)
		return u.Free, err
	}
	keeper := voterKeeper{
		start: func(ctx context.Context) (runningVoter, error) {
			e, err := control.StartEmbedded(ctx, voter)
			if err != nil {
				return nil, err
			}
			n.voter.Store(e)
			return e, nil
		},
		free: voter.Free,
		// What it is for needs a majority of the voters, not this one; the node's volumes and stores do not need it at all.
		lives: n.cfg.Has(config.RoleCore) || n.cfg.Has(config.RoleAccess),
		say:   n.sayOfVoter,
		times: timesAnew(n.started),
	}
	e, err := control.StartEmbedded(ctx, voter)
	again := func() error { return keeper.keep(ctx, e) }
	switch {
	case err != nil && keeper.times > 0 && keeper.lives && diskFull(err) && ctx.Err() == nil:
		// It died again, and nobody has been told to look after it: the node goes on without, and tries again later.
		again = func() error {
			n.sayOfVoter("control.voter-waits", "it could not be started again yet: "+err.Error(), err)
			return keeper.anew(ctx, err)
		}
	case err != nil:
		return fmt.Errorf("control store: %w", err)
	default:
		n.voter.Store(e)
	}
	n.voterURL.Store(new(control.ClientURL(voter.ListenClient)))
	n.wg.Go(func() {
		if err := again(); err != nil {
			select {
			case fatal <- fmt.Errorf("control store: %w", err):
			case <-ctx.Done():
			}
		}
	})
	return nil
}

// voterTrouble says what is wrong with the voter that is to run here, empty if that is nothing.
func (n *Node) voterTrouble() string {
	if p := n.voterProblem.Load(); p != nil && *p != "" {
		return *p
	}
	if e := n.voter.Load(); e != nil {
		return e.Full()
	}
	return ""
}

// sayOfVoter notes how the voter that runs here is, for the log, the events and the node's state.
func (n *Node) sayOfVoter(action, problem string, err error) {
	n.voterProblem.Store(&problem)
	note := ""
	if err != nil {
		note = err.Error()
		n.log.Error("the voter of the control store does not run, and the node goes on without", "why", problem, "err", err)
	} else {
		n.log.Info("the voter of the control store runs again")
	}
	if n.ctl.Load() != nil && action != "control.voter-waits" { // that comes again and again
		n.record(control.Event{Time: time.Now(), Actor: nodeObject(string(n.cfg.Node)), Action: action, Object: nodeObject(string(n.cfg.Node)), Note: note})
	}
}

func addrPort(e config.Endpoint) netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }

// register writes this node's entry, and cluster and site if they are not there yet. To do it twice is to do it once.
func (n *Node) register(ctx context.Context, ctl *control.Client) error {
	name := n.cfg.Cluster.Name
	cl, err := ctl.InitCluster(ctx, control.Cluster{ID: n.id.ClusterID(), Name: name})
	if err != nil {
		return fmt.Errorf("cluster %s: %w", name, err)
	}
	if cl.ID != n.id.ClusterID() {
		return fmt.Errorf("the control store is of cluster %s, this node's certificate of %s", cl.ID, n.id.ClusterID())
	}
	var site ident.SiteID
	if s := n.cfg.Site; s.Name != "" {
		have, ok := ctl.SiteByName(s.Name)
		if r, anew := ctl.Restoration(); !ok && anew && r.Pending() {
			// Segments are named by the site's number, which a control store that was rebuilt does not know.
			if have, ok = n.ownSite(s.Name); ok {
				if err := ctl.KeepSite(ctx, have); err != nil && !errors.Is(err, control.ErrExists) {
					return fmt.Errorf("site %s: %w", s.Name, err)
				}
			}
		}
		if !ok {
			have, err = ctl.CreateSite(ctx, control.Site{Name: s.Name, CIDRs: s.CIDRs})
			if errors.Is(err, control.ErrExists) {
				err = nil
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
					if have, ok = ctl.SiteByName(s.Name); ok {
						break
					}
					if time.Now().After(deadline) {
						return fmt.Errorf("site %s: another node has made it, but it is not seen", s.Name)
					}
				}
			}
			if err != nil {
				return fmt.Errorf("site %s: %w", s.Name, err)
			}
		}
		site = have.ID
	}
	hostID := n.cfg.HostID
	if hostID == "" {
		b, err := os.ReadFile("/etc/machine-id")
		if err != nil {
			return fmt.Errorf("host identity: %w; set host_id in the configuration", err)
		}
		hostID = strings.TrimSpace(string(b))
	}
	voter := n.voterURL.Load() // also of one that has died
	e := control.Node{Name: n.cfg.Node, Site: site, HostID: hostID, Version: version.Get().Version, Voter: voter != nil,
		Addrs: control.Addrs{Cluster: addrPort(n.cfg.ClusterAddr), Wan: addrPort(n.cfg.WanAddr), Management: addrPort(n.cfg.ManagementAddr)}}
	if voter != nil {
		e.Addrs.ControlURL = *voter
	}
	for _, r := range n.cfg.Roles {
		e.Roles = append(e.Roles, control.Role(r))
	}
	for _, p := range n.cfg.Portals {
		e.Addrs.Portals = append(e.Addrs.Portals, control.Portal{Addr: addrPort(p)})
	}
	for i, s := range n.cfg.Stores {
		for _, st := range n.stores {
			if st.Dir() == s.Path {
				if ctl.StoreLost(st.ID()) {
					n.log.Error("store was declared lost and is not used: move its directory away, and a new one is made there at the next start", "store", s.Path, "id", st.ID().String())
					st.GiveUp("it was declared lost: it is not used any more")
					continue
				}
				status, err := st.Status(ctx, &wire.StoreStatus{})
				if err != nil {
					return fmt.Errorf("store %s: %w", s.Path, err)
				}
				label := s.Label
				if label == "" {
					label = fmt.Sprintf("disk%d", i)
				}
				e.Stores = append(e.Stores, control.StoreSpec{ID: st.ID(), Label: label, CapacityBytes: int64(status.Capacity)})
			}
		}
	}
	self, err := ctl.RegisterNode(ctx, e)
	if err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	n.self.Store(&self)
	return ctl.Announce(n.cfg.Node)
}

// insistEvery is how long a node that starts leaves a control store alone that did not answer. It gave its timeout before.
const insistEvery = time.Second

// insist calls f again as long as the control store does not answer, as while its voters are starting or elect a leader: somebody would have to
// start a node again that gave up. To do f twice has to be the same as to do it once.
func insist(ctx context.Context, log *slog.Logger, what string, f func() error) error {
	for {
		err := f()
		if !errors.Is(err, control.ErrAway) && !errors.Is(err, control.ErrUncertain) {
			return err
		}
		log.Warn("the control store does not answer: it is asked again", "what", what, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(insistEvery):
		}
	}
}

// keepRevocations has the embedded voter's revocation list follow the control store.
func (n *Node) keepRevocations(ctx context.Context, ctl *control.Client, crl string) {
	changed, cancel := ctl.Subscribe()
	defer cancel()
	written := "none yet"
	for {
		if list := ctl.Revocations(); serials(list) != written && n.voter.Load() != nil {
			if err := pki.WriteCRL(crl, list, time.Now()); err != nil {
				n.log.Error("revocation list", "err", err)
			} else {
				written = serials(list)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// serials tells one set of revocations from another. Their number does not: old ones go when a new one comes.
func serials(list []pki.Revocation) string {
	all := make([]string, len(list))
	for i, r := range list {
		all[i] = r.Serial
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// endRevoked ends the connections of nodes whose certificate was revoked, those that they made and those that we
// made to them, as soon as it is known: a certificate is looked at only when a connection begins.
func (n *Node) endRevoked(ctx context.Context) {
	ctl := n.control()
	changed, cancel := ctl.Subscribe()
	defer cancel()
	known := ""
	for {
		if now := serials(ctl.Revocations()); now != known {
			known = now
			n.frames.Recheck()
			n.pool.Recheck()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
