package mutant

import "strings"

// ID names a clause that can be left out.
type ID int

// Mutant says what a clause is about.
type Mutant struct {
	ID        ID
	Name      string
	Clause    string // what is left out
	Focus     uint64 // see sim.NewPlan
	Scenarios []Scenario
}

// Scenario is a test that fails if the clause is left out.
type Scenario struct {
	Package string // below internal
	Test    string // with subtests behind slashes, as go test -run takes them
}

// All lists them.
func All() []Mutant {
	var list []Mutant
	for i, m := range names {
		x := Mutant{ID: ID(i), Name: m.name, Clause: m.clause, Focus: m.focus}
		for s := range strings.SplitSeq(m.scenarios, ", ") {
			pkg, test, _ := strings.Cut(s, " ")
			x.Scenarios = append(x.Scenarios, Scenario{pkg, test})
		}
		list = append(list, x)
	}
	return list
}
