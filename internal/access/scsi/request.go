package scsi

import (
	"fmt"

	"dozo/internal/access/reserve"
	"dozo/internal/ident"
)

// Stamp is a moment of an owner's life: rule R9's proof of how fresh a command is. The zero Stamp is older
// than every other.
type Stamp struct {
	Epoch ident.Epoch
	Tick  uint64
}

// Newer reports whether s is a later moment than o. Ticks of different epochs are not compared: the later
// generation is newer.
func (s Stamp) Newer(o Stamp) bool {
	if s.Epoch == o.Epoch {
		return s.Tick > o.Tick
	}
	return !s.Epoch.Less(o.Epoch)
}

// RequestID names a command for as long as an owner may be asked about it. Conn is drawn at random for each
// connection of a client; Seq counts its commands from 1; Tag is the client's own tag (for iSCSI the
// initiator task tag), which an operator finds in the client's traces. Part numbers the calls of a Disk that
// one command became.
type RequestID struct {
	Conn uint64
	Seq  uint64
	Tag  uint32
	Part uint32
}

func (id RequestID) String() string {
	return fmt.Sprintf("%016x/%d/%08x.%d", id.Conn, id.Seq, id.Tag, id.Part)
}

// Initiator is who sends commands: the nexus and where it was seen. It lives as long as its session and is
// never modified.
type Initiator struct {
	Nexus  reserve.NexusID
	Remote string // address of the connection, for logs and listings
}

// Request goes along with every call of a Disk: who asks, which command it is, and what the client's byte
// stream has proved about when it was sent (protocol rule R9).
type Request struct {
	Initiator *Initiator
	ID        RequestID
	Stamp     Stamp
	// Long marks a call of a command that takes its time, so that it may be older than a stamp lives: it is held
	// to refusals by the stamp, but not to its age.
	Long bool
	// Session is the connection of the command that a call is part of, where ID.Conn isn't it; else 0.
	Session uint64
}
