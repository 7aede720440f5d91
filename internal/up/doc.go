// Package up runs a whole system on one machine: several sites of several nodes, each a process of its own,
// and a witness where the control store wants one (dozo up, dozo down).
//
// Start at Plan, which decides what there is and where (no I/O), and at System, which makes the directory,
// starts what is not running, and stops it. The directory is the state: up.yaml says what the system is, and
// never changes once it is written; nodes/NAME/pid says which process is a node's. There is no process that
// must live for the nodes to live: dozo up --detach ends once they are ready, and without it the supervisor
// only watches.
//
// Always true: a process is signalled only if it is the one that the pid file means (start time and boot ID
// are compared), so that a pid which was given out again harms nobody; of several dozo up on one directory
// one holds the lock; configurations and keys that exist are not written again, so that what a person changed
// stays; everything in the directory may be left by a crash at any moment and is completed by the next start.
package up
