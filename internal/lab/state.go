package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"dozo/internal/lab/router"
)

// Where things are. A machine has one /run/netns too.
const (
	stateRoot = "/run/dozo-lab"
	netnsRoot = "/run/netns"
)

// Files of a lab's state.
const (
	specFile   = "lab.json"
	routerFile = "router.json"
	routerLog  = "router.log"
	socketFile = "control.sock"
	lockFile   = "lock"
)

// Device is the name of a site's device to the others.
const Device = "wan0"

var (
	// ErrRoot: only root may make namespaces.
	ErrRoot = errors.New("dozo lab needs root: it makes network namespaces and devices")
	// ErrNoLab: there is no such lab.
	ErrNoLab = errors.New("there is no such lab")
	// ErrExists: there is such a lab already, or something that it has left; or data of another one.
	ErrExists = errors.New("exists already")
	// ErrNoRouter: the lab's router does not run.
	ErrNoRouter = errors.New("the router does not run; dozo lab down, then up again")
)

func needRoot() error {
	if os.Geteuid() != 0 {
		return ErrRoot
	}
	return nil
}

// Lab is a lab that exists.
type Lab struct {
	Spec
}

func stateDir(name string) string { return filepath.Join(stateRoot, name) }

func netnsPath(netns string) string { return filepath.Join(netnsRoot, netns) }

// Open finds a lab.
func Open(name string) (*Lab, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("lab %q: %w", name, ErrNoLab)
	}
	text, err := os.ReadFile(filepath.Join(stateDir(name), specFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %s: %w", name, ErrNoLab)
	}
	if err != nil {
		return nil, err
	}
	var l Lab
	if err := json.Unmarshal(text, &l.Spec); err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return &l, nil
}

// List gives the names of all labs of which anything exists.
func List() ([]string, error) {
	var out []string
	for _, dir := range []string{stateRoot, netnsRoot} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			name := e.Name()
			if dir == netnsRoot {
				parts := strings.Split(name, "-")
				if len(parts) != 3 || !strings.HasPrefix(name, netnsPrefix(parts[1])) {
					continue
				}
				name = parts[1]
			}
			if nameForm.MatchString(name) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// Dial connects to the lab's router.
func (l *Lab) Dial() (*router.Client, error) {
	c, err := router.Dial(filepath.Join(stateDir(l.Name), socketFile))
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w (%w)", l.Name, ErrNoRouter, err)
	}
	return c, nil
}

// Do carries out a command: see Command.
func (l *Lab) Do(words ...string) error {
	changes, err := Command(l.SiteNames(), words)
	if err != nil {
		return err
	}
	c, err := l.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Apply(changes...)
}

// State asks the router for all settings and counts.
func (l *Lab) State() (*router.State, error) {
	c, err := l.Dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.State()
}

// lockLab keeps two commands from making and removing one lab at once. The file stays when the state is
// removed: a lock on a file that is gone would lock nothing.
func lockLab(name string) (*os.File, error) {
	if err := os.MkdirAll(stateRoot, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(stateRoot, "."+lockFile), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock lab %s: %w", name, err)
	}
	return f, nil
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}
