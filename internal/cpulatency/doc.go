// Package cpulatency keeps the machine's processors from their deeper sleeps while requests follow one another closely.
//
// At depth 1 every process on the path waits most of the time, and each answer begins with waking a processor up: 1 to 100 µs from the deeper
// idle states of a real machine, and on a virtual one, where going idle hands the processor back to the host, 30 µs and more. A write passes
// four such wake-ups. The kernel lets a process ask for a bound on that latency (Documentation/power/pm_qos_interface.rst): for as long as it
// holds /dev/cpu_dma_latency open. The request counts for the whole machine, and costs power, or on a virtual machine time
// of the host; so a Keeper makes it only while there are at least some hundred requests a second, and takes it back some milliseconds after
// them. A process that dies takes it back too.
//
// Start at New, Keeper.Run and Keeper.Busy. Run is one goroutine, without a timer while nothing happens; Busy is called by
// any, for each request.
package cpulatency
