package access

import (
	"sync"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// What an access server remembers of the ports that have logged in by it to a volume: the epoch of the owner that answered last. Where that
// owner was cut off and is left behind by a takeover that was not proven, so are the attachments of its logins, and a port that logs in
// again would be taken for a new one (R11). So the next login says what is remembered here, and the new owner can tell. It is forgotten with
// the process, and another access server knows nothing of it.
type logins struct {
	mu sync.Mutex
	at map[login]ident.Epoch
}

// login is a port and one of its paths.
type login struct {
	port  journal.Port
	group uint16
}

// tell has a login say at which epoch the last one by this path was answered; a logout ends it.
func (l *logins) tell(m *wire.Bar) {
	k := login{portOf(&m.Nexus), m.Nexus.TPGT}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m.Kind {
	case wire.BarLogin:
		m.First, m.Last = l.at[k].Number, uint64(l.at[k].Lineage)
	case wire.BarLogout:
		delete(l.at, k)
	}
}

// answered notes the epoch of the owner that has answered a login.
func (l *logins) answered(m *wire.Bar, epoch ident.Epoch) {
	if m.Kind != wire.BarLogin {
		return
	}
	k := login{portOf(&m.Nexus), m.Nexus.TPGT}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[login]ident.Epoch{}
	}
	l.at[k] = epoch
	for other := range l.at { // whichever: ports that go away without a logout are not to fill the memory
		if len(l.at) <= portsMax {
			break
		}
		if other != k {
			delete(l.at, other)
		}
	}
}
