package api

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"dozo/internal/pki"
)

// DefaultSocket is where a node that is installed on a host has its socket.
const DefaultSocket = "/var/lib/dozo/api.sock"

// DefaultDir is the directory that dozo up uses, in the current one, where none is given.
const DefaultDir = "dozo-data"

// ContextFile is the name of the context file in the directory of dozo up.
const ContextFile = "client.yaml"

// Context is the file that tells a client where the API is and with what to call it. Paths in it are relative
// to the file. Secrets stand in files of their own, which others can not read.
type Context struct {
	Endpoints []string `yaml:"endpoints"`
	// CAFile is the certificate of the cluster's CA (PEM).
	CAFile string `yaml:"ca_file,omitempty"`
	// TokenFile has an API token.
	TokenFile string `yaml:"token_file,omitempty"`
	// CertFile has a client certificate with its key (PEM), in place of a token.
	CertFile string `yaml:"cert_file,omitempty"`
}

// LoadContext reads a context file.
func LoadContext(path string) (Context, error) {
	var c Context
	f, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("context file: %w", err)
	}
	defer f.Close()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("context file %s: %w", path, err)
	}
	if len(c.Endpoints) == 0 {
		return c, fmt.Errorf("context file %s: no endpoints", path)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return c, fmt.Errorf("context file: %w", err)
	}
	for _, p := range []*string{&c.CAFile, &c.TokenFile, &c.CertFile} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	for i, e := range c.Endpoints {
		if p, ok := strings.CutPrefix(e, "unix:"); ok && !strings.HasPrefix(p, "//") {
			c.Endpoints[i] = "unix://" + filepath.Join(dir, p)
		}
	}
	return c, nil
}

// Marshal gives the file's text.
func (c Context) Marshal() ([]byte, error) { return yaml.Marshal(c) }

// Options reads the files that the context names.
func (c Context) Options() (ClientOptions, error) {
	o := ClientOptions{Endpoints: c.Endpoints}
	if c.CertFile != "" {
		id, err := pki.Load(c.CAFile, c.CertFile)
		if err != nil {
			return o, fmt.Errorf("client certificate: %w", err)
		}
		o.TLS = id.APIClient()
	} else if c.CAFile != "" {
		ca, err := os.ReadFile(c.CAFile)
		if err != nil {
			return o, fmt.Errorf("CA's certificate: %w", err)
		}
		if o.TLS, err = pki.APIClientWithoutCert(ca); err != nil {
			return o, err
		}
	}
	if c.TokenFile != "" {
		token, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return o, fmt.Errorf("API token: %w", err)
		}
		o.Token = strings.TrimSpace(string(token))
	}
	return o, nil
}

// ContextSource is where a client's context may come from; empty fields are not given.
type ContextSource struct {
	Flags Context // --endpoint, --ca, --token-file, --cert
	Dir   string  // --dir: of a dozo up
	Env   string  // $DOZO_CONFIG
	Home  string  // of the user
}

// ErrNoContext: nothing says where the API is.
var ErrNoContext = errors.New("no cluster to talk to")

// Find gives the context of the first source that there is: endpoints given by flags; the directory given;
// $DOZO_CONFIG; ./dozo-data of a dozo up in this directory; the user's configuration; the socket of a node on
// this host. What was asked for by name and is not there is an error, not a reason to look further.
func (s ContextSource) Find() (Context, error) {
	if len(s.Flags.Endpoints) > 0 {
		return s.Flags, nil
	}
	c, err := s.find()
	if err != nil {
		return c, err
	}
	// Credentials given by flags hold with endpoints found elsewhere too.
	if s.Flags.CAFile != "" {
		c.CAFile = s.Flags.CAFile
	}
	if s.Flags.TokenFile != "" {
		c.TokenFile, c.CertFile = s.Flags.TokenFile, ""
	}
	if s.Flags.CertFile != "" {
		c.CertFile, c.TokenFile = s.Flags.CertFile, ""
	}
	return c, nil
}

func (s ContextSource) find() (Context, error) {
	if s.Dir != "" {
		return LoadContext(filepath.Join(s.Dir, ContextFile))
	}
	if s.Env != "" {
		return LoadContext(s.Env)
	}
	places := []string{filepath.Join(DefaultDir, ContextFile)}
	if s.Home != "" {
		places = append(places, filepath.Join(s.Home, ".config", "dozo", "config.yaml"))
	}
	for _, p := range places {
		c, err := LoadContext(p)
		if !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	if _, err := os.Stat(DefaultSocket); err == nil {
		return Context{Endpoints: []string{"unix://" + DefaultSocket}}, nil
	}
	return Context{}, fmt.Errorf("%w: there is no %s, no %s and no ~/.config/dozo/config.yaml; run dozo up, or give --endpoint or --dir", ErrNoContext, places[0], DefaultSocket)
}
