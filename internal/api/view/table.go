package view

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Grid is a table for people: columns as wide as they must be, two spaces between.
type Grid struct {
	head []string
	rows [][]string
}

// NewGrid makes a table with the columns' headings.
func NewGrid(head ...string) *Grid { return &Grid{head: head} }

// Row adds a row. An empty cell is shown as a dash, so that columns stay countable.
func (g *Grid) Row(cells ...string) {
	row := make([]string, len(g.head))
	for i := range row {
		row[i] = "-"
		if i < len(cells) && cells[i] != "" {
			row[i] = printable(cells[i])
		}
	}
	g.rows = append(g.rows, row)
}

// printable keeps names and messages from moving the cursor: some of them come from elsewhere.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// Write prints the table; with no rows only the heading, so that it is clear what there is none of.
func (g *Grid) Write(w io.Writer) error {
	width := make([]int, len(g.head))
	all := append([][]string{g.head}, g.rows...)
	for _, row := range all {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, row := range all {
		var line strings.Builder
		for i, c := range row {
			line.WriteString(c)
			line.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Facts prints labelled values, one a line, aligned; pairs with an empty value are left out.
func Facts(w io.Writer, pairs ...string) error {
	width := 0
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			width = max(width, utf8.RuneCountInString(pairs[i]))
		}
	}
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		b.WriteString(pairs[i])
		b.WriteString(strings.Repeat(" ", width-utf8.RuneCountInString(pairs[i])+2))
		b.WriteString(printable(pairs[i+1]))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
