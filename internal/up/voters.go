package up

import (
	"errors"
	"fmt"
	"path/filepath"
)

// ErrVoterRuns: what was asked for wants all voters stopped.
var ErrVoterRuns = errors.New("running")

// ControlVoters gives the configuration files of the voters of the system in dir, in the order of the plan. It is
// an error if one of them runs; the other nodes may.
func ControlVoters(dir string) (configs []string, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	r, err := loadRecord(dir)
	if err != nil {
		return nil, err
	}
	plan, err := Plan(r.Shape)
	if err != nil {
		return nil, err
	}
	for _, p := range plan {
		if !p.Voter {
			continue
		}
		if i, ok := running(dir, p); ok {
			return nil, fmt.Errorf("%s runs, and has a voter of the control store: stop it first: %w", named(p, i), ErrVoterRuns)
		}
		configs = append(configs, filepath.Join(nodeDir(dir, p.Name), configFile))
	}
	return configs, nil
}
