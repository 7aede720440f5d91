package core

// pieces reads along the buffers of an append as if they were one. Records usually lie each within one
// buffer and are looked at where they are; only one that is cut by a boundary is copied.
type pieces struct {
	bufs [][]byte
	off  int // within bufs[0]
	left int // bytes in all
}

func newPieces(bufs [][]byte) pieces {
	p := pieces{bufs: bufs}
	for _, b := range bufs {
		p.left += len(b)
	}
	return p
}

// peek gives the next n bytes without taking them; *scratch is used, and grown, when they lie in several
// buffers. It needs n <= left.
func (p *pieces) peek(n int, scratch *[]byte) []byte {
	for len(p.bufs) > 0 && p.off == len(p.bufs[0]) {
		p.bufs, p.off = p.bufs[1:], 0
	}
	if n == 0 {
		return nil
	}
	if b := p.bufs[0][p.off:]; len(b) >= n {
		return b[:n]
	}
	if cap(*scratch) < n {
		*scratch = make([]byte, 0, n)
	}
	b := (*scratch)[:0]
	from := p.off
	for _, buf := range p.bufs {
		b = append(b, buf[from:min(len(buf), from+n-len(b))]...)
		if from = 0; len(b) == n {
			break
		}
	}
	*scratch = b
	return b
}

// skip takes n bytes.
func (p *pieces) skip(n int) {
	p.left -= n
	for n > 0 {
		k := min(n, len(p.bufs[0])-p.off)
		n -= k
		if p.off += k; p.off == len(p.bufs[0]) {
			p.bufs, p.off = p.bufs[1:], 0
		}
	}
}

// rest appends to dst what is left, as buffers.
func (p *pieces) rest(dst [][]byte) [][]byte {
	for i, b := range p.bufs {
		if i == 0 {
			b = b[p.off:]
		}
		if len(b) > 0 {
			dst = append(dst, b)
		}
	}
	return dst
}
