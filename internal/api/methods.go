package api

import (
	"dozo/internal/api/dozov1/dozov1connect"
	"dozo/internal/pki"
)

// permission says who may call a method, and what the audit log calls it.
type permission struct {
	// need is the least role of a user; nodes may call whatever users may. Empty: see public and node.
	need pki.Role
	// public: anybody who reaches the port; what is in the request is the authentication.
	public bool
	// node: only nodes, by certificate.
	node bool
	// action is the name in the audit log of what changes something; empty: nothing is changed.
	action string
}

// methods has every method of the API; one that is missing can not be called. A test walks the services.
var methods = map[string]permission{
	dozov1connect.VolumeServiceCreateProcedure:  {need: pki.RoleOperator, action: "volume.create"},
	dozov1connect.VolumeServiceListProcedure:    {need: pki.RoleViewer},
	dozov1connect.VolumeServiceGetProcedure:     {need: pki.RoleViewer},
	dozov1connect.VolumeServiceResizeProcedure:  {need: pki.RoleOperator, action: "volume.resize"},
	dozov1connect.VolumeServiceRenameProcedure:  {need: pki.RoleOperator, action: "volume.rename"},
	dozov1connect.VolumeServiceSetProcedure:     {need: pki.RoleOperator, action: "volume.set"},
	dozov1connect.VolumeServiceMapProcedure:     {need: pki.RoleOperator, action: "volume.map"},
	dozov1connect.VolumeServiceUnmapProcedure:   {need: pki.RoleOperator, action: "volume.unmap"},
	dozov1connect.VolumeServiceMapsProcedure:    {need: pki.RoleViewer},
	dozov1connect.VolumeServiceDeleteProcedure:  {need: pki.RoleOperator, action: "volume.delete"},
	dozov1connect.VolumeServiceTargetsProcedure: {need: pki.RoleViewer},
	dozov1connect.VolumeServiceWaitProcedure:    {need: pki.RoleViewer},
	dozov1connect.VolumeServiceMoveProcedure:    {need: pki.RoleOperator, action: "volume.move"},

	dozov1connect.VolumeServiceCreateManyProcedure: {need: pki.RoleOperator, action: "volume.create"},
	dozov1connect.VolumeServiceDeleteManyProcedure: {need: pki.RoleOperator, action: "volume.delete"},

	dozov1connect.VolumeServiceRecoverProcedure: {need: pki.RoleOperator, action: "volume.recover"},

	dozov1connect.ForkServiceListProcedure:   {need: pki.RoleViewer},
	dozov1connect.ForkServiceGetProcedure:    {need: pki.RoleViewer},
	dozov1connect.ForkServiceDiffProcedure:   {need: pki.RoleViewer},
	dozov1connect.ForkServiceExportProcedure: {need: pki.RoleOperator, action: "fork.export"},
	dozov1connect.ForkServiceCloneProcedure:  {need: pki.RoleOperator, action: "fork.clone"},
	dozov1connect.ForkServiceDeleteProcedure: {need: pki.RoleOperator, action: "fork.delete"},

	dozov1connect.HostServiceAddProcedure:          {need: pki.RoleOperator, action: "host.add"},
	dozov1connect.HostServiceListProcedure:         {need: pki.RoleViewer},
	dozov1connect.HostServiceSetChapProcedure:      {need: pki.RoleOperator, action: "host.set-chap"},
	dozov1connect.HostServiceGetDiscoveryProcedure: {need: pki.RoleViewer},
	dozov1connect.HostServiceSetDiscoveryProcedure: {need: pki.RoleAdmin, action: "discovery.set"},
	dozov1connect.HostServiceDeleteProcedure:       {need: pki.RoleOperator, action: "host.delete"},

	dozov1connect.SessionServiceListProcedure:   {need: pki.RoleViewer},
	dozov1connect.SessionServiceKillProcedure:   {need: pki.RoleOperator, action: "session.kill"},
	dozov1connect.SessionServiceAcceptProcedure: {need: pki.RoleOperator, action: "session.accept"},

	dozov1connect.ReservationServiceGetProcedure:   {need: pki.RoleViewer},
	dozov1connect.ReservationServiceClearProcedure: {need: pki.RoleOperator, action: "reservation.clear"},

	dozov1connect.NodeServiceListProcedure:         {need: pki.RoleViewer},
	dozov1connect.NodeServiceCreateTokenProcedure:  {need: pki.RoleAdmin, action: "node.create-token"},
	dozov1connect.NodeServiceJoinProcedure:         {public: true, action: "node.join"},
	dozov1connect.NodeServiceRenewProcedure:        {node: true, action: "node.renew"},
	dozov1connect.NodeServiceRevokeProcedure:       {need: pki.RoleAdmin, action: "node.revoke"},
	dozov1connect.NodeServiceRemoveProcedure:       {need: pki.RoleAdmin, action: "node.remove"},
	dozov1connect.NodeServiceDecommissionProcedure: {need: pki.RoleAdmin, action: "node.decommission"},
	dozov1connect.NodeServiceDrainProcedure:        {need: pki.RoleOperator, action: "node.drain"},
	dozov1connect.NodeServiceUndrainProcedure:      {need: pki.RoleOperator, action: "node.undrain"},

	dozov1connect.StoreServiceListProcedure:    {need: pki.RoleViewer},
	dozov1connect.StoreServiceReplaceProcedure: {need: pki.RoleAdmin, action: "store.replace"},
	dozov1connect.StoreServiceKeepProcedure:    {need: pki.RoleAdmin, action: "store.keep"},
	dozov1connect.StoreServiceLossProcedure:    {need: pki.RoleViewer},
	dozov1connect.StoreServiceScrubProcedure:   {need: pki.RoleOperator, action: "store.scrub"},

	dozov1connect.SiteServiceListProcedure:     {need: pki.RoleViewer},
	dozov1connect.SiteServiceCreateProcedure:   {need: pki.RoleAdmin, action: "site.create"},
	dozov1connect.SiteServiceFailoverProcedure: {need: pki.RoleOperator, action: "site.failover"},
	dozov1connect.SiteServiceFailbackProcedure: {need: pki.RoleOperator, action: "site.failback"},

	dozov1connect.ClusterServiceStatusProcedure:      {need: pki.RoleViewer},
	dozov1connect.ClusterServiceEventsProcedure:      {need: pki.RoleViewer},
	dozov1connect.ClusterServiceVersionProcedure:     {need: pki.RoleViewer},
	dozov1connect.ClusterServiceCreateTokenProcedure: {need: pki.RoleAdmin, action: "token.create"},
	dozov1connect.ClusterServiceListTokensProcedure:  {need: pki.RoleAdmin},
	dozov1connect.ClusterServiceRevokeTokenProcedure: {need: pki.RoleAdmin, action: "token.revoke"},

	dozov1connect.ControlServiceStatusProcedure:          {need: pki.RoleViewer},
	dozov1connect.ControlServiceBackupProcedure:          {need: pki.RoleAdmin, action: "control.backup"}, // it has secrets: that it was made is recorded
	dozov1connect.ControlServiceDeclareLostProcedure:     {need: pki.RoleAdmin, action: "control.declare-lost"},
	dozov1connect.ControlServiceDeclareCompleteProcedure: {need: pki.RoleAdmin, action: "control.declare-complete"},
}
