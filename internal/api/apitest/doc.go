// Package apitest has an api.Backend in memory, for tests of the server, the client and the command line: no
// control store, no journal. Start at New. It keeps what the contract of api.Backend asks for (names are
// unique, IDs stay, deleting what is in use is refused) and makes no copies of anything.
package apitest
