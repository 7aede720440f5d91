package up

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"dozo/internal/config"
	"dozo/internal/pki"
)

// ErrVoterRuns: what was asked for wants all voters stopped.
var ErrVoterRuns = errors.New("running")

// ControlVoters gives the configuration files of the voters of the system in dir, in the order of the plan: those of the
// plan that were not taken out of the cluster, and those that were appointed in the place of such. It is an error if one of
// them runs; the other nodes may.
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
	if plan, _, err = staying(dir, plan); err != nil {
		return nil, err
	}
	for _, p := range plan {
		file := filepath.Join(nodeDir(dir, p.Name), configFile)
		cfg, err := config.Load(file)
		if err != nil {
			return nil, err // names the file
		}
		if err := cfg.Appointed(); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if !cfg.Control.Embedded {
			continue
		}
		if i, ok := running(dir, p); ok {
			return nil, fmt.Errorf("%s runs, and has a voter of the control store: stop it first: %w", named(p, i), ErrVoterRuns)
		}
		configs = append(configs, file)
	}
	if len(configs) == 0 {
		return nil, fmt.Errorf("%s: no node that is left in the cluster has a voter of the control store", dir)
	}
	return configs, nil
}

// staying parts the processes of the plan into those that belong to the cluster and those that were taken out of it. The
// voters' lists of revoked certificates say so also while none of them runs, and none of them ever says of a certificate that
// it counts again, so one list is enough.
func staying(dir string, plan []Process) (stay, gone []Process, err error) {
	revoked := map[string]bool{}
	for _, p := range plan {
		serials, err := pki.ReadCRL(filepath.Join(nodeDir(dir, p.Name), pki.CRLFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		for _, s := range serials {
			revoked[s] = true
		}
	}
	for _, p := range plan {
		nd := nodeDir(dir, p.Name)
		id, err := pki.Load(filepath.Join(nd, pki.CAFile), filepath.Join(nd, pki.NodeFile))
		if err == nil && revoked[id.Self().Serial] {
			gone = append(gone, p)
		} else { // without a certificate it has never been anywhere
			stay = append(stay, p)
		}
	}
	return stay, gone, nil
}
