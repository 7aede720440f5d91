// Package isns registers iSCSI targets with iSNS servers (RFC 4171), so that initiators find them without being told of a
// portal.
//
// Start at Client.Run, which owns one connection to one server, and everything registered there until it returns. A cluster
// is one network entity, because a target, which all its access servers serve, belongs to one entity only (RFC 4171 3.1):
// each access server adds its own portals to it, and all targets with the portal groups of these portals. At the end it
// takes its portals out. For one that dies the server does, when it gets no answer to entity status inquiries (ESI, esi.go).
//
// Always true: what the server was not told, because it was away, is told in full with the next connection and every
// registerEvery after that; nothing waits for an iSNS server. Bytes: message.go, RFC 4171 5 and 6.
package isns
