// Package robust runs a cluster of real processes in network namespaces, draws faults at random (kill, stop, partitions
// in full, one way and of clients only, disks that hang or are full, voters of the control store away), and checks that
// what several multipathing clients saw of shared blocks has one order that explains it. It needs root, iproute2 and
// /dev/net/tun, is behind the build tag e2e, and is run by make robust.
//
// Start at TestRobust (robust_test.go), which draws rounds; faults_test.go has the faults, cluster_test.go the processes,
// client_test.go the clients, which are this test's binary again, in a namespace of their own.
//
// The environment: DOZO_BIN is the program under test; ROBUST_ROUNDS, ROBUST_SEED and ROBUST_ONLY (a fault's name) say what is
// drawn; ROBUST_KEEP=1 keeps the directory. Times are of one clock, that of the clients' process.
package robust
