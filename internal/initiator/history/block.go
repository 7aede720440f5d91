package history

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// BlockSize is the unit of numbering and checking.
const BlockSize = 4096

const (
	sectorSize      = 512
	sectorsPerBlock = BlockSize / sectorSize
	sectorMagic     = "DOZB"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Stamp says which write of which block of which run a block's bytes are.
type Stamp struct {
	Run   uint64 // random, one per log
	Block uint64 // where it belongs
	Write uint64 // 1 and up, grows over a run
}

// Fill makes p, BlockSize long, the content of s. Each 512-byte sector stands for itself, so that a torn block shows:
//
//	off  size  field        (little-endian)
//	  0     4  magic        "DOZB"
//	  4     4  crc          CRC-32C of bytes 8 to 511
//	  8     8  run
//	 16     8  block
//	 24     8  write
//	 32     8  sector       0 to 7
//	 40   472  noise        a generator seeded by all of the above: no two sectors compress or dedupe alike
func Fill(p []byte, s Stamp) {
	for i := range sectorsPerBlock {
		b := p[i*sectorSize : (i+1)*sectorSize : (i+1)*sectorSize]
		le := binary.LittleEndian
		copy(b, sectorMagic)
		le.PutUint64(b[8:], s.Run)
		le.PutUint64(b[16:], s.Block)
		le.PutUint64(b[24:], s.Write)
		le.PutUint64(b[32:], uint64(i))
		x := s.Run ^ s.Block*0x9e3779b97f4a7c15 ^ s.Write*0xbf58476d1ce4e5b9 ^ uint64(i+1)<<56
		for o := 40; o < sectorSize; o += 8 {
			// xorshift64*: cheap, and the checksum, not the noise, is what is trusted.
			x ^= x >> 12
			x ^= x << 25
			x ^= x >> 27
			le.PutUint64(b[o:], x*0x2545f4914f6cdd1d)
		}
		le.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	}
}

// sectorState is what a sector turned out to be.
type sectorState byte

const (
	sectorOurs    sectorState = iota
	sectorForeign             // no stamp, or one of another run: what was there before
	sectorCorrupt             // a stamp whose checksum is wrong
)

func readSector(b []byte, run uint64, i int) (Stamp, sectorState) {
	le := binary.LittleEndian
	if string(b[:4]) != sectorMagic {
		return Stamp{}, sectorForeign
	}
	s := Stamp{le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}
	if le.Uint32(b[4:]) != crc32.Checksum(b[8:sectorSize], castagnoli) || le.Uint64(b[32:]) != uint64(i) {
		return s, sectorCorrupt
	}
	if s.Run != run {
		return s, sectorForeign
	}
	return s, sectorOurs
}

// Content is what a block was found to contain.
type Content struct {
	// Kind is "stamped", "foreign" (nothing of this run), "torn", "corrupt" or "misplaced" (another block's bytes).
	Kind   string
	Write  uint64 // of a stamped or misplaced block
	Detail string
}

// Read finds out what p, BlockSize long, contains where block of run is expected.
func Read(p []byte, run, block uint64) Content {
	var first Stamp
	var firstState sectorState
	for i := range sectorsPerBlock {
		s, st := readSector(p[i*sectorSize:(i+1)*sectorSize], run, i)
		if st == sectorCorrupt {
			return Content{Kind: "corrupt", Detail: fmt.Sprintf("sector %d (stamp %+v): checksum is wrong", i, s)}
		}
		if i == 0 {
			first, firstState = s, st
			continue
		}
		if st != firstState || st == sectorOurs && s != first {
			return Content{Kind: "torn", Detail: fmt.Sprintf("sector 0 is %s, sector %d is %s",
				describe(first, firstState), i, describe(s, st))}
		}
	}
	switch {
	case firstState == sectorForeign:
		return Content{Kind: "foreign"}
	case first.Block != block:
		return Content{Kind: "misplaced", Write: first.Write, Detail: fmt.Sprintf("it is write %d of block %d", first.Write, first.Block)}
	}
	return Content{Kind: "stamped", Write: first.Write}
}

func describe(s Stamp, st sectorState) string {
	if st == sectorForeign {
		return "older than this run"
	}
	return fmt.Sprintf("write %d of block %d", s.Write, s.Block)
}
