package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/pki"
)

// InitOptions are what ClusterInit is given.
type InitOptions struct {
	Config string // path of the first node's configuration file
	Name   string // of the cluster; empty: the configuration's
}

// JoinOptions are what Join is given.
type JoinOptions struct {
	Token     string
	Endpoints []string // https URLs of nodes of the cluster
	Config    string   // path of this node's configuration file
}

// Files that ClusterInit makes beside the certificates.
const (
	adminFile = "admin.pem"
	adminName = "admin"
)

// ClusterInit makes what the first node of a new cluster needs on this host: the CA, the node's certificate, an
// administrator's certificate, and directories. The control store makes itself when the node starts.
func ClusterInit(_ context.Context, o InitOptions, out io.Writer) error {
	cfg, err := config.Load(o.Config)
	if err != nil {
		return err
	}
	switch {
	case o.Name != "" && o.Name != cfg.Cluster.Name:
		return fmt.Errorf("%s: cluster.name is %s, not %s: change it there, as every node's configuration has it", o.Config, cfg.Cluster.Name, o.Name)
	case !cfg.Control.Embedded && !cfg.Control.External:
		return fmt.Errorf("%s: the first node runs a voter of the control store: set control.embedded to true, or name an external one", o.Config)
	case cfg.Control.Join:
		return fmt.Errorf("%s: control.join is for voters of a cluster that runs; the first node has none to join", o.Config)
	case cfg.TLS.CAKeyFile == "":
		return fmt.Errorf("%s: tls.ca_key_file says where the CA's key will be, without which no node could join: set it, such as to %s", o.Config, pki.CAKeyFile)
	}
	if err := noCluster(cfg); err != nil {
		return err
	}
	id := cfg.Cluster.ID
	if id == "" {
		id = pki.NewClusterID()
	}
	now := time.Now()
	ca, err := pki.NewCA(id, cfg.Cluster.Name, now)
	if err != nil {
		return err
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	role := pki.RoleNode
	if cfg.Has(config.RoleWitness) {
		role = pki.RoleWitness
	}
	own, err := ca.IssueLocal(pki.Grant{Name: string(cfg.Node), Role: role, IPs: configIPs(cfg), Lifetime: pki.NodeLifetime}, now)
	if err != nil {
		return err
	}
	admin, err := ca.IssueLocal(pki.Grant{Name: adminName, Role: pki.RoleAdmin, Lifetime: pki.UserLifetime}, now)
	if err != nil {
		return err
	}
	if err := makeDirs(cfg); err != nil {
		return err
	}
	adminPath, contextPath := filepath.Join(cfg.StateDir, adminFile), filepath.Join(cfg.StateDir, api.ContextFile)
	text, err := api.Context{Endpoints: []string{"https://" + cfg.ManagementAddr.String()}, CAFile: cfg.TLS.CAFile, CertFile: adminPath}.Marshal()
	if err != nil {
		return err
	}
	// The CA's certificate is last: what is incomplete must not look like a cluster.
	for _, f := range []struct {
		path string
		text []byte
	}{{cfg.TLS.CAKeyFile, key}, {cfg.TLS.NodeFile, own}, {adminPath, admin}, {contextPath, text}, {cfg.TLS.CAFile, ca.CertPEM()}} {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
			return err
		}
		if err := pki.WriteFileAtomic(f.path, f.text); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, `cluster %s (%s) is made; its first node is %s

  CA certificate   %s
  CA key           %s  (whoever has it can make nodes and administrators: keep a copy offline)
  administrator    %s  (a client certificate, good until %s; client.yaml beside it names it)

Next:
  dozo %s --config %s
  dozo cluster token create --node NAME        # on this host, once for every other node
  dozo node join --join-token-file FILE --endpoint https://%s --config FILE   # on the other hosts
`, cfg.Cluster.Name, id, cfg.Node, cfg.TLS.CAFile, cfg.TLS.CAKeyFile, adminPath, now.Add(pki.UserLifetime).Format(time.DateOnly),
		command(cfg), o.Config, cfg.ManagementAddr)
	return err
}

// noCluster refuses to make a cluster where there is one, or a part of one. The CA's certificate is what is written last.
func noCluster(cfg *config.Config) error {
	there := func(path string) bool {
		_, err := os.Lstat(path)
		return !errors.Is(err, fs.ErrNotExist)
	}
	if there(cfg.TLS.CAFile) {
		return fmt.Errorf("%s is there already, so this host belongs to a cluster: %w", cfg.TLS.CAFile, control.ErrExists)
	}
	for _, path := range []string{cfg.TLS.CAKeyFile, cfg.TLS.NodeFile} {
		if there(path) {
			return fmt.Errorf("%s is there already and %s is not: the key of a cluster whose CA certificate was lost, or what an interrupted dozo cluster init has left; only in that case remove it, and run this again: %w",
				path, cfg.TLS.CAFile, control.ErrExists)
		}
	}
	return nil
}

// command is the one that runs a node of the configuration.
func command(cfg *config.Config) string {
	if cfg.Has(config.RoleWitness) {
		return "witness"
	}
	return "serve"
}

// makeDirs makes the node's directories. A store's parent must be there: it is usually a mounted disk, and one
// that is not mounted must not be filled beneath.
func makeDirs(cfg *config.Config) error {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return err
	}
	for i, s := range cfg.Stores {
		if err := os.Mkdir(s.Path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("stores[%d].path: %w; is the disk mounted?", i, err)
		}
	}
	return nil
}

// Join makes this host the node of the configuration: it verifies the cluster by the token, and fetches CA
// certificate and node's certificate. The private key does not leave the host.
func Join(ctx context.Context, o JoinOptions, out io.Writer) error {
	cfg, err := config.Load(o.Config)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(cfg.TLS.NodeFile); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already, so this host belongs to a cluster; remove it to join anew: %w", cfg.TLS.NodeFile, control.ErrExists)
	}
	t, err := pki.ParseJoinToken(o.Token)
	if err != nil {
		return err
	}
	if err := makeDirs(cfg); err != nil { // before the token is used up
		return err
	}
	csr, key, err := pki.NewRequest(string(cfg.Node))
	if err != nil {
		return err
	}
	client, err := api.Dial(api.ClientOptions{Endpoints: o.Endpoints, TLS: pki.JoinClient(t.Fingerprint, nil)})
	if err != nil {
		return err
	}
	defer client.Close()
	req := &dozov1.JoinRequest{Token: o.Token, Node: string(cfg.Node), Csr: csr, Site: cfg.Site.Name}
	for _, ip := range configIPs(cfg) {
		req.Addresses = append(req.Addresses, ip.String())
	}
	if cfg.Control.Embedded {
		req.VoterPeer = cfg.Control.PeerAddress.String()
	}
	resp, err := client.Nodes.Join(ctx, req)
	if err != nil {
		return err
	}
	own := append(slices.Clone(resp.Certificate), key...)
	id, err := pki.NewIdentity(resp.Ca, own)
	if err != nil {
		return fmt.Errorf("what the cluster has sent: %w", err)
	}
	switch {
	case id.Fingerprint() != t.Fingerprint:
		return fmt.Errorf("what the cluster has sent: %w", pki.ErrFingerprint)
	case id.Self().Name != string(cfg.Node):
		return fmt.Errorf("what the cluster has sent: %w: %s", pki.ErrName, id.Self().Name)
	case cfg.Has(config.RoleWitness) != (id.Self().Role == pki.RoleWitness):
		return fmt.Errorf("the token is for a %s, and %s has the roles %v: make another token", id.Self().Role, o.Config, cfg.Roles)
	case cfg.Cluster.Name != resp.ClusterName:
		return fmt.Errorf("%s: cluster.name is %s, the cluster's is %s: correct it and join with a new token", o.Config, cfg.Cluster.Name, resp.ClusterName)
	case cfg.Cluster.ID != "" && cfg.Cluster.ID != id.ClusterID():
		return fmt.Errorf("%s: cluster.id is %s, the cluster's is %s", o.Config, cfg.Cluster.ID, id.ClusterID())
	}
	if err := pki.WriteFileAtomic(cfg.TLS.CAFile, resp.Ca); err != nil {
		return err
	}
	if err := pki.WriteFileAtomic(cfg.TLS.NodeFile, own); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is a node of cluster %s (%s)\n", cfg.Node, resp.ClusterName, resp.ClusterId)
	if !slices.ContainsFunc(cfg.Control.Endpoints, func(e config.Endpoint) bool { return slices.Contains(resp.ControlEndpoints, e.String()) }) {
		fmt.Fprintf(out, "\nNote: none of control.endpoints in %s is one of the cluster's: %s\n", o.Config, strings.Join(resp.ControlEndpoints, ", "))
	}
	if cfg.Control.Embedded && !cfg.Control.Join {
		fmt.Fprintf(out, "\nNote: a voter that joins a cluster that runs needs control.join: true in %s, and no initial_cluster\n", o.Config)
	}
	_, err = fmt.Fprintf(out, "\nNext:\n  dozo %s --config %s\n", command(cfg), o.Config)
	return err
}
