// Package control is the cluster's control store: who belongs to the cluster, what volumes and hosts are
// specified, and per journal the one key that says who owns it, at which epoch, over which ensembles. It
// lives in etcd, embedded or external; nothing is written there per I/O, per segment or per checkpoint.
//
// Start at Store, the interface that the rest of the program uses, and at JournalState, the key that R3 of
// the protocol speaks of. Client implements Store over a small seam of transactions and watches (kv.go):
// OpenEtcd puts it upon etcd, Mem.Open upon memory, and one contract suite runs on both. Embedded runs an
// etcd voter in this process; ChooseVoters says which nodes should.
//
// Reads of sites, nodes, hosts, volumes and journals come from a cache that watches keep current; they take
// no network and go on answering, with what was last known, while the control store is away. What decides
// (JournalNow, TakeJournal, ChangeEnsembles, all writes) goes to the control store and fails without it.
//
// Always true: every write is a transaction on the revisions that it was decided upon; a write whose
// outcome is unknown is never reported as done or as refused (ErrUncertain); every change of a specification
// puts its audit event in the same transaction; secrets are stored as they are and never appear in String,
// in JSON of the specification types, in events or in logs. Values returned are shared and must not be
// modified. Sizes are bytes. The keys and their encoding: keys.go and codec.go.
package control
