package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Discovery has what initiators that no host with credentials of its own stands for have to prove before they are told of
// targets (CHAP).
type Discovery struct {
	User       string `yaml:"user,omitempty"`
	SecretFile string `yaml:"secret_file,omitempty"`
	// TargetUser and TargetSecretFile are what the node proves when it is asked back (mutual CHAP).
	TargetUser       string `yaml:"target_user,omitempty"`
	TargetSecretFile string `yaml:"target_secret_file,omitempty"`
}

// ISNS has the iSNS servers that the node registers its targets with.
type ISNS struct {
	Servers []Endpoint `yaml:"servers,omitempty"`
}

// PortISNS is IANA's.
const PortISNS = 3205

func (c *Config) checkDiscovery(p *problems) {
	d := c.Discovery
	if (d.User == "") != (d.SecretFile == "") {
		p.add("discovery: user and secret_file are both needed, or none")
	}
	if (d.TargetUser == "") != (d.TargetSecretFile == "") || d.TargetUser != "" && d.User == "" {
		p.add("discovery: target_user and target_secret_file are both needed, with user and secret_file, or none")
	}
	if !c.Has(RoleAccess) && d != (Discovery{}) {
		p.add("discovery: the node hasn't the role access: add it, or leave discovery out")
	}
	if !c.Has(RoleAccess) && len(c.ISNS.Servers) > 0 {
		p.add("isns: the node hasn't the role access: add it, or leave isns out")
	}
	for i, e := range c.ISNS.Servers {
		if err := e.dialable(); err != nil {
			p.add("isns.servers[%d] %v", i, err)
		}
	}
}

// Secrets reads the secrets of both directions, empty where there are none. Errors never have a secret in them.
func (d Discovery) Secrets() (in, out string, err error) {
	if in, err = readSecret(d.SecretFile); err == nil {
		out, err = readSecret(d.TargetSecretFile)
	}
	if err == nil && in != "" && in == out {
		err = errors.New("discovery: one secret for both directions (RFC 7143 9.2.1 forbids that)")
	}
	return in, out, err
}

// Lengths of a CHAP secret: RFC 7143 9.2.1 wants 96 bits at least.
const secretMin, secretMax = 12, 255

func readSecret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("discovery: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	line = strings.TrimSuffix(line, "\r")
	if len(line) < secretMin || len(line) > secretMax {
		return "", fmt.Errorf("discovery: the first line of %s has %d bytes, a secret has %d to %d", file, len(line), secretMin, secretMax)
	}
	return line, nil
}
