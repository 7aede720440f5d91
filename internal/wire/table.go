package wire

import "fmt"

// Type says what a payload is.
type Type uint16

// Types. Numbers are part of the wire format and are never used again for something else.
const (
	TypePing        Type = 1
	TypeTicket      Type = 2
	TypeOpenSegment Type = 16
	TypeAppend      Type = 17
	TypeNotice      Type = 18
	TypeSync        Type = 19
	TypeSeal        Type = 20
	TypeFence       Type = 21
	TypeInventory   Type = 22
	TypeRead        Type = 23
	TypeReadRaw     Type = 24
	TypeReadIndex   Type = 25
	TypePush        Type = 26
	TypeDrop        Type = 27
	TypeStoreStatus Type = 28
	TypeLease       Type = 48
	TypeForward     Type = 49
	TypeBar         Type = 50
	TypeTick        Type = 51
	TypeOwnerStatus Type = 52
	TypeUnit        Type = 53
	TypeHandOver    Type = 54
	TypeBlocks      Type = 55
	TypeTroubles    Type = 56
	typeMax         Type = 56
)

// Kind is what the table knows of a type.
type Kind struct {
	Name    string
	Class   Class          // of the connections that carry it
	ToStore bool           // the header names a store
	Request func() Message // makes an empty one
	Reply   func() Message // nil: there is no answer
}

func fresh[T any, P interface {
	*T
	Message
}]() Message {
	return P(new(T))
}

var kinds = [typeMax + 1]Kind{
	TypePing:        {"ping", 0, false, fresh[Ping], fresh[Pong]}, // class 0: on every connection
	TypeTicket:      {"ticket", ClassControl, false, fresh[Ticket], fresh[TicketReply]},
	TypeOpenSegment: {"open segment", ClassAppend, true, fresh[OpenSegment], fresh[OpenReply]},
	TypeAppend:      {"append", ClassAppend, true, fresh[Append], fresh[AppendReply]},
	TypeNotice:      {"notice", ClassAppend, true, fresh[Notice], nil},
	TypeSync:        {"sync", ClassAppend, true, fresh[Sync], fresh[SyncReply]},
	TypeSeal:        {"seal", ClassAppend, true, fresh[Seal], fresh[SealReply]},
	TypeFence:       {"fence", ClassControl, true, fresh[Fence], fresh[FenceReply]},
	TypeInventory:   {"inventory", ClassBulk, true, fresh[Inventory], fresh[InventoryReply]},
	TypeRead:        {"read", ClassRead, true, fresh[Read], fresh[ReadReply]},
	TypeReadRaw:     {"read raw", ClassBulk, true, fresh[ReadRaw], fresh[ReadReply]},
	TypeReadIndex:   {"read index", ClassBulk, true, fresh[ReadIndex], fresh[ReadReply]},
	TypePush:        {"push", ClassBulk, true, fresh[Push], fresh[AppendReply]},
	TypeDrop:        {"drop", ClassControl, true, fresh[Drop], fresh[DropReply]},
	TypeStoreStatus: {"store status", ClassControl, true, fresh[StoreStatus], fresh[StoreStatusReply]},
	TypeLease:       {"lease", ClassControl, false, fresh[Lease], fresh[LeaseReply]},
	TypeForward:     {"forward", ClassForward, false, fresh[Forward], fresh[ForwardReply]},
	TypeBar:         {"bar", ClassControl, false, fresh[Bar], fresh[BarReply]},
	TypeTick:        {"tick", ClassControl, false, fresh[Tick], fresh[TickReply]},
	TypeOwnerStatus: {"owner status", ClassControl, false, fresh[OwnerStatus], fresh[OwnerStatusReply]},
	TypeUnit:        {"unit", ClassControl, false, fresh[Unit], fresh[UnitReply]},
	TypeHandOver:    {"hand over", ClassControl, false, fresh[HandOver], fresh[HandOverReply]},
	TypeBlocks:      {"blocks", ClassControl, false, fresh[Blocks], fresh[BlocksReply]},
	TypeTroubles:    {"troubles", ClassControl, false, fresh[Troubles], fresh[TroublesReply]},
}

// Since is the first version of the protocol that has the type.
func (t Type) Since() uint16 {
	switch {
	case t > TypeBlocks:
		return version3
	case t > TypeHandOver:
		return version2
	}
	return version1
}

// Since is the first version of the protocol in which m means what it says: of its type, or of a kind within it that came
// later.
func Since(m Message) uint16 {
	if b, ok := m.(*Bar); ok && b.Kind >= BarForget {
		return version2
	}
	return m.Type().Since()
}

// KindOf looks a type up; ok is false for one that this build doesn't know.
func KindOf(t Type) (k *Kind, ok bool) {
	if t > typeMax || kinds[t].Request == nil {
		return nil, false
	}
	return &kinds[t], true
}

// Types lists all types in order.
func Types() []Type {
	var all []Type
	for t := range kinds {
		if kinds[t].Request != nil {
			all = append(all, Type(t))
		}
	}
	return all
}

// SelfChecking reports that requests of the type carry data with checksums of their own, which the receiver
// checks anyway: a payload CRC then covers only the fields, which take the given number of bytes.
func SelfChecking(t Type) (fields int, ok bool) { return appendFields, t == TypeAppend }

func (t Type) String() string {
	if k, ok := KindOf(t); ok {
		return k.Name
	}
	return fmt.Sprintf("type %d", uint16(t))
}
