// Package node wires the roles of one `dozo serve` process together: certificates, control store, stores,
// connections to other nodes, owners, portals and the API. It has no rules of its own.
//
// Start at Serve (serve.go): it starts the parts, which joining.go and roles.go make, from the bottom up and stops them from the top down. backend.go
// and its neighbours answer the API from what the parts know.
//
// All state belongs to the parts; Node only points at them. Sizes are bytes.
package node
