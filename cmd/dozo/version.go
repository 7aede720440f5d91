package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/version"
)

type showVersion struct{ client bool }

func newVersion(a *app) *cobra.Command {
	var o showVersion
	c := &cobra.Command{
		Use: "version", Short: "Show the version of this program, and of the node that is asked",
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().BoolVar(&o.client, "client", false, "only of this program: ask no node")
	return c
}

// versions is what dozo version prints. Server is null where no node could be asked.
type versions struct {
	Client versionInfo  `json:"client"`
	Server *versionInfo `json:"server"`
}

type versionInfo struct {
	Version   string `json:"version"`
	Revision  string `json:"revision"`
	GoVersion string `json:"go_version"`
	Platform  string `json:"platform"`
	Node      string `json:"node,omitempty"`
}

func (o *showVersion) run(ctx context.Context, a *app) error {
	own := version.Get()
	v := versions{Client: versionInfo{Version: own.Version, Revision: own.Revision, GoVersion: own.GoVersion, Platform: own.Platform}}
	if !o.client {
		// The version of this program is worth printing where there is no cluster, too.
		if err := a.with(func(c *api.Client) error {
			resp, err := c.Cluster.Version(ctx, &dozov1.VersionRequest{})
			if err == nil {
				v.Server = &versionInfo{Version: resp.GetVersion(), Revision: resp.GetRevision(), GoVersion: resp.GetGoVersion(), Platform: resp.GetPlatform(), Node: resp.GetNode()}
			}
			return err
		}); err != nil && exitCode(err) != exitUnreachable {
			return err
		}
	}
	if a.format != view.Table {
		return a.format.Value(a.out, v)
	}
	fmt.Fprintln(a.out, v.Client.line("dozo"))
	if v.Server != nil {
		fmt.Fprintln(a.out, v.Server.line("node "+v.Server.Node))
	}
	return nil
}

func (i versionInfo) line(who string) string {
	rev := i.Revision
	if rev != "" {
		rev = " (" + rev + ")"
	}
	return who + " " + i.Version + rev + ", " + i.GoVersion + ", " + i.Platform
}
