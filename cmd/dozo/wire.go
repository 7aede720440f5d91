package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"dozo/internal/api/view"
	printer "dozo/internal/inspect"
	"dozo/internal/node"
	"dozo/internal/vfs"
)

// joinOptions are what `dozo node join` was given.
type joinOptions struct {
	Token     string
	Endpoints []string
	Config    string // path of the node's configuration file
}

// initOptions are what `dozo cluster init` was given.
type initOptions struct {
	Config string // path of the first node's configuration file
	Name   string // of the cluster
}

// functions are what the commands need of the packages that run a node. They are fields, so that the tests of
// the command line need no node.
type functions struct {
	// serve runs a node, witness a voter of the control store and nothing else, until ctx ends.
	serve   func(ctx context.Context, configFile string, log io.Writer) error
	witness func(ctx context.Context, configFile string, log io.Writer) error
	// clusterInit makes CA, first node and control store of a new cluster on this host.
	clusterInit func(ctx context.Context, o initOptions, out io.Writer) error
	// nodeJoin fetches certificate and cluster's facts for this host's node.
	nodeJoin func(ctx context.Context, o joinOptions, out io.Writer) error
	// inspect prints a file that dozo wrote, verifying every checksum; an error if one does not match.
	inspect func(path string, o inspectOptions, out io.Writer) error
}

// wired are the functions of this build.
var wired = functions{
	serve:   node.Serve,
	witness: node.Witness,
	clusterInit: func(ctx context.Context, o initOptions, out io.Writer) error {
		return node.ClusterInit(ctx, node.InitOptions(o), out)
	},
	nodeJoin: func(ctx context.Context, o joinOptions, out io.Writer) error {
		return node.Join(ctx, node.JoinOptions(o), out)
	},
	inspect: func(path string, o inspectOptions, out io.Writer) error {
		style := map[view.Format]printer.Style{view.JSON: printer.JSON, view.YAML: printer.YAML}[o.Format]
		return printer.File(out, vfs.Default, path, printer.Options{Style: style, Records: o.Records, Data: o.Data, Name: o.Name})
	},
}

// errNotBuilt: the binary was built without the package that a command needs.
var errNotBuilt = errors.New("not part of this build")

func notBuilt(command string) error { return fmt.Errorf("dozo %s: %w", command, errNotBuilt) }
