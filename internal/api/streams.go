package api

import (
	"context"

	"connectrpc.com/connect"

	"dozo/internal/api/dozov1"
)

// Wait passes on progress until the condition holds.
func (s volumeService) Wait(ctx context.Context, req *dozov1.WaitVolumeRequest, stream *connect.ServerStream[dozov1.WaitVolumeResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.WaitVolume(ctx, req, stream.Send)
}

// Move passes on how a hand-over goes.
func (s volumeService) Move(ctx context.Context, req *dozov1.MoveVolumeRequest, stream *connect.ServerStream[dozov1.MoveVolumeResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.MoveVolume(ctx, req, stream.Send)
}

// Recover passes on how a forced takeover goes.
func (s volumeService) Recover(ctx context.Context, req *dozov1.RecoverVolumeRequest, stream *connect.ServerStream[dozov1.RecoverVolumeResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.RecoverVolume(ctx, req, stream.Send)
}

// CreateMany passes on what has been made.
func (s volumeService) CreateMany(ctx context.Context, req *dozov1.CreateVolumesRequest, stream *connect.ServerStream[dozov1.CreateVolumesResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.CreateVolumes(ctx, req, stream.Send)
}

// DeleteMany passes on what has been deleted.
func (s volumeService) DeleteMany(ctx context.Context, req *dozov1.DeleteVolumesRequest, stream *connect.ServerStream[dozov1.DeleteVolumesResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.DeleteVolumes(ctx, req, stream.Send)
}

// Failover passes on how the takeovers go.
func (s siteService) Failover(ctx context.Context, req *dozov1.FailoverSiteRequest, stream *connect.ServerStream[dozov1.FailoverSiteResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.FailoverSite(ctx, req, stream.Send)
}

// Failback passes on how the hand-overs go.
func (s siteService) Failback(ctx context.Context, req *dozov1.FailbackSiteRequest, stream *connect.ServerStream[dozov1.FailbackSiteResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.FailbackSite(ctx, req, stream.Send)
}

// Diff passes on the ranges.
func (s forkService) Diff(ctx context.Context, req *dozov1.DiffForkRequest, stream *connect.ServerStream[dozov1.DiffForkResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.DiffFork(ctx, req, stream.Send)
}

// Export passes on the content.
func (s forkService) Export(ctx context.Context, req *dozov1.ExportForkRequest, stream *connect.ServerStream[dozov1.ExportForkResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.ExportFork(ctx, req, stream.Send)
}

// Clone passes on how much has been copied.
func (s forkService) Clone(ctx context.Context, req *dozov1.CloneForkRequest, stream *connect.ServerStream[dozov1.CloneForkResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.CloneFork(ctx, req, stream.Send)
}

// Drain passes on how many volumes are left.
func (s nodeService) Drain(ctx context.Context, req *dozov1.DrainNodeRequest, stream *connect.ServerStream[dozov1.DrainNodeResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.DrainNode(ctx, req, stream.Send)
}

// Decommission passes on how far the emptying is.
func (s nodeService) Decommission(ctx context.Context, req *dozov1.DecommissionNodeRequest, stream *connect.ServerStream[dozov1.EmptyProgress]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.DecommissionNode(ctx, req, stream.Send)
}

// Replace passes on how far the emptying is.
func (s storeService) Replace(ctx context.Context, req *dozov1.ReplaceStoreRequest, stream *connect.ServerStream[dozov1.EmptyProgress]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.ReplaceStore(ctx, req, stream.Send)
}

// Scrub passes on how far the pass is.
func (s storeService) Scrub(ctx context.Context, req *dozov1.ScrubStoreRequest, stream *connect.ServerStream[dozov1.ScrubProgress]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.ScrubStore(ctx, req, stream.Send)
}

// Events passes on the audit log.
func (c clusterService) Events(ctx context.Context, req *dozov1.EventsRequest, stream *connect.ServerStream[dozov1.Event]) error {
	if err := validate(req); err != nil {
		return err
	}
	// The answer's header goes out now: who follows a quiet cluster must see that it is connected.
	if req.GetFollow() {
		if err := stream.Send(nil); err != nil {
			return err
		}
	}
	return c.s.backend.Events(ctx, req, stream.Send)
}

// Backup passes on the pieces of a backup.
func (s controlService) Backup(ctx context.Context, req *dozov1.ControlBackupRequest, stream *connect.ServerStream[dozov1.ControlBackupResponse]) error {
	if err := validate(req); err != nil {
		return err
	}
	return s.b.ControlBackup(ctx, req, stream.Send)
}
