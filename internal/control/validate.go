package control

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"dozo/internal/ident"
)

// Limits that a standard fixes.
const (
	initiatorNameMax = 223 // bytes; RFC 7143 4.2.7.1
	chapSecretMin    = 12  // bytes; RFC 7143 9.2.1 wants 96 bits where there is no IPsec
)

// Limits that we chose.
const (
	chapSecretMax  = 255     // what initiators can be configured with ends well below
	volumeSizeMax  = 1 << 50 // 1 PiB: a guess at what nobody will ask of one journal
	labelsMax      = 64      // a value must stay small beside etcd's 1.5 MiB a request
	labelLenMax    = 253
	chapUserLenMax = 255
)

var (
	// nameForm is for sites, nodes and hosts; a node's name also stands in its certificate.
	nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	// volumeNameForm is narrower, as volume and tenant become part of an iSCSI name (RFC 3722: lower case).
	volumeNameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
	iqnForm        = regexp.MustCompile(`^iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[^\s/,]+)?$`)
	euiNaaForm     = regexp.MustCompile(`^(eui\.[0-9a-f]{16}|naa\.([0-9a-f]{16}|[0-9a-f]{32}))$`)
)

func checkName(what, name string) error {
	if !nameForm.MatchString(name) {
		return invalidf("%s name %q: want 1 to 63 letters and digits, with . _ - between them", what, name)
	}
	return nil
}

func checkVolumeName(what, name string) error {
	if !volumeNameForm.MatchString(name) {
		return invalidf("%s name %q: want 1 to 63 lower-case letters and digits, with . - between them (it becomes part of the iSCSI target name)", what, name)
	}
	return nil
}

func checkCIDRs(what string, cidrs []netip.Prefix) error {
	for _, p := range cidrs {
		if !p.IsValid() {
			return invalidf("%s: subnet %v", what, p)
		}
		if p != p.Masked() {
			return invalidf("%s: subnet %v has bits behind its length; want %v", what, p, p.Masked())
		}
	}
	return nil
}

// Validate checks what the site says of itself.
func (s Site) Validate() error {
	if err := checkName("site", s.Name); err != nil {
		return err
	}
	return checkCIDRs("site "+s.Name, s.CIDRs)
}

// Validate checks what the node says of itself.
func (n Node) Validate() error {
	if err := checkName("node", string(n.Name)); err != nil {
		return err
	}
	if len(n.Roles) == 0 {
		return invalidf("node %s: no roles", n.Name)
	}
	for _, r := range n.Roles {
		switch r {
		case RoleCore, RoleAccess, RoleHint, RoleWitness:
		default:
			return invalidf("node %s: role %q: want core, access, hint or witness", n.Name, r)
		}
	}
	if n.Has(RoleWitness) && len(n.Roles) > 1 {
		return invalidf("node %s: a witness has no other role", n.Name)
	}
	if n.Site == 0 && !n.Has(RoleWitness) {
		return invalidf("node %s: no site", n.Name)
	}
	if n.HostID == "" {
		return invalidf("node %s: no host ID", n.Name)
	}
	if !n.Has(RoleCore) && len(n.Stores) > 0 {
		return invalidf("node %s: has stores and not the role core", n.Name)
	}
	seen := make(map[ident.StoreID]bool)
	for _, s := range n.Stores {
		if s.ID.IsZero() || seen[s.ID] {
			return invalidf("node %s: store %s is zero or listed twice", n.Name, s.ID)
		}
		seen[s.ID] = true
	}
	return nil
}

// Validate checks what the host says of itself. Initiator names must be in lower case already.
func (h Host) Validate() error {
	if err := checkVolumeName("tenant", h.Tenant); err != nil {
		return err
	}
	if err := checkName("host", h.Name); err != nil {
		return err
	}
	for i, n := range h.InitiatorNames {
		if len(n) > initiatorNameMax || n != strings.ToLower(n) || !iqnForm.MatchString(n) && !euiNaaForm.MatchString(n) {
			return invalidf("host %s: initiator name %q: want iqn.YYYY-MM.domain[:text], eui. with 16 or naa. with 16 or 32 hexadecimal digits, in lower case", h.Name, n)
		}
		if slices.Contains(h.InitiatorNames[:i], n) {
			return invalidf("host %s: initiator name %s is listed twice", h.Name, n)
		}
	}
	if err := checkCIDRs("host "+h.Name, h.CIDRs); err != nil {
		return err
	}
	return h.CHAP.validate("host " + h.Name)
}

func (c CHAP) validate(of string) error {
	for _, d := range []struct {
		direction, user string
		secret          Secret
	}{{"in", c.InUser, c.InSecret}, {"out", c.OutUser, c.OutSecret}} {
		if (d.user == "") != d.secret.IsZero() {
			return invalidf("%s: CHAP %s: user and secret are given together or not at all", of, d.direction)
		}
		if n := len(d.secret.Reveal()); n != 0 && (n < chapSecretMin || n > chapSecretMax) {
			return invalidf("%s: CHAP %s: the secret has %d bytes: want %d to %d", of, d.direction, n, chapSecretMin, chapSecretMax)
		}
		if len(d.user) > chapUserLenMax {
			return invalidf("%s: CHAP %s: the user name is longer than %d bytes", of, d.direction, chapUserLenMax)
		}
	}
	if !c.OutSecret.IsZero() && c.InSecret.IsZero() {
		return invalidf("%s: mutual CHAP needs the inward direction too", of)
	}
	if !c.OutSecret.IsZero() && c.OutSecret == c.InSecret {
		return invalidf("%s: CHAP: both directions have one secret, which RFC 7143 9.2.1 forbids", of)
	}
	return nil
}

// Validate checks the specification by itself, not whether its sites and hosts exist.
func (v VolumeSpec) Validate() error {
	if err := checkVolumeName("tenant", v.Tenant); err != nil {
		return err
	}
	if err := checkVolumeName("volume", v.Name); err != nil {
		return err
	}
	if v.ID.IsZero() {
		return invalidf("volume %s: no ID", v.Name)
	}
	if v.BlockSize != 512 && v.BlockSize != 4096 {
		return invalidf("volume %s: block size %d: want 512 or 4096", v.Name, v.BlockSize)
	}
	if v.SizeBytes <= 0 || v.SizeBytes > volumeSizeMax || v.SizeBytes%int64(v.BlockSize) != 0 {
		return invalidf("volume %s: size %d: want a multiple of the block size %d, at most 1 PiB", v.Name, v.SizeBytes, v.BlockSize)
	}
	if v.Sites < 1 {
		return invalidf("volume %s: copies at %d sites: want at least 1", v.Name, v.Sites)
	}
	if v.Ack < 0 || v.Ack >= v.Sites && v.Ack > 0 {
		return invalidf("volume %s: acknowledged with %s, and %s", v.Name, AckText(v.Ack), otherCopies(v.Sites))
	}
	if v.AtSite == 0 {
		return invalidf("volume %s: no home site", v.Name)
	}
	if v.Durability != Replicated && v.Durability != Sync {
		return invalidf("volume %s: durability %q: want replicated or sync", v.Name, v.Durability)
	}
	if v.Partition != PartitionContinue && v.Partition != PartitionStop {
		return invalidf("volume %s: partition policy %q: want continue or stop", v.Name, v.Partition)
	}
	if v.Ownership != "" && v.Ownership != OwnershipFollow && v.Ownership != OwnershipPin {
		return invalidf("volume %s: ownership %q: want follow or pin", v.Name, v.Ownership)
	}
	if !slices.Contains([]RemoteAccess{"", RemoteNonOptimized, RemoteStandby, RemoteUnavailable}, v.ALUARemote) {
		return invalidf("volume %s: ALUA state at other sites %q: want nonoptimized, standby or unavailable", v.Name, v.ALUARemote)
	}
	if !slices.Contains([]Redirect{"", RedirectOff, RedirectSite, RedirectOwner}, v.Redirect) {
		return invalidf("volume %s: redirect %q: want off, site or owner", v.Name, v.Redirect)
	}
	if err := v.validateMaps(); err != nil {
		return err
	}
	if len(v.Labels) > labelsMax {
		return invalidf("volume %s: %d labels: want at most %d", v.Name, len(v.Labels), labelsMax)
	}
	for key, value := range v.Labels {
		if key == "" || len(key) > labelLenMax || len(value) > labelLenMax {
			return invalidf("volume %s: label %.40q: key and value want at most %d bytes, the key at least one", v.Name, key, labelLenMax)
		}
	}
	return nil
}

// Validate checks a journal's key by itself: what R3 says of the list at any time.
func (s JournalState) Validate() error {
	if s.Owner == "" && (s.Epoch != ident.Epoch{} || len(s.Ensembles) > 0) {
		return invalidf("journal at epoch %s has no owner", s.Epoch)
	}
	for i, e := range s.Ensembles {
		if e.Wide && len(e.Stores) == 0 || !e.Wide && (len(e.Stores) < EnsembleMin || len(e.Stores) > EnsembleMax) {
			return invalidf("ensemble %d has %d stores: want %d to %d", e.Number, len(e.Stores), EnsembleMin, EnsembleMax)
		}
		for j, id := range e.Stores {
			if id.IsZero() || slices.Contains(e.Stores[:j], id) {
				return invalidf("ensemble %d: store %s is zero or listed twice", e.Number, id)
			}
		}
		if s.Epoch.Less(e.Epoch) {
			return invalidf("ensemble %d is of epoch %s, above the journal's %s", e.Number, e.Epoch, s.Epoch)
		}
		if i > 0 && e.Number <= s.Ensembles[i-1].Number {
			return invalidf("ensemble %d follows ensemble %d: numbers grow", e.Number, s.Ensembles[i-1].Number)
		}
	}
	if f := s.Forced; f != nil {
		if s.Epoch.Less(f.Epoch) {
			return invalidf("forced at epoch %s, above the journal's %s", f.Epoch, s.Epoch)
		}
		if !f.Loss && !slices.ContainsFunc(s.Ensembles, func(e Ensemble) bool {
			return slices.ContainsFunc(e.Stores, func(id ident.StoreID) bool { return slices.Contains(f.Lost, id) }) // of any: older nodes keep the note for longer
		}) {
			return invalidf("forced at epoch %s, and no listed store is lost", f.Epoch)
		}
	}
	if s.Ack < 0 || s.Ack > 0 && s.Ack >= len(s.Sites) {
		return invalidf("acknowledged with %s, and %s", AckText(s.Ack), otherCopies(len(s.Sites)))
	}
	for i, id := range s.Sites {
		if id == 0 || slices.Contains(s.Sites[:i], id) {
			return invalidf("site %d of the copies is 0 or listed twice", id)
		}
	}
	return nil
}

// checkSuccessor checks that next may follow s by a change of ensembles within an epoch: a list that was not
// empty is not emptied, ensembles are added only at the end, under the owner's epoch, and what stays is as it
// was.
func (s JournalState) checkSuccessor(next JournalState) error {
	if err := next.Validate(); err != nil {
		return err
	}
	old, ok := s.Newest()
	if ok && len(next.Ensembles) == 0 {
		return invalidf("the list of ensembles would become empty")
	}
	for _, e := range next.Ensembles {
		i := slices.IndexFunc(s.Ensembles, func(o Ensemble) bool { return o.Number == e.Number })
		switch {
		case i >= 0 && (s.Ensembles[i].Epoch != e.Epoch || !slices.Equal(s.Ensembles[i].Stores, e.Stores)):
			return invalidf("ensemble %d would change: a changed ensemble gets a new number", e.Number)
		case i < 0 && ok && e.Number <= old.Number:
			return invalidf("new ensemble %d: its number must be above %d", e.Number, old.Number)
		case i < 0 && e.Epoch != s.Epoch:
			return invalidf("new ensemble %d is of epoch %s, not of the owner's %s", e.Number, e.Epoch, s.Epoch)
		}
	}
	return nil
}
