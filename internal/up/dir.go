package up

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"dozo/internal/api"
	"dozo/internal/config"
	"dozo/internal/pki"
)

// formatVersion is the version of the directory's layout.
//
//	1  first release
const formatVersion = 1

// certRenewBefore: what expires sooner gets a new certificate when it is started. A node that runs renews its
// own; this is for systems that lay still.
const certRenewBefore = 60 * 24 * time.Hour

// record is up.yaml.
type record struct {
	Format    int    `yaml:"format"`
	Dir       string `yaml:"dir"` // configurations have absolute paths
	ClusterID string `yaml:"cluster_id"`
	Shape     Shape  `yaml:",inline"`
}

// What is wrong with a directory.
var (
	// ErrNoSystem: there is no system in the directory.
	ErrNoSystem = errors.New("no system there")
	// ErrOtherShape: the directory holds a system of another shape than asked for.
	ErrOtherShape = errors.New("holds a system of another shape")
	// ErrNewerFormat: the directory was made by a newer dozo.
	ErrNewerFormat = errors.New("has a newer format")
)

// loadRecord reads up.yaml; ErrNoSystem if there is none.
func loadRecord(dir string) (record, error) {
	var r record
	path := filepath.Join(dir, shapeFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%s: %w", dir, ErrNoSystem)
	}
	if err != nil {
		return r, err
	}
	// The version first: a newer file may have anything else.
	var v struct {
		Format int `yaml:"format"`
	}
	if err := yaml.Unmarshal(text, &v); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if v.Format > formatVersion {
		return r, fmt.Errorf("%s: %w (%d; this dozo knows %d): use the dozo that made it, or a newer one", dir, ErrNewerFormat, v.Format, formatVersion)
	}
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	d.KnownFields(true)
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Format < 1 {
		return r, fmt.Errorf("%s: no format version", path)
	}
	if err := r.Shape.Check(); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Dir != dir {
		return r, fmt.Errorf("%s was made as %s and its configurations name that: move it back", dir, r.Dir)
	}
	return r, nil
}

// Wish is what dozo up was asked for; nil fields were not given.
type Wish struct {
	Sites, Nodes, Net *int
	PlainData         *bool
}

// shape gives the wished shape, with the defaults of a new system.
func (w Wish) shape() Shape {
	s := Shape{Sites: 3, Nodes: 2}
	for _, f := range []struct{ from, to *int }{{w.Sites, &s.Sites}, {w.Nodes, &s.Nodes}, {w.Net, &s.Net}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	if w.PlainData != nil {
		s.PlainData = *w.PlainData
	}
	return s
}

// conflict says what of the wish an existing system is not.
func (w Wish) conflict(s Shape) error {
	var have, want []string
	for _, f := range []struct {
		name string
		wish *int
		is   int
	}{{"--sites", w.Sites, s.Sites}, {"--nodes", w.Nodes, s.Nodes}, {"--net", w.Net, s.Net}} {
		if f.wish != nil && *f.wish != f.is {
			have, want = append(have, fmt.Sprintf("%s %d", f.name, f.is)), append(want, fmt.Sprintf("%s %d", f.name, *f.wish))
		}
	}
	if w.PlainData != nil && *w.PlainData != s.PlainData {
		have, want = append(have, fmt.Sprintf("--plain-data=%v", s.PlainData)), append(want, fmt.Sprintf("--plain-data=%v", *w.PlainData))
	}
	if have == nil {
		return nil
	}
	return fmt.Errorf("%w: it was made with %s, not %s; leave the flags out to start it, or give another --dir",
		ErrOtherShape, strings.Join(have, " "), strings.Join(want, " "))
}

// prepare makes the directory, or completes what is there: shape, CA, and of every process its directory,
// certificate and configuration. It is called with the lock held.
func prepare(dir string, w Wish, now time.Time) (record, []Process, *pki.CA, error) {
	fail := func(err error) (record, []Process, *pki.CA, error) { return record{}, nil, nil, err }
	r, err := loadRecord(dir)
	switch {
	case errors.Is(err, ErrNoSystem):
		r = record{Format: formatVersion, Dir: dir, ClusterID: pki.NewClusterID(), Shape: w.shape()}
		if err := r.Shape.Check(); err != nil {
			return fail(err)
		}
		if err := checkEmpty(dir); err != nil {
			return fail(err)
		}
		text, err := yaml.Marshal(r)
		if err != nil {
			return fail(err)
		}
		if err := pki.WriteFileAtomic(filepath.Join(dir, shapeFile), text); err != nil {
			return fail(err)
		}
	case err != nil:
		return fail(err)
	default:
		if err := w.conflict(r.Shape); err != nil {
			return fail(fmt.Errorf("%s %w", dir, err))
		}
	}
	plan, err := Plan(r.Shape)
	if err != nil {
		return fail(err)
	}
	ca, err := prepareCA(filepath.Join(dir, caDir), r.ClusterID, now)
	if err != nil {
		return fail(err)
	}
	for _, p := range plan {
		if err := prepareNode(dir, r, plan, p, ca, now); err != nil {
			return fail(err)
		}
	}
	return r, plan, ca, nil
}

// checkEmpty refuses a directory that has something else in it: a new system must not be mixed with it, and a
// missing up.yaml beside nodes' data means that somebody has removed it.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockFile && !strings.HasPrefix(e.Name(), "."+shapeFile) {
			return fmt.Errorf("%s: is not empty and has no %s (there is %s, for one): give another --dir", dir, shapeFile, e.Name())
		}
	}
	return nil
}

func prepareCA(dir, clusterID string, now time.Time) (*pki.CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	cert, key := filepath.Join(dir, pki.CAFile), filepath.Join(dir, pki.CAKeyFile)
	if _, err := os.Stat(cert); err == nil {
		return pki.LoadCA(cert, key)
	}
	ca, err := pki.NewCA(clusterID, clusterName, now)
	if err != nil {
		return nil, err
	}
	return ca, ca.Save(dir)
}

func prepareNode(dir string, r record, plan []Process, p Process, ca *pki.CA, now time.Time) error {
	nd := nodeDir(dir, p.Name)
	if err := os.MkdirAll(nd, 0o700); err != nil {
		return err
	}
	if p.Kind == kindServe {
		if err := os.MkdirAll(filepath.Join(nd, storeDir), 0o700); err != nil {
			return err
		}
	}
	caFile, nodeFile := filepath.Join(nd, pki.CAFile), filepath.Join(nd, pki.NodeFile)
	if err := writeOnce(caFile, ca.CertPEM); err != nil {
		return err
	}
	if needsCert(caFile, nodeFile, now) {
		role := pki.RoleNode
		if p.Kind == kindWitness {
			role = pki.RoleWitness
		}
		text, err := ca.IssueLocal(pki.Grant{Name: string(p.Name), Role: role, IPs: []netip.Addr{p.Addr}, Lifetime: pki.NodeLifetime}, now)
		if err != nil {
			return err
		}
		if err := pki.WriteFileAtomic(nodeFile, text); err != nil {
			return err
		}
	}
	path := filepath.Join(nd, configFile)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	text, err := nodeConfig(dir, r.ClusterID, r.Shape, plan, p).Marshal()
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", p.Name, err)
	}
	// What this program writes, a node must take: better said here than by six logs.
	if _, err := config.Parse(text, nd); err != nil {
		return fmt.Errorf("configuration of %s: %w", p.Name, err)
	}
	head := "# Made by dozo up. It is not written again: what you change here stays.\n"
	return pki.WriteFileAtomic(path, append([]byte(head), text...))
}

func writeOnce(path string, content func() []byte) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return pki.WriteFileAtomic(path, content())
}

// needsCert: there is no certificate that counts, or not for long any more.
func needsCert(caFile, nodeFile string, now time.Time) bool {
	id, err := pki.Load(caFile, nodeFile)
	return err != nil || id.RenewAt().Before(now) || id.Self().Expires.Before(now.Add(certRenewBefore))
}

// writeContext writes the file that makes dozo find this system.
func writeContext(dir string, plan []Process) error {
	c := api.Context{CAFile: filepath.Join(caDir, pki.CAFile), TokenFile: tokenFile}
	for _, p := range plan {
		if p.Kind == kindServe {
			c.Endpoints = append(c.Endpoints, apiURL(p))
		}
	}
	text, err := c.Marshal()
	if err != nil {
		return err
	}
	return pki.WriteFileAtomic(filepath.Join(dir, api.ContextFile), text)
}
