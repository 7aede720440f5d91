package mutant

// ID names a clause that can be left out.
type ID int

// Mutant says what a clause is about.
type Mutant struct {
	ID     ID
	Name   string
	Clause string // what is left out
}

// All lists them.
func All() []Mutant {
	var list []Mutant
	for i, m := range names {
		list = append(list, Mutant{ID(i), m[0], m[1]})
	}
	return list
}
