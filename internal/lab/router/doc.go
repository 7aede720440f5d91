// Package router is the process in the middle of a lab: it holds one TUN device of each site's network namespace
// and carries packets between them as internal/lab/wan says.
//
// Start at Run, which opens the devices and serves the control socket, and at loop, the one thread that reads,
// waits and writes. Other goroutines only hand it functions to run (loop.do). Client is the other end of the socket.
//
// Time is what counts here, so the loop avoids what could stop it for milliseconds: it is locked to a thread with
// real-time priority, as are all threads of the process (Harden); it makes raw system calls, which give nothing back
// to Go's scheduler; packets lie outside the heap, in memory that is taken once, and the garbage collector is off until
// the control connections have left behind heapMax. What it does late in spite of that is counted (State).
//
// Packets go through the devices with virtio headers, so a TCP super-packet of up to 64 KiB is read and written by
// one call. Where only some of its segments go on together, their headers are made anew (segmentHeader).
//
// Always true: a packet's blocks are free again once each of its segments was delivered or dropped; control
// connections see the state between two events, never within one.
package router
