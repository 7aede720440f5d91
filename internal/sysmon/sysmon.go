// Package sysmon keeps the monitor thread of Go's runtime out of the way of a server that answers one request at a
// time.
//
// Whenever a process has nothing to do, that thread sleeps on a futex until something is to be done again. Each request
// that finds the process idle, as each does at depth 1, then pays for a system call that wakes the thread, and
// for the thread itself, which for the next millisecond wakes up every 20 µs to see that nothing is wrong: three context switches
// a request on processors that the request needs. A runtime that has been asked to trace its scheduler keeps
// the thread from that sleep: it looks after the process every 10 ms instead, idle or not. So the runtime is asked for a
// trace, of one line in 24 days. docs/performance.md has what it brings.
//
// The price: a hundred wake-ups a second of an idle process, and a system call that waits, as fdatasync does, keeps its
// processor (of GOMAXPROCS) up to 10 ms before another goroutine can have it.
//
// A node that has to get rid of what is in its process does so by the same way (StartAnew).
//
// Start at KeepAwake and Env. There is no state.
package sysmon

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// setting is of package runtime: "schedtrace=X: setting schedtrace to X causes the scheduler to emit a single line to standard
// error every X milliseconds". This is the greatest X that it takes; it counts from the start of the host.
const setting = "schedtrace=2147483647"

// KeepAwake starts the program anew, in this process and with the same arguments, with a runtime whose monitor does not sleep. It returns
// at once in a program started like that, and with an error where it can't be.
//
// While that happens the process can be seen as a zombie for a moment, if another thread than the first one makes the call. Who starts a
// program and watches it had better start it with Env.
func KeepAwake() error {
	env, done := with(os.Environ())
	if done {
		return nil
	}
	return execute(env)
}

func execute(env []string) error {
	// By its own name, by which others find it, unless it has been deleted since.
	if name, err := os.Executable(); err == nil {
		_ = syscall.Exec(name, os.Args, env)
	}
	return os.NewSyscallError("execve", syscall.Exec("/proc/self/exe", os.Args, env))
}

// anewVar is in the environment of a program that has started itself anew, for whatever reason but KeepAwake's: how often in a row.
const anewVar = "DOZO_STARTED_ANEW="

// StartAnew executes the program again, in this process and with the same arguments. All that is open ends, locks too, and every
// goroutine. The new one is told that it was the time-th time in a row. It returns only if that can't be done.
func StartAnew(time int) error {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, anewVar) })
	return execute(append(env, anewVar+strconv.Itoa(time)))
}

// StartedAnew is how often in a row the program has started itself anew; 0: somebody else has started it.
func StartedAnew() int {
	for _, e := range os.Environ() {
		if v, ok := strings.CutPrefix(e, anewVar); ok {
			n, _ := strconv.Atoi(v)
			return max(n, 0)
		}
	}
	return 0
}

// Env is the environment in which a program need not start anew.
func Env(environ []string) []string {
	env, _ := with(environ)
	return env
}

// with adds the setting to an environment; done means that the environment decides on it already.
func with(environ []string) (env []string, done bool) {
	value := setting
	for _, e := range environ {
		v, ok := strings.CutPrefix(e, "GODEBUG=")
		if !ok {
			env = append(env, e)
			continue
		}
		if strings.Contains(","+v, ",schedtrace=") {
			return environ, true
		}
		if v != "" {
			value = v + "," + setting
		}
	}
	return append(env, "GODEBUG="+value), false
}
