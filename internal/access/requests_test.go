package access

import (
	"log/slog"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
)

// TestRequestsOfManyCommandsAndConnections: rule R9. Numbers of requests have room for the parts of a command, so those of a connection
// are far apart; and each connection has IDs of its own. A request that became a record lately is known, however many there were
// before.
func TestRequestsOfManyCommandsAndConnections(t *testing.T) {
	m, err := volume.New(ident.JournalID{1}, 64)
	if err != nil {
		t.Fatal(err)
	}
	o := &Owner{m: m, log: slog.New(slog.DiscardHandler)}
	const step = 1 << 12
	seq := ident.Seq(0)
	note := func(forwarder, n uint64) {
		seq++
		o.noteRequest(journal.RequestID{Forwarder: forwarder, Number: n * step}, 0, seq)
	}
	known := func(forwarder, n uint64) bool {
		_, found, _ := m.Requests().Find(journal.RequestID{Forwarder: forwarder, Number: n * step}, 0)
		return found
	}
	const commands = 2*volume.RequestsMax + 10
	for n := uint64(1); n <= commands; n++ {
		note(5, n)
	}
	for n := uint64(commands - 256); n <= commands; n++ { // a window
		if !known(5, n) {
			t.Fatalf("command %d of %d is not known", n, commands)
		}
	}
	for f := uint64(100); f < 100+3*volume.ForwardersMax; f++ {
		if note(f, 1); !known(f, 1) {
			t.Fatalf("the command of connection %d is not known", f-100)
		}
	}
}
