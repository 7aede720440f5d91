package scsi

import (
	"fmt"
	"time"

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
	// Proved is the newest moment that the byte streams of the session have proved so far; nil where the transport has no proof.
	Proved func() Stamp
}

// longGap is the longest pause between the calls of one command. An access server that was stopped in the middle
// must not go on: the client may have done all of it by another path since (R9). The pause is looked at after
// the stamp of the next call was taken, so a stop in between makes that stamp too old.
const longGap = 2 * time.Second

// Request goes along with every call of a Disk: who asks, which command it is, and what the client's byte
// stream has proved about when it was sent (protocol rule R9).
type Request struct {
	Initiator *Initiator
	ID        RequestID
	Stamp     Stamp
	// Began is the stamp of the command, where Stamp is a newer one: calls that a command makes late, because it
	// takes its time, and commands that were reassigned to another connection before they began. They are held to
	// refusals by Began, and by Stamp to the age of the call itself. Otherwise the first call of every command goes by
	// the command's own stamp.
	Began Stamp
	// Session is what the owner knows the session by, where ID.Conn isn't it: the leading connection of the command
	// that a call is part of; else 0.
	Session uint64
}

// began is the stamp of the command itself.
func (r *Request) began() Stamp {
	if r.Began != (Stamp{}) {
		return r.Began
	}
	return r.Stamp
}

// fresh is the stamp of a call that a long command makes now: what the initiator has proved since, and nothing newer (R9). A path that it
// has given up, because nothing comes by it any more, proves nothing, though this end of it does not know yet.
func (r *Request) fresh(d Disk) Stamp {
	if r.Initiator == nil || r.Initiator.Proved == nil {
		return d.Stamp()
	}
	if at := r.Initiator.Proved(); at.Newer(r.Stamp) {
		return at
	}
	return r.Stamp
}

// SessionID is what the owner knows the session of the request by.
func (r *Request) SessionID() uint64 {
	if r.Session != 0 {
		return r.Session
	}
	return r.ID.Conn
}
