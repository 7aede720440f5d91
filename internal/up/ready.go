package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/config"
	"dozo/internal/pki"
)

// defaultDir is where a client looks without being told.
const defaultDir = api.DefaultDir

// tokenName is the API token that dozo up makes.
const tokenName = "up-admin"

func apiURL(p Process) string {
	return "https://" + netip.AddrPortFrom(p.Addr, config.PortAPI).String()
}

// waitReady asks a node for its health until it is ready, it has ended, or ctx ends.
func (s *System) waitReady(ctx context.Context, m *member) error {
	conf, err := pki.APIClientWithoutCert(s.ca.CertPEM())
	if err != nil {
		return err
	}
	c, err := api.Dial(api.ClientOptions{Endpoints: []string{apiURL(m.proc)}, TLS: conf})
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	last := errors.New("no answer yet")
	for {
		if err := askHealth(ctx, c, m.proc); err == nil {
			return nil
		} else if ctx.Err() == nil {
			last = err
		}
		if !m.inst.alive() {
			how := ""
			if m.cmd != nil {
				_ = m.cmd.Wait()
				how = " (" + m.cmd.ProcessState.String() + ")"
			}
			return fmt.Errorf("%s, pid %d, ended before it was ready%s; the end of its log:\n%s", m.proc.Name, m.inst.pid, how, indent(logTail(s.dir, m.proc)))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s, pid %d, is not ready after %v (%w); the end of its log:\n%s", m.proc.Name, m.inst.pid, s.timeout, last, indent(logTail(s.dir, m.proc)))
		case <-tick.C:
		}
	}
}

func indent(text string) string {
	if text == "" {
		return "    (nothing)"
	}
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}

// healthTimeout bounds one question: a node that is busy starting may accept a connection and not answer yet.
const healthTimeout = 2 * time.Second

func askHealth(ctx context.Context, c *api.Client, p Process) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	resp, err := c.Health(ctx)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var h api.Health
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&h); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	if h.Node != string(p.Name) {
		return fmt.Errorf("%s is answered by node %q", apiURL(p), h.Node)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", h.State, strings.Join(h.Problems, "; "))
	}
	return nil
}

// ensureToken makes the admin's API token unless there is one that counts. It calls with a certificate made
// for the purpose, which the CA's key in the directory makes possible.
func (s *System) ensureToken(ctx context.Context) error {
	var endpoints []string
	for _, p := range s.plan {
		if p.Kind == kindServe {
			endpoints = append(endpoints, apiURL(p))
		}
	}
	path := filepath.Join(s.dir, tokenFile)
	conf, err := pki.APIClientWithoutCert(s.ca.CertPEM())
	if err != nil {
		return err
	}
	if text, err := os.ReadFile(path); err == nil {
		c, err := api.Dial(api.ClientOptions{Endpoints: endpoints, TLS: conf, Token: strings.TrimSpace(string(text))})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Cluster.Version(ctx, &dozov1.VersionRequest{})
		if connect.CodeOf(err) != connect.CodeUnauthenticated {
			return err
		}
	}
	own, err := s.ca.IssueLocal(pki.Grant{Name: "dozo-up-" + strconv.Itoa(os.Getpid()), Role: pki.RoleAdmin, Lifetime: time.Hour}, time.Now())
	if err != nil {
		return err
	}
	id, err := pki.NewIdentity(s.ca.CertPEM(), own)
	if err != nil {
		return err
	}
	c, err := api.Dial(api.ClientOptions{Endpoints: endpoints, TLS: id.APIClient()})
	if err != nil {
		return err
	}
	defer c.Close()
	secret, err := createToken(ctx, c)
	if err != nil {
		return err
	}
	return pki.WriteFileAtomic(path, []byte(secret+"\n"))
}

// createToken makes the token, in place of one whose secret was lost, and waits out a control store that is
// choosing a leader.
func createToken(ctx context.Context, c *api.Client) (string, error) {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		resp, err := c.Cluster.CreateToken(ctx, &dozov1.CreateTokenRequest{Name: tokenName, Role: string(pki.RoleAdmin)})
		if err == nil {
			return resp.GetSecret(), nil
		}
		switch connect.CodeOf(err) {
		case connect.CodeAlreadyExists:
			if _, err := c.Cluster.RevokeToken(ctx, &dozov1.RevokeTokenRequest{Name: tokenName}); err != nil && connect.CodeOf(err) != connect.CodeNotFound {
				return "", err
			}
		case connect.CodeUnavailable, connect.CodeAborted, connect.CodeDeadlineExceeded:
		default:
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-tick.C:
		}
	}
}

// servedTimeout is how long the start waits for volumes that have data: recovering one is a matter of a second or
// two, and a system of which a part is missing must not keep the operator from looking at it.
const servedTimeout = 15 * time.Second

// statusShare: the question whether volumes are served takes one part of so many of the time.
const statusShare = 4

// waitServed waits until every volume is served, and returns those that are not by then.
func (s *System) waitServed(ctx context.Context) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, tokenFile))
	if err != nil {
		return nil, err
	}
	conf, err := pki.APIClientWithoutCert(s.ca.CertPEM())
	if err != nil {
		return nil, err
	}
	var endpoints []string
	for _, p := range s.plan {
		if p.Kind == kindServe {
			endpoints = append(endpoints, apiURL(p))
		}
	}
	c, err := api.Dial(api.ClientOptions{Endpoints: endpoints, TLS: conf, Token: strings.TrimSpace(string(text))})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, s.served)
	defer cancel()
	var missing []string
	for {
		asked := time.Now()
		r, err := c.Cluster.Status(ctx, &dozov1.StatusRequest{})
		if err == nil {
			missing = missing[:0]
			for _, v := range r.GetVolumes() {
				if v.GetState() == "recovering" || v.GetState() == "unknown" {
					missing = append(missing, v.GetName())
				}
			}
			if len(missing) == 0 {
				return nil, nil
			}
		}
		select {
		case <-ctx.Done():
			if missing == nil {
				return nil, err // it was never answered
			}
			return missing, nil
		// With thousands of volumes the answer is work for nodes that have other work now.
		case <-time.After(max(2*readyPoll, statusShare*time.Since(asked))):
		}
	}
}
