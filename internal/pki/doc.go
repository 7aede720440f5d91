// Package pki is the cluster's own certificate authority and what is made with it: certificates of nodes and
// of API users, the tokens with which a node joins and with which a user calls the API, and the tls.Config
// values that every listener and dialer of the program uses.
//
// Start at CA (NewCA, LoadCA), which signs, and at Identity, which holds a node's own
// certificate, gives it to handshakes, and takes a renewed one without a restart. Whoever keeps records
// (revocations, token hashes) is the control store; this package defines them and checks against them
// through a callback.
//
// Always true: TLS 1.3 only; a certificate counts only if this cluster's CA signed it, it carries this
// cluster's ID, it has the role that the connection is for, and it is not revoked; private keys and CA keys
// are in files of mode 0600 that are replaced atomically, key and certificate in one file, so that no crash
// leaves a key with another's certificate; of tokens only hashes are ever stored.
package pki
