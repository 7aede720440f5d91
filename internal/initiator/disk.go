package initiator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Disk is a logical unit with a block device behind it. Its calls take byte offsets and lengths that are multiples of
// the block size; they may be made by several goroutines at once.
type Disk struct {
	S         *Session
	LUN       LUN
	BlockSize int
	Blocks    uint64
	// PhysicalBlockSize is what the unit likes writes to be multiples of.
	PhysicalBlockSize int
	Thin              bool // UNMAP may make reads return zeros (LBPME)
	Vendor, Product   string
	Serial            string
	WriteCache        bool // MODE SENSE's caching page says WCE
}

// unitAttentionsMax bounds how many conditions a unit may report one after the other before it is used.
const unitAttentionsMax = 16

// OpenDisk asks the unit what it is, after taking note of its pending unit attentions.
func OpenDisk(ctx context.Context, s *Session, lun LUN) (*Disk, error) {
	d := &Disk{S: s, LUN: lun}
	for i := 0; ; i++ {
		c := &Command{LUN: lun}
		c.TestUnitReady()
		err := s.Do(ctx, c)
		if err == nil {
			break
		}
		var se *StatusError
		if !errors.As(err, &se) || se.Sense.Key != SenseUnitAttention || i == unitAttentionsMax {
			return nil, fmt.Errorf("unit is not ready: %w", err)
		}
	}
	if err := d.inquire(ctx); err != nil {
		return nil, err
	}
	return d, d.capacity(ctx)
}

func (d *Disk) inquire(ctx context.Context) error {
	c := &Command{LUN: d.LUN, In: make([]byte, 96)}
	c.Inquiry(-1)
	if err := d.S.Do(ctx, c); err != nil {
		return fmt.Errorf("inquiry: %w", err)
	}
	if c.InLen < 36 {
		return fmt.Errorf("inquiry: %d bytes", c.InLen)
	}
	if q := c.In[0]; q>>5 != 0 || q&0x1f != 0 {
		return fmt.Errorf("not a disk: qualifier %d, device type 0x%02x", q>>5, q&0x1f)
	}
	d.Vendor = strings.TrimSpace(string(c.In[8:16]))
	d.Product = strings.TrimSpace(string(c.In[16:32]))

	c = &Command{LUN: d.LUN, In: make([]byte, 255)}
	c.Inquiry(0x80)
	if d.S.Do(ctx, c) == nil && c.InLen > 4 {
		d.Serial = strings.TrimSpace(string(c.In[4:min(c.InLen, 4+int(c.In[3]))]))
	}
	c = &Command{LUN: d.LUN, In: make([]byte, 255)}
	c.CDB = [16]byte{0: 0x1a, 1: 8, 2: 0x08, 4: 255} // MODE SENSE(6), caching page, no block descriptors
	if d.S.Do(ctx, c) == nil && c.InLen >= 4 {
		if page := c.In[min(4+int(c.In[3]), c.InLen):c.InLen]; len(page) >= 3 && page[0]&0x3f == 0x08 {
			d.WriteCache = page[2]&0x04 != 0
		}
	}
	return nil
}

func (d *Disk) capacity(ctx context.Context) error {
	c := &Command{LUN: d.LUN, In: make([]byte, 32)}
	c.ReadCapacity16()
	err := d.S.Do(ctx, c)
	switch {
	case err == nil && c.InLen >= 14:
		d.Blocks = binary.BigEndian.Uint64(c.In) + 1
		d.BlockSize = int(binary.BigEndian.Uint32(c.In[8:]))
		d.PhysicalBlockSize = d.BlockSize << (c.In[13] & 0x0f)
		d.Thin = c.In[14]&0x80 != 0
	default:
		c = &Command{LUN: d.LUN, In: make([]byte, 8)}
		c.ReadCapacity10()
		if err := d.S.Do(ctx, c); err != nil {
			return fmt.Errorf("read capacity: %w", err)
		}
		if c.InLen < 8 {
			return fmt.Errorf("read capacity: %d bytes", c.InLen)
		}
		d.Blocks = uint64(binary.BigEndian.Uint32(c.In)) + 1
		d.BlockSize = int(binary.BigEndian.Uint32(c.In[4:]))
		d.PhysicalBlockSize = d.BlockSize
	}
	if d.BlockSize < 512 || d.BlockSize > 64<<10 || d.BlockSize&(d.BlockSize-1) != 0 || d.Blocks == 0 {
		return fmt.Errorf("unit has %d blocks of %d bytes", d.Blocks, d.BlockSize)
	}
	return nil
}

// Size is the unit's size in bytes.
func (d *Disk) Size() int64 { return int64(d.Blocks) * int64(d.BlockSize) }

func (d *Disk) blocks(off int64, n int) (uint64, uint32, error) {
	if off < 0 || off%int64(d.BlockSize) != 0 || n%d.BlockSize != 0 {
		return 0, 0, fmt.Errorf("offset %d or length %d is not a multiple of %d", off, n, d.BlockSize)
	}
	return uint64(off) / uint64(d.BlockSize), uint32(n / d.BlockSize), nil
}

// PrepareRead makes c a read of len(p) bytes at off.
func (d *Disk) PrepareRead(c *Command, p []byte, off int64) {
	c.LUN, c.In, c.Out = d.LUN, p, nil
	c.Read16(uint64(off)/uint64(d.BlockSize), uint32(len(p)/d.BlockSize), false)
}

// PrepareWrite makes c a write of p at off.
func (d *Disk) PrepareWrite(c *Command, p []byte, off int64, fua bool) {
	c.LUN, c.In, c.Out = d.LUN, nil, p
	c.Write16(uint64(off)/uint64(d.BlockSize), uint32(len(p)/d.BlockSize), fua)
}

// PrepareFlush makes c a flush of the whole unit.
func (d *Disk) PrepareFlush(c *Command) {
	c.LUN, c.In, c.Out = d.LUN, nil, nil
	c.SyncCache16(0, 0)
}

// ReadAt fills p.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if _, _, err := d.blocks(off, len(p)); err != nil {
		return err
	}
	c := &Command{}
	d.PrepareRead(c, p, off)
	if err := d.S.Do(ctx, c); err != nil {
		return err
	}
	if c.InLen != len(p) {
		return fmt.Errorf("read of %d bytes returned %d", len(p), c.InLen)
	}
	return nil
}

// WriteAt writes p; with fua it is stable when WriteAt returns.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if _, _, err := d.blocks(off, len(p)); err != nil {
		return err
	}
	c := &Command{}
	d.PrepareWrite(c, p, off, fua)
	return d.S.Do(ctx, c)
}

// Flush makes everything acknowledged before stable.
func (d *Disk) Flush(ctx context.Context) error {
	c := &Command{}
	d.PrepareFlush(c)
	return d.S.Do(ctx, c)
}

// Unmap gives n bytes at off back.
func (d *Disk) Unmap(ctx context.Context, off int64, n int) error {
	lba, count, err := d.blocks(off, n)
	if err != nil {
		return err
	}
	c := &Command{LUN: d.LUN}
	c.Out = AppendUnmapList(nil, Extent{lba, count})
	c.Unmap(len(c.Out))
	return d.S.Do(ctx, c)
}
