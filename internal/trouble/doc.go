// Package trouble remembers since when what is wrong has been wrong, as far as any node of the cluster knows.
//
// Start at Book. A node tells its Book again and again what it sees to be wrong (Observe), and what the other nodes have
// said that they see (Learn); Since says since when something holds. Others ask it what has changed (Changes). A Book does
// no I/O and has no clock: the time, nanoseconds of a clock that nobody sets, is an argument; nodes tell each other ages,
// so their clocks need not agree.
//
// What is wrong is a Key: what, of which volume or thing. A node vouches for what it sees by itself: its owners' volumes, its
// stores, which nodes it reaches. The rules:
//
//   - A trouble that is not seen for Hysteresis is over; one that comes back before goes on as if it had not been away.
//   - Who sees a trouble for the first time asks, where it can not have seen the beginning (inherit: it has just started, or
//     has just become a volume's owner), since when others have known of it. Otherwise it begins now: what a node sees by
//     itself is truer than what another one, who may be cut off, says.
//   - What a node said that is not heard any more holds for Heard, and is inherited from for Kept after that.
//
// Invariants: an entry's first only falls while it is held, and only while it may be inherited; a Book has at most Most entries of its own and as many of each
// other node; what does not fit has no time. All methods may be called at the same time.
package trouble
