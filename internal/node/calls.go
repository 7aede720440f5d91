package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"dozo/internal/api"
	dozov1 "dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// nodeCallTimeout bounds a question to another node's API: one that is paused must not hold up the answer about
// the others.
const nodeCallTimeout = 3 * time.Second

// callNode calls another node's API with this node's certificate, for the caller of ctx: the other node's audit
// log names that one.
func (n *Node) callNode(ctx context.Context, x control.Node, f func(context.Context, *api.Client) error) error {
	if !x.Addrs.Management.IsValid() {
		return fmt.Errorf("node %s has no management address: %w", x.Name, api.ErrUnavailable)
	}
	c, err := api.Dial(api.ClientOptions{Endpoints: []string{"https://" + x.Addrs.Management.String()}, TLS: n.id.NodeClient(string(x.Name), n.revoked)})
	if err != nil {
		return fmt.Errorf("node %s: %w", x.Name, err)
	}
	defer c.Close()
	caller := api.CallerFrom(ctx)
	ctx, cancel := context.WithTimeout(ctx, nodeCallTimeout)
	defer cancel()
	ctx, info := connect.NewClientContext(ctx)
	if caller.Role != "" {
		info.RequestHeader().Set(api.OnBehalfHeader, caller.Actor())
	}
	if err := f(ctx, c); err != nil {
		return fmt.Errorf("node %s: %w", x.Name, err)
	}
	return nil
}

// sessionsOf asks access servers how many sessions they have.
func (n *Node) sessionsOf(ctx context.Context, of []control.Node) map[ident.NodeName]int {
	out := map[ident.NodeName]int{}
	for _, a := range askNodes(ctx, of, func(ctx context.Context, x control.Node) (count int, err error) {
		err = n.callNode(ctx, x, func(ctx context.Context, c *api.Client) error {
			r, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{Node: string(x.Name)})
			count = len(r.GetSessions())
			return err
		})
		return count, err
	}) {
		if a.err != nil {
			n.log.Debug("sessions of another node", "peer", a.node.Name, "err", a.err)
			continue
		}
		out[a.node.Name] = a.value
	}
	return out
}

// reply is what one node said.
type reply[T any] struct {
	node  control.Node
	value T
	err   error
}

// askNodes asks all nodes at once and returns their answers in the nodes' order.
func askNodes[T any](ctx context.Context, nodes []control.Node, f func(context.Context, control.Node) (T, error)) []reply[T] {
	out := make([]reply[T], len(nodes))
	var wg sync.WaitGroup
	for i, x := range nodes {
		wg.Go(func() {
			v, err := f(ctx, x)
			out[i] = reply[T]{x, v, err}
		})
	}
	wg.Wait()
	return out
}
