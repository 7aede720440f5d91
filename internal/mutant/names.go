package mutant

// The clauses, by rule. The values have no meaning.
const (
	R2AllButOne ID = iota
)

var names = [...][2]string{
	R2AllButOne: {"R2-all-but-one", "a takeover goes on with half of the answers that it needs"},
}
