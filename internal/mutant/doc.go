// Package mutant leaves single clauses of the rules (docs/internals/rules.md) out of the program, one at a time, so that
// the simulator can show that it notices. Only programs built with the tag mutants can be changed: in all others On is a
// constant false, and the compiler removes what depends on it.
//
// A clause is left out where it is obeyed, by a condition with On; the list of all is in list.go. Which one is left out
// says the environment (DOZO_MUTANT), for the life of the process.
package mutant
