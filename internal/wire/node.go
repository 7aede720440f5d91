package wire

// The messages that connections need for themselves. Package peer makes and answers them.

// Ping asks for a sign of life.
type Ping struct{}

// Pong answers Ping.
type Pong struct{}

// Ticket asks, on an encrypted connection, for the right to open one data connection without encryption.
type Ticket struct {
	Class Class
}

// TicketReply is good for one connection of the asking node, soon.
type TicketReply struct {
	ID     [16]byte
	Secret [32]byte // never on a connection without encryption
}
