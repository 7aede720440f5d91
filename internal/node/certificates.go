package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/pki"
)

// certificateRetry is how long a node waits before it asks again for a certificate that it did not get. There
// are months until the old one ends.
const certificateRetry = 10 * time.Minute

// authority is the cluster's CA, if this node has its key.
func (n *Node) authority() (*pki.CA, error) {
	if n.cfg.TLS.CAKeyFile == "" {
		return nil, fmt.Errorf("node %s has no key of the CA (tls.ca_key_file) and can not issue certificates: %w", n.cfg.Node, api.ErrUnavailable)
	}
	ca, err := pki.LoadCA(n.cfg.TLS.CAFile, n.cfg.TLS.CAKeyFile)
	if err != nil {
		return nil, fmt.Errorf("node %s can not issue certificates: %w: %w", n.cfg.Node, api.ErrUnavailable, err)
	}
	return ca, nil
}

// keepCertificate renews the node's certificate long before it ends.
func (n *Node) keepCertificate(ctx context.Context) {
	n.noteCertificate(ctx)
	n.id.KeepFresh(ctx, certificateRetry, n.signOwn, func(err error) {
		if err != nil {
			n.log.Error("certificate is due and was not renewed", "expires", n.id.Self().Expires, "err", err)
			return
		}
		n.log.Info("certificate was renewed", "expires", n.id.Self().Expires)
		n.noteCertificate(ctx)
	})
}

// signOwn has a request signed here, if the CA's key is here, else by a node that has it.
func (n *Node) signOwn(ctx context.Context, csr []byte) ([]byte, error) {
	self := n.id.Self()
	ca, err := n.authority()
	if err == nil {
		return ca.Issue(csr, pki.Grant{Name: self.Name, Role: self.Role, IPs: configIPs(n.cfg), Lifetime: pki.NodeLifetime}, time.Now())
	}
	errs := []error{err}
	for _, x := range n.control().Nodes() {
		if x.Name == n.cfg.Node {
			continue
		}
		var chain []byte
		err := n.callNode(ctx, x, func(ctx context.Context, c *api.Client) error {
			r, err := c.Nodes.Renew(ctx, &dozov1.RenewRequest{Csr: csr})
			chain = r.GetCertificate()
			return err
		})
		if err == nil {
			return chain, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// configIPs lists the addresses at which a node of that configuration is dialled.
func configIPs(c *config.Config) (out []netip.Addr) {
	for _, e := range []config.Endpoint{c.ManagementAddr, c.ClusterAddr, c.WanAddr, c.Control.ClientAddress, c.Control.PeerAddress} {
		if e.Addr.IsValid() && !slices.Contains(out, e.Addr) {
			out = append(out, e.Addr)
		}
	}
	return out
}

// actionIssue is the audit log's name of a certificate that a node got. It is how a node's certificates are
// known when it has to be shut out.
const actionIssue = "certificate.issue"

// issuedCert is what the audit log says of a certificate.
type issuedCert struct {
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires"`
}

func nodeObject(name string) string { return "node/" + name }

// leafOf is the first certificate of a chain.
func leafOf(chain []byte) (issuedCert, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return issuedCert{}, errors.New("no certificate in PEM text")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return issuedCert{}, err
	}
	return issuedCert{pki.SerialText(cert.SerialNumber), cert.NotAfter}, nil
}

// recordIssue adds a certificate to the audit log.
func recordIssue(ctx context.Context, c *control.Client, name string, cert issuedCert) error {
	text, err := json.Marshal(cert)
	if err != nil {
		return err
	}
	return c.AppendEvent(ctx, control.Event{Action: actionIssue, Object: nodeObject(name), After: string(text)})
}

// issuedTo lists the certificates that the audit log knows of a node.
func issuedTo(ctx context.Context, c *control.Client, name string) (out []issuedCert, err error) {
	events, err := c.Events(ctx, 0)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		var cert issuedCert
		if e.Action == actionIssue && e.Object == nodeObject(name) && json.Unmarshal([]byte(e.After), &cert) == nil && cert.Serial != "" {
			out = append(out, cert)
		}
	}
	return out, nil
}

// noteCertificate sees to it that the certificate that is used now is in the audit log: the first one was made
// before there was a control store, and old entries are trimmed.
func (n *Node) noteCertificate(ctx context.Context) {
	c, self := n.control(), n.id.Self()
	ctx = control.WithActor(ctx, nodeObject(self.Name))
	known, err := issuedTo(ctx, c, self.Name)
	if err == nil && !slices.ContainsFunc(known, func(x issuedCert) bool { return x.Serial == self.Serial }) {
		err = recordIssue(ctx, c, self.Name, issuedCert{self.Serial, self.Expires})
	}
	if err != nil && ctx.Err() == nil {
		n.log.Warn("certificate is not in the audit log", "err", err)
	}
}

// passOn has a node that holds the CA's key answer in place of this one, which does not. What comes from a node
// has been passed on already.
func (b *backend) passOn(ctx context.Context, why error, f func(context.Context, *api.Client) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	if api.CallerFrom(ctx).Role.IsNode() {
		return why
	}
	errs := []error{why}
	for _, x := range c.Nodes() {
		if x.Name == b.n.cfg.Node {
			continue
		}
		err := b.n.callNode(ctx, x, f)
		if reason := api.Reason(err); err == nil || reason != "" && reason != "UNAVAILABLE" {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Join implements api.Nodes.
func (b *backend) Join(ctx context.Context, req *dozov1.JoinRequest) (out *dozov1.JoinResponse, err error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	ca, err := b.n.authority()
	if err != nil {
		err = b.passOn(ctx, err, func(ctx context.Context, other *api.Client) (err error) {
			out, err = other.Nodes.Join(ctx, req)
			return err
		})
		return out, err
	}
	t, err := pki.ParseJoinToken(req.Token)
	if err != nil {
		return nil, err
	}
	g := pki.Grant{Name: req.Node, Lifetime: pki.NodeLifetime}
	for _, text := range req.Addresses {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", text, control.ErrInvalid)
		}
		g.IPs = append(g.IPs, ip)
	}
	admits := func(rec pki.JoinTokenRecord) error {
		if rec.Node != "" && rec.Node != req.Node {
			return fmt.Errorf("%w: it is for node %s, not for %s", pki.ErrBadToken, rec.Node, req.Node)
		}
		if _, there := c.Node(ident.NodeName(req.Node)); there && rec.Node == "" {
			return fmt.Errorf("node %s: %w; a token that was made for this name lets it join again", req.Node, control.ErrExists)
		}
		return nil
	}
	// A request that would be refused does not use the token up: whoever made a mistake tries again with it.
	for _, rec := range c.JoinTokens() {
		if rec.Hash == t.Hash() && time.Now().Before(rec.Expires) {
			if err := admits(rec); err != nil {
				return nil, err
			}
		}
	}
	rec, err := c.UseJoinToken(ctx, t.Hash(), time.Now())
	if errors.Is(err, control.ErrNotFound) {
		return nil, fmt.Errorf("%w: %v", pki.ErrBadToken, err)
	}
	if err != nil {
		return nil, err
	}
	if err := admits(rec); err != nil {
		return nil, err
	}
	g.Role = rec.Role
	chain, err := b.issue(ctx, c, ca, req.Csr, g)
	if err != nil {
		return nil, err
	}
	cl, err := c.Cluster()
	if err != nil {
		return nil, err
	}
	out = &dozov1.JoinResponse{Certificate: chain, Ca: ca.CertPEM(), ClusterId: cl.ID, ClusterName: cl.Name}
	b.describeVoters(ctx, c, req, out)
	return out, nil
}

// issue makes a certificate and records it.
func (b *backend) issue(ctx context.Context, c *control.Client, ca *pki.CA, csr []byte, g pki.Grant) ([]byte, error) {
	chain, err := ca.Issue(csr, g, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	cert, err := leafOf(chain)
	if err != nil {
		return nil, err
	}
	// Before it is given out: a certificate that nobody can name can not be revoked.
	return chain, recordIssue(ctx, c, g.Name, cert)
}

// describeVoters says where the control store is.
func (b *backend) describeVoters(ctx context.Context, c *control.Client, req *dozov1.JoinRequest, out *dozov1.JoinResponse) {
	if b.n.cfg.Control.External {
		for _, e := range b.n.cfg.Control.Endpoints {
			out.ControlEndpoints = append(out.ControlEndpoints, e.String())
		}
		return
	}
	for _, x := range c.Nodes() {
		if x.Voter && x.Addrs.ControlURL != "" {
			out.ControlEndpoints = append(out.ControlEndpoints, strings.TrimPrefix(x.Addrs.ControlURL, "https://"))
		}
	}
	admin, err := b.n.openAdmin()
	if err == nil {
		defer admin.Close()
		var voters []control.Voter
		voters, err = admin.Voters(ctx)
		for _, v := range voters {
			if v.Started && string(v.Name) != req.Node {
				out.InitialCluster = append(out.InitialCluster, fmt.Sprintf("%s=%s", v.Name, v.Peer))
			}
		}
	}
	if err != nil {
		b.n.log.Warn("voters for a node that joins", "err", err)
	}
	if req.VoterPeer != "" {
		out.InitialCluster = append(out.InitialCluster, req.Node+"="+req.VoterPeer)
	}
}

// Renew implements api.Nodes.
func (b *backend) Renew(ctx context.Context, req *dozov1.RenewRequest) (*dozov1.RenewResponse, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	caller := api.CallerFrom(ctx)
	if !caller.Role.IsNode() {
		return nil, fmt.Errorf("only nodes renew certificates: %w", api.ErrForbidden)
	}
	x, ok := c.Node(ident.NodeName(caller.Name))
	if !ok {
		return nil, fmt.Errorf("node %s is not of the cluster any more: %w", caller.Name, api.ErrForbidden)
	}
	ca, err := b.n.authority()
	if err != nil {
		return nil, err
	}
	chain, err := b.issue(ctx, c, ca, req.Csr, pki.Grant{Name: caller.Name, Role: caller.Role, IPs: nodeIPs(x), Lifetime: pki.NodeLifetime})
	if err != nil {
		return nil, err
	}
	cert, err := leafOf(chain)
	if err != nil {
		return nil, err
	}
	return &dozov1.RenewResponse{Certificate: chain, Expires: timestamppb.New(cert.Expires)}, nil
}

// nodeIPs lists the addresses at which a registered node is dialled.
func nodeIPs(x control.Node) (out []netip.Addr) {
	for _, a := range []netip.AddrPort{x.Addrs.Management, x.Addrs.Cluster, x.Addrs.Wan} {
		if a.IsValid() && !slices.Contains(out, a.Addr()) {
			out = append(out, a.Addr())
		}
	}
	return out
}

// Revoke implements api.Nodes.
func (b *backend) Revoke(ctx context.Context, req *dozov1.RevokeRequest) (*dozov1.RevokeResponse, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	var certs []revocable
	if req.Serial != "" {
		serial := strings.ToLower(strings.ReplaceAll(req.Serial, ":", ""))
		if len(serial) > 32 || strings.Trim(serial, "0123456789abcdef") != "" {
			return nil, fmt.Errorf("serial number %q: want up to 32 hexadecimal digits: %w", req.Serial, control.ErrInvalid)
		}
		certs = []revocable{{issuedCert: issuedCert{Serial: strings.Repeat("0", 32-len(serial)) + serial}}}
	} else {
		if certs, err = b.serialsOf(ctx, c, ident.NodeName(req.Node)); err != nil {
			return nil, err
		}
		if len(certs) == 0 {
			return nil, fmt.Errorf("no certificate of node %s is known; name its serial number: %w", req.Node, control.ErrNotFound)
		}
	}
	if err := b.revoke(ctx, c, certs, req.Reason); err != nil {
		return nil, err
	}
	out := &dozov1.RevokeResponse{}
	for _, x := range certs {
		out.Serials = append(out.Serials, x.Serial)
	}
	return out, nil
}

// revocable is a certificate and whose it is.
type revocable struct {
	issuedCert
	subject string
}

// serialsOf finds the certificates of a node that still hold: those in the audit log, and the one that it shows
// when it is dialled.
func (b *backend) serialsOf(ctx context.Context, c *control.Client, name ident.NodeName) (out []revocable, err error) {
	known, err := issuedTo(ctx, c, string(name))
	if err != nil {
		return nil, err
	}
	if name == b.n.cfg.Node {
		self := b.n.id.Self()
		known = append(known, issuedCert{self.Serial, self.Expires})
	} else if x, ok := c.Node(name); ok && x.Addrs.Management.IsValid() {
		if shown, err := b.n.shownBy(ctx, x); err == nil {
			known = append(known, shown)
		}
	}
	now := time.Now()
	for _, k := range known {
		if k.Expires.After(now) && !c.Revoked(k.Serial) && !slices.ContainsFunc(out, func(r revocable) bool { return r.Serial == k.Serial }) {
			out = append(out, revocable{k, string(name)})
		}
	}
	return out, nil
}

// shownBy is the certificate with which a node answers.
func (n *Node) shownBy(ctx context.Context, x control.Node) (issuedCert, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeCallTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: n.id.NodeClient(string(x.Name), nil, "http/1.1")}).DialContext(ctx, "tcp", x.Addrs.Management.String())
	if err != nil {
		return issuedCert{}, err
	}
	defer conn.Close()
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	return issuedCert{pki.SerialText(leaf.SerialNumber), leaf.NotAfter}, nil
}

func (b *backend) revoke(ctx context.Context, c *control.Client, certs []revocable, reason string) error {
	for _, x := range certs {
		if err := c.Revoke(ctx, pki.Revocation{Serial: x.Serial, Subject: x.subject, Reason: reason, By: control.ActorFrom(ctx), Expires: x.Expires}); err != nil {
			return fmt.Errorf("revoke certificate %s: %w", x.Serial, err)
		}
	}
	return nil
}
