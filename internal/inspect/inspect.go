package inspect

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"dozo/internal/access/reserve"
	"dozo/internal/core"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/volume"
)

// Style is how lines are written.
type Style int

// The styles. JSON is one object a line, YAML a list of the same objects.
const (
	Text Style = iota
	JSON
	YAML
)

// Options say how much File prints.
type Options struct {
	Style   Style
	Records bool // every record, not only the segment and the verdict
	Data    bool // the records' bytes too
	Name    bool // the file's name first, where there are several
}

// File prints a segment file. An error that is core.ErrBad says that something in it is wrong; the lines that
// were printed say what.
func File(w io.Writer, fsys vfs.FS, name string, o Options) error {
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	o.Records = o.Records || o.Data
	if o.Name {
		if err := heading(w, o.Style, name); err != nil {
			return err
		}
	}
	s := &sieve{w: w, o: o, f: f}
	err = core.Inspect(s, fsys, name, core.InspectOptions{JSON: o.Style != Text, Part: volume.InspectPart, Unit: reserve.Describe})
	return errors.Join(err, s.close())
}

// heading says of which file the lines are that follow.
func heading(w io.Writer, style Style, name string) error {
	if style == Text {
		_, err := fmt.Fprintf(w, "%s:\n", name)
		return err
	}
	b, err := json.Marshal(struct {
		Line string `json:"line"`
		Path string `json:"path"`
	}{"file", name})
	if err != nil {
		return err
	}
	lead := ""
	if style == YAML {
		lead = "- "
	}
	_, err = fmt.Fprintf(w, "%s%s\n", lead, b)
	return err
}

// sieve takes the lines of core.Inspect and lets through, or completes, what is wanted.
type sieve struct {
	w    io.Writer
	o    Options
	f    vfs.File
	rest []byte
	// of the record that was last printed as text, until its bytes are
	pending bool
	offset  int64
	stored  int
}

// Write implements io.Writer.
func (s *sieve) Write(p []byte) (int, error) {
	s.rest = append(s.rest, p...)
	for {
		i := bytes.IndexByte(s.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		line := string(s.rest[:i])
		s.rest = s.rest[i+1:]
		if err := s.line(line); err != nil {
			return 0, err
		}
	}
}

func (s *sieve) close() error { return s.dump() }

func (s *sieve) line(line string) error {
	if s.o.Style != Text {
		return s.object(line)
	}
	bare := strings.TrimLeft(line, " ")
	switch fields := strings.Fields(bare); {
	case len(fields) >= 8 && isNumber(fields[0]) && isNumber(fields[7]):
		if err := s.dump(); err != nil {
			return err
		}
		s.offset, _ = strconv.ParseInt(fields[0], 10, 64)
		s.stored, _ = strconv.Atoi(fields[7])
		s.pending = s.o.Data
		if !s.o.Records {
			return nil
		}
	case strings.HasPrefix(line, "    ") || strings.HasPrefix(bare, "offset "):
		if !s.o.Records { // of a record, or the heading of records
			return nil
		}
	default:
		if err := s.dump(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(s.w, line)
	return err
}

func isNumber(text string) bool {
	_, err := strconv.ParseUint(text, 10, 64)
	return err == nil
}

// dump prints the bytes of the record that was printed last.
func (s *sieve) dump() error {
	if !s.pending {
		return nil
	}
	s.pending = false
	data, err := s.body()
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimRight(hex.Dump(data), "\n"), "\n") {
		if line == "" {
			continue
		}
		if _, err := fmt.Fprintf(s.w, "    %s\n", line); err != nil {
			return err
		}
	}
	return nil
}

// body reads a record's body as it is stored.
func (s *sieve) body() ([]byte, error) {
	if s.stored < 0 || s.stored > journal.RecordBodyMax {
		return nil, fmt.Errorf("record at %d: %d bytes: %w", s.offset, s.stored, core.ErrBad)
	}
	data := make([]byte, s.stored)
	_, err := s.f.ReadAt(data, s.offset+int64(journal.BodyOffset(uint32(s.stored))))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data, nil
}

// object handles a line of JSON.
func (s *sieve) object(line string) error {
	var x struct {
		Line   string `json:"line"`
		Offset int64  `json:"offset"`
		Stored int    `json:"stored"`
	}
	if err := json.Unmarshal([]byte(line), &x); err != nil {
		return err
	}
	if x.Line == "record" {
		if !s.o.Records {
			return nil
		}
		if s.o.Data {
			s.offset, s.stored = x.Offset, x.Stored
			data, err := s.body()
			if err != nil {
				return err
			}
			line = fmt.Sprintf(`%s,"data":%q}`, strings.TrimSuffix(line, "}"), hex.EncodeToString(data))
		}
	}
	if s.o.Style == YAML {
		line = "- " + line
	}
	_, err := fmt.Fprintln(s.w, line)
	return err
}
