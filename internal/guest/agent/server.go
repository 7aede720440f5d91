package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dozo/internal/guest/records"
)

// Server carries out commands.
type Server struct {
	rw    io.ReadWriter
	reap  *reaper
	write sync.Mutex // held across one frame
	buf   []byte

	mu       sync.Mutex
	commands map[uint32]*command
	wg       sync.WaitGroup
}

// command is one that the host has asked for. It is started once its input is there.
type command struct {
	exec  Exec
	stdin bytes.Buffer
	pid   int                // 0: not started, or ended
	stop  context.CancelFunc // of a writer of records
}

// NewServer makes a server on a channel to the host. With all set it reaps every process without a parent, as process 1
// must.
func NewServer(rw io.ReadWriter, all bool) *Server {
	return &Server{rw: rw, reap: newReaper(all), commands: map[uint32]*command{}}
}

// Serve greets the host and carries out its commands until the channel ends. Commands that still run are killed.
func (s *Server) Serve() error {
	if err := s.send(Frame{Kind: KindHello}); err != nil {
		return err
	}
	var err error
	for err == nil {
		var f Frame
		if f, err = ReadFrame(s.rw); err == nil {
			err = s.handle(f)
		}
	}
	s.mu.Lock()
	for _, c := range s.commands {
		c.signal(syscall.SIGKILL)
	}
	s.mu.Unlock()
	s.wg.Wait()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *Server) send(f Frame) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.buf = AppendFrame(s.buf[:0], f)
	_, err := s.rw.Write(s.buf)
	return err
}

func (s *Server) handle(f Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.commands[f.ID]
	switch f.Kind {
	case KindExec:
		e, err := parseExec(f.Payload)
		if err != nil {
			return err
		}
		if c != nil {
			return fmt.Errorf("%w: command %d twice", ErrFrame, f.ID)
		}
		c = &command{exec: e}
		s.commands[f.ID] = c
		if e.StdinBytes == 0 {
			s.startLocked(f.ID, c)
		}
	case KindStdin:
		if c == nil || c.stdin.Len()+len(f.Payload) > c.exec.StdinBytes {
			return fmt.Errorf("%w: input that was not announced", ErrFrame)
		}
		c.stdin.Write(f.Payload)
		if c.stdin.Len() == c.exec.StdinBytes {
			s.startLocked(f.ID, c)
		}
	case KindSignal:
		if len(f.Payload) != 1 {
			return fmt.Errorf("%w: signal of %d bytes", ErrFrame, len(f.Payload))
		}
		// A command that has just ended is no mistake of the host's.
		if c != nil {
			c.signal(syscall.Signal(f.Payload[0]))
		}
	default:
		return fmt.Errorf("%w: kind %d from the host", ErrFrame, f.Kind)
	}
	return nil
}

func (c *command) signal(sig syscall.Signal) {
	if c.stop != nil {
		c.stop()
	}
	if c.pid != 0 {
		_ = syscall.Kill(-c.pid, sig)
	}
}

// startLocked starts a command; that it can not be is told to the host as its end.
func (s *Server) startLocked(id uint32, c *command) {
	if c.exec.Records != nil {
		ctx, cancel := context.WithCancel(context.Background())
		c.stop = cancel
		s.wg.Go(func() {
			defer cancel()
			s.end(id, s.writeRecords(ctx, id, *c.exec.Records))
		})
		return
	}
	fail := func(err error) {
		s.wg.Go(func() { s.end(id, Exit{Status: 127, Error: err.Error()}) })
	}
	cmd := exec.Command(c.exec.Args[0], c.exec.Args[1:]...)
	cmd.Env, cmd.Dir = append(os.Environ(), c.exec.Env...), c.exec.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var mine []*os.File // given to the command: closed here once it runs
	defer func() {
		for _, f := range mine {
			_ = f.Close()
		}
	}()
	var outputs []*os.File
	var ended <-chan syscall.WaitStatus
	err := func() (err error) {
		if c.exec.TTY != "" {
			tty, err := os.OpenFile(c.exec.TTY, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			mine = append(mine, tty)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, 0
		} else {
			if c.stdin.Len() > 0 {
				in, err := inputFile(c.stdin.Bytes())
				if err != nil {
					return err
				}
				mine = append(mine, in)
				cmd.Stdin = in
			}
			for _, w := range []*io.Writer{&cmd.Stdout, &cmd.Stderr} {
				r, out, err := os.Pipe()
				if err != nil {
					return err
				}
				outputs, mine = append(outputs, r), append(mine, out)
				*w = out
			}
		}
		c.pid, ended, err = s.reap.start(cmd)
		return err
	}()
	if err != nil {
		for _, r := range outputs {
			_ = r.Close()
		}
		fail(err)
		return
	}
	c.stdin = bytes.Buffer{}
	s.wg.Go(func() {
		var copies sync.WaitGroup
		for i, r := range outputs {
			copies.Go(func() { s.copyOutput(id, KindStdout+Kind(i), r) })
		}
		status := <-ended
		s.mu.Lock()
		c.pid = 0
		s.mu.Unlock()
		for _, r := range outputs {
			// What it has left behind may hold the pipes open for ever.
			_ = r.SetReadDeadline(time.Now())
		}
		copies.Wait()
		e := Exit{Status: status.ExitStatus()}
		if status.Signaled() {
			e.Signal, e.Status = int(status.Signal()), 128+int(status.Signal())
		}
		s.end(id, e)
	})
}

// inputFile gives a file without a name that has the bytes.
func inputFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	_, err = f.Write(b)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("input: %w", err)
	}
	return f, nil
}

// copyOutput sends what a command prints, until nobody can write any more; or the read deadline passes, and then also
// what is in the pipe.
func (s *Server) copyOutput(id uint32, kind Kind, r *os.File) {
	defer r.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && s.send(Frame{kind, id, buf[:n]}) != nil {
			return
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		raw, err := r.SyscallConn()
		if err != nil {
			return
		}
		// The pipe does not block, so this ends with EAGAIN at the latest.
		_ = raw.Control(func(fd uintptr) {
			for {
				n, err := unix.Read(int(fd), buf)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if n <= 0 || err != nil || s.send(Frame{kind, id, buf[:n]}) != nil {
					return
				}
			}
		})
		return
	}
}

// end forgets a command and tells the host.
func (s *Server) end(id uint32, e Exit) {
	s.mu.Lock()
	delete(s.commands, id)
	s.mu.Unlock()
	text, err := json.Marshal(e)
	if err != nil {
		text = []byte(`{"error":"exit"}`)
	}
	_ = s.send(Frame{KindExit, id, text})
}

// writeRecords writes records past the page cache, in memory aligned as that wants.
func (s *Server) writeRecords(ctx context.Context, id uint32, j records.Job) Exit {
	err := func() error {
		f, err := os.OpenFile(j.Device, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		block, err := unix.Mmap(-1, 0, records.BlockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		defer unix.Munmap(block)
		return records.Write(ctx, f, block, j, frameWriter{s, id})
	}()
	if err != nil {
		return Exit{Status: 1, Error: err.Error()}
	}
	return Exit{}
}

// frameWriter makes Stdout frames of what is written.
type frameWriter struct {
	s  *Server
	id uint32
}

func (w frameWriter) Write(b []byte) (int, error) {
	return len(b), w.s.send(Frame{KindStdout, w.id, b})
}
