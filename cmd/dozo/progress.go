package main

import "fmt"

// progress is one line on a terminal that is written again and again; nothing elsewhere.
type progress struct {
	a    *app
	show bool
	used bool
}

func (p *progress) line(text string) {
	if p.show {
		// Back to the first column, and clear to the end.
		fmt.Fprintf(p.a.err, "\r\x1b[K%s", text)
		p.used = true
	}
}

func (p *progress) end() {
	if p.used {
		fmt.Fprint(p.a.err, "\r\x1b[K")
		p.used = false
	}
}
