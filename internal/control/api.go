package control

import (
	"context"
	"time"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

// Store is what the program knows of the control store.
//
// Cached reads (those without a context) never wait and may be behind; they are complete from the moment the
// store was opened. Everything with a context goes to the control store; where the context has no deadline,
// one is set (Options.Timeout), and until it passes failures that may pass are retried with backoff and
// jitter. All methods may be called concurrently, except that one caller at a time changes a given journal.
type Store interface {
	// Cluster is what InitCluster wrote; ErrNoCluster before.
	Cluster() (Cluster, error)
	// InitCluster makes the cluster's key if there is none. Of several callers one makes it; all get the same
	// back. A cluster of another name is ErrExists.
	InitCluster(ctx context.Context, c Cluster) (Cluster, error)

	Sites() []Site // by ID
	Site(id ident.SiteID) (Site, bool)
	SiteByName(name string) (Site, bool)
	// CreateSite gives the site an ID. ErrExists if the name is taken.
	CreateSite(ctx context.Context, s Site) (Site, error)
	// KeepSite makes a site with the ID that it had in a control store that was lost.
	KeepSite(ctx context.Context, s Site) error
	UpdateSite(ctx context.Context, id ident.SiteID, change func(*Site) error) (Site, error)
	// RemoveSite is ErrInUse while nodes or volumes are there.
	RemoveSite(ctx context.Context, id ident.SiteID) error

	Nodes() []Node // by name
	// SharedNodes is Nodes without a copy, for what asks often: nobody may change the list.
	SharedNodes() []Node
	Node(name ident.NodeName) (Node, bool)
	// NodeOfStore says which node has the store.
	NodeOfStore(id ident.StoreID) (Node, bool)
	// RegisterNode writes the node's entry, giving it a TPGT at the first time and keeping it from then on.
	// A store that was declared lost is ErrLost. One that another node has registered is ErrInUse; so is a change of a node's site or host while it has
	// stores.
	RegisterNode(ctx context.Context, n Node) (Node, error)
	RemoveNode(ctx context.Context, name ident.NodeName) error
	// RemoveNodeIf is that if may does not refuse, with an error other than ErrConflict, the entry that is removed.
	RemoveNodeIf(ctx context.Context, name ident.NodeName, may func(Node) error) error
	// Level is what every registered node knows of the stored form, and of records (LevelRecords).
	Level() int
	// SetDraining has a node hand over what it owns and take nothing, or ends that.
	SetDraining(ctx context.Context, name ident.NodeName, yes bool) (Node, error)
	// SetLeaving says that a node is to be removed: it drains, and its stores are emptied; or ends that.
	SetLeaving(ctx context.Context, name ident.NodeName, yes bool) (Node, error)
	// SetVoting has a node run a voter of the embedded control store from now on.
	SetVoting(ctx context.Context, name ident.NodeName) (Node, error)
	// SetStoreLeaving has a store emptied, or ends that.
	SetStoreLeaving(ctx context.Context, id ident.StoreID, yes bool) (Node, error)
	// StoreLost reports that an operator has declared the store lost; LostStores lists those, by ID.
	StoreLost(id ident.StoreID) bool
	LostStores() []LostStore
	// LoseStore records an operator's word that a store will not come back. It can not be taken back: from then on
	// others may be let go that would be needed if it counted.
	LoseStore(ctx context.Context, id ident.StoreID) (LostStore, error)
	// Announce keeps a leased key for the node until the store is closed, so that others see it as alive within
	// Options.AliveTTL. It is for display and for choosing where to place, never for safety.
	Announce(name ident.NodeName) error
	// Alive reports whether the node's announcement stands. While the control store is away, the last known.
	Alive(name ident.NodeName) bool

	// Hold keeps a leased key for the node until the store is closed: what the owner of a volume needs that stops when it
	// is cut off (R11). renewed is called after each renewal with the moment, by clock, at which it was asked for: the
	// key is there for HoldTTL from then on at least. anew says that it had not been there all the time since the
	// renewal before. Holding twice changes nothing.
	Hold(name ident.NodeName, clock func() int64, renewed func(asked int64, anew bool)) error
	// Held reports whether a node's hold stands, as last seen. It decides nothing: ForceJournal does.
	Held(name ident.NodeName) bool

	Hosts() []Host // by tenant and name
	Host(tenant, name string) (Host, bool)
	HostByInitiator(initiatorName string) (Host, bool)
	CreateHost(ctx context.Context, h Host) (Host, error)
	UpdateHost(ctx context.Context, tenant, name string, change func(*Host) error) (Host, error)
	// DeleteHost is ErrInUse while a volume names the host as allowed, or is mapped to it.
	DeleteHost(ctx context.Context, tenant, name string) error

	// Discovery is what initiators have to prove before any node tells them of targets, the zero CHAP for nothing.
	Discovery() CHAP
	// SetDiscovery changes it; the zero CHAP ends it.
	SetDiscovery(ctx context.Context, chap CHAP) error

	Volumes() []VolumeSpec // not deleted, by tenant and name
	Tombstones() []VolumeSpec
	// SharedVolumes is both without copies, for what looks at each change: nobody may change what it gives.
	SharedVolumes() (volumes, tombstones []*VolumeSpec)
	Volume(id ident.JournalID) (VolumeSpec, bool) // tombstones too
	VolumeByName(tenant, name string) (VolumeSpec, bool)
	// CreateVolume fills in what the specification leaves out (ID, tenant, defaults), and makes the journal's key
	// with sites as the places of copies, in one transaction.
	CreateVolume(ctx context.Context, v VolumeSpec, sites []ident.SiteID) (VolumeSpec, error)
	// CreateVolumes makes up to VolumesPerTxn volumes with their copies at the same sites, in one transaction: all of them or none.
	// Called again with the same IDs, it succeeds if they are there.
	CreateVolumes(ctx context.Context, list []VolumeSpec, sites []ident.SiteID) ([]VolumeSpec, error)
	// UpdateVolume changes size, policies, labels and hosts; ID, tenant, name, block size and tombstone are
	// not changed by it.
	UpdateVolume(ctx context.Context, id ident.JournalID, change func(*VolumeSpec) error) (VolumeSpec, error)
	// MapVolume shows the volume to a host of its tenant at a LUN, a negative one meaning the lowest that is free. ErrExists
	// if the host has the volume or the LUN is taken.
	MapVolume(ctx context.Context, id ident.JournalID, host string, lun int, readOnly bool) (Map, error)
	UnmapVolume(ctx context.Context, id ident.JournalID, host string) (Map, error)
	RenameVolume(ctx context.Context, id ident.JournalID, name string) (VolumeSpec, error)
	// DeleteVolume leaves a tombstone and frees the name. Deleting a tombstone changes nothing.
	DeleteVolume(ctx context.Context, id ident.JournalID) (VolumeSpec, error)
	// DeleteVolumes is that for up to DeletionsPerTxn volumes, in one transaction: all of them or none. may, unless it is nil,
	// looks at each as it is deleted, those that have changed meanwhile again, and refuses with an error.
	DeleteVolumes(ctx context.Context, ids []ident.JournalID, may func(VolumeSpec) error) ([]VolumeSpec, error)
	// FinishClone says that a clone has all that it is to have: initiators may use it.
	FinishClone(ctx context.Context, id ident.JournalID) (VolumeSpec, error)
	// ConfirmDeleted notes that the stores hold nothing of the tombstone any more.
	ConfirmDeleted(ctx context.Context, id ident.JournalID, stores ...ident.StoreID) (VolumeSpec, error)
	// ConfirmBurials is ConfirmDeleted of up to BurialsPerTxn volumes in one transaction. Those that have been forgotten are
	// not among its results.
	ConfirmBurials(ctx context.Context, list []Burial) ([]VolumeSpec, error)
	// ForgetVolume removes a tombstone and the journal's key, once the caller has every store's confirmation. It
	// is ErrInUse while a store of a recorded ensemble that a node still has is unconfirmed.
	ForgetVolume(ctx context.Context, id ident.JournalID) error
	// ForgetVolumes is ForgetVolume of up to half as many, all or none of them; those that are forgotten already count as done.
	ForgetVolumes(ctx context.Context, ids []ident.JournalID) error

	// Journal is the journal's key as last seen, for finding the owner. It decides nothing.
	Journal(id ident.JournalID) (JournalState, Rev, bool)
	// JournalNow asks the control store.
	JournalNow(ctx context.Context, id ident.JournalID) (JournalState, Rev, error)
	// Journals gives the IDs of all journals, tombstones included.
	Journals() []ident.JournalID
	// TakeJournal makes newOwner the owner at the next epoch, if the key is still at revision expect, and returns
	// the list of ensembles that the taker has to ask. On ErrConflict state and revision are what is there now.
	TakeJournal(ctx context.Context, id ident.JournalID, expect Rev, newOwner ident.NodeName) (JournalState, Rev, error)
	// HandJournal is TakeJournal in the name of another node, to which an owner hands its journal over (R10). stores,
	// if there are any, are the new owner's ensemble, which the same transaction lists. early says that the old owner goes on until
	// it sends its leave (JournalState.Handed).
	HandJournal(ctx context.Context, id ident.JournalID, expect Rev, newOwner ident.NodeName, stores []ident.StoreID, early bool) (JournalState, Rev, error)
	// TakeBackJournal is TakeJournal by a node that has handed the journal over in the control store (HandJournal) and not sent
	// the leave: the one that it named can not have begun, so the ensemble that was listed for that one leaves the list.
	TakeBackJournal(ctx context.Context, id ident.JournalID, expect Rev, owner ident.NodeName) (JournalState, Rev, error)
	// SetStops puts the word of an epoch's owner into its key, that it stops when it is cut off from the control store, or
	// that it does not any more. ErrConflict if the journal has another epoch. Of an error nothing is known but that.
	SetStops(ctx context.Context, id ident.JournalID, epoch ident.Epoch, yes bool) error
	// SetAck puts the word of an epoch's owner into its key, how many other sites hold what it acknowledges and answers
	// reads with, and since which record. Errors as of SetStops.
	SetAck(ctx context.Context, id ident.JournalID, epoch ident.Epoch, sites int, since ident.Seq) error
	// ForceJournal names a new owner at the next epoch without waiting for the stores in lost, members of listed
	// ensembles (R2, R11): takeovers from then on go without them, and are not proven. unheld, if it is not empty, is a
	// node that must not be holding (Hold); ErrInUse if it is. hear is how many sites such a takeover has to hear whole, where
	// the key says that other sites hold what was acknowledged (Forced.Hear). loss: what is there may be less than what was stable
	// (Forced.Loss); while there are nodes that can't read that it is left out, and ErrOlderNodes if no store is lost.
	ForceJournal(ctx context.Context, id ident.JournalID, expect Rev, newOwner ident.NodeName, lost []ident.StoreID, unheld ident.NodeName, hear int, loss bool) (JournalState, Rev, error)
	// SetBegun puts into the key of a journal that was taken over by force the end of the history after which the owner of an
	// epoch begins (Forced.Begun). lost are members of listed ensembles that the takeover went without because they were declared lost,
	// if nobody has forced it: from then on the key says the same as after ForceJournal without them. ErrOlderNodes while there are nodes
	// that can't read it; other errors as of SetStops.
	SetBegun(ctx context.Context, id ident.JournalID, epoch ident.Epoch, lost []ident.StoreID, end HistoryEnd) error
	// ChangeEnsembles replaces lists of ensembles, each if its key is still at its revision: up to 100 in a
	// transaction, and one that conflicts doesn't hinder the others. The answer has one result per change.
	ChangeEnsembles(ctx context.Context, changes []EnsembleChange) []EnsembleResult
	// Settle finds out what became of a change that ended in an UncertainError, by repeating it.
	Settle(ctx context.Context, u *UncertainError) (JournalState, Rev, error)

	// Restoration says that the control store was made anew from a backup or from nothing, and whether that is settled;
	// false if it never was.
	Restoration() (Restoration, bool)
	// ExpectStores adds stores to those that have to answer before a restoration is settled.
	ExpectStores(ctx context.Context, stores []ident.StoreID) error
	// OfferRemembered writes sites and hosts that this node remembers of a control store that was lost and that the
	// restored one lacks, and offers volumes likewise, for when stores say that they are there.
	OfferRemembered(ctx context.Context) error
	// PutAnswer says what a store holds.
	PutAnswer(ctx context.Context, store ident.StoreID, held []HeldJournal) error
	// Answers lists the stores that have answered.
	Answers(ctx context.Context) (map[ident.StoreID]Answer, error)
	// DeclareLost has a restoration wait for the stores no longer: what only they held is lost.
	DeclareLost(ctx context.Context, stores []ident.StoreID) (Restoration, error)
	// DeclareComplete says that all stores of the cluster are known: without a backup nobody else can say it.
	DeclareComplete(ctx context.Context) (Restoration, error)
	// Reconcile settles a restoration once every store has answered or is lost; until then it says who is waited for.
	// ErrConflict: it is to be repeated. One node at a time does it.
	Reconcile(ctx context.Context) (waiting []ident.StoreID, err error)
	// WriteBack puts the key of a running owner, which holds its leases, in the place of what a restored control store
	// has, and its volume where that is missing. ErrConflict: there is a higher epoch, the owner is deposed.
	WriteBack(ctx context.Context, spec VolumeSpec, state JournalState) (JournalState, Rev, error)

	// Revoked reports whether the certificate's serial number (hexadecimal) was revoked.
	Revoked(serial string) bool
	Revocations() []pki.Revocation
	Revoke(ctx context.Context, r pki.Revocation) error
	PutJoinToken(ctx context.Context, t pki.JoinTokenRecord) error
	// UseJoinToken takes the token away and returns it: it is used once. ErrNotFound if it is not there or expired.
	UseJoinToken(ctx context.Context, hash string, now time.Time) (pki.JoinTokenRecord, error)
	JoinTokens() []pki.JoinTokenRecord
	APITokens() []pki.APITokenRecord
	// APIToken finds a token by the hash of its secret; expired ones too: see pki.APITokenRecord.Valid.
	APIToken(hash string) (pki.APITokenRecord, bool)
	CreateAPIToken(ctx context.Context, t pki.APITokenRecord) error
	DeleteAPIToken(ctx context.Context, name string) error

	// AppendEvent adds to the audit log what is not a change of a specification (those add their own).
	AppendEvent(ctx context.Context, e Event) error
	// Events lists the newest limit events, oldest first; 0: all that are kept.
	Events(ctx context.Context, limit int) ([]Event, error)
	// WatchEvents calls f with every kept event after revision after, in order, then with each new one, until ctx
	// ends or f fails; it survives interruptions of the control store. Events trimmed meanwhile are left out.
	WatchEvents(ctx context.Context, after Rev, f func(Event) error) error

	// Subscribe gives a channel that gets a value after the cache has changed, however often; one value may stand
	// for many changes. cancel ends it.
	Subscribe() (changed <-chan struct{}, cancel func())
	// Connected reports whether the watches that feed the cache are up, and since when that holds.
	Connected() (bool, time.Time)
	// Close ends all watches and announcements and waits for them. A second call does nothing.
	Close() error
}

// EnsembleChange asks for another list of ensembles. Only a journal's owner asks, for its own epoch.
type EnsembleChange struct {
	Journal   ident.JournalID
	Rev       Rev            // of the key that the change was decided upon
	Ensembles []Ensemble     // the whole new list
	Sites     []ident.SiteID // nil: as they are
}

// EnsembleResult is what became of an EnsembleChange. Err is nil, ErrConflict (State and Rev are then what is
// there now), an *UncertainError, or why the change was refused.
type EnsembleResult struct {
	State JournalState
	Rev   Rev
	Err   error
}

// Event is an entry of the audit log: who did what to what.
type Event struct {
	Rev    Rev       `json:"rev"` // where the event stands in the control store's history; filled in on reading
	Time   time.Time `json:"time"`
	Actor  string    `json:"actor"`            // user, or node for what the cluster did by itself
	Action string    `json:"action"`           // such as volume.create, node.remove
	Object string    `json:"object"`           // such as volume/default/web1
	Before string    `json:"before,omitempty"` // JSON of the object without secrets
	After  string    `json:"after,omitempty"`
	Note   string    `json:"note,omitempty"`
}

type actorKey struct{}

// WithActor names who causes the changes that are made under the context, for the audit log.
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// ActorFrom gives the actor of the context, or "system".
func ActorFrom(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok && a != "" {
		return a
	}
	return "system"
}
