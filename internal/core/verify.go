package core

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
)

// readIndex reads the index at the end of a sealed file; journal.ErrNoIndex says that it isn't sealed.
func readIndex(f vfs.File) (x *journal.Index, err error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size < journal.SegmentHeaderSize+journal.TrailerSize || size > journal.SegmentCapacityMax {
		return nil, journal.ErrNoIndex
	}
	var t [journal.TrailerSize]byte
	if _, err := f.ReadAt(t[:], size-journal.TrailerSize); err != nil {
		return nil, err
	}
	end, length, err := journal.DecodeTrailer(t[:])
	if err != nil {
		return nil, err
	}
	if int64(end)+int64(length)+journal.TrailerSize != size {
		return nil, fmt.Errorf("the trailer says an index of %d bytes at %d, the file has %d", length, end, size)
	}
	b := make([]byte, size-int64(end))
	if _, err := f.ReadAt(b, int64(end)); err != nil {
		return nil, err
	}
	return journal.DecodeIndex(b)
}

// errWalk says where a file stops being what it must be.
type errWalk struct {
	offset uint32
	err    error
}

func (e *errWalk) Error() string { return fmt.Sprintf("at %d: %v", e.offset, e.err) }
func (e *errWalk) Unwrap() error { return e.err }

// verifySealed reads a sealed file whole: every checksum, the chain, and the index against the records.
func verifySealed(f vfs.File, id ident.SegmentID) (*journal.Index, error) {
	x, err := readIndex(f)
	if err != nil {
		return nil, &errWalk{0, fmt.Errorf("index: %w", err)}
	}
	sc, err := scan(f, id, int64(x.End), 0, nil)
	if err != nil {
		return x, &errWalk{sc.end, err}
	}
	if !sc.header {
		return x, &errWalk{0, cmpErr(sc.bad, "no segment header")}
	}
	if sc.bad != nil || sc.end != x.End {
		return x, &errWalk{sc.end, cmpErr(sc.bad, "records end early")}
	}
	if x.Segment != id || x.Before != sc.before || x.Last != sc.last || !slices.Equal(x.Entries, sc.index) {
		return x, &errWalk{x.End, errors.New("the index is not that of the records")}
	}
	return x, nil
}

func cmpErr(err error, otherwise string) error {
	if err != nil {
		return err
	}
	return errors.New(otherwise)
}

// eofIsShort makes a read beyond the end of the file a plain fact.
func eofIsShort(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
