package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"dozo/internal/config"
	"dozo/internal/control"
)

// externalTLS makes the TLS configuration for an external control store; nil if the configuration names no
// certificates: it is then spoken to without TLS.
func externalTLS(c config.Control) (*tls.Config, error) {
	if c.CAFile == "" && c.CertFile == "" {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12} // it is somebody else's etcd, which may be older
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("control.ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("control.ca_file: %s: no certificate in PEM text", c.CAFile)
		}
	}
	if c.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
			return nil, fmt.Errorf("control.cert_file: %w", err)
		}
		// Read at every handshake, so that a renewed one counts without a restart.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &cert, err
		}
	}
	return conf, nil
}

// externalURLs gives the endpoints of an external control store as etcd's client wants them.
func externalURLs(c config.Control, withTLS bool) []string {
	scheme := "http://"
	if withTLS {
		scheme = "https://"
	}
	var out []string
	for _, e := range c.Endpoints {
		out = append(out, scheme+e.String())
	}
	return out
}

// openAdmin connects to the voters of the embedded control store, to change their membership.
func (n *Node) openAdmin() (*control.Admin, error) {
	urls := n.voterURLs()
	if c := n.control(); c != nil && len(c.Endpoints()) > 0 {
		urls = c.Endpoints()
	}
	return control.OpenAdmin(control.EtcdConfig{Endpoints: urls, TLS: n.id.NodeClient("", n.revoked)}, n.log)
}

// joinVoters announces this node's new voter to those that there are, and fills in what it has to know of them.
// It gets its vote once it runs and has everything.
func (n *Node) joinVoters(ctx context.Context, v *control.EmbeddedConfig, endpoints []string, tlsConf *tls.Config) error {
	admin, err := control.OpenAdmin(control.EtcdConfig{Endpoints: endpoints, TLS: tlsConf}, n.log)
	if err != nil {
		return err
	}
	n.log.Info("voter joins the control store", "endpoints", endpoints)
	for {
		// After a restore all voters start at once, and the one that was restored may take longer.
		if v.Initial, err = admin.AddVoter(ctx, control.VoterAddr{Name: v.Name, Peer: v.ListenPeer}); err == nil {
			break
		}
		if errors.Is(err, control.ErrExists) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("join the control store: %w", err), admin.Close())
		}
		n.log.Warn("the control store can not be joined yet", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(joinAgain):
		}
	}
	n.wg.Go(func() { n.takeVote(ctx) })
	return admin.Close()
}

// joinAgain is how long a voter waits before it tries to join once more.
const joinAgain = time.Second

// takeVote gives this node's voter its vote once it has everything, however often the node was restarted until
// then. A voter that has its vote keeps it.
func (n *Node) takeVote(ctx context.Context) {
	admin, err := n.openAdmin()
	if err == nil {
		defer admin.Close()
		err = admin.PromoteVoter(ctx, n.cfg.Node)
	}
	switch {
	case err == nil:
		n.log.Info("voter has its vote")
	case ctx.Err() == nil:
		n.log.Error("voter has no vote", "err", err)
	}
}
