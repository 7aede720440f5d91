package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"dozo/internal/guest/records"
)

// Kind is what a frame says.
type Kind uint8

// Frames. Those of one command have its ID.
const (
	KindHello  Kind = 1 // guest: ready; once, ID 0
	KindExec   Kind = 2 // host: JSON of Exec
	KindStdin  Kind = 3 // host: bytes of the command's input; as many as Exec said start it
	KindSignal Kind = 4 // host: one byte, the signal for the command's process group
	KindStdout Kind = 5 // guest: bytes
	KindStderr Kind = 6 // guest: bytes
	KindExit   Kind = 7 // guest: JSON of Exit
)

// PayloadMax bounds a frame, StdinMax a command's whole input, which is kept in the guest's memory.
const (
	PayloadMax = 64 << 10
	StdinMax   = 16 << 20
	headBytes  = 12
	frameMagic = 0xd020
)

// Frame is a unit of the conversation, on a virtio serial port:
//
//	off  size  field     little-endian
//	  0     2  magic     0xd020: the port carries bytes without bounds, so a lost one must not pass unseen
//	  2     1  kind
//	  3     1  zero
//	  4     4  ID        of the command, chosen by the host
//	  8     4  length    of the payload, at most PayloadMax
//	 12        payload
type Frame struct {
	Kind    Kind
	ID      uint32
	Payload []byte
}

// ErrFrame: what came is no frame. There is no way back into step.
var ErrFrame = errors.New("malformed frame")

// AppendFrame appends a frame's bytes.
func AppendFrame(b []byte, f Frame) []byte {
	b = binary.LittleEndian.AppendUint16(b, frameMagic)
	b = append(b, byte(f.Kind), 0)
	b = binary.LittleEndian.AppendUint32(b, f.ID)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Payload)))
	return append(b, f.Payload...)
}

// ReadFrame reads one frame; its payload is the caller's.
func ReadFrame(r io.Reader) (Frame, error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Kind: Kind(head[2]), ID: binary.LittleEndian.Uint32(head[4:])}
	length := binary.LittleEndian.Uint32(head[8:])
	if binary.LittleEndian.Uint16(head[:]) != frameMagic || f.Kind < KindHello || f.Kind > KindExit || head[3] != 0 || length > PayloadMax {
		return Frame{}, fmt.Errorf("%w: % x", ErrFrame, head)
	}
	f.Payload = make([]byte, length)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return Frame{}, noEOF(err)
	}
	return f, nil
}

// noEOF: the end within a frame is never the end of the conversation.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Exec asks for a command.
type Exec struct {
	Args []string `json:"args,omitempty"`
	Env  []string `json:"env,omitempty"` // besides the guest's own
	Dir  string   `json:"dir,omitempty"`
	// StdinBytes is how much input follows in Stdin frames.
	StdinBytes int `json:"stdin_bytes,omitempty"`
	// TTY is a terminal of the guest which is the command's input and output, instead of frames.
	TTY string `json:"tty,omitempty"`
	// Records, instead of Args: write records until a signal comes. Stdout gets the acknowledgements.
	Records *records.Job `json:"records,omitempty"`
}

// Exit says how a command ended: Error if it could not be started, Signal if one killed it, else its Status.
type Exit struct {
	Status int    `json:"status"`
	Signal int    `json:"signal,omitempty"`
	Error  string `json:"error,omitempty"`
}

// parseExec reads and checks a request.
func parseExec(payload []byte) (Exec, error) {
	var e Exec
	if err := json.Unmarshal(payload, &e); err != nil {
		return e, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	if e.StdinBytes < 0 || e.StdinBytes > StdinMax || (len(e.Args) == 0) == (e.Records == nil) {
		return e, fmt.Errorf("%w: exec", ErrFrame)
	}
	if e.Records != nil {
		return e, e.Records.Validate()
	}
	return e, nil
}
