package control

import (
	"net/netip"
	"slices"
	"time"

	"dozo/internal/ident"
)

// FormatVersion is the version of everything that this package stores, in the cluster key and as "v" in
// every value.
//
//	1  first release
const FormatVersion = 1

// DefaultTenant is the tenant of specifications that name none.
const DefaultTenant = "default"

// Rev is the revision of a key: the control store's count of changes when the key was last written. 0 means
// that there is no such key.
type Rev int64

// Cluster describes the whole. It is written once, when the cluster is made.
type Cluster struct {
	ID      string    `json:"id"` // 32 hexadecimal digits, random; certificates carry it
	Name    string    `json:"name"`
	Lineage uint32    `json:"lineage"` // random, never 0; a control store forced to start anew gets another (R11)
	Format  int       `json:"format"`
	Created time.Time `json:"created"`
}

// Site is a data centre, told apart by its subnets.
type Site struct {
	ID    ident.SiteID   `json:"id"` // given out by CreateSite, never again
	Name  string         `json:"name"`
	CIDRs []netip.Prefix `json:"cidrs,omitempty"`
}

// Role is what a node does.
type Role string

// The roles. A witness is a voter of the control store and nothing else.
const (
	RoleCore    Role = "core"
	RoleAccess  Role = "access"
	RoleHint    Role = "hint"
	RoleWitness Role = "witness"
)

// Node is one `dozo serve` process. It writes its own entry when it starts (RegisterNode).
type Node struct {
	Name    ident.NodeName `json:"name"`
	Site    ident.SiteID   `json:"site"`    // 0 only for a witness that is at no site
	HostID  string         `json:"host_id"` // the machine's identity: no two members of an ensemble share one
	Roles   []Role         `json:"roles"`
	Addrs   Addrs          `json:"addrs"`
	Stores  []StoreSpec    `json:"stores,omitempty"`
	Version string         `json:"version"` // of the program
	TPGT    uint16         `json:"tpgt"`    // iSCSI target portal group tag, unique in the cluster, given out by RegisterNode
	Voter   bool           `json:"voter"`   // runs an embedded voter of the control store

	Draining bool `json:"draining,omitempty"` // it hands over what it owns and takes nothing: an operator's word (SetDraining)
	Leaving  bool `json:"leaving,omitempty"`  // it is to be removed: its stores are emptied too (SetLeaving)
	Voting   bool `json:"voting,omitempty"`   // it is to run a voter in the place of one that was removed (SetVoting)
}

// Has reports whether the node has the role.
func (n Node) Has(r Role) bool {
	for _, x := range n.Roles {
		if x == r {
			return true
		}
	}
	return false
}

// Addrs are a node's addresses, one for each kind of peer, so that each can have a network of its own.
type Addrs struct {
	Portals    []Portal       `json:"portals,omitempty"`    // iSCSI, for initiators
	Cluster    netip.AddrPort `json:"cluster,omitzero"`     // frames, for nodes of the same site
	Wan        netip.AddrPort `json:"wan,omitzero"`         // frames, for nodes of other sites
	Management netip.AddrPort `json:"management,omitzero"`  // API
	ControlURL string         `json:"control_url,omitzero"` // client URL of the embedded voter, if it runs one
}

// Portal is an address at which the access server takes iSCSI connections. All portals of a node are one
// portal group, so that a session's connections may be spread over them.
type Portal struct {
	Addr netip.AddrPort `json:"addr"`
	TPGT uint16         `json:"tpgt"` // the node's
}

// StoreSpec is a data directory on one disk of a node.
type StoreSpec struct {
	ID            ident.StoreID `json:"id"`
	Label         string        `json:"label,omitempty"`
	CapacityBytes int64         `json:"capacity_bytes"`
	Leaving       bool          `json:"leaving,omitempty"` // it is to be replaced: it is emptied, an operator's word (SetStoreLeaving)
}

// LostStore is a store that an operator has declared lost: what it held counts for nothing any more, wherever it may be,
// and it is never registered again (R3, R13).
type LostStore struct {
	ID   ident.StoreID  `json:"id"`
	Node ident.NodeName `json:"node,omitempty"` // that had it
	Site ident.SiteID   `json:"site,omitempty"`
	Time time.Time      `json:"time"`
	By   string         `json:"by,omitempty"`
}

// Host is a machine that uses volumes, with the names and secrets by which it is known. (Tenant, Name) names
// it; an initiator name belongs to one host in the cluster.
type Host struct {
	Tenant         string         `json:"tenant"`
	Name           string         `json:"name"`
	InitiatorNames []string       `json:"initiator_names,omitempty"`
	CIDRs          []netip.Prefix `json:"cidrs,omitempty"` // where it may log in from; empty: anywhere
	CHAP           CHAP           `json:"chap,omitzero"`
	Created        time.Time      `json:"created"`
}

// CHAP has the credentials of both directions; secrets are empty where a direction is not used. RFC 7143
// 9.2.1 forbids one secret for both.
type CHAP struct {
	InUser    string `json:"in_user,omitempty"` // the initiator proves itself to the target
	InSecret  Secret `json:"in_secret,omitzero"`
	OutUser   string `json:"out_user,omitempty"` // the target proves itself to the initiator
	OutSecret Secret `json:"out_secret,omitzero"`
}

// Durability says when a write is acknowledged.
type Durability string

// Replicated: two core servers hold the write. Sync: both have it on stable storage.
const (
	Replicated Durability = "replicated"
	Sync       Durability = "sync"
)

// Partition says what the owner does when its site is cut off.
type Partition string

// The partition policies.
const (
	PartitionContinue Partition = "continue"
	PartitionStop     Partition = "stop"
)

// Ownership says whether a volume's owner changes by itself when all writes come from elsewhere.
type Ownership string

// The ownership policies. A volume that is pinned moves only when it is told to, or when its owner dies.
const (
	OwnershipFollow Ownership = "follow"
	OwnershipPin    Ownership = "pin"
)

// RemoteAccess says in which state a volume's paths are by way of access servers of other sites than the owner's.
type RemoteAccess string

// The states (SPC-4 5.16.2.4). Non-optimized paths are used when there is nothing better; standby ones only once the
// owner is near them; unavailable ones are that and don't answer for the volume's reservations and modes either.
const (
	RemoteNonOptimized RemoteAccess = "nonoptimized"
	RemoteStandby      RemoteAccess = "standby"
	RemoteUnavailable  RemoteAccess = "unavailable"
)

// Redirect says where initiators that log in are sent.
type Redirect string

// The redirections. Whatever they say, an access server that drains sends initiators elsewhere.
const (
	RedirectOff   Redirect = "off"
	RedirectSite  Redirect = "site"  // to an access server of the initiator's own site, for good
	RedirectOwner Redirect = "owner" // to the owner, this time
)

// VolumeSpec is what an operator asked for. ID never changes; Name may, and is unique among the tenant's
// volumes that are not deleted.
type VolumeSpec struct {
	ID         ident.JournalID   `json:"id"`
	Tenant     string            `json:"tenant"`
	Name       string            `json:"name"`
	SizeBytes  int64             `json:"size_bytes"`
	BlockSize  int               `json:"block_size"` // logical: 512 or 4096
	Sites      int               `json:"sites"`      // how many sites hold a copy
	AtSite     ident.SiteID      `json:"at_site"`    // home: where the first owner is
	Durability Durability        `json:"durability"`
	Partition  Partition         `json:"partition"`
	Ownership  Ownership         `json:"ownership,omitempty"`   // empty, of volumes that are older than it: follow
	ALUARemote RemoteAccess      `json:"alua_remote,omitempty"` // empty: nonoptimized
	Redirect   Redirect          `json:"redirect,omitempty"`    // empty: off
	Ack        int               `json:"ack,omitempty"`         // so many other sites hold a write before it is acknowledged; 0: local
	Labels     map[string]string `json:"labels,omitempty"`
	Hosts      []string          `json:"hosts,omitempty"` // names of the tenant's hosts that may use it; empty: all
	Maps       []Map             `json:"maps,omitempty"`  // LUNs of the hosts' target
	Created    time.Time         `json:"created"`
	// Cloning marks a volume that has only a part of what it is to be a clone of: no initiator may use it (FinishClone).
	Cloning *CloneOf `json:"cloning,omitempty"`
	// Deleted marks a tombstone (R13): the name is free, the ID stays until every store that may hold replicas
	// has confirmed that they are gone. Confirmed lists the stores that have.
	Deleted   *time.Time      `json:"deleted,omitempty"`
	Confirmed []ident.StoreID `json:"confirmed,omitempty"`
}

// CloneOf says of what a volume is to be a clone: of a volume as one of its forks has it.
type CloneOf struct {
	Volume ident.JournalID `json:"volume"`
	Fork   string          `json:"fork"`
}

// The sizes of an ensemble (R3).
const (
	EnsembleMin = 2
	EnsembleMax = 4
)

// Ensemble is a set of stores over which an owner spreads segments. Number counts ensembles of a journal up
// and is never used again.
type Ensemble struct {
	Epoch  ident.Epoch     `json:"epoch"` // of the owner that added it
	Number uint32          `json:"number"`
	Stores []ident.StoreID `json:"stores"`
	// Wide stands for a list that was lost with the control store: every store that may have been a member of one of
	// its ensembles. It is asked at a takeover, all but one of it, and never written to. Unproven: more than one store
	// that may have been a member is lost, so what is recovered by it proves nothing.
	Wide     bool `json:"wide,omitempty"`
	Unproven bool `json:"unproven,omitempty"`
}

// JournalState is the value of a journal's one key (R3). A new journal has no owner, epoch 0 and no
// ensembles: there is nobody to ask. Once an ensemble is listed the list is never empty again. Oldest
// ensemble first; the last is the newest.
type JournalState struct {
	Owner     ident.NodeName `json:"owner,omitempty"`
	Epoch     ident.Epoch    `json:"epoch"`
	Ensembles []Ensemble     `json:"ensembles,omitempty"`
	Sites     []ident.SiteID `json:"sites,omitempty"` // that hold copies, home first
	Forced    *Forced        `json:"forced,omitempty"`
	// Unheard: the key comes from a backup, and the list does not count yet (R3). Nobody takes the journal over until
	// every store has answered, or its running owner has written its key back.
	Unheard bool `json:"unheard,omitempty"`
	// Stops says that the owner of this epoch goes silent when it loses its lease of the control store, whatever the
	// specification says by now: only then may another site take the journal over by itself (R11). It is the owner's word.
	Stops bool `json:"stops,omitempty"`
	// Ack says that everything that was acknowledged or read is held by so many sites beside the one that had two copies
	// of it (R11), whatever the specification says by now: it is the owner's word, given once it is so and taken back before
	// it is not. AckSince is the record from which on the owner has waited for them.
	Ack      int       `json:"ack,omitempty"`
	AckSince ident.Seq `json:"ack_since,omitempty"`
	// Handed says that the owner was named while the one before served (R10): unless it has begun, its site may lack the end
	// of the history. It goes with the first change by an owner, and with a word that overrides it.
	Handed bool `json:"handed,omitempty"`
}

// Forced is in a journal's key from a takeover without the answers that R2 asks for until the ensembles that it
// did without are off the list.
type Forced struct {
	// Epoch of the change. Once an epoch-start of it, or of a later one, is seen, what the lost stores may have beyond
	// is given up: takeovers go by the ensembles without them as if those were all.
	Epoch ident.Epoch `json:"epoch"`
	// Lost are the members of listed ensembles that are not waited for. If they answer they are heard.
	Lost []ident.StoreID `json:"lost"`
	// Hear is how many of the journal's sites have to be heard whole before a takeover goes on without the lost stores: with
	// so many nothing that was acknowledged is left behind (JournalState.Ack). 0: as many as there are.
	Hear int `json:"hear,omitempty"`
	// From is the site of the owner that was given up; Silent, that it could answer nothing any more by then.
	From   ident.SiteID `json:"from,omitempty"`
	Silent bool         `json:"silent,omitempty"`
	// Begun is the end of the history after which an owner began that went without the lost stores. Its epoch-start may be at
	// one store only, with what nobody else has of that history: an owner after it that does not hear of that start goes on
	// from no less, until another takeover by force says so.
	Begun *HistoryEnd `json:"begun,omitempty"`
	// Loss says that the operator has agreed to go on with what there is, even if that is less than what was stable by the word of stores
	// that all answer: none of the ensembles that were listed is believed to be complete any more (R4).
	Loss bool `json:"loss,omitempty"`
}

// HistoryEnd is the last record of a history.
type HistoryEnd struct {
	Epoch ident.Epoch `json:"epoch"`
	Seq   ident.Seq   `json:"last"`
}

// Beyond reports that a history which ends with at can not have all of this one.
func (e *HistoryEnd) Beyond(at ident.Position) bool {
	return e != nil && (at.Seq < e.Seq || at.Epoch.Less(e.Epoch))
}

// Newest gives the newest ensemble, the only one whose grants count (R3).
func (s JournalState) Newest() (Ensemble, bool) {
	if len(s.Ensembles) == 0 {
		return Ensemble{}, false
	}
	return s.Ensembles[len(s.Ensembles)-1], true
}

// Clone copies the state deeply, for building a changed one.
func (s JournalState) Clone() JournalState {
	out := s
	out.Sites = append([]ident.SiteID(nil), s.Sites...)
	out.Ensembles = make([]Ensemble, len(s.Ensembles))
	for i, e := range s.Ensembles {
		e.Stores = append([]ident.StoreID(nil), e.Stores...)
		out.Ensembles[i] = e
	}
	if len(s.Ensembles) == 0 {
		out.Ensembles = nil
	}
	if s.Forced != nil {
		f := *s.Forced
		f.Lost = append([]ident.StoreID(nil), s.Forced.Lost...)
		if s.Forced.Begun != nil {
			begun := *s.Forced.Begun
			f.Begun = &begun
		}
		out.Forced = &f
	}
	return out
}

// Lost reports that a takeover does not wait for a store as a member of an ensemble: one by force has given it up. That is a word
// about the ensembles that were listed then. Where a store has come back and is a member of a later one, what that one needs
// is needed.
func (s JournalState) Lost(e Ensemble, id ident.StoreID) bool {
	return s.Forced != nil && e.Epoch.Less(s.Forced.Epoch) && slices.Contains(s.Forced.Lost, id)
}

// GivenUp reports that a takeover by force has given up a member of an ensemble, or what its members had promised.
func (s JournalState) GivenUp(e Ensemble) bool {
	return s.Forced != nil && s.Forced.Loss && e.Epoch.Less(s.Forced.Epoch) || slices.ContainsFunc(e.Stores, func(id ident.StoreID) bool { return s.Lost(e, id) })
}

// unforced drops the note once no ensemble is listed that was given up.
func (s JournalState) unforced() JournalState {
	if !slices.ContainsFunc(s.Ensembles, s.GivenUp) {
		s.Forced = nil
	}
	return s
}
