package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

//go:embed build.sh
var buildScript string

// Files of an image, as build.sh makes them.
const (
	fileKernel   = "vmlinux"
	fileRoot     = "root.img"
	fileModules  = "modules"
	fileBoot     = "boot"
	filePackages = "packages"
)

var (
	// ErrNoImage: the guest has not been built.
	ErrNoImage = errors.New("the guest is not built yet: dozo lab guest build")
	// ErrUsage: what was asked for makes no sense.
	ErrUsage = errors.New("wrong usage")
)

// packageName is what Debian allows.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// Image is a built guest: a directory in the cache. It is not changed any more.
type Image struct {
	Dir string
}

// Cache says where images are: $DOZO_CACHE or the user's cache directory.
func Cache() (string, error) {
	if dir := os.Getenv("DOZO_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where to keep the guest: %w; set DOZO_CACHE", err)
	}
	return filepath.Join(dir, "dozo"), nil
}

// Find gives the image that was built last with these further packages.
func Find(cache string, packages []string) (*Image, error) {
	link, err := linkName(packages)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(cache, link))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (nothing for it in %s)", ErrNoImage, cache)
	}
	if err != nil {
		return nil, err
	}
	return &Image{Dir: dir}, nil
}

// linkName is the name by which Find finds what was asked for; what was made is named after the packages' versions.
func linkName(packages []string) (string, error) {
	for _, p := range packages {
		if !packageName.MatchString(p) {
			return "", fmt.Errorf("%w: %q is no name of a Debian package", ErrUsage, p)
		}
	}
	return "guest-" + digest(buildScript, strings.Join(sorted(packages), " ")), nil
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d %s", len(p), p)
	}
	// Twelve digits tell the images of one cache apart.
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// Build makes the image from the versions that apt knows now, with further packages, unless it is there; progress is
// written to log.
func Build(ctx context.Context, cache string, packages []string, log io.Writer) (*Image, error) {
	link, err := linkName(packages)
	if err != nil {
		return nil, err
	}
	for _, tool := range []string{"apt-get", "dpkg-deb", "tar", "xz", "mke2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			if _, sbin := os.Stat("/usr/sbin/" + tool); sbin != nil {
				return nil, fmt.Errorf("the guest is built from Debian's packages, by %s: %w", tool, err)
			}
		}
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, ".guest.lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", cache, err)
	}
	var versions bytes.Buffer
	if err := script(ctx, &versions, log, append([]string{"-"}, sorted(packages)...)); err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, link+"-"+digest(versions.String()))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		// What a killed build has left.
		left, _ := filepath.Glob(filepath.Join(cache, "guest-*-*.*"))
		for _, l := range left {
			_ = os.RemoveAll(l)
		}
		if err := script(ctx, log, log, append([]string{dir}, sorted(packages)...)); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	// The name changes at once, so that whoever looks finds the old or the new.
	tmp := filepath.Join(cache, link+".new")
	_ = os.Remove(tmp)
	if err := errors.Join(os.Symlink(filepath.Base(dir), tmp), os.Rename(tmp, filepath.Join(cache, link))); err != nil {
		return nil, err
	}
	// Those of other versions are found by nobody any more; guests that run keep their files open.
	old, _ := filepath.Glob(filepath.Join(cache, link+"-*"))
	for _, o := range old {
		if o != dir {
			err = errors.Join(err, os.RemoveAll(o))
		}
	}
	return &Image{Dir: dir}, err
}

// script runs build.sh in a group of processes of its own, so that all of it ends with the context.
func script(ctx context.Context, out, log io.Writer, args []string) error {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", buildScript, "build.sh"}, args...)...)
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, io.MultiWriter(&errs, log)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("build the guest: %w: %s", err, lastLine(errs.String()))
	}
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// Packages lists the packages in the image, NAME=VERSION.
func (i *Image) Packages() ([]string, error) {
	text, err := os.ReadFile(filepath.Join(i.Dir, filePackages))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(text)), nil
}

// writeInitrd writes the first file system: the kernel modules that the root is reached with, and the agent's program.
func (i *Image) writeInitrd(w io.Writer, agent string) error {
	modules, err := os.ReadFile(filepath.Join(i.Dir, fileModules))
	if err != nil {
		return err
	}
	c := &cpioWriter{w: w}
	for _, d := range []string{"proc", "sys", "dev", "lower", "upper", "newroot", fileBoot} {
		c.dir(d)
	}
	c.file(fileModules, int64(len(modules)), bytes.NewReader(modules))
	add := func(name, path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		c.file(name, info.Size(), f)
		return nil
	}
	for _, m := range strings.Fields(string(modules)) {
		if err := add(fileBoot+"/"+m, filepath.Join(i.Dir, fileBoot, m)); err != nil {
			return err
		}
	}
	if err := add("init", agent); err != nil {
		return err
	}
	return c.close()
}
