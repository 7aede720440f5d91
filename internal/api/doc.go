// Package api is the way in for people and programs: the connect services of proto/dozo/v1 over HTTPS and a
// unix socket, /healthz and /metrics, and the client that the command line uses.
//
// Start at Backend, what a node implements, and at NewServer, which puts authentication, roles, validation,
// error mapping, audit and logging before it; methods.go says for every method who may call it. Dial makes a
// Client. Backend speaks in the messages of package dozov1: they are the vocabulary of the API, and a second
// set of the same types would only have to be kept equal.
//
// Always true: a Backend sees only calls that were authenticated, permitted and valid, with the defaults filled
// in; every call of a known caller that changes something is given to Backend.Audit, whatever became of it; no secret of a
// request or answer is logged; an error reaches the caller with a connect code and a reason, both from the
// one table in errors.go. The server owns no state but its connections. Sizes are bytes.
package api
