package mutant

// The clauses, by rule. The values have no meaning.
const (
	R1StartStable ID = iota
	R1TailFirst
	R1Highest
	R1Fence
	R2AllButOne
	R3Newest
	R3Proven
	R4Short
	R4End
	R5Checkpoint
	R6Lease
	R6Wait
	R6Restart
	R7Overlap
	R8Flush
	R8Prefix
	R8Boot
	R8Past
	R8Checkpoint
	R9Epoch
	R9Age
	R9Login
	R9Acks
	R9Request
	R10Stable
	R11Ports
	R12Complete
	R13Fence
	R13Made
	R13Stable
	R14Cut
)

// names has for each its name, what is left out, and on which faults the simulator's seeds are to focus (sim.NewPlan).
var names = [...]struct {
	name, clause string
	focus        uint64
}{
	R1StartStable: {"R1-start-stable", "nothing is answered until the epoch-start is stable on two stores", 6},
	R1TailFirst:   {"R1-tail-first", "the epoch-start is appended once what was recovered is on two stores", 6},
	R1Highest:     {"R1-highest-epoch", "recovery follows the highest epoch whose start it sees, not the longest run", 6},
	R1Fence:       {"R1-fence", "a store takes nothing from an epoch below its fence", 1},
	R2AllButOne:   {"R2-all-but-one", "a takeover waits for all but one store of each ensemble", 1},
	R3Newest:      {"R3-newest", "an ensemble leaves the list when all that was written under it is on the newest", 5},
	R3Proven:      {"R3-proven", "an epoch that is not proven takes no ensemble off the list", 3},
	R4Short:       {"R4-short", "after a boot an open replica does not know its end", 3},
	R4End:         {"R4-end-known", "a takeover that does not know the end is not proven", 3},
	R5Checkpoint:  {"R5-checkpoint", "a local replica goes only when a checkpoint covers its segment", 6},
	R6Lease:       {"R6-lease", "an owner reads only with two grants", 2},
	R6Wait:        {"R6-wait", "a fence is answered when the last grant has run out", 2},
	R6Restart:     {"R6-restart", "after a start no fence is answered for a lease's length", 2},
	R7Overlap:     {"R7-overlap", "what depends on a block's state waits for writes to it in flight", 0},
	R8Flush:       {"R8-flush", "a flush is answered when all before it is stable on two stores", 3},
	R8Prefix:      {"R8-prefix", "the stable point covers a prefix, over all segments", 3},
	R8Boot:        {"R8-boot", "a holder with another boot ID has lost what was not stable", 3},
	R8Past:        {"R8-past", "what earlier epochs left unstable is made stable before a flush is answered", 3},
	R8Checkpoint:  {"R8-checkpoint", "a checkpoint waits until what it covers is stable", 3},
	R9Epoch:       {"R9-epoch", "a command stamped in another epoch is refused", 4},
	R9Age:         {"R9-age", "a stamp older than 3 s is refused", 4},
	R9Login:       {"R9-login", "a command older than a newer login of its nexus is refused", 4},
	R9Acks:        {"R9-acks", "a command older than an overlapping write by another session of its initiator is refused", 4},
	R9Request:     {"R9-request", "a request that is in the history is answered, not done again", 2},
	R10Stable:     {"R10-stable", "a hand-over to another site waits until everything is stable there", 5},
	R11Ports:      {"R11-ports", "after a takeover that is not proven attached ports get errors", 3},
	R12Complete:   {"R12-complete", "nothing is retired until every site holds the checkpoint that allows it", 5},
	R13Fence:      {"R13-fence", "a deposed owner's permit drops nothing", 4},
	R13Made:       {"R13-made", "a permit names one replica, not its successor", 6},
	R13Stable:     {"R13-stable", "a replica is dropped once its permit is stable", 3},
	R14Cut:        {"R14-cut", "a tail is discarded only if every epoch-start behind it is proven", 3},
}
