package api

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/pki"
)

// Limits of what is asked for. A volume's address space is bounded by what READ CAPACITY (16) and the map can
// say; the rest keeps the control store small.
const (
	SizeMax      = 1 << 50
	SizeUnit     = 4096 // sizes are multiples of it
	nameMax      = 63
	labelsMax    = 32
	listMax      = 256 // names or addresses of one host
	textMax      = 1024
	chapMin      = 12
	chapMax      = 255
	joinTTL      = time.Hour
	joinTTLMax   = 30 * 24 * time.Hour
	conditionRep = "replicated"
	againstHead  = "head"
	againstBase  = "base"
)

// initiatorForm is the iSCSI name formats of RFC 7143 4.2.7: iqn., eui. and naa. names.
var initiatorForm = regexp.MustCompile(`^(iqn\.\d{4}-\d{2}\.[a-z0-9.:-]{1,200}|eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32}))$`)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// labelForm is the key of a label.
var labelForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", control.ErrInvalid, fmt.Sprintf(format, args...))
}

// validate checks a request and fills in its defaults. Only what can be decided without the cluster's state
// is decided here.
func validate(msg proto.Message) error {
	if err := known(msg); err != nil {
		return err
	}
	switch m := msg.(type) {
	case *dozov1.CreateVolumeRequest:
		return validateCreate(m)
	case *dozov1.ListVolumesRequest:
		return errors.Join(checkOptional("tenant", m.GetTenant()), checkLabels(m.GetLabels()))
	case *dozov1.GetVolumeRequest:
		return volumeRef(m.GetVolume(), &m.Tenant)
	case *dozov1.ResizeVolumeRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkSize(m.GetSizeBytes()))
	case *dozov1.RenameVolumeRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkVolumeName("new_name", m.GetNewName()))
	case *dozov1.SetVolumeRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOwnership(m.GetOwnership()), checkPaths(m.GetAluaRemote(), m.GetRedirect()), checkPartition(m.GetPartition()), checkAck(m.GetAck()), checkSetHosts(m))
	case *dozov1.MapVolumeRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkName("host", m.GetHost()), checkLUN(m.GetLun()))
	case *dozov1.UnmapVolumeRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkName("host", m.GetHost()))
	case *dozov1.VolumeMapsRequest:
		if m.GetVolume() == "" {
			return errors.Join(checkOptional("tenant", m.GetTenant()), checkOptional("host", m.GetHost()))
		}
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptional("host", m.GetHost()))
	case *dozov1.DeleteVolumeRequest:
		return volumeRef(m.GetVolume(), &m.Tenant)
	case *dozov1.CreateVolumesRequest:
		return validateCreateMany(m)
	case *dozov1.DeleteVolumesRequest:
		return errors.Join(tenant(&m.Tenant), checkMany("volumes", m.GetVolumes(), checkName))
	case *dozov1.VolumeTargetsRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptional("site", m.GetSite()))
	case *dozov1.WaitVolumeRequest:
		return validateWait(m)
	case *dozov1.MoveVolumeRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkName("to", m.GetTo()))
	case *dozov1.AddHostRequest:
		return validateAddHost(m)
	case *dozov1.ListHostsRequest:
		return checkOptional("tenant", m.GetTenant())
	case *dozov1.SetChapRequest:
		return errors.Join(tenant(&m.Tenant), checkName("host", m.GetHost()), checkChap(m.GetChap()))
	case *dozov1.SetDiscoveryRequest:
		return checkChap(m.GetChap())
	case *dozov1.DeleteHostRequest:
		return errors.Join(tenant(&m.Tenant), checkName("host", m.GetHost()))
	case *dozov1.ListSessionsRequest:
		return errors.Join(tenant(&m.Tenant), checkOptional("volume", m.GetVolume()), checkOptional("host", m.GetHost()), checkOptional("node", m.GetNode()))
	case *dozov1.KillSessionRequest:
		return checkText("id", m.GetId())
	case *dozov1.AcceptSessionsRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptionalText("initiator_name", m.GetInitiatorName()), checkISID(m.GetIsid()), checkOptionalText("epoch", m.GetEpoch()))
	case *dozov1.GetReservationsRequest:
		return volumeRef(m.GetVolume(), &m.Tenant)
	case *dozov1.ClearReservationsRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptionalText("initiator_name", m.GetInitiatorName()), checkOptional("node", m.GetNode()))
	case *dozov1.ListNodesRequest:
		return checkOptional("site", m.GetSite())
	case *dozov1.CreateJoinTokenRequest:
		return validateJoinToken(m)
	case *dozov1.JoinRequest:
		return validateJoin(m)
	case *dozov1.RenewRequest:
		return checkCSR(m.GetCsr())
	case *dozov1.RevokeRequest:
		return validateRevoke(m)
	case *dozov1.RemoveNodeRequest:
		return checkName("node", m.GetNode())
	case *dozov1.DrainNodeRequest:
		return checkName("node", m.GetNode())
	case *dozov1.UndrainNodeRequest:
		return checkName("node", m.GetNode())
	case *dozov1.DecommissionNodeRequest:
		return checkName("node", m.GetNode())
	case *dozov1.ListStoresRequest:
		return checkOptional("node", m.GetNode())
	case *dozov1.StoreLossRequest:
		return validateLoss(m)
	case *dozov1.ReplaceStoreRequest:
		return checkText("store", m.GetStore())
	case *dozov1.KeepStoreRequest:
		return checkText("store", m.GetStore())
	case *dozov1.ScrubStoreRequest:
		return checkText("store", m.GetStore())
	case *dozov1.CreateSiteRequest:
		return errors.Join(checkName("name", m.GetName()), checkCIDRs(m.GetCidrs()))
	case *dozov1.FailoverSiteRequest:
		return errors.Join(checkName("site", m.GetSite()), checkOptional("to", m.GetTo()))
	case *dozov1.FailbackSiteRequest:
		return checkName("site", m.GetSite())
	case *dozov1.RecoverVolumeRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptional("to", m.GetTo()))
	case *dozov1.ListForksRequest:
		if m.GetVolume() == "" {
			return checkOptional("tenant", m.GetTenant())
		}
		return volumeRef(m.GetVolume(), &m.Tenant)
	case *dozov1.GetForkRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptional("fork", m.GetFork()))
	case *dozov1.DiffForkRequest:
		if m.Against == "" {
			m.Against = againstHead
		}
		if a := m.GetAgainst(); a != againstHead && a != againstBase {
			return invalid("against %q: want %s or %s", a, againstBase, againstHead)
		}
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptional("fork", m.GetFork()))
	case *dozov1.ExportForkRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptional("fork", m.GetFork()))
	case *dozov1.CloneForkRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkOptional("fork", m.GetFork()), checkVolumeName("name", m.GetName()))
	case *dozov1.DeleteForkRequest:
		return errors.Join(volumeRef(m.GetVolume(), &m.Tenant), checkName("fork", m.GetFork()))
	case *dozov1.EventsRequest:
		return validateEvents(m)
	case *dozov1.CreateTokenRequest:
		return validateToken(m)
	case *dozov1.RevokeTokenRequest:
		return checkName("name", m.GetName())
	case *dozov1.ControlDeclareLostRequest:
		return checkStores(m.GetStores())
	case *dozov1.ControlStoreStatusRequest, *dozov1.ControlBackupRequest, *dozov1.ControlDeclareCompleteRequest:
		return nil
	case *dozov1.ListSitesRequest, *dozov1.GetDiscoveryRequest, *dozov1.StatusRequest, *dozov1.VersionRequest, *dozov1.ListTokensRequest:
		return nil
	}
	// A method whose request nobody checks must not pass: this is a fault of ours, and a test walks them all.
	return fmt.Errorf("%T: no rules for this request", msg)
}

func validateCreate(m *dozov1.CreateVolumeRequest) error {
	if m.Durability == "" {
		m.Durability = string(control.Replicated)
	}
	if m.Partition == "" {
		m.Partition = string(control.PartitionContinue)
	}
	if m.Ownership == "" {
		m.Ownership = string(control.OwnershipFollow)
	}
	if m.AluaRemote == "" {
		m.AluaRemote = string(control.RemoteNonOptimized)
	}
	if m.Redirect == "" {
		m.Redirect = string(control.RedirectOff)
	}
	if m.Ack == "" {
		m.Ack = control.AckText(0)
	}
	if m.BlockSize == 0 {
		m.BlockSize = 512
	}
	errs := []error{tenant(&m.Tenant), checkVolumeName("name", m.GetName()), checkSize(m.GetSizeBytes()),
		checkOptional("at_site", m.GetAtSite()), checkLabels(m.GetLabels())}
	if d := control.Durability(m.GetDurability()); d != control.Replicated && d != control.Sync {
		errs = append(errs, invalid("durability %q: want replicated or sync", d))
	}
	errs = append(errs, checkPartition(m.GetPartition()), checkOwnership(m.GetOwnership()), checkPaths(m.GetAluaRemote(), m.GetRedirect()), checkAck(m.GetAck()))
	if b := m.GetBlockSize(); b != 512 && b != 4096 {
		errs = append(errs, invalid("block_size %d: want 512 or 4096", b))
	}
	return errors.Join(append(errs, checkHosts(m.GetHosts()))...)
}

// checkHosts checks who may use a volume.
func checkHosts(list []string) error {
	var errs []error
	for _, h := range list {
		errs = append(errs, checkName("hosts", h))
	}
	if len(list) > listMax {
		errs = append(errs, invalid("%d hosts: want %d at most", len(list), listMax))
	}
	return errors.Join(errs...)
}

func checkSetHosts(m *dozov1.SetVolumeRequest) error {
	if m.GetAllHosts() && len(m.GetHosts()) > 0 {
		return invalid("all_hosts with hosts: want one of them")
	}
	return checkHosts(m.GetHosts())
}

func firstOf(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// manyMax is how many volumes one call makes or deletes.
const manyMax = 10000

// validateCreateMany checks what is common by the rules for one volume, under the first of the names.
func validateCreateMany(m *dozov1.CreateVolumesRequest) error {
	if m.GetLike() == nil {
		return invalid("like is missing: what the volumes are to be like")
	}
	if n := m.Like.GetName(); n != "" {
		return invalid("like has the name %q: names are in names", n)
	}
	if err := checkMany("names", m.GetNames(), checkVolumeName); err != nil {
		return err
	}
	m.Like.Name = m.Names[0]
	err := validateCreate(m.Like)
	m.Like.Name = ""
	return err
}

// checkMany checks a list of names, and that none is there twice.
func checkMany(field string, names []string, check func(field, name string) error) error {
	if n := len(names); n == 0 || n > manyMax {
		return invalid("%d %s: want 1 to %d", n, field, manyMax)
	}
	seen := make(map[string]bool, len(names))
	for _, n := range names {
		if err := check(field, n); err != nil {
			return err
		}
		if seen[n] {
			return invalid("%s has %s twice", field, n)
		}
		seen[n] = true
	}
	return nil
}

func checkPartition(text string) error {
	if p := control.Partition(text); text != "" && p != control.PartitionContinue && p != control.PartitionStop {
		return invalid("partition %q: want continue or stop", p)
	}
	return nil
}

// checkAck takes an acknowledgement policy. How many other sites there are, the control store knows.
func checkAck(text string) error {
	if text == "" {
		return nil
	}
	_, err := control.ParseAck(text)
	return err
}

func checkOwnership(text string) error {
	if o := control.Ownership(text); text != "" && o != control.OwnershipFollow && o != control.OwnershipPin {
		return invalid("ownership %q: want follow or pin", o)
	}
	return nil
}

// checkPaths takes the policies of a volume's paths.
func checkPaths(remote, redirect string) error {
	var errs []error
	switch control.RemoteAccess(remote) {
	case "", control.RemoteNonOptimized, control.RemoteStandby, control.RemoteUnavailable:
	default:
		errs = append(errs, invalid("alua_remote %q: want nonoptimized, standby or unavailable", remote))
	}
	switch control.Redirect(redirect) {
	case "", control.RedirectOff, control.RedirectSite, control.RedirectOwner:
	default:
		errs = append(errs, invalid("redirect %q: want off, site or owner", redirect))
	}
	return errors.Join(errs...)
}

func checkLUN(lun uint32) error {
	if lun > control.LUNMax {
		return invalid("lun %d: want 0 to %d", lun, control.LUNMax)
	}
	return nil
}

func validateWait(m *dozov1.WaitVolumeRequest) error {
	if m.Condition == "" {
		m.Condition = conditionRep
	}
	err := volumeRef(m.GetVolume(), &m.Tenant)
	if m.GetCondition() != conditionRep {
		err = errors.Join(err, invalid("condition %q: want %s", m.GetCondition(), conditionRep))
	}
	return err
}

func validateAddHost(m *dozov1.AddHostRequest) error {
	errs := []error{tenant(&m.Tenant), checkName("name", m.GetName()), checkCIDRs(m.GetCidrs()), checkChap(m.GetChap())}
	if len(m.GetInitiatorNames()) == 0 {
		errs = append(errs, invalid("initiator_names: want one at least"))
	}
	if len(m.GetInitiatorNames()) > listMax {
		errs = append(errs, invalid("%d initiator names: want %d at most", len(m.GetInitiatorNames()), listMax))
	}
	for _, n := range m.GetInitiatorNames() {
		if !initiatorForm.MatchString(n) {
			errs = append(errs, invalid("initiator name %q: want iqn.YYYY-MM.DOMAIN[:NAME] in lower case, eui. with 16 or naa. with 16 or 32 hexadecimal digits", n))
		}
	}
	return errors.Join(errs...)
}

func validateJoinToken(m *dozov1.CreateJoinTokenRequest) error {
	if m.Role == "" {
		m.Role = string(pki.RoleNode)
	}
	if m.Ttl == nil {
		m.Ttl = durationpb.New(joinTTL)
	}
	err := checkOptional("node", m.GetNode())
	if !pki.Role(m.GetRole()).IsNode() {
		err = errors.Join(err, invalid("role %q: want node or witness", m.GetRole()))
	}
	if ttl := m.GetTtl().AsDuration(); ttl <= 0 || ttl > joinTTLMax {
		err = errors.Join(err, invalid("ttl %v: want more than 0 and %v at most", ttl, joinTTLMax))
	}
	return err
}

func validateJoin(m *dozov1.JoinRequest) error {
	errs := []error{checkName("node", m.GetNode()), checkOptional("site", m.GetSite()), checkCSR(m.GetCsr())}
	if _, err := pki.ParseJoinToken(m.GetToken()); err != nil {
		errs = append(errs, err)
	}
	if n := len(m.GetAddresses()); n == 0 || n > listMax {
		errs = append(errs, invalid("%d addresses: want 1 to %d", n, listMax))
	}
	for _, a := range m.GetAddresses() {
		if ip, err := netip.ParseAddr(a); err != nil || ip.IsUnspecified() {
			errs = append(errs, invalid("address %q: want an IP address that can be dialled", a))
		}
	}
	if p := m.GetVoterPeer(); p != "" {
		if _, err := netip.ParseAddrPort(p); err != nil {
			errs = append(errs, invalid("voter_peer %q: want IP:PORT", p))
		}
	}
	return errors.Join(errs...)
}

func validateRevoke(m *dozov1.RevokeRequest) error {
	if (m.GetNode() == "") == (m.GetSerial() == "") {
		return invalid("want either node or serial")
	}
	if len(m.GetReason()) > textMax {
		return invalid("reason of %d bytes: want %d at most", len(m.GetReason()), textMax)
	}
	if m.GetNode() != "" {
		return checkName("node", m.GetNode())
	}
	return checkText("serial", m.GetSerial())
}

func validateEvents(m *dozov1.EventsRequest) error {
	if m.GetAfterRevision() < 0 {
		return invalid("after_revision %d: want 0 or more", m.GetAfterRevision())
	}
	if m.Since != nil && !m.GetSince().IsValid() {
		return invalid("since: not a valid time")
	}
	return nil
}

func validateToken(m *dozov1.CreateTokenRequest) error {
	err := checkName("name", m.GetName())
	if _, rerr := pki.ParseUserRole(m.GetRole()); rerr != nil {
		err = errors.Join(err, invalid("%v", rerr))
	}
	if m.Ttl != nil && m.GetTtl().AsDuration() <= 0 {
		err = errors.Join(err, invalid("ttl %v: want more than 0, or none for a token that does not expire", m.GetTtl().AsDuration()))
	}
	return err
}

// volumeRef checks a volume's name or ID and fills in the tenant.
func volumeRef(volume string, t *string) error {
	return errors.Join(tenant(t), checkName("volume", volume))
}

func tenant(t *string) error {
	if *t == "" {
		*t = control.DefaultTenant
	}
	return checkName("tenant", *t)
}

func checkName(field, name string) error {
	if len(name) == 0 || len(name) > nameMax || !nameForm.MatchString(name) {
		return invalid("%s %q: want 1 to %d letters, digits, and . _ - after the first", field, name, nameMax)
	}
	return nil
}

// checkVolumeName also keeps names and IDs apart, as either may be used for a volume.
func checkVolumeName(field, name string) error {
	if _, err := ident.ParseJournalID(name); err == nil {
		return invalid("%s %q: a name must not look like an ID", field, name)
	}
	return checkName(field, name)
}

func checkOptional(field, name string) error {
	if name == "" {
		return nil
	}
	return checkName(field, name)
}

func checkText(field, text string) error {
	if len(text) == 0 || len(text) > textMax {
		return invalid("%s of %d bytes: want 1 to %d", field, len(text), textMax)
	}
	return nil
}

func checkSize(n uint64) error {
	switch {
	case n == 0:
		return invalid("size_bytes: want a size")
	case n > SizeMax:
		return invalid("size_bytes %d: want %d (1 PiB) at most", n, uint64(SizeMax))
	case n%SizeUnit != 0:
		return invalid("size_bytes %d: want a multiple of %d; %d would do", n, SizeUnit, (n/SizeUnit+1)*SizeUnit)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > labelsMax {
		return invalid("%d labels: want %d at most", len(labels), labelsMax)
	}
	for k, v := range labels {
		if !labelForm.MatchString(k) {
			return invalid("label %q: want 1 to 63 letters, digits, and . _ / - after the first", k)
		}
		if len(v) > textMax {
			return invalid("label %q: value of %d bytes: want %d at most", k, len(v), textMax)
		}
	}
	return nil
}

func checkCIDRs(cidrs []string) error {
	if len(cidrs) > listMax {
		return invalid("%d CIDRs: want %d at most", len(cidrs), listMax)
	}
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return invalid("CIDR %q: want ADDRESS/BITS", c)
		}
		if p.Masked() != p {
			return invalid("CIDR %q: has bits beyond its length; %s would do", c, p.Masked())
		}
	}
	return nil
}

// checkChap never puts a secret into the error.
func checkChap(c *dozov1.ChapCredentials) error {
	if c == nil {
		return nil
	}
	if (c.GetInUser() == "") != (c.GetInSecret() == "") || (c.GetOutUser() == "") != (c.GetOutSecret() == "") {
		return invalid("chap: want name and secret of a direction, or neither")
	}
	if c.GetInUser() == "" {
		return invalid("chap: want in_user and in_secret; only the initiator's proof makes sense without the target's, not the other way round")
	}
	for _, s := range []struct{ field, secret string }{{"in_secret", c.GetInSecret()}, {"out_secret", c.GetOutSecret()}} {
		if n := len(s.secret); n != 0 && (n < chapMin || n > chapMax) {
			return invalid("chap: %s of %d bytes: want %d to %d (RFC 7143 9.2.1)", s.field, n, chapMin, chapMax)
		}
	}
	if c.GetInSecret() == c.GetOutSecret() {
		return invalid("chap: one secret for both directions (RFC 7143 9.2.1 forbids it)")
	}
	return errors.Join(checkText("in_user", c.GetInUser()), checkOptionalText("out_user", c.GetOutUser()))
}

func checkCSR(csr []byte) error {
	// An ECDSA P-256 request is some 400 bytes.
	if len(csr) == 0 || len(csr) > 16<<10 {
		return invalid("csr of %d bytes: want a certificate request in PEM text", len(csr))
	}
	return nil
}

// auditObject names what a request is about, in the form of the control store's events.
func auditObject(msg proto.Message) string {
	inTenant := func(kind, t, name string) string {
		if t == "" {
			t = control.DefaultTenant
		}
		return kind + "/" + t + "/" + name
	}
	switch m := msg.(type) {
	case *dozov1.CreateVolumeRequest:
		return inTenant("volume", m.GetTenant(), m.GetName())
	case *dozov1.CreateVolumesRequest:
		return inTenant("volume", m.GetLike().GetTenant(), firstOf(m.GetNames()))
	case *dozov1.DeleteVolumesRequest:
		return inTenant("volume", m.GetTenant(), firstOf(m.GetVolumes()))
	case interface{ GetVolume() string }:
		t, _ := msg.(interface{ GetTenant() string })
		return inTenant("volume", t.GetTenant(), m.GetVolume())
	case *dozov1.AddHostRequest:
		return inTenant("host", m.GetTenant(), m.GetName())
	case interface {
		GetHost() string
		GetTenant() string
	}:
		return inTenant("host", m.GetTenant(), m.GetHost())
	case *dozov1.ControlDeclareLostRequest, *dozov1.ControlDeclareCompleteRequest, *dozov1.ControlBackupRequest:
		return "control"
	case *dozov1.SetDiscoveryRequest:
		return "cluster"
	case *dozov1.KillSessionRequest:
		return "session/" + m.GetId()
	case *dozov1.RevokeRequest:
		if m.GetNode() == "" {
			return "certificate/" + m.GetSerial()
		}
		return "node/" + m.GetNode()
	case interface{ GetNode() string }:
		return "node/" + cmp.Or(m.GetNode(), "any") // as a token for a node whose name is left open
	case interface{ GetStore() string }:
		return "store/" + m.GetStore()
	case *dozov1.CreateSiteRequest:
		return "site/" + m.GetName()
	case interface{ GetSite() string }:
		return "site/" + m.GetSite()
	case interface{ GetName() string }:
		return "token/" + m.GetName()
	}
	return ""
}

func checkOptionalText(field, text string) error {
	if text == "" {
		return nil
	}
	return checkText(field, text)
}

func checkISID(text string) error {
	if b, err := hex.DecodeString(text); text != "" && (err != nil || len(b) != 6) {
		return invalid("isid %q: want 12 hexadecimal digits", text)
	}
	return nil
}
