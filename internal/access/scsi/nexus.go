package scsi

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"

	"dozo/internal/access/reserve"
)

// UnitConfig says what is at one LUN of a nexus.
type UnitConfig struct {
	LUN  uint16
	Disk Disk
}

// Nexus is the device servers that one session reaches: what SAM calls the I_T nexus. Prepare and Event are called by
// one goroutine at a time; everything else may be called concurrently.
type Nexus struct {
	initiator *Initiator
	target    string                  // SCSI name of the target device, for VPD page 83h
	units     atomic.Pointer[[]*Unit] // ascending by LUN; replaced, never modified
	absent    Unit                    // answers for LUNs that aren't there
	queries   bool                    // the transport has the task management functions of query.go
	left      struct {                // units that are gone, while copies of theirs have something under way
		sync.Mutex
		units []*Unit
	}
}

// Unit is the device server of one logical unit for one nexus (the I_T_L nexus).
type Unit struct {
	nexus      *Nexus
	lun        uint16
	disk       Disk // nil where there is no logical unit
	table      *opcodeTable
	attentions reserve.Attentions
	copies     copies
	// What the initiator was last told, to notice changes; touched by Prepare and Event only.
	seenBlocks uint64
	seenSync   bool          // writes were always durable: WCE could not be changed
	seenPaths  atomic.Uint64 // also when the initiator has itself changed them
	setting    atomic.Int32  // commands of the initiator under way that change them
}

// NewNexus makes the device servers of a new session. Each begins with the unit attention of a new nexus.
func NewNexus(initiator *Initiator, target string, units ...UnitConfig) *Nexus {
	n := &Nexus{initiator: initiator, target: target}
	n.absent = Unit{nexus: n, table: absentTable}
	n.SetUnits(units...)
	return n
}

// list gives the logical units.
func (n *Nexus) list() []*Unit {
	if l := n.units.Load(); l != nil {
		return *l
	}
	return nil
}

// SetUnits changes which logical units the nexus reaches. One with the same Disk at the same LUN stays as it is, and
// learns that others don't; one that is new begins with the unit attention of a new nexus. Commands that were prepared go
// on at units that are gone. One caller at a time.
func (n *Nexus) SetUnits(units ...UnitConfig) {
	old := n.list()
	var list []*Unit
	for _, u := range units {
		if i := slices.IndexFunc(old, func(o *Unit) bool { return o.lun == u.LUN && o.disk == u.Disk }); i >= 0 {
			list = append(list, old[i])
			continue
		}
		unit := &Unit{nexus: n, lun: u.LUN, disk: u.Disk, table: diskTable}
		geo := u.Disk.Geometry()
		unit.seenBlocks, unit.seenSync = geo.Blocks, geo.AlwaysDurable
		unit.seenPaths.Store(u.Disk.Paths().Generation)
		unit.attentions.Post(reserve.PowerOn)
		list = append(list, unit)
	}
	slices.SortFunc(list, func(a, b *Unit) int { return int(a.lun) - int(b.lun) })
	n.units.Store(&list)
	for _, u := range old {
		if slices.Contains(list, u) {
			u.attentions.Post(reserve.LUNsChanged) // SPC-4 6.33: at every unit of the target device
		} else {
			n.leave(u)
		}
	}
}

// Initiator is whose nexus this is.
func (n *Nexus) Initiator() *Initiator { return n.initiator }

// Post establishes a unit attention condition at one logical unit.
func (n *Nexus) Post(lun uint16, a reserve.Attention) {
	if u := n.unitAt(lun); u != nil {
		u.attentions.Post(a)
	}
}

// PostAll establishes a unit attention condition at every logical unit.
func (n *Nexus) PostAll(a reserve.Attention) {
	for _, u := range n.list() {
		u.attentions.Post(a)
	}
}

// leave ends the copies at a logical unit that is gone. Whoever ends those of the nexus waits for them, too.
func (n *Nexus) leave(u *Unit) {
	n.left.Lock()
	n.left.units = append(n.left.units, u)
	n.left.Unlock()
	u.copies.cancelAll(func() {
		n.left.Lock()
		defer n.left.Unlock()
		n.left.units = slices.DeleteFunc(n.left.units, func(x *Unit) bool { return x == u })
	})
}

// Close ends the copies of the nexus, in the background too. over is called, possibly at once, when they have nothing under way any more.
func (n *Nexus) Close(over func()) {
	n.left.Lock()
	units := slices.Concat(n.list(), n.left.units)
	n.left.Unlock()
	cancelCopies(over, units...)
}

// CancelCopies ends the copies at one logical unit: it was reset. over is called, possibly at once, when they have nothing under way any
// more.
func (n *Nexus) CancelCopies(lun uint16, over func()) {
	if u := n.unitAt(lun); u != nil {
		cancelCopies(over, u)
		return
	}
	over()
}

func cancelCopies(over func(), units ...*Unit) {
	ended := afterAll(len(units), over)
	for _, u := range units {
		u.copies.cancelAll(ended)
	}
}

// afterAll gives what is to be called n times; the last call calls then. With none to wait for, then is called at once.
func afterAll(n int, then func()) func() {
	if n == 0 {
		then()
	}
	var left atomic.Int64
	left.Store(int64(n))
	return func() {
		if left.Add(-1) == 0 {
			then()
		}
	}
}

// Find gives the LUNs whose Disk is meant.
func (n *Nexus) Find(meant func(Disk) bool) (luns []uint16) {
	for _, u := range n.list() {
		if meant(u.disk) {
			luns = append(luns, u.lun)
		}
	}
	return luns
}

// HasLUN reports whether a LUN field names a logical unit of this nexus.
func (n *Nexus) HasLUN(field uint64) (uint16, bool) {
	lun, ok := LUNNumber(field)
	return lun, ok && n.unitAt(lun) != nil
}

func (n *Nexus) unitAt(lun uint16) *Unit {
	for _, u := range n.list() {
		if u.lun == lun {
			return u
		}
	}
	return nil
}

// LUNNumber decodes a single level LUN field (SAM-5 4.7): peripheral device addressing on bus 0, or flat
// space addressing.
func LUNNumber(field uint64) (uint16, bool) {
	if field&0x0000_ffff_ffff_ffff != 0 {
		return 0, false
	}
	first := uint16(field >> 48)
	switch first >> 14 {
	case 0:
		return first, first < 256 // a bus identifier other than 0 is not ours
	case 1:
		return first & 0x3fff, true
	}
	return 0, false
}

// LUNField encodes a LUN as LUNNumber decodes it: peripheral addressing below 256, flat space above.
func LUNField(lun uint16) uint64 {
	if lun < 256 {
		return uint64(lun) << 48
	}
	return uint64(lun|0x4000) << 48
}

// Prepare takes a command in: it finds the logical unit and the operation, reports a waiting unit attention,
// checks the CDB, and says how much data is to be fetched. It never blocks.
func (n *Nexus) Prepare(c *Command) {
	c.unit = &n.absent
	if lun, ok := LUNNumber(c.LUN); ok {
		if u := n.unitAt(lun); u != nil {
			c.unit = u
		}
	}
	c.unit.prepare(c)
}

func (u *Unit) prepare(c *Command) {
	c.geo = Geometry{}
	row, known := u.table.find(c.CDB[0], c.CDB[1])
	if u.disk == nil && (row == nil || row.flags&anyLUN == 0) {
		c.illegal(codeLUNotSupported)
		return
	}
	state := reserve.ActiveOptimized
	if u.disk != nil {
		state = u.noticeChanges(c)
	}
	if row == nil || row.flags&ignoresAttention == 0 {
		// An unknown operation too reports a waiting condition first: SAM-5 5.14.3 names the exceptions.
		if a, ok := u.takeAttention(); ok {
			c.check(u.attentionSense(a))
			return
		}
	}
	switch {
	case row == nil && known:
		c.badField(1, 4)
		return
	case row == nil:
		c.illegal(codeInvalidOpcode)
		return
	}
	c.op = row
	switch {
	case !row.checkUsage(c):
	case state == reserve.Standby && row.flags&(inStandby|inUnavailable) == 0:
		c.fail(ErrStandby)
	case state == reserve.Unavailable && row.flags&inUnavailable == 0:
		c.fail(ErrUnavailable)
	case row.flags&needsReady != 0 && c.geo.Blocks == 0:
		c.fail(ErrNotReady)
	case row.flags&duringSanitize == 0 && u.disk != nil && !c.modesDuringSanitize() && !u.sanitized(c):
	case row.flags&changesMedium != 0 && c.geo.ReadOnly:
		c.fail(ErrWriteProtected)
	case row.flags&changesMedium != 0 && u.disk.Unit().State.Current.WriteProtect:
		c.fail(ErrSoftwareProtected)
	default:
		row.prepare(u, c)
		c.matchOut()
	}
}

// matchOut compares the data-out that the CDB asks for with what the initiator announced. A longer
// announcement is cut; a shorter one is an error, except for the writes, which have seen to it; for commands
// that give their one block or pair a meaning, any difference is.
func (c *Command) matchOut() {
	if c.failed {
		return
	}
	expected := uint64(c.ExpectOut)
	switch c.CDB[0] {
	case 0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e:
		return
	case 0x89:
		if c.WantOut != expected {
			c.badField(13, 7)
			return
		}
	case 0x41, 0x93, 0x8b, 0x9c:
		if c.WantOut != expected {
			c.illegal(codeInvalidFieldInInfoUnit)
			return
		}
	default:
		if c.WantOut > expected {
			c.illegal(codeInvalidFieldInInfoUnit)
			return
		}
	}
	c.FetchOut = int(c.WantOut)
}

// noticeChanges establishes the attentions that follow from what the disk says now. It gives the access state of the
// command's own path, where that limits what may be done.
func (u *Unit) noticeChanges(c *Command) (own reserve.AccessState) {
	var paths reserve.PathInfo
	c.geo, paths = u.notice()
	if paths.Limited {
		if g, ok := paths.GroupOf(u.nexus.initiator.Nexus.Port); ok {
			return g.State
		}
	}
	return reserve.ActiveOptimized
}

// notice is noticeChanges without a command.
func (u *Unit) notice() (Geometry, reserve.PathInfo) {
	geo, paths := u.disk.Geometry(), u.disk.Paths()
	if geo.Blocks != u.seenBlocks {
		if u.seenBlocks != 0 && geo.Blocks != 0 {
			u.attentions.Post(reserve.CapacityChanged)
		}
		u.seenBlocks = geo.Blocks
	}
	if geo.AlwaysDurable != u.seenSync { // SPC-4 7.5: the caching page says something else
		u.attentions.Post(reserve.ModeParametersChanged)
		u.seenSync = geo.AlwaysDurable
	}
	if paths.Generation != u.seenPaths.Load() && u.setting.Load() == 0 {
		u.attentions.Post(reserve.AccessStateChanged)
		u.seenPaths.Store(paths.Generation)
	}
	return geo, paths
}

// Allocate gives the command's data-out a place. The transport calls it when it has room for FetchOut bytes.
func (n *Nexus) Allocate(c *Command) {
	if c.failed || c.FetchOut == 0 {
		return
	}
	u := c.unit
	switch c.op.code {
	case 0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e, 0x8b, 0x9c:
		u.allocateWrite(c)
	case 0x89:
		c.allocateOut(int(c.n))
		u.allocateWrite(c)
	default:
		c.allocateOut(c.FetchOut)
	}
}

// Execute runs a command whose data-out, if any, is complete, and finishes it. A transport that could not
// fetch the data-out doesn't call it.
func (n *Nexus) Execute(c *Command) {
	switch {
	case c.failed:
		c.finish()
	case c.op.flags&(checksStatus|checksRead|checksWrite) != 0, c.movesNothing():
		c.unit.checkReservation(c)
	default:
		c.run()
	}
}

// run is Execute without the checks.
func (c *Command) run() {
	if c.failed || c.op.execute == nil {
		c.finish()
		return
	}
	c.op.execute(c.unit, c)
}

// movesNothing says that a command which reads or writes by an LBA and a length has nothing to ask the Disk for. It conflicts like
// one that has: SBC-3 table 13 makes no difference. (UNMAP knows it only from its parameter list.)
func (c *Command) movesNothing() bool {
	const sanitize, unmap = 0x48, 0x42
	return c.op.flags&(readsMedium|changesMedium) != 0 && c.n == 0 && c.partial == 0 && c.op.code != sanitize && c.op.code != unmap
}

// checkReservation is for commands that don't reach the Disk's data, where reservations are looked at anyway: it
// runs the command or ends it with RESERVATION CONFLICT.
func (u *Unit) checkReservation(c *Command) {
	class := reserve.AccessStatus
	switch {
	case c.CDB[0] == 0x1b && c.CDB[4]&0xf1 == 0x01, c.CDB[0] == 0x1e && c.CDB[4]&0x03 == 0:
		// SBC-3 table 13 and SPC-4 table 65: START STOP UNIT that only starts the unit, and PREVENT ALLOW MEDIUM REMOVAL that
		// prevents nothing, don't conflict.
	case c.op.flags&(checksWrite|changesMedium) != 0:
		class = reserve.AccessWrite
	case c.op.flags&(checksRead|readsMedium) != 0:
		class = reserve.AccessRead
	}
	u.unlessReserved(c, class, (*Command).run)
}

// unlessReserved goes on with a command of a class, or ends it with RESERVATION CONFLICT. Where nothing is reserved nobody has
// to be asked; where something is, the state as it is now decides.
func (u *Unit) unlessReserved(c *Command, class reserve.Access, then func(*Command)) {
	if u.disk == nil || u.disk.Unit().State.Idle() {
		then(c)
		return
	}
	u.disk.ShowUnit(c.Request, func(s *reserve.Snapshot, err error) {
		switch {
		case err != nil:
			c.fail(err)
			c.finish()
		case !s.State.Allows(u.nexus.initiator.Nexus, class):
			c.conflict()
			c.finish()
		default:
			then(c)
		}
	})
}

// modesDuringSanitize: SBC-4 4.11.2 lets some mode pages be asked for while a sanitize operation is under way.
func (c *Command) modesDuringSanitize() bool {
	if c.CDB[0] != 0x1a && c.CDB[0] != 0x5a || c.CDB[3] != 0 {
		return false
	}
	switch c.CDB[2] & 0x3f {
	case pageCaching, pageControl, pageExceptions:
		return true
	}
	return false
}

// sanitized says that no sanitize operation is in the command's way (SBC-3 4.11.2).
func (u *Unit) sanitized(c *Command) bool {
	s := u.disk.Unit()
	switch s.State.Sanitize.Kind {
	case reserve.SanitizeNone:
		return true
	case reserve.SanitizeFailed:
		if c.CDB[0] == 0x48 {
			return true
		}
		c.check(senseData{key: MediumErrorKey, code: codeSanitizeFailed})
	default:
		c.check(senseData{key: NotReady, code: codeSanitizeInProgress, progress: s.Progress, progressValid: true})
	}
	return false
}

// takeAttention takes the unit attention condition to report next. That the list of units has changed is reported once for all of
// them (SPC-4 7.8.7, LUICLR).
func (u *Unit) takeAttention() (reserve.Attention, bool) {
	a, ok := u.attentions.Take()
	if ok && a == reserve.LUNsChanged {
		u.nexus.listKnown()
	}
	return a, ok
}

// listKnown says that the initiator has heard of the list of units.
func (n *Nexus) listKnown() {
	for _, u := range n.list() {
		u.attentions.Discard(reserve.LUNsChanged)
	}
}

// attentionSense is what a unit attention condition is reported by.
func (u *Unit) attentionSense(a reserve.Attention) senseData {
	s := senseData{key: UnitAttention, code: Code(binary.BigEndian.Uint16([]byte{a.ASC, a.ASCQ}))}
	if a == reserve.ThresholdReached {
		s.info, s.infoValid = u.crossedThreshold(), true
	}
	return s
}

// crossedThreshold is where the threshold that was reached stands in the logical block provisioning mode page (SBC-3 4.7.3.7.6).
// The snapshot is not older than the condition, which came with one.
func (u *Unit) crossedThreshold() uint64 {
	const available, used = thresholds, thresholds + 8
	s := u.disk.Unit()
	m := s.State.Current
	switch {
	case m.ThresholdAvailable != 0 && s.AvailableBlocks>>reserve.ThresholdExponent <= uint64(m.ThresholdAvailable), m.ThresholdUsed == 0:
		return available
	}
	return used
}

// RejectTransfer ends a prepared command whose frame asks for what the transport doesn't do: INVALID FIELD IN
// COMMAND INFORMATION UNIT.
func (n *Nexus) RejectTransfer(c *Command) { c.illegal(codeInvalidFieldInInfoUnit) }

// Fail ends a prepared command because the transport could not fetch its data-out.
func (n *Nexus) Fail(c *Command, err error) { c.fail(err) }
