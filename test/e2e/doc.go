// Package e2e has the end-to-end tests: real processes on loopback addresses, real clients (qemu, libiscsi, dozo's
// own initiator), kill -9. They are behind the build tag e2e and are run by test/e2e.sh (make e2e), which needs root
// and some Debian packages; a tool that is missing is a failure, not a skip.
//
// Start at system (system_test.go): one `dozo up` in a directory and a 127.N.0.0/16 of its own, which ends with the
// test. The environment: DOZO_BIN is the program to test; E2E_LONG=1 asks for the long forms; E2E_ROUNDS is the
// number of rounds of the crash test; E2E_KEEP=1 keeps directories; E2E_SEED repeats a random sequence of kills.
package e2e
