package mutant

// ID names a clause that can be left out.
type ID int

// Mutant says what a clause is about.
type Mutant struct {
	ID     ID
	Name   string
	Clause string // what is left out
	Focus  uint64 // see sim.NewPlan
}

// All lists them.
func All() []Mutant {
	var list []Mutant
	for i, m := range names {
		list = append(list, Mutant{ID(i), m.name, m.clause, m.focus})
	}
	return list
}
