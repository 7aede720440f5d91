package scsi

import "dozo/internal/access/reserve"

// What task management functions of transports that have them ask (SAM-5 7): QUERY ASYNCHRONOUS EVENT and I_T NEXUS RESET.

// AllowQueries says that the nexus's transport has QUERY TASK, QUERY TASK SET, QUERY ASYNCHRONOUS EVENT and I_T NEXUS RESET.
// It is called before the first command.
func (n *Nexus) AllowQueries() { n.queries = true }

// Event is the additional response information of QUERY ASYNCHRONOUS EVENT (SAM-5 7.9): what the next unit attention
// condition of a logical unit is, and whether there are more. It stays.
func (n *Nexus) Event(lun uint16) (info [3]byte, pending bool) {
	u := n.unitAt(lun)
	if u == nil {
		return info, false
	}
	u.notice()
	a, count := u.attentions.Peek()
	if count == 0 {
		return info, false
	}
	const one, several = 1 << 4, 2 << 4 // UADE DEPTH
	info = [3]byte{one | byte(UnitAttention), a.ASC, a.ASCQ}
	if count > 1 {
		info[0] = several | byte(UnitAttention)
	}
	return info, true
}

// Lose is what the loss of the nexus does at a logical unit (SAM-5 6.3.4): copies end, what was reserved by RESERVE is free,
// and the initiator is told. Aborting the commands is the transport's. session is what the owner knows the session by.
func (n *Nexus) Lose(lun uint16, session uint64, done func(error)) {
	u := n.unitAt(lun)
	if u == nil {
		done(nil)
		return
	}
	var failed error
	ended := afterAll(2, func() { done(failed) })
	n.CancelCopies(lun, ended)
	n.Post(lun, reserve.NexusLoss)
	l := u.disk.Unit().State.Legacy
	if l == nil || l.Nexus != n.initiator.Nexus || l.Session != session {
		ended()
		return
	}
	r := Request{Initiator: n.initiator, ID: u.disk.NewID(), Stamp: u.disk.Stamp(), Session: session}
	u.disk.ChangeUnit(r, &reserve.Command{Action: reserve.NexusLost, Nexus: l.Nexus, Session: session},
		func(_ reserve.Outcome, err error) {
			failed = err
			ended()
		})
}
