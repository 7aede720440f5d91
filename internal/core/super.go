package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
)

// StoreFormat is the version of a store's directory; docs/format.md, "Store".
const StoreFormat = 1

const (
	superName    = "dozo-store.json"
	lockName     = "lock"
	segmentsName = "segments"
)

// ErrNoStore says that a directory has no store.
var ErrNoStore = errors.New("no store here")

// superblock names the store. It is written once.
type superblock struct {
	Format  uint32        `json:"format"`
	Store   ident.StoreID `json:"store"`
	Cluster string        `json:"cluster"`
	Check   string        `json:"check"` // CRC-32C of the fields above, so that a flipped bit doesn't make another store
}

func (s *superblock) check() string {
	return fmt.Sprintf("%08x", journal.CRC(fmt.Appendf(nil, "%d %s %s", s.Format, s.Store, s.Cluster)))
}

func readSuper(fsys vfs.FS, dir string) (s superblock, err error) {
	b, err := readWhole(fsys, dir+"/"+superName, 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("store %s: %w", dir, ErrNoStore)
	}
	if err != nil {
		return s, fmt.Errorf("store %s: %w", dir, err)
	}
	// The version alone first: what a newer one has beside it is not known here.
	var v struct {
		Format uint32 `json:"format"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return s, fmt.Errorf("store %s: %s: %w", dir, superName, err)
	}
	if v.Format != StoreFormat {
		return s, fmt.Errorf("store %s: %w", dir, &journal.VersionError{What: "store", Got: v.Format, Want: StoreFormat})
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("store %s: %s: %w", dir, superName, err)
	}
	if s.Check != s.check() {
		return s, fmt.Errorf("store %s: %s is damaged: check %q, computed %q", dir, superName, s.Check, s.check())
	}
	return s, nil
}

// writeSuper is the last step of making a store: before it there is none.
func writeSuper(fsys vfs.FS, dir string, s superblock) error {
	s.Check = s.check()
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeWhole(fsys, dir, superName, append(b, '\n'))
}

func readWhole(fsys vfs.FS, name string, most int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > most {
		return nil, fmt.Errorf("%s: %d bytes, more than the %d that it can have", name, size, most)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}
