package mutant

// The clauses, by rule; T stands for the terms in front of the rules. The values have no meaning.
const (
	TermsTwo ID = iota
	TermsChain
	R1StartStable
	R1Serving
	R1Tail
	R1TailFirst
	R1Copied
	R1Sealed
	R1Highest
	R1GivenUp
	R1Fence
	R2AllButOne
	R2Elsewhere
	R3Newest
	R3Proven
	R3Unheard
	R4Noted
	R4Short
	R4End
	R4Damaged
	R4LostStable
	R5Checkpoint
	R6Lease
	R6Wait
	R6Longer
	R6Durable
	R6Restart
	R7Overlap
	R7Unit
	R8Flush
	R8Prefix
	R8Boot
	R8Past
	R8Checkpoint
	R9Proof
	R9Epoch
	R9Age
	R9Login
	R9Reset
	R9Abort
	R9Began
	R9Acks
	R9Arrived
	R9Request
	R10Stable
	R10Home
	R11Ports
	R11Silent
	R11Anew
	R11Acks
	R11Reads
	R11Sites
	R12Complete
	R12Prefix
	R13Fence
	R13Made
	R13Stable
	R13Pin
	R14Cut
	R14Own
	R15Source
)

// names has for each its name, what is left out, on which faults the simulator's seeds are to focus (sim.NewPlan), and the
// scenarios that fail without it: tests by package below internal.
var names = [...]struct {
	name, clause string
	focus        uint64
	scenarios    string
}{
	TermsTwo:      {"T-two", "a record counts as committed once two members of one ensemble hold it", 1, "journal TestARecordOnOneStoreIsNotCommitted"},
	TermsChain:    {"T-chain", "a commit point counts only in the history whose hashes it is of", 131, "journal TestADeadRecordIsNotCommittedByItsNumber, journal TestAPointThatWasGivenUpIsNone"},
	R1StartStable: {"R1-start-stable", "nothing is answered until the epoch-start is stable on two stores", 117, "journal TestNothingIsAcknowledgedBeforeTheStartIsStable"},
	R1Serving:     {"R1-serving", "nothing is read until the epoch-start is stable on two stores", 139, "access TestNothingIsReadBeforeTheStartIsStable"},
	R1Tail:        {"R1-tail", "what was recovered above the commit point is put on two stores again", 105, "journal TestWhatIsFoundOnOneIsPutOnTwoMembersOfTheNewest"},
	R1TailFirst:   {"R1-tail-first", "the epoch-start is appended once what was recovered is on two stores", 140, "journal TestTheStartFollowsWhatWasRecovered"},
	R1Copied:      {"R1-copied", "what a taker has copied again is not committed by that", 105, "journal TestWhatIsCopiedAgainIsNotCommittedByThat"},
	R1Sealed:      {"R1-sealed", "before the epoch-start is stable nothing is sealed", 139, "journal TestAHolderFailsWhileTheEpochStarts"},
	R1Highest:     {"R1-highest-epoch", "recovery follows the highest epoch whose start it sees, not the longest run", 117, "journal TestALongerRunOfAnOlderEpoch"},
	R1GivenUp:     {"R1-given-up", "a segment that was given up ends no newer one", 142, "journal TestASegmentThatWasGivenUpEndsNoNewerOne, access TestAStoreIsBackWithASegmentThatWasGivenUp"},
	R1Fence:       {"R1-fence", "a store takes nothing from an epoch below its fence", 109, "core TestAppendRefuses"},
	R2AllButOne:   {"R2-all-but-one", "a takeover waits for all but one store of each ensemble", 1, "journal TestAnotherSiteIsNoAnswerToAFence"},
	R2Elsewhere:   {"R2-elsewhere", "an answer of another site does not count towards the fence", 100, "journal TestAnotherSiteIsNoAnswerToAFence"},
	R3Newest:      {"R3-newest", "an ensemble leaves the list when all that was written under it is on the newest", 120, "access TestASegmentOfAnOlderEnsembleIsFound"},
	R3Proven:      {"R3-proven", "an epoch that is not proven takes no ensemble off the list", 100, "access TestAnOwnerThatIsNotProvenTakesNothingOffTheList"},
	R3Unheard:     {"R3-unheard", "after a restore of the control store nobody takes over before all stores have answered", 138, "control TestRestoreInPlace"},
	R4Noted:       {"R4-noted", "a store notes durably that a replica is open before its first record", 3, "core TestAPowerCutLeavesATraceOfWhatWasOpen"},
	R4Short:       {"R4-short", "after a boot an open replica does not know its end", 3, "core TestPowerCutBeforeSyncIsShort"},
	R4End:         {"R4-end-known", "a takeover that does not know the end is not proven", 3, "journal TestWhoKnowsTheEnd, access TestBothHoldersLoseTheirPowerAndTheOtherSiteHasAll"},
	R4Damaged:     {"R4-damaged", "a store that lacks a replica is absent for everything", 126, "journal TestADamagedStoreIsAbsent, access TestAStoreThatLacksAReplicaCountsForNothing"},
	R4LostStable:  {"R4-lost-stable", "a result below the highest stable point is not served without force", 141, "access TestALossOfWhatWasStableIsNotServed"},
	R5Checkpoint:  {"R5-checkpoint", "a local replica goes only when a checkpoint covers its segment", 127, "access TestWhatNoCheckpointCoversStaysOnTwo"},
	R6Lease:       {"R6-lease", "an owner reads only with two grants", 108, "access TestACutOffOwnerIsSilentBeforeItsSuccessorSpeaks, access TestWithoutGrantsThereAreNoReads"},
	R6Wait:        {"R6-wait", "a fence is answered when the last grant has run out", 109, "access TestACutOffOwnerIsSilentBeforeItsSuccessorSpeaks"},
	R6Longer:      {"R6-longer", "the server counts a tenth longer than the owner", 116, "core TestAFenceWaitsLongerThanTheOwnerCounts"},
	R6Durable:     {"R6-durable", "a fence is durable before it is answered", 116, "core TestAFenceOutlivesThePower"},
	R6Restart:     {"R6-restart", "after a start no fence is answered for a lease's length", 116, "access TestARestartedStoreAnswersNoFenceForALeaseTime"},
	R7Overlap:     {"R7-overlap", "what depends on a block's state waits for writes to it in flight", 0, "access TestOneOfTwoCompareAndWritesWins, access TestAMiscompareWaitsForWhatItWasDecidedUpon"},
	R7Unit:        {"R7-reservation", "what may depend on a change of reservations waits until it is committed", 137, "access TestAReservationInFlightIsWaitedFor"},
	R8Flush:       {"R8-flush", "a flush is answered when all before it is stable on two stores", 113, "access TestFlushAfterAPowerCutOfOneOfTwo"},
	R8Prefix:      {"R8-prefix", "the stable point covers a prefix, over all segments", 115, "journal TestAFlushCoversOlderSegments"},
	R8Boot:        {"R8-boot", "a holder with another boot ID has lost what was not stable", 115, "journal TestAFlushAfterAHolderHasBooted"},
	R8Past:        {"R8-past", "what earlier epochs left unstable is made stable before a flush is answered", 115, "journal TestAFlushCoversEarlierEpochs"},
	R8Checkpoint:  {"R8-checkpoint", "a checkpoint waits until what it covers is stable", 115, "access TestACheckpointIsNoOlderThanWhatItCoversIsStable"},
	R9Proof:       {"R9-proof", "a stamp is what the client's own stream proves it has received", 119, "access/iscsi TestStamps"},
	R9Epoch:       {"R9-epoch", "a command stamped in another epoch is refused", 4, "access TestStampsOfTheEpochBefore"},
	R9Age:         {"R9-age", "a stamp older than 3 s is refused", 143, "access TestLateReassignedCommand"},
	R9Login:       {"R9-login", "a command older than a newer login of its nexus is refused", 119, "access TestLateReassignedCommand"},
	R9Reset:       {"R9-reset", "a command older than a reset is refused", 119, "access TestLateReassignedCommand"},
	R9Abort:       {"R9-abort", "a command that was aborted is refused", 119, "access TestBarsHoldForWhatWaits"},
	R9Began:       {"R9-began", "refusals are compared with the stamp with which a command began", 122, "access TestLateReassignedCommand"},
	R9Acks:        {"R9-acks", "a command older than an overlapping write by another session of its initiator is refused", 119, "access TestLateWriteOfAnUnseenSession"},
	R9Arrived:     {"R9-arrived", "what counts is that such a write has arrived, not that it was done", 119, "access TestAWriteThatWasRefusedIsOver"},
	R9Request:     {"R9-request", "a request that is in the history is answered, not done again", 119, "access TestAResentRequestIsNotAppliedTwice"},
	R10Stable:     {"R10-stable", "a hand-over to another site waits until everything is stable there", 121, "access TestTheSiteThatWasLeftIsLostAtOnce"},
	R10Home:       {"R10-home", "who takes over for a taker that has not begun, at a site that lacks the end, passes the journal on", 133, "access TestTheGiverDiesBeforeTheLeave"},
	R11Ports:      {"R11-ports", "after a takeover that is not proven attached ports get errors", 3, "access TestAttachedPortsGetAnErrorAfterATakeoverThatIsNotProven"},
	R11Silent:     {"R11-silent", "with the policy stop an owner without the control store's lease is silent", 102, "access TestASiteThatIsCutOff/stop"},
	R11Acks:       {"R11-acks", "with --ack=site:K nothing is acknowledged before K other sites hold it", 101, "access TestAWriteWaitsForOtherSites"},
	R11Reads:      {"R11-reads", "nor is it read", 101, "access TestWhatOtherSitesDoNotHoldIsNotRead"},
	R11Sites:      {"R11-sites", "a site takeover that is to leave nothing acknowledged behind hears n-K sites whole", 104, "access TestASiteTakeoverHearsEnoughSites"},
	R11Anew:       {"R11-anew", "a lease of the control store that was put anew says nothing about the journals", 102, "access TestALeaseThatIsPutAnewGivesNothingBack"},
	R12Complete:   {"R12-complete", "nothing is retired until every site holds the checkpoint that allows it", 128, "access TestNothingIsRetiredThatASiteNeeds"},
	R12Prefix:     {"R12-prefix", "nothing is retired until every site's prefix has passed the checkpoint that allows it", 129, "access TestNothingIsRetiredThatASiteNeeds"},
	R13Fence:      {"R13-fence", "a deposed owner's permit drops nothing", 134, "core TestADeposedOwnersPermitDropsNothing"},
	R13Made:       {"R13-made", "a permit names one replica, not its successor", 130, "access TestAPermitMeansOneReplica"},
	R13Stable:     {"R13-stable", "a replica is dropped once its permit is stable", 135, "access TestAPermitIsStableBeforeItIsActedUpon"},
	R13Pin:        {"R13-pin", "what a fork goes on from is not retired", 100, "access TestWhatAForkNeedsIsNotRetired"},
	R14Cut:        {"R14-cut", "a tail is discarded only if every epoch-start behind it is proven", 100, "core TestSealRules/forced,_then_proven"},
	R14Own:        {"R14-own", "a tail is discarded only by the epoch-start of the epoch that has fenced it", 117, "core TestSealRules/the_start_of_another_epoch"},
	R15Source:     {"R15-source", "a relocation is applied only where the map still points at its source", 0, "volume TestRelocateOnlyWhereTheSourceStillIs"},
}
