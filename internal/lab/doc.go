// Package lab makes several sites on one Linux machine, as they would be in the world: a network namespace for each,
// with addresses of its own, and between them a router process that gives every pair a delay, a rate, losses
// and all else that internal/lab/wan knows (dozo lab).
//
// Start at Up and Down; Command is one change as people write it (set, partition, heal), Scenario a timeline of them.
// Nodes, which Up can start in the namespaces, are in nodes.go.
//
// The kernel has the state: namespaces are named dozolab-LAB-SITE, the router is the process whose command line says
// so, and what else belongs to a lab runs in its namespaces. Down goes by that and needs no file, so it cleans
// up after any crash. The files in /run/dozo-lab/LAB only say what was wished, and have the router's socket and
// log; after a restart of the machine nothing of either is left.
//
// Always true: names of labs and sites are letters and digits, so one lab's prefix is never another's; nothing outside
// the namespaces is changed; all of it needs root.
package lab
