package control

import (
	"context"
	"errors"
	"time"
)

// kv is the seam below Client: a key-value store with revisions, transactions, watches and leased keys.
// etcdKV and memKV implement it; keys here are without the prefix.
type kv interface {
	// get and list are linearizable. list gives the pairs below a directory by key, and the store's revision
	// that the list is of. Failures are temporary unless permanent says otherwise.
	get(ctx context.Context, key string) (pair, Rev, error)
	list(ctx context.Context, dir string) ([]pair, Rev, error)
	// commit runs the transaction once. After an error that is not permanent nobody knows whether it took, or
	// will take, effect.
	commit(ctx context.Context, t txn) (txnResult, error)
	// watch calls f with every change below dir of a revision above after, in order, the changes of one
	// revision in one call, until ctx ends or something fails; it always returns an error. errCompacted: the
	// changes from there on are not to be had any more, list anew.
	watch(ctx context.Context, dir string, after Rev, f func(changes []change, upTo Rev) error) error
	// keep puts a leased key, renews it, and puts it again should it have expired, until ctx ends; then it
	// takes the key away, if that can be done at once.
	keep(ctx context.Context, key string, value []byte, ttl time.Duration)
	// renew makes the seam take whatever control store answers next for the one that it speaks to. Until then get,
	// list and watch of another one than has answered before are errRenewed.
	renew()
	// hold puts a leased key of HoldTTL and renews it every HoldEvery until it is lost or ctx ends; it returns why. renewed
	// is told of each success, anew at the first.
	hold(ctx context.Context, key string, value []byte, clock func() int64, renewed func(asked int64, anew bool)) error
	close() error
}

// pair is a key with its value. mod is the revision of its last change, 0 if there is no such key.
type pair struct {
	key   string
	value []byte
	mod   Rev
}

// change is a pair as it became; mod is the revision of the change even where the key was deleted.
type change struct {
	pair
	deleted bool
}

// txn: if all conds hold, then ops; otherwise the keys in reads are read.
type txn struct {
	conds []cond
	ops   []op
	reads []string
}

// cond holds if the key's revision is rev (0: there is no such key); or, where dir is set, if nothing below it
// that exists has a revision above rev; or, where value is set, if the key has that value.
type cond struct {
	key   string
	dir   string
	rev   Rev
	value []byte
}

type op struct {
	key    string
	value  []byte
	delete bool
}

type txnResult struct {
	ok    bool
	rev   Rev    // of the transaction, if ok
	reads []pair // if not ok, as asked for
}

func (r txnResult) read(key string) pair {
	for _, p := range r.reads {
		if p.key == key {
			return p
		}
	}
	return pair{key: key}
}

// errCompacted: the history that a watch asked for is gone.
var errCompacted = errors.New("control store: history was compacted")

// errRenewed: another control store answers than before, one that was restored, rebuilt or forced to start anew. Its
// revisions have nothing to do with those of the former.
var errRenewed = errors.New("control store: it was started anew")

// permanentError is an error that surely had no effect and that no repetition will cure.
type permanentError struct{ err error }

func (e permanentError) Error() string { return e.err.Error() }
func (e permanentError) Unwrap() error { return e.err }

func isPermanent(err error) bool {
	var p permanentError
	return errors.As(err, &p)
}
